"""λ by hand, for both signs and every way in which markers can be missing; λ = 1 changes no bit; gradients scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3jax.losses.e2c import exploration_weights
from e3jax.losses.grpo import GrpoLoss, grpo_loss
from e3jax.types import Batch

P, p, E, e = TAGS = (90, 91, 92, 93)  # the four tags
LOSS = GrpoLoss(
    clip_low=0.2, clip_high=0.2, dual_clip=3.0, kl_coef=0.0, kl_estimator="k3", entropy_coef=0.0, tis_cap=None
)


def weights(prompt, response, *, missing, coefficient=2.0):
    row = np.array([[*prompt, *response, 0]])  # one token of padding
    out = exploration_weights(
        row, [len(prompt)], [len(prompt) + len(response)], tags=TAGS, coefficient=coefficient, missing=missing
    )
    assert out.dtype == np.float32 and out.shape == row.shape and (out[0, : len(prompt)] == 1).all() and out[0, -1] == 1
    return out[0, len(prompt) : -1].tolist()


@pytest.mark.parametrize(
    ("prompt", "response", "plain", "original"),
    [
        ([5, P], [1, 2, p, E, 3, e, 9], [2, 2, 1, 1, 1, 1, 1], [2, 2, 1, 1, 1, 1, 1]),  # forced start
        ([5], [P, 1, p, E, 3, e], [2, 2, 1, 1, 1, 1], [2, 2, 1, 1, 1, 1]),  # sampled start
        ([P, 5], [1, 2, 3], [1, 1, 1], [2, 2, 2]),  # no marker (and a tag in the question): the original amplifies all
        ([5, P], [1, 2, 3], [1, 1, 1], [2, 2, 2]),  # cut while planning
        ([5, P], [1, E, 3, e], [1, 1, 1, 1], [2, 1, 1, 1]),  # the plan is never closed
        ([5, P], [1, P, 2, p, E, 3, e], [1] * 7, [2, 2, 2, 1, 1, 1, 1]),  # nested
        ([5, P], [1, p, 2, p, E, 3, e], [2, 1, 1, 1, 1, 1, 1], [2, 1, 1, 1, 1, 1, 1]),  # repeated: the first counts
        ([5, P], [1, p, E, P, 2, p, e], [2, 1, 1, 1, 1, 1, 1], [2, 1, 1, 1, 1, 1, 1]),  # nested in the execution
        ([5], [E, 3, e, P, 1, p], [1] * 6, [2, 2, 2, 2, 2, 1]),  # reversed: the original amplifies the execution
        ([5], [7, P, 1, p, E, 3, e], [1, 2, 2, 1, 1, 1, 1], [2, 2, 2, 1, 1, 1, 1]),  # words before the plan
        ([5, P], [p, E, 3, e], [1, 1, 1, 1], [1, 1, 1, 1]),  # an empty plan
    ],
)
def test_weights_by_hand(prompt, response, plain, original):
    assert weights(prompt, response, missing="plain") == plain
    assert weights(prompt, response, missing="original") == original
    assert set(weights(prompt, response, missing="original", coefficient=1.0)) <= {1.0}


def test_another_rule_is_refused():
    with pytest.raises(ValueError, match="'plain', 'original'"):
        weights([5, P], [1], missing="none")


def batch(advantage_bt, ratio_bt):
    """Return four tokens a row, each worth 1/8, with old log-probs that make the given ratios."""
    zero = jnp.zeros((2, 4))
    return Batch(
        tokens=zero.astype(int),
        position=zero.astype(int),
        segment=zero.astype(int),
        weight=zero + 1 / 8,
        advantage=jnp.asarray(advantage_bt, jnp.float32),
        old_logp=-jnp.log(jnp.asarray(ratio_bt)),
        ref_logp=zero,
        rollout_logp=zero,
    )


# Two plan tokens, the closing tag, one execution token; A = +0.5 and −0.5
ADVANTAGE = np.array([[0.5], [-0.5]])
LAMBDA = exploration_weights(
    np.array([[P, 1, 2, p, 3], [P, 4, 5, p, 6]]), [1, 1], [5, 5], tags=TAGS, coefficient=2.0, missing="plain"
)[:, 1:]
RATIO = np.array([[1.0, 1.5, 1.0, 1.5], [1.0, 0.5, 1.0, 4.0]])


def test_loss_by_hand():
    """λ = 2, clip .2: A > 0: 2·(−.5·1), 2·(−.5·1.2), −.5, −.5·1.2; A < 0: 2·.5·1, 2·.5·.8, .5, min(.5·4, .5·3)."""
    assert LAMBDA.tolist() == [[2, 2, 1, 1], [2, 2, 1, 1]]
    loss, metrics = grpo_loss(jnp.zeros((2, 4)), jnp.zeros((2, 4)), batch(ADVANTAGE * LAMBDA, RATIO), LOSS)
    want = (-1.0 - 1.2 - 0.5 - 0.6 + 1.0 + 0.8 + 0.5 + 1.5) / 8
    assert float(loss) == pytest.approx(want, abs=1e-6)
    assert float(metrics["clip_high"]) == pytest.approx(2 / 8) and float(metrics["clip_dual"]) == pytest.approx(1 / 8)


def gradient(lambda_bt, ratio=RATIO):
    """Return d loss / d logp [B, T]."""
    given = batch(ADVANTAGE * lambda_bt, ratio)
    return jax.grad(lambda logp: grpo_loss(logp, jnp.zeros((2, 4)), given, LOSS)[0])(jnp.zeros((2, 4)))


def test_gradient_scales_with_lambda():
    """Exactly λ times on plan tokens, both signs, clipped ones (0) and the dual clip's bound included; 1 elsewhere."""
    ratio = np.array([[1.0, 1.1, 1.0, 1.5], [0.5, 0.9, 1.1, 4.0]])
    plain = gradient(np.ones((2, 4)), ratio)
    assert (np.asarray(plain) != 0).tolist() == [[True, True, True, False], [False, True, True, False]]
    np.testing.assert_array_equal(gradient(LAMBDA, ratio), plain * LAMBDA)


def test_lambda_one_changes_no_bit():
    """Loss and gradient have the same bits as without λ, at awkward numbers."""
    rng = np.random.default_rng(0)
    ones = exploration_weights(
        np.array([[P, 1, 2, p, 3], [P, 4, 5, 6, 7]]), [1, 1], [5, 5], tags=TAGS, coefficient=1.0, missing="original"
    )[:, 1:]
    a_bt = np.broadcast_to(rng.normal(size=(2, 1)), (2, 4)).astype(np.float32)
    ratio = np.exp(rng.normal(size=(2, 4)))
    both = [
        jax.value_and_grad(lambda logp, x=x: grpo_loss(logp, jnp.ones((2, 4)), batch(x, ratio), LOSS)[0])(
            jnp.asarray(rng.normal(size=(2, 4)) * 0)
        )
        for x in (a_bt, a_bt * ones)
    ]
    jax.tree.map(np.testing.assert_array_equal, *both)
