"""Grouped-query attention, softmax(q·k/√H + mask)·v, in plain XLA: the reference for every faster kernel."""

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite: a row with nothing to attend to gives a mean, not NaN


def causal_mask(segment_bt: jax.Array | None, length: int) -> jax.Array:
    """[1 or B, T, T] bool, query x key: key not later than query, and of the same packed segment."""
    t = jnp.arange(length)
    mask = (t[:, None] >= t[None, :])[None]
    if segment_bt is None:
        return mask
    return mask & (segment_bt[:, :, None] == segment_bt[:, None, :])


def cache_mask(position_bt: jax.Array, size: int) -> jax.Array:
    """[B, T, S] bool: cache position s is visible from query position p when s <= p."""
    return jnp.arange(size)[None, None, :] <= position_bt[:, :, None]


def attend(q_btnh: jax.Array, k_bksh: jax.Array, v_bksh: jax.Array, mask_bts: jax.Array) -> jax.Array:
    """[B, T, N, H] attention output; scores and softmax in float32, R = N // K query heads share a key head."""
    b, t, n, h = q_btnh.shape
    k = k_bksh.shape[1]
    # R and T folded into one axis: both products are plain batched matmuls, and no operand is transposed to decode.
    q = jnp.moveaxis(q_btnh.reshape(b, t, k, n // k, h), 1, 3).reshape(b, k, -1, h) * h**-0.5
    scores = jnp.einsum("bkxh,bksh->bkxs", q, k_bksh, preferred_element_type=jnp.float32)
    scores = jnp.where(mask_bts[:, None, None], scores.reshape(b, k, n // k, t, -1), MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_bksh.dtype).reshape(b, k, n // k * t, -1)
    out = jnp.einsum("bkxs,bksh->bkxh", weights, v_bksh).reshape(b, k, n // k, t, h)
    return jnp.moveaxis(out, 3, 1).reshape(b, t, n, h)
