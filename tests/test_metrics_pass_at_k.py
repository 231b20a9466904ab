"""pass@k against enumeration of every subset; the bootstrap against its closed form."""

from itertools import combinations, product

import numpy as np
import pytest

from e3jax.metrics.pass_at_k import bootstrap_interval, bootstrap_pass_at_k, pass_at_k, two_level_interval


def test_equals_the_share_of_subsets_that_hold_a_correct_sample():
    """Guards the product form at every edge (c = 0, c = n, n − c < k, k = n), for all n <= 8. The
    plug-in 1 − (1 − c/n)^k, a common mistake, differs from n = 2 on."""
    for n in range(1, 9):
        for c in range(n + 1):
            correct = [i < c for i in range(n)]
            for k in range(1, n + 1):
                subsets = list(combinations(correct, k))
                want = sum(any(subset) for subset in subsets) / len(subsets)
                np.testing.assert_allclose(pass_at_k(n, c, k), want, rtol=1e-12, atol=1e-15)


def test_arrays_broadcast_and_pass_at_1_is_the_mean():
    """Guards the vectorisation: problems with different numbers of samples, in one call."""
    n, c = np.array([4, 8, 2]), np.array([1, 8, 0])
    np.testing.assert_allclose(pass_at_k(n, c, 1), [1 / 4, 1, 0], rtol=1e-15)
    np.testing.assert_allclose(pass_at_k(n, c, 2), [1 / 2, 1, 0], rtol=1e-15)
    np.testing.assert_allclose(pass_at_k(4, c[None, [0, 2]], 2), [[1 / 2, 0]], rtol=1e-15)


def test_large_counts_do_not_overflow():
    """Guards against binomials in floats: C(2000, 1000) is about 2e600, past float64. Here one
    sample of 2000 is correct, so half of the subsets of half the size hold it."""
    np.testing.assert_allclose(pass_at_k(2000, 1, 1000), 0.5, rtol=1e-12)


@pytest.mark.parametrize(
    ("n", "c", "k", "message"), [([8, 4], [1, 1], 5, "smallest is 4"), (4, 1, 0, "k=0"), (4, 5, 1, "num_correct")]
)
def test_impossible_counts_raise(n, c, k, message):
    """Guards k > n, which the formula would answer with a confident 1."""
    with pytest.raises(ValueError, match=message):
        pass_at_k(n, c, k)


def test_bootstrap_matches_the_binomial():
    """Guards the quantiles: 40 problems, 20 solved. A resampled mean is Binomial(40, 1/2)/40, whose
    2.5 % and 97.5 % quantiles are 14/40 and 26/40 (P[X <= 13] = 0.0192, P[X <= 14] = 0.0403)."""
    values = np.repeat([0.0, 1.0], 20)
    low, high = bootstrap_interval(values, level=0.95, resamples=20000, rng=np.random.default_rng(0))
    np.testing.assert_allclose([low, high], [14 / 40, 26 / 40], rtol=1e-12)
    narrow = bootstrap_interval(values, level=0.5, resamples=2000, rng=np.random.default_rng(0))
    assert low < narrow[0] < 0.5 < narrow[1] < high


def test_bootstrap_of_equal_problems_has_no_width_and_bad_input_raises():
    """Guards resampling of samples instead of problems: equal problems leave nothing to chance."""
    rng = np.random.default_rng(0)
    low, high = bootstrap_interval(np.full(5, 0.25), level=0.9, resamples=100, rng=rng)
    assert low == high == 0.25
    for values in (np.array([]), np.array([0.1, np.nan]), np.zeros((2, 2))):
        with pytest.raises(ValueError, match="finite"):
            bootstrap_interval(values, level=0.9, resamples=10, rng=rng)
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval(np.zeros(3), level=95, resamples=10, rng=rng)


@pytest.mark.parametrize(("problems", "n", "k"), [(30, 16, 1), (30, 16, 8), (40, 64, 32), (100, 4, 1)])
def test_two_level_interval_covers(problems, n, k):
    """How often a 95 % interval holds the true pass@k, over 400 simulated benchmarks whose problems are mostly hard or
    easy, as AIME's. Resampling samples alone holds it in 28 to 49 % of them."""
    rng = np.random.default_rng(0)
    truth = (1 - (1 - rng.beta(0.3, 0.5, 200_000)) ** k).mean()
    held = 0
    for _ in range(400):
        c = rng.binomial(n, rng.beta(0.3, 0.5, problems))
        low, high = two_level_interval(n, c, k, level=0.95, resamples=400, rng=rng)
        held += low <= truth <= high
    assert 0.91 <= held / 400 <= 0.985, held / 400


def test_two_level_interval_of_one_problem_is_that_of_its_samples():
    """One problem, half of 100 samples right: mean of Binomial(100, 1/2) / 100 has quantiles .40 and .60. Resampling
    problems alone would give no width."""
    low, high = two_level_interval(100, [50], 1, level=0.95, resamples=20_000, rng=np.random.default_rng(0))
    np.testing.assert_allclose([low, high], [0.40, 0.60], atol=0.011)
    with pytest.raises(ValueError, match=r"\[P\]"):
        two_level_interval(4, [], 1, level=0.95, resamples=10, rng=np.random.default_rng(0))


def test_the_bootstrapped_estimate_is_that_of_draws_with_replacement():
    """e3's Table 1 draws with replacement; all tuples of k samples, for every n <= 5. Equal for k = 1, lower above."""
    for n in range(1, 6):
        for c in range(n + 1):
            correct = [i < c for i in range(n)]
            for k in range(1, n + 1):
                want = np.mean([any(drawn) for drawn in product(correct, repeat=k)])
                got = bootstrap_pass_at_k(n, c, k)
                np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)
                assert got <= pass_at_k(n, c, k) + 1e-15
    with pytest.raises(ValueError, match="smallest is 4"):
        bootstrap_pass_at_k([8, 4], 1, 5)


def test_interval_of_the_bootstrapped_estimate():
    """It lies around its own estimate, and for k = 1 it is the unbiased one's."""
    c, how = np.array([0, 3, 16, 1, 9, 16]), dict(level=0.95, resamples=2000)
    one = [
        two_level_interval(16, c, 1, rng=np.random.default_rng(0), estimator=e, **how)
        for e in (pass_at_k, bootstrap_pass_at_k)
    ]
    np.testing.assert_allclose(*one, rtol=1e-9)
    low, high = two_level_interval(16, c, 8, rng=np.random.default_rng(0), estimator=bootstrap_pass_at_k, **how)
    assert low < bootstrap_pass_at_k(16, c, 8).mean() < high
