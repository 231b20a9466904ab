"""Intervals of anything that is a function of sums over problems: shares, means per token, differences of them.

A problem's responses depend on each other (and an attempt's tokens more so), so problems are what is resampled. Only
sums are needed of each, for example [numerator, denominator]: a mean per token is then Σ numerator / Σ denominator of
the problems that were drawn, so that each brings its own weight.

    rate = interval(np.stack([right_p, samples_p], 1), ratio)       # [estimate, low, high]
"""

from collections.abc import Callable

import numpy as np
from scipy.special import gammaln, xlogy  # jax brings scipy

RESAMPLES = 1000


def ratio(sums: np.ndarray) -> np.ndarray:
    """Return sums[..., 0] / sums[..., 1]; NaN where the denominator is 0."""
    part, whole = sums[..., 0], sums[..., 1]
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole != 0)


def ratio_difference(sums: np.ndarray) -> np.ndarray:
    """Return the ratio of the first two sums minus that of the next two: paired where both are of the same problems."""
    return ratio(sums[..., :2]) - ratio(sums[..., 2:])


def resampled(values_pc: np.ndarray) -> np.ndarray:
    """Return the sums [R, C] of R = RESAMPLES draws of P of the problems [P, C], with replacement and a fixed seed."""
    problems = len(values_pc)
    return np.random.default_rng(0).multinomial(problems, [1 / problems] * problems, size=RESAMPLES) @ values_pc


def interval(values_pc: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, level: float = 0.95):
    """Return [estimate, low, high] of statistic(Σ_p values [C]), by a percentile bootstrap over P problems, fixed seed.

    `statistic` maps sums [..., C] to [...]. Draws without a value (an empty denominator) are left out of the quantiles;
    all three are NaN where nothing has one. Raises ValueError unless `values_pc` is [P, C] with P >= 1.

    >>> interval(np.array([[1.0, 2.0], [1.0, 2.0]]), ratio)
    [0.5, 0.5, 0.5]
    """
    values = np.asarray(values_pc, np.float64)
    if values.ndim != 2 or not len(values):
        raise ValueError(f"values must be [P, C], at least one problem; got shape {values.shape}")
    draws = statistic(resampled(values))
    draws = draws[np.isfinite(draws)]
    estimate = float(statistic(values.sum(0)))
    if not draws.size or not np.isfinite(estimate):
        return [float("nan")] * 3
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return [estimate, float(low), float(high)]


def chances(n: int, p: float) -> np.ndarray:
    """Return the probabilities [n + 1] of Binomial(n, p).

    >>> chances(2, 0.5).round(12)
    array([0.25, 0.5 , 0.25])
    """
    v = np.arange(n + 1)
    ways = gammaln(n + 1) - gammaln(v + 1) - gammaln(n - v + 1)
    return np.exp(ways + xlogy(v, p) + xlogy(n - v, 1 - p))
