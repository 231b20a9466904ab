"""Supervised fine-tuning: cross-entropy of the target tokens, as a weighted sum.

One loss for plain SFT, E2C-SFT (plain token cross-entropy, `sft_trainer_2.yaml`) and the likelihood half of OXA
(`trainer.py` compute_loss). They differ in their data and in a token's weight.

    loss = −Σ_bt weight · logp,      weight = mask / global denominator

Usage: `loss = sft_loss(logp, sft_weights(mask, aggregation="token_mean"))`.
"""

from e3jax.losses.tokens import token_denominator


def sft_loss(logp_bt, weight_bt):
    """Return −Σ weight·logp, a scalar in nats; `logp_bt` and `weight_bt` [B, T] are aligned with the tokens."""
    return -(weight_bt * logp_bt).sum()


def sft_weights(mask_bt, *, aggregation):
    """Return weights [B, T] of a mask over the WHOLE batch, by "token_mean" or "sequence_mean".

    token_mean is 1/Σ mask: long responses count more. sequence_mean is 1/(#rows · row length): every non-empty row
    counts the same. An empty mask gives 0. Takes numpy and jax arrays.

    >>> sft_weights(np.array([[0, 1, 1]]), aggregation="token_mean")
    array([[0. , 0.5, 0.5]])
    """
    if aggregation not in ("token_mean", "sequence_mean"):
        raise ValueError(f"aggregation {aggregation!r} is not 'token_mean' or 'sequence_mean'")
    return mask_bt * 1.0 / token_denominator(mask_bt, aggregation=aggregation, max_length=None)
