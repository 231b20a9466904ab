"""Every attention kernel equals the plain one, results and gradients, on one device and on a mesh.

Splash runs in interpret mode here and compiles for a TPU in tests/test_tpu_compile.py. cuDNN needs a GPU
(benchmarks/README.md has what it gave there): its call is checked with JAX's own implementation in its place.
"""

import functools
import importlib
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3jax.errors import UserError
from e3jax.models import attention
from e3jax.models.attention import KERNELS, per_shard, resolve_kernel, self_attention
from e3jax.models.presets import preset
from e3jax.models.qwen3 import Qwen3, init_params
from e3jax.sharding import make_mesh, spec
from e3jax.train.check import check_attention
from e3jax.train.settings import resolve

splash = functools.partial(self_attention, kernel="splash_interpret")
xla = functools.partial(self_attention, kernel="xla")


def cudnn(*args):
    return per_shard(functools.partial(attention.cudnn, implementation="xla"), *args)


def make_inputs(*, b, t, n, k, h, packed):
    """Return q, k, v, the output's cotangent, and segments: two examples and padding; the last row is all padding."""
    shapes = (b, t, n, h), (b, t, k, h), (b, t, k, h), (b, t, n, h)
    arrays = [jax.random.normal(key, shape) for key, shape in zip(jax.random.split(jax.random.key(0), 4), shapes)]
    segment = np.repeat([1, 2, 0], [t // 3, t // 2, t - t // 3 - t // 2])
    segment_bt = jnp.asarray(np.stack([segment] * (b - 1) + [np.zeros(t)]), jnp.int32)
    return *arrays, segment_bt if packed else None


def check(kernel, mesh_axes, **shape):
    """Compare output and gradients of q, k, v with "xla" in float32, to 1e-5; on a mesh they are laid out like q."""
    *qkv, cotangent, segment_bt = make_inputs(**shape)

    @functools.partial(jax.jit, static_argnums=0)
    def results(function, *qkv):
        out, pull_back = jax.vjp(lambda *qkv: function(*qkv, segment_bt), *qkv)
        return out, *pull_back(cotangent)

    want = results(xla, *qkv)
    if mesh_axes is None:
        got = results(kernel, *qkv)
    else:
        mesh = make_mesh(**mesh_axes)
        with jax.set_mesh(mesh):
            got = results(kernel, *qkv)
        assert got[0].sharding.spec == spec("BTNH", mesh)
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, want):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5, err_msg=name)


CUBE = dict(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize(
    ("mesh_axes", "shape"),
    [
        (None, dict(b=1, t=200, n=4, k=1, h=128, packed=False)),
        (None, dict(b=2, t=200, n=4, k=2, h=64, packed=True)),
        (None, dict(b=2, t=1000, n=1, k=1, h=64, packed=True)),  # tiles of 512
        (None, dict(b=2, t=5, n=2, k=2, h=32, packed=True)),
        (CUBE, dict(b=4, t=200, n=4, k=2, h=128, packed=False)),
        (CUBE, dict(b=4, t=130, n=4, k=2, h=64, packed=True)),
    ],
)
def test_splash_equals_reference(mesh_axes, shape):
    """Guards against a forgotten scale, other groups of heads, padding seen, skipped tiles, a wrong mesh axis."""
    check(splash, mesh_axes, **shape)


def causal_mask(segment_bt, length):
    """Return a mask [1 or B, T, T], query x key: keys that are not later than the query, in the same packed segment."""
    mask = jnp.tril(jnp.ones((1, length, length), bool))
    return mask if segment_bt is None else mask & (segment_bt[:, :, None] == segment_bt[:, None, :])


def test_masks_written_out():
    """The tests below compare with this mask: no packed neighbour and no later key is seen."""
    segments = jnp.array([[1, 1, 2]])
    assert causal_mask(segments, 3)[0].astype(int).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert causal_mask(None, 2)[0].astype(int).tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("t", [40, 300, 2100])
def test_tiles_equal_all_at_once(packed, t):
    """Guards against a tile's own keys forgotten, later ones seen, tiles of the segment skipped, a padded last tile."""
    *qkv, cotangent, segment_bt = make_inputs(b=2, t=t, n=4, k=2, h=16, packed=packed)
    if packed:  # rows of different segments: many short ones, and one that is as long as the row
        short = jnp.asarray(np.arange(t) // 37 + 1, jnp.int32)
        segment_bt = jnp.stack([segment_bt[0], short])

    def whole(q, k, v):
        return attention.attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), causal_mask(segment_bt, t))

    def both(function):  # as one program: op by op it is hundreds
        return jax.tree.leaves(jax.jit(lambda *qkv: (function(*qkv), jax.vjp(function, *qkv)[1](cotangent)))(*qkv))

    for got, want in zip(both(lambda *qkv: xla(*qkv, segment_bt)), both(whole)):
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def test_tiles_that_nobody_sees_are_left_out():
    """With segments of 16 in one row and 24 in the other, the row that sees further back decides."""
    segment_bt = jnp.asarray(np.stack([np.arange(64) // 16, np.arange(64) // 24]), jnp.int32)
    assert attention._first_tiles(segment_bt, 8).tolist() == [0, 0, 0, 2, 3, 3, 6, 6]
    assert attention._first_tiles(segment_bt[:1], 8).tolist() == [0, 0, 2, 2, 4, 4, 6, 6]


@pytest.mark.parametrize("mesh_axes", [None, CUBE])
@pytest.mark.parametrize("packed", [False, True])
def test_cudnn_call_equals_reference(mesh_axes, packed):
    """Checks the mask's axes, the direction of its comparison and causality beside it; cuDNN itself is not reached."""
    check(cudnn, mesh_axes, b=4, t=24, n=4, k=2, h=64, packed=packed)


def test_segments_that_cudnn_is_told_of():
    """The packed form gets no segment for which there is no room: such rows go to the masked form."""
    segment = jnp.asarray([[1, 1, 2, 3, 3, 0], [7, 7, 7, 7, 7, 7]])
    first, length, fit = attention.segment_runs(segment, 4)
    assert first.tolist() == [[0, 2, 3, 5, -1], [0, -1, -1, -1, -1]] and bool(fit)
    assert length.tolist() == [[2, 1, 2, 1], [6, -1, -1, -1]]
    assert not attention.segment_runs(segment, 3)[2]


@pytest.fixture
def a_gpu(monkeypatch):
    """Answer as a Hopper what JAX asks before it takes cuDNN; nothing is compiled. Return the module that asks."""
    from jax._src.cudnn import fused_attention_stablehlo as call

    monkeypatch.setattr(call, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(call, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(call, "is_cuda_compute_capability_equal", lambda capability: False)
    return call


def calls_of_cudnn(remat: str) -> dict[str, int]:
    """Return how often a gradient's program has the forward and the backward call, in the one body of all layers."""
    model = Qwen3(preset("small"), dtype=jnp.dtype("bfloat16"), remat=remat, kernel="cudnn")
    token = jnp.ones((1, 512), jnp.int32)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))

    def loss(params):
        return model.apply({"params": params}, token, token, segment_bt=token)[0].astype(jnp.float32).sum()

    text = str(jax.make_jaxpr(jax.grad(loss))(params))
    return {name: text.count(f"dot_product_attention_{name}_wrapper[") for name in ("fwd", "bwd")}


def test_cudnn_runs_forward_once_where_attention_is_kept(a_gpu):
    """It runs twice under "full". Each time there are two calls, of which one runs: the packed form or the mask."""
    assert calls_of_cudnn("full") == {"fwd": 4, "bwd": 2}
    assert calls_of_cudnn("attention") == calls_of_cudnn("matmuls") == {"fwd": 2, "bwd": 2}


def test_cudnn_without_its_packed_form(a_gpu, monkeypatch):
    """On a GPU older than Hopper JAX raises even where the packed form would not run."""
    monkeypatch.setattr(a_gpu, "check_compute_capability", lambda capability: float(capability) < 9)
    assert attention.packed_form() is None
    assert calls_of_cudnn("full") == {"fwd": 2, "bwd": 1}


def test_cudnn_in_a_jax_that_has_renamed_it(monkeypatch):
    """What has no public name may be gone in the next release: then the masked form, whose name is public, is left."""
    import jax._src.cudnn

    monkeypatch.delattr(jax._src.cudnn, "fused_attention_stablehlo", raising=False)
    monkeypatch.setitem(sys.modules, "jax._src.cudnn.fused_attention_stablehlo", None)
    assert attention.packed_form() is None


def test_cudnn_refuses_float32():
    """JAX's message names no setting, and under jit it comes from the middle of a model."""
    q = jax.ShapeDtypeStruct((1, 4, 2, 64), jnp.float32)
    with pytest.raises(UserError, match=r"float32.*config\.model\.dtype='bfloat16'"):
        jax.eval_shape(functools.partial(self_attention, kernel="cudnn"), q, q, q)


def a_device(monkeypatch, platform: str, capability: str = "") -> None:
    """Set what JAX says of its default device."""
    device = SimpleNamespace(platform=platform, compute_capability=capability)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])


def test_auto_takes_what_runs(monkeypatch):
    """On GPUs "auto" was cuDNN for any arrays: float32, as in the quickstart, was refused, H = 80 failed in JAX."""
    with pytest.raises(ValueError, match="'flash' is unknown; known: auto, xla, splash"):
        resolve_kernel("flash", dtype="float32", head_width=64)
    arrays = {
        "usual": dict(dtype="bfloat16", head_width=128),
        "quickstart": dict(dtype="float32", head_width=32),
        "wide": dict(dtype="bfloat16", head_width=256),
        "rugged": dict(dtype="bfloat16", head_width=100),
        "odd": dict(dtype="bfloat16", head_width=64, length=33),
    }
    taken = {
        ("cpu", ""): set(),
        ("gpu", "gfx942"): set(),
        ("gpu", "7.5"): set(),
        ("gpu", "8.0"): {"usual"},
        ("gpu", "9.0"): {"usual", "wide"},
        ("gpu", "10.3"): {"usual", "wide"},
    }
    for device, names in taken.items():
        a_device(monkeypatch, *device)
        for name, values in arrays.items():
            assert resolve_kernel("auto", **values) == ("cudnn" if name in names else "xla"), (device, name)
    a_device(monkeypatch, "tpu")
    assert {resolve_kernel("auto", **values) for values in arrays.values()} == {"splash"}
    assert {resolve_kernel(name, **arrays["quickstart"]) for name in KERNELS} == set(KERNELS)


def test_float32_on_a_gpu_is_not_refused(monkeypatch):
    """Neither the config's check nor the model refuses it; with attention="cudnn" the sentence stays."""
    a_device(monkeypatch, "gpu", "9.0")
    config = importlib.import_module("configs.quickstart").get_config()
    check_attention(resolve(config))
    token = jnp.ones((1, 33), jnp.int32)
    model = Qwen3(preset("tiny"), dtype=jnp.float32, remat="none", kernel=config.model.attention)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    jaxpr = jax.make_jaxpr(lambda params: model.apply({"params": params}, token, token, segment_bt=token))(params)
    assert "dot_product_attention" not in str(jaxpr)
    config.model.attention = "cudnn"
    with pytest.raises(UserError, match=r"model\.dtype.*cuDNN, which wants 'bfloat16'"):
        check_attention(resolve(config))
