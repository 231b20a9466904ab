"""Text to tokens and back: a closed word vocabulary for tiny models, the hub's tokenizers for real ones.

Both offer encode, encode_all, decode, save, eos, pad and vocab_size; special tokens are reached by name, never by
number.

    tokenizer = WordTokenizer(countdown_traces.WORDS)
    tokenizer = HubTokenizer("Qwen/Qwen3-1.7B")     # or a local directory
    prompt = tokenizer.chat([{"role": "user", "content": "7 * 8?"}], thinking=True)
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from e3jax.errors import UserError, first_line
from e3jax.readers import read_json

PAD, EOS = "<pad>", "<eos>"
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
MOST_PARTS = 16  # tokens that one character may have: bytes that never become one are shown as they stand
CHAT_DATE = "26 Jul 2024"  # "today" in Llama-3.2's template, its own fallback: a prompt must not change with the day


class WordTokenizer:
    """A vocabulary of one token per blank-separated word of a closed list; the first two are padding and EOS."""

    def __init__(self, words: Sequence[str]):
        self.words = (PAD, EOS, *words)
        self.index = {word: i for i, word in enumerate(self.words)}
        self.vocab_size = len(self.words)
        self.pad, self.eos, self.bos = self.index[PAD], self.index[EOS], None
        self.stop = (self.eos,)

    def encode(self, text: str) -> list[int]:
        """Return the words' tokens, no special token added. ValueError for a word outside the vocabulary."""
        unknown = [word for word in text.split() if word not in self.index]
        if unknown:
            raise ValueError(f"{unknown[0]!r} of {text[:80]!r} is not one of the {self.vocab_size} words")
        return [self.index[word] for word in text.split()]

    def encode_plain(self, text: str) -> list[int]:
        """Return the words' tokens; UserError for words outside the vocabulary, and for padding and EOS."""
        unknown = [word for word in text.split() if word not in self.index or word in (PAD, EOS)]
        if unknown:
            raise UserError(f"{unknown[0]!r} of {text[:80]!r} is not one of the model's words: leave it out")
        return self.encode(text)

    def encode_all(self, texts: Iterable[str]) -> list[list[int]]:
        """Return what `encode` does of every text."""
        return [self.encode(text) for text in texts]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the tokens' words; padding and EOS leave no trace in the text."""
        return " ".join(self.words[t] for t in tokens if t not in (self.pad, self.eos))

    def id(self, token: str) -> int:
        """Return the number of a word; UserError when there is no such word."""
        if token not in self.index:
            raise UserError(f"{token!r} is not one of the {self.vocab_size} words")
        return self.index[token]

    def save(self, directory) -> None:
        """Write files from which transformers' AutoTokenizer (and HubTokenizer) reads the same tokenizer."""
        plain = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        tokenizer = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": self.index[name], "content": name, **plain} for name in (PAD, EOS)],
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,  # words joined by blanks
            "model": {"type": "WordLevel", "vocab": self.index, "unk_token": "<unk>"},  # no such word: an error
        }
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": EOS,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,  # it would write "7 ?24" as "7?24"
        }
        Path(directory).mkdir(parents=True, exist_ok=True)
        for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
            (Path(directory) / name).write_text(json.dumps(content, indent=1) + "\n")


class HubTokenizer:
    """A transformers tokenizer by hub id or directory; needs `pip install e3jax[hf]`. Never runs a model's own code.

    UserError when there is none at `name`.
    """

    def __init__(self, name: str):
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that models need PyTorch, on stderr
        try:
            from transformers import AutoTokenizer  # heavy, and not needed for tiny models
        except ImportError as error:
            raise UserError(f"the tokenizer {name!r} needs transformers ({error}): pip install -e '.[hf]'") from error
        try:
            self.hub = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise no_tokenizer(name, first_line(error).rstrip(".: ")) from error
        self.source = Path(name)  # for a hub id: no such directory
        self.vocab_size, self.added = len(self.hub), []
        if not self.hub.get_vocab().keys() - self.hub.get_added_vocab().keys():
            raise no_tokenizer(name, "no vocabulary there")  # transformers makes an empty one from config.json alone
        if self.hub.eos_token_id is None:
            raise no_tokenizer(name, "its tokenizer_config.json names no eos_token")
        self.eos = self.hub.eos_token_id  # the tokenizer's own: "<|im_end|>" for Qwen3, the end of text for base models
        self.pad = self.eos if self.hub.pad_token_id is None else self.hub.pad_token_id
        self.bos = self.hub.bos_token_id  # None: there is none (Qwen)
        self.stop = (self.eos,)  # what ends a response; a model may name more (checkpoint/pretrained.py)

    def encode(self, text: str, *, begin: bool = False) -> list[int]:
        """Return raw text's tokens; `begin` adds what the tokenizer puts before a text (Llama's "<|begin_of_text|>").

        e3's Countdown prompts are raw, without it.
        """
        return self.hub.encode(text, add_special_tokens=begin)

    def encode_plain(self, text: str) -> list[int]:
        """Return the tokens of a text in which special and added tokens are text: "<|im_end|>" is several tokens."""
        added = set(self.hub.get_added_vocab().values())
        tokens = [token for part in cut_apart(text, list(self.hub.get_added_vocab())) for token in self.encode(part)]
        if not added.intersection(tokens):
            return tokens
        tokens = [token for character in text for token in self.encode(character)]  # found in a spelling of its own
        return [token for token in tokens if token not in added]

    def encode_all(self, texts: Iterable[str]) -> list[list[int]]:
        """Return what `encode` does of every text, in one call, which takes a third of the time and uses all cores."""
        texts = list(texts)
        only_tokens = dict(add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
        return self.hub(texts, **only_tokens)["input_ids"] if texts else []

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the tokens' text, special tokens left out ("<think>" stays), blanks as the model wrote them."""
        return self.hub.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @property
    def has_chat(self) -> bool:
        """Return whether there is a chat template."""
        return self.hub.chat_template is not None

    @property
    def thinks(self) -> bool:
        """Return whether the vocabulary or the chat template has a "</think>"."""
        return "</think>" in self.hub.get_vocab() or "</think>" in str(self.hub.chat_template)

    def chat(self, messages: Sequence[dict[str, str]], *, thinking: bool) -> list[int]:
        """Return the chat template's tokens of messages {"role", "content"}, up to where the assistant speaks.

        `thinking` is the template's `enable_thinking` (Qwen3: False closes an empty thought); templates without it
        ignore it. UserError when there is no template, or it refuses the messages.
        """
        return self.apply_chat(messages, thinking=thinking, tokenize=True)

    def chat_text(self, words: str, before: Sequence[dict[str, str]] = (), *, thinking: bool) -> str:
        """Return one user turn in the chat template, special tokens written out; `encode` gives `chat`'s tokens.

        `before`: messages that come first.
        """
        return self.apply_chat([*before, {"role": "user", "content": words}], thinking=thinking, tokenize=False)

    def turns_text(self, messages: Sequence[dict[str, str]], *, opened: bool, thinking: bool) -> str:
        """Return messages in the chat template, special tokens written out; `opened`: and the assistant begins."""
        return self.apply_chat(messages, thinking=thinking, tokenize=False, opened=opened)

    def apply_chat(
        self,
        messages: Sequence[dict[str, str]],
        *,
        thinking: bool,
        tokenize: bool,
        go_on: bool = False,
        opened: bool = True,
    ) -> list[int] | str:
        """Return the chat template's tokens or text up to where the assistant speaks, or goes on with the last message.

        Not `opened`, and not `go_on`: up to the end of the last message.

        A last message that begins with a thought is continued as it is written: Qwen3's template would put an empty
        thought before it, and R1's leaves thoughts out.
        """
        if go_on and messages and begins_thought(messages[-1]):
            text = self.apply_chat(messages[:-1], thinking=True, tokenize=False)
            begun = text.rstrip()  # of templates that open the thought themselves
            text = begun.removesuffix("<think>") if begun.endswith("<think>") else text
            text += messages[-1]["content"]
            return self.encode(text) if tokenize else text
        if not self.has_chat:
            raise UserError(f"the tokenizer of {self.hub.name_or_path!r} has no chat template: use raw prompts (--raw)")
        try:
            return self.hub.apply_chat_template(
                list(messages),
                add_generation_prompt=opened and not go_on,
                continue_final_message=go_on,
                tokenize=tokenize,
                return_dict=False,
                enable_thinking=thinking,
                date_string=CHAT_DATE,
            )
        except ImportError as error:
            raise UserError(f"chat templates need jinja2 ({error}): pip install jinja2") from error
        except Exception as error:  # jinja2's are known only to transformers
            raise UserError(
                f"the chat template of {self.hub.name_or_path!r} refuses these messages ({error}): "
                "give each a role that it knows and a content"
            ) from error

    def id(self, token: str) -> int:
        """Return the number of the one token that is written so, e.g. "<|im_end|>"; UserError when there is none."""
        number = self.hub.convert_tokens_to_ids(token)
        if number is None or self.hub.convert_ids_to_tokens(number) != token:
            parts = self.hub.convert_ids_to_tokens(self.encode(token))
            raise UserError(
                f"{token!r} is not one token of {self.hub.name_or_path!r} but {parts}: choose another, or add it"
            )
        return number

    def add(self, tokens: Sequence[str]) -> int:
        """Give each new one of `tokens` an id, from vocab_size on, and return how many. They stay in decoded text."""
        from transformers import AddedToken

        known = self.hub.get_vocab()
        new = [token for token in dict.fromkeys(tokens) if token not in known]
        self.hub.add_tokens([AddedToken(token, normalized=False, special=False) for token in new])
        self.added += new
        self.vocab_size = len(self.hub)
        return len(new)

    def save(self, directory) -> None:
        """Write the tokenizer's files, chat template included: those it was read from, which other versions read too.

        transformers 5 writes a tokenizer_config.json that version 4 cannot read. Added tokens go into tokenizer.json.
        """
        directory = Path(directory)
        files = [self.source / name for name in FILES if (self.source / name).is_file()]
        if not files:
            self.hub.save_pretrained(str(directory))
        for file in files:
            shutil.copyfile(file, directory / file.name)
        config_file, added_file = directory / "tokenizer_config.json", directory / "added_tokens.json"
        before = read_json(config_file, {"added_tokens_decoder?": dict})
        config = dict(before)
        if config.get("tokenizer_class") == "TokenizersBackend":  # 5's name for it
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if self.added:
            self.hub.backend_tokenizer.save(str(directory / "tokenizer.json"))
            ids = {token: self.id(token) for token in self.added}
            if added_file.exists():
                added_file.write_text(json.dumps(read_json(added_file, dict) | ids, indent=2) + "\n")
            if "added_tokens_decoder" in config:
                plain = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=False)
                new = {str(i): {"content": t, **plain} for t, i in ids.items()}
                config["added_tokens_decoder"] = config["added_tokens_decoder"] | new
        if config != before:
            config_file.write_text(json.dumps(config, indent=2) + "\n")


def pieces(decode: Callable[[list[int]], str], tokens: Sequence[int]) -> list[str]:
    """Return what each token adds to the decoded text; a character of several tokens comes with its last one.

    Their join is decode(tokens) where no special token lies inside, nor MOST_PARTS tokens that are no text; one that
    leaves no trace (EOS) adds "".

    >>> pieces(WordTokenizer(["7", "+"]).decode, [2, 3, 2, 1])
    ['7', ' +', ' 7', '']
    """
    return ["" if half else text for text, half in additions(decode, tokens)]


def lengths(decode: Callable[[list[int]], str], tokens: Sequence[int]) -> list[int]:
    """Return the number of characters of decode(tokens[:n]) for n = 0 … len(tokens), in time linear in them.

    >>> lengths(WordTokenizer(["7", "+"]).decode, [2, 3, 2, 1])
    [0, 1, 3, 5, 5]
    """
    out, whole = [0], 0
    for text, half in additions(decode, tokens):
        out.append(whole + len(text))
        whole = whole if half else out[-1]
    return out


def additions(decode: Callable[[list[int]], str], tokens: Sequence[int]) -> Iterator[tuple[str, bool]]:
    """Yield what each token adds to the whole characters before it, and whether it ends in half a character."""
    start = read = 0  # decoded again with the token before it: blanks and characters depend on it
    for i in range(len(tokens)):
        before, now = decode(list(tokens[start:read])), decode(list(tokens[start : i + 1]))
        half = now.endswith("\ufffd") and i + 1 < min(len(tokens), read + MOST_PARTS)
        yield now[len(before) :], half
        if not half:
            start, read = read, i + 1


def cut_apart(text: str, names: Sequence[str]) -> list[str]:
    """Return a text in parts that hold none of `names`, which are cut behind their first character.

    >>> cut_apart("a <eos> b <eos>", ["<eos>", "<pad>"])
    ['a <', 'eos> b <', 'eos>']
    """
    places, parts = {at + 1 for name in names if len(name) > 1 for at in places_of(text, name)}, []
    for start, end in pairwise([0, *sorted(places), len(text)]):
        parts += [text[start:end]] if start < end else []
    return parts


def places_of(text: str, name: str) -> Iterator[int]:
    """Yield where a name stands in a text.

    >>> list(places_of("aaa", "aa"))
    [0, 1]
    """
    at = text.find(name)
    while at >= 0:
        yield at
        at = text.find(name, at + 1)


def begins_thought(message: dict[str, str]) -> bool:
    r"""Return whether a chat message is the assistant's and opens with "<think>".

    >>> begins_thought({"role": "assistant", "content": "<think>\nx"}), begins_thought({"role": "user", "content": "x"})
    (True, False)
    """
    if not {"role", "content"} <= message.keys() or message["role"] != "assistant":
        return False
    return isinstance(message["content"], str) and message["content"].lstrip().startswith("<think>")


def no_tokenizer(name: str, why: str) -> UserError:
    """Return the error of a name without a usable tokenizer."""
    return UserError(
        f"no tokenizer could be read from {name!r} ({why}): give a directory with tokenizer.json and "
        "tokenizer_config.json, or a hub id that this machine can reach"
    )


def split_thinking(prompt: str, response: str) -> tuple[str | None, str]:
    r"""Return thinking (None: there was none) and answer, without the tags and the line breaks around them.

    The *last* "</think>" divides, as on Qwen3's model card. Without one, a thought that was begun never ended: all is
    thinking and the answer is empty, whether the budget or the model itself ended it. It was begun when the response
    opens with "<think>" (Qwen3) or the prompt closes with it (R1, Countdown); else all is answer.

    >>> split_thinking("7*8?", "<think>\n7*8 is 56\n</think>\n\nIt is 56.")
    ('7*8 is 56', 'It is 56.')
    >>> split_thinking("7*8? <think>", "7*8 is"), split_thinking("7*8?", "56")
    (('7*8 is', ''), (None, '56'))
    """
    thinking, close, answer = response.rpartition("</think>")
    if not close:
        if not prompt.rstrip().endswith("<think>") and not response.lstrip().startswith("<think>"):
            return None, response
        thinking, answer = response, ""
    return thinking.lstrip().removeprefix("<think>").strip("\n"), answer.strip("\n")
