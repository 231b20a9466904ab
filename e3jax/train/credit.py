"""What every sampled token counts in an update: its weight, its advantage, and whether Clip-Cov or KL-Cov chose it.

All of it is decided over whole minibatches, on the host, before they are cut into micro-batches.
"""

from collections.abc import Sequence

import jax
import numpy as np

from e3jax.losses.advantages import counted_responses
from e3jax.losses.grpo import GrpoLoss, token_weights
from e3jax.losses.surrogates import covariance_tokens
from e3jax.runtime import fetch
from e3jax.train.closing import closing_mask
from e3jax.train.packing import MiniBatch
from e3jax.train.run import Run
from e3jax.types import Rollouts


def weigh(
    run: Run,
    r: Rollouts,
    minibatches: list[MiniBatch],
    advantage_b: np.ndarray,
    stage: "GrpoStage",  # noqa: F821 (train/grpo.py, which imports this file)
) -> np.ndarray:
    """Return each token's weight [B, T] in its minibatch's loss: mask / denominator (losses/grpo.py token_weights)."""
    w = stage.weights
    mask = r.sampled.astype(np.float32)  # EOS is sampled: stopping is an action and is trained
    closing_bt = np.zeros(mask.shape, bool)  # none, but for "no-eos"
    if w.gradients == "no-eos":
        closing_bt = closing_mask(run.tokenizer, r, closing=w.closing, match=w.closing_match)
    which = dict(truncated=w.truncated, no_spread=w.no_spread)
    keep_b = counted_responses(advantage_b, r.done, group_size=stage.group_size, **which)
    weight_bt = np.zeros_like(mask)
    for index, _ in minibatches:
        weight_bt[index] = token_weights(
            mask[index],
            advantage_b=advantage_b[index],
            closing_bt=closing_bt[index],
            keep_b=None if keep_b is None else keep_b[index],
            max_length=stage.budget,
            aggregation=w.aggregation,
            gradients=w.gradients,
            denominator=w.denominator,
        )
    return weight_bt


def token_advantages(advantage_b: np.ndarray, lambda_bt: np.ndarray | None, *, shape: tuple[int, int]) -> np.ndarray:
    """Return every token's advantage [B, T] float32: its response's, times λ where there is one."""
    advantage_bt = np.broadcast_to(advantage_b[:, None], shape).astype(np.float32)
    return advantage_bt if lambda_bt is None else advantage_bt * lambda_bt


def choose_tokens(
    minibatch: MiniBatch,
    logp: Sequence[jax.Array | np.ndarray],
    old_logp: Sequence[jax.Array | np.ndarray],
    terms: "Terms",  # noqa: F821 (train/grpo.py)
    loss: GrpoLoss,
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return which tokens [B, T] of a minibatch its surrogate chooses (losses/surrogates.py covariance_tokens).

    `logp` and `old_logp` hold an array [rows, width] for each micro-batch. The choice does not depend on how they are
    cut: tokens are taken in the order of the rollouts.
    """
    shape = terms.weight_bt.shape
    trained_bt = np.isin(np.arange(shape[0]), minibatch.index)[:, None] & (terms.weight_bt != 0)
    unpacked = []
    for packed_arrays in (logp, old_logp):
        out_bt = np.zeros(shape, np.float32)
        for m, array in zip(minibatch.packed, fetch(list(packed_arrays))):
            m.back(array, out_bt)
        unpacked.append(out_bt[trained_bt])
    chosen_bt = np.zeros(shape, bool)
    chosen_bt[trained_bt] = covariance_tokens(*unpacked, terms.advantage_bt[trained_bt], loss, rng=rng)
    return chosen_bt
