"""Grader of Countdown with plans (tasks/countdown_plans.py): the execution's arithmetic, step by step, exactly.

What is read of a phase is graded here for the form in text, too (tasks/countdown_plans_text.py).

plan        + ?12 * ?24                   operations towards intermediate targets
execution   7 + 5 = 12 * 2 = 24           every step says its value, which the next goes on from

grade_text(problem, "+ ?12 * ?24 </EXPLORATION> <EXECUTION> 7 + 5 = 12 * 2 = 24 </EXECUTION>")
"""

import operator
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from e3jax.phases import begins_plan, split_text
from e3jax.rewards.extract import Grade, integers

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


class Step(NamedTuple):
    """One operation of an execution."""

    op: str
    number: int
    value: int  # as stated


Execution = tuple[int, list[Step]]  # the first number, and what is done to it
Plan = tuple[list[tuple[str, int, int]], str]  # (operation, number, target before it) from the last back; the first one


def grade_text(problem, text: str) -> Grade:
    """Grade a response in words (`grade_phases`)."""
    return grade_phases(problem, text, read_execution)


def grade_phases(problem, text: str, read: Callable[[str], Execution | None]) -> Grade:
    """Grade a response: 1 if its phases are well formed, its steps true, every number used once, the target reached.

    Reasons: "format_…" (phases.FAULTS), malformed (`read` returns None), wrong_numbers, false_step, wrong_value,
    correct. The plan is not graded here (`share_done`).
    """
    _, execution, fault = split_text(text, begun=begins_plan(problem.question))
    if fault:
        return Grade(0.0, f"format_{fault}")
    found = read(execution)
    if found is None:
        return Grade(0.0, "malformed")
    value, steps = found
    if sorted([value, *(s.number for s in steps)]) != sorted(problem.meta["numbers"]):
        return Grade(0.0, "wrong_numbers")
    for step in steps:
        value = OPERATIONS[step.op](value, step.number)
        if value != step.value:
            return Grade(0.0, "false_step")
    return Grade(1.0, "correct") if value == problem.meta["target"] else Grade(0.0, "wrong_value")


def read_execution(text: str) -> Execution | None:
    """Return the first number and the steps; None for anything that is no execution.

    >>> read_execution("7 + 5 = 12 * 2 = 24")
    (7, [Step(op='+', number=5, value=12), Step(op='*', number=2, value=24)])
    """
    words = text.split()
    numbers = integers(words[::2])
    if not words or len(words) % 4 != 1 or numbers is None:
        return None
    if not set(words[1::4]) <= set("+-*") or set(words[3::4]) - {"="}:
        return None
    return numbers[0], [Step(*step) for step in zip(words[1::4], numbers[1::2], numbers[2::2])]


def read_plan(text: str) -> Plan | None:
    """Return (operation, number, target before it) from the last one back, and the first operation; None for no plan.

    >>> read_plan("* 2 ?12 +")
    ([('*', 2, 12)], '+')
    """
    words = text.split()
    ops, numbers, targets = words[::3], integers(words[1::3]), integers([w.removeprefix("?") for w in words[2::3]])
    if len(words) % 3 != 1 or not set(ops) <= set("+-*") or numbers is None or targets is None:
        return None
    return list(zip(ops[:-1], numbers, targets)), ops[-1]


def followed(plan: str, execution: str) -> float:
    """Return the share of a plan in words that an execution does.

    >>> followed("* 2 ?12 +", "7 + 6 = 13 * 2 = 26")
    0.5
    """
    return share_done(read_plan(plan), read_execution(execution))


def share_done(planned: Plan | None, done: Execution | None) -> float:
    """Return the share of a plan that an execution does; 0 where one of them could not be read.

    What counts are the later steps with their targets, and the first operation.
    """
    if planned is None or done is None or not done[1]:
        return 0.0
    steps = done[1][::-1]
    taken = [(step.op, step.number, before.value) for step, before in pairwise(steps)]
    kept = sum(a == b for a, b in zip(planned[0], taken)) + (planned[1] == steps[-1].op)
    return kept / max(len(planned[0]) + 1, len(steps))
