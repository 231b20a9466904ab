"""The key/value cache: an argument and a result of the forward pass, never hidden state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from e3jax.models.presets import ModelConfig
from e3jax.sharding import constrain


class KVCache(NamedTuple):
    """Keys and values of all layers. Row b holds positions 0..S-1; who reads masks what is not written yet.

    Positions are next to the head width, so a decode step's two batched matmuls read the cache as it lies.
    """

    k: jax.Array  # [L, B, K, S, H], after QK-norm and RoPE
    v: jax.Array  # [L, B, K, S, H]


def empty_cache(config: ModelConfig, batch: int, size: int, dtype) -> KVCache:
    """Zeros for `batch` rows of `size` positions; inside jit and a mesh, laid out by it."""
    shape = (config.layers, batch, config.kv_heads, size, config.head_width)
    return KVCache(*(constrain(jnp.zeros(shape, dtype), "LBKSH") for _ in range(2)))


def clone_rows(cache: KVCache, source: KVCache, source_row_j: jax.Array) -> KVCache:
    """Copy source row `source_row_j[j]` into row j's first positions; -1 leaves row j alone.

    One prefill serves the G samples of a prompt: they clone its row. Shapes: cache [L, J, K, S, H],
    source [L, P, K, Tp, H] with Tp <= S, source_row_j [J] int32.
    """
    take_j = (source_row_j >= 0)[None, :, None, None, None]

    def clone(old, new):
        prefix = new.shape[3]
        row = new[:, jnp.maximum(source_row_j, 0)]  # [L, J, K, Tp, H]
        return constrain(old.at[..., :prefix, :].set(jnp.where(take_j, row, old[..., :prefix, :])), "LBKSH")

    return KVCache(k=clone(cache.k, source.k), v=clone(cache.v, source.v))
