"""Prompts of one's own: files of them, and how a text or a list of messages becomes tokens."""

from typing import NamedTuple

from e3jax.errors import UserError
from e3jax.readers import parse_json, read_text_lines
from e3jax.tokenizer import HubTokenizer

Asked = str | list[dict[str, str]]  # a text, or messages {"role", "content"}


class Prompt(NamedTuple):
    """What was asked, and what the model reads."""

    asked: Asked
    tokens: list[int]
    text: str  # of the tokens, special ones left out


def read_prompts(path: str) -> list[Asked]:
    """Prompts of a .txt file (one a line) or .jsonl file ("prompt" or "messages"); blank lines are left out.

    UserError names the line that is wrong.
    """
    if not path.endswith((".txt", ".jsonl")):
        raise UserError(f"{path} is neither .txt (a prompt a line) nor .jsonl (an object a line): rename it")
    prompts = []
    for number, line in enumerate(read_text_lines(path), 1):
        if line.strip():
            try:
                prompts.append(json_prompt(line) if path.endswith(".jsonl") else line)
            except ValueError as error:
                raise UserError(f"{path} line {number}: {error}") from error
    if not prompts:
        raise UserError(f"{path} holds no prompt: write one a line")
    return prompts


def json_prompt(line: str) -> Asked:
    """The prompt of one JSON line; ValueError says what is wrong with it."""
    value = parse_json(line)
    if not isinstance(value, dict) or ("prompt" in value) == ("messages" in value):
        raise ValueError(f'{line[:60]} is not an object with either "prompt" or "messages"')
    if "prompt" in value:
        asked, texts = value["prompt"], [value["prompt"]]
    else:
        asked = value["messages"]
        if not (isinstance(asked, list) and asked and all(isinstance(m, dict) for m in asked)):
            raise ValueError(f'"messages" is not a list of {{"role": …, "content": …}} but {str(asked)[:60]}')
        texts = [m[name] if name in m else None for m in asked for name in ("role", "content")]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{text!r} stands where a string belongs")
        text.encode()  # a lone surrogate raises a ValueError
    return asked


def make_prompt(tokenizer: HubTokenizer, asked: Asked, *, raw: bool, thinking: bool, system: str) -> Prompt:
    """Tokens by the chat template; without one, of the text behind the tokenizer's begin token; as it is when `raw`.

    UserError when the messages, the system message or the words do not suit the tokenizer.
    """
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    if any("\ud800" <= c <= "\udfff" for c in f"{system}{asked}"):  # Python's stand-in for a byte of no character
        raise UserError("the prompt is not UTF-8: set the terminal to UTF-8")
    if raw and (system or messages is asked):
        raise UserError('a raw prompt has no messages: leave out --raw, or --system and "messages"')
    if system and messages[0]["role"] == "system":
        raise UserError("these messages bring a system message of their own: leave out --system")
    if raw or not (tokenizer.has_chat or system or messages is asked):
        try:
            tokens = tokenizer.encode(asked, begin=not raw)
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise UserError(
                f"prompt {asked[:60]!r} is not in the model's vocabulary ({error}): use its words"
            ) from error
    else:
        first = [{"role": "system", "content": system}] if system else []
        tokens = tokenizer.chat([*first, *messages], thinking=thinking)
    if not tokens:
        raise UserError("the prompt is empty: write something")
    return Prompt(asked, tokens, tokenizer.decode(tokens))
