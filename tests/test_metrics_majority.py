"""maj@k against enumeration of every subset."""

from collections import Counter
from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest

from e3jax.metrics.majority import majority_at_k


def enumerated(answers, k):
    """Mean over all subsets: "+" is right, None has no answer, a tie is broken at random."""
    total = 0.0
    subsets = list(combinations(answers, k))
    for subset in subsets:
        votes = Counter(a for a in subset if a is not None)
        best = [a for a, n in votes.items() if n == max(votes.values())]
        total += best.count("+") / len(best) if best else 0.0
    return total / len(subsets)


@pytest.mark.parametrize(
    "answers",
    ["+", "a", "-", "++ab", "++aab-", "+aabbcc", "+++aaab--", "+++++++", "--------", "++aabbc-", "aaab--", "+-"],
)
def test_equals_the_mean_over_all_subsets(answers):
    """Guards ties (shared, not won or lost), answers that are missing (they do not vote), and every k."""
    answers = [None if a == "-" else a for a in answers]
    count = Counter(answers)
    ks = range(1, len(answers) + 1)
    wrong = [n for a, n in count.items() if a not in ("+", None)]
    got = majority_at_k(right=count["+"], wrong=wrong, without=count[None], ks=ks)
    np.testing.assert_allclose(got, [enumerated(answers, k) for k in ks], rtol=1e-12, atol=1e-15)


def test_large_counts():
    """128 samples with as many answers as AIME has: 40 right of 128, the others scattered: maj@32 is nearly sure."""
    got = majority_at_k(right=40, wrong=[1] * 88, without=0, ks=[1, 32, 128])
    np.testing.assert_allclose(got[[0, 2]], [40 / 128, 1.0], rtol=1e-12)
    assert 0.999 < got[1] < 1
    drawn = np.random.default_rng(0).permuted(np.tile([1] * 30 + [2] * 25 + [0] * 73, (20_000, 1)), axis=1)[:, :16]
    first, second = (drawn == 1).sum(1), (drawn == 2).sum(1)
    want = ((first > second) + 0.5 * ((first == second) & (first > 0))).mean()
    np.testing.assert_allclose(majority_at_k(right=30, wrong=[25], without=73, ks=[16]), want, atol=0.015)


def test_thousands_of_samples_against_exact_counts():
    """C(4096, 1000) is no float: counting subsets ended in an OverflowError. Against one wrong answer the right one's
    votes are hypergeometric."""
    right, wrong, k = 2100, 1996, 1000
    ways = [
        comb(right, votes) * comb(wrong, k - votes) * (1 + (2 * votes > k) - (2 * votes < k)) for votes in range(k + 1)
    ]
    want = float(Fraction(sum(ways), 2 * comb(4096, k)))  # a win counts 1, a tie 1/2
    got = majority_at_k(right=right, wrong=[wrong], without=0, ks=[1, k, 4096])
    np.testing.assert_allclose(got, [right / 4096, want, 1.0], rtol=1e-10)
    scattered = majority_at_k(right=1000, wrong=[1] * 3096, without=0, ks=[2, 64])
    np.testing.assert_allclose(scattered[0], 1000 / 4096, rtol=1e-10)  # two samples are no majority
    assert 0.99 < scattered[1] < 1


def test_k_beyond_the_samples_raises():
    with pytest.raises(ValueError, match="3 samples"):
        majority_at_k(right=1, wrong=[1], without=1, ks=[4])
