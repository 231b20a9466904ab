"""After SIGTERM no write of a checkpoint is cut off while bytes arrive, and the last sentence says what is kept.

The first large checkpoint of a run was cut off after 25 s: all work was lost, and the run said "the step is not done".
"""

import threading
import time

import pytest

from e3jax import sigterm
from e3jax.sigterm import LATE, WRITERS, Write, out_of_time


class Slow:
    """A writer whose checkpoint is complete `seconds` after its making; its bytes arrive until `stalls`."""

    def __init__(self, seconds: float, *, stalls: float = 1e9, took: float = 0.0):
        self.start, self.seconds, self.stalls, self.last = time.monotonic(), seconds, stalls, took
        self.said = []
        self.say = self.said.append

    def under_way(self) -> Write | None:
        age = time.monotonic() - self.start
        return None if age > self.seconds else Write("checkpoint 2", int(1e7 * min(age, self.stalls)), 26_000_000)

    def kept(self) -> str:
        return "checkpoint 1" if self.under_way() else "checkpoint 2"

    def took(self) -> float:
        return self.last


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Turn seconds into tenths or hundredths, and let no test leave a writer behind."""
    for name in ("GRACE_S", "LEAST_S", "AFTER_S", "TOLD_S"):
        monkeypatch.setattr(sigterm, name, getattr(sigterm, name) / 50)
    monkeypatch.setattr(sigterm, "STALLED_S", 0.5)
    before = list(WRITERS)
    yield
    WRITERS[:] = before
    LATE.clear()


def test_a_write_is_waited_for_and_the_end_says_that_it_is_kept():
    """The write takes longer than the grace period (0.5 s here), and then the process has time to end by itself."""
    writer, start = Slow(1.5), time.monotonic()
    WRITERS[:] = [writer]
    sentence = out_of_time()
    assert 1.5 + sigterm.AFTER_S - 0.1 < time.monotonic() - start
    assert sentence.endswith("the step is not done: the same command goes on from checkpoint 2")
    assert len(writer.said) > 5 and LATE.is_set()
    assert "MB written. Killed before it is complete, the run goes on from checkpoint 1" in writer.said[0]


def test_a_write_that_hangs_is_cut_off_in_words():
    writer = Slow(1e9, stalls=0.3)
    WRITERS[:] = [writer]
    sentence = out_of_time()
    assert "checkpoint 2, 3 of at most 26 MB written, and nothing for" in sentence
    assert sentence.endswith("That write is cut off; the same command goes on from checkpoint 1")


@pytest.mark.parametrize("took, share", [(0.0, 25), (12 / 50, 13), (1.0, 10)])
def test_a_step_leaves_the_time_to_save_it(took, share):
    """Of 30 s a step gets 25 where saving is quick, and less where it is slow; also without any writer."""
    WRITERS[:] = [Slow(0.0, took=took)] if took else []
    start = time.monotonic()
    assert "and the step is not done: the same command goes on from" in out_of_time()
    assert share / 50 - 0.01 < time.monotonic() - start < share / 50 + 0.25


def test_the_event_is_set_before_the_last_sentence():
    """`stop_asked` must return during the wait for the write."""
    said = threading.Event()
    read, write = sigterm.os.pipe()
    sigterm.os.write(write, bytes([sigterm.signal.SIGTERM]))
    thread = threading.Thread(target=sigterm.await_sigterm, args=(read, lambda why: said.set()))
    thread.start()
    try:
        assert sigterm.TERMINATED.wait(5) and said.wait(5)
    finally:
        thread.join()
        sigterm.TERMINATED.clear()
