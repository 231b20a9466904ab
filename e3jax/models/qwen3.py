"""Qwen3 as one pure function: the same forward serves training, prefill and decoding.

Block (Qwen3 technical report §2; transformers `modeling_qwen3.py`):
    x += Wo · attend(rope(norm(Wq·n)), rope(norm(Wk·n)), Wv·n)      n = RMSNorm(x), QK-norm per head, no biases
    x += Wdown · (silu(Wgate·m) * Wup·m)                            m = RMSNorm(x)

Parameters and norms are float32; matmuls run in `dtype` (bfloat16 on accelerators, float32 on CPU).

    model = Qwen3(preset("tiny"), dtype=jnp.float32, remat="none")
    params = init_params(model, jax.random.key(0))
    hidden, _ = model.apply({"params": params}, tokens_bt, positions_bt)             # training: causal over T
    hidden, cache = model.apply({"params": params}, tokens_bt, positions_bt, cache=cache, window=64)
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from e3jax.models.attention import attend, cache_mask, causal_mask
from e3jax.models.cache import KVCache
from e3jax.models.presets import ModelConfig
from e3jax.sharding import constrain, param_axes


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """x / √(mean x² + ε) · scale over the last axis, in float32."""
    x32 = x.astype(jnp.float32)
    scale = scale.reshape((1,) * (x.ndim - 1) + (-1,))
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + epsilon) * scale).astype(x.dtype)


def project(x: jax.Array, w: jax.Array, axes_in: int = 1) -> jax.Array:
    """x [B, T, *in] · w [*in, *out] -> [B, T, *out], as one 2-D matmul over flattened tokens.

    The gradient of a 3-D dot makes XLA's CPU backend transpose whole activations: 3x slower for the tiny model.
    """
    out = w.shape[axes_in:]
    flat = x.reshape(x.shape[0] * x.shape[1], -1) @ w.reshape(-1, math.prod(out))
    return flat.reshape(*x.shape[:2], *out)


def rope_angles(position_bt: jax.Array, head_width: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """sin and cos of position · theta^(-2i/H), [B, T, 1, H/2] each; computed once for all layers."""
    half = head_width // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position_bt[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
    return jnp.sin(angle), jnp.cos(angle)


def rope(x_btnh: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate pair (i, i + H/2) by its angle (rotate-half layout of the hub's weights)."""
    sin, cos = angles
    a, b = jnp.split(x_btnh.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_btnh.dtype)


class Block(nn.Module):
    """One transformer layer; scanned, so that its parameters are stacked along a leading L axis."""

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, carry, position_bt, angles, mask, window):
        c, (x, cache, layer) = self.config, carry

        def weight(name, *shape, axis_in=0):
            init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=axis_in, out_axis=-1)
            return self.param(name, init, shape).astype(self.dtype)

        def scale(name, size):
            return self.param(name, nn.initializers.ones, (size,))

        y = rms_norm(x, scale("attn_norm_d", c.width), c.norm_epsilon)
        q = project(y, weight("wq_dnh", c.width, c.heads, c.head_width))
        k = project(y, weight("wk_dkh", c.width, c.kv_heads, c.head_width))
        v = project(y, weight("wv_dkh", c.width, c.kv_heads, c.head_width))
        q = rope(rms_norm(q, scale("q_norm_h", c.head_width), c.norm_epsilon), angles)
        k = rope(rms_norm(k, scale("k_norm_h", c.head_width), c.norm_epsilon), angles)
        q, k, v = constrain(q, "BTNH"), constrain(k, "BTKH"), constrain(v, "BTKH")
        if cache is None:
            k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # [B, K, T, H]
        else:  # write at the tokens' positions (out of range: dropped), read the first `window`
            at = (
                layer,
                jnp.arange(x.shape[0])[:, None, None],
                jnp.arange(c.kv_heads),
                position_bt[:, :, None],
            )
            cache = KVCache(
                k=cache.k.at[at].set(k.astype(cache.k.dtype), mode="drop"),
                v=cache.v.at[at].set(v.astype(cache.v.dtype), mode="drop"),
            )
            k, v = (part[layer, :, :, :window].astype(self.dtype) for part in cache)
        y = attend(q, k, v, mask)
        wo = weight("wo_nhd", c.heads, c.head_width, c.width, axis_in=(0, 1))
        x = constrain(x + project(y, wo, axes_in=2), "BTD")

        y = rms_norm(x, scale("mlp_norm_d", c.width), c.norm_epsilon)
        gate = project(y, weight("w_gate_df", c.width, c.mlp_width))
        up = project(y, weight("w_up_df", c.width, c.mlp_width))
        y = constrain(nn.silu(gate) * up, "BTF")
        x = constrain(x + project(y, weight("w_down_fd", c.mlp_width, c.width)), "BTD")
        return (x, cache, layer + 1), None


class Qwen3(nn.Module):
    """Tokens -> last hidden states. Logits are left to losses/tokens.py and sampler/, in chunks or one token."""

    config: ModelConfig
    dtype: jnp.dtype
    remat: str  # "none" | "full": recompute the block in the backward pass

    @nn.compact
    def __call__(self, token_bt, position_bt, *, segment_bt=None, cache=None, window=None):
        """-> hidden [B, T, D] after the final norm, cache.

        Without a cache: causal attention inside the T tokens (and inside equal `segment_bt`, when packed).
        With one: keys and values are written at `position_bt` and positions < `window` (static) are attended.
        """
        c = self.config
        embed_vd = self.param("embed_vd", nn.initializers.normal(0.02), (c.vocab_size, c.width))
        if not c.tied:
            self.param("unembed_vd", nn.initializers.normal(0.02), (c.vocab_size, c.width))
        x = constrain(embed_vd[token_bt].astype(self.dtype), "BTD")  # gather, then cast: the gradient sums in float32
        if cache is None:
            mask = causal_mask(segment_bt, token_bt.shape[1])
        else:
            mask = cache_mask(position_bt, window)
        block = {"none": Block, "full": nn.remat(Block, prevent_cse=False, static_argnums=(5,))}[self.remat]
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast,) * 4,
            length=c.layers,
        )(c, self.dtype, name="layers")
        angles = rope_angles(position_bt, c.head_width, c.rope_theta)
        (x, cache, _), _ = layers((x, cache, 0), position_bt, angles, mask, window)
        scale_d = self.param("final_norm_d", nn.initializers.ones, (c.width,))
        return rms_norm(x, scale_d, c.norm_epsilon), cache


def init_params(model: Qwen3, key: jax.Array):
    """Random float32 parameters (a plain dict); identical on every mesh."""
    token = jnp.zeros((1, 2), jnp.int32)
    return model.init(key, token, token)["params"]


def cast_matrices(params, dtype):
    """A copy whose matrices are in `dtype` (what every use casts them to); norm scales stay float32."""

    def cast(path, x):
        return x.astype(dtype) if len(param_axes(path, x).removeprefix("l")) > 1 else x

    return jax.tree_util.tree_map_with_path(cast, params)


def unembedding(params) -> jax.Array:
    """[V, D] matrix from hidden states to logits: the embedding when tied."""
    return params["unembed_vd"] if "unembed_vd" in params else params["embed_vd"]
