"""Graders in processes of their own: one that hangs or dies is replaced, its response tried once more, then scored 0.

    with GraderPool(workers=2, timeout_s=10.0) as pool:
        grades = pool.grade_all(problems, texts, done)     # as rewards/grade.py, which the workers call
        later = pool.submit(problems, texts, done)         # at once; later.result() is the list of grades

A worker is `python -m e3jax.rewards.pool MODULE:FUNCTION`; it knows nothing of jax, and ends with its parent.
"""

import contextlib
import importlib
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from e3jax.rewards.extract import Grade

FEW = 8  # responses that a worker gets at once: fewer wait longer on pipes, more wait longer for a slow neighbour
START_S = 120.0  # for a worker to import its grader, on a slow file system
GRADE = "e3jax.rewards.grade:grade_one"


class GraderPool:
    """`workers` processes, each fed by a thread that waits `timeout_s` for one grade at most."""

    def __init__(self, *, workers: int, timeout_s: float, function: str = GRADE):
        self.timeout_s, self.function, self.mine = timeout_s, function, threading.local()
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="grader")
        self.started: list[Worker] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """End all workers."""
        self.threads.shutdown(cancel_futures=True)
        for worker in self.started:
            worker.end()

    def grade_all(self, problems: Sequence, texts: Sequence[str], done: Sequence[bool]) -> list[Grade]:
        """One Grade per (Problem, response, done), in order."""
        return self.submit(problems, texts, done).result()

    def submit(self, problems: Sequence, texts: Sequence[str], done: Sequence[bool]) -> "Later":
        """The same without waiting, a few at a time to every worker."""
        items = list(zip(problems, texts, done, strict=True))
        return Later([self.threads.submit(self.judge, items[i : i + FEW]) for i in range(0, len(items), FEW)])

    def judge(self, items: list[tuple]) -> list[Grade]:
        """Grades of a few responses by this thread's worker; the second failure at a response is its grade."""
        grades, failed_at = [], -1
        while len(grades) < len(items):
            if getattr(self.mine, "worker", None) is None:
                self.mine.worker = Worker(self.function)
                self.started.append(self.mine.worker)
            try:
                grades += self.mine.worker.ask(items[len(grades) :], self.timeout_s)
            except RuntimeError:
                self.replace()  # its further answers are nobody's
                raise
            if len(grades) == len(items):
                break
            self.replace()  # it hung at the next response, or died of it
            if failed_at == len(grades):
                grades.append(Grade(0.0, "timeout"))
            else:
                failed_at = len(grades)
        return grades

    def replace(self) -> None:
        """End this thread's worker; the next response starts another."""
        self.mine.worker.end()
        self.started.remove(self.mine.worker)
        self.mine.worker = None


class Later(NamedTuple):
    """Grades under way."""

    parts: list[Future]

    def result(self) -> list[Grade]:
        """Wait for all of them."""
        return [grade for part in self.parts for grade in part.result()]


class Worker:
    """One process; what it prints goes to stderr."""

    def __init__(self, function: str):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "e3jax.rewards.pool", function], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent
        )  # fmt: skip
        try:
            self.receive(time.monotonic() + START_S)  # it has imported its grader: from here on time is its own
        except (EOFError, TimeoutError) as error:
            self.end()
            raise RuntimeError(f"a grader ({function}) does not start; what it said is above") from error

    def ask(self, items: list, timeout_s: float) -> list[Grade]:
        """Their grades, in order; fewer where it died, or one took longer than `timeout_s`."""
        grades = []
        try:
            send(self.process.stdin, items)
            while len(grades) < len(items):
                grade = self.receive(time.monotonic() + timeout_s)
                if isinstance(grade, str):  # the grader raised: that is a bug, and no grade
                    raise RuntimeError(f"the grader failed at {items[len(grades)][0]}:\n{grade}")
                grades.append(Grade(*grade))
        except (BrokenPipeError, EOFError, TimeoutError):
            pass
        return grades

    def receive(self, deadline: float) -> Any:
        """The next message; EOFError, TimeoutError."""
        data = b""
        while len(data) < 4 or len(data) < 4 + struct.unpack("<I", data[:4])[0]:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([self.process.stdout], [], [], left)[0]:
                raise TimeoutError
            size = 4 if len(data) < 4 else 4 + struct.unpack("<I", data[:4])[0]
            more = os.read(self.process.stdout.fileno(), size - len(data))
            if not more:
                raise EOFError
            data += more
        return pickle.loads(data[4:])

    def end(self) -> None:
        """Kill it, and leave no zombie."""
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):  # it may have died with a message half-way
            self.process.stdin.close()
        self.process.stdout.close()


def send(file, value) -> None:
    """One message: its length, then its pickle."""
    data = pickle.dumps(value)
    file.write(struct.pack("<I", len(data)) + data)
    file.flush()


def serve(function: str) -> None:
    """What a worker does: read lists of arguments, write one grade each, until the parent closes the pipe."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write into the answers
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    module, name = function.split(":")
    grade = getattr(importlib.import_module(module), name)
    send(answers, "ready")
    while header := sys.stdin.buffer.read(4):
        for item in pickle.loads(sys.stdin.buffer.read(struct.unpack("<I", header)[0])):
            try:
                answer = tuple(grade(*item))
            except Exception:
                answer = traceback.format_exc()
            send(answers, answer)


def end_with(parent: int) -> None:
    """End when the parent has gone, even in the middle of a grade that hangs."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    serve(sys.argv[1])
