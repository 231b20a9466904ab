"""Splash attention compiles for a TPU v5e 2x2, ahead of time on this CPU, without scores in memory.

The TPU compiler comes with the libtpu package: `pip install libtpu`. It runs in a subprocess, `python THIS_FILE`,
because it stays loaded until its process ends. Compiled is not run: results are checked in
tests/test_models_attention.py by the same kernel in interpret mode.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding

from e3jax.models import attention
from e3jax.models.attention import self_attention
from e3jax.sharding import make_mesh, spec

B, T, N, K = 4, 2048, 16, 8  # heads of qwen3-0.6b
SCORES = B * N * T * T * 4 // 4  # bytes per device of [B, N, T, T] float32 on 4 devices
CASES = {
    "causal": dict(kernel="splash", head_width=128, segments=False),
    "segments": dict(kernel="splash", head_width=128, segments=True),
    "narrow heads": dict(kernel="splash", head_width=64, segments=True),
    "reference": dict(kernel="xla", head_width=128, segments=True),
}


def compile_gradient(mesh, *, kernel: str, head_width: int, segments: bool) -> dict:
    """Compile forward and backward of attention in bfloat16 on the mesh's devices: kernels, all-gathers, bytes."""

    def array(axes, shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec(axes, mesh)))

    def loss(q, k, v, segment):
        return jnp.sum(self_attention(q, k, v, segment, kernel=kernel).astype(jnp.float32) ** 2)

    q = array("BTNH", (B, T, N, head_width), jnp.bfloat16)
    kv = array("BTKH", (B, T, K, head_width), jnp.bfloat16)
    segment = array("BT", (B, T), jnp.int32) if segments else None
    if kernel == "xla":
        attention.TILE = T  # all at once
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, kv, kv, segment).compile()
    text = compiled.as_text()
    return {
        "kernels": text.count('custom_call_target="tpu_custom_call"'),
        "gathers": text.count("all-gather"),
        "bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


@pytest.fixture(scope="module")
def compiled():
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install libtpu")
    quiet = dict(TPU_SKIP_MDS_QUERY="1", TPU_LOG_DIR="disabled", JAX_ENABLE_COMPILATION_CACHE="false")
    several = dict(ALLOW_MULTIPLE_LIBTPU_LOAD="1")  # else a second process aborts at /tmp/libtpu_lockfile
    env = os.environ | dict(JAX_PLATFORMS="cpu", PYTHONPATH=str(Path(__file__).parent.parent)) | quiet | several
    run = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["causal", "segments", "narrow heads"])
def test_splash_compiles_for_tpu(compiled, name):
    """A tile too large, a head width that Mosaic refuses or gathered operands show here, not on a rented TPU."""
    assert compiled[name]["kernels"] == 3  # forward, dq, dk and dv
    assert compiled[name]["gathers"] == 0
    assert compiled[name]["bytes"] < SCORES / 4


def test_reference_keeps_the_scores(compiled):
    """If it did not, the bound above would say nothing."""
    assert compiled["reference"]["kernels"] == 0 and compiled["reference"]["bytes"] > SCORES


if __name__ == "__main__":
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    mesh = make_mesh(data=1, fsdp=2, tensor=2, devices=devices)
    print(json.dumps({name: compile_gradient(mesh, **case) for name, case in CASES.items()}))
