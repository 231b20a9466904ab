"""Several processes on this machine make the run that one process makes: same tokens, losses, parameters.

Real processes, real collectives (gloo), the real command. By hand, 1, 2 and 4 processes on three meshes (10 minutes):

    PYTHONPATH=. JAX_PLATFORMS=cpu python tests/test_hosts.py
    PYTHONPATH=. JAX_PLATFORMS=cpu python tests/test_hosts.py --carry  # with responses carried over
"""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import SLOW

from benchmarks.faults import Command, contents, differing
from e3jax.checkpoint.hf_config import to_hub
from e3jax.checkpoint.store import load_params, stored_params
from e3jax.lock import DiskLock
from e3jax.models.presets import preset
from e3jax.relay import Relay
from e3jax.sharding import make_mesh

ROOT = Path(__file__).parent.parent
BASE = (
    "--config.order=('short',)", "--config.stages.short.numbers=(2,)", "--config.stages.short.steps=150",
    "--config.stages.short.warmup=10", "--config.stages.short.rows=8", "--config.model.remat=none",
    "--config.log.tensorboard=False", "--config.checkpoint.every=150",
)  # fmt: skip
STAGE = (
    "--config.order=('easy',)", "--config.stages.easy.numbers=(2,)", "--config.stages.easy.steps=3",
    "--config.stages.easy.budget=32", "--config.stages.easy.evaluated=False", "--config.sampler.block=32",
    "--config.grpo.samples_logged=16", "--config.grpo.loss.entropy_coef=0.01", "--config.model.remat=none",
    "--config.log.tensorboard=False",
)  # fmt: skip

CARRY = (
    "--config.grpo.carry_over=2", "--config.grpo.old_logp=sampler", "--config.sampler.block=4",
    "--config.stages.easy.steps=5",
)  # fmt: skip


def free_address() -> str:
    """Return an address where process 0 may listen."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def part(address: str, index: int, count: int) -> dict[str, str]:
    """Return the environment of one of several processes."""
    return {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}


def launch(workdirs: list[Path], devices: int, *flags: str, **command: str) -> list[Command]:
    """Start one process per workdir (usually all the same), with this many simulated devices each.

    `command`: its module and its config, where it is not training.
    """
    address, started = free_address(), []
    for i, workdir in enumerate(workdirs):
        env = {"JAX_NUM_CPU_DEVICES": str(devices)}
        if len(workdirs) > 1:
            env |= part(address, i, len(workdirs))
        started.append(Command(workdir, *flags, env=env, **command))
    return started


def finish(*runs: list[Command]) -> None:
    """Wait for whole runs, side by side."""
    for command in [c for started in runs for c in started]:
        assert command.end() == 0, command.said[-3000:]


def two_heads(directory: Path) -> str:
    """Write the tiny model with two key heads, so that `tensor` has something to split."""
    directory.mkdir()
    (directory / "config.json").write_text(
        json.dumps(to_hub(dataclasses.replace(preset("tiny"), kv_heads=2), dtype="float32", bos=None, eos=1, pad=0))
    )
    return f"--config.model.preset={directory}"


def mesh(data: int, fsdp: int, tensor: int) -> tuple[str, ...]:
    return tuple(f"--config.mesh.{k}={v}" for k, v in dict(data=data, fsdp=fsdp, tensor=tensor).items())


def lines(workdir: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def parameters(workdir: Path, step: int) -> list[np.ndarray]:
    checkpoint = workdir / f"checkpoints/easy/{step}"
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), stored_params(checkpoint))
    return [np.asarray(x) for x in jax.tree.leaves(load_params(checkpoint, like))]


def gaps(one: Path, many: Path, *, steps: int = 3) -> tuple[float, float]:
    """Return the largest difference of any metric and of any parameter; the sampled tokens must be the same."""
    for x, y in zip(lines(one, "samples.jsonl"), lines(many, "samples.jsonl"), strict=True):
        for name in ("entropy", "logp"):  # rounded, so that a last bit may show
            np.testing.assert_allclose(x.pop(name), y.pop(name), atol=2e-3)
        assert x == y
    a, b = lines(one, "metrics.jsonl"), lines(many, "metrics.jsonl")
    assert [x["step"] for x in a] == [x["step"] for x in b] == list(range(1, steps + 1))
    assert any(x["loss/pg"] for x in a), "no group with an advantage: the comparison would be empty"
    assert all(x.keys() == y.keys() for x, y in zip(a, b))
    pairs = [(x, y, k) for x, y in zip(a, b) for k in x if not k.startswith(("time/", "memory/"))]
    numbers = [(x[k], y[k]) for x, y, k in pairs if isinstance(x[k], int | float)]
    metric = max(abs(p - q) for p, q in numbers)
    pairs = zip(parameters(one, steps), parameters(many, steps))
    return metric, max(float(abs(x - y).max()) for x, y in pairs)


def preempt(started: list[Command], victim: int, steps: int) -> None:
    """Send SIGTERM to one process once this many steps are logged; all must save and end well."""
    assert started[0].wait_for(lambda: started[0].logged("easy", steps)), started[0].said[-3000:]
    started[victim].process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    for command in started:
        assert command.end() == 0, command.said[-3000:]
        assert "stopped by SIGTERM: easy, step " in command.said, command.said[-3000:]
    assert time.monotonic() - start < 60


def test_preempted_and_resumed_on_other_devices_it_is_the_run_of_one_process(tmp_path):
    """8 devices of 2 processes, then 4 of one, then a single one; against 1 x 4 devices that nobody disturbed.

    Guards: processes that fall out of step or stop at different ones, grades mixed up, a denominator per host, records
    written twice, checkpoints that fit one mesh only.
    """
    base, one, many = tmp_path / "base", tmp_path / "one", tmp_path / "many"
    finish(launch([base], 1, *BASE))
    flags = (*STAGE, f"--config.init.init_from={base / 'checkpoints/short/150'}", "--config.stages.easy.steps=6")
    straight = launch([one], 4, *flags, *mesh(1, 4, 1))
    preempt(launch([many] * 2, 4, *flags, *mesh(2, 4, 1)), victim=1, steps=1)
    preempt(launch([many], 4, *flags, *mesh(1, 4, 1)), victim=0, steps=3)
    finish(launch([many], 1, *flags, *mesh(1, 1, 1)), straight)
    metric, parameter = gaps(one, many, steps=6)
    assert metric < 1e-5 and parameter < 1e-5, (metric, parameter)
    starts = lines(many, "starts.jsonl")
    assert [(s["processes"], s["devices"]) for s in starts] == [(2, 8), (1, 4), (1, 1)]
    assert starts[1]["changed"] == ["mesh.data: 2 there, 1 here"]


def test_one_failing_process_ends_all_with_its_reason(tmp_path):
    """Guards against processes that wait for ever in a collective for one that is gone."""
    start = time.monotonic()
    started = launch([tmp_path / "a", tmp_path / "not_shared"], 1, *STAGE)
    for command in started:  # whichever log a person opens
        assert command.end() in (1, 2)
        text = command.said
        assert "process 1 of 2 failed: error: " in text and "choose a --workdir that all hosts share" in text
        assert "Traceback" not in text and "Fatal" not in text, text
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("victim", [1, 0])
def test_a_process_that_dies_without_a_word_is_named(tmp_path, victim):
    """When one is killed, others would wait in a collective or report a broken connection without a name.

    When process 0 is killed, JAX's client would end the others by abort(), with a stack of C++ (e3jax/relay.py).
    """
    started = launch([tmp_path / "a"] * 2, 1, *STAGE, "--config.stages.easy.steps=4000")
    assert started[0].wait_for(lambda: started[0].logged("easy", 1)), started[0].said[-3000:]
    pid, other = started[victim].process.pid, started[1 - victim]
    started[victim].kill()
    start = time.monotonic()
    assert other.end() == 1 and time.monotonic() - start < 60, other.said
    assert f"process {1 - victim} of 2 ends, because process {victim} of 2 (pid {pid} on " in other.said, other.said
    assert "died without a word" in other.said and "goes on from the newest checkpoint" in other.said
    assert "Traceback" not in other.said and "stack trace" not in other.said, other.said
    seen = DiskLock(tmp_path / "a").read()
    assert seen is None or seen.holder.dead(seen.age_s), "the next start would be refused"


def test_relay_hides_only_the_end_that_nobody_expects():
    """A client's own end, and process 0 not being there yet, are no losses; process 0's end is one, which waits."""
    with socket.create_server(("localhost", 0)) as served:
        relay = Relay(f"localhost:{served.getsockname()[1]}")

        def pair() -> tuple[socket.socket, socket.socket]:
            host, _, port = relay.address.rpartition(":")
            client = socket.create_connection((host, int(port)), timeout=20)
            return client, served.accept()[0]

        client, end = pair()
        client.sendall(b"question")
        assert end.recv(64) == b"question" and relay.unanswered()
        end.sendall(b"answer")
        assert client.recv(64) == b"answer" and not relay.unanswered()
        client.close()
        assert end.recv(64) == b"" and not relay.lost.is_set()
        client, end = pair()
        end.close()
        assert relay.lost.wait(20)
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(64)
        relay.over.set()
        client.settimeout(20)
        assert client.recv(64) == b""
    absent = Relay(free_address())
    host, _, port = absent.address.rpartition(":")
    assert socket.create_connection((host, int(port)), timeout=20).recv(64) == b"" and not absent.lost.is_set()


SMALL = """
from benchmarks import kill_configs


def get_config(argument):
    name, _, model = argument.partition("=")
    c = getattr(kill_configs, f"config_{name}")(model)
    c.models = c.models[:1]
    if name == "eval":
        c.sets["3 numbers"].update(problems=6, samples=2)
        c.forcing.update(early_stop=(), wait=())  # each of its draws compiles programs
        c.pass_ks, c.budgets, c.train_budget = (1, 2), (8, 16), 8
    return c
"""


def near(got, want) -> bool:
    """Return whether two JSON values are the same, floats to 1e-5: collectives sum in another order."""
    if isinstance(want, dict) and isinstance(got, dict):
        return got.keys() == want.keys() and all(near(got[k], want[k]) for k in want)
    if isinstance(want, list) and isinstance(got, list):
        return len(got) == len(want) and all(map(near, got, want))
    return abs(got - want) <= 1e-5 if isinstance(want, float) and isinstance(got, float) else got == want


@pytest.mark.parametrize(
    "name, module", [("eval", "e3jax.eval.run"), pytest.param("probes", "e3jax.eval.probes", marks=SLOW)]
)
def test_an_evaluation_of_two_processes_is_that_of_one(checkpoint, tmp_path, name, module):
    """Guards: records written twice, responses that only one process knows, an array that one process has half of."""
    (tmp_path / "small.py").write_text(SMALL)
    how = dict(module=module, config=f"{tmp_path / 'small.py'}:{name}={checkpoint}")
    finish(launch([tmp_path / "one"], 1, **how))
    finish(launch([tmp_path / "two"] * 2, 1, **how))
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one["responses/" + {"eval": "tiny/3 numbers", "probes": "base/probe"}[name]]
    assert one.keys() == two.keys()
    records = [file for file in one if not file.endswith(".svg")]  # figures have more digits than sums agree in
    assert not [file for file in records if not near(two[file], one[file])], differing(two, one)


SAVING = """
import os, sys
import jax, numpy as np
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint._src.serialization import serialization
from e3jax import runtime
from e3jax.checkpoint.store import Store
logging.set_verbosity(logging.FATAL)  # as e3jax/flags.py does
runtime.start()
async def full(*args, **kwargs):
    raise ValueError("RESOURCE_EXHAUSTED: No space left on device")
halves = NamedSharding(jax.make_mesh((2,), ("x",)), PartitionSpec("x"))
state = {"w": jax.make_array_from_callback((8,), halves, lambda at: np.arange(8.0)[at])}
store = Store(sys.argv[1], keep=2, keep_every=0, say=print)
store.save(1, state)
store.finish_writing()
if jax.process_index() == 1:
    serialization.async_serialize_from_host = full
store.save(2, state)
store.close(2, state)
"""


RECORDING = """
import errno, sys
from e3jax import flags, log, records, runtime, storage
storage.WAITS_S = (1,)
def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
def main():
    runtime.start()
    run = log.RunLog(sys.argv[1], {}, tensorboard=False, wandb="")
    if run.main:
        records.append = full
    run.append("metrics.jsonl", {"step": 1})
    runtime.barrier("where the others wait")
flags.guard(main)
"""


@pytest.mark.parametrize(
    "script, said",
    [
        (
            SAVING,
            (
                "process 1 of 2 failed: error: cannot write checkpoint {}/stage/2: RESOURCE_EX",
                "The same command goes on from checkpoint {}/stage/1",
            ),
        ),
        (
            RECORDING,
            (
                "process 0 of 2 failed: error: cannot write {}/stage/metrics.jsonl: [Errno 28] No space left",
                "Nothing that was written before is lost",
            ),
        ),
    ],
    ids=["checkpoint", "record"],
)
def test_a_write_that_fails_on_one_process_ends_all_with_its_reason(tmp_path, script, said):
    """The others waited for 20 minutes, inside orbax, to hear that every part of the checkpoint is there."""
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    command = [sys.executable, "-c", script, str(tmp_path / "stage")]
    address, common = free_address(), os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    started = [subprocess.Popen(command, env=common | part(address, i, 2), **pipes) for i in range(2)]
    for process in started:
        _, heard = process.communicate(timeout=300)
        assert process.returncode in (1, 2), heard
        assert all(text.format(tmp_path) in heard for text in said) and "Traceback" not in heard, heard


def test_hosts_lie_along_data(monkeypatch):
    """fsdp that spans hosts by accident looks like a run that is 8 times slower."""

    class Device:
        def __init__(self, i, host):
            self.id, self.process_index, self.platform = i, host, "cpu"

    devices = [Device(i, i % 2) for i in range(8)]  # ids that say nothing about hosts
    grid = make_mesh(data=2, fsdp=2, tensor=2, devices=devices).devices
    assert [{d.process_index for d in row.flat} for row in grid] == [{0}, {1}]


if __name__ == "__main__":
    os.chdir(ROOT)
    carry, where = sys.argv[1:] == ["--carry"], Path(tempfile.mkdtemp())
    model = two_heads(where / "model")
    finish(launch([where / "base"], 1, *BASE, model))
    start = f"--config.init.init_from={where / 'base/checkpoints/short/150'}"
    flags = (*STAGE, model, start, *(CARRY if carry else ()))
    finish(launch([where / "one"], 1, *flags))
    if carry:
        of = lines(where / "one", "metrics.jsonl")
        print("groups that go on:", [line["carry/groups"] for line in of])
    for processes, devices in ((1, 8), (2, 4), (4, 2)):
        data = max(processes, 2)
        shapes = ((data, 8 // data, 1),) if carry else ((1, 8, 1), (data, 8 // data, 1), (1, 4, 2))
        for shape in shapes:
            many = where / f"{processes}_{'x'.join(map(str, shape))}"
            finish(launch([many] * processes, devices, *flags, *mesh(*shape)))
            worst = gaps(where / "one", many, steps=5 if carry else 3)
            print(f"{processes} x {devices} devices, data x fsdp x tensor {shape}:", *worst, flush=True)
