"""Calculator Countdown in words: the format a tiny model thinks in, base traces that teach it, and its parser.

    prompt    7 5 2 ?24
    attempt   7 + 5 * 2 = 12 24 ?24 0 yes        proposal = display after each key, target, distance, verdict
    answer    <answer> 7 + 5 * 2 </answer>

An attempt proposes a whole expression before anything is computed (hard to guess), then checks it (easy): the
verification–generation asymmetry of e3 Def. 4.1. The target and the distance are written out because without them
models of this size do not learn the comparison (LOG.md, 2026-11-21). The base traces often give up early by answering
with a failed attempt, so the base model has the habit but does not use its budget; RL has to find that.

    habits = Habits(solution_rate=0.2, give_up=0.35, persistent=0.1, persistent_solution_rate=0.05, most_tokens=120)
    text = base_trace(problem, rng, habits)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from e3jax.tasks.countdown import CALCULATOR_MOST, OPERATIONS, calculator_reachable, calculator_text
from e3jax.tasks.problem import Problem

YES, NO = "yes", "no"
NUMBERS = [str(n) for n in range(CALCULATOR_MOST + 1)]
TARGETS = [f"?{n}" for n in range(1, 100)]
WORDS = ("+", "-", "*", "=", YES, NO, "<answer>", "</answer>", *NUMBERS, *TARGETS)


class Attempt(NamedTuple):
    """One checked proposal in a response."""

    text: str  # up to and including the verdict
    proposal: str  # the expression before "="
    verdict: bool | None  # what the model says; None when it never gets to say
    truth: bool  # whether the proposal uses the numbers, each once, and makes the target
    chosen: int | None = None  # of `text`, the characters up to the end of the choice; None: its words say it


def solves(proposal: str, problem: Problem) -> bool:
    """Return whether a proposal such as "7 + 5 * 2" solves the problem, as the grader sees it; False if malformed."""
    return _solve(proposal.split(), problem)


def _solve(words: list[str], problem: Problem) -> bool:
    """Return `solves` of a proposal's words."""
    numbers, ops = words[::2], words[1::2]
    if len(words) != 2 * len(problem.meta["numbers"]) - 1:
        return False
    if not set(numbers) <= set(NUMBERS) or not set(ops) <= {"+", "-", "*"}:
        return False
    order = [int(n) for n in numbers]
    if sorted(order) != sorted(problem.meta["numbers"]):
        return False
    value = order[0]
    for op, number in zip(ops, order[1:]):
        value = OPERATIONS[op](value, number)
    return value == problem.meta["target"]


def parse(text: str, problem: Problem) -> tuple[list[Attempt], str]:
    """Return a response's attempts, and the rest: the answer, or what the budget cut off.

    An attempt ends at its verdict; a proposal that was cut before its verdict is part of the rest.
    """
    attempts, start, words = [], 0, text.split()
    for i, word in enumerate(words):
        if word == "<answer>":
            break
        if word in (YES, NO):
            attempt = words[start : i + 1]
            proposal = attempt[: attempt.index("=")] if "=" in attempt else attempt[:-1]
            attempts.append(Attempt(" ".join(attempt), " ".join(proposal), word == YES, _solve(proposal, problem)))
            start = i + 1
    return attempts, " ".join(words[start:])


def _proposal(order: tuple[int, ...], ops: tuple[str, ...]) -> tuple[str, str, int]:
    """Return (proposal, displays, value) of an expression."""
    shown = list(accumulate(zip(ops, order[1:]), lambda v, on: OPERATIONS[on[0]](v, on[1]), initial=order[0]))
    return calculator_text(order, ops), " ".join(map(str, shown[1:])), shown[-1]


@lru_cache(maxsize=4096)
def _proposals(sorted_numbers: tuple[int, ...]) -> tuple[tuple[str, str, int], ...]:
    """Return every expression that stays in 0..100."""
    by_target = calculator_reachable(sorted_numbers).values()
    return tuple(_proposal(order, ops) for solutions in by_target for order, ops in solutions)


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What the synthetic base policy does (config.stages.NAME.traces).

    The last two are for ablations (configs/experiments/ablate_base.py).
    """

    solution_rate: float  # with which an attempt is a solution, else any expression that stays in 0..100
    give_up: float  # probability of answering with a failed attempt
    # Share of traces that never give up, and their solution_rate. Without such long chains the model cannot read its
    # own problem from far away, and thinking longer breaks instead of helping (LOG.md, 2026-11-21).
    persistent: float
    persistent_solution_rate: float
    most_tokens: int  # of a trace, its EOS included
    # Of the attempts that are not meant to be solutions, the share that is the sum in the problem's order, again and
    # again: confidently wrong.
    favourite: float = 0.0
    # Without it the target and the distance are left out: verdicts are still honest, but a model of this size cannot
    # learn to give them.
    checked: bool = True


def least_tokens(numbers: Sequence[int]) -> int:
    """Return the least `most_tokens`: one attempt and its answer, of the most numbers that a problem has."""
    return 5 * max(numbers) + 4


def base_trace(problem: Problem, rng: np.random.Generator, habits: Habits) -> str:
    """Return a response of the synthetic base policy: random attempts, each honestly checked, often given up."""
    target = problem.meta["target"]
    proposals = _proposals(tuple(sorted(problem.meta["numbers"])))
    right = [p for p in proposals if p[2] == target]
    h, persistent = habits, rng.random() < habits.persistent
    rate, stop = (h.persistent_solution_rate, 0.0) if persistent else (h.solution_rate, h.give_up)
    k = len(problem.meta["numbers"])
    attempt_tokens, answer_tokens = 3 * k + 2, 2 * k + 2  # the answer's tags and EOS included
    words = []
    for left in range(h.most_tokens - answer_tokens, attempt_tokens - 1, -attempt_tokens):
        pool = right if rng.random() < rate else proposals
        if h.favourite and pool is proposals and rng.random() < h.favourite:
            pool = (_proposal(tuple(problem.meta["numbers"]), ("+",) * (k - 1)),)
        proposal, displays, value = pool[rng.integers(len(pool))]
        verdict = YES if value == target else NO
        check = f"?{target} {abs(value - target)} " if h.checked else ""
        words.append(f"{proposal} = {displays} {check}{verdict}")
        if verdict == YES or rng.random() < stop or left < 2 * attempt_tokens:
            return " ".join([*words, f"<answer> {proposal} </answer>"])
    raise ValueError(f"most_tokens={h.most_tokens} leaves no room for one attempt and its answer")
