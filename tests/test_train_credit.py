"""BRPO in a step: beginnings are cut, graded as they stand, and become advantages of tokens."""

from types import SimpleNamespace

import numpy as np
import pytest

from e3jax.losses.grpo import group_advantages
from e3jax.tasks.problem import Problem
from e3jax.train.credit import compared, rewarded, scores_of_beginnings
from e3jax.types import Rollouts
from tests.stages import grpo_stage

WIDTH, BUDGET = 14, 12
LENGTH = np.array([12, 5, 9, 3])  # of responses; prompts have 2 tokens
RIGHT = 7  # a token: a beginning that holds it is right


def graded(score_b=(1.0, 0.0, 1.0, 0.0)):
    """Return four responses to two problems; the first is right from its 5th token on, the third from its last."""
    tokens = np.ones((4, WIDTH), np.int32)
    tokens[0, 2 + 4] = tokens[2, 2 + 8] = RIGHT
    at = np.arange(WIDTH)
    r = Rollouts(
        tokens=tokens,
        prompt_len=np.full(4, 2),
        length=2 + LENGTH,
        logp=tokens * 0.0,
        entropy=tokens * 0.0,
        sampled=(at >= 2) & (at < 2 + LENGTH[:, None]),
        done=LENGTH < BUDGET,
    )
    problems = [Problem(f"p{i // 2}", "math", "? Think for 9 tokens.", "", "", {"where": "response"}) for i in range(4)]
    named = dict(problems=problems, rollouts=r, texts=[""] * 4, score_b=np.array(score_b), response_len_b=LENGTH)
    return SimpleNamespace(**named, share_b=np.zeros(4), features=[{"repeats": i * 5} for i in range(3)] + [None])


def reader(asked):
    """Return a grader of lists of tokens that notes what it is asked."""

    def read(problems, texts, done):
        asked.extend((p.id, p.meta["where"], len(text), d) for p, text, d in zip(problems, texts, done))
        scores = [SimpleNamespace(grade=SimpleNamespace(score=float(RIGHT in text))) for text in texts]
        return SimpleNamespace(result=lambda: scores)

    return read


def test_beginnings_are_graded_as_they_stand():
    """Only those that the cut shortens, by a grader that looks inside the thinking; the whole has its own score."""
    asked = []
    got = scores_of_beginnings(graded(), (4, 8, 12), read=reader(asked), decode=list)
    assert got.tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 1], [0, 0, 0]]
    want = [("p0", 4), ("p0", 8), ("p0", 4), ("p1", 4), ("p1", 8)]
    assert asked == [(name, "anywhere", length, True) for name, length in want]


def test_every_piece_has_its_advantage():
    """By hand: problem 0 has scores (0, 1, 1) and (0, 0, 0), worth 1/6, 1/3, 1/2."""
    stage = grpo_stage(budget=BUDGET, group_size=2, prompts=2, advantage=dict(kind="brpo", pieces=3, positive=2.0))
    advantage_b, advantage_bt = compared(graded(), np.zeros(4), stage, read=reader([]), decode=list)
    still = 5 / 6 - np.array([0, 0, 1 / 3])
    own = np.array([0, 0, 2 / 3 * 1 / 2])  # (0 + 2 · 1) / 3 of what is left, 1/2
    first = still - (np.arange(3) * own + (3 - np.arange(3)) * still / 2) / 3
    np.testing.assert_allclose(advantage_bt[0, 2:], 2 * np.repeat(first, 4), rtol=1e-12)  # positive ones count twice
    assert (first > 0).all() and not advantage_bt[:, :2].any()
    np.testing.assert_allclose(advantage_bt[1, [2, 6, 10]], -(3 - np.arange(3)) * still / 2 / 3, rtol=1e-12)
    np.testing.assert_allclose(advantage_b[0], 2 * first.mean(), rtol=1e-12)
    np.testing.assert_allclose(advantage_b[3], advantage_bt[3, 2:5].mean(), rtol=1e-12)


def test_other_kinds_have_one_a_response():
    reward_b = np.array([1.0, 0.0, 1.0, 1.0])
    stage = grpo_stage(budget=BUDGET, group_size=2, prompts=2)
    advantage_b, same = compared(graded(), reward_b, stage, read=None, decode=None)
    want = group_advantages(reward_b.reshape(2, 2), normalize_std=True, ddof=1, epsilon=1e-6)
    assert same is advantage_b and advantage_b.tolist() == want.reshape(-1).tolist()


def test_what_the_reward_reads():
    """Repetitions come from the graders, an asked length from the prompt; a lost response repeats nothing."""
    stage = grpo_stage(budget=BUDGET, group_size=2, prompts=2, reward=dict(lie_repetition=0.5))
    reward_b, values = rewarded(graded(), stage)
    assert reward_b.tolist() == [1, 0, 0.5, 0] and values["reward/repetition"] == -0.125
    stage = grpo_stage(budget=BUDGET, group_size=2, prompts=2, reward=dict(lcpo="exact", lcpo_alpha=0.1))
    reward_b, values = rewarded(graded(), stage)
    np.testing.assert_allclose(reward_b, [0.7, -0.4, 1.0, -0.6])
    assert values["reward/length_error"] == pytest.approx((3 + 4 + 0 + 6) / 4)
