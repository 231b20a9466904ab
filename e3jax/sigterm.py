"""From SIGTERM to the end: finish the step, write its checkpoint, and say truly in the last sentence what is kept.

A platform that takes a machine away kills 30 s after SIGTERM; a person may wait longer. A step gets the time that
saving will leave of this, and is then given up, because it could no longer be saved. A checkpoint that is being written
is never cut off from here while bytes arrive: every few seconds a line says how far it is, and what would be left of
the run if the platform killed it now. A write in which nothing moves is given up.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

GRACE_S = 25.0  # for a step and for saving it: a spot TPU is gone 30 s after SIGTERM
LEAST_S = 10.0  # for a step where saving takes most of that: then only a person's SIGTERM leaves time for both
AFTER_S = 10.0  # from the end of a write to the end of the process, for records and the last line
# A write hangs when no file was completed for STALLED_S and for the seconds that its bytes take at SLOWEST bytes per
# second: a write of 1.6 GB completed no file for 16 s on a busy machine.
STALLED_S = 120.0
SLOWEST = 50e6
TOLD_S = 5.0  # between the lines on a write
TERMINATED, LATE = threading.Event(), threading.Event()  # SIGTERM came; the time that it leaves for a step is over


class Write(NamedTuple):
    """A checkpoint that is being written."""

    name: str
    written: int  # bytes in completed files; they are compressed
    size: int  # bytes of the arrays

    def __str__(self):
        return f"{self.name}, {self.written / 1e6:.0f} of at most {self.size / 1e6:.0f} MB written"


class Writer(Protocol):
    """What this file asks of the writer of checkpoints (checkpoint/store.py). Called from another thread."""

    say: Callable[[str], None]

    def under_way(self) -> Write | None:
        """Return the write that is not complete yet, or None."""

    def kept(self) -> str:
        """Return in words from what the same command would go on."""

    def took(self) -> float:
        """Return the seconds that the last complete write took; 0 before the first."""


WRITERS: list[Writer] = []  # only the newest counts, because stages come one after the other


def sigterm_pipe() -> int:
    """Open a pipe from which the number of every signal can be read; a Python handler would wait for a compilation."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    return read


def await_sigterm(pipe: int, leave: Callable[[str], None]) -> None:
    """Set TERMINATED at SIGTERM, and call `leave` with the last sentence if the process has not ended in time."""
    while signal.SIGTERM not in os.read(pipe, 64):
        pass
    TERMINATED.set()
    leave(out_of_time())


def out_of_time() -> str:
    """Wait until the process must end, wherever it is; return why, and what is kept."""
    came = moved = tell_at = time.monotonic()
    took = WRITERS[-1].took() if WRITERS else 0.0
    over = end = came + max(LEAST_S, GRACE_S - took)
    last = None
    while True:
        now = time.monotonic()
        if now > over:
            LATE.set()
        writer = WRITERS[-1] if WRITERS else None
        write = writer.under_way() if writer else None
        since = f"SIGTERM came {now - came:.0f} s ago"
        if write is None:
            if now > end:
                kept = writer.kept() if writer else "what it had saved before"
                return f"{since} and the step is not done: the same command goes on from {kept}"
        else:
            end = max(end, now + AFTER_S)
            if write != last:
                last, moved = write, now
            if now - moved > STALLED_S + write.size / SLOWEST:
                hangs = f"{write}, and nothing for {now - moved:.0f} s. That write is cut off"
                return f"{since}: {hangs}; the same command goes on from {writer.kept()}"
            if now >= tell_at:
                tell_at = now + TOLD_S
                writer.say(f"{since}: {write}. Killed before it is complete, the run goes on from {writer.kept()}")
        time.sleep(0.1)
