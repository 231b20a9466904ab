"""The legend of axis letters, and the structs that travel between modules.

Axes, one letter each, used in names (`wq_dnh`), einsums and comments of the whole project:

    B batch of sequences      T time (tokens)        D model width      N query heads
    P prompts                 S cache length         F mlp width        K key/value heads
    G samples per prompt      V vocabulary           H head width       R = N // K
    L layers                  J decode slots         X pages of the cache

A file that needs another letter, or another meaning of one, says so in its header.

Everything per token is aligned with the token itself: `logp[b, t]` is log p(tokens[b, t] | tokens[b, :t]), and
`weight[b, t]` is its share of the loss. A row of Rollouts is one prompt, its response and padding, in this order. A
Batch packs several of these into a row (`segment`), and the positions of each begin at 0.
"""

from typing import Any, NamedTuple

import jax
from flax import struct


class Rollouts(NamedTuple):
    """What the sampler returns, in request order, as host arrays (numpy)."""

    tokens: Any  # [B, T] int32: prompt, response, padding
    prompt_len: Any  # [B] int32
    length: Any  # [B] int32: prompt + response, the final EOS included
    logp: Any  # [B, T] float32, of the token under the untruncated tempered distribution; 0 where not sampled
    entropy: Any  # [B, T] float32, nats, of that distribution; 0 where not sampled
    sampled: Any  # [B, T] bool: False on the prompt, on padding and on forced tokens; True on a sampled EOS
    done: Any  # [B] bool: False when the budget ended the response


@struct.dataclass
class Batch:
    """One (micro-)batch for a policy-gradient step; tokens of weight 0 are not trained."""

    tokens: jax.Array  # [B, T] int32
    position: jax.Array  # [B, T] int32: from 0 in every packed sequence
    segment: jax.Array  # [B, T] int32: 1, 2, … within a row; 0 is padding
    weight: jax.Array  # [B, T] float32: loss mask / global denominator, so that a loss is Σ weight·term
    advantage: jax.Array  # [B, T] float32
    old_logp: jax.Array  # [B, T] float32: the policy at the start of the update
    ref_logp: jax.Array  # [B, T] float32: the KL reference (the stage's start)
    rollout_logp: jax.Array  # [B, T] float32: the sampler's
    chosen: jax.Array | None = None  # [B, T] bool: of Clip-Cov and KL-Cov alone (losses/surrogates.py)


@struct.dataclass
class TrainState:
    """Everything that a step changes. It holds nothing random: keys are fold_in(seed, stage, step, index)."""

    step: jax.Array  # [] int32: optimiser updates done in this stage
    params: Any  # what is trained of them (models/lora.py)
    opt_state: Any
