"""A run killed in every stage and started again with the same command ends with exactly the same numbers.

The whole campaign, at least 50 kills: benchmarks/faults.py. For the quickstart, killed once in each stage (minutes):

    PYTHONPATH=. python tests/test_train_resume.py configs/quickstart.py runs/quickstart /tmp/killed
"""

import os
import signal
import sys
from pathlib import Path

from benchmarks.faults import EVERY_STEP, Command, difference, records, run_to_end, writing
from e3jax.metrics.names import undefined, undefined_fields

ROOT = Path(__file__).parent.parent
# with dynamic sampling, whose draws are made again too
FLAGS = (*EVERY_STEP, "--config.stages.short.steps=20", "--config.stages.base.steps=20", "--config.grpo.rounds=2")


def undocumented(workdir: Path) -> set[str]:
    """Return the logged names that docs/metrics.md lacks (e3jax/metrics/names.py)."""
    of, found = records(workdir), set()
    for line in of["metrics.jsonl"]:
        found |= undefined(line["kind"], set(line) - {"stage", "kind", "step", "global_step"})
    for name in ("eval.jsonl", "budget.jsonl"):
        assert of[name], name
        found |= {field for line in of[name] for field in undefined_fields(name, line)}
    return found


def killed_when(happened, workdir: Path, *flags: str, number=signal.SIGKILL, **options) -> Command:
    """Run one life of the run, ended by a signal as soon as `happened(command)`."""
    command = Command(workdir, *flags, **options)
    assert command.wait_for(lambda: happened(command), 7200), f"over too early: {command.said[-2000:]}"
    command.kill(number)
    return command


def refused(workdir: Path, running: Command) -> bool:
    """Pause a run: a second command on its directory ends with one sentence. It once made 17 lines of 9 steps."""
    running.process.send_signal(signal.SIGSTOP)
    second = Command(workdir, *FLAGS)
    assert second.end() == 2 and "Traceback" not in second.said, second.said
    return f"error: another job writes {workdir}: process {running.process.pid} on " in second.said


def test_killed_in_every_stage_equals_straight(tmp_path):
    """Guards: noise re-used or skipped after a resume, a KL reference lost, metrics doubled or overwritten.

    SIGKILL in a supervised stage, an evaluation, between two stages and in a checkpoint write; SIGTERM in RL.
    """
    straight, killed = tmp_path / "a", tmp_path / "b"
    run_to_end(straight, *FLAGS)
    first = killed_when(lambda c: c.logged("short", 1) and refused(killed, c), killed, *FLAGS)
    followed = killed_when(lambda c: "base: SFT: " in c.said, killed, *FLAGS)
    assert f"was taken by process {first.process.pid} on " in followed.said, followed.said
    killed_when(lambda c: "base: pass@k, 4 numbers: " in c.said, killed, *FLAGS)
    stopped = killed_when(lambda c: c.logged("easy", 3), killed, *FLAGS, number=signal.SIGTERM)
    assert stopped.process.returncode == 0 and "stopped by SIGTERM: easy, step " in stopped.said, stopped.said
    killed_when(lambda c: any("/hard/" in path for path in writing(killed)), killed, *FLAGS)
    assert not (killed / "DONE").exists()
    run_to_end(killed, *FLAGS)
    assert not (found := difference(straight, killed)), found
    steps = [(line["stage"], line["step"]) for line in records(killed)["metrics.jsonl"]]
    assert len(steps) == len(set(steps)), "a step was logged twice"
    drawn = records(killed)["drawn.jsonl"]  # a line a round; 4 of its problems are trained on in the step
    assert {line["round"] for line in drawn} == {0, 1}
    assert sum(len(line["kept"]) for line in drawn) == 4 * len({(line["stage"], line["step"]) for line in drawn})
    assert (killed / "report.html").exists() and (killed / "DONE").exists()
    assert len((killed / "starts.jsonl").read_text().splitlines()) == 6
    assert not undocumented(straight)


if __name__ == "__main__":
    config, straight, killed = sys.argv[1:]
    os.chdir(ROOT)
    run_to_end(Path(straight), config=config)
    for stage, lines in {"short": 100, "base": 12, "easy": 33, "hard": 25}.items():
        killed_when(lambda c, s=stage, n=lines: c.logged(s, n), Path(killed), config=config)
    run_to_end(Path(killed), config=config)
    print(difference(Path(straight), Path(killed)) or "equal")
