"""A run killed in every stage and started again with the same command ends with exactly the same numbers.

The whole campaign, at least 50 kills: benchmarks/faults.py. For the quickstart, killed once in each stage (minutes):

    PYTHONPATH=. python tests/test_train_resume.py configs/quickstart.py runs/quickstart /tmp/killed
"""

import os
import random
import re
import signal
import sys
from pathlib import Path

from benchmarks.faults import EVERY_STEP, Command, difference, kill_at_random, records, run_to_end

ROOT = Path(__file__).parent.parent


def undocumented(workdir: Path) -> set[str]:
    """Logged names that README's table of metrics lacks."""
    table = (ROOT / "README.md").read_text().split("## Metrics")[1].split("## Axes")[0]
    named, prefix = {"stage", "kind", "step", "global_step"}, ""
    for name in re.findall(r"`([^`]+)`", table):
        prefix = prefix if name.startswith("…") else name.split("/")[0]
        named.add(name.replace("…", prefix))
    logged = {key for line in records(workdir)["metrics.jsonl"] for key in line if not key.startswith("reason/")}
    return logged - named


def kill_in(workdir: Path, stage: str, steps: int, *flags: str, number=signal.SIGKILL, **options) -> Command:
    """One life, ended as soon as the stage has logged so many lines."""
    command = Command(workdir, *flags, **options)
    assert command.wait_for(lambda: command.logged(stage, steps), 7200), f"over before {stage}: {command.said[-2000:]}"
    command.kill(number)
    return command


def test_killed_in_every_stage_equals_straight(tmp_path, monkeypatch):
    """Guards: noise re-used or skipped after a resume, a KL reference lost, metrics doubled or overwritten.

    SIGKILL in a supervised stage, while a checkpoint is written, in an evaluation and between stages; SIGTERM in RL.
    """
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # restarts compile nothing again
    straight, killed, rng = tmp_path / "a", tmp_path / "b", random.Random(0)
    run_to_end(straight, *EVERY_STEP)
    kill_in(killed, "short", 1, *EVERY_STEP)
    for kind in ("checkpoint write", "evaluation", "between stages"):
        assert kill_at_random(killed, kind, rng, EVERY_STEP, 60.0), kind
    stopped = kill_in(killed, "hard", 2, *EVERY_STEP, number=signal.SIGTERM)
    assert stopped.process.returncode == 0 and "stopped by SIGTERM: hard, step " in stopped.said, stopped.said
    assert not (killed / "DONE").exists()
    run_to_end(killed, *EVERY_STEP)
    assert not (found := difference(straight, killed)), found
    steps = [(line["stage"], line["step"]) for line in records(killed)["metrics.jsonl"]]
    assert len(steps) == len(set(steps)), "a step was logged twice"
    assert (killed / "report.html").exists() and (killed / "DONE").exists()
    assert len((killed / "starts.jsonl").read_text().splitlines()) == 6
    assert not undocumented(straight)


if __name__ == "__main__":
    config, straight, killed = sys.argv[1:]
    os.chdir(ROOT)
    run_to_end(Path(straight), config=config)
    for stage, lines in {"short": 100, "base": 12, "easy": 33, "hard": 25}.items():
        kill_in(Path(killed), stage, lines, config=config)
    run_to_end(Path(killed), config=config)
    print(difference(Path(straight), Path(killed)) or "equal")
