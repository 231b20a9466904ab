"""Models of Hugging Face directories: equal to transformers, bit-exact both ways, and clear when a file is wrong."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_hub import (
    CASES,
    GOLDEN,
    POSITIONS,
    TOKENS,
    like_of,
    tiny_params,
    transformers_logits,
    transformers_model,
    write_tiny,
)

from e3jax.checkpoint.hf import inventory, load_hf, save_hf, stored_dtypes
from e3jax.errors import UserError
from e3jax.models.qwen3 import unembedding
from e3jax.sampler.plan import Sampling
from e3jax.sampler.slots import Requests, sample
from e3jax.sharding import assert_sharded, make_mesh

PARITY = "parity needs pip install -e '.[parity]'"


def logits(model, params, tokens, positions, segments=None):
    hidden, _ = jax.jit(model.apply)(
        {"params": params}, jnp.asarray(tokens), jnp.asarray(positions), segment_bt=segments
    )
    return np.asarray(hidden @ unembedding(params).T)


@pytest.mark.parametrize("name", CASES)
def test_golden_logits(name, tmp_path):
    """Logits equal transformers' committed ones (tests/tiny_hub.py), positions to 32,767, without torch too."""
    model, like = like_of(write_tiny(tmp_path, name))
    got = logits(model, load_hf(tmp_path, like), TOKENS, POSITIONS)
    np.testing.assert_allclose(got, np.load(GOLDEN)[name], atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_both_ways_with_transformers(name, tmp_path):
    """Logits and 64 greedy tokens agree, saved by transformers and loaded here or exported here and loaded there."""
    pytest.importorskip("torch", reason=PARITY)
    transformers = pytest.importorskip("transformers", reason=PARITY)
    reference = transformers_model(write_tiny(tmp_path / "made", name))
    reference.save_pretrained(tmp_path / "theirs")
    model, like = like_of(tmp_path / "theirs")
    params = load_hf(tmp_path / "theirs", like)
    want = transformers_logits(reference, TOKENS, POSITIONS)
    np.testing.assert_allclose(logits(model, params, TOKENS, POSITIONS), want, atol=1e-4)
    np.testing.assert_allclose(np.load(GOLDEN)[name], want, atol=1e-6)  # the golden file is what it says

    ours = tmp_path / "ours"
    ours.mkdir()
    shutil.copy(tmp_path / "made/config.json", ours)
    save_hf(params, ours)
    exported = transformers.AutoModelForCausalLM.from_pretrained(ours, attn_implementation="eager").eval()
    np.testing.assert_array_equal(transformers_logits(exported, TOKENS, POSITIONS), want)
    import torch

    prompt = TOKENS[:1, :5]
    greedy = exported.generate(
        torch.tensor(prompt), do_sample=False, max_new_tokens=64, eos_token_id=None, pad_token_id=0
    )
    drawn = sample(
        model,
        params,
        Requests(prompt.tolist(), ids=[0], samples=1, budget=64),
        Sampling(temperature=0.0, slots=1, prefill_rows=1),
        key=jax.random.key(0),
        stop=(-1,),
        pad=0,
    )
    np.testing.assert_array_equal(drawn.tokens[0], greedy[0].numpy())


@pytest.mark.parametrize("name", ["qwen3-tied", "llama-3.2"])
def test_left_padded_and_packed_equal_transformers(name, tmp_path):
    """Left padding is a segment of its own; packed neighbours give what transformers gives each alone."""
    pytest.importorskip("torch", reason=PARITY)
    pytest.importorskip("transformers", reason=PARITY)
    reference = transformers_model(write_tiny(tmp_path, name))
    model, like = like_of(tmp_path)
    params = load_hf(tmp_path, like)
    real = np.ones_like(TOKENS)
    real[1, :6] = 0
    positions = np.maximum(real.cumsum(1) - 1, 0)
    want = transformers_logits(reference, TOKENS, positions, real)
    got = logits(model, params, TOKENS, positions, jnp.asarray(real))
    np.testing.assert_allclose(got[real == 1], want[real == 1], atol=1e-4)

    segments = np.repeat([[1, 2, 3]], [5, 9, 2], axis=1)
    positions = np.concatenate([np.arange(n) for n in (5, 9, 2)])[None]
    got = logits(model, params, TOKENS[:1], positions, jnp.asarray(segments))
    for s in (1, 2, 3):
        part = segments[0] == s
        alone = transformers_logits(reference, TOKENS[:1, part], positions[:, part])
        np.testing.assert_allclose(got[:, part], alone, atol=1e-4)


@pytest.mark.parametrize("most_bytes", [5 << 30, 40_000])
def test_bfloat16_round_trip_keeps_every_bit(most_bytes, tmp_path):
    """Every bfloat16 pattern survives, -0 and the smallest subnormal too, in a single file and in shards."""
    write_tiny(tmp_path / "a", "qwen2.5", dtype="bfloat16", most_bytes=most_bytes)
    assert ((tmp_path / "a/model.safetensors.index.json").exists()) == (most_bytes == 40_000)
    _, like = like_of(tmp_path / "a")
    params = load_hf(tmp_path / "a", stored_dtypes(tmp_path / "a", like))
    bits = np.resize(np.arange(1 << 16, dtype=np.uint16), params["embed_vd"].shape).view(ml_dtypes.bfloat16)
    params["embed_vd"] = jnp.asarray(bits)
    (tmp_path / "b").mkdir()
    save_hf(params, tmp_path / "b", most_bytes=most_bytes)
    again = load_hf(tmp_path / "b", params)

    def same_bits(x, y):
        np.testing.assert_array_equal(np.asarray(x).view(np.uint16), np.asarray(y).view(np.uint16))

    jax.tree.map(same_bits, params, again)
    sizes = [p.stat().st_size for p in (tmp_path / "b").glob("*.safetensors")]
    assert max(sizes) < most_bytes + 4096
    if most_bytes == 40_000:
        index = json.loads((tmp_path / "b/model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))


def test_float32_training_parameters_from_bfloat16_files(tmp_path):
    """Training parameters are float32 and hold exactly what the files hold."""
    _, like = like_of(write_tiny(tmp_path, "qwen3-tied", dtype="bfloat16"))
    params = load_hf(tmp_path, like)
    want = tiny_params(tmp_path, "bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(np.float32)), params, want)


@pytest.mark.parametrize(("fsdp", "tensor"), [(8, 1), (2, 2), (1, 2)])
def test_every_device_gets_its_part(fsdp, tensor, tmp_path):
    """Reading slice by slice into the sharded layout gives the values of one device, with nothing replicated."""
    _, one = like_of(write_tiny(tmp_path, "qwen2.5"))
    mesh = make_mesh(data=8 // (fsdp * tensor), fsdp=fsdp, tensor=tensor)
    _, like = like_of(tmp_path, mesh=mesh)
    params = load_hf(tmp_path, like)
    assert_sharded(params, limit=0.05)  # a tiny model's norms and biases weigh more
    assert not params["layers"]["wq_dnh"].sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, params, load_hf(tmp_path, one))


@pytest.mark.parametrize("config_tied", [True, False])
def test_lm_head_present_or_absent(config_tied, tmp_path):
    """A tied model's files may repeat the embedding (Qwen3-0.6B on the hub) or not (4B): both load."""
    name = "qwen3-tied" if config_tied else "qwen3-untied-one-kv-head"
    _, like = like_of(write_tiny(tmp_path, name))
    plain = load_hf(tmp_path, like)
    held = load_file(tmp_path / "model.safetensors")
    if config_tied:
        save_file(held | {"lm_head.weight": held["model.embed_tokens.weight"]}, tmp_path / "model.safetensors")
        jax.tree.map(np.testing.assert_array_equal, plain, load_hf(tmp_path, like))
        save_file(held | {"lm_head.weight": held["model.embed_tokens.weight"] + 1}, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=r"lm_head.weight differs from the embedding"):
            load_hf(tmp_path, like)
    else:
        del held["lm_head.weight"]
        save_file(held, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=r"missing     lm_head.weight \(120, 48\)"):
            load_hf(tmp_path, like)


def test_one_error_names_every_wrong_tensor(tmp_path):
    """Missing, extra, misshapen and quantised tensors are named at once, with shapes, not one per run."""
    _, like = like_of(write_tiny(tmp_path, "qwen3-tied"))
    held = load_file(tmp_path / "model.safetensors")
    del held["model.layers.1.mlp.up_proj.weight"]
    held["model.layers.0.self_attn.q_proj.bias"] = np.zeros(64, np.float32)
    held["model.norm.weight"] = np.zeros(47, np.float32)
    held["model.layers.0.self_attn.k_norm.weight"] = np.zeros(16, np.int8)
    save_file(held, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as error:
        load_hf(tmp_path, like)
    said = str(error.value)
    assert "4 tensors" in said
    assert "missing     model.layers.1.mlp.up_proj.weight (80, 48)" in said
    assert "unexpected  model.layers.0.self_attn.q_proj.bias (64,)" in said
    assert "misshapen   model.norm.weight: expected (48,), found (47,)" in said
    assert "unreadable  model.layers.0.self_attn.k_norm.weight: I8" in said


def test_damaged_directories(tmp_path):
    """A truncated or absent shard, a broken index, pickle only, or nothing at all: each is one sentence."""
    write_tiny(tmp_path / "s", "qwen3-tied", most_bytes=40_000)
    shards = sorted((tmp_path / "s").glob("*.safetensors"))
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:-100])
    with pytest.raises(UserError, match=rf"{shards[1].name} is truncated or damaged"):
        inventory(tmp_path / "s")
    shards[1].unlink()
    with pytest.raises(UserError, match=rf"lacks {shards[1].name}"):
        inventory(tmp_path / "s")
    (tmp_path / "s/model.safetensors.index.json").write_text('{"weight_map": [')
    with pytest.raises(UserError, match=r"index.json is damaged"):
        inventory(tmp_path / "s")
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle/pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"pytorch_model.bin may hold code"):
        inventory(tmp_path / "pickle")
