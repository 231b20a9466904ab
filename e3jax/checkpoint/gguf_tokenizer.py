"""The description of a GGUF file's model as Hugging Face has it: its config, its tokenizer and what ends a response.

Only byte-level BPE is read, as Llama 3, SmolLM2 and Qwen have it. Of the rule by which text is split into words before
that, a GGUF file holds only the name. The rules here are those of the hub's tokenizer.json and of llama.cpp
(`llama-vocab.cpp`). transformers 5.24's own reader of GGUF has no rule "smollm": it splits "  12" otherwise than
SmolLM2's tokenizer does.

    describe_gguf(file, directory)
"""

from typing import Any

from etils import epath

from e3jax.checkpoint.gguf import Gguf
from e3jax.checkpoint.hf_config import to_hub
from e3jax.checkpoint.pretrained import write_json
from e3jax.errors import UserError
from e3jax.readers import fault

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # of tokenizer.ggml.token_type
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre -> digits that stay together; "smollm" has a rule of its own
PATTERNS = {
    "qwen2": r"\p{N}",
    "deepseek-r1-qwen": r"\p{N}",
    "llama-bpe": r"\p{N}{1,3}",
    "llama3": r"\p{N}{1,3}",
    "llama-v3": r"\p{N}{1,3}",
}
ENDS = ("eos", "eot", "eom")  # of a text, a turn, a message that calls a tool: each ends a response


def describe_gguf(file: Gguf, directory: epath.Path) -> None:
    """Write config.json, generation_config.json and the tokenizer's files, which transformers reads too."""
    try:
        tokens, ids = vocabulary(file.fields), special_ids(file.fields)
        tokenizer = tokenizer_json(file.fields, tokens, ids)
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from None
    if len(tokens) > file.config.vocab_size:
        raise UserError(f"{file.path} has {len(tokens)} tokens, but its model has rows for {file.config.vocab_size}")
    bos, eos, pad = ids.get("bos"), ids["eos"], ids.get("pad", ids["eos"])
    ends = list(dict.fromkeys(ids[name] for name in ENDS if name in ids))
    generation = {"bos_token_id": bos, "eos_token_id": ends if len(ends) > 1 else eos, "pad_token_id": pad}
    named = {f"{name}_token": tokens[ids[name]] for name in ("eos", "unk", "pad") if name in ids}
    template = file.fields.get("tokenizer.chat_template")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None if bos is None else tokens[bos],  # written out: transformers 5 would make it "<s>"
        **named,
        "model_max_length": file.config.max_length,
        "clean_up_tokenization_spaces": False,
        **({"chat_template": template} if isinstance(template, str) else {}),
    }
    write_json(directory / "config.json", to_hub(file.config, dtype="float32", bos=bos, eos=eos, pad=pad))
    write_json(directory / "generation_config.json", generation)
    write_json(directory / "tokenizer.json", tokenizer)
    write_json(directory / "tokenizer_config.json", config)


def vocabulary(fields: dict[str, Any]) -> list[str]:
    """Return the tokens in the order of their ids, without the unused ones at the end that only fill up rows."""
    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise UserError(
            f"tokenizer.ggml.model={kind!r} is not supported: only byte-level BPE ('gpt2') is, as Llama 3, SmolLM2 and "
            "Qwen have it"
        )
    tokens, types = (fields.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    if fault(tokens, [str]) or fault(types, [int]) or len(tokens) != len(types) or len(set(tokens)) != len(tokens):
        raise UserError("tokenizer.ggml.tokens and token_type are not lists of as many different tokens and types")
    used = len(tokens)
    while used and types[used - 1] == UNUSED:
        used -= 1
    return tokens[:used]


def special_ids(fields: dict[str, Any]) -> dict[str, int]:
    """Return the ids of "bos", "eos", "pad" and the like that the file names; UserError without an "eos"."""
    keys = {name: f"tokenizer.ggml.{name}_token_id" for name in ("bos", *ENDS)}
    keys |= {"unk": "tokenizer.ggml.unknown_token_id", "pad": "tokenizer.ggml.padding_token_id"}
    size = len(vocabulary(fields))
    ids = {name: fields[key] for name, key in keys.items() if key in fields}
    odd = [f"{keys[name]}={value!r}" for name, value in ids.items() if fault(value, int) or not 0 <= value < size]
    if odd:
        raise UserError(f"{', '.join(odd)} is not the number of one of its {size} tokens")
    if "eos" not in ids:
        raise UserError(
            f"its tokenizer has no EOS ({keys['eos']} is missing), so that no response would end: take a file that "
            "names one"
        )
    return ids


def tokenizer_json(fields: dict[str, Any], tokens: list[str], ids: dict[str, int]) -> dict:
    """Return the content of tokenizer.json."""
    rule, merges, types = (fields.get(f"tokenizer.ggml.{name}") for name in ("pre", "merges", "token_type"))
    if not isinstance(rule, str) or rule not in ("smollm", *PATTERNS):
        raise UserError(f"tokenizer.ggml.pre={rule!r} is not supported; known: smollm, {', '.join(PATTERNS)}")
    index = {token: i for i, token in enumerate(tokens)}
    if fault(merges, [str]) or not all(is_merge(merge, index) for merge in merges):
        raise UserError("tokenizer.ggml.merges is missing, or joins what are no tokens")
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    llama3 = rule.startswith("llama")
    begin = fields.get("tokenizer.ggml.add_bos_token", llama3) and "bos" in ids
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **flags, "special": types[i] == CONTROL}
            for i, token in enumerate(tokens)
            if types[i] in (CONTROL, USER_DEFINED)
        ],
        "normalizer": {"type": "NFC"} if "qwen" in rule else None,
        "pre_tokenizer": pre_tokenizer(rule),
        "post_processor": beginning(tokens[ids["bos"]], ids["bos"]) if begin else byte_level(words=False),
        "decoder": byte_level(words=False),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": llama3,  # a word that is a token stays whole, whatever its merges
            "vocab": index,
            "merges": merges,
        },
    }


def is_merge(merge: str, index: dict[str, int]) -> bool:
    """Return whether a merge joins two tokens to a third.

    >>> is_merge("a b", {"a": 0, "b": 1, "ab": 2}), is_merge("a c", {"a": 0, "b": 1, "ab": 2})
    (True, False)
    """
    left, _, right = merge.partition(" ")
    return left in index and right in index and left + right in index


def pre_tokenizer(rule: str) -> dict:
    """Return tokenizer.json's rule for splitting text into words."""
    if rule == "smollm":
        steps = [{"type": "Digits", "individual_digits": True}, byte_level(words=True)]
    else:
        pattern = {"Regex": WORDS.replace("DIGITS", PATTERNS[rule])}
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        steps = [split, byte_level(words=False)]
    return {"type": "Sequence", "pretokenizers": steps}


def byte_level(*, words: bool) -> dict:
    """Return tokenizer.json's step between bytes and their letters; `words`: it also splits, as GPT-2 does."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": words}


def beginning(token: str, number: int) -> dict:
    """Return tokenizer.json's step that puts a token before every text."""
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, special, second],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
