"""Run graders in other processes: one that hangs or dies is replaced, its response tried once more, then scored 0.

    with GraderPool(workers=2, timeout_s=10.0) as pool:
        grades = pool.grade_all(problems, texts, done)     # as tasks/grade.py, which the workers call
        later = pool.submit(problems, texts, done)         # at once; later.result() is the list of grades

A worker is `python -m e3jax.rewards.workers MODULE:FUNCTION [ARGUMENT …]`; with arguments, FUNCTION(ARGUMENT, …) makes
the grader. It knows nothing of jax, and ends with its parent. It may grow by MEMORY bytes. What a text does to it (too
slow, stopped, out of memory, too deep, dead) costs that text's grade and nothing else; a UserError is for the user, and
an exception of another kind is a bug of the grader: both end the run.
"""

import contextlib
import importlib
import os
import pickle
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from e3jax.errors import UserError, need, need_at_least_one
from e3jax.rewards.extract import Grade

FEW = 8  # responses that a worker gets at once: fewer wait longer on pipes, more wait longer for a slow neighbour
MOST_CHARS = 4_000_000  # of them together, where they are more than one
START_S = 120.0  # for a worker to import its grader, on a slow file system
MEMORY = 2 << 30  # bytes that a worker may take beyond what it has once its grader is imported
SIZE = struct.Struct("<Q")  # of a message, in front of it
GRADE = "e3jax.tasks.grade:grade_one"
LOST = Grade(0.0, "timeout")


@dataclass(frozen=True)
class Graders:
    """A config's `grader` section: the processes of a host."""

    workers: int
    timeout_s: float  # for a response; it is tried twice

    def __post_init__(self):
        need_at_least_one(self, "workers")
        need(self.timeout_s > 0, "timeout_s", self.timeout_s, "must be above 0")

    def start(self, **how) -> "GraderPool":
        """Return the pool of these processes, for a with block; `how` is the function that reads a response."""
        return GraderPool(workers=self.workers, timeout_s=self.timeout_s, **how)


class GraderPool:
    """`workers` processes, each fed by a thread that waits `timeout_s` for one grade at most.

    `function` may return something else than a Grade: `lost` is what then stands for the answer of one that failed.
    With `arguments`, function(*arguments) makes the grader, before the first response.
    """

    def __init__(
        self, *, workers: int, timeout_s: float, function: str = GRADE, arguments: Sequence[str] = (), lost: Any = LOST
    ):
        self.timeout_s, self.lost, self.mine = timeout_s, lost, threading.local()
        self.command = [function, *arguments]
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
        """Return one Grade per (Problem, response, done), in order."""
        return self.submit(problems, texts, done).result()

    def submit(self, problems: Sequence, texts: Sequence[str], done: Sequence[bool], **options) -> "Later":
        """Start to grade, a few responses at a time to every worker; `options` are arguments of the function."""
        items = zip(problems, texts, done, strict=True)
        return Later([self.threads.submit(self.judge, few, options) for few in in_batches(items)])

    def judge(self, items: list[tuple], options: dict) -> list[Grade]:
        """Return grades of a few responses by this thread's worker; one at which it fails twice gets `lost`."""
        grades, failed_at = [], -1
        while len(grades) < len(items):
            if getattr(self.mine, "worker", None) is None:
                self.mine.worker = Worker(self.command)
                self.started.append(self.mine.worker)
            try:
                grades += self.mine.worker.ask(items[len(grades) :], options, self.timeout_s)
            except (RuntimeError, UserError):
                self.replace()  # its further answers are nobody's
                raise
            if len(grades) == len(items):
                break
            self.replace()  # it hung at the next response, or died of it
            if failed_at == len(grades):
                grades.append(self.lost)
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


def in_batches(items: Iterator[tuple]) -> Iterator[list[tuple]]:
    """Yield lists of at most FEW (problem, text, done), and of at most MOST_CHARS characters unless it is one text."""
    few, size = [], 0
    for item in items:
        if few and (len(few) == FEW or size + len(item[1]) > MOST_CHARS):
            yield few
            few, size = [], 0
        few.append(item)
        size += len(item[1])
    if few:
        yield few


class Worker:
    """One process; what it prints goes to stderr."""

    def __init__(self, command: list[str]):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "e3jax.rewards.workers", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the parent
        )
        os.set_blocking(self.process.stdin.fileno(), False)
        try:
            self.receive(time.monotonic() + START_S)  # it has imported its grader: from here on time is its own
        except (EOFError, TimeoutError) as error:
            self.end()
            raise RuntimeError(f"a grader ({' '.join(command)}) did not start: its message is above") from error

    def ask(self, items: list, options: dict, timeout_s: float) -> list:
        """Return its answers, in order; fewer where it died, or needed over `timeout_s` to read all or answer one."""
        answers = []
        try:
            self.send((items, options), time.monotonic() + timeout_s)
            while len(answers) < len(items):
                answer, error = self.receive(time.monotonic() + timeout_s)
                if isinstance(error, UserError):
                    raise error
                if error:  # the grader raised: that is a bug, and no grade
                    raise RuntimeError(f"the grader failed at {items[len(answers)][0]}:\n{error}")
                answers.append(answer)
        except (BrokenPipeError, EOFError, TimeoutError):
            pass
        return answers

    def send(self, value: Any, deadline: float) -> None:
        """Send one message; BrokenPipeError where the worker died, TimeoutError where it does not read on."""
        pipe, left = self.process.stdin.fileno(), memoryview(framed(value))
        while left:
            wait_for(pipe, select.POLLOUT, deadline)
            left = left[os.write(pipe, left) :]

    def receive(self, deadline: float) -> Any:
        """Return the next message; EOFError, TimeoutError."""
        return pickle.loads(self.read(SIZE.unpack(self.read(SIZE.size, deadline))[0], deadline))

    def read(self, size: int, deadline: float) -> bytes:
        """Return the next `size` bytes of its answers."""
        pipe, data = self.process.stdout.fileno(), bytearray()
        while len(data) < size:
            wait_for(pipe, select.POLLIN, deadline)
            more = os.read(pipe, size - len(data))
            if not more:
                raise EOFError
            data += more
        return bytes(data)

    def end(self) -> None:
        """Kill it, and leave no zombie."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def wait_for(pipe: int, event: int, deadline: float) -> None:
    """Wait until the pipe can be read or written, or its other end is closed; TimeoutError."""
    poll = select.poll()  # select.select knows no file number above 1,023
    poll.register(pipe, event)
    if not poll.poll(1000 * max(deadline - time.monotonic(), 0)):
        raise TimeoutError


def framed(value: Any) -> bytes:
    """Return a message: its length, then its pickle."""
    data = pickle.dumps(value)
    return SIZE.pack(len(data)) + data


def serve(function: str, *arguments: str) -> None:
    """Run a worker: read lists of arguments and write one answer each, until the parent closes the pipe."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write into the answers
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    module, name = function.split(":")
    judge = getattr(importlib.import_module(module), name)
    judge = judge(*arguments) if arguments else judge
    limit_memory()

    def answer(value: Any, error: str | UserError = "") -> None:
        answers.write(framed((value, error)))
        answers.flush()

    answer("ready")
    while header := sys.stdin.buffer.read(SIZE.size):
        items, options = pickle.loads(sys.stdin.buffer.read(SIZE.unpack(header)[0]))
        for item in items:
            try:
                value = judge(*item, **options)
            except (MemoryError, RecursionError):  # the text's doing, as is a hang
                os._exit(1)
            except UserError as error:
                answer(None, UserError(str(error)))
            except Exception:
                answer(None, traceback.format_exc())
            else:
                answer(value)


def limit_memory() -> None:
    """Let this process grow by MEMORY bytes at most; where the system does not say how large it is, without limit."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def end_with(parent: int) -> None:
    """End when the parent has gone, even in the middle of a grade that hangs."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    serve(*sys.argv[1:])
