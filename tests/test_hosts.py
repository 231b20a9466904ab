"""Several processes on this machine make the run that one process makes: same tokens, losses, parameters.

Real processes, real collectives (gloo), the real command. By hand, 1, 2 and 4 processes on three meshes (10 minutes):

    JAX_PLATFORMS=cpu python tests/test_hosts.py
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from e3jax.checkpoint.hf_config import to_hub
from e3jax.checkpoint.store import load_params, stored_params
from e3jax.models.presets import preset
from e3jax.sharding import make_mesh

ROOT = Path(__file__).parent.parent
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # the time is compilation
BASE = (
    "--config.order=('short',)", "--config.stages.short.numbers=(2,)", "--config.stages.short.steps=150",
    "--config.stages.short.warmup=10", "--config.stages.short.rows=8", "--config.model.remat=none",
    "--config.log.tensorboard=False",
)  # fmt: skip
STAGE = (
    "--config.order=('easy',)", "--config.stages.easy.numbers=(2,)", "--config.stages.easy.steps=3",
    "--config.stages.easy.budget=32", "--config.stages.easy.evaluated=False", "--config.sampler.block=32",
    "--config.grpo.samples_logged=16", "--config.grpo.loss.entropy_coef=0.01", "--config.model.remat=none",
    "--config.log.tensorboard=False",
)  # fmt: skip


def launch(workdirs: list[Path], devices: int, *flags: str) -> list[subprocess.Popen]:
    """One process per workdir (all the same, as a rule) with so many simulated devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = []
    for i, workdir in enumerate(workdirs):
        env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "XLA_FLAGS": QUICK}
        if len(workdirs) > 1:
            env |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(len(workdirs)),
                "JAX_PROCESS_ID": str(i),
            }
        command = [sys.executable, "-m", "e3jax.train.curriculum", "--config=configs/smoke.py", f"--workdir={workdir}"]
        started.append(
            subprocess.Popen(
                [*command, *flags], cwd=ROOT, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
    return started


def finish(*runs: list[subprocess.Popen]) -> None:
    """Wait for whole runs, side by side."""
    for process, errors in [(p, p.communicate()[1]) for started in runs for p in started]:
        assert process.returncode == 0, errors[-3000:]


def two_heads(directory: Path) -> str:
    """The tiny model with two key heads, so that `tensor` has something to split."""
    directory.mkdir()
    (directory / "config.json").write_text(
        json.dumps(to_hub(dataclasses.replace(preset("tiny"), kv_heads=2), dtype="float32", bos=None, eos=1, pad=0))
    )
    return f"--config.model.preset={directory}"


def mesh(data: int, fsdp: int, tensor: int) -> tuple[str, ...]:
    return tuple(f"--config.mesh.{k}={v}" for k, v in dict(data=data, fsdp=fsdp, tensor=tensor).items())


def lines(workdir: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def parameters(workdir: Path) -> list[np.ndarray]:
    checkpoint = workdir / "checkpoints/easy/3"
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), stored_params(checkpoint))
    return [np.asarray(x) for x in jax.tree.leaves(load_params(checkpoint, like))]


def gaps(one: Path, many: Path) -> tuple[float, float]:
    """Largest difference of any metric and of any parameter; the sampled tokens must be the same."""
    assert lines(one, "samples.jsonl") == lines(many, "samples.jsonl")
    a, b = lines(one, "metrics.jsonl"), lines(many, "metrics.jsonl")
    assert [x["step"] for x in a] == [x["step"] for x in b] == [1, 2, 3]
    assert any(x["loss/pg"] for x in a), "no group with an advantage: the comparison would be empty"
    assert all(x.keys() == y.keys() for x, y in zip(a, b))
    numbers = [
        (x[k], y[k]) for x, y in zip(a, b) for k in x if not k.startswith("time/") and isinstance(x[k], int | float)
    ]
    metric = max(abs(p - q) for p, q in numbers)
    return metric, max(float(abs(x - y).max()) for x, y in zip(parameters(one), parameters(many)))


def test_two_processes_make_the_run_of_one(tmp_path, monkeypatch):
    """Guards: processes that fall out of step, grades mixed up, a denominator per host, records written twice."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    base, one, two = tmp_path / "base", tmp_path / "one", tmp_path / "two"
    finish(launch([base], 1, *BASE))
    flags = (*STAGE, f"--config.init.init_from={base / 'checkpoints/short/150'}")
    finish(launch([one], 4, *flags, *mesh(1, 4, 1)), launch([two] * 2, 2, *flags, *mesh(2, 2, 1)))
    metric, parameter = gaps(one, two)
    assert metric < 1e-5 and parameter < 1e-5, (metric, parameter)


def test_one_failing_process_ends_all_with_its_reason(tmp_path):
    """Guards: the others waiting for ever in a collective for a process that has gone."""
    start = time.monotonic()
    started = launch([tmp_path / "a", tmp_path / "not_shared"], 1, *STAGE)
    errors = [p.communicate(timeout=60)[1] for p in started]
    assert all(p.returncode in (1, 2) for p in started), errors
    for text in errors:  # whichever log a person opens
        assert "process 1 of 2 failed: error: " in text and "choose a --workdir that all hosts share" in text
        assert "Traceback" not in text and "Fatal" not in text, text
    assert time.monotonic() - start < 60


def test_hosts_lie_along_data(monkeypatch):
    """fsdp over hosts by accident looks like an 8 times slower run."""

    class Device:
        def __init__(self, i, host):
            self.id, self.process_index, self.platform = i, host, "cpu"

    devices = [Device(i, i % 2) for i in range(8)]  # ids that say nothing about hosts
    grid = make_mesh(data=2, fsdp=2, tensor=2, devices=devices).devices
    assert [{d.process_index for d in row.flat} for row in grid] == [{0}, {1}]


if __name__ == "__main__":
    os.chdir(ROOT)
    where = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    model = two_heads(where / "model")
    finish(launch([where / "base"], 1, *BASE, model))
    flags = (*STAGE, model, f"--config.init.init_from={where / 'base/checkpoints/short/150'}")
    finish(launch([where / "one"], 1, *flags))
    for processes, devices in ((1, 8), (2, 4), (4, 2)):
        for shape in ((1, 8, 1), (max(processes, 2), 8 // max(processes, 2), 1), (1, 4, 2)):
            many = where / f"{processes}_{'x'.join(map(str, shape))}"
            finish(launch([many] * processes, devices, *flags, *mesh(*shape)))
            found = gaps(where / "one", many)
            print(f"{processes} x {devices} devices, data x fsdp x tensor {shape}:", *found, flush=True)
