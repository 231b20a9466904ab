"""Take responses apart into attempts, in tokens: for chains that are cut short, and for e3's App. G.1 probes.

Chains (e3 Figs 3, 12): a response's thinking is cut after `a` attempts, the words that end it and begin the answer are
put there, and the model answers several times. A response with fewer attempts keeps all of its thinking.

Probes (e3 App. G.1, Fig. 15), of attempt a_k after the attempts before it, a_<k, in nats per attempt:

    dependence         log p(a_k | a_<k) − log p(a_k | a_<k−1)        0 when attempts are independent
    sharpening         log p(a_k | a_<k) − log p(a_k−1 | a_<k−1)      more certain than at the attempt before
    reattempt          log p(a_k−1 | a_<k)                            the same attempt once more
    reattempt_change   log p(a_k−1 | a_<k) − log p(a_k−1 | a_<k−1)    ours: `reattempt` against the first time

An attempt's log p is that of its choice (metrics/exploration.py; in a calculator trace the proposal, without the check
that follows from it); attempts in a context are whole. The text "a_<k−1, then a_k" was never sampled: it leaves out
what lies between the beginnings of a_k−1 and a_k.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from e3jax.eval.forcing import Trace, force, reopened, thought
from e3jax.metrics.bootstrap import interval, ratio
from e3jax.metrics.exploration import Span, attempt_spans
from e3jax.rollout.responses import Response
from e3jax.tasks.problem import Problem
from e3jax.tokenizer import lengths

PROBES = ("dependence", "sharpening", "reattempt", "reattempt_change")


def token_spans(problem: Problem, tokens: Sequence[int], decode: Callable, *, close: str) -> list[Span]:
    """Return `attempt_spans` in tokens; a token that holds an attempt's end and more belongs to that attempt."""
    chars, spans, last = lengths(decode, tokens), [], 0
    for s in attempt_spans(problem, decode(tokens), close=close):
        start = max(bisect_right(chars, s.start) - 1, last)
        last = max(bisect_left(chars, s.end), start + 1)
        spans.append(s._replace(start=start, chosen=min(max(bisect_left(chars, s.chosen), start + 1), last), end=last))
    return spans


def chain(
    response: Response,
    spans: Sequence[Span],
    attempts: int,
    *,
    close: Sequence[int],
    stop: Sequence[int],
    closing: Sequence[int],
) -> Trace:
    """Return the thinking's first `attempts` attempts (all of it where there are fewer), with `closing` forced behind.

    `close` ends the thinking, `stop` are the tokens that end a response; the tokens taken away count as `dropped`.
    """
    if attempts <= len(spans):
        kept = response.tokens[: spans[attempts - 1].end if attempts else 0]
    else:
        whole = thought(response, close=close, budget=len(response.tokens))
        kept = reopened(whole, close=close, stop=stop).tokens
    return force(Trace(tuple(kept), 0, len(response.tokens) - len(kept), False, False), closing)


class Pairs(NamedTuple):
    """What App. G.1 scores of one response: (context, continuation) pairs in tokens, for attempts 1 … K."""

    drawn: list[tuple]  # a_k after a_<k, as it was sampled; K of them
    skipped: list[tuple]  # a_k after a_<k−1; from the second attempt on
    again: list[tuple]  # a_k−1 after a_<k; from the second attempt on


def pairs_of(prompt: Sequence[int], tokens: Sequence[int], spans: Sequence[Span]) -> Pairs:
    """Return the pairs of a response; `prompt` has at least one token, because no context may be empty.

    >>> one, two = Span(0, 1, 2, None, None), Span(2, 3, 4, None, None)
    >>> pairs_of([9], [1, 2, 3, 4], [one, two])
    Pairs(drawn=[([9], [1]), ([9, 1, 2], [3])], skipped=[([9], [3])], again=[([9, 1, 2], [1])])
    """
    before = [[*prompt, *tokens[: s.start]] for s in spans]
    choice = [list(tokens[s.start : s.chosen]) for s in spans]
    drawn = list(zip(before, choice))
    return Pairs(drawn, list(zip(before[:-1], choice[1:])), list(zip(before[1:], choice[:-1])))


def probes(drawn: np.ndarray, skipped: np.ndarray, again: np.ndarray) -> dict[str, np.ndarray]:
    """Return App. G.1 of one response, for attempts 2 … K, from the log-probs of its `Pairs`: [K], [K − 1], [K − 1].

    >>> {k: v.tolist() for k, v in probes(np.array([-3.0, -2.0]), np.array([-4.0]), np.array([-5.0])).items()}
    {'dependence': [2.0], 'sharpening': [1.0], 'reattempt': [-5.0], 'reattempt_change': [-2.0]}
    """
    values = drawn[1:] - skipped, drawn[1:] - drawn[:-1], again, again - drawn[:-1]
    return dict(zip(PROBES, values))


def conditional(of_response: Sequence[dict[str, np.ndarray]], owner: Sequence[int], problems: int) -> dict:
    """Return [mean, low, high] of `probes` of responses, over all attempts and by attempt.

    `owner` is each response's problem; intervals are over problems. Means are over attempts: those of a late attempt
    are over long responses only.
    """
    longest = max((len(r["dependence"]) for r in of_response), default=0)
    sums = {name: np.zeros((longest, problems, 2)) for name in PROBES}  # of attempt k + 2 and problem: total, count
    for p, response in zip(owner, of_response):
        for name, values in response.items():
            sums[name][: len(values), p] += np.stack([values, np.ones(len(values))], axis=1)
    out = {name: interval(x.sum(0), ratio) for name, x in sums.items()}
    by = {str(k + 2): {name: interval(x[k], ratio) for name, x in sums.items()} for k in range(longest)}
    counts = {k: int(sums["dependence"][int(k) - 2, :, 1].sum()) for k in by}
    by = {k: values | {"attempts": counts[k]} for k, values in by.items()}
    return out | {"attempts": sum(counts.values()), "by_attempt": by}
