"""Conversations -> tokens, and exactly which of them the assistant said.

    style = ChatStyle(render=render, encode=tokenizer.encode, stop=tokenizer.stop)
    for example in encode_chat(chat, style): example.tokens, example.trained

Turn i is what the template makes of the messages up to it, F_i, beyond what the model reads before it speaks, P_i: the
answer, with the token that ends it. So what is trained is what generation would have to say, whatever a template adds.
Turns share one example as long as what is there is where P_i begins, token by token. A template that rewrites earlier
turns (Qwen3's leaves out their thoughts) begins a new example there, with the context that generation would have.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from e3jax.errors import UserError
from e3jax.tasks.chats import Chat, Message


class Example(NamedTuple):
    """A row of tokens."""

    tokens: np.ndarray  # [T] int32
    trained: np.ndarray  # [T] bool


class ChatStyle(NamedTuple):
    """A tokenizer and its chat template, as functions."""

    render: Callable[..., str]  # (messages, *, opened, thinking): `opened` up to where the assistant speaks
    encode: Callable[[str], list[int]]  # text with special tokens written out
    stop: Sequence[int]  # what ends a turn


def encode_chat(chat: Chat, style: ChatStyle) -> Iterator[Example]:
    """Yield a conversation's examples: one, or more where the template rewrites earlier turns.

    ValueError for an answer that holds an ending token; UserError for a template that does not write answers behind
    what it opens them with, or does not end them with a token of `stop`.
    """
    tokens, trained = [], []
    for i in chat.trained:
        context, answer = split_turn(chat.messages[: i + 1], style)
        if context[: len(tokens)] != tokens:
            yield example(tokens, trained)
            tokens, trained = [], []
        trained = [*trained, *[False] * (len(context) - len(tokens)), *[True] * len(answer)]
        tokens = [*context, *answer]
    yield example(tokens, trained)


def encode_whole(chat: Chat, style: ChatStyle) -> Example:
    """Return a conversation as one example, trained on everything but its first token, which nothing predicts."""
    tokens = style.encode(style.render(chat.messages, opened=False, thinking=True))
    return example(tokens, [False, *[True] * (len(tokens) - 1)])


def encode_pair(prompt: str, response: str, *, encode: Callable, end: int, everything: bool) -> Example:
    """Return two texts as they are, without a template, and the token that ends a response."""
    before, after = encode(prompt), [*encode(response), end]
    trained = [everything and i > 0 for i in range(len(before))]
    return example([*before, *after], [*trained, *[bool(before)], *[True] * (len(after) - 1)])


def example(tokens: list[int], trained: list[bool]) -> Example:
    """Return tokens and mask as arrays, a seventh of the lists' memory."""
    return Example(np.array(tokens, np.int32), np.array(trained, bool))


def split_turn(messages: Sequence[Message], style: ChatStyle) -> tuple[list[int], list[int]]:
    """Return the tokens that are read before the last message, and those that say it, its ending token included.

    A message without a thought is opened with thinking off where the template can: Qwen3's empty thought is then read
    and not learned. Where a token of the whole text lies across the border (an answer that begins with a line break),
    both sides are encoded apart, as in generation, where what was read is fixed before the first token is drawn.
    """
    thinks = "</think>" in messages[-1]["content"]
    for thinking in (thinks, not thinks):
        text = style.render(messages, opened=False, thinking=thinking)
        prompt = style.render(messages[:-1], opened=True, thinking=thinking)
        if behind := text.startswith(prompt):
            break
    if not behind:
        raise UserError(
            "the chat template does not write an answer behind what it opens it with (R1's leaves out thoughts): give "
            "rows of prompt and response as the model reads and writes them, with the stage's template='none'"
        )
    context, whole = style.encode(prompt), style.encode(text)
    answer = whole[len(context) :] if whole[: len(context)] == context else style.encode(text[len(prompt) :])
    ends = [i for i, token in enumerate(answer) if token in style.stop]
    if not ends:
        raise UserError(
            f"the chat template ends an answer with {text[-20:]!r}, in which there is no token that ends generation: "
            "set eos_token in the model's tokenizer_config.json to the token that ends a turn"
        )
    if len(ends) > 1:
        raise ValueError("an answer holds a token that ends it")
    return context, answer[: ends[0] + 1]
