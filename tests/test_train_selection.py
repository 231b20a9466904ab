"""Which problems of a set a stage trains on: by prompt length, and by how often the stages before solved them."""

from types import SimpleNamespace

import pytest

from e3jax.errors import UserError
from e3jax.tasks.problem import Problem
from e3jax.tasks.stream import at, endless
from e3jax.train import selection
from e3jax.train.selection import pass_rates, problems_of, selected
from tests.stages import grpo_stage

SIZE = 10  # problems of the set
LINES = (
    {"stage": "one", "step": 1, "round": 0, "problems": ["p0", "p1", "p2"], "scores": [1.0, 1.0, 0.5], "kept": [0]},
    {"stage": "one", "step": 2, "round": 0, "problems": ["p0", "p3"], "scores": [0.75, 0.95], "kept": []},
    {"stage": "two", "step": 1, "round": 0, "problems": ["p2", "p4"], "scores": [1.0, 1.0], "kept": []},
)


def problem(i):
    return Problem(f"p{i}", "math", "x" * (i + 1), "", "", {})


def a_set(start, count):
    """Return problems of a set of SIZE, in a new order every epoch, as tasks/stream.py open_set."""
    return endless(lambda i: problem(at(i, SIZE, 3)))(start, count)


def run_with(lines, stages):
    said = []
    return SimpleNamespace(
        draw_from=lambda source, split: a_set,
        tokenizer=SimpleNamespace(encode=list),  # a character is a token
        settings=SimpleNamespace(stages=stages),
        log=SimpleNamespace(read=lambda name: [x for x in lines if name == "drawn.jsonl"], say=said.append),
        said=said,
    )


def stages(**changes):
    """Return two stages before a third, which selects."""
    return [grpo_stage(name=name, index=i) for i, name in enumerate(("one", "two"))] + [
        grpo_stage(name="three", index=2, first_problem=40, **changes)
    ]


def ids(problems):
    return [p.id for p in problems]


def test_rates_are_means_over_groups_of_the_stages_before():
    assert pass_rates(LINES, ["one"]) == {"p0": 0.875, "p1": 1.0, "p2": 0.5, "p3": 0.95}
    assert pass_rates(LINES, ["one", "two"])["p2"] == 0.75 and not pass_rates(LINES, [])


def test_what_was_solved_too_often_is_left_out():
    """p1, p3 and p4 were above .9; the others come in the set's own order, epoch after epoch."""
    three = stages(drop_above=0.9)
    run = run_with(LINES, three)
    want = [p for p in ids(a_set(40, 60)) if p not in ("p1", "p3", "p4")]
    got = ids(problems_of(run, three[2])(40, 21))
    assert got == want[:21] and len(set(got)) == 7
    assert run.said == ["three: leaves out 3 of the 5 problems drawn before"]
    assert ids(problems_of(run_with(LINES, three), three[1])(5, 4)) == ids(a_set(5, 4))  # the others do not select


def test_a_resumed_stage_draws_the_same():
    """From any step on, and whatever the stage itself has drawn meanwhile."""
    three = stages(drop_above=0.9)
    straight = ids(problems_of(run_with(LINES, three), three[2])(40, 24))
    of_its_own = {"stage": "three", "step": 1, "round": 0, "problems": ["p5"], "scores": [1.0], "kept": []}
    draw = problems_of(run_with((*LINES, of_its_own), three), three[2])
    assert (
        ids(draw(52, 4)) == straight[12:16] and ids(draw(40, 4)) == straight[:4] and ids(draw(56, 8)) == straight[16:]
    )


def test_prompts_of_some_lengths():
    """Problem i has i + 1 tokens; both ends are in."""
    three = stages(prompt_tokens=(3, 5))
    got = ids(problems_of(run_with((), three), three[2])(40, 9))
    assert set(got) == {"p2", "p3", "p4"} and got == [p for p in ids(a_set(40, 90)) if p in ("p2", "p3", "p4")][:9]


def test_nothing_left_is_said(monkeypatch):
    monkeypatch.setattr(selection, "MOST", 600)
    with pytest.raises(UserError, match="stage x leaves out every problem of its set: raise drop_above"):
        selected(a_set, lambda problem: False, first=0, name="x")(0, 1)
    with pytest.raises(UserError, match=r"drop_above=0\.0: use a rate above 0"):
        grpo_stage(drop_above=0.0)
    with pytest.raises(UserError, match=r"prompt_tokens=\(5,\): use the fewest and the most tokens"):
        grpo_stage(prompt_tokens=(5,))
