"""Forms of tasks that tiny models think in, each with a parser of its responses and base traces to learn from.

if is_parsed(problem):
    attempts, rest = parse(text, problem)
text = base_trace(problem, rng, **habits)
"""

import numpy as np

from e3jax.tasks import countdown_traces, product_traces
from e3jax.tasks.countdown_traces import Attempt
from e3jax.tasks.problem import Problem

FORMS = {"calculator": countdown_traces, "products": product_traces}  # problem.meta["form"]


def is_parsed(problem: Problem) -> bool:
    """Whether responses to it can be taken apart into attempts exactly; free text can not."""
    return "form" in problem.meta and problem.meta["form"] in FORMS


def parse(text: str, problem: Problem) -> tuple[list[Attempt], str]:
    """A response -> its attempts, and the rest."""
    return FORMS[problem.meta["form"]].parse(text, problem)


def base_trace(problem: Problem, rng: np.random.Generator, **habits) -> str:
    """A response of the synthetic base policy of the problem's form."""
    return FORMS[problem.meta["form"]].base_trace(problem, rng, **habits)
