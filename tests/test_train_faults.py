"""Full disks and gradients that are not finite end a run with a sentence, and with everything that was good intact."""

import subprocess
import sys
from pathlib import Path

from test_storage import small_disk  # noqa: F401, a fixture

from benchmarks.faults import Command, difference, run_to_end

ROOT = Path(__file__).parent.parent
EASY = (
    "--config.order=('easy',)",
    "--config.stages.easy.steps=5",
    "--config.stages.easy.budget=48",
    "--config.checkpoint.every=1",
    "--config.log.tensorboard=False",
)
IMPATIENT = "from e3jax import storage\nstorage.WAITS_S = (0.5, 0.5)"


def errors(command: Command) -> list[str]:
    """Return the lines that a person is meant to read, of a run that ended badly without a traceback of ours."""
    assert command.end() == 2 and "e3jax/" not in command.said, command.said
    return [line for line in command.said.splitlines() if line.startswith("error: ")]


def test_a_disk_that_is_full(small_disk, tmp_path):  # noqa: F811
    """Two checkpoints fit and a third does not: tries, then one sentence; with more room the run goes on from there.

    Guards against a checkpoint deleted before the next one is there, half a line of records, a traceback of
    tensorstore's.
    """
    run, straight = small_disk / "run", tmp_path / "straight"
    run_to_end(straight, *EASY)
    subprocess.run(["mount", "-o", "remount,size=5m", str(small_disk)], check=True)
    (error,) = errors(Command(run, *EASY, before=IMPATIENT))
    assert "No space left on device" in error and "newest good checkpoint is 2: make room" in error, error
    assert sorted(p.name for p in (run / "checkpoints/easy").iterdir() if p.name.isdigit()) == ["1", "2"]
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    run_to_end(run, *EASY)
    for name in ("eval", "eval_samples", "budget"):
        for workdir in (straight, run):
            (workdir / f"{name}.jsonl").touch()
    assert not (found := difference(straight, run)), found


def test_a_directory_that_cannot_be_written(small_disk):  # noqa: F811
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    (error,) = errors(Command(small_disk / "run", *EASY, before=IMPATIENT))
    assert "Read-only file system" in error and str(small_disk) in error


def test_gradients_that_stay_not_finite_stop_the_run_and_can_be_looked_at(tmp_path):
    """A run that skips every update would go on for days, and cost."""
    (error,) = errors(Command(tmp_path / "run", *EASY, "--config.stages.easy.lr=1e38"))
    assert "no gradient of the last 3 steps was finite, up to step 4" in error
    assert not (tmp_path / "run/DONE").exists()
    asked = error.split("see ")[1].split()
    done = subprocess.run([sys.executable, *asked[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "in float32: the gradient is not finite" in done.stdout, done.stderr[-2000:]
    assert "layers/wq_dnh" in done.stdout and "before the update" in done.stdout
    asked[-1] = f"--dump={tmp_path}"
    done = subprocess.run([sys.executable, *asked[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "call.json is missing" in done.stderr and "Traceback" not in done.stderr
