"""Search traces in text: is every equation true, and is what is read of a trace what was written?

    python benchmarks/text_traces.py --kind=countdown --problems=10000
    python benchmarks/text_traces.py --kind=MULT-V --problems=10000
    python benchmarks/text_traces.py --kind=MULT --problems=200 --planted     # each with a false equation

Equations are checked without the package's readers, by integers alone. tests/test_countdown_text.py and
tests/test_multiplication_text.py do the same with a few hundred problems.
"""

import argparse
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from e3jax.rewards.extract import last_answer, last_boxed
from e3jax.tasks import countdown_text, multiplication_text
from e3jax.tasks.grade import grade_one
from e3jax.tasks.problem import Problem
from e3jax.tasks.stream import Wording
from e3jax.tasks.table import TASKS
from e3jax.tasks.written_arithmetic import false_equations, read_equations

SEARCH = dict(give_up=0.35, persistent=0.05, persistent_solution_rate=0.0)
HABITS = {
    "countdown": SEARCH | dict(solution_rate=0.0, most_attempts=24, most_characters=4000),
    "MULT": SEARCH | dict(solution_rate=0.5, most_attempts=8, most_characters=6000, checked=False),
    "MULT-V": SEARCH | dict(solution_rate=0.5, most_attempts=8, most_characters=6000, checked=True),
}
NUMBERS, DIGITS = (3, 4, 3, 4, 2, 5, 6), ((5, 5), (2, 2), (3, 1), (1, 3), (1, 1), (8, 6))
EQUATION = re.compile(r"((?:-?\d+|\(-\d+\))(?: [-+*/] (?:\d+|\(-\d+\)))+) = (-?\d+)")


class Survey(NamedTuple):
    """What was found in traces."""

    problems: int
    planted: int  # traces with a false equation
    attempts: int
    solved: int
    equations: int
    chance: float  # share of solutions among the expressions of Countdown that an attempt is drawn from, mean
    wrong: list[str]  # what is not as it should be


def made(kind: str, count: int, *, seed: int) -> Iterator[Problem]:
    """Yield problems of several sizes."""
    form, sizes = ("paper", NUMBERS) if kind == "countdown" else ("multiplication", DIGITS)
    for i in range(count):
        source = (sizes[i % len(sizes)],) if form == "paper" else sizes[i % len(sizes)]
        yield TASKS[form].open(source, seed=seed, split="train", wording=Wording(prompt="multiply"))(i, 1)[0]


def survey(kind: str, count: int, *, seed: int, planted: bool = False) -> Survey:
    """Write `count` traces and read them; with `planted` each has at least one false equation."""
    module = countdown_text if kind == "countdown" else multiplication_text
    habits = module.Habits(**HABITS[kind] | dict(wrong_arithmetic=0.1 if planted else 0.0))
    attempts, solved, equations, with_false, chances, wrong = 0, 0, 0, 0, [], []
    for i, problem in enumerate(made(kind, count, seed=seed)):
        rng = np.random.default_rng([seed, i])
        trace = module.write(problem, rng, habits)
        while planted and not trace.planted:
            trace = module.write(problem, rng, habits)
        wrong += [f"{problem.id}: {said}" for said in faults(problem, trace, planted=planted)]
        attempts, with_false = attempts + len(trace.attempts), with_false + bool(trace.planted)
        solved += trace.attempts[-1].truth
        equations += sum(1 for _ in read_equations(trace.text))
        if kind == "countdown":
            every = countdown_text.drawn(len(problem.meta["numbers"]), rng)
            steps = [countdown_text.steps_of(problem.meta["numbers"], one) for one in dict.fromkeys(every)]
            chances.append(np.mean([s[-1][-1] == problem.meta["target"] for s in steps if s]))
    return Survey(count, with_false, attempts, solved, equations, float(np.mean(chances or [0])), wrong)


def faults(problem: Problem, trace, *, planted: bool) -> Iterator[str]:
    """Yield what is not as it should be of a trace (`Written`) and of what is read of it."""
    task = TASKS["paper" if problem.task == "countdown" else "multiplication"]
    attempts, rest = task.parse(trace.text, problem)
    if attempts != trace.attempts:
        yield f"attempts {attempts} were written as {trace.attempts}"
    if false_equations(trace.text) != trace.planted:
        yield f"false equations {false_equations(trace.text)} were written as {trace.planted}"
    written = EQUATION.findall(trace.text)
    false = [f"{left} = {right}" for left, right in written if not holds(left, int(right))]
    if false != trace.planted or (false and not planted):
        yield f"{false} do not hold, planted were {trace.planted}"
    if len(written) != sum(1 for _ in read_equations(trace.text)):
        yield f"{len(written)} equations were written, others read"
    answer = last_boxed(trace.text) if task.boxed else last_answer(trace.text)
    if answer != trace.answer or trace.answer != attempts[-1].proposal or trace.answer not in rest:
        yield f"answer {answer!r} was written as {trace.answer!r}"
    if (grade_one(problem, trace.text, True).score > 0) != trace.attempts[-1].truth:
        yield "the grader thinks otherwise"
    nines = problem.task == "multiplication"  # a check that may pass what is wrong, never the other way round
    for a in trace.attempts if not planted else ():
        if a.verdict is not None and a.verdict != a.truth and not (nines and a.verdict):
            yield f"a wrong verdict on {a.proposal}"


def holds(left: str, right: int) -> bool:
    """Return whether an equation of one operation, or of additions, is true in whole numbers."""
    words = left.replace("(", "").replace(")", "").split(" ")
    numbers, operations = [int(word) for word in words[::2]], words[1::2]
    if len(operations) > 1:
        return set(operations) == {"+"} and sum(numbers) == right
    (a, b), (op,) = numbers, operations
    if op == "/":
        return b != 0 and a == b * right
    return right == (a + b if op == "+" else a - b if op == "-" else a * b)


def main() -> None:
    """Print what was found; exit 1 where something is wrong."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--kind", choices=HABITS, default="countdown")
    flags.add_argument("--problems", type=int, default=10_000)
    flags.add_argument("--planted", action="store_true", help="false equations in every trace")
    flags.add_argument("--seed", type=int, default=0)
    c = flags.parse_args()
    start = time.thread_time()
    got = survey(c.kind, c.problems, seed=c.seed, planted=c.planted)
    print(f"{c.kind}: {got.problems} traces, {got.attempts} attempts, {got.equations} equations, {got.solved} solved")
    print(f"{got.planted} traces with false equations; solutions among expressions {got.chance:.4f}")
    print(f"{1000 * (time.thread_time() - start) / got.problems:.2f} ms a problem; wrong: {len(got.wrong)}")
    print("\n".join(got.wrong[:20]))
    raise SystemExit(bool(got.wrong))


if __name__ == "__main__":
    main()
