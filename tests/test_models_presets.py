"""Presets have the published shapes: parameters as the hub counts them, FLOPs as the compiled program has them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from e3jax.models.attention import TILE
from e3jax.models.presets import flops_per_token, num_params, preset, presets
from e3jax.models.qwen3 import Qwen3, init_params, unembedding

# hub: parameters of the safetensors files (tied embeddings once); model cards: "Number of Paramaters (Non-Embedding)"
PUBLISHED = {
    "qwen3-0.6b": (596_049_920, "0.44B"),
    "qwen3-1.7b": (1_720_574_976, "1.4B"),
    "qwen3-4b": (4_022_468_096, "3.6B"),
    "qwen3-8b": (8_190_735_360, "6.95B"),
    "qwen3-14b": (14_768_307_200, "13.2B"),
    "qwen3-32b": (32_762_123_264, "31.2B"),
    "qwen2.5-1.5b": (1_543_714_304, "1.31B"),
    "qwen2.5-7b": (7_615_616_512, "6.53B"),
    "qwen2.5-math-1.5b": (1_543_714_304, "1.31B"),
    "qwen2.5-math-7b": (7_615_616_512, "6.53B"),
    "qwen2.5-math-1.5b-long": (1_543_714_304, "1.31B"),
    "qwen2.5-math-7b-long": (7_615_616_512, "6.53B"),
    "deepseek-r1-distill-qwen-1.5b": (1_777_088_000, "1.31B"),
    "deepseek-r1-distill-qwen-7b": (7_615_616_512, "6.53B"),
    "llama-3.2-1b": (1_235_814_400, "0.97B"),
    "llama-3.2-3b": (3_212_749_824, "2.82B"),
    "smollm2-135m": (134_515_008, "0.106B"),  # their cards name no number without embeddings: 49,152 rows less
    "smollm2-360m": (361_821_120, "0.315B"),
    "smollm2-1.7b": (1_711_376_384, "1.61B"),
}


def test_every_preset_has_a_published_count():
    assert set(PUBLISHED) == set(presets()) - {"tiny", "tiny-wide", "small"}  # three shapes of our own


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name):
    """A missing norm, bias or head would show in the formula, or in the tree that is really made."""
    c, (published, without_embeddings) = preset(name), PUBLISHED[name]
    assert num_params(c) == published
    abstract = jax.eval_shape(
        lambda: init_params(Qwen3(c, dtype=jnp.float32, remat="none", kernel="xla"), jax.random.key(0))
    )
    assert sum(x.size for x in jax.tree.leaves(abstract)) == published
    billions = (published - c.vocab_size * c.width * (1 if c.tied else 2)) / 1e9
    digits = len(without_embeddings.split(".")[1]) - 1
    assert abs(billions - float(without_embeddings[:-1])) <= 0.51 * 10**-digits


def dot_flops(jaxpr) -> int:
    """Return 2 · multiply-adds of every matmul of a program, those of a scan times its length."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            inner = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            total += 2 * inner * math.prod(eqn.outvars[0].aval.shape)
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += times * dot_flops(inner)
    return total


@pytest.mark.parametrize("name", ["qwen3-1.7b", "qwen2.5-7b", "llama-3.2-1b"])
def test_flops_are_those_of_the_program(name):
    """Counted in the traced forward pass, which computes all T x T scores of one tile: context = T."""
    c, t = preset(name), TILE
    model = Qwen3(c, dtype=jnp.bfloat16, remat="none", kernel="xla")
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))

    def forward(params, token):
        hidden, _ = model.apply({"params": params}, token, jnp.broadcast_to(jnp.arange(t), token.shape))
        return hidden @ unembedding(params).T

    counted = dot_flops(jax.make_jaxpr(forward)(params, jax.ShapeDtypeStruct((2, t), jnp.int32)).jaxpr)
    assert counted == 2 * t * flops_per_token(c, context=t)


def test_impossible_shapes_say_which_field():
    with pytest.raises(ValueError, match=r"heads=3 is not a multiple of kv_heads=2"):
        dataclasses.replace(preset("tiny"), heads=3, kv_heads=2)
    with pytest.raises(ValueError, match=r"head_width=31 is odd"):
        dataclasses.replace(preset("tiny"), head_width=31)
    with pytest.raises(ValueError, match=r"qwen3-0.6b"):
        preset("qwen4")
