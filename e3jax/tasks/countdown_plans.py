"""Calculator Countdown with plans: E2C's two phases for a tiny model, in a closed vocabulary.

    prompt      7 5 2 ?24
    plan        <EXPLORATION> * 2 ?12 + </EXPLORATION>          last "* 2", so 12 is needed before; make it by "+"
    execution   <EXECUTION> 7 + 5 = 12 * 2 = 24 </EXECUTION>    the arithmetic

The plan works backwards: which operation comes last, with which number, towards which intermediate target, and so on
until two numbers and an operation are left. It is a guess with many continuations; the execution is nearly determined
by it. Sums and products take their first two numbers in the order of the question, which therefore says nothing.
Grader: rewards/countdown_plans.py.

    text = plan_trace(problem, rng, Habits(solution_rate=0.5))
"""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from e3jax.phases import TAGS
from e3jax.tasks.countdown import CALCULATOR_MOST, OPERATIONS, calculator_problem, calculator_reachable
from e3jax.tasks.countdown_traces import NUMBERS, TARGETS
from e3jax.tasks.problem import Problem

WORDS = ("+", "-", "*", "=", *TAGS, *NUMBERS, *TARGETS)


def plans_problem(seed: int, index: int, *, numbers: int, split: str) -> Problem:
    """Return problem `index` of calculator Countdown, to be answered in two phases."""
    made = calculator_problem(seed, index, numbers=numbers, split=split)
    return Problem(
        id=made.id.replace("calculator", "plans"),
        task="countdown_plans",
        question=made.question,
        answer=made.answer,
        difficulty=made.difficulty,
        meta=made.meta | {"form": "plans"},
    )


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What the synthetic teacher does (config.stages.NAME.traces)."""

    solution_rate: float  # with which a plan works, else it is any plan


def plan_trace(problem: Problem, rng: np.random.Generator, habits: Habits) -> str:
    """Return a response of the synthetic teacher: a plan that works or any plan.

    Either is executed with honest arithmetic, so that a model learns to do what it planned; a plan whose targets
    cannot be made then ends in another value than the problem's.
    """
    order, ops, targets = draw_plan(problem, rng, habits)
    steps = zip(ops, order[1:], displays(order, ops)[1:])
    plan = " ".join([f"{op} {number} ?{t}" for op, number, t in zip(ops[:0:-1], order[:1:-1], targets)] + [ops[0]])
    execution = " ".join([str(order[0]), *(f"{op} {number} = {value}" for op, number, value in steps)])
    return f"{TAGS[0]} {plan} {TAGS[1]} {TAGS[2]} {execution} {TAGS[3]}"


def draw_plan(problem: Problem, rng: np.random.Generator, habits: Habits) -> tuple:
    """Return a plan that works or any plan: numbers in order, operations, intermediate targets from the last back."""
    given, target = problem.meta["numbers"], problem.meta["target"]
    made = []
    if rng.random() < habits.solution_rate:
        made = [(*s, backwards(*s, target)) for s in calculator_reachable(tuple(sorted(given)))[target]]
        made = [x for x in made if x[2] is not None]  # some need a 0 or 100 on the way
    order, ops, targets = made[rng.integers(len(made))] if made else any_plan(given, target, rng)
    if ops[0] in "+*" and given.index(order[0]) > given.index(order[1]):
        order = (order[1], order[0], *order[2:])
    return order, ops, targets


def any_plan(given, target: int, rng: np.random.Generator) -> tuple:
    """Return numbers in order, operations and intermediate targets, right or wrong; every display lies in 0..100."""
    while True:
        order = tuple(given[i] for i in rng.permutation(len(given)))
        ops = tuple("+-*"[i] for i in rng.integers(3, size=len(given) - 1))
        targets = backwards(order, ops, target)
        if targets is not None and all(0 <= v <= CALCULATOR_MOST for v in displays(order, ops)):
            return order, ops, targets


def backwards(order, ops, target: int) -> list[int] | None:
    """Return what the display must show before the last operation, before the one before it, …; None outside of 1..99.

    >>> backwards((7, 5, 2), ("+", "*"), 24)
    [12]
    """
    targets = []
    for op, number in zip(ops[:0:-1], order[:1:-1]):
        if op == "*" and target % number:
            return None
        target = {"+": target - number, "-": target + number, "*": target // number}[op]
        if not 1 <= target <= 99:
            return None
        targets.append(target)
    return targets


def displays(order, ops) -> list[int]:
    """Return the display after each number.

    >>> displays((7, 5, 2), ("+", "*"))
    [7, 12, 24]
    """
    return list(accumulate(zip(ops, order[1:]), lambda v, on: OPERATIONS[on[0]](v, on[1]), initial=order[0]))
