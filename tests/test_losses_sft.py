"""The SFT loss against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3jax.losses.sft import sft_loss, sft_weights

MASK = np.array([[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
LOGP = np.array([[-9.0, -1.0, -2.0, -3.0], [-9.0, -9.0, -4.0, -9.0], [-9.0, -9.0, -9.0, -9.0]])


@pytest.mark.parametrize(
    ("aggregation", "loss"),
    [
        ("token_mean", (1 + 2 + 3 + 4) / 4),
        ("sequence_mean", ((1 + 2 + 3) / 3 + 4) / 2),  # the empty third row is no sequence
    ],
)
def test_hand_numbers(aggregation, loss):
    """Guards the prompt (−9, outside the mask) leaking in, and the mean over an empty row."""
    weights = sft_weights(MASK, aggregation=aggregation)
    np.testing.assert_allclose(sft_loss(LOGP, weights), loss, rtol=1e-12)
    np.testing.assert_allclose(sft_weights(jnp.asarray(MASK, bool), aggregation=aggregation), weights, rtol=1e-6)


def test_gradient_is_minus_the_weight():
    """Guards the sign: a step down must raise the log-prob of target tokens, and of no others."""
    weights = jnp.asarray(sft_weights(MASK, aggregation="token_mean"), jnp.float32)
    grad = jax.grad(sft_loss)(jnp.asarray(LOGP, jnp.float32), weights)
    np.testing.assert_array_equal(grad, np.where(MASK, -0.25, 0.0))


def test_empty_mask_gives_zero():
    """Guards 0/0 on a micro-batch that is all padding."""
    for aggregation in ("token_mean", "sequence_mean"):
        np.testing.assert_array_equal(sft_weights(MASK * 0, aggregation=aggregation), 0.0)


def test_dr_grpo_is_refused():
    """Guards a config that asks SFT for a policy-gradient denominator: there is no budget here."""
    with pytest.raises(ValueError, match="dr_grpo"):
        sft_weights(MASK, aggregation="dr_grpo")
