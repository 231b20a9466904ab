"""Text to tokens and back: a closed word vocabulary for tiny models, the hub's tokenizers for real ones.

Both offer encode, decode, eos, pad and vocab_size; special tokens are reached by name, never by number.

    tokenizer = WordTokenizer(countdown_traces.WORDS)
    tokenizer = HubTokenizer("Qwen/Qwen3-1.7B")     # or a local directory
"""

from collections.abc import Iterable, Sequence

PAD, EOS = "<pad>", "<eos>"


class WordTokenizer:
    """One token per blank-separated word of a closed list; the first two are padding and EOS."""

    def __init__(self, words: Sequence[str]):
        self.words = (PAD, EOS, *words)
        self.index = {word: i for i, word in enumerate(self.words)}
        self.vocab_size = len(self.words)
        self.pad, self.eos = self.index[PAD], self.index[EOS]

    def encode(self, text: str) -> list[int]:
        """Words -> tokens, no special token added. A word outside the vocabulary is an error."""
        unknown = [word for word in text.split() if word not in self.index]
        if unknown:
            raise ValueError(f"{unknown[0]!r} of {text[:80]!r} is not one of the {self.vocab_size} words")
        return [self.index[word] for word in text.split()]

    def decode(self, tokens: Iterable[int]) -> str:
        """Tokens -> words; padding and EOS leave no trace in the text."""
        return " ".join(self.words[t] for t in tokens if t not in (self.pad, self.eos))


class HubTokenizer:
    """A transformers tokenizer by hub id or directory; needs `pip install e3jax[hf]`."""

    def __init__(self, name: str):
        from transformers import AutoTokenizer  # heavy, and not needed for tiny models

        self.hub = AutoTokenizer.from_pretrained(name)
        self.vocab_size = len(self.hub)
        self.eos = self.hub.eos_token_id  # the tokenizer's own: "<|im_end|>" for Qwen3, the end of text for base models
        self.pad = self.eos if self.hub.pad_token_id is None else self.hub.pad_token_id

    def encode(self, text: str) -> list[int]:
        """Raw text -> tokens, no special token added (Countdown's prompt is raw: ALGORITHMS A.3)."""
        return self.hub.encode(text, add_special_tokens=False)

    def decode(self, tokens: Iterable[int]) -> str:
        """Tokens -> text, special tokens left out."""
        return self.hub.decode(list(tokens), skip_special_tokens=True)
