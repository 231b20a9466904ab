"""A byte-level BPE tokenizer with a few merges, so that a boundary inside a word can be hidden by a merge."""

import json
from pathlib import Path

BYTES = 256
WORDS = ("\n\n", " the", " answer", " is", " yes", " no", "Question", "Answer", " seven", "abc", "<think>", "</think>")


def write_tokenizer(directory: Path, *, begin: bool) -> int:
    """tokenizer.json and tokenizer_config.json; how many tokens. `begin`: with Llama's habit of a begin token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BYTES + 60, min_frequency=1, show_progress=False,
        special_tokens=["<|end|>", "<|begin|>"], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
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
