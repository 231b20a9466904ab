"""A grader that hangs, dies or prints costs one response at most, and leaves no process behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

from e3jax.metrics.reading import LOST, READ, read
from e3jax.rewards.extract import Grade
from e3jax.rewards.workers import GraderPool, in_batches
from e3jax.tasks.countdown import calculator_problem
from e3jax.tasks.grade import grade_all
from e3jax.tasks.problem import Problem

HERE = "tests.test_rewards_workers"


def moody(problem, text, done):
    """A grader that runs in the workers and does what the response says."""
    if text.startswith("hang"):
        time.sleep(60)
    if text.startswith("die"):
        os._exit(9)
    if text.startswith("once "):  # fails at the first try
        path = text.removeprefix("once ")
        if not os.path.exists(path):
            open(path, "w").close()
            os._exit(9)
    if text.startswith("print"):
        print("a library that talks", flush=True)
    if text.startswith("bug"):
        raise KeyError("a bug")
    if text.startswith("grow"):
        kept = []
        while True:
            kept.append(bytearray(1 << 26))
    if text.startswith("deep"):
        return moody(problem, text, done)
    if text.startswith("stop"):  # and reads no more
        os.kill(os.getpid(), signal.SIGSTOP)
    return Grade(1.0, "correct")


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Let the workers import this file."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def pool(**options) -> GraderPool:
    return GraderPool(**{"workers": 2, "timeout_s": 5.0, "function": f"{HERE}:moody"} | options)


def test_same_grades_as_in_this_process():
    """With 1 and with 4 workers grades come in order."""
    problems = [calculator_problem(0, i, numbers=3, split="train") for i in range(40)]
    texts = [f"<answer> {p.meta['numbers'][0]} + {i} </answer>" for i, p in enumerate(problems)]
    done = [i % 3 > 0 for i in range(40)]
    want = grade_all(problems, texts, done)
    for workers in (1, 4):
        with GraderPool(workers=workers, timeout_s=30.0) as graders:
            assert graders.grade_all(problems, texts, done) == want
            assert graders.submit(problems[:3], texts[:3], done[:3]).result() == want[:3]


def test_what_fails_twice_scores_0_and_its_neighbours_keep_their_grades(tmp_path):
    """A worker that hangs or dies takes the rest of its batch along, which must be graded all the same."""
    texts = ["fine"] * 20
    texts[3], texts[4], texts[11] = "die", f"once {tmp_path / 'tried'}", "hang"
    start = time.monotonic()
    with pool(timeout_s=1.0) as graders:
        grades = graders.grade_all([None] * 20, texts, [True] * 20)
        left = [worker.process for worker in graders.started]
    lost = [i for i, grade in enumerate(grades) if grade != Grade(1.0, "correct")]
    assert lost == [3, 11] and grades[3] == grades[11] == Grade(0.0, "timeout")
    assert time.monotonic() - start < 20
    assert all(process.poll() is not None for process in left)  # reaped: no zombies


@pytest.mark.parametrize("stopped", ["before", "within"])
def test_a_worker_that_stops_reading_is_replaced(stopped):
    """Writing had no deadline: eight texts of 50 kB filled the pipe of a stopped worker, and the run hung for ever."""
    texts = [f"{i} {'long ' * 10_000}" for i in range(24)]
    if stopped == "within":
        texts[2] = "stop" + texts[2]
    with pool(workers=1, timeout_s=1.0) as graders:
        graders.grade_all([None], ["fine"], [True])
        if stopped == "before":
            os.kill(graders.started[0].process.pid, signal.SIGSTOP)
        start = time.monotonic()
        grades = graders.grade_all([None] * 24, texts, [True] * 24)
    lost = [i for i, grade in enumerate(grades) if grade != Grade(1.0, "correct")]
    assert lost == ([2] if stopped == "within" else []) and time.monotonic() - start < 60


@pytest.mark.parametrize("text", ["grow", "deep"])
def test_a_text_that_eats_memory_or_stack_costs_its_own_grade(text):
    """Without a limit a worker took the host's memory, and the trainer went with it; too deep a text ended the run."""
    with pool(workers=1, timeout_s=30.0) as graders:
        grades = graders.grade_all([None] * 3, ["fine", text, "fine"], [True] * 3)
    assert grades == [Grade(1.0, "correct"), Grade(0.0, "timeout"), Grade(1.0, "correct")]


def test_a_message_is_bounded():
    """A worker gets at most FEW responses at once, and long ones one by one."""
    items = [(None, "x" * size, True) for size in (3_000_000, 3_000_000, 10_000_000, 1, 1, 3_999_999)]
    assert [[len(text) for _, text, _ in few] for few in in_batches(iter(items))] == [
        [3_000_000],
        [3_000_000],
        [10_000_000],
        [1, 1],
        [3_999_999],
    ]
    assert [len(few) for few in in_batches(iter([(None, "", True)] * 20))] == [8, 8, 4] and not [*in_batches(iter([]))]


def test_readings_come_from_the_workers():
    """Features and the share of a plan are computed beside the grade, bit for bit as in this process."""
    problem = Problem("p", "math", "q", "5", "", {"where": "execution"})
    plan = "1. add\n</EXPLORATION><EXECUTION>1. add\nWait, 2+3=5 \\boxed{5}</EXECUTION>"
    calculator = calculator_problem(0, 0, numbers=3, split="train")
    problems, texts = (
        [problem, problem, calculator],
        ["<EXPLORATION>" + plan, plan, "7 + 5 = 12 no <answer> 7 </answer>"],
    )
    options = {"following": "sound", "apart": True}
    with GraderPool(workers=2, timeout_s=30.0, function=READ, lost=LOST) as graders:
        readings = graders.submit(problems, texts, [True] * 3, **options).result()
    assert readings == [read(p, text, True, **options) for p, text in zip(problems, texts)]
    assert [r.share for r in readings] == [1.0, 0.0, 0.0] and readings[0].features["verifications"] == 1
    assert readings[2].parts.attempts[0].proposal == "7 + 5" and readings[2].parts.answer == "7"


def test_what_a_grader_prints_is_no_answer(capfd):
    with pool() as graders:
        assert graders.grade_all([None], ["print"], [True]) == [Grade(1.0, "correct")]
    assert "a library that talks" in capfd.readouterr().err


def test_a_bug_in_a_grader_is_shown():
    """Scored 0 it would train the model on noise. After it, no answer of the old batch is taken for one of the next."""
    with pool(workers=1) as graders:
        with pytest.raises(RuntimeError, match="KeyError: 'a bug'"):
            graders.grade_all([None] * 3, ["bug", "fine", "fine"], [True] * 3)
        grades = graders.grade_all([None] * 2, ["die", "fine"], [True] * 2)
        assert grades == [Grade(0.0, "timeout"), Grade(1.0, "correct")] and len(graders.started) == 1


def test_workers_end_with_their_parent():
    """A trainer that is killed must not leave graders behind, hanging ones included."""
    code = (
        "import os, signal, threading, time\n"
        "from e3jax.rewards.workers import GraderPool\n"
        f"pool = GraderPool(workers=1, timeout_s=60.0, function='{HERE}:moody')\n"
        "later = pool.submit([None], ['hang'], [True])\n"
        "while not pool.started: time.sleep(0.01)\n"
        "time.sleep(1.0)\n"
        "print(pool.started[0].process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{pid}")
