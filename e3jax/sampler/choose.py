"""From logits and one uniform number per row to a token: temperature, top-k, top-p, inverse CDF.

There is one uniform per (row, position) and no other randomness, so a sample depends on its own key only, never on the
rows beside it. Log-probability and entropy are those of the *untruncated* tempered distribution, which is what the
trainer computes; top-k and top-p change only what may be drawn. On request the log-probability is that of the truncated
distribution instead, from which the token was in fact drawn.

Axes of this file beside those of types.py: c counts blocks of the vocabulary, b is an entry within a block, n an entry
of either.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 512  # entries of the vocabulary that are summed together


class Choice(NamedTuple):
    """Which tokens may be drawn, and how likely each is: the keyword arguments of `choose`."""

    temperature: float
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    renormalised: bool = False  # the log-prob is that of the truncated distribution


def truncate(logit_jv: jax.Array, *, top_k: int, top_p: float) -> jax.Array:
    """Set to -inf all but the `top_k` largest (0: off), then all but the nucleus of mass `top_p` (1: off).

    Nucleus (Holtzman et al. 2020): the smallest set of largest probabilities whose sum reaches top_p; the
    token that crosses the threshold stays, so at least one token does. Of equal logits the lower token comes first,
    as in argmax. So exactly `top_k` tokens stay, and top_k=1 or a tiny top_p draws the same token as temperature 0.
    """
    if top_k:
        top_k = min(top_k, logit_jv.shape[-1])
        logit_jv = keep_first(logit_jv, jax.lax.top_k(logit_jv, top_k)[0][:, -1:], top_k)
    if top_p < 1:
        descending = -jnp.sort(-logit_jv, axis=-1)
        p = jax.nn.softmax(descending, axis=-1)
        inside = jnp.cumsum(p, axis=-1) - p < top_p  # the mass before the entry
        place = jax.lax.broadcasted_iota(jnp.int32, inside.shape, 1)
        last_j1 = jnp.max(jnp.where(inside, place, 0), axis=-1, keepdims=True)
        logit_jv = keep_first(logit_jv, jnp.take_along_axis(descending, last_j1, axis=-1), last_j1 + 1)
    return logit_jv


def keep_first(logit_jv: jax.Array, least_j1: jax.Array, count: jax.Array | int) -> jax.Array:
    """Set to -inf all but the first `count` in descending order, the last of which has the logit `least_j1`."""
    above_jv, equal_jv = logit_jv > least_j1, logit_jv == least_j1
    room_j1 = count - above_jv.sum(axis=-1, keepdims=True)
    kept_jv = above_jv | (equal_jv & (jnp.cumsum(equal_jv, axis=-1, dtype=jnp.int32) <= room_j1))
    return jnp.where(kept_jv, logit_jv, -jnp.inf)


def choose(
    logit_jv: jax.Array,
    uniform_j: jax.Array,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    renormalised: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draw a token [J] int32; return it, its log-prob [J] and the entropy [J] (nats) of softmax(logits / temperature).

    `renormalised` divides the probability by the mass of what top_k and top_p let through: the log-prob grows by
    −log mass, the entropy stays. temperature=0 takes the largest logit and reports the distribution at temperature 1.
    """
    z = logit_jv.astype(jnp.float32) / (temperature or 1.0)
    logp_jv = jax.nn.log_softmax(z, axis=-1)
    p_jv = jnp.exp(logp_jv)
    if temperature == 0:
        token_j = jnp.argmax(z, axis=-1)
    else:
        allowed_jv = p_jv
        if top_k or top_p < 1:
            allowed_jv = jnp.where(jnp.isfinite(truncate(z, top_k=top_k, top_p=top_p)), p_jv, 0.0)
        token_j = inverse_cdf(allowed_jv, uniform_j)
    token_j = token_j.astype(jnp.int32)
    logp_j = jnp.take_along_axis(logp_jv, token_j[:, None], axis=-1)[:, 0]
    if renormalised and temperature and (top_k or top_p < 1):
        logp_j -= jnp.log(allowed_jv.sum(axis=-1))
    entropy_j = -jnp.sum(jnp.where(p_jv > 0, p_jv * logp_jv, 0.0), axis=-1)
    return token_j, logp_j, entropy_j


def inverse_cdf(mass_jv: jax.Array, uniform_j: jax.Array) -> jax.Array:
    """Return the first entry [J] with mass whose cumulative mass exceeds uniform · total.

    Sums over blocks first, then inside one: a cumulative sum over a whole vocabulary costs more than its softmax. A
    float32 sum is not quite monotone, so only entries with mass are taken. Where rounding leaves none beyond the
    target, it is the last entry with mass.
    """
    j, v = mass_jv.shape
    width = min(BLOCK, v)
    mass_jcb = jnp.pad(mass_jv, ((0, 0), (0, -v % width))).reshape(j, -1, width)
    cdf_jc = jnp.cumsum(mass_jcb.sum(-1), axis=-1)
    target_j1 = (uniform_j * jnp.max(cdf_jc, axis=-1))[:, None]
    block_j = first_or_last(cdf_jc > target_j1, mass_jcb.max(-1) > 0)
    inside_jb = jnp.take_along_axis(mass_jcb, block_j[:, None, None], axis=1)[:, 0]
    before_j1 = jnp.take_along_axis(cdf_jc, block_j[:, None], axis=1) - inside_jb.sum(-1, keepdims=True)
    beyond_jb = before_j1 + jnp.cumsum(inside_jb, axis=-1) > target_j1
    # with NaN nothing has mass: any entry of the vocabulary will do, but not one of the padding
    return jnp.minimum(block_j * width + first_or_last(beyond_jb, inside_jb > 0), v - 1)


def first_or_last(beyond_jn: jax.Array, possible_jn: jax.Array) -> jax.Array:
    """Return the index [J] of the first entry that is beyond and possible, or else of the last possible one."""
    both = beyond_jn & possible_jn
    last_j = possible_jn.shape[1] - 1 - jnp.argmax(possible_jn[:, ::-1], axis=1)
    return jnp.where(jnp.any(both, axis=1), jnp.argmax(both, axis=1), last_j)
