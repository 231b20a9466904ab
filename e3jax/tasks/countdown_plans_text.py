"""Countdown with plans in text: the two phases of tasks/countdown_plans.py for language models, and their parser.

    prompt      … Make 24 out of 7, 5, 2. …
    plan        <EXPLORATION>Undo * 2: 24 / 2 = 12. Make 12 by +.</EXPLORATION>
    execution   <EXECUTION>7 + 5 = 12. 12 * 2 = 24.</EXECUTION>

Problems are the calculator's (tasks/countdown.py), read from left to right, and plans are those of the tiny form: what
comes last is undone first, until two numbers and an operation are left. A plan never says which two, so that it is a
guess, and its execution is arithmetic. Every equation of both phases can be checked (`false_equations` of
tasks/written_arithmetic.py reads them too). The tags must be tokens of the tokenizer (phases.py `tag_ids`).

    text = plan_trace(problem, rng, Habits(solution_rate=0.5))
    plan, execution, _ = split_text(text, begun=False)
    read_plan(plan), read_execution(execution)
"""

import re
from itertools import pairwise

import numpy as np

from e3jax.phases import begins_plan, read_text, write_text
from e3jax.rewards.countdown_plans import OPERATIONS, Execution, Plan, Step, grade_phases, share_done
from e3jax.rewards.extract import Grade, integers
from e3jax.tasks.countdown import calculator_problem
from e3jax.tasks.countdown_plans import Habits, displays, draw_plan
from e3jax.tasks.countdown_traces import Attempt
from e3jax.tasks.problem import Problem
from e3jax.tasks.written_arithmetic import equation

PROMPT = (
    "User: Make {target} out of {numbers}. Use each number once, with +, - and *, and work from left to right, as a "
    "pocket calculator does. First plan backwards from {target}, then carry the plan out.\n"
    "Assistant:\n"
)
INVERSE = {"+": "-", "-": "+", "*": "/"}
UNDO = re.compile(r"Undo ([-+*]) (\d++): (\d++) ([-+/]) (\d++) = (\d++)", re.ASCII)
MAKE = re.compile(r"Make (\d++) by ([-+*])", re.ASCII)
EQUATION = re.compile(r"(\d++) ([-+*]) (\d++) = (\d++)", re.ASCII)


def plans_problem(seed: int, index: int, *, numbers: int, split: str) -> Problem:
    """Return problem `index` of calculator Countdown in words, to be answered in two phases."""
    made = calculator_problem(seed, index, numbers=numbers, split=split)
    given = ", ".join(map(str, made.meta["numbers"]))
    return Problem(
        id=made.id.replace("calculator", "plans-text"),
        task="countdown_plans_text",
        question=PROMPT.format(numbers=given, target=made.answer),
        answer=made.answer,
        difficulty=made.difficulty,
        meta=made.meta | {"form": "plans_text"},
    )


def plan_trace(problem: Problem, rng: np.random.Generator, habits: Habits) -> str:
    """Return a response of the synthetic teacher: a plan that works or any plan, and its honest execution."""
    order, ops, before = draw_plan(problem, rng, habits)
    wanted = [problem.meta["target"], *before]
    undone = [
        f"Undo {op} {number}: {equation(want, INVERSE[op], number, left)}."
        for op, number, (want, left) in zip(ops[:0:-1], order[:1:-1], pairwise(wanted))
    ]
    plan = " ".join([*undone, f"Make {wanted[-1]} by {ops[0]}."])
    steps = zip(ops, order[1:], pairwise(displays(order, ops)))
    return write_text(plan, " ".join(f"{equation(a, op, number, value)}." for op, number, (a, value) in steps))


# ---- reading


def sentences(text: str) -> list[str]:
    """Return the sentences of a phase without their full stops; [] where the last one has none.

    >>> sentences("7 + 5 = 12. 12 * 2 = 24."), sentences("7 + 5 = 12. 12 *")
    (['7 + 5 = 12', '12 * 2 = 24'], [])
    """
    *whole, rest = (" ".join(part.split()) for part in text.split("."))
    return [] if rest else whole


def read_execution(text: str) -> Execution | None:
    """Return the first number and the steps; None for anything else, and where a step goes on from another value.

    Whether steps are true is the grader's to say.

    >>> read_execution("7 + 5 = 12. 12 * 2 = 24.")
    (7, [Step(op='+', number=5, value=12), Step(op='*', number=2, value=24)])
    """
    found = [EQUATION.fullmatch(sentence) for sentence in sentences(text)]
    if not found or None in found:
        return None
    read = [integers(one.group(1, 3, 4)) for one in found]
    if None in read or any(a[2] != b[0] for a, b in pairwise(read)):
        return None
    return read[0][0], [Step(one[2], number, value) for one, (_, number, value) in zip(found, read)]


def read_plan(text: str) -> Plan | None:
    """Return (operation, number, target before it) from the last one back, and the first operation; None for no plan.

    A false equation, or one that does not go on from what the one before it left, makes it none.

    >>> read_plan("Undo * 2: 24 / 2 = 12. Make 12 by +.")
    ([('*', 2, 12)], '+')
    """
    *undone, last = sentences(text) or [""]
    found, made = [UNDO.fullmatch(sentence) for sentence in undone], MAKE.fullmatch(last)
    if made is None or None in found:
        return None
    read, end = [integers(one.group(2, 3, 5, 6)) for one in found], integers([made[1]])
    if end is None or None in read:
        return None
    for one, (number, want, again, left) in zip(found, read):
        if one[4] != INVERSE[one[1]] or again != number or OPERATIONS[one[1]](left, number) != want:
            return None
    left = [one[3] for one in read]
    if any(a != b for a, b in zip(left, [*(one[1] for one in read[1:]), *end])):
        return None
    return [(one[1], number, left) for one, (number, _, _, left) in zip(found, read)], made[2]


def parse(text: str, problem: Problem) -> tuple[list[Attempt], str]:
    """Return a response's one attempt, a plan with its execution, and the rest; of what is no plan there is none.

    The plan is what is proposed, and no verdict follows it.
    """
    phases = read_text(text, begun=begins_plan(problem.question))
    if phases.plan is None or read_plan(text[slice(*phases.plan)]) is None:
        return [], text
    (start, chosen), (_, end) = phases.plan, phases.execution or phases.plan
    proposal, right = " ".join(text[start:chosen].split()), grade_text(problem, text).score > 0
    return [Attempt(text[start:end], proposal, None, right, chosen - start)], text[end:].lstrip()


def grade_text(problem: Problem, text: str) -> Grade:
    """Grade a response in text (rewards/countdown_plans.py `grade_phases`)."""
    return grade_phases(problem, text, read_execution)


def followed(plan: str, execution: str) -> float:
    """Return the share of a plan in text that an execution does.

    >>> followed("Undo * 2: 24 / 2 = 12. Make 12 by +.", "7 + 6 = 13. 13 * 2 = 26.")
    0.5
    """
    return share_done(read_plan(plan), read_execution(execution))
