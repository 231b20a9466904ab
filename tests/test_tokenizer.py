"""Text to tokens and back, special tokens by name."""

from pathlib import Path

import pytest

from e3jax.tasks.countdown import paper_problem
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
    """The real one: raw text in and out unchanged, its own EOS and padding."""
    pytest.importorskip("transformers", reason="real tokenizers need pip install -e '.[hf]'")
    if not QWEN3.exists():
        pytest.skip(f"needs the Qwen3 tokenizer at {QWEN3}")
    tokenizer = HubTokenizer(str(QWEN3))
    assert (tokenizer.eos, tokenizer.pad, tokenizer.vocab_size) == (151645, 151643, 151669)
    prompt = paper_problem(0, 0, numbers=4).question
    assert tokenizer.decode(tokenizer.encode(prompt)) == prompt
    assert len(tokenizer.encode("<|im_end|>")) == 1
