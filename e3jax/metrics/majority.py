"""maj@k: how often the most frequent answer of k samples is right, exactly, over all subsets of k of n samples.

The k samples are drawn without replacement. Those without an answer do not vote; no vote at all is wrong. Answers that
tie for the most votes are chosen from at random, so a tie of r answers with the right one among them counts 1/r.
(verl draws subsets with replacement, NeMo-Skills averages ties, lighteval takes the first.)

No subset is drawn or counted. Let every sample be in the subset with chance p = k/n, by itself: an answer of count c
then has Binomial(c, p) votes, and given that k samples are in it, the subset is one of all subsets of size k. So

    maj@k = Σ_m P(m right votes) · [x^(k−m)] ∫_0^1 Π_c (F_c(x) + u P_c(m) x^m) du / P(k samples)

where F_c(x) = Σ_{v<m} P_c(v) x^v for wrong answers of count c, and those without an answer have (1 − p + p x)^count.
The integral makes 1 / (1 + t) of u^t, for t answers that tie. It is a sum over Gauss-Legendre nodes, which is exact for
polynomials, and a coefficient is read off by a Fourier transform: all numbers are chances, so that none overflows
(1e-11 for n in the thousands; 4,096 samples and a dozen ks take .5 to 7 s a problem).

Usage: `majority_at_k(right=3, wrong=[2, 1], without=2, ks=[1, 2, 4])`
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from e3jax.metrics.bootstrap import chances

LEAST = 1e-18  # chances that are left out


def majority_at_k(*, right: int, wrong: Sequence[int], without: int, ks: Sequence[int]) -> np.ndarray:
    """Return maj@k of one problem for every k, float64 [len(ks)]; see the file's docstring for ties.

    `right`: samples with the right answer; `wrong`: samples of each wrong answer; `without`: samples without one.
    Raises ValueError unless 1 <= k <= n.

    >>> majority_at_k(right=2, wrong=[1, 1], without=0, ks=[1, 2, 4]).round(12)  # of two: 1/6 both right, 4/6 a tie
    array([0.5, 0.5, 1. ])
    """
    n = right + sum(wrong) + without
    if min(ks) < 1 or max(ks) > n:
        raise ValueError(f"ks={list(ks)} need 1 <= k <= {n} samples")
    return np.array([of_subsets(k, n, right, Counter(wrong), without) for k in ks])


def of_subsets(k: int, n: int, right: int, wrong: Counter, without: int) -> float:
    """Return maj@k for one k; `wrong` maps a count of samples to how many wrong answers have it."""
    p, size = k / n, n - right + 1  # the others can have 0 to n - right votes
    x = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size)  # where the polynomials are evaluated
    mine, votes = chances(right, p), {c: chances(c, p) for c in wrong}
    below = {c: np.zeros_like(x) for c in wrong}  # F_c
    free = (1 - p + p * x) ** without  # of all that can have any votes
    total, power = 0.0, np.ones_like(x)  # x^m
    for m in range(1, min(right, k) + 1):
        for c in [c for c in below if c >= m - 1]:
            below[c] += votes[c][m - 1] * power
            if c == m - 1:  # from here on it has fewer votes than m in any case
                free *= below.pop(c) ** wrong[c]
        power = power * x
        if mine[m] < LEAST or k - m >= size:
            continue
        ties = min(sum(wrong[c] for c in below), (k - m) // m)
        node_i, weight_i = np.polynomial.legendre.leggauss(ties // 2 + 1)
        others = sum(
            w / 2 * np.prod([(below[c] + (1 + u) / 2 * votes[c][m] * power) ** wrong[c] for c in below], axis=0)
            for u, w in zip(node_i, weight_i)
        )
        total += mine[m] * np.fft.irfft(free * others, size)[k - m]
    return float(np.clip(total / chances(n, p)[k], 0.0, 1.0))
