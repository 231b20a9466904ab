"""Runs of two machines become one directory: what is copied, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest

from e3jax.errors import UserError
from e3jax.experiments.collect import collect, main

COMMIT = "a" * 40


def write_run(machine: Path, name: str, *, reward: float, commit: str = COMMIT, steps: int = 60) -> Path:
    """Write a finished run as experiments.run leaves it."""
    run = machine / name
    (run / "checkpoints/rl/60").mkdir(parents=True)
    (run / "checkpoints/rl/60/weights").write_text("large")
    (run / "config.json").write_text(json.dumps({"steps": steps}))
    (run / "starts.jsonl").write_text(json.dumps({"time": "2026-11-30", "commit": commit}) + "\n")
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "reward/mean": reward}) + "\n")
    (run / "lock.json").write_text("{}")
    (run / "DONE").write_text("")
    return run


def two_machines(path: Path) -> tuple[Path, Path]:
    """Return two directories: the base and an arm, then a copy of the base, another arm and an evaluation."""
    monday, tuesday = path / "monday", path / "tuesday"
    for machine, arm in ((monday, "grpo"), (tuesday, "mask")):
        write_run(machine, "bases/countdown/seed0", reward=0.1)
        write_run(machine, f"mask/{arm}/seed0", reward=0.5)
    evaluation = tuesday / "wait/eval/seed0"
    evaluation.mkdir(parents=True)
    (evaluation / "eval.jsonl").write_text("{}\n")
    (evaluation / "config.json").write_text("{}")
    for machine in (monday, tuesday):  # copies: no times are in it
        scaling = machine / "e2c/scaling/seed0"
        scaling.mkdir(parents=True)
        (scaling / "scaling.jsonl").write_text("{}\n")
        (scaling / "config.json").write_text("{}")
    return monday, tuesday


def test_runs_of_two_machines_come_together(tmp_path):
    """Small files come, once; checkpoints and locks do not; a second call changes nothing."""
    monday, tuesday = two_machines(tmp_path)
    (monday / "mask/nsr/seed0").mkdir(parents=True)  # not finished
    assert collect([str(monday)], tmp_path / "all") == 3
    assert collect([str(monday), str(tuesday)], tmp_path / "all") == 2
    assert collect([str(tuesday)], tmp_path / "all") == 0
    came = sorted(p.relative_to(tmp_path / "all").as_posix() for p in (tmp_path / "all").rglob("*") if p.is_file())
    files = ("DONE", "config.json", "metrics.jsonl", "starts.jsonl")
    runs = ("bases/countdown/seed0", "mask/grpo/seed0", "mask/mask/seed0")
    evaluations = [f"wait/eval/seed0/{name}" for name in ("config.json", "eval.jsonl")]
    evaluations += [f"e2c/scaling/seed0/{name}" for name in ("config.json", "scaling.jsonl")]
    assert came == sorted([f"{run}/{name}" for run in runs for name in files] + evaluations)
    assert (tmp_path / "all/mask/mask/seed0/metrics.jsonl").read_text() == (
        tuesday / "mask/mask/seed0/metrics.jsonl"
    ).read_text()


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("bases/countdown/seed0", {"reward": 0.2}, "same base made twice: arms of one seed need one base"),
        ("mask/grpo/seed0", {"reward": 0.2}, "same run made twice: leave one of them out"),
        ("mask/grpo/seed0", {"reward": 0.5, "steps": 50}, "different configs"),
        ("mask/nsr/seed0", {"reward": 0.5, "commit": "b" * 40}, "of 2 commits"),
        ("mask/nsr/seed0", {"reward": 0.5, "commit": COMMIT + "+dirty"}, "of 2 commits"),
    ],
)
def test_what_must_not_be_merged_is_refused(tmp_path, name, changes, words):
    monday, tuesday = two_machines(tmp_path)
    shutil.rmtree(tuesday / name, ignore_errors=True)
    write_run(tuesday, name, **changes)
    with pytest.raises(UserError, match=words):
        collect([str(monday), str(tuesday)], tmp_path / "all")
    assert not (tmp_path / "all").exists()
    if "commits" in words:
        assert collect([str(monday), str(tuesday)], tmp_path / "all", any_commit=True) == 6


def test_a_wrong_directory_is_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    for wrong, words in (("nowhere", "is no directory"), ("empty", "has no finished run")):
        monkeypatch.setattr("sys.argv", ["collect", str(tmp_path / wrong), f"--to={tmp_path / 'all'}"])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr().err
        assert ended.value.code == 2 and words in said and "Traceback" not in said
