"""Budget forcing: make a model think longer with "Wait" (s1; e3 App. I, Fig. 9), or stop and answer (Qwen3).

A trace is what stands after the prompt, sampled and forced tokens together. To continue it, a response is sampled whose
prompt is prompt + trace, under the same sample number. Noise belongs to a position, however the tokens before it came
about, so none is used twice in a trace (words that replace an ending have as many tokens: "</think>" is one). Both
ways begin with a prefix of the one long response: a sample drawn with a shorter limit *is* that prefix
(metrics/extrapolation.py).

    trace = thought(response, close=close, budget=4096)
    trace = force(trace, sentence)
    trace = continued(trace, drawn, close=close, stop=stop)     # `drawn` was sampled from prompt + trace
"""

from collections.abc import Sequence
from typing import NamedTuple

from e3jax.rollout.responses import Response


class Trace(NamedTuple):
    """A response with tokens put in or taken away."""

    tokens: tuple[int, ...]
    forced: int  # how many of these tokens were put in
    dropped: int  # how many sampled tokens were taken away: endings that came too early
    done: bool  # the model ended it
    closed: bool  # its thinking has ended


def find(tokens: Sequence[int], part: Sequence[int]) -> int:
    """Return where `part` first begins in `tokens`, or -1.

    >>> find((5, 6, 7, 6, 7), (6, 7)), find((5, 6), (6, 7))
    (1, -1)
    """
    first, n = part[0], len(part)
    for i, token in enumerate(tokens):
        if token == first and tuple(tokens[i : i + n]) == tuple(part):
            return i
    return -1


def thought(response: Response, *, close: Sequence[int], budget: int) -> Trace:
    """Return the first `budget` tokens of a response, up to the end of its thinking, `close` ("</think>") included.

    This is what a fresh generation that stops at `close` or at its ending token would have given. A response that ended
    without `close` is `closed` too: nothing more is thought.
    """
    tokens = response.tokens[:budget]
    at = find(tokens, close)
    if at >= 0:
        return Trace(tokens[: at + len(close)], 0, 0, False, True)
    ended = response.done and len(response.tokens) <= budget
    return Trace(tokens, 0, 0, ended, ended)


def reopened(trace: Trace, *, close: Sequence[int], stop: Sequence[int]) -> Trace:
    """Return the trace without the "</think>" or ending token at its end, so that the thinking may go on."""
    tokens, close = trace.tokens, tuple(close)
    for ending in (close, *((s,) for s in stop)):
        if trace.closed and tokens[-len(ending) :] == ending:
            dropped = trace.dropped + len(ending)
            return trace._replace(tokens=tokens[: -len(ending)], dropped=dropped, done=False, closed=False)
    return trace


def force(trace: Trace, words: Sequence[int]) -> Trace:
    """Return the trace with `words` put at its end."""
    return trace._replace(tokens=(*trace.tokens, *words), forced=trace.forced + len(words))


def continued(trace: Trace, drawn: Response, *, close: Sequence[int], stop: Sequence[int]) -> Trace:
    """Return the trace with the model's continuation; `stop` are the tokens that end a response."""
    done = drawn.done and drawn.tokens[-1] in stop
    closed = done or trace.closed or find(drawn.tokens, close) >= 0
    return trace._replace(tokens=(*trace.tokens, *drawn.tokens), done=done, closed=closed)
