"""Kill every command that writes a directory, and checkpoint writes of a 135M model; compare with runs left in peace.

    python benchmarks/kill_commands.py --out=/tmp/kills --json=benchmarks/results/kill_commands.json

SIGKILL comes at a random place of a command's work, twice on a disk and twice in an emulated bucket (tests/
gcs_emulator.py), and ten times while a checkpoint of SmolLM2-135M's shape (random weights, Adam's state: 1.6 GB) is
written. The same command is given again each time. In the end every file equals that of a run that nobody killed
(faults.py `contents`), and every life of the large model has gone on from the newest checkpoint that was committed.
The commands' configs: kill_configs.py.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT), str(ROOT / "tests")]

from benchmarks.faults import Command, contents, differing, writing  # noqa: E402

LARGE = dict(
    model_type="llama",
    hidden_size=576,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    intermediate_size=1536,
    vocab_size=49_152,
    tie_word_embeddings=True,
    rope_theta=100_000.0,
    rms_norm_eps=1e-5,
    max_position_embeddings=8192,
    hidden_act="silu",
    rope_scaling=None,
    architectures=["any"],
)
LARGE_FLAGS = (
    "--config.order=('short',)", "--config.stages.short.rows=1", "--config.stages.short.row_length=64",
    "--config.stages.short.traces.most_tokens=50", "--config.stages.short.evaluated=False",
    "--config.init.number_embeddings=False", "--config.log.tensorboard=False",
)  # fmt: skip
LARGE_STEPS = 6
SIZE = 1.6e9  # bytes of its state
LOOK_S, PATIENCE_S = 0.03, 7200.0
LIGHT = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # as the tests: quick to compile
# A random model's responses go through all of E2C's phases; a bucket gets its lines every half second, not half minute
ALL_GOOD = """
from e3jax.curation import e2c
from e3jax.rewards.extract import Grade
e2c.Drafts.grade = lambda self, texts: {key: Grade(1.0, "correct") for key in texts}
e2c.plan_fault = e2c.execution_fault = lambda *_, **__: ""
ask = e2c.ask
e2c.ask = lambda *a, **k: {key: (r._replace(done=True), call) for key, (r, call) in ask(*a, **k).items()}
"""
OFTEN = """
from e3jax import records
from e3jax.rollout import responses
records.FLUSH_EVERY_S = responses.FLUSH_EVERY_S = 0.5
"""


class Case(NamedTuple):
    """One command: its module, the model that it is given, and Python to run in its process first."""

    name: str
    module: str
    model: str
    before: str = ""


CASES = (
    Case("train", "e3jax.train.curriculum", ""),
    Case("difficulty", "e3jax.curation.difficulty", "calculator"),
    Case("e2c", "e3jax.curation.e2c", "text", ALL_GOOD),
    Case("pools", "e3jax.curation.oxa_sets", "calculator"),
    Case("eval", "e3jax.eval.run", "calculator"),
    Case("probes", "e3jax.eval.probes", "calculator"),
    Case("scaling", "e3jax.scaling.run", "plans"),
    Case("didactic", "e3jax.didactic.run", ""),
    Case("experiment", "e3jax.experiments.run", ""),
    Case("oxa", "e3jax.experiments.run", ""),
)


# ---- the campaign


def make_models(out: Path) -> dict[str, Path]:
    """Tiny random checkpoints with words of Countdown, of plans, and bytes; the large one's shape."""
    import jax
    import jax.numpy as jnp
    import tiny_hub
    import tiny_text
    from conftest import write_checkpoint

    from e3jax.models.presets import preset
    from e3jax.models.qwen3 import Qwen3, init_params
    from e3jax.tasks import countdown_plans, countdown_traces

    models = {name: out / "models" / name for name in ("calculator", "plans", "text", "large")}
    for path in models.values():
        path.mkdir(parents=True)
    model = Qwen3(preset("tiny"), dtype=jnp.float32, remat="none", kernel="xla")
    tiny = model, init_params(model, jax.random.key(0))
    write_checkpoint(tiny, models["calculator"], countdown_traces.WORDS)
    write_checkpoint(tiny, models["plans"], countdown_plans.WORDS)
    size = tiny_text.write_tokenizer(models["text"], begin=False)
    tiny_hub.write_tiny(models["text"], "qwen3-tied", vocab_size=size, eos_token_id=None)
    rows = [{"problem": f"{i}+1?", "answer": i + 1} for i in range(24)]
    (models["text"] / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (models["large"] / "config.json").write_text(json.dumps(LARGE))
    return models


class Place:
    """Where a command works: a directory here, or one of an emulated bucket, whose objects are files here too."""

    def __init__(self, name: str, files: Path, bucket=None):
        self.files, self.bucket = files, bucket
        self.workdir = f"{bucket.url}/{name}" if bucket else files
        self.env = bucket.env if bucket else {}
        self.sizes: dict[str, int] = {}  # of every file, the largest that was seen

    def written(self) -> int:
        """Bytes so far, those of files that are gone again included."""
        for directory, _, names in os.walk(self.files):
            for path in (f"{directory}/{name}" for name in names):
                try:
                    self.sizes[path] = max(self.sizes.get(path, 0), os.stat(path).st_size)
                except FileNotFoundError:
                    pass
        return sum(self.sizes.values())


def start(case: Case, place: Place, models: dict[str, Path]) -> Command:
    """The case's command under way."""
    argument = f"{case.name}={models[case.model] if case.model else ''}"
    config = f"{ROOT}/benchmarks/kill_configs.py:{argument}"
    if case.name == "probes" and not place.files.exists():  # a random model makes no attempts
        put_attempts(place, models)
    beside = case.module == "e3jax.experiments.run"  # its bases lie beside it
    workdir = f"{place.workdir}/here" if beside else place.workdir
    before = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{OFTEN}{case.before}"
    return Command(workdir, module=case.module, config=config, before=before, env=place.env | {"XLA_FLAGS": LIGHT})


def put_attempts(place: Place, models: dict[str, Path]) -> None:
    """Responses with attempts in them, as if they had been drawn."""
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "from etils import epath; from test_eval_probes import fill\n"
        "from benchmarks.kill_configs import config_probes\n"
        f"fill(epath.Path({str(place.workdir)!r}), config_probes({str(models['calculator'])!r}))\n"
    )
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""} | place.env
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True)


def finish(command: Command) -> None:
    assert command.end() == 0, command.said[-3000:]


def kill_command(case: Case, place: Place, models, want: dict, *, whole: int, shares, say) -> int:
    """Kill when these shares of the bytes are written, then let it end; -> kills. AssertionError for a difference."""
    count = 0
    for share in shares:
        command = start(case, place, models)
        if command.wait_for(lambda share=share: place.written() >= share * whole, PATIENCE_S, LOOK_S):
            if command.process.poll() is None and command.kill() == -signal.SIGKILL:
                count += 1
                say(f"{case.name}, {place.workdir}: killed at {place.written() / whole:.0%} of its bytes")
                continue
        finish(command)
        break
    finish(start(case, place, models))
    found = differing(contents(place.files, str(place.workdir)), want)
    assert not found, f"{case.name}, {place.workdir}: {found[:3]}"
    return count


@contextmanager
def emulated(directory: Path):
    from gcs_emulator import emulated_bucket

    directory.mkdir()
    with emulated_bucket(directory) as bucket:
        yield bucket


def commands(out: Path, models, names, *, each: int, rng: random.Random, say) -> dict[str, dict]:
    """Every case: a straight run, then kills on the disk and in a bucket."""
    told = {}
    for case in (c for c in CASES if c.name in names):
        straight = Place(case.name, out / "straight" / case.name)
        began = time.monotonic()
        command = start(case, straight, models)
        command.wait_for(lambda p=straight: p.written() < 0, PATIENCE_S, LOOK_S)
        finish(command)
        whole, want = straight.written(), contents(straight.files)
        say(f"{case.name}: straight in {time.monotonic() - began:.0f} s, {whole:,} bytes")
        told[case.name] = {"disk": 0, "bucket": 0}
        for kind in told[case.name]:
            with emulated(out / f"bucket-{case.name}") if kind == "bucket" else nullcontext() as bucket:
                tries = 0
                while told[case.name][kind] < each:
                    tries += 1
                    assert tries < 6, f"{case.name} ends before it can be killed"
                    name = f"{case.name}-{tries}"
                    files = bucket.directory / "objects/.cloudstorage/bucket" / name if bucket else out / name
                    shares = sorted(rng.uniform(0.02, 0.9) for _ in range(each - told[case.name][kind]))
                    told[case.name][kind] += kill_command(
                        case, Place(name, files, bucket), models, want, whole=whole, shares=shares, say=say
                    )
            for path in out.glob(f"*{case.name}*"):
                shutil.rmtree(path)
        shutil.rmtree(straight.files)
    return told


def committed(workdir: Path) -> list[int]:
    """Steps whose checkpoint is whole."""
    there = (workdir / "checkpoints/short").glob("*/_CHECKPOINT_METADATA")
    return sorted(int(path.parent.name) for path in there if path.parent.name.isdigit())


def size_of(paths, *, since: float = 0.0) -> int:
    """Bytes in files of directories, which may be changing; `since`: of files written later, by this life."""
    total = 0
    for directory, _, names in (x for path in paths for x in os.walk(path)):
        for name in names:
            try:
                file = os.stat(f"{directory}/{name}")
                total += file.st_size if file.st_mtime > since else 0
            except FileNotFoundError:
                pass
    return total


def large(out: Path, models, *, kills: int, rng: random.Random, say: Callable[[str], None]) -> dict:
    """Kills during checkpoint writes of the 135M model, at a random share of the bytes."""
    flags = (*LARGE_FLAGS, f"--config.model.preset={models['large']}", f"--config.stages.short.steps={LARGE_STEPS}")
    began = time.monotonic()
    finish(Command(out / "straight", *flags, f"--config.checkpoint.every={LARGE_STEPS}"))
    say(f"135M: straight in {time.monotonic() - began:.0f} s")
    want, shares, runs = contents(out / "straight"), [], 0
    final = f"checkpoints/short/{LARGE_STEPS}"
    while len(shares) < kills:
        workdir, runs = out / f"large-{runs}", runs + 1
        while len(shares) < kills:
            before, started = committed(workdir), time.time()
            command = Command(workdir, *flags, "--config.checkpoint.every=1")
            number, share = rng.choice((1, 1, 2)), rng.uniform(0, 1)
            seen: set[str] = set()

            def in_it(workdir=workdir, seen=seen, number=number, share=share, started=started):
                now = {path for path in writing(workdir) if size_of([path], since=started)}
                seen.update(now)
                return now and len(seen) >= number and size_of(now, since=started) >= share * SIZE * 0.98

            alive = command.wait_for(in_it, PATIENCE_S)
            first = sorted(int(Path(path).name.split(".")[0]) for path in seen)
            if seen:
                newest = max(before, default=0)
                assert first[0] == newest + 1, f"went on with step {first[0]}, but {newest} was committed"
            if not (alive and command.process.poll() is None and command.kill() == -signal.SIGKILL):
                finish(command)
                break
            left = size_of(writing(workdir), since=started)
            shares.append(round(left / SIZE, 2))
            say(
                f"135M: kill {len(shares)} of {kills} in the write of step {first[-1]}, {left / 1e6:,.0f} MB there; "
                f"committed {committed(workdir)}"
            )
        finish(Command(workdir, *flags, f"--config.checkpoint.every={LARGE_STEPS}"))
        got = contents(workdir) | {"config.json": want["config.json"]}  # its checkpoint.every differs
        assert not (found := differing(got, want)), f"{workdir}: {found[:3]}"
        assert same_params(out / "straight" / final, workdir / final), f"{workdir}: other parameters in the end"
        assert not writing(workdir) and not list((workdir / "checkpoints/short").glob("unusable*"))
        shutil.rmtree(workdir)
    shutil.rmtree(out / "straight")
    return {"kills": len(shares), "runs": runs, "share_of_bytes_there": sorted(shares)}


def same_params(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same parameters, bit for bit."""
    import jax
    import numpy as np

    from e3jax.checkpoint.store import load_params, stored_params

    def read(path):
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), stored_params(path))
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like)
        return jax.tree.leaves(load_params(path, like))

    return all(np.array_equal(a, b) for a, b in zip(read(one), read(other), strict=True))


def main() -> None:
    """Commands, then the large model."""
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    parser.add_argument("--each", type=int, default=2, help="kills of a command on the disk, and as many in a bucket")
    parser.add_argument("--large", type=int, default=10, help="kills in checkpoint writes of the 135M model")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(given.out / "programs")  # of all lives
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    rng, began = random.Random(given.seed), time.monotonic()
    models = make_models(given.out)

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True)

    found = {}
    if given.large:
        found["135M checkpoint writes"] = large(given.out, models, kills=given.large, rng=rng, say=say)
    found["commands"] = commands(given.out, models, given.only, each=given.each, rng=rng, say=say)
    found["seed"], found["minutes"] = given.seed, round((time.monotonic() - began) / 60, 1)
    found["kills"] = given.large + sum(sum(kinds.values()) for kinds in found["commands"].values())
    print(json.dumps(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
