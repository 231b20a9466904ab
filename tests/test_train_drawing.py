"""Dynamic sampling: which groups a step trains on, which problems it owns, and that the same ones come again.

A whole run that draws several rounds, killed and started again: test_train_resume.py.
"""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import quickstart
from e3jax.metrics.names import undefined
from e3jax.rollout.rollouts import Graded
from e3jax.tasks.problem import Problem
from e3jax.train import drawing
from e3jax.train.drawing import draw_groups, joined
from e3jax.train.settings import resolve
from e3jax.types import Rollouts
from tests.stages import grpo_stage


def graded(problems, *, samples, scores, width):
    """Return responses of one token, the problem's number; `scores` says how many of each group are right."""
    n = len(problems) * samples
    score_b = (np.arange(n) % samples < np.repeat(scores, samples)) * 1.0
    tokens = np.zeros((n, width), np.int32)
    tokens[:, 0], tokens[:, 1] = 7, np.repeat([p.meta["number"] for p in problems], samples)
    r = Rollouts(
        tokens=tokens,
        prompt_len=np.ones(n, np.int32),
        length=np.full(n, 2),
        logp=-tokens * 1.0,
        entropy=tokens * 0.0,
        sampled=np.arange(width) == np.ones((n, 1)),
        done=np.ones(n, bool),
    )
    repeated = [p for p in problems for _ in range(samples)]
    texts = [f"{p.id}/{i % samples}" for i, p in enumerate(repeated)]
    stats = {"first_token_s": 1.0, "occupancy": 0.5, "prefilled": 3, "shared_pages": 2}
    return Graded(repeated, r, texts, score_b, texts, r.length - 1, [None] * n, score_b, [None] * n, [None] * n, stats)


@pytest.fixture
def drawn(monkeypatch):
    """Return (step, successes of the groups of each round) -> what draw_groups gives, the keys, the logged lines."""

    def call(rounds, step, successes, later=(), **changes):
        keys, lines, asked = [], [], []
        stage = grpo_stage(prompts=3, group_size=4, minibatches=1, rounds=rounds, first_problem=100, **changes)

        def rollout(pretrained, problems, sampling, *, key, samples, **_):
            keys.append(jax.random.key_data(key).tolist())
            assert all(p.meta["unfinished"] == "wrong" for p in problems)
            return graded(problems, samples=samples, scores=successes[len(keys) - 1], width=2 + len(keys))

        def draw(start, count):
            asked.extend(range(start, start + count))
            return [Problem(f"p{i}", "countdown", "?", "", "", {"number": i}) for i in range(start, start + count)]

        monkeypatch.setattr(drawing, "rollout", rollout)
        run = SimpleNamespace(
            pretrained=lambda params: params,
            key=lambda stage, step: jax.random.fold_in(jax.random.key(stage), step),
            tokenizer=SimpleNamespace(pad=0),
            log=SimpleNamespace(append=lambda name, line: lines.append((name, line))),
            settings=SimpleNamespace(stages=[stage, *later]),
        )
        how = dict(draw=draw, sampling=None, read=None, on_finished=None)
        return SimpleNamespace(out=draw_groups(run, None, stage, step, **how), keys=keys, lines=lines, asked=asked)

    return call


def numbers(g):
    return g.rollouts.tokens[:, 1].reshape(-1, 4)[:, 0].tolist()


def test_one_round_is_as_it_was(drawn):
    """Off by default: the step's own problems, its own key, no record and no metric."""
    got = drawn(1, 5, [[0, 0, 4]])
    g, values = got.out
    assert values == {} and got.lines == [] and got.asked == [115, 116, 117] == numbers(g)
    assert got.keys == [jax.random.key_data(jax.random.fold_in(jax.random.key(0), 5)).tolist()]


def test_what_a_later_stage_wants_to_know_is_recorded(drawn):
    """Without dynamic sampling too, all problems of the step, and nothing else changes."""
    later = grpo_stage(name="later", index=1, drop_above=0.9)
    got, plain = (drawn(1, 5, [[0, 1, 4]], later=x) for x in ((later,), ()))
    assert numbers(got.out[0]) == numbers(plain.out[0]) and got.keys == plain.keys and got.out[1] == {}
    ((name, line),) = got.lines
    assert name == "drawn.jsonl" and line["scores"] == [0, 0.25, 1] and line["kept"] == [0, 1, 2] and not plain.lines
    assert line["problems"] == ["p115", "p116", "p117"] and line["step"] == 6


def test_further_rounds_until_enough_groups_have_spread(drawn):
    """Three of six groups are kept: rounds end when there are enough; the surplus is dropped; all else moves along."""
    got = drawn(4, 2, [[2, 0, 4], [1, 3, 1]])
    g, values = got.out
    first = 100 + 2 * 4 * 3  # a step owns four rounds of three problems
    assert got.asked == list(range(first, first + 6)) and len({str(k) for k in got.keys}) == 2
    assert numbers(g) == [first, first + 3, first + 4]
    assert g.score_b.reshape(3, 4).sum(1).tolist() == [2, 1, 3]
    assert [p.meta["number"] for p in g.problems[::4]] == numbers(g) and g.texts[4] == f"p{first + 3}/0"
    assert g.rollouts.tokens.shape == (12, 4) and g.rollouts.sampled.sum() == 12
    np.testing.assert_array_equal(g.rollouts.logp[:, 1], -g.rollouts.tokens[:, 1])
    assert values == {"drawn/problems": 6, "drawn/spread": 4 / 6, "drawn/reward": 11 / 24, "drawn/tokens": 24}
    assert not undefined("grpo", values)
    lines = [line for _, line in got.lines]
    assert [line["kept"] for line in lines] == [[0], [0, 1]] and [line["round"] for line in lines] == [0, 1]
    assert lines[1]["problems"] == [f"p{first + i}" for i in (3, 4, 5)] and lines[1]["scores"] == [0.25, 0.75, 0.25]


def test_groups_without_spread_fill_up(drawn):
    """Two rounds of three, one group with spread: the first two without spread are trained on, too."""
    g, values = drawn(2, 0, [[0, 4, 0], [0, 1, 0]]).out
    assert numbers(g) == [100, 101, 104] and values["drawn/spread"] == 1 / 6


def test_a_resumed_step_draws_the_same(drawn):
    """Whatever the steps before needed: problems and noise of a step depend on nothing else."""
    one, again = (drawn(3, 7, [[0, 0, 0], [1, 1, 0], [0, 2, 0]]) for _ in range(2))
    assert one.asked == again.asked and one.keys == again.keys and one.lines == again.lines
    np.testing.assert_array_equal(one.out[0].rollouts.tokens, again.out[0].rollouts.tokens)
    next_step = drawn(3, 8, [[1, 1, 1]])
    assert not set(one.asked) & set(next_step.asked)


def test_stages_do_not_share_problems():
    """The second stage begins behind all that the first may draw."""
    config, problems = quickstart.get_config(), []
    for config.grpo.rounds in (1, 3):
        easy, hard = (resolve(config).stage(name) for name in ("easy", "hard"))
        problems.append(hard.first_problem - easy.first_problem)
    assert problems == [easy.steps * 16, easy.steps * 16 * 3]


def test_joining_keeps_rows():
    problems = [Problem("a", "countdown", "?", "", "", {"number": 1})]
    parts = [graded(problems, samples=2, scores=[1], width=width) for width in (3, 5, 2)]
    g = joined(parts, pad=9)
    assert g.rollouts.tokens.shape == (6, 5) and (g.rollouts.tokens[:2, 3:] == 9).all()
    assert g.texts == parts[0].texts * 3 and g.rollouts.length.tolist() == [2] * 6
