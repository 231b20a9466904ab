"""Eq. 2 against cases worked on paper."""

import math

import numpy as np
import pytest

from e3jax.curriculum.budget import choose_budget

#        J:  ratios J(2B)/J(B): 256: 2.0, 512: 1.5, 1024: 1.1, 2048: 1.0
CURVE = {256: 0.2, 512: 0.4, 1024: 0.6, 2048: 0.66, 4096: 0.66}
BUDGETS = [256, 512, 1024, 2048]


def column(table, name):
    return [row[name] for row in table]


@pytest.mark.parametrize(
    ("minimum", "kappa", "budget"),
    [
        (1, 1.2, 1024),  # the first ratio <= 1.2
        (1, 1.05, 2048),  # e3 App. H: a small kappa picks longer
        (1, 1.6, 512),
        (1, 2.5, 256),  # … and a large one shorter
        (1, 2.0, 256),  # equality satisfies: J(2B) = κ J(B), 0.4 = 2 · 0.2 in floats too
        (300, 2.5, 512),  # B >= B0
        (512, 2.5, 512),  # B = B0 is allowed
        (1025, 1.2, 2048),  # the minimum lies above the first budget that would do
    ],
)
def test_cases_on_paper(minimum, kappa, budget):
    """Guards argmin against argmax, <= against <, and the place of the minimum."""
    got, table = choose_budget(CURVE, budgets=BUDGETS, minimum=minimum, kappa=kappa)
    assert got == budget
    assert [row["budget"] for row in table if row["chosen"]] == [budget]
    assert all(row["satisfied"] for row in table if row["chosen"])


def test_table_is_what_the_rule_saw():
    """Guards the report: one row per budget, ascending, ratios as written above CURVE."""
    _, table = choose_budget(CURVE, budgets=BUDGETS[::-1], minimum=512, kappa=2.5)
    assert column(table, "budget") == BUDGETS
    assert column(table, "accuracy") == [0.2, 0.4, 0.6, 0.66]
    assert column(table, "accuracy_doubled") == [0.4, 0.6, 0.66, 0.66]
    np.testing.assert_allclose(column(table, "ratio"), [2.0, 1.5, 1.1, 1.0], rtol=1e-12)
    assert column(table, "satisfied") == [False, True, True, True]  # 256 is below the minimum
    assert not any(column(table, "unsolved"))


@pytest.mark.parametrize(
    ("accuracy", "minimum"),
    [
        ({1: 0.1, 2: 0.2, 4: 0.4}, 0),  # still doubling at the end
        ({1: 0.4, 2: 0.4, 4: 0.4}, 3),  # flat, but no budget reaches the minimum
    ],
)
def test_when_nothing_satisfies_the_largest_is_chosen_and_says_so(accuracy, minimum):
    """Guards a stage that trains at a budget the rule never approved without a trace of it."""
    budget, table = choose_budget(accuracy, budgets=[1, 2], minimum=minimum, kappa=1.2)
    assert budget == 2
    assert column(table, "satisfied") == [False, False]
    assert column(table, "chosen") == [False, True]


def test_zero_accuracy():
    """Guards 0/0: J(B) = 0 < J(2B) is not flat (ratio inf); 0 and 0 satisfies Eq. 2 trivially and
    is flagged, because nothing can be learnt from such data."""
    budget, table = choose_budget({1: 0.0, 2: 0.1, 4: 0.1}, budgets=[1, 2], minimum=0, kappa=1.2)
    assert budget == 2
    assert table[0]["ratio"] == math.inf
    assert column(table, "satisfied") == [False, True]
    assert column(table, "unsolved") == [False, False]
    budget, table = choose_budget({1: 0.0, 2: 0.0, 4: 0.1}, budgets=[1, 2], minimum=0, kappa=1.2)
    assert budget == 1
    assert math.isnan(table[0]["ratio"])
    assert column(table, "unsolved") == [True, False]
    assert column(table, "satisfied") == [True, False]


def test_monotone_in_kappa():
    """Guards the direction of the inequality: a laxer rule never picks a longer budget. Holds for
    any curve, rising or not; 200 random ones."""
    rng = np.random.default_rng(0)
    kappas = [1.01, 1.1, 1.2, 1.5, 2.0, 4.0, 100.0]
    seen = set()
    for _ in range(200):
        accuracy = dict(zip(CURVE, rng.random(5)))
        picked = [choose_budget(accuracy, budgets=BUDGETS, minimum=0, kappa=kappa)[0] for kappa in kappas]
        assert picked == sorted(picked, reverse=True)
        seen |= set(picked)
    assert seen == set(BUDGETS)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"kappa": 1.0}, "kappa must be > 1"),
        ({"budgets": []}, "no budgets"),
        ({"budgets": [2048, 4096]}, r"lacks \[8192\]"),
        ({"budgets": [300]}, r"lacks \[300, 600\]"),
    ],
)
def test_bad_arguments_are_named(overrides, message):
    """Guards κ = 1 (only a falling curve would pass) and a J(2B) that was never measured."""
    with pytest.raises(ValueError, match=message):
        choose_budget(CURVE, **{"budgets": BUDGETS, "minimum": 1, "kappa": 1.2, **overrides})


def test_accuracy_in_percent_raises():
    """Guards a table in percent or a NaN from an empty evaluation."""
    for wrong in (60.0, math.nan, -0.1):
        with pytest.raises(ValueError, match="1024 tokens"):
            choose_budget({**CURVE, 1024: wrong}, budgets=BUDGETS, minimum=1, kappa=1.2)
