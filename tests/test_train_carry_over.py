"""Responses that are carried over: what a step trains on, how old it is, and that nothing is lost by a kill."""

import importlib
import json
from contextlib import nullcontext
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from e3jax.errors import UserError
from e3jax.sampler.plan import Sampling
from e3jax.sampler.slots import unsampled, widened
from e3jax.tasks.problem import Problem
from e3jax.train import carry_over
from e3jax.train.carry_over import (
    Carried,
    Group,
    Response,
    beginning,
    carry_groups,
    following,
    kept,
    read_carried,
    rollouts_of,
    write_carried,
)
from e3jax.train.curriculum import main


def response(*steps: int, ended: bool = True) -> Response:
    """Return a response whose tokens are numbered, drawn in these steps."""
    n = len(steps)
    return Response(
        np.arange(n, dtype=np.int32) + 5,
        -np.arange(n, dtype=np.float32),
        np.ones(n, np.float32),
        np.array(steps, np.int32),
        ended,
        ended,
    )


def config(**changes):
    """Return the smoke config with RL alone, on a random model."""
    c = importlib.import_module("configs.smoke").get_config()
    c.unlock()
    c.order, c.stages = ("easy",), {"easy": c.stages.easy}
    c.stages.easy.steps, c.stages.easy.evaluated, c.stages.easy.budget = 5, False, 24
    c.grpo.old_logp, c.grpo.carry_over = "sampler", 2
    c.grpo.prompts, c.grpo.group_size, c.grpo.minibatches, c.grpo.rows = 4, 2, 1, 8
    c.sampler.slots, c.sampler.prefill_rows, c.sampler.block = 16, 8, 4
    c.grader.workers, c.log.tensorboard, c.checkpoint.every, c.checkpoint.keep = 1, False, 1, 5
    c.update_from_flattened_dict(changes)
    return c


def lines(run):
    """Return the records of the steps without what times they took."""
    of = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in of]


@pytest.fixture
def light(monkeypatch):
    monkeypatch.setattr("e3jax.train.grpo.compile_ahead", lambda *_, **__: None)
    monkeypatch.setattr("e3jax.train.curriculum.write_report", lambda where: where)


def test_kept_by_hand():
    """Groups that began earlier all go on; of this step's as many as a step trains on, without those that did not."""
    flying, empty = response(3, ended=False), response(ended=False)
    groups = [Group(2, 0, 0, (flying,)), *(Group(3, i, 1 + i, (flying,)) for i in range(4)), Group(3, 4, 5, (empty,))]
    stage = SimpleNamespace(prompts=2, carry_over=2, overdue="finish")
    assert kept(groups, [1], stage, 3) == [0, 2, 3]
    stage.prompts = 9
    assert kept(groups, [], stage, 3) == [0, 1, 2, 3, 4]
    stage.carry_over = 1  # group 0 began a step ago: it may not go on
    assert kept(groups, [], stage, 3) == [1, 2, 3, 4]


def test_what_is_thrown_away_is_drawn_again():
    """Problems of groups that neither were trained on nor go on begin first, and none is passed over or comes twice."""
    flying = response(3, ended=False)
    groups = [Group(2, 0, 1, (flying,)), *(Group(3, i, 4 + i, (flying,)) for i in range(5))]
    after = following(Carried([groups[0]], 4), groups, [2, 4], left=[4])
    assert after == Carried([groups[4]], 8, (1, 4, 6))
    new = beginning(after, 4, 5, size=2)
    assert [(group.begun, group.place, group.problem) for group in new] == [
        (4, i, problem) for i, problem in enumerate((1, 4, 6, 8, 9))
    ]
    assert [group.problem for group in beginning(after, 4, 2, size=2)] == [1, 4, 6]


def test_rollouts_by_hand():
    """Prompt, response and padding; log-probs are those that the tokens were drawn with."""
    r = rollouts_of([Group(0, 0, 0, (response(0, 1), response(0)))], [[1, 2, 3]], pad=0)
    assert r.tokens.tolist() == [[1, 2, 3, 5, 6], [1, 2, 3, 5, 0]]
    assert r.logp.tolist() == [[0, 0, 0, 0, -1], [0, 0, 0, 0, 0]] and r.length.tolist() == [5, 4]
    assert r.sampled.tolist() == [[False] * 3 + [True] * 2, [False] * 3 + [True, False]]


def test_what_is_written_is_read(tmp_path):
    """Beside the checkpoint of the same step; files of checkpoints that are gone go; a damaged one is a sentence."""
    run, stage = SimpleNamespace(workdir=tmp_path), SimpleNamespace(name="easy", group_size=2)
    carried = Carried([Group(1, 0, 4, (response(1, 2), response(1, ended=False)))], 7, (2, 5))
    for step in (2, 3):
        (tmp_path / f"checkpoints/easy/{step}").mkdir(parents=True)
        write_carried(run, stage, step, carried)
    found = read_carried(run, stage, 3)
    assert found[1:] == (7, (2, 5)) and found.groups[0][:3] == (1, 0, 4)
    for a, b in zip(found.groups[0].responses, carried.groups[0].responses):
        assert all(np.array_equal(x, y) for x, y in zip(a, b))
    (tmp_path / "checkpoints/easy/2").rmdir()
    write_carried(run, stage, 3, carry_over.NOTHING)
    assert [p.name for p in (tmp_path / "carried").iterdir()] == ["easy-3.npz"]
    assert read_carried(run, stage, 3) == Carried([], 0) == read_carried(run, stage, 0)
    (tmp_path / "carried/easy-3.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"easy-3\.npz, the responses on their way at checkpoint 3 .* cannot be read"):
        read_carried(run, stage, 3)


def test_with_one_policy_it_draws_what_one_go_draws(tmp_path, light, monkeypatch):
    """With a learning rate of nothing, a response in pieces is the response in one piece, and log-probs agree."""
    seen, real = [], carry_over.graded_of

    def spied(problems, rollouts, *rest):
        seen.append((problems, rollouts))
        return real(problems, rollouts, *rest)

    monkeypatch.setattr(carry_over, "graded_of", spied)
    main(config(**{"stages.easy.lr": 1e-30}), str(tmp_path / "carried"))
    pieces = {}
    for problems, r in seen:
        for b, problem in enumerate(problems):
            pieces.setdefault(problem.id, []).append((r.tokens[b, : r.length[b]].tolist(), r.logp[b, : r.length[b]]))
    whole, real_draw = {}, importlib.import_module("e3jax.train.grpo").draw_groups

    def spied_draw(*args, **how):
        graded, values = real_draw(*args, **how)
        r = graded.rollouts
        for b, problem in enumerate(graded.problems):
            whole.setdefault(problem.id, []).append((r.tokens[b, : r.length[b]].tolist(), r.logp[b, : r.length[b]]))
        return graded, values

    monkeypatch.setattr("e3jax.train.grpo.draw_groups", spied_draw)
    main(config(**{"stages.easy.lr": 1e-30, "grpo.carry_over": 0}), str(tmp_path / "straight"))
    first = {id_: found for id_, found in whole.items() if id_ in pieces}
    assert len(pieces) == 20 and len(seen) == 5
    # only groups that began in step 0 at the same place have the noise of the straight run
    same = [id_ for id_ in list(whole)[:4] if id_ in pieces]
    assert same
    for id_ in same:
        for (tokens, logp), (others, other) in zip(first[id_], pieces[id_]):
            assert tokens == others
            np.testing.assert_allclose(logp, other, atol=1e-4)


def test_ages_are_bounded_and_no_problem_is_trained_on_twice(tmp_path, light, monkeypatch):
    """No token is older than the bound; slots are full until a step ends; every problem comes once."""
    seen, real = [], carry_over.graded_of
    monkeypatch.setattr(carry_over, "graded_of", lambda problems, *rest: seen.extend(problems) or real(problems, *rest))
    main(config(**{"stages.easy.steps": 8}), str(tmp_path / "run"))
    of = lines(tmp_path / "run")
    assert max(line["carry/oldest"] for line in of) in (1, 2) and max(line["carry/groups"] for line in of) > 0
    ids = [problem.id for problem in seen[::2]]
    assert len(ids) == len(set(ids)) == 8 * 4
    assert np.mean([line["sampler/occupancy"] for line in of]) > 0.8


def scripted(length_of):
    """Return a stand-in for the sampler that draws `length_of[problem]` tokens, one of each slot a tick.

    A prompt is its problem's number, and what was drawn of it before.
    """

    def sample(model, params, requests, sampling, *, key, stop, pad, events):
        out = widened(unsampled(requests.prompts, 1, pad=pad), 32, pad)
        limit_b = np.array([1 + length_of[prompt[0]] for prompt in requests.prompts])
        begun, ended_b = 0, np.zeros(len(limit_b), bool)
        while not events.enough(ended_b):
            begun += sampling.slots - (~ended_b[:begun]).sum()
            busy = np.flatnonzero(~ended_b[:begun])
            out.sampled[busy, out.length[busy]] = True
            out.length[busy] += 1
            ended_b |= out.length == limit_b
        out.done[:] = ended_b
        return out

    return sample


@pytest.mark.parametrize(
    ("overdue", "trained", "left", "again", "wasted"), [("finish", 0, [2], (), 4 / 13), ("drop", 2, [], (0,), 1 / 2)]
)
def test_a_group_that_is_too_old_by_hand(monkeypatch, overdue, trained, left, again, wasted):
    """Problem 0 takes nine tokens, the others two; a step trains on one, two slots, nothing is older than a step.

    "finish": the second step waits for problem 0 and trains on it; of 2, 3 and 4, drawn meanwhile, one goes on.
    "drop": it ends with problem 2, and problem 0 begins anew in the third.
    """
    monkeypatch.setattr(carry_over, "sample", scripted([9, *[2] * 20]))
    monkeypatch.setattr(carry_over, "sampling_layout", lambda *_, **__: nullcontext())
    monkeypatch.setattr(carry_over, "read_all", lambda *_: None)
    monkeypatch.setattr(carry_over, "graded_of", lambda problems, *_: [problem.id for problem in problems])
    tokenizer = SimpleNamespace(encode=lambda question: [int(question)], stop=(), pad=0)
    run = SimpleNamespace(tokenizer=tokenizer, model=SimpleNamespace(dtype=None, lora=None), key=stage_key)
    stage = SimpleNamespace(prompts=1, group_size=1, carry_over=1, over_sampling=0, overdue=overdue, budget=20, index=0)
    stage.first_problem, stage.reward = 0, SimpleNamespace(unfinished=0)
    how = dict(draw=numbered, sampling=Sampling(temperature=1.0, slots=2), on_finished=None)
    graded, _, carried = carry_groups(run, None, stage, 0, carry_over.NOTHING, **how)
    assert graded == ["1"] and [group.problem for group in carried.groups] == [0] and carried[1:] == (2, ())
    assert len(carried.groups[0].responses[0].tokens) == 2
    graded, values, carried = carry_groups(run, None, stage, 1, carried, **how)
    assert graded == [str(trained)] and [group.problem for group in carried.groups] == left
    assert carried[1:] == (3, again) and values["carry/wasted"] == wasted
    assert values["carry/age"] == (2 / 9 if overdue == "finish" else 0)
    graded, _, carried = carry_groups(run, None, stage, 2, carried, **how)
    assert graded == (["2"] if overdue == "finish" else ["3"])


def stage_key(*numbers):
    """Return the key of a stage's step."""
    return jax.random.key(sum(numbers))


def numbered(first: int, count: int) -> list[Problem]:
    """Return problems whose question is their number."""
    return [Problem(str(i), "", str(i), "", 0, {}) for i in range(first, first + count)]


def test_resumed_it_ends_with_the_same_numbers(tmp_path, light):
    """What was on its way at the checkpoint goes on: records and the last checkpoint's neighbours are equal."""
    main(config(), str(tmp_path / "run"))
    straight = lines(tmp_path / "run")
    for step in (4, 5):
        for path in sorted((tmp_path / f"run/checkpoints/easy/{step}").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / f"run/checkpoints/easy/{step}").rmdir()
    (tmp_path / "run/DONE").unlink()
    main(config(), str(tmp_path / "run"))
    assert lines(tmp_path / "run") == straight


def test_what_is_over_sampled_is_thrown_away(tmp_path, light, monkeypatch):
    """Half as many groups again are drawn in every step; no problem is drawn twice, no token is old."""
    seen, real = [], carry_over.requests_of
    monkeypatch.setattr(carry_over, "requests_of", lambda *a: seen.append(a[2]) or real(*a))
    main(config(**{"grpo.carry_over": 0, "grpo.over_sampling": 0.5}), str(tmp_path / "run"))
    of = lines(tmp_path / "run")
    assert [[group.problem for group in groups] for groups in seen] == [list(range(6 * i, 6 * i + 6)) for i in range(5)]
    assert all(line["carry/oldest"] == 0 == line["carry/groups"] for line in of)
    assert max(line["carry/wasted"] for line in of) > 0


def test_a_later_stage_that_counts_what_was_drawn_is_refused():
    """What is carried over is not in drawn.jsonl: a stage that drops solved problems would know of none."""
    from e3jax.train import check

    settings = resolve_stages()
    with pytest.raises(UserError, match=r"stages\.easy\.carry_over, over_sampling=.*drop_above of stage later"):
        check.check_carry_over(settings)


def resolve_stages():
    """Return the settings of a stage that carries over and a later one that reads what was drawn."""
    from e3jax.train.settings import resolve

    c = config()
    c.stages.later = {**c.stages.easy.to_dict(), "drop_above": 0.5, "carry_over": 0}
    c.order = ("easy", "later")
    return resolve(c)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grpo.carry_over": -1}, r"grpo\.carry_over=-1: use 0 \(off\) or more"),
        ({"grpo.old_logp": "trainer"}, r"grpo\.carry_over=2: a response then has several policies"),
        ({"grpo.overdue": "wait"}, r"grpo\.overdue='wait': use one of 'finish', 'drop'"),
        ({"grpo.rounds": 2}, r"grpo\.rounds=2: carry_over and over_sampling draw in one round"),
        ({"grpo.over_sampling": 0.5}, r"grpo\.over_sampling=0\.5: not with carry_over"),
        ({"grpo.over_sampling": 2.0, "grpo.carry_over": 0}, r"grpo\.over_sampling=2\.0: use a share"),
    ],
)
def test_impossible_settings_are_refused(changes, words):
    from e3jax.train.settings import resolve

    with pytest.raises(UserError, match=words):
        resolve(config(**changes))
