"""One job writes a run directory: another one is refused, a dead one's lock is taken over, one of several takers wins.

Two processes on one directory both ran: 17 lines of metrics for 9 steps, checkpoints removed under each other, a hang.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from e3jax import lock
from e3jax.errors import UserError
from e3jax.lock import NAME, DiskLock, hold, release_all, text_of, this_process
from e3jax.log import RunLog

ROOT = Path(__file__).parent.parent
HOLDING = """
import sys
from e3jax.errors import UserError
from e3jax.lock import hold
try:
    lock = hold(sys.argv[1], say=print, lost=print)
except UserError as error:
    sys.exit(f"refused: {error}")
print("held", flush=True)
sys.stdin.read()
lock.release()
"""


@pytest.fixture(autouse=True)
def released():
    """Let no test leave a thread that renews."""
    yield
    release_all()


@pytest.fixture
def quick(monkeypatch):
    """Turn seconds into hundredths."""
    for name in ("BEAT_S", "STALE_S", "POLL_S"):
        monkeypatch.setattr(lock, name, getattr(lock, name) / 100)


def take(directory, said: list | None = None):
    """Hold the lock in this process."""
    return hold(directory, say=(said if said is not None else []).append, lost=pytest.fail)


def job(directory) -> subprocess.Popen:
    """Start another process that wants the directory and holds it until its stdin is closed."""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, "-c", HOLDING, str(directory)], cwd=ROOT, **pipes)


def elsewhere(directory) -> None:
    """Write the lock of a job on another machine."""
    (directory / NAME).write_text(text_of(this_process()._replace(host="other", machine="another boot", pid=7)))


def test_another_job_is_refused_and_a_killed_one_is_followed(tmp_path):
    """The refusal says who, where, since when, and what to do; on the same machine a killed job costs no wait."""
    other = job(tmp_path)
    assert other.stdout.readline() == "held\n"
    since = json.loads((tmp_path / NAME).read_text())["since"]
    with pytest.raises(UserError) as refused:
        take(tmp_path)
    assert f"another job writes {tmp_path}: process {other.pid} on " in str(refused.value)
    assert f", since {since}, " in str(refused.value) and f"end it (kill {other.pid} on " in str(refused.value)
    with pytest.raises(UserError, match="another job writes"):
        RunLog(tmp_path, {}, tensorboard=False, wandb="")
    assert sorted(p.name for p in tmp_path.iterdir()) == [NAME]  # who was refused has left nothing
    other.kill()  # not waited for: a zombie is dead too
    deadline = time.monotonic() + 30
    while lock.alive(other.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    said = []
    take(tmp_path, said).release()
    assert len(said) == 1 and f"process {other.pid} on" in said[0] and "that process is gone" in said[0], said
    other.communicate()
    assert not list(tmp_path.iterdir())
    ended = job(tmp_path)
    ended.communicate(timeout=60)
    said = []
    take(tmp_path, said)
    assert not said  # an orderly end leaves no lock


def test_a_pid_that_is_another_process_now(tmp_path):
    """After days the pid of a killed job may belong to any process."""
    mine = this_process()
    if not mine.start:
        pytest.skip("this system does not say when a process was started")
    (tmp_path / NAME).write_text(text_of(mine._replace(pid=os.getppid(), start="1")))
    said = []
    take(tmp_path, said)
    assert "its pid is another one's now" in said[0]


def test_the_job_of_another_machine_is_waited_for(tmp_path, quick):
    """A host that was taken away cannot release its lock; one that lives must not lose its directory."""
    elsewhere(tmp_path)
    said = []
    mine = take(tmp_path, said)
    assert len(said) == 2 and "waiting for its next sign of life" in said[0] and "last heard of" in said[1], said
    mine.release()
    elsewhere(tmp_path)
    renewing = threading.Timer(0.1, lambda: os.utime(tmp_path / NAME, (time.time() + 1,) * 2))
    renewing.start()
    with pytest.raises(UserError, match="process 7 on other"):
        take(tmp_path)
    renewing.join()


def test_a_lock_that_cannot_be_read_counts_until_it_is_old(tmp_path):
    """A file system that failed leaves such files, which must not block a directory for ever."""
    for text in ("", "{", '{"host": 1}', "[]", "\x00\x80", '{"pid": "x"}'):
        (tmp_path / NAME).write_text(text)
        os.utime(tmp_path / NAME, (time.time() - 100,) * 2)
        said = []
        take(tmp_path, said).release()
        assert "an unknown host" in said[0] and "it was last heard of 100 s ago" in said[0], said


def race(start: list, count: int = 8) -> int:
    """Make all calls at once; return how many were told that they won."""
    won, barrier = [], threading.Barrier(count)

    def run(act):
        barrier.wait()
        won.append(act())

    threads = [threading.Thread(target=run, args=(start[i % len(start)],)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(won)


def test_one_of_several_takers_wins(tmp_path):
    """Takes a lock that is absent, and a stale one that all have read before any of them writes."""
    at = DiskLock(tmp_path)
    for _ in range(20):
        assert race([lambda: at.swap("", text_of(this_process()))]) == 1
        stale = at.read()
        assert race([lambda s=stale: at.swap(s.version, text_of(this_process()))]) == 1
        assert race([lambda s=stale: at.swap(s.version, text_of(this_process()))]) == 0  # too late
        assert at.swap(at.read().version, "")
    assert not list(tmp_path.iterdir())


def test_one_of_several_jobs_wins(tmp_path):
    """Several whole processes meet the lock of a dead one."""
    (tmp_path / NAME).write_text(text_of(this_process()._replace(pid=2**22 + 1, start="1")))
    jobs = [job(tmp_path) for _ in range(4)]
    heard = [other.stdout.readline() + other.stdout.readline() for other in jobs]  # an end of the pipe, or both lines
    (winner,) = [other for other, text in zip(jobs, heard) if "held" in text]
    refused = [other.stderr.read() for other in jobs if other is not winner]
    assert all(f"process {winner.pid} on" in text for text in refused), refused
    winner.communicate()


def test_a_change_that_was_killed_half_way_is_cleared(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "CLAIM_S", 0.05)
    (tmp_path / f"{NAME}.free").write_text("")
    take(tmp_path)
    assert (tmp_path / NAME).exists() and not (tmp_path / f"{NAME}.free").exists()


def test_a_holder_that_lost_its_lock_ends(tmp_path, quick):
    """A machine that slept for minutes must not write into the run of the job that took over."""
    ended, said = threading.Event(), []
    mine = hold(tmp_path, say=print, lost=lambda why: (said.append(why), ended.set()))
    elsewhere(tmp_path)
    assert ended.wait(10) and "no longer this job's: process 7 on other" in said[0]
    mine.renewed = 0.0  # the thread may be late: the next write looks too
    with pytest.raises(UserError, match="no longer this job's"):
        mine.check()
    mine.release()
    assert (tmp_path / NAME).exists()  # the other's


def test_a_lock_is_renewed_and_written_again_when_somebody_removes_it(tmp_path, quick):
    mine = take(tmp_path)
    os.utime(tmp_path / NAME, (1, 1))
    deadline = time.monotonic() + 10
    while (tmp_path / NAME).stat().st_mtime == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    (tmp_path / NAME).unlink()
    while not (tmp_path / NAME).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert json.loads((tmp_path / NAME).read_text())["nonce"] == mine.holder.nonce


def test_a_process_opens_its_own_directory_again(tmp_path):
    """When a notebook's cell runs twice, nobody has closed the first log."""
    first = RunLog(tmp_path, {}, tensorboard=False, wandb="")
    second = RunLog(tmp_path, {}, tensorboard=False, wandb="")
    assert second.lock is first.lock
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    RunLog(link, {}, tensorboard=False, wandb="")
    second.close()
    first.close()
    assert not (tmp_path / NAME).exists()
    with pytest.raises(UserError, match="another config"):
        RunLog(tmp_path, {"seed": 1}, tensorboard=False, wandb="")
    assert not (tmp_path / NAME).exists()
