"""maj@k: how often the most frequent answer of k samples is right, exactly, over all subsets of k of n samples.

The k samples are drawn without replacement. Those without an answer do not vote; no vote at all is wrong. Answers that
tie for the most votes are chosen from at random, so a tie of r answers with the right one among them counts 1/r.
Expectation by counting subsets, not by drawing: with n_0 right samples and wrong answers of counts n_1, n_2, …,

    maj@k = Σ_m C(n_0, m) Σ_t W_m(k − m, t) / (1 + t) / C(n, k)

where W_m(s, t) counts the choices of s wrong or answerless samples in which t wrong answers have exactly m votes and
no one has more. (verl draws subsets with replacement, NeMo-Skills averages ties, lighteval takes the first: FACTS 5.)

Usage: `majority_at_k(right=3, wrong=[2, 1], without=2, ks=[1, 2, 4])`
"""

from collections.abc import Sequence
from math import comb

import numpy as np


def majority_at_k(*, right: int, wrong: Sequence[int], without: int, ks: Sequence[int]) -> np.ndarray:
    """maj@k of one problem for every k, float64 [len(ks)]; see the file's docstring for ties.

    `right`: samples with the right answer; `wrong`: samples of each wrong answer; `without`: samples without one.
    Raises ValueError unless 1 <= k <= n.

    >>> majority_at_k(right=2, wrong=[1, 1], without=0, ks=[1, 2, 4])  # of two samples: 1/6 both right, 4/6 a tie
    array([0.5, 0.5, 1. ])
    """
    n, most = right + sum(wrong) + without, max(ks)
    if min(ks) < 1 or most > n:
        raise ValueError(f"ks={list(ks)} need 1 <= k <= {n} samples")
    out = np.zeros(len(ks))
    for m in range(1, min(right, most) + 1):
        ways = choices_below(m, wrong, without, most - m)  # [s, t]
        share = (ways / (1 + np.arange(ways.shape[1]))).sum(1)
        for i, k in enumerate(ks):
            if k >= m:
                out[i] += comb(right, m) * share[k - m] / comb(n, k)
    return out


def choices_below(m: int, wrong: Sequence[int], without: int, most: int) -> np.ndarray:
    """W_m[s, t] for s = 0 … most: a polynomial in s, a factor for each answer, that keeps count of ties at m."""
    ways = np.zeros((most + 1, most // m + 1))
    ways[: min(without, most) + 1, 0] = [comb(without, s) for s in range(min(without, most) + 1)]
    for count in wrong:
        new = np.zeros_like(ways)
        for votes in range(min(count, m - 1, most) + 1):
            new[votes:] += comb(count, votes) * ways[: most + 1 - votes]
        if m <= min(count, most):
            new[m:, 1:] += comb(count, m) * ways[: most + 1 - m, :-1]
        ways = new
    return ways
