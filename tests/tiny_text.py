"""Byte-level BPE tokenizers with a few merges, so that a boundary inside a word can be hidden by a merge: a plain one,
one that stands in for Qwen3's, with its special tokens, ends and chat format, and chat templates of three families."""

import json
from pathlib import Path

BYTES = 256
WORDS = ("\n\n", " the", " answer", " is", " yes", " no", "Question", "Answer", " seven", "abc", "<think>", "</think>")


def write_tokenizer(directory: Path, *, begin: bool) -> int:
    """Write tokenizer.json and tokenizer_config.json; return how many tokens. `begin`: with Llama's begin token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BYTES + 60,
        min_frequency=1,
        show_progress=False,
        special_tokens=["<|end|>", "<|begin|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
        )
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|end|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% if enable_thinking %}<think>{% endif %}{% endif %}",
    }
    if begin:
        config["bos_token"] = "<|begin|>"
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size()


# Turns as Qwen3 writes them, in our own words: thoughts of turns before the last question are left out, and
# enable_thinking=False closes an empty thought. Without a message or a content it fails.
CHAT = """
{%- set question = namespace(at=-1) %}
{%- for m in messages if m.role == "user" %}{% set question.at = messages.index(m) %}{% endfor %}
{%- for m in messages %}
    {%- set text = m.content + "" %}
    {%- if m.role == "assistant" and "</think>" in text and loop.index0 < question.at %}
        {%- set text = text.split("</think>")[-1].lstrip("\n") %}
    {%- endif %}
    {{- "<|im_start|>" + m.role + "\n" + text + "<|im_end|>\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\n" }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ "<think>\n\n</think>\n\n" }}{% endif %}
{%- endif %}"""
LINES = (
    "Let's think step by step and output the final answer within \\boxed{}.", "What is the answer? The answer is 7.",
    "user system assistant", "Put your final answer within \\boxed{}.\n\n", "Considering the limited time by the user",
)  # fmt: skip


# What the templates of three families write, in our own words. Qwen3: a thought of the last turn in tags, an empty one
# where there is none; thoughts of earlier turns left out.
QWEN3 = """
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == "user" -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
    {{- "<|im_start|>" + m.role + "\n" -}}
    {%- set thought, text = "", m.content -%}
    {%- if m.role == "assistant" and "</think>" in m.content -%}
        {%- set text = m.content.split("</think>")[-1].lstrip("\n") -%}
        {%- set thought = m.content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n") -%}
    {%- endif -%}
    {%- if m.role == "assistant" and loop.index0 > ns.last and (loop.last or thought) -%}
        {{- "<think>\n" + thought.strip("\n") + "\n</think>\n\n" + text.lstrip("\n") -}}
    {%- else -%}{{- text -}}{%- endif -%}
    {{- "<|im_end|>\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\n" -}}
    {%- if enable_thinking is defined and not enable_thinking -%}{{- "<think>\n\n</think>\n\n" -}}{%- endif -%}
{%- endif -%}"""
# SmolLM2: ChatML with a system prompt of its own where there is none
SMOLLM2 = """
{%- if messages[0].role != "system" -%}{{- "<|im_start|>system\nYou are a helpful model.<|im_end|>\n" -}}{%- endif -%}
{%- for m in messages -%}{{- "<|im_start|>" + m.role + "\n" + m.content + "<|im_end|>\n" -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\n" -}}{%- endif -%}"""
# Llama 3.2: a begin token, a system turn with a date in any case, contents without blanks at their ends
LLAMA3 = """
{{- bos_token -}}
{%- set system, rest = "", messages -%}
{%- if messages[0].role == "system" -%}{%- set system, rest = messages[0].content, messages[1:] -%}{%- endif -%}
{{- "<|start_header_id|>system<|end_header_id|>\n\nToday Date: " + date_string + "\n\n" + system|trim + "<|eot_id|>" -}}
{%- for m in rest -%}
    {{- "<|start_header_id|>" + m.role + "<|end_header_id|>\n\n" + m.content|trim + "<|eot_id|>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|start_header_id|>assistant<|end_header_id|>\n\n" -}}{%- endif -%}"""


def write_llama3_like(directory: Path) -> Path:
    """Write a tokenizer with Llama 3's special tokens, begin, end and chat format."""
    write_qwen3_like(directory, template=LLAMA3)
    specials = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    files = directory / "tokenizer.json", directory / "tokenizer_config.json"
    tokenizer, config = (json.loads(file.read_text()) for file in files)
    known = {token["content"]: token for token in tokenizer["added_tokens"]}
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>")  # four of another name
    for old, new in zip(names, specials):
        known[old] |= {"content": new, "special": True}
        if old in tokenizer["model"]["vocab"]:
            tokenizer["model"]["vocab"][new] = tokenizer["model"]["vocab"].pop(old)
    config |= {"bos_token": specials[0], "eos_token": specials[3], "pad_token": specials[0]}
    for file, content in zip(files, (tokenizer, config)):
        file.write_text(json.dumps(content))
    return directory


def write_qwen3_like(directory: Path, *, template: str = CHAT) -> Path:
    """Write the files of a tokenizer that behaves as Qwen3's does, with a few hundred tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    tokenizer.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=BYTES + 100, min_frequency=1, show_progress=False, initial_alphabet=letters
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in ("<think>", "</think>")])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text(template)
    return directory
