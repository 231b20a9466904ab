"""Qwen3 as one pure function: the same forward serves training, prefill and decoding.

Block (Qwen3 technical report §2; transformers `modeling_qwen3.py`):
    x += Wo · attend(rope(norm(Wq·n)), rope(norm(Wk·n)), Wv·n)      n = RMSNorm(x), QK-norm per head, no biases
    x += Wdown · (silu(Wgate·m) * Wup·m)                            m = RMSNorm(x)
Qwen2.5 has biases on q, k, v and no QK-norm (`modeling_qwen2.py`), Llama neither (`modeling_llama.py`): switches of
ModelConfig.

On a GPU sampling has the products of one input joined (`join_products`): fewer kernels.

Parameters and norms are float32; matmuls run in `dtype` (bfloat16 on accelerators, float32 on CPU).

    model = Qwen3(preset("tiny"), dtype=jnp.float32, remat="none", kernel="xla")
    params = init_params(model, jax.random.key(0))
    hidden, _ = model.apply({"params": params}, tokens_bt, positions_bt)             # training: causal over T
    hidden, cache = model.apply({"params": params}, tokens_bt, positions_bt, cache=cache, window=64)

With adapters among the parameters (models/lora.py) a matrix's product is x·W + (α / r) · (x·A)·B.
"""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from e3jax.models.attention import SAVED, attend, cache_mask, self_attention
from e3jax.models.cache import read, write
from e3jax.models.lora import Lora, beside, fresh_adapters, pair
from e3jax.models.pages import Pages, attend_pages
from e3jax.models.presets import ModelConfig
from e3jax.models.rope import rope, rope_angles
from e3jax.sharding import constrain, constrain_lookup, param_axes, param_shardings


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """Return x / √(mean x² + ε) · scale over the last axis (`scale` has the last axes), computed in float32."""
    x32 = x.astype(jnp.float32)
    scale = scale.reshape((1,) * (x.ndim - scale.ndim) + scale.shape)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + epsilon) * scale).astype(x.dtype)


def project(x: jax.Array, w: jax.Array, axes_in: int = 1) -> jax.Array:
    """Return x [B, T, *in] · w [*in, *out] = [B, T, *out], as one 2-D matmul over flattened tokens.

    The gradient of a 3-D dot makes XLA's CPU backend transpose whole activations, 3 times slower for the tiny model.
    """
    out = w.shape[axes_in:]
    flat = x.reshape(x.shape[0] * x.shape[1], -1) @ w.reshape(-1, math.prod(out))
    return flat.reshape(*x.shape[:2], *out)


def heads_apart(c: ModelConfig, y, linear, scale, bias):
    """Return q [B, T, N, H], k and v [B, T, K, H], before RoPE, each by a product of its own."""
    q = linear(y, "wq_dnh", c.width, c.heads, c.head_width)
    k = linear(y, "wk_dkh", c.width, c.kv_heads, c.head_width)
    v = linear(y, "wv_dkh", c.width, c.kv_heads, c.head_width)
    if c.qkv_bias:
        q += bias("bq_nh", c.heads, c.head_width)
        k += bias("bk_kh", c.kv_heads, c.head_width)
        v += bias("bv_kh", c.kv_heads, c.head_width)
    if c.qk_norm:
        q = rms_norm(q, scale("q_norm_h", c.head_width), c.norm_epsilon)
        k = rms_norm(k, scale("k_norm_h", c.head_width), c.norm_epsilon)
    return q, k, v


def heads_together(c: ModelConfig, y, linear, scale, bias):
    """Return what `heads_apart` does, by one product with the matrix of `join_products` and one norm."""
    r, h = c.heads // c.kv_heads, c.head_width
    y = linear(y, "wqkv_dkgh", c.width, c.kv_heads, r + 2, h)
    if c.qkv_bias:
        q = bias("bq_nh", c.heads, h).reshape(1, 1, c.kv_heads, r, h)
        k, v = (bias(name, c.kv_heads, h)[:, :, :, None] for name in ("bk_kh", "bv_kh"))
        y += jnp.concatenate([q, k, v], axis=3)
    qk, v = y[:, :, :, : r + 1], y[:, :, :, r + 1]
    if c.qk_norm:
        q_scale, k_scale = (scale(name, h)[None] for name in ("q_norm_h", "k_norm_h"))
        qk = rms_norm(qk, jnp.concatenate([jnp.broadcast_to(q_scale, (r, h)), k_scale]), c.norm_epsilon)
    return qk[:, :, :, :r].reshape(*y.shape[:2], c.heads, h), qk[:, :, :, r], v


class Block(nn.Module):
    """One transformer layer; scanned, its parameters are stacked along a leading L axis."""

    config: ModelConfig
    dtype: jnp.dtype
    kernel: str
    lora: Lora | None

    @nn.compact
    def __call__(self, carry, position_bt, segment_bt, angles, window):
        c, (x, cache, layer) = self.config, carry

        def pinned(name, w):
            # Pinned after the cast: gathered in `dtype` where it is used, and its gradient summed straight into shards.
            return constrain(w.astype(self.dtype), name.rsplit("_", 1)[-1])

        def linear(x, name, *shape, axes_in=1):
            fan_in = tuple(range(axes_in))
            init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=fan_in, out_axis=-1)
            y = project(x, pinned(name, self.param(name, init, shape)), axes_in)
            if not self.has_variable("params", pair(name)[0]):
                return y
            a, b = (pinned(part, self.get_variable("params", part)) for part in pair(name))
            return y + project(project(x, a) * self.lora.scale, b).reshape(y.shape)

        def scale(name, size):
            return self.param(name, nn.initializers.ones, (size,))

        def bias(name, *shape):
            return self.param(name, nn.initializers.zeros, shape).astype(self.dtype)[None, None]

        y = rms_norm(x, scale("attn_norm_d", c.width), c.norm_epsilon)
        heads = heads_together if self.has_variable("params", "wqkv_dkgh") else heads_apart
        q, k, v = heads(c, y, linear, scale, bias)
        q, k = rope(q, angles), rope(k, angles)
        q, k, v = constrain(q, "BTNH"), constrain(k, "BTKH"), constrain(v, "BTKH")
        if cache is None:
            y = self_attention(q, k, v, segment_bt, kernel=self.kernel)
        elif isinstance(cache, Pages):
            kernel = "xla" if self.kernel == "xla" else ""
            y, cache = attend_pages(q[:, 0], k[:, 0], v[:, 0], cache, layer, position_bt[:, 0], kernel=kernel)
            y = y[:, None]
        else:
            row_bt = jnp.broadcast_to(jnp.arange(len(k))[:, None], position_bt.shape)
            cache = write(cache, layer, row_bt, position_bt, k, v)
            keys = read(cache, layer, window)
            y = attend(q, keys.k, keys.v, cache_mask(position_bt, window), keys.k_scale, keys.v_scale)
        x = constrain(x + linear(y, "wo_nhd", c.heads, c.head_width, c.width, axes_in=2), "BTD")

        y = rms_norm(x, scale("mlp_norm_d", c.width), c.norm_epsilon)
        if self.has_variable("params", "w_gate_up_dfe"):
            both = linear(y, "w_gate_up_dfe", c.width, c.mlp_width, 2)
            gate, up = both[..., 0], both[..., 1]
        else:
            gate = linear(y, "w_gate_df", c.width, c.mlp_width)
            up = linear(y, "w_up_df", c.width, c.mlp_width)
        y = constrain(nn.silu(gate) * up, "BTF")
        x = constrain(x + linear(y, "w_down_fd", c.mlp_width, c.width), "BTD")
        return (x, cache, layer + 1), None


def keep_attention(primitive, *args, **params) -> bool:
    """Return whether the backward pass keeps a value: attention's results, and cuDNN's row sums, which have no name."""
    named = jax.checkpoint_policies.save_only_these_names(SAVED)
    return primitive.name.startswith("dot_product_attention_fwd") or named(primitive, *args, **params)


class Qwen3(nn.Module):
    """Tokens to last hidden states. losses/tokens.py makes logits of these in chunks, sampler/ those of one token."""

    config: ModelConfig
    dtype: jnp.dtype
    # What a block keeps for its backward pass: "none" everything, "matmuls" the results of matmuls and attention,
    # "attention" those of attention, "full" nothing.
    remat: str
    # Attention without a cache: "auto" | "xla" | "splash" | "cudnn" (models/attention.py). In decoding all but "xla"
    # leave the choice to models/pages.py.
    kernel: str
    lora: Lora | None = None  # what α is of the adapters that are among the parameters

    @nn.compact
    def __call__(self, token_bt, position_bt, *, segment_bt=None, cache=None, window=None, angles=None):
        """Return the hidden states [B, T, D] after the final norm, and the cache.

        Without a cache, attention is causal inside the T tokens (and inside equal `segment_bt`, when packed).
        With a KVCache, keys and values are written at `position_bt`, and positions < `window` (static) are attended.
        With Pages there is one token a row, which attends to all of its row up to its position.
        `angles` are `angles_of` the positions, for a caller that has them already.
        Layers are a loop over stacked parameters; with those of `unstack` they run one after another, without remat.
        Parameters may be those of `join_products`.
        """
        c = self.config
        embed_vd = self.param("embed_vd", nn.initializers.normal(0.02), (c.vocab_size, c.width))
        if not c.tied:
            self.param("unembed_vd", nn.initializers.normal(0.02), (c.vocab_size, c.width))
        x = constrain_lookup(embed_vd[token_bt].astype(self.dtype))  # gather, then cast: the gradient sums in float32
        recompute = partial(nn.remat, Block, prevent_cse=False, static_argnums=(5,))
        policies, keep = jax.checkpoint_policies, keep_attention
        block = {
            "none": lambda: Block,
            "matmuls": lambda: recompute(
                policy=policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, keep)
            ),
            "attention": lambda: recompute(policy=keep),
            "full": recompute,
        }[self.remat]()
        angles = angles or angles_of(c, position_bt)
        if self.has_variable("params", "layers_0"):
            for i in range(c.layers):
                layer = Block(c, self.dtype, self.kernel, self.lora, name=f"layers_{i}")
                (x, cache, _), _ = layer((x, cache, i), position_bt, segment_bt, angles, window)
        else:
            layers = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast,) * 4,
                length=c.layers,
            )(c, self.dtype, self.kernel, self.lora, name="layers")
            (x, cache, _), _ = layers((x, cache, 0), position_bt, segment_bt, angles, window)
        scale_d = self.param("final_norm_d", nn.initializers.ones, (c.width,))
        return rms_norm(x, scale_d, c.norm_epsilon), cache


def angles_of(c: ModelConfig, position_bt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return RoPE's sin and cos of positions, [B, T, 1, H/2] each."""
    return rope_angles(position_bt, head_width=c.head_width, theta=c.rope_theta, scaling=c.rope_scaling)


def init_params(model: Qwen3, key: jax.Array):
    """Draw random float32 parameters (a plain dict); they are identical on every mesh."""
    token = jnp.zeros((1, 2), jnp.int32)
    return model.clone(kernel="xla").init(key, token, token)["params"]  # xla: one row does not divide over a mesh


def abstract_params(model: Qwen3, mesh: jax.sharding.Mesh, *, dtype="float32"):
    """Return shapes, dtypes (matrices `dtype`, norm scales float32) and shardings of parameters, computing nothing."""
    return placed(jax.eval_shape(lambda: cast_matrices(init_params(model, jax.random.key(0)), dtype)), mesh)


def abstract_policy(model: Qwen3, mesh: jax.sharding.Mesh):
    """Return shapes, dtypes and shardings of what a run trains: float32 parameters.

    With LoRA, frozen ones in `model.dtype` and float32 adapters beside them.
    """
    if model.lora is None:
        return abstract_params(model, mesh)
    base = abstract_params(model, mesh, dtype=model.dtype)
    return beside(base, abstract_adapters(base, model.lora, mesh))


def abstract_adapters(params, lora: Lora, mesh: jax.sharding.Mesh):
    """Return shapes, dtypes and shardings of the adapters of `params`."""
    return placed(jax.eval_shape(lambda: fresh_adapters(params, lora, jax.random.key(0))), mesh)


def in_dtype(like, dtype):
    """Return shapes of parameters with matrices in `dtype` and norm scales in float32, as training has them."""
    cast = jax.eval_shape(lambda tree: cast_matrices(jax.tree.map(lambda x: x.astype(jnp.float32), tree), dtype), like)
    return jax.tree.map(lambda x, y: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y.sharding), cast, like)


def placed(shapes, mesh: jax.sharding.Mesh):
    """Return shapes of parameters with their shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        param_shardings(shapes, mesh),
    )


def cast_matrices(params, dtype):
    """Return a copy with matrices in `dtype`, which every use casts them to anyway; norm scales stay float32."""

    def cast(path, x):
        return x.astype(dtype) if len(param_axes(path, x).removeprefix("l")) > 1 else x

    return jax.tree_util.tree_map_with_path(cast, params)


@jax.jit
def unstack(params):
    """Return a copy with arrays of its own for every layer, "layers_0", …: CPUs and GPUs copy what they slice."""
    stack = params["layers"]
    layers = {f"layers_{i}": jax.tree.map(lambda w, i=i: w[i], stack) for i in range(len(stack["attn_norm_d"]))}
    return {name: w for name, w in params.items() if name != "layers"} | layers


def join_products(params):
    """Return a copy in which q, k, v of a layer are one matrix, and gate and up are one: two products instead of five.

    wqkv_dkgh has, for each key head, its R query heads, its key and its value; w_gate_up_dfe a column of each in turn.
    So an axis that is split over devices is split as before.
    """
    parts = ("wq_dnh", "wk_dkh", "wv_dkh", "w_gate_df", "w_up_df")

    def joined(layer):
        q, k, v, gate, up = (layer[name] for name in parts)
        q = q.reshape(*k.shape[:-1], -1, k.shape[-1])
        wqkv = jnp.concatenate([q, k[..., None, :], v[..., None, :]], axis=-2)
        rest = {name: w for name, w in layer.items() if name not in parts}
        return rest | {"wqkv_dkgh": wqkv, "w_gate_up_dfe": jnp.stack([gate, up], axis=-1)}

    return {name: joined(w) if name.startswith("layers") else w for name, w in params.items()}


def unembedding(params) -> jax.Array:
    """Return the matrix [V, D] from hidden states to logits, which is the embedding when tied."""
    return params["unembed_vd"] if "unembed_vd" in params else params["embed_vd"]
