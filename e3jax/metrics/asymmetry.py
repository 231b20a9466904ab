"""e3 Def. 4.1: does a model gain from chaining an asymmetric skill, verification, after generation?

With p = generating a candidate, q = verifying it, and detect(f, τ) the number of calls in a response τ
(metrics/exploration.py), a policy chains the asymmetry under reward r if

    E[r | detect(q(p(.)), τ) > 0]  >  E[r | detect(p, τ) > 0]

The right side holds the responses of the left side too, so the difference shrinks to 0 as verification becomes a habit
and says nothing where every response verifies (calculator traces). `without`, the responses that generate and do not
verify, is the contrast that the definition does not name. All are observed, not caused: responses that go on verifying
have not been right so far. What cutting the chain does to *the same* response is eval/attempts.py's pass@k by chains.

    asymmetry = chained_asymmetry(reward_pg, generated_pg, verified_pg)
"""

from collections.abc import Sequence

import numpy as np

from e3jax.metrics.bootstrap import interval, ratio, ratio_difference
from e3jax.metrics.exploration import Span


def chained_asymmetry(reward_pg, generated_pg, verified_pg) -> dict:
    """Return both sides of Def. 4.1, their difference, the contrast `without`, each [mean, low, high]; and counts.

    `reward_pg` [P, G] in [0, 1]; calls of p and of q(p(.)) [P, G]. `by_chains` splits by calls of q(p(.)): 0, 1, 2-3,
    4-7, … Intervals are over problems; NaN where no response is of a kind.

    >>> chained_asymmetry([[1, 0, 1, 0]], [[1, 1, 2, 0]], [[0, 1, 1, 0]])["difference"][0]  # 1/2 - 2/3
    -0.16666666666666663
    """
    reward, generated, verified = (np.asarray(x, np.float64) for x in (reward_pg, generated_pg, verified_pg))
    kinds = {"chained": verified > 0, "any": generated > 0, "without": (generated > 0) & (verified == 0)}
    sums = {name: np.stack([(reward * kind).sum(1), kind.sum(1)], axis=1) for name, kind in kinds.items()}
    out: dict = {name: interval(x, ratio) for name, x in sums.items()}
    for name, other in (("difference", "any"), ("chained_minus_without", "without")):
        out[name] = interval(np.concatenate([sums["chained"], sums[other]], axis=1), ratio_difference)
    out["responses"] = {name: int(kind.sum()) for name, kind in kinds.items()}
    out["by_chains"], low = {}, 0
    while low <= verified.max():
        high = max(2 * low - 1, low)  # 0, 1, 2-3, 4-7, …
        kind = (verified >= low) & (verified <= high)
        name = f"{low}-{high}" if high > low else str(low)
        rate = interval(np.stack([(reward * kind).sum(1), kind.sum(1)], axis=1), ratio)
        out["by_chains"][name] = {"reward": rate, "responses": int(kind.sum())}
        low = high + 1
    return out


def verification_gap(spans_pg: Sequence[Sequence[Sequence[Span]]]) -> dict:
    """Return how often first attempts and verdicts are right: generator against verifier, each [mean, low, high].

    `generation`: first attempts that are right. `verification`: mean of the two rates below, so that saying "no"
    to everything gives 1/2. `yes_when_right`, `no_when_wrong`: verdicts of all attempts. Only attempts whose truth is
    known count; {} where there is none (free text).

    >>> spans = [Span(0, 1, 2, True, True), Span(2, 3, 4, False, False), Span(4, 5, 6, True, False)]
    >>> {k: v[0] for k, v in verification_gap([[spans]]).items()}
    {'generation': 1.0, 'verification': 0.75, 'yes_when_right': 1.0, 'no_when_wrong': 0.5}
    """
    rows = []
    for spans_g in spans_pg:
        first = [spans[0].truth for spans in spans_g if spans and spans[0].truth is not None]
        judged = [s for spans in spans_g for s in spans if s.truth is not None and s.verdict is not None]
        right, wrong = [s for s in judged if s.truth], [s for s in judged if not s.truth]
        yes, no = sum(s.verdict for s in right), sum(not s.verdict for s in wrong)
        rows.append([sum(first), len(first), yes, len(right), no, len(wrong)])
    values = np.array(rows, np.float64)
    if not values[:, 1].any():
        return {}

    def balanced(sums):
        return (ratio(sums[..., 2:4]) + ratio(sums[..., 4:6])) / 2

    return {
        "generation": interval(values[:, :2], ratio),
        "verification": interval(values, balanced),
        "yes_when_right": interval(values[:, 2:4], ratio),
        "no_when_wrong": interval(values[:, 4:6], ratio),
    }
