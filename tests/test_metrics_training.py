"""One RL step's numbers by hand: means over tokens of a class, never over padding."""

import math

import jax.numpy as jnp
import numpy as np

from e3jax.metrics.exploration import explore
from e3jax.metrics.names import undefined
from e3jax.metrics.reading import LOST
from e3jax.metrics.training import phase_metrics, rollout_metrics
from e3jax.models.number_features import SCALE, number_features
from e3jax.rollout.rollouts import feature_means
from e3jax.tasks.problem import Problem
from e3jax.types import Rollouts


def test_rollout_metrics_by_hand():
    """Two groups of two; row 1 is padded with entropy 9 that must not count."""
    entropy = np.array([[0, 1.0, 3.0], [0, 2.0, 9.0], [0, 4.0, 4.0], [0, 6.0, 6.0]])
    sampled = np.array([[0, 1, 1], [0, 1, 0], [0, 1, 1], [0, 1, 1]], bool)
    m = rollout_metrics(
        score_b=np.array([1.0, 0.0, 0.0, 0.0]),
        response_len_b=np.array([2, 1, 2, 2]),
        done_b=np.array([True, True, True, False]),
        entropy_bt=entropy,
        sampled_bt=sampled,
        reasons=["correct", "no_answer", "wrong_value", "truncated"],
        advantage_b=np.array([1.0, -1.0, 0.0, 0.0]),
        group_size=2,
    )
    assert (m["reward/mean"], m["reward/all_zero"], m["reward/all_one"], m["truncated"]) == (0.25, 0.5, 0.0, 0.25)
    assert (m["entropy/mean"], m["entropy/correct"], m["entropy/positive"], m["entropy/negative"]) == (26 / 7, 2, 2, 2)
    assert (m["length/correct"], m["length/incorrect"], m["length/positive"], m["length/negative"]) == (2, 5 / 3, 2, 1)
    assert m["reason/truncated"] == 0.25


def test_feature_means_are_ratios_of_sums():
    """1 of 2 and 9 of 10 right verdicts are 10/12, not the mean .7; without verdicts there is no accuracy."""
    one = dict(
        attempts=2,
        unique=1,
        equations=4,
        verifications=2,
        gave_up=True,
        repetition=0,
        verdicts=2,
        right_verdicts=1,
        yes=1,
        false_yes=1,
    )
    ten = one | dict(attempts=10, equations=14, verdicts=10, right_verdicts=9, gave_up=False, yes=3)
    m = feature_means([one, ten])
    assert math.isclose(m["explore/verdict_accuracy"], 10 / 12)
    assert (m["explore/attempts"], m["explore/give_up"], m["explore/false_yes"]) == (6, 0.5, 0.5)
    assert m["explore/equations_per_attempt"] == 18 / 12
    assert math.isnan(feature_means([one | {"verdicts": 0}])["explore/verdict_accuracy"])


def test_what_is_not_read_in_time_is_left_out_of_the_means():
    """Its grade is "timeout" and its features are unknown: they are not 0, and the run goes on."""
    one = explore(Problem("p", "math", "?", "7", "", {}), "3+4=7. Wait, 7.", done=True, correct=True)
    assert feature_means([one, None, LOST.features]) == feature_means([one])
    none = feature_means([None])
    assert none.keys() < feature_means([one]).keys() and all(math.isnan(x) for x in none.values())


def test_number_features_touch_numbers_only():
    """Words keep their random rows; 7 and ?7 share features; equal residues share a phase."""
    embed = jnp.asarray(np.random.default_rng(0).normal(size=(5, 40)), jnp.float32)
    out = np.asarray(number_features(embed, ["+", "7", "?7", "17", "no"]))
    np.testing.assert_array_equal(out[[0, 4]], embed[np.array([0, 4])])
    np.testing.assert_array_equal(out[:, 32:], embed[:, 32:])
    np.testing.assert_array_equal(out[1, :32], out[2, :32])
    mod_10 = 8  # PERIODS[8] == 10
    np.testing.assert_allclose(out[1, [mod_10, 16 + mod_10]], out[3, [mod_10, 16 + mod_10]], rtol=1e-5)
    size = SCALE * np.std(np.asarray(embed)) * np.sqrt(2)
    np.testing.assert_allclose(out[1, :16] ** 2 + out[1, 16:32] ** 2, size**2, rtol=1e-4)


def test_phase_metrics_by_hand():
    """Tags and the forced start belong to no phase; with a plan that never ends there is no execution."""
    P, p, E, e = tags = (6, 7, 8, 9)
    tokens = np.array([[1, P, 2, 3, p, E, 4, e], [1, P, 5, 0, 0, 0, 0, 0]])
    rollouts = Rollouts(
        tokens=tokens,
        prompt_len=np.array([2, 2]),
        length=np.array([8, 3]),
        logp=None,
        entropy=np.array([[0, 0, 1.0, 2.0, 9.0, 9.0, 0.5, 9.0], [0, 0, 6.0, 0, 0, 0, 0, 0]]),
        sampled=np.array([[0, 0, 1, 1, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0, 0, 0]], bool),
        done=np.array([True, False]),
    )
    assert phase_metrics(rollouts, tags) == {
        "format/well_formed": 0.5,
        "entropy/exploration": 3.0,
        "length/exploration": 1.5,
        "entropy/execution": 0.5,
        "length/execution": 0.5,
    }
    assert phase_metrics(rollouts, ()) == {}
    assert not undefined("grpo", phase_metrics(rollouts, tags))
