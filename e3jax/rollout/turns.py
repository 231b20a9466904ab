"""Turns of an episode in tokens: where one ends, how a reply is put behind it, and which words are the model's.

A reply to a turn that ended with the model's ending token comes as the user's next turn, in the tokens that the chat
template writes around one. A reply to a turn that stopped at one of the environment's texts goes on within the turn.
What was sampled is never encoded again, and a reply is text: "<|im_end|>" in it becomes its characters' tokens.

    frame = chat_frame(partial(tokenizer.turns_text, opened=True, thinking=True), tokenizer)
    tokens = put_behind(frame, tokenizer.encode_plain(reply), ending="end")
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from e3jax.errors import UserError
from e3jax.tokenizer import pieces
from e3jax.types import Rollouts

ANSWER, REPLY = "answer0mark", "reply0mark"  # stand for the contents of messages
END, STOP, CUT = "end", "stop", "cut"  # a turn ended with the model's ending token, at a stop text, or at a limit
Spans = Sequence[Sequence[int]]  # [first, behind the last) of a response, in tokens or characters


class Frame(NamedTuple):
    """The tokens that a chat template writes around a user's turn; without a template there are none."""

    opening: Sequence[int] = ()  # before the words of a first turn
    ending: Sequence[int] = ()  # what ends a turn of the model
    before: Sequence[int] = ()  # between that and the words of the next
    after: Sequence[int] = ()  # behind these, up to where the model speaks


def chat_frame(render: Callable[[list[dict[str, str]]], str], tokenizer) -> Frame:
    """Return the frame of a chat template; `render` writes messages up to where the model speaks.

    UserError where the template does not end an answer with a token that ends generation.
    """
    question, answer, reply = (
        {"role": role, "content": words} for role, words in (("user", REPLY), ("assistant", ANSWER), ("user", REPLY))
    )
    opening, _, _ = render([question]).partition(REPLY)
    _, _, behind = render([question, answer, reply]).partition(ANSWER)
    between, _, after = behind.partition(REPLY)
    tokens = tokenizer.encode(between)
    ends = [i for i, token in enumerate(tokens) if token in tokenizer.stop]
    if not ends:
        raise UserError(
            f"the chat template writes {between[:40]!r} behind an answer, in which there is no token that ends "
            "generation: set eos_token in the model's tokenizer_config.json to the token that ends a turn"
        )
    first = ends[0] + 1
    return Frame(tokenizer.encode(opening), tokens[:first], tokens[first:], tokenizer.encode(after))


def put_behind(frame: Frame, reply: Sequence[int], *, ending: str) -> list[int]:
    """Return the tokens that follow a turn which ended so: the reply, and what the template writes around it."""
    if ending == STOP:
        return [*reply]
    return [*(frame.ending if ending == CUT else ()), *frame.before, *reply, *frame.after]


def first_turn(frame: Frame, words: Sequence[int]) -> list[int]:
    """Return the tokens of a conversation of one user's turn, up to where the model speaks."""
    return [*frame.opening, *words, *frame.after]


def turn_end(
    tokenizer, tokens: Sequence[int], stops: Sequence[str], sequences: Sequence[tuple[int, ...]]
) -> tuple[int, str]:
    """Return how many of the tokens that were drawn are the turn, and what ended it: END, STOP or CUT.

    A stop text ends it with the first token that completes it, however the text is cut into tokens; what was drawn
    behind that was drawn in vain, and changes no probability. `sequences` are the stop texts' own tokens.
    """
    text = tokenizer.decode(tokens) if stops else ""
    ends = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    if ends:
        shown = bisect_left(range(len(tokens)), True, key=lambda n: len(tokenizer.decode(tokens[:n])) >= min(ends))
        return shown, STOP
    if any(tuple(tokens[-len(sequence) :]) == sequence for sequence in sequences):  # of special tokens, not in the text
        return len(tokens), STOP
    return len(tokens), END if tokens[-1] in tokenizer.stop else CUT


def forced_spans(r: Rollouts, b: int) -> list[list[int]]:
    """Return which tokens of response b were put there, not sampled: [first, behind the last) from its beginning.

    >>> sampled = np.array([[False, True, False, False, True]])
    >>> forced_spans(Rollouts(None, np.array([1]), np.array([5]), None, None, sampled, None), 0)
    [[1, 3]]
    """
    forced = ~r.sampled[b, r.prompt_len[b] : r.length[b]]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], forced.astype(np.int8), [0]])))
    return edges.reshape(-1, 2).tolist()


def parts(length: int, forced: Spans) -> Iterator[tuple[int, int, bool]]:
    """Yield the parts of `length` tokens in their order: first, behind the last, whether they were put there."""
    end = 0
    for first, last in forced:
        for part in ((end, min(first, length), False), (min(first, length), min(last, length), True)):
            if part[0] < part[1]:
                yield part
        end = last
    if end < length:
        yield end, length, False


def model_text(decode: Callable, tokens: Sequence[int], forced: Spans) -> str:
    """Return what the model wrote, for graders: its turns in lines of their own, without what was put there."""
    if not forced:
        return decode(tokens)
    return "\n".join(decode(tokens[first:last]) for first, last, put in parts(len(tokens), forced) if not put)


class Place(NamedTuple):
    """A part of a response: its tokens and its characters."""

    first: int  # token
    last: int  # behind the last
    put: bool  # by the environment, not sampled
    start: int  # character
    end: int  # behind the last


def places(decode: Callable, tokens: Sequence[int], forced: Spans, text: str) -> Iterator[Place]:
    """Yield the parts of a response in their order, and where they are in its `text`."""
    end = 0
    for first, last, put in parts(len(tokens), forced):
        part = decode(tokens[first:last])
        start = max(text.find(part, end), end)
        end = min(start + len(part), len(text))
        yield Place(first, last, put, start, end)


def shown(decode: Callable, tokens: Sequence[int], forced: Spans) -> tuple[str, list[list[int]]]:
    """Return all of a response's text, and the characters of it that were put there.

    >>> words = dict(enumerate("try 3*4 = 12 so 12".split()))
    >>> shown(lambda tokens: " ".join(words[t] for t in tokens), [0, 1, 2, 3, 4, 5], [[2, 4]])
    ('try 3*4 = 12 so 12', [[8, 12]])
    """
    text = decode(tokens)
    found = places(decode, tokens, forced, text) if forced else ()
    return text, [[place.start, place.end] for place in found if place.put and place.start < place.end]


def shown_pieces(decode: Callable, tokens: Sequence[int], forced: Spans) -> list[str]:
    """Return what each token adds to the text that `shown` returns."""
    if not forced:
        return pieces(decode, tokens)
    out, text, end = [], decode(tokens), 0
    for place in places(decode, tokens, forced, text):
        adds = pieces(decode, tokens[place.first : place.last])
        out += [text[end : place.start] + adds[0], *adds[1:]]  # a word tokenizer puts a blank between two parts
        end = place.end
    return out
