"""Eq. 2 against cases worked on paper."""

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.budget_rule import CURVES, measured, share_right
from configs import common, smoke
from e3jax.sharding import make_mesh
from e3jax.train import curriculum
from e3jax.train.eq2 import choose_budget, could_have_been, ratio_interval, remarks
from e3jax.train.run import Run
from e3jax.train.settings import resolve

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


def resamples(curve, problems, samples):
    """Return J at 1, 2, 4, 8 from one measurement, and its resamples over problems."""
    rng = np.random.default_rng(3)
    found = measured(curve, problems=problems, samples=samples, draws=1001, rng=rng)
    return dict(zip((1, 2, 4, 8), found[0])), dict(zip((1, 2, 4, 8), found[1:].T))


def test_interval_of_the_ratio():
    """Paired, by hand: ratios 1, 1.5 and 2 are the resamples; an infinite one stays, 0/0 is left out."""
    assert ratio_interval([0.2, 0.2, 0.2], [0.2, 0.3, 0.4]) == [1.0, 2.0]
    assert ratio_interval([0.2, 0.0, 0.0], [0.2, 0.1, 0.0]) == [1.0, math.inf]
    assert all(map(math.isnan, ratio_interval([0.0, 0.0], [0.0, 0.0])))
    accuracy, draws = resamples((0.15, 0.17, 0.18, 0.185), 256, 4)
    _, table = choose_budget(accuracy, budgets=[1, 2, 4], minimum=0, kappa=1.2, draws=draws)
    for row in table:
        assert row["interval"][0] <= row["ratio"] <= row["interval"][1]
    assert "interval" not in choose_budget(accuracy, budgets=[1, 2, 4], minimum=0, kappa=1.2)[1][0]


@pytest.mark.parametrize(
    ("accuracy", "minimum", "words"),
    [
        ({1: 0.1, 2: 0.2, 4: 0.4}, 0, ["No budget satisfies Eq. 2 (J(2B) <= 1.2 J(B)), so the largest, 2, was taken"]),
        ({1: 0.4, 2: 0.4, 4: 0.4}, 3, ["Every budget is below B0 = 3 tokens"]),
        ({1: 0.0, 2: 0.0, 4: 0.0}, 0, ["No problem was solved at any budget up to 4 tokens (0/0)"]),
        ({1: 0.0, 2: 0.0, 4: 0.1}, 0, ["No problem was solved at 1 or 2 tokens, which satisfies Eq. 2 with 0/0"]),
        ({1: 0.4, 2: 0.4, 4: 0.4}, 0, []),
        ({1: 0.2, 2: 0.4, 4: 0.4}, 0, []),
    ],
)
def test_remarks(accuracy, minimum, words):
    """A budget that the rule never approved, and 0/0, were silently taken."""
    _, table = choose_budget(accuracy, budgets=[1, 2], minimum=minimum, kappa=1.2)
    said = remarks(table, minimum=minimum, kappa=1.2)
    assert len(said) == len(words) and all(text.startswith(start) for text, start in zip(said, words)), said


def test_a_choice_within_the_noise_says_what_else_it_could_have_been():
    """κ lies in a ratio's interval: the chosen budget's adds the next longer budget, a refused one's that budget."""
    noise = np.array([-0.03, 0.0, 0.03])
    for accuracy, others, of in (
        ({1: 0.30, 2: 0.35, 4: 0.36}, [2], [1]),  # 1 is chosen, its ratio 1.17 [1.07, 1.27]
        ({1: 0.30, 2: 0.37, 4: 0.38}, [1], [1]),  # 1 is refused at 1.23 [1.13, 1.33]
        ({1: 0.30, 2: 0.37, 4: 0.44}, [1, 4], [1, 2]),  # … and 2 is chosen at 1.19 [1.11, 1.27]
    ):
        draws = {tokens: j + noise * (tokens // 2 in of) for tokens, j in accuracy.items()} | {8: np.full(3, 0.44)}
        _, table = choose_budget({**accuracy, 8: 0.44}, budgets=[1, 2, 4], minimum=0, kappa=1.2, draws=draws)
        assert could_have_been(table, minimum=0, kappa=1.2) == others
        (said,) = remarks(table, minimum=0, kappa=1.2)
        assert said.startswith(f"The choice could as well have been {' or '.join(map(str, others))}: κ = 1.2 lies")
    _, table = choose_budget({**accuracy, 8: 0.44}, budgets=[1, 2, 4], minimum=2, kappa=1.2, draws=draws)
    assert could_have_been(table, minimum=2, kappa=1.2) == [4]  # 1 is no candidate


def test_the_defaults_make_the_right_choice_likely():
    """With 256 responses a budget that is too large was chosen in 15 % of draws of a flat curve."""
    rule = common.base_config().budget_rule
    for curve in CURVES.values():
        assert share_right(curve, problems=rule.problems, samples=rule.samples, kappa=rule.kappa, draws=500) > 0.94
    flat = next(iter(CURVES.values()))
    assert 0.82 < share_right(flat, problems=256, samples=1, draws=1000) < 0.90


def test_a_stages_own_settings_reach_eq_2(monkeypatch):
    """J was measured at the common temperature, whatever temperature the stage trains at."""
    config = smoke.get_config()
    config.order, config.stages.hard.temperature, config.stages.hard.prompts = ("hard",), 0.7, 8
    seen = {}

    def evaluated(pretrained, problems, sampling, **how):
        seen.update(temperature=sampling.temperature)
        raise InterruptedError

    def draw(first, count):
        seen.update(first_problem=first)
        return []

    settings = resolve(config)
    log = SimpleNamespace(read=lambda name: [], phase=lambda *_, **__: nullcontext(SimpleNamespace(advance=None)))
    run = Run(
        None,
        log,
        None,
        None,
        make_mesh(data=1, fsdp=-1, tensor=1),
        settings,
        lambda *_, **__: draw,
        8,
        None,
        lambda budget: 128,
    )
    run = run._replace(grader=SimpleNamespace(submit=None))
    monkeypatch.setattr(curriculum, "evaluate", evaluated)
    with pytest.raises(InterruptedError):
        curriculum.automatic_budget(run, None, settings.stages[0], incoming_budget=None)
    assert seen == {"temperature": 0.7, "first_problem": 0}


def test_no_rl_stage_sees_anothers_problems(monkeypatch):
    """A stage's first problem was its first step times its own `prompts`: with half as many as the stage before, it
    began in the middle of that one's problems.
    """
    config = smoke.get_config()
    config.order, config.stages.hard.budget = ("easy", "hard"), 96
    config.stages.easy.prompts, config.stages.hard.prompts = 8, 2
    for name in config.order:
        config.stages[name].evaluated = False
    seen = []
    run = SimpleNamespace(
        mesh=make_mesh(data=1, fsdp=-1, tensor=1),
        grader=nullcontext(),
        settings=resolve(config),
        workdir=Path("absent"),
        log=SimpleNamespace(read=lambda name: [], done=lambda: None, close=lambda: None, say=print),
    )
    monkeypatch.setattr(curriculum, "make_run", lambda *_: run)
    monkeypatch.setattr(curriculum, "initial_params", lambda *_, **__: None)
    monkeypatch.setattr(curriculum, "write_report", lambda *_: "")
    monkeypatch.setattr(curriculum.grpo, "train", lambda _, __, stage: seen.append(stage))
    curriculum.main(config, "")
    ends = [s.first_problem + s.steps * s.prompts for s in seen]
    assert [s.first_problem for s in seen] == [0, ends[0]] and ends[0] == 8 * seen[0].steps
