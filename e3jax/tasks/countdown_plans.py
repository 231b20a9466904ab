"""Calculator Countdown with plans: E2C's two phases for a tiny model, in a closed vocabulary.

    prompt      7 5 2 ?24
    plan        <EXPLORATION> + ?12 * ?24 </EXPLORATION>                   which operations, towards which targets
    execution   <EXECUTION> 7 + 5 = 12 * 2 = 24 </EXECUTION>               which numbers, and the arithmetic

The plan is a guess with many right and wrong continuations; the execution is nearly determined by it. Sums and products
take their first two numbers in the order of the question, so that the order carries no information. Grader:
rewards/countdown_plans.py.

    text = plan_trace(problem, rng, solution_rate=0.5)
"""

from functools import lru_cache
from itertools import accumulate

import numpy as np

from e3jax.phases import TAGS
from e3jax.tasks.countdown import OPERATIONS, calculator_problem, calculator_reachable
from e3jax.tasks.countdown_traces import NUMBERS, TARGETS
from e3jax.tasks.problem import Problem

WORDS = ("+", "-", "*", "=", *TAGS, *NUMBERS, *TARGETS)


def plans_problem(seed: int, index: int, *, numbers: int, split: str) -> Problem:
    """`calculator_problem`'s, to be answered in two phases."""
    made = calculator_problem(seed, index, numbers=numbers, split=split)
    return Problem(
        id=made.id.replace("calculator", "plans"), task="countdown_plans", question=made.question, answer=made.answer,
        difficulty=made.difficulty, meta=made.meta | {"form": "plans"},
    )  # fmt: skip


def plan_trace(problem: Problem, rng: np.random.Generator, *, solution_rate: float) -> str:
    """A response of the synthetic teacher: a plan for the target with probability `solution_rate`, else any plan that
    its numbers can execute; executed faithfully either way, so that a model learns to execute what it planned.

    Plans are drawn uniformly, whatever the number of expressions that execute them.
    """
    given, target = problem.meta["numbers"], problem.meta["target"]
    plans = _plans(tuple(sorted(given)))
    pool = list(plans)
    if rng.random() < solution_rate:
        # (a target that needs a 0 or 100 on the way has no plan: any will do)
        pool = [plan for plan in pool if plan.endswith(f" ?{target}")] or pool
    plan = pool[rng.integers(len(pool))]
    order, ops, values = plans[plan]
    if ops[0] in "+*" and given.index(order[0]) > given.index(order[1]):
        order = (order[1], order[0], *order[2:])
    steps = " ".join(f"{op} {number} = {value}" for op, number, value in zip(ops, order[1:], values))
    return f"{TAGS[0]} {plan} {TAGS[1]} {TAGS[2]} {order[0]} {steps} {TAGS[3]}"


@lru_cache(maxsize=4096)
def _plans(sorted_numbers: tuple[int, ...]) -> dict[str, tuple]:
    """Every plan whose targets are in 1..99 -> one expression that executes it: order, operations, values."""
    found = {}
    for solutions in calculator_reachable(sorted_numbers).values():
        for order, ops in solutions:
            values = list(accumulate(zip(ops, order[1:]), lambda v, on: OPERATIONS[on[0]](v, on[1]), initial=order[0]))
            if 1 <= min(values) and max(values) <= 99:
                plan = " ".join(f"{op} ?{value}" for op, value in zip(ops, values[1:]))
                found.setdefault(plan, (order, ops, values[1:]))
    return found
