"""ScaleRL's fit finds the curve that made the points, its interval holds the ceiling, and it says when it cannot."""

import numpy as np
import pytest

from e3jax.metrics.sigmoid import Curve, ceiling_interval, fault, fit

COMPUTE = np.arange(1, 25) * 1e4


@pytest.mark.parametrize("true", [Curve(0.6, 1.5, 5e4), Curve(0.9, 1.0, 8e4), Curve(0.45, 3.0, 1e5)])
def test_it_finds_the_curve(true):
    """Of exact points, to what the grid resolves: a step of 6 % in the exponent and of 8 % in the compute."""
    reward = true.at(COMPUTE, start=0.2)
    half = true.at([true.middle], start=0.2)
    np.testing.assert_allclose(half, (0.2 + true.ceiling) / 2)
    got = fit(COMPUTE, reward, start=0.2)
    assert got.ceiling == pytest.approx(true.ceiling, abs=0.02) and got.middle == pytest.approx(true.middle, rel=0.15)
    np.testing.assert_allclose(got.at(COMPUTE, start=0.2), reward, atol=3e-3)
    assert not fault(COMPUTE, got, start=0.2)


def test_least_squares_against_scipy():
    """No curve that scipy finds from three starts is better than the grid's by more than its resolution."""
    from scipy.optimize import curve_fit

    rng = np.random.default_rng(3)
    reward = Curve(0.6, 1.5, 5e4).at(COMPUTE, start=0.2) + rng.normal(0, 0.03, len(COMPUTE))
    ours = np.square(fit(COMPUTE, reward, start=0.2).at(COMPUTE, start=0.2) - reward).sum()

    def law(compute, ceiling, exponent, middle):
        return Curve(ceiling, exponent, middle * 1e4).at(compute, start=0.2)

    bounds = ([0, 0.25, 0.25], [1, 8, 96])  # the grid's
    theirs = []
    for begin in ((0.5, 1, 5), (0.7, 2, 10), (0.6, 4, 3)):
        found, _ = curve_fit(law, COMPUTE, reward, p0=begin, bounds=bounds)
        theirs.append(np.square(law(COMPUTE, *found) - reward).sum())
    assert ours <= 1.01 * min(theirs)


def test_the_interval_covers_the_ceiling():
    """In 15 noisy runs whose curves bend well within the compute, nearly as often as its level says."""
    true, inside = Curve(0.6, 2.0, 4e4), 0
    for seed in range(15):
        reward = true.at(COMPUTE, start=0.2) + np.random.default_rng(seed).normal(0, 0.03, len(COMPUTE))
        low, high = ceiling_interval(COMPUTE, reward, fit(COMPUTE, reward, start=0.2), start=0.2, level=0.95)
        inside += low <= true.ceiling <= high
    assert inside >= 12  # residuals of a fit are a little smaller than the noise


def test_when_it_says_nothing():
    rising = fit(COMPUTE, 0.2 + 1e-6 * COMPUTE, start=0.2)
    assert fault(COMPUTE[:5], rising, start=0.2) == "5 points, 8 are needed"
    late = Curve(0.9, 1.0, 3e5)
    assert fault(COMPUTE, late, start=0.2) == "half of the gain would come after the end of the run"
    flat = fit(COMPUTE, np.full(24, 0.1), start=0.2)
    assert fault(COMPUTE, flat, start=0.2) == "the reward does not rise"
    for compute, reward in (([0.0, 1.0], [0.1, 0.2]), ([1.0], [np.nan]), ([1.0, 2.0], [0.1])):
        with pytest.raises(ValueError, match="points must be pairs"):
            fit(compute, reward, start=0.0)
