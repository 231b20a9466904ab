"""A run killed in every stage and started again with the same command ends with exactly the same numbers.

The test kills the smoke config with SIGKILL. By hand, for any config (minutes):

    python tests/test_train_resume.py configs/quickstart.py runs/quickstart /tmp/killed
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECORDS = ("metrics.jsonl", "eval.jsonl", "budget.jsonl", "samples.jsonl", "eval_samples.jsonl")


def start(config: str, workdir: Path) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "e3jax.train.curriculum",
        f"--config={config}",
        f"--workdir={workdir}",
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(config: str, workdir: Path) -> None:
    process = start(config, workdir)
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]


def kill_in_stage(config: str, workdir: Path, stage: str, lines: int) -> None:
    """SIGKILL as soon as the stage has logged `lines` steps; no cleanup code gets to run."""
    process = start(config, workdir)
    metrics = workdir / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and metrics.read_text().count(f'"stage": "{stage}"') >= lines:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    process.wait()
    assert process.returncode == -signal.SIGKILL, f"stage {stage} was over before it could be killed"
    whole = [line for line in metrics.read_text().splitlines() if line.endswith("}")]  # the last may be cut
    assert f'"stage": "{stage}"' in whole[-1], f"killed after {stage}, not in it"


def records(workdir: Path) -> dict[str, list]:
    """All records without what may differ: times."""
    out = {}
    for name in RECORDS:
        lines = [json.loads(line) for line in (workdir / name).read_text().splitlines()]
        out[name] = [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]
    return out


def compare(config: str, straight: Path, killed: Path, lines: dict[str, int]) -> None:
    finish(config, straight)
    for stage, count in lines.items():
        kill_in_stage(config, killed, stage, count)
    finish(config, killed)
    want, got = records(straight), records(killed)
    for name in RECORDS:
        assert got[name] == want[name], name
    steps = [(line["stage"], line["step"]) for line in got["metrics.jsonl"]]
    assert len(steps) == len(set(steps)), "a step was logged twice"
    assert (killed / "report.html").exists()


def undocumented(workdir: Path) -> set[str]:
    """Logged names that README's table of metrics lacks."""
    table = (ROOT / "README.md").read_text().split("## Metrics")[1].split("## Axes")[0]
    named, prefix = {"stage", "kind", "step", "global_step"}, ""
    for name in re.findall(r"`([^`]+)`", table):
        prefix = prefix if name.startswith("…") else name.split("/")[0]
        named.add(name.replace("…", prefix))
    logged = {key for line in records(workdir)["metrics.jsonl"] for key in line if not key.startswith("reason/")}
    return logged - named


def test_killed_in_every_stage_equals_straight(tmp_path, monkeypatch):
    """Guards: noise re-used or skipped after a resume, a KL reference lost, metrics doubled or overwritten."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # restarts compile nothing again
    compare("configs/smoke.py", tmp_path / "a", tmp_path / "b", {"short": 1, "base": 1, "easy": 3, "hard": 3})
    assert not undocumented(tmp_path / "a")


if __name__ == "__main__":
    config, straight, killed = sys.argv[1:]
    os.chdir(ROOT)
    compare(config, Path(straight), Path(killed), {"short": 100, "base": 12, "easy": 33, "hard": 25})
    print("equal")
