"""Text to tokens and back, special tokens by name."""

from pathlib import Path

import pytest

from e3jax.tasks.countdown_traces import WORDS
from e3jax.tokenizer import HubTokenizer, WordTokenizer

QWEN3 = Path(__file__).parent.parent.parent / "shared/data/qwen3-tokenizer"


def test_words_round_trip():
    tokenizer = WordTokenizer(WORDS)
    text = "7 + 5 * 2 = 12 24 ?24 0 yes <answer> 7 + 5 * 2 </answer>"
    tokens = tokenizer.encode(text)
    assert tokenizer.decode([*tokens, tokenizer.eos, tokenizer.pad]) == text
    assert len(set(tokenizer.words)) == tokenizer.vocab_size == 210
    with pytest.raises(ValueError, match="'seven'"):
        tokenizer.encode("7 + seven")


def test_qwen3_tokenizer():
    """The real one: numbers of named tokens, the chat template's generation prompt, raw text unchanged."""
    pytest.importorskip("transformers", reason="real tokenizers need pip install -e '.[hf]'")
    if not QWEN3.exists():
        pytest.skip(f"needs the Qwen3 tokenizer at {QWEN3}")
    tokenizer = HubTokenizer(str(QWEN3))
    assert tokenizer.token("</think>") == 151668
    assert (tokenizer.eos, tokenizer.pad) == (151645, 151643)
    assert tokenizer.decode(tokenizer.encode("Using [3, 5], make 8.")) == "Using [3, 5], make 8."
    chat = tokenizer.hub.decode(tokenizer.chat("2+2?", thinking=True))
    assert chat == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(ValueError, match="no_such"):
        tokenizer.token("<|no_such|>")
