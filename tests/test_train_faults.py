"""Full disks and gradients that are not finite end a run with a sentence, and with everything that was good intact."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_storage import small_disk  # noqa: F401, a fixture

from benchmarks.faults import Command, difference, run_to_end

ROOT = Path(__file__).parent.parent
EASY = ("--config.order=('easy',)", "--config.stages.easy.steps=6", "--config.stages.easy.budget=48",
        "--config.checkpoint.every=1", "--config.log.tensorboard=False")  # fmt: skip


@pytest.fixture(autouse=True)
def compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def test_a_disk_that_fills_up_during_a_run(small_disk, tmp_path):  # noqa: F811
    """1 MB holds no checkpoint of 2 MB: a minute of tries, one sentence. On a larger disk the run goes on from there."""
    run_to_end(tmp_path / "straight", *EASY)
    subprocess.run(["mount", "-o", "remount,size=6m", str(small_disk)], check=True)
    filled = Command(small_disk / "run", *EASY, env={"E3JAX_WAITS_S": "0.1,0.2"})
    assert filled.wait_for(lambda: (small_disk / "run/checkpoints/easy/1/commit_success.txt").exists()), filled.said
    (small_disk / "other people's files").write_bytes(bytes(6_000_000 - 100_000))
