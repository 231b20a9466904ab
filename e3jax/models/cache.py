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

    Layer by layer: prompts are spread over the devices and any slot may want any of them, so each layer's are gathered
    whole, and one layer of them fits where all do not.
    """
    take_j = (source_row_j >= 0)[:, None, None, None]

    def clone(layer, old, new):
        prefix = new.shape[3]
        prompts = constrain(jax.lax.dynamic_index_in_dim(new, layer, keepdims=False), "PKSH")
        row = constrain(prompts[jnp.maximum(source_row_j, 0)], "JKSH")  # [J, K, Tp, H]
        kept = jax.lax.dynamic_index_in_dim(old, layer, keepdims=False)[:, :, :prefix]
        return jax.lax.dynamic_update_slice(old, jnp.where(take_j, row, kept)[None], (layer, 0, 0, 0, 0))

    def step(layer, cache):
        return KVCache(k=clone(layer, cache.k, source.k), v=clone(layer, cache.v, source.v))

    cache = jax.lax.fori_loop(0, cache.k.shape[0], step, cache)
    return KVCache(*(constrain(part, "LBKSH") for part in cache))
