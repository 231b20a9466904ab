"""ScaleRL's law: what the reward of a training run tends to, from its curve over compute (2510.13786).

    R(C) = R₀ + (A − R₀) · x,   x = 1 / (1 + (C_mid / C)^B)

A is the ceiling, C_mid the compute at which half of the gain is there, B how sharply it comes. R₀, the reward before
training, is given. For each B and C_mid of a grid the best A has a closed form, and the least squares of all is the
fit. Rewards lie in [0, 1], and so does A.

    curve = fit(compute_n, reward_n, start=0.2)
    low, high = ceiling_interval(compute_n, reward_n, curve, start=0.2, level=0.95)

N points, M places of the grid.
"""

from typing import NamedTuple

import numpy as np

LEAST = 8  # points: three numbers are fitted, and their scatter is wanted too (ours)
EXPONENTS = np.geomspace(0.25, 8, 64)  # B of the grid
MIDDLES = 96  # C_mid of the grid, from a quarter of the least to four times the most compute
RESAMPLES = 200


class Curve(NamedTuple):
    """A fitted curve."""

    ceiling: float  # A
    exponent: float  # B
    middle: float  # C_mid, in units of compute

    def at(self, compute, *, start: float) -> np.ndarray:
        """Return the reward at these computes, all above 0."""
        return start + (self.ceiling - start) * rise(np.asarray(compute, float), self.exponent, self.middle)


def rise(compute_n: np.ndarray, exponent, middle) -> np.ndarray:
    """Return x, the share of the gain that is there."""
    return 1 / (1 + (middle / compute_n) ** exponent)


def fit(compute_n, reward_n, *, start: float) -> Curve:
    """Return the curve of least squares through points of compute and reward, from `start` on.

    ValueError for points that are no pairs of a compute above 0 and a finite reward.
    """
    compute_n, reward_n = np.asarray(compute_n, float), np.asarray(reward_n, float)
    pairs = compute_n.ndim == 1 and compute_n.shape == reward_n.shape and compute_n.size > 0
    if not pairs or not np.isfinite(reward_n).all() or not (np.isfinite(compute_n) & (compute_n > 0)).all():
        raise ValueError(f"points must be pairs of a compute above 0 and a reward, got {compute_n} and {reward_n}")
    exponent_m, middle_m = grid(compute_n)
    (m,), (ceiling,) = best(rise(compute_n, exponent_m[:, None], middle_m[:, None]), reward_n[None], start=start)
    return Curve(float(ceiling), float(exponent_m[m]), float(middle_m[m]))


def grid(compute_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return B [M] and C_mid [M] of every place of the grid."""
    middles = np.geomspace(compute_n.min() / 4, 4 * compute_n.max(), MIDDLES)
    exponent_m, middle_m = np.meshgrid(EXPONENTS, middles)
    return exponent_m.reshape(-1), middle_m.reshape(-1)


def best(rise_mn: np.ndarray, reward_rn: np.ndarray, *, start: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the place of least squares and its ceiling, each [R], of several rows of rewards.

    With y = R − R₀ and a = A − R₀, Σ (y − a x)² is least at a = Σ xy / Σ x², or at the end of [−R₀, 1 − R₀].
    """
    y_rn, xx_m = reward_rn - start, (rise_mn**2).sum(axis=1)
    xy_rm = y_rn @ rise_mn.T
    gain_rm = np.clip(xy_rm / xx_m, -start, 1 - start)
    place_r = np.argmin(gain_rm**2 * xx_m - 2 * gain_rm * xy_rm, axis=1)
    return place_r, start + gain_rm[np.arange(len(y_rn)), place_r]


def ceiling_interval(compute_n, reward_n, curve: Curve, *, start: float, level: float) -> tuple[float, float]:
    """Return the interval of the ceiling: percentiles over fits to the curve plus its own residuals, drawn again."""
    compute_n, reward_n = np.asarray(compute_n, float), np.asarray(reward_n, float)
    shape_n = curve.at(compute_n, start=start)
    rng = np.random.default_rng(0)
    drawn_rn = shape_n + rng.choice(reward_n - shape_n, size=(RESAMPLES, len(reward_n)))
    exponent_m, middle_m = grid(compute_n)
    ceiling_r = best(rise(compute_n, exponent_m[:, None], middle_m[:, None]), drawn_rn, start=start)[1]
    low, high = np.quantile(ceiling_r, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def fault(compute_n, curve: Curve, *, start: float) -> str:
    """Return why a fit says nothing of the ceiling, "" where it does.

    >>> fault([1.0] * 3, Curve(0.5, 1.0, 1.0), start=0.2)
    '3 points, 8 are needed'
    """
    if len(compute_n) < LEAST:
        return f"{len(compute_n)} points, {LEAST} are needed"
    if curve.ceiling <= start:
        return "the reward does not rise"
    if curve.middle > max(compute_n):
        return "half of the gain would come after the end of the run"
    return ""
