"""The model: one forward for training, prefill and decode; equal to transformers' Qwen3."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3jax.models.attention import cache_mask, causal_mask
from e3jax.models.cache import clone_rows, empty_cache
from e3jax.models.presets import num_params, preset
from e3jax.models.qwen3 import Qwen3, init_params, unembedding


def positions(b, t):
    return jnp.broadcast_to(jnp.arange(t), (b, t))


def test_masks_written_out():
    """Packed neighbours must not see each other, a query must not see later keys or unwritten cache."""
    segments = jnp.array([[1, 1, 2]])
    assert causal_mask(segments, 3)[0].astype(int).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert causal_mask(None, 2)[0].astype(int).tolist() == [[1, 0], [1, 1]]
    assert cache_mask(jnp.array([[2]]), 4)[0].astype(int).tolist() == [[1, 1, 1, 0]]


def test_prefill_and_decode_equal_one_forward(tiny):
    """Ragged rows, chunk by chunk: a wrong position or mask shows at the first step after the prompt."""
    model, params = tiny
    token = jax.random.randint(jax.random.key(1), (3, 20), 0, 210)
    full, _ = model.apply({"params": params}, token, positions(3, 20))
    cache = empty_cache(model.config, 3, 32, jnp.float32)
    _, cache = model.apply({"params": params}, token[:, :9], positions(3, 9), cache=cache, window=16)
    start = jnp.array([4, 9, 6])  # rows with shorter prompts rewrite what padding left in the cache
    decode = jax.jit(lambda token, at, cache: model.apply({"params": params}, token, at, cache=cache, window=32))
    for i in range(11):
        at = (start + i)[:, None]
        one, cache = decode(jnp.take_along_axis(token, at, 1), at, cache)
        want = jnp.take_along_axis(full, at[:, :, None], 1)
        np.testing.assert_allclose(one, want, atol=2e-5)


def test_packed_equals_alone(tiny):
    """Two examples in one row give what each gives alone; positions restart and segments keep them apart."""
    model, params = tiny
    a, b = jnp.array([[5, 6, 7]]), jnp.array([[8, 9]])
    packed, _ = model.apply(
        {"params": params},
        jnp.concatenate([a, b], 1),
        jnp.array([[0, 1, 2, 0, 1]]),
        segment_bt=jnp.array([[1, 1, 1, 2, 2]]),
    )
    alone_a, _ = model.apply({"params": params}, a, positions(1, 3))
    alone_b, _ = model.apply({"params": params}, b, positions(1, 2))
    np.testing.assert_allclose(packed, jnp.concatenate([alone_a, alone_b], 1), atol=2e-5)


def test_remat_changes_no_gradient(tiny):
    """Recomputation is for memory only."""
    model, params = tiny
    token = jax.random.randint(jax.random.key(1), (2, 12), 0, 210)

    def grads(remat):
        m = Qwen3(model.config, dtype=jnp.float32, remat=remat)
        return jax.grad(lambda p: m.apply({"params": p}, token, positions(2, 12))[0].var())(params)

    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), grads("none"), grads("full"))


def test_embedding_gradient_sums_in_float32(tiny):
    """1,024 uses of one token: a bfloat16 sum of their gradients stalls near 256."""
    model = Qwen3(tiny[0].config, dtype=jnp.bfloat16, remat="none")
    token = jnp.full((1, 1024), 7)

    def loss(params):  # a plain sum: every token's gradient counts the same
        hidden, _ = model.apply({"params": params}, token, positions(1, 1024))
        return hidden.astype(jnp.float32).sum()

    many = jax.grad(loss)(tiny[1])["embed_vd"][7]
    one = jax.grad(lambda p: model.apply({"params": p}, token[:, :1], positions(1, 1))[0].astype(jnp.float32).sum())(
        tiny[1]
    )
    ratio = jnp.linalg.norm(many) / jnp.linalg.norm(one["embed_vd"][7])
    assert 950 < ratio < 1100, ratio  # equal tokens attend to equal values: each contributes the same


def test_clone_rows_copies_only_what_was_asked(tiny):
    """Slot 1 gets prompt 0's row, slot 0 keeps its own."""
    model, _ = tiny
    cache = jax.tree.map(lambda x: x + 7.0, empty_cache(model.config, 2, 8, jnp.float32))
    source = jax.tree.map(lambda x: x + 3.0, empty_cache(model.config, 1, 4, jnp.float32))
    k = clone_rows(cache, source, jnp.array([-1, 0])).k
    assert (k[:, 0] == 7).all() and (k[:, 1, :, :4] == 3).all() and (k[:, 1, :, 4:] == 7).all()


@pytest.mark.parametrize(("name", "published"), [("qwen3-0.6b", 596_049_920), ("qwen3-1.7b", 1_720_574_976)])
def test_parameter_counts(name, published):
    """Counts of the hub's checkpoints (tied embeddings once): a missing norm or bias shows here."""
    assert num_params(preset(name)) == published
    model = Qwen3(preset(name), dtype=jnp.float32, remat="none")
    abstract = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    assert sum(x.size for x in jax.tree.leaves(abstract)) == published


def test_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match=r"qwen3-0.6b"):
        preset("qwen4")


@pytest.mark.parametrize("tied", [True, False])
def test_equals_transformers(tied):
    """Logits of transformers' Qwen3 with the same random weights, 1e-4 in float32."""
    torch = pytest.importorskip("torch", reason="parity needs pip install -e '.[parity]'")
    transformers = pytest.importorskip("transformers", reason="parity needs pip install -e '.[parity]'")
    c = dataclasses.replace(preset("tiny"), heads=4, kv_heads=2, tied=tied, rope_theta=1e6)
    reference = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=c.vocab_size, hidden_size=c.width, intermediate_size=c.mlp_width, head_dim=c.head_width,
            num_hidden_layers=c.layers, num_attention_heads=c.heads, num_key_value_heads=c.kv_heads,
            rope_theta=c.rope_theta, rms_norm_eps=c.norm_epsilon, tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        )
    ).eval()  # fmt: skip
    for name, weight in reference.named_parameters():
        if "norm" in name:  # ones on both sides would hide a scale that is swapped or ignored
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    weights = {k: jnp.asarray(v.detach().numpy()) for k, v in reference.state_dict().items()}

    def stack(name, shape=None):
        found = [weights[f"model.layers.{i}.{name}.weight"] for i in range(c.layers)]
        found = [w.T.reshape(shape) if shape else w for w in found]
        return jnp.stack(found)

    d, n, k, h = c.width, c.heads, c.kv_heads, c.head_width
    params = {
        "embed_vd": weights["model.embed_tokens.weight"],
        "final_norm_d": weights["model.norm.weight"],
        "layers": {
            "attn_norm_d": stack("input_layernorm"),
            "mlp_norm_d": stack("post_attention_layernorm"),
            "q_norm_h": stack("self_attn.q_norm"),
            "k_norm_h": stack("self_attn.k_norm"),
            "wq_dnh": stack("self_attn.q_proj", (d, n, h)),
            "wk_dkh": stack("self_attn.k_proj", (d, k, h)),
            "wv_dkh": stack("self_attn.v_proj", (d, k, h)),
            "wo_nhd": stack("self_attn.o_proj", (n, h, d)),
            "w_gate_df": stack("mlp.gate_proj", (d, c.mlp_width)),
            "w_up_df": stack("mlp.up_proj", (d, c.mlp_width)),
            "w_down_fd": stack("mlp.down_proj", (c.mlp_width, d)),
        },
    }
    if not tied:
        params["unembed_vd"] = weights["lm_head.weight"]
    model = Qwen3(c, dtype=jnp.float32, remat="none")
    token = np.random.default_rng(0).integers(0, c.vocab_size, (2, 50))
    hidden, _ = model.apply({"params": params}, jnp.asarray(token), positions(2, 50))
    with torch.no_grad():
        want = reference(torch.tensor(token)).logits.numpy()
    np.testing.assert_allclose(hidden @ unembedding(params).T, want, atol=1e-4)
