"""Read prompts from files, and make a text or a list of messages into tokens."""

from typing import NamedTuple

from e3jax.errors import UserError
from e3jax.readers import parse_json, read_text_lines
from e3jax.tokenizer import HubTokenizer

Question = str | list[dict[str, str]]  # a text, or messages {"role", "content"}


class Prompt(NamedTuple):
    """A question, and what the model reads for it."""

    question: Question
    tokens: list[int]
    text: str  # of the tokens, special ones left out


def read_prompts(path: str) -> list[Question]:
    """Return the prompts of a .txt file (one a line) or .jsonl file ("prompt" or "messages"), without blank lines.

    Raise UserError, which names the line, for one that is wrong.
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


def json_prompt(line: str) -> Question:
    """Return the prompt of one JSON line; raise ValueError, which says what is wrong with it."""
    value = parse_json(line)
    if not isinstance(value, dict) or ("prompt" in value) == ("messages" in value):
        raise ValueError(f'{line[:60]} is not an object with either "prompt" or "messages"')
    if "prompt" in value:
        question, texts = value["prompt"], [value["prompt"]]
    else:
        question = value["messages"]
        if not (isinstance(question, list) and question and all(isinstance(m, dict) for m in question)):
            raise ValueError(f'"messages" is not a list of {{"role": …, "content": …}} but {str(question)[:60]}')
        texts = [m[name] if name in m else None for m in question for name in ("role", "content")]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{text!r} stands where a string belongs")
        text.encode()  # a lone surrogate raises a ValueError
    return question


def make_prompt(tokenizer: HubTokenizer, question: Question, *, raw: bool, thinking: bool, system: str) -> Prompt:
    """Return a question as the chat template makes it; without a template, as a text behind the begin token.

    A `raw` text stays as it is. Raise UserError where messages, system message or words do not suit the tokenizer.
    """
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    if any("\ud800" <= c <= "\udfff" for c in f"{system}{question}"):  # Python's stand-in for a byte of no character
        raise UserError("the prompt is not UTF-8: set the terminal to UTF-8")
    if raw and (system or messages is question):
        raise UserError('a raw prompt has no messages: leave out --raw, or --system and "messages"')
    if system and messages[0]["role"] == "system":
        raise UserError("these messages bring a system message of their own: leave out --system")
    if raw or not (tokenizer.has_chat or system or messages is question):
        try:
            tokens = tokenizer.encode(question, begin=not raw)
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise UserError(
                f"prompt {question[:60]!r} is not in the model's vocabulary ({error}): use its words"
            ) from error
    else:
        first = [{"role": "system", "content": system}] if system else []
        tokens = tokenizer.chat([*first, *messages], thinking=thinking)
    if not tokens:
        raise UserError("the prompt is empty: write something")
    return Prompt(question, tokens, tokenizer.decode(tokens))
