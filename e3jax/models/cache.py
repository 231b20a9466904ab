"""The key/value cache: an argument and a result of the forward pass, never hidden state.

It is a tuple of pieces along the positions: a longer one is the same pieces and one more, so a cache that grows copies
nothing, and what no sequence has reached yet is not there. Pieces may be int8, with one scale per position and head.

    cache = (empty_piece(config, batch=8, size=128, dtype="float32"),)
    cache += (empty_piece(config, batch=8, size=128, dtype="float32"),)      # now 256 positions
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from e3jax.models.presets import ModelConfig
from e3jax.sharding import constrain


class KVCache(NamedTuple):
    """Keys and values of all layers at S positions. Who reads masks what is not written yet.

    Positions are next to the head width: a token's key is written in one place, and products read the cache as it lies.
    """

    k: jax.Array  # [L, B, K, S, H], after QK-norm and RoPE
    v: jax.Array  # [L, B, K, S, H]
    k_scale: jax.Array | None = None  # [L, B, K, S] float32 where k is int8: key = k · scale
    v_scale: jax.Array | None = None


Cache = tuple[KVCache, ...]  # positions 0 … of the first piece, then those of the next


def empty_piece(config: ModelConfig, batch: int, size: int, dtype) -> KVCache:
    """Zeros for `batch` rows of `size` positions; inside jit and a mesh, laid out by it."""
    shape = (config.layers, batch, config.kv_heads, size, config.head_width)
    k, v = (constrain(jnp.zeros(shape, dtype), "LBKSH") for _ in range(2))
    if k.dtype != jnp.int8:
        return KVCache(k, v)
    return KVCache(k, v, *(constrain(jnp.zeros(shape[:-1], jnp.float32), "LBKS") for _ in range(2)))


def length(cache: Cache) -> int:
    """Positions of all pieces."""
    return sum(piece.v.shape[3] for piece in cache)


def quantize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x [..., H] -> int8 and scale [...]: x ≈ int8 · scale, the largest entry of each vector exactly 127 steps."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    return jnp.round(x / jnp.maximum(scale, 1e-30)[..., None]).astype(jnp.int8), scale


def write(cache: Cache, layer, position_bt: jax.Array, k_btkh: jax.Array, v_btkh: jax.Array) -> Cache:
    """Put the tokens' keys and values at their positions; a position outside of the cache is dropped."""
    b, _, heads, _ = k_btkh.shape
    new, start = [], 0
    for piece in cache:
        size = piece.v.shape[3]
        at = position_bt - start
        at = jnp.where((at >= 0) & (at < size), at, size)[:, :, None]  # a negative index would count from the end
        index = (layer, jnp.arange(b)[:, None, None], jnp.arange(heads), at)
        parts = (k_btkh, v_btkh)
        if piece.k_scale is not None:
            (k, k_scale), (v, v_scale) = quantize(k_btkh), quantize(v_btkh)
            parts = (k, v, k_scale, v_scale)
        new.append(KVCache(*(
            old.at[index].set(part.astype(old.dtype), mode="drop") for old, part in zip(piece, parts)
        )))  # fmt: skip
        start += size
    return tuple(new)


def read(cache: Cache, layer, window: int) -> tuple[list, list]:
    """Keys and values of a layer's first `window` positions: lists of ([B, K, S, H], scale [B, K, S] or None)."""
    keys, values, left = [], [], window
    for piece in cache:
        size = min(left, piece.v.shape[3])
        if size <= 0:
            break
        k, v, k_scale, v_scale = (None if part is None else part[layer, :, :, :size] for part in piece)
        keys.append((k, k_scale))
        values.append((v, v_scale))
        left -= size
    return keys, values


def covering(cache: Cache, window: int) -> int:
    """How many pieces hold the first `window` positions."""
    total = 0
    for i, piece in enumerate(cache):
        total += piece.v.shape[3]
        if total >= window:
            return i + 1
    raise ValueError(f"a cache of {total} positions has no window of {window}")


def clone_rows(cache: KVCache, source: KVCache, source_row_j: jax.Array) -> KVCache:
    """Copy source row `source_row_j[j]` into row j's first positions; -1 leaves row j alone.

    One prefill serves the G samples of a prompt: they clone its row. `cache` has J rows of S positions, `source` P rows
    of Tp <= S, source_row_j is [J] int32.

    Layer by layer: prompts are spread over the devices and any slot may want any of them, so each layer's are gathered
    whole, and one layer of them fits where all do not.
    """

    def clone(layer, old, new):  # [L, J, K, S, …], [L, P, K, Tp, …]
        take_j = (source_row_j >= 0).reshape(-1, *(1,) * (old.ndim - 2))
        axes = "KSH"[: old.ndim - 2]
        prompts = constrain(jax.lax.dynamic_index_in_dim(new, layer, keepdims=False), "P" + axes)
        row = constrain(prompts[jnp.maximum(source_row_j, 0)], "J" + axes)  # [J, K, Tp, …]
        start = (layer,) + (0,) * (old.ndim - 1)
        kept = jax.lax.dynamic_slice(old, start, (1, *row.shape))[0]
        return jax.lax.dynamic_update_slice(old, jnp.where(take_j, row, kept)[None], start)

    def step(layer, cache):
        return jax.tree.map(lambda old, new: clone(layer, old, new), cache, source)

    cache = jax.lax.fori_loop(0, cache.k.shape[0], step, cache)
    return jax.tree.map(lambda part: constrain(part, "LBKSH"[: part.ndim]), cache)
