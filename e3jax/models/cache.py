"""The key/value cache of a prefill: an argument and a result of the forward pass, never hidden state.

Decoding keeps its keys and values in pages (models/pages.py).

    cache = empty_cache(config, batch=8, size=128, dtype="float32")
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from e3jax.models.presets import ModelConfig
from e3jax.sharding import constrain


class KVCache(NamedTuple):
    """Keys and values of all layers at S positions. A reader masks the positions that are not written yet.

    Positions are next to the head width: a token's key is written in one place, and products read the cache as it lies.
    """

    k: jax.Array  # [L, B, K, S, H], after QK-norm and RoPE
    v: jax.Array  # [L, B, K, S, H]
    k_scale: jax.Array | None = None  # [L, B, K, S] float32 where k is int8: key = k · scale
    v_scale: jax.Array | None = None


def empty_cache(config: ModelConfig, batch: int, size: int, dtype) -> KVCache:
    """Allocate zeros for `batch` rows of `size` positions; inside jit on a mesh, they are laid out over it."""
    shape = (config.layers, batch, config.kv_heads, size, config.head_width)
    k, v = (constrain(jnp.zeros(shape, dtype), "LBKSH") for _ in range(2))
    if k.dtype != jnp.int8:
        return KVCache(k, v)
    return KVCache(k, v, *(constrain(jnp.zeros(shape[:-1], jnp.float32), "LBKS") for _ in range(2)))


def quantize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Round x [..., H] to int8 with a scale [...]: x ≈ int8 · scale, the largest entry of each vector is 127 steps."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    return jnp.round(x / jnp.maximum(scale, 1e-30)[..., None]).astype(jnp.int8), scale


def write(cache: KVCache, layer, row_bt: jax.Array, position_bt: jax.Array, k_btkh, v_btkh) -> KVCache:
    """Return the cache with the tokens' keys and values at their rows and positions; drop rows outside of it."""
    index = (layer, row_bt[:, :, None], jnp.arange(k_btkh.shape[2]), position_bt[:, :, None])
    parts = (k_btkh, v_btkh)
    if cache.k_scale is not None:
        (k, k_scale), (v, v_scale) = quantize(k_btkh), quantize(v_btkh)
        parts = (k, v, k_scale, v_scale)
    return KVCache(*(old.at[index].set(part.astype(old.dtype), mode="drop") for old, part in zip(cache, parts)))


def read(cache: KVCache, layer, window: int) -> KVCache:
    """Return a layer's first `window` positions: [B, K, S, H], and scales [B, K, S] or None."""
    return KVCache(*(None if part is None else part[layer, :, :, :window] for part in cache))
