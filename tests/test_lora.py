"""LoRA: nothing at first, the merged matrix's gradients, the same on any mesh; a run, from its base to PEFT's files."""

import dataclasses
import importlib
import json
import shutil
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_hub import POSITIONS, TOKENS, like_of, tiny_params, transformers_logits, transformers_model, write_tiny

from configs.common import base_config
from e3jax.checkpoint.adapters import Kept, adapter_at, digest_of, keep_base, read_adapters, save_peft
from e3jax.checkpoint.hf import load_hf, save_hf
from e3jax.checkpoint.pretrained import load_params, load_pretrained, model_config
from e3jax.checkpoint.store import stored_params
from e3jax.errors import UserError
from e3jax.losses.sft import sft_loss, sft_weights
from e3jax.models.lora import (
    MATRICES,
    Lora,
    adapters,
    beside,
    fresh_adapters,
    merged,
    num_adapter_params,
    pair,
    trained,
    with_trained,
)
from e3jax.models.presets import preset
from e3jax.models.qwen3 import Qwen3, cast_matrices, init_params
from e3jax.sampler.layout import sampling_layout
from e3jax.sampler.plan import Sampling
from e3jax.sampler.slots import Requests, sample
from e3jax.sharding import assert_sharded, make_mesh, param_shardings
from e3jax.tools.convert import convert, export_adapter
from e3jax.tools.programs import Training, chip_bytes, supervised_programs
from e3jax.train.check import check
from e3jax.train.curriculum import main
from e3jax.train.logprobs import forward, score
from e3jax.train.settings import resolve
from e3jax.train.sft import sft_gradient
from e3jax.train.state import Optimizer, apply_gradients, make_optimizer, new_state

ALL = " ".join(MATRICES)
SHAPE = dataclasses.replace(preset("tiny"), heads=4, kv_heads=2)  # two devices of a tensor axis have a head each
GOLDEN = Path(__file__).parent / "golden/peft"


@cache
def masters():
    """Return float32 parameters, whose logits are spread."""
    params = jax.jit(lambda: init_params(Qwen3(SHAPE, jnp.float32, "none", "xla"), jax.random.key(0)))()
    return params | {"embed_vd": params["embed_vd"] * 8}


@cache
def adapted(*, zero=False, dtype="float32"):
    """Return (model, parameters) with adapters of every matrix, B random unless `zero`."""
    lora = Lora(rank=4, alpha=8.0, matrices=ALL)
    model = Qwen3(SHAPE, dtype=jnp.dtype(dtype), remat="full", kernel="xla", lora=lora)
    params = cast_matrices(masters(), model.dtype)
    low = jax.jit(lambda: fresh_adapters(params, lora, jax.random.key(1)))()
    return model, beside(params, low if zero else with_random_b(low))


@cache
def gradient():
    """Return the gradient and metrics of the adapters on one device."""
    return sft_gradient(*adapted(), *packed(), chunk=64)


def with_random_b(low):
    layers = {
        name: x if name.endswith("_ir") else 0.1 * jax.random.normal(jax.random.key(len(name)), x.shape)
        for name, x in low["layers"].items()
    }
    return {"layers": layers}


def packed(rows=8, width=12):
    """Return what a supervised gradient takes after the parameters."""
    token = jax.random.randint(jax.random.key(2), (rows, width), 0, 210)
    position = jnp.broadcast_to(jnp.arange(width), token.shape)
    weight = sft_weights(np.ones(token.shape, np.float32), aggregation="token_mean")
    return token, position, jnp.ones_like(token), weight


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_zero_b_is_the_base_bit_for_bit(dtype):
    """With B = 0 on matrices in `dtype`: the log-probs of the float32 masters, which every use casts to it."""
    model, params = adapted(zero=True, dtype=dtype)
    how = dict(temperature=1.0, chunk=64)
    want = score(model.clone(lora=None), masters(), *packed()[:3], **how)
    np.testing.assert_array_equal(score(model, params, *packed()[:3], **how), want)
    alone = merged(params, model.lora, dtype=jnp.dtype(dtype))
    jax.tree.map(np.testing.assert_array_equal, alone, cast_matrices(masters(), jnp.dtype(dtype)))


def test_gradients_equal_those_through_the_merged_matrix():
    """d/dA and d/dB of the loss of W + (α / r) A·B: to 2e-5 of the largest, in float32."""
    model, params = adapted()
    token, position, segment, weight = packed()

    @jax.jit
    def through_merged(part):
        whole = merged(with_trained(params, part), model.lora, dtype=jnp.float32)
        how = dict(temperature=1.0, chunk=64, position_bt=position, segment_bt=segment)
        return sft_loss(forward(model, whole, token, **how)[0], weight)

    want = jax.grad(through_merged)(trained(params))
    got, _ = gradient()
    assert set(got["layers"]) == {name for matrix, _ in MATRICES.values() for name in pair(matrix)} and len(got) == 1
    for name, x in want["layers"].items():
        largest = float(abs(x).max())
        assert largest > 1e-4, name
        np.testing.assert_allclose(got["layers"][name], x, atol=2e-5 * largest, err_msg=name)


def test_only_adapters_are_trained():
    """Moments, the state and the update are of the adapters; the frozen matrices are the same buffers after it."""
    model, params = adapted()
    optim = Optimizer(weight_decay=0.1, beta1=0.9, beta2=0.95, grad_clip=1.0, moments_dtype="float32")
    tx = make_optimizer(optim, lr=1e-2, warmup=0, decay_steps=0)
    state = new_state(tx, jax.tree.map(jnp.copy, trained(params)))
    count = num_adapter_params(SHAPE, model.lora)
    assert sum(x.size for x in jax.tree.leaves(state.params)) == count
    assert sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim) == 2 * count
    grads, _ = gradient()
    state, _ = apply_gradients(tx, state, grads)
    after = with_trained(params, state.params)
    for name, x in after["layers"].items():
        same = x is params["layers"][name]
        assert same != (name in state.params["layers"]), name
    assert with_trained(masters(), params) is params  # without adapters: everything


@pytest.mark.parametrize("axes", [dict(data=1, fsdp=2, tensor=1), dict(data=2, fsdp=2, tensor=2)])
def test_meshes_agree_with_one_device(axes):
    """Fresh adapters, gradients, the checksum of the base and the merged weights of a sampling layout."""
    model, params = adapted()
    want, want_metrics = gradient()
    devices = jax.devices()[: axes["data"] * axes["fsdp"] * axes["tensor"]]
    mesh = make_mesh(**axes, devices=devices)
    with jax.set_mesh(mesh):
        split = jax.device_put(params, param_shardings(params, mesh))
        assert_sharded(split)
        got, metrics = sft_gradient(model, split, *packed(), chunk=64)
        assert_sharded(got)
        with sampling_layout(split, tensor=axes["tensor"], dtype=jnp.float32, lora=model.lora) as moved:
            whole = jax.tree.map(np.asarray, moved)
        shardings = param_shardings(adapters(split), mesh)
        drawn = jax.jit(lambda: fresh_adapters(params, model.lora, jax.random.key(1)), out_shardings=shardings)()
    np.testing.assert_allclose(metrics["loss/total"], want_metrics["loss/total"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, merged(params, model.lora, dtype=jnp.float32)
    )
    same = fresh_adapters(params, model.lora, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, drawn, same)
    assert digest_of(split) == digest_of(params) != digest_of(drawn)


def test_sampler_and_trainer_agree():
    """The sampler draws with merged weights, the trainer scores along the low rank: log-probs equal to 1e-4 nats."""
    model, params = adapted()
    mesh = make_mesh(data=1, fsdp=8, tensor=1)
    how = Sampling(temperature=1.0, slots=16, block=8, prefill_rows=8)
    with jax.set_mesh(mesh):
        split = jax.device_put(params, param_shardings(params, mesh))
        with sampling_layout(split, tensor=1, dtype=jnp.float32, lora=model.lora) as moved:
            requests = Requests([[5, 6, 7 + p] for p in range(4)], range(4), 4, 20)
            r = sample(model, moved, requests, how, key=jax.random.key(0), stop=(1,), pad=0)
        logp = np.asarray(score(model, split, jnp.asarray(r.tokens), temperature=1.0, chunk=64))
    assert r.sampled.sum() > 100
    np.testing.assert_allclose(logp[r.sampled], r.logp[r.sampled], atol=1e-4)


# ---- a run


def run_config(base):
    """Four supervised steps and two of RL on the closed words, from a trained model."""
    c = importlib.import_module("configs.smoke").get_config()
    c.model.name, c.order = str(base), ("base", "easy")
    c.model.lora.rank, c.model.lora.matrices = 4, "q_proj o_proj up_proj"
    c.stages.base.steps, c.stages.base.rows, c.stages.easy.steps = 4, 8, 2
    c.stages.base.evaluated = c.stages.easy.evaluated = False
    c.stages.base.lr = c.stages.easy.lr = 1e-2
    c.checkpoint.every, c.log.tensorboard = 1, False
    return c


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    """Return a directory with a base and a run of LoRA on it."""
    where = tmp_path_factory.mktemp("lora")
    shutil.copytree(checkpoint, where / "base")
    main(run_config(where / "base"), str(where / "run"))
    return where


def metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.startswith(("time/", "memory/"))} for line in lines
    ]


def held(directory):
    """Return the arrays of a checkpoint's adapters."""
    _, like = like_of(directory.parents[2] / "hf")
    return jax.tree.map(np.asarray, read_adapters(directory, adapter_at(directory), like))


def test_a_run_keeps_adapters_alone(run):
    """Its checkpoints hold no matrix; RUN/hf/adapter.json says what they belong to; both stages moved them."""
    last = run / "run/checkpoints/easy/2"
    names = set(stored_params(last)["layers"])
    assert names == {"wq_a_ir", "wq_b_ro", "wo_a_ir", "wo_b_ro", "w_up_a_ir", "w_up_b_ro"}
    kept = adapter_at(last)
    assert kept == (Lora(4, 32.0, "q_proj o_proj up_proj"), str(run / "base"), "float32", kept.digest)
    base, easy = held(run / "run/checkpoints/base/4"), held(last)
    assert all(abs(x).max() > 0 for x in jax.tree.leaves(base))
    assert all((x != y).any() for x, y in zip(jax.tree.leaves(base), jax.tree.leaves(easy)))
    first = next(line for line in metrics(run / "run") if line["stage"] == "easy")
    assert first["parity/logp_max"] < 1e-4 and np.isfinite(first["loss/kl"])


def test_a_killed_run_ends_with_the_same_numbers(run, checkpoint):
    """Its last RL checkpoint is gone: the same metrics and, bit for bit, the same adapters. Another base is refused."""
    last, before = run / "run/checkpoints/easy/2", metrics(run / "run")
    want = held(last)
    shutil.rmtree(last)
    (run / "run/DONE").unlink()
    weights = load_hf(run / "base", like_of(run / "base")[1])
    save_hf(weights | {"embed_vd": weights["embed_vd"] * 1.5}, run / "base")
    with pytest.raises(UserError, match=r"base is not the model that the adapters of .* were trained beside"):
        main(run_config(run / "base"), str(run / "run"))
    shutil.copy(checkpoint / "model.safetensors", run / "base")
    main(run_config(run / "base"), str(run / "run"))
    assert metrics(run / "run") == before
    jax.tree.map(np.testing.assert_array_equal, held(last), want)


def test_a_checkpoint_is_a_model_by_name(run, tmp_path):
    """For sampling, as the base of a later run, merged in Hugging Face's format, and as PEFT's directory."""
    last = run / "run/checkpoints/easy/2"
    _, like = like_of(run / "base")
    whole = beside(load_hf(run / "base", like), held(last))
    want = merged(whole, adapter_at(last).lora, dtype=jnp.float32)
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    close = lambda got: jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)  # noqa: E731
    close(load_pretrained(str(last), dtype="float32", mesh=mesh).params)
    convert(str(last), tmp_path / "merged")
    close(load_hf(tmp_path / "merged", like))
    said = export_adapter(str(last), tmp_path / "peft")
    assert "adapters of" in said and (tmp_path / "peft/tokenizer.json").exists()
    assert model_config(str(tmp_path / "peft")) == model_config(str(run / "base"))
    close(load_params(tmp_path / "peft", like))
    with pytest.raises(UserError, match="has no adapters: leave --adapter out"):
        export_adapter(str(run / "base"), tmp_path / "none")
    later = run_config(last)
    later.order, later.stages.base.steps = ("base",), 1
    main(later, str(tmp_path / "later"))
    assert adapter_at(tmp_path / "later/checkpoints/base/1").base == str(last)


# ---- PEFT


def golden_directory(tmp_path):
    """Return PEFT's directory of tests/golden beside its base."""
    base = write_tiny(tmp_path / "base", "qwen3-tied")
    shutil.copytree(GOLDEN, tmp_path / "peft")
    change_config(tmp_path / "peft", base_model_name_or_path=str(base))
    return base, tmp_path / "peft"


def change_config(directory, **changes):
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def logits_of(model, params):
    hidden, _ = jax.jit(model.apply)({"params": params}, TOKENS, POSITIONS)
    return np.asarray(hidden @ params["embed_vd"].T)


def test_peft_adapters_give_peft_logits(tmp_path):
    """Adapters and logits that PEFT made (tests/golden/make_peft.py): merged and along the low rank, to 1e-5."""
    base, directory = golden_directory(tmp_path)
    model, like = like_of(base)
    want = np.load(GOLDEN / "logits.npz")["logits"]
    assert abs(want - logits_of(model, load_hf(base, like))).max() > 0.1
    np.testing.assert_allclose(logits_of(model, load_params(directory, like)), want, atol=1e-5)
    kept = adapter_at(directory)
    whole = beside(load_hf(base, like), read_adapters(directory, kept, like))
    np.testing.assert_allclose(logits_of(model.clone(lora=kept.lora), whole), want, atol=1e-5)


def test_peft_reads_what_we_write(tmp_path):
    """The golden adapters written by us are PEFT's file, name for name and bit for bit; rsLoRA's scale is in α."""
    from e3jax.checkpoint.hf import read_tensors

    base, directory = golden_directory(tmp_path)
    kept, (_, like) = adapter_at(directory), like_of(base)
    (tmp_path / "ours").mkdir()
    save_peft(read_adapters(directory, kept, like), kept, tmp_path / "ours")
    ours, theirs = (read_tensors(d / "adapter_model.safetensors") for d in (tmp_path / "ours", directory))
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    written = json.loads((tmp_path / "ours/adapter_config.json").read_text())
    known = json.loads((directory / "adapter_config.json").read_text())
    assert set(written) <= set(known) and set(written["target_modules"]) == set(known["target_modules"])
    assert written["lora_alpha"] / 3 == pytest.approx(known["lora_alpha"] / 3**0.5)


def test_peft_itself(tmp_path):
    """PEFT loads our directory, and we load one that it saves now: the same logits to 1e-5."""
    peft = pytest.importorskip("peft", reason="PEFT itself needs pip install -e '.[parity]'")
    torch = pytest.importorskip("torch", reason="PEFT itself needs pip install -e '.[parity]'")
    base, _ = golden_directory(tmp_path)
    model, like = like_of(base)
    lora = Lora(rank=5, alpha=3.0, matrices="k_proj v_proj o_proj down_proj")
    low = with_random_b(fresh_adapters(like, lora, jax.random.key(3)))
    (tmp_path / "ours").mkdir()
    save_peft(low, Kept(lora, str(base), "", ""), tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(transformers_model(base), tmp_path / "ours").eval()
    got = logits_of(model.clone(lora=lora), beside(tiny_params(base), low))
    np.testing.assert_allclose(transformers_logits(theirs, TOKENS, POSITIONS), got, atol=1e-5)
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "gate_proj"], init_lora_weights=False)
    theirs = peft.get_peft_model(transformers_model(base), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    change_config(tmp_path / "theirs", base_model_name_or_path=str(base))
    got = logits_of(model, load_params(tmp_path / "theirs", like))
    np.testing.assert_allclose(transformers_logits(theirs, TOKENS, POSITIONS), got, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "use_dora=True is not read: merge the adapter with PEFT"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3', and only 'LORA' is read"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not read"),
        ({"r": 4}, r"lora_A.weight should be \(4, 48\), it is \(3, 48\)"),
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=.*lm_head.* is not read"),
    ],
)
def test_other_adapters_of_peft_are_refused(changes, words, tmp_path):
    base, directory = golden_directory(tmp_path)
    change_config(directory, **changes)
    with pytest.raises(UserError, match=words):
        load_params(directory, like_of(base)[1])


# ---- settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(matrices="q_proj w_proj"), "config.model.lora.matrices='q_proj w_proj': name some of q_proj k_proj"),
        (dict(matrices=""), "config.model.lora.matrices='': name some of"),
        (dict(rank=33), "config.model.lora.rank=33: the smallest matrix has 32 rows or columns"),
        (dict(rank=-1), "config.model.lora.rank=-1: use 0"),
        (dict(alpha=0.0), "config.model.lora.alpha=0.0: must be above 0"),
    ],
)
def test_impossible_adapters_are_named(changes, words, checkpoint):
    c = run_config(checkpoint)
    c.model.lora.update(matrices=ALL)
    c.model.lora.update(changes)
    with pytest.raises(UserError, match=words):
        check(c)


def test_adapters_of_a_random_model_are_refused(checkpoint):
    c = run_config(checkpoint)
    c.model.name = ""
    with pytest.raises(UserError, match=r"config.model.lora.rank=4: adapters lie beside a trained model"):
        check(c)
    assert base_config().model.lora.rank == 0  # off


def test_a_stage_holds_adapters_alone(checkpoint):
    """What tools/aot.py counts: an update of the adapters, beside the frozen matrices in model.dtype."""
    c = run_config(checkpoint)
    c.model.dtype = "bfloat16"
    s = resolve(c)
    t = Training(s, s.stage("base"), jax.devices(), 8, 64)
    count, whole = num_adapter_params(t.model.config, s.model.lora), chip_bytes(init_params_shapes(t))
    assert t.masters * 8 == 4 * count and whole > t.frozen * 8 > whole / 2
    gradient, apply = supervised_programs(s, "base", jax.devices())
    assert gradient.resident == t.moments and apply.resident == t.frozen
    assert chip_bytes(apply.arguments[1]) == t.masters


def init_params_shapes(t):
    """Return the float32 shapes of a stage's model on one device."""
    from e3jax.models.qwen3 import abstract_params

    return abstract_params(t.model, make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1]))


def test_the_base_is_written_once(tmp_path):
    lora = Lora(2, 4.0, "q_proj")
    keep_base(tmp_path, Kept(lora, "a/b", "bfloat16", "1" * 16))
    keep_base(tmp_path, Kept(lora, "a/b", "bfloat16", "1" * 16))
    with pytest.raises(UserError, match=r"a/b is not the model that the adapters .*checksum 2222222222222222, then 1"):
        keep_base(tmp_path, Kept(lora, "a/b", "bfloat16", "2" * 16))
