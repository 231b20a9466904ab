"""pass@k without bias, the bootstrapped one of e3's tables, and an interval for a benchmark's mean.

The chance that k of a problem's n samples, drawn without replacement, hold a correct one, given
that c of the n are correct (Chen et al. 2021, Eq. 1):

    pass@k = 1 − C(n − c, k) / C(n, k) = 1 − Π_{j<k} (n − c − j) / (n − j)

Averaged over problems it estimates 1 − (1 − p)^k without bias. e3's Table 1 and verl's best@k resample with
replacement, which is biased low (`bootstrap_pass_at_k`): do not put the two in one table. The error is that of the
problems (30 in AIME) before that of the samples, so intervals resample problems; `two_level_interval` resamples samples
too.

Usage: `pass_at_k(num_samples, num_correct, 8).mean()`.
"""

import numpy as np

from e3jax.metrics.bootstrap import chances


def pass_at_k(num_samples, num_correct, k):
    """Return 1 − C(n − c, k) / C(n, k), elementwise over broadcast integer arrays; float64 of that shape.

    Raises ValueError unless 1 <= k <= n and 0 <= c <= n: with fewer than k samples there is no
    unbiased estimate.

    >>> pass_at_k(4, [0, 1, 4], 2)
    array([0. , 0.5, 1. ])
    """
    n, c = _counts(num_samples, num_correct, k)
    drawn = np.arange(k)
    # Draw j is wrong again with this chance; n − c < k meets a factor of 0, and pass@k is 1.
    wrong = ((n - c)[..., None] - drawn) / (n[..., None] - drawn)
    return 1.0 - wrong.prod(axis=-1)


def bootstrap_pass_at_k(num_samples, num_correct, k):
    """Return 1 − (1 − c/n)^k: the chance that k samples drawn with replacement hold a correct one.

    Arguments are as in `pass_at_k`. With more resamples e3's "bootstrapped estimate" (128 rollouts, §6.2) and verl's
    1,000 resamples tend to this. It is below the unbiased estimate for k > 1, most where c is small: at c = 1, n = 128,
    k = 32 it is .222, not .25.

    >>> bootstrap_pass_at_k(128, [0, 1, 128], 32).round(3)
    array([0.   , 0.222, 1.   ])
    """
    n, c = _counts(num_samples, num_correct, k)
    return 1.0 - (1.0 - c / n) ** k


def _counts(num_samples, num_correct, k):
    n, c = np.broadcast_arrays(np.asarray(num_samples), np.asarray(num_correct))
    if k < 1 or (k > n).any():
        raise ValueError(f"k={k} needs 1 <= k <= num_samples, whose smallest is {n.min()}")
    if ((c < 0) | (c > n)).any():
        raise ValueError(f"num_correct must be in 0..num_samples; got {c} of {n}")
    return n, c


def bootstrap_interval(values_p, *, level, resamples, rng):
    """Return (low, high) of the mean of per-problem values [P], by resampling problems with replacement.

    Percentile cluster bootstrap: a problem keeps all its samples together. `level` as 0.95, `rng` a
    numpy Generator.
    """
    values = np.asarray(values_p, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"values must be finite, one per problem [P]; got shape {values.shape}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    means = values[rng.integers(values.size, size=(resamples, values.size))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def two_level_interval(num_samples, num_correct_p, k, *, level, resamples, rng, estimator=pass_at_k):
    """Return (low, high) of mean pass@k, by resampling problems, and in each its samples, with replacement.

    A resampled problem has c* ~ Binomial(n, c / n) correct samples, hence pass@k on average 1 − (1 − c/n)^k: less than
    the estimate, which draws without replacement. So the quantiles are taken of the deviations from that mean and
    put around the estimate (kept in [0, 1]). Problems already vary with their samples' noise, so the second level makes
    the interval a little wide, by about 1/n of the samples' variance. `num_samples` is one number, the other [P].
    `estimator` may be `bootstrap_pass_at_k`, whose mean over c* is a sum over its values.

    >>> two_level_interval(8, [0, 8, 8, 0], 1, level=0.95, resamples=1000, rng=np.random.default_rng(0))
    (0.0, 1.0)
    """
    c = np.asarray(num_correct_p)
    if c.ndim != 1 or c.size == 0:
        raise ValueError(f"num_correct must be [P], at least one problem; got shape {c.shape}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    of_count = estimator(num_samples, np.arange(num_samples + 1), k)
    estimate, centre = estimator(num_samples, c, k).mean(), (1 - (1 - c / num_samples) ** k).mean()
    if estimator is not pass_at_k:
        centre = np.mean([chances(num_samples, x / num_samples) @ of_count for x in c])
    drawn = c[rng.integers(c.size, size=(resamples, c.size))]
    means = of_count[rng.binomial(num_samples, drawn / num_samples)].mean(axis=1)
    low, high = estimate + np.quantile(means - centre, [(1 - level) / 2, (1 + level) / 2])
    return float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1))
