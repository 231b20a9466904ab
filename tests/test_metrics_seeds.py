"""Rules on made-up numbers: what counts as shown, and that too few seeds show nothing."""

import math

import pytest

from e3jax.metrics.seeds import contrast, judge, outcome, paired_interval, verdict

VALUES = {
    "length": {
        "grpo": {0: 70.0, 1: 73.0, 2: 71.0},
        "mask": {0: 60.0, 1: 61.0, 2: 62.0},  # pairs differ by 10, 12, 9
    }
}
LONGER = {"says": "longer", "measure": "length", "plus": ("grpo",), "minus": ("mask",), "kind": "above", "margin": 0.0}


def test_interval_by_hand():
    """10, 12, 9: mean 31/3, sd sqrt(7/3), t(.975, 2) = 4.3027."""
    mean, low, high = paired_interval([10.0, 12.0, 9.0], level=0.95)
    half = 4.30265 * math.sqrt(7 / 3) / math.sqrt(3)
    assert (mean, low, high) == pytest.approx((31 / 3, 31 / 3 - half, 31 / 3 + half), rel=1e-5)
    assert paired_interval([2.0, 2.0], level=0.95) == (2.0, 2.0, 2.0)


def test_one_seed_shows_nothing():
    row = judge(LONGER, VALUES, seeds=(0,), level=0.95)
    assert row["mean"] == 10.0 and math.isnan(row["low"]) and row["outcome"] == "open"
    row = judge(LONGER, {"length": {"grpo": {0: 1.0}}}, seeds=(0,), level=0.95)  # the other arm failed
    assert row["values"] == {} and math.isnan(row["mean"]) and row["outcome"] == "open"


def test_copies_of_one_run_show_nothing():
    """Three identical runs had an interval of no width, and every rule held.

    Equal differences of runs that differ are a result.
    """
    same = {"length": {"grpo": dict.fromkeys(range(3), 70.0), "mask": dict.fromkeys(range(3), 60.0)}}
    for kind in ("above", "within"):
        row = judge({**LONGER, "kind": kind, "margin": 20.0 * (kind == "within")}, same, seeds=(0, 1, 2), level=0.95)
        assert row["outcome"] == "open" and math.isnan(row["low"]) and math.isnan(row["high"]) and row["mean"] == 10.0
        assert row["why"].startswith("all 3 seeds have the very same numbers, as copies of one run have")
    varied = same | {"entropy": {"grpo": {0: 0.1, 1: 0.2, 2: 0.1}, "mask": dict.fromkeys(range(3), 0.1)}}
    assert judge(LONGER, varied, seeds=(0, 1, 2), level=0.95)["outcome"] == "yes"  # other runs, though as long
    shifted = {"length": {"grpo": {0: 70.0, 1: 71.0}, "mask": {0: 60.0, 1: 61.0}}}
    row = judge(LONGER, shifted, seeds=(0, 1), level=0.95)
    assert row["outcome"] == "yes" and "why" not in row


def test_pairing_is_by_seed():
    """Guards against an unpaired difference, which counts other arms' spread as noise, and a seed of one arm only."""
    row = judge(LONGER, VALUES, seeds=(0, 1, 2, 3), level=0.95)
    assert row["values"] == {0: 10.0, 1: 12.0, 2: 9.0} and row["outcome"] == "yes"
    back = {**LONGER, "plus": ("mask",), "minus": ("grpo",)}
    assert judge(back, VALUES, seeds=(0, 1, 2), level=0.95)["outcome"] == "no"
    assert judge({**LONGER, "margin": 9.0}, VALUES, seeds=(0, 1, 2), level=0.95)["outcome"] == "open"
    values = {"a": {0: 5.0}, "b": {0: 2.0}, "c": {0: 4.0}, "d": {0: 3.0}}  # a difference of differences
    assert contrast(values, plus=("a", "d"), minus=("b", "c"), seeds=(0,)) == {0: 2.0}
    assert contrast({"a": {0: math.nan}}, plus=("a",), minus=(), seeds=(0,)) == {}


@pytest.mark.parametrize(
    ("low", "high", "kind", "margin", "want"),
    [
        (-0.3, -0.1, "above", 0.0, "no"),
        (-0.3, -0.1, "above", 0.2, "open"),
        (-0.03, 0.01, "within", 0.02, "open"),
        (-0.3, -0.1, "within", 0.02, "no"),
        (math.nan, math.nan, "within", 0.02, "open"),
    ],
)
def test_outcomes(low, high, kind, margin, want):
    assert outcome(low, high, kind=kind, margin=margin) == want


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="below"):
        outcome(0, 1, kind="below", margin=0)
    with pytest.raises(ValueError, match="finite"):
        paired_interval([1.0, math.nan], level=0.95)
    with pytest.raises(ValueError, match="no statement"):
        verdict([])
