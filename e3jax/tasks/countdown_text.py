"""Countdown in text: the search that a language model is taught before RL, and its parser.

    <think>
    Try 72 * 40 + 11: 72 * 40 = 2880, 2880 + 11 = 2891. Not 43.

    Wait, try 72 + 40 - 11: 72 + 40 = 112, 112 - 11 = 101. Not 43.

    Alternatively, 72 - 40 + 11: 72 - 40 = 32, 32 + 11 = 43. That is 43.
    </think>
    <answer> 72 - 40 + 11 </answer>

Problems are e3's (tasks/countdown.py `paper_problem`). The paper's base is a Llama-3.2-3B that was fine-tuned on search
traces first. These are ours, in the format with which SmolLM2-135M learnt to search (a feasibility study of
2026-11-29). As in tasks/countdown_traces.py an attempt proposes a whole expression, hard to guess, and then works it
out, easy to check.

    habits = Habits(solution_rate=0.0, give_up=0.35, persistent=0.05, persistent_solution_rate=0.0, most_attempts=24,
                    most_characters=1800)
    text = base_trace(problem, rng, habits)
    attempts, rest = parse(text, problem)
    false_equations(text)                                 # tasks/written_arithmetic.py
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from typing import NamedTuple

import numpy as np

from e3jax.errors import need_at_least_one
from e3jax.rewards.countdown import grade_expression
from e3jax.tasks.countdown_traces import Attempt
from e3jax.tasks.problem import Problem
from e3jax.tasks.written_arithmetic import END_THINK, equation, opening, slipped

FIRST, LATER = "Try", ("Wait, try", "Alternatively,")
MARK = re.compile(
    r"(?ai:(?>(?:\bwait, *+)?)(?:\btry|\balternatively,(?>(?: *+try)?)) *+(?P<proposal>[\d(][-+*/()\d ×·÷−]*+):"
    r"|(?P<yes>\bthat is *+-?\d++\.?+)|(?P<no>\bnot *+-?\d++\.?+)|(?P<end></think>|<answer>)|\n\n)"
)
OPERATION = re.compile(r"[\d)] *+[-+*/×·÷−]", re.ASCII)
LISTED = 5  # numbers up to which all expressions are tried, at most 736; of more numbers …
DRAWN = 1000  # … so many random ones are, which hold a solution by chance only


class Expression(NamedTuple):
    """Operations between numbers in the problem's order, and which of them stands in parentheses, if one does."""

    operations: tuple[str, ...]
    pair: int | None


class Written(NamedTuple):
    """A trace and what is in it, for the tests of the parser."""

    text: str
    attempts: list[Attempt]
    answer: str
    planted: list[str]  # the equations that are false


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What the synthetic base policy does (config.stages.NAME.traces), otherwise as in tasks/countdown_traces.py.

    The feasibility study of 2026-11-29 had solutions by chance, give_up .35, persistent .05, 24 attempts.
    """

    # Probability that an attempt is a solution, if there is one of whole numbers that was not tried; else it is any
    # expression that was not: 9 % of those of 3 numbers are solutions, 3.6 % of those of 4 (means over 300 problems).
    solution_rate: float
    give_up: float  # probability of answering with a failed attempt
    persistent: float  # share of traces that never give up, …
    persistent_solution_rate: float  # … and their solution_rate
    most_attempts: int
    # Of a trace. A byte-level tokenizer makes at most one token of a character (Qwen3's .65 to .7 here, and .8 in
    # products), so this is what must fit into a row (train/check.py).
    most_characters: int
    favourite: float = (
        0.0  # of the other attempts, the share that is the sum of all, again and again: confidently wrong
    )
    # Without it no attempt is compared with the target: it may end the trace whatever it is, as in MULT.
    checked: bool = True
    # Probability that the result of an equation is wrong. The rest of the attempt and its verdict go on from there.
    wrong_arithmetic: float = 0.0

    def __post_init__(self):
        need_at_least_one(self, "most_attempts", "most_characters")


def least_characters(numbers: Sequence[int]) -> int:
    """Return the least `most_characters`: one attempt and its answer, of the most numbers that a problem has."""
    n = max(numbers)  # a product of n numbers below 100 has 2 n digits
    return 6 * n * n + 20 * n + 80


def base_trace(problem: Problem, rng: np.random.Generator, habits: Habits) -> str:
    """Return a response of the synthetic base policy: attempts in random order, each worked out, often given up."""
    return write(problem, rng, habits).text


def write(problem: Problem, rng: np.random.Generator, habits: Habits) -> Written:
    """Return `base_trace` with what is in it. ValueError where `most_characters` has no room for one attempt."""
    h, persistent = habits, rng.random() < habits.persistent
    rate, stop = (h.persistent_solution_rate, 0.0) if persistent else (h.solution_rate, h.give_up)
    text, attempts, planted = opening(problem), [], []
    for expression in proposals(problem, rng, rate=rate, favourite=h.favourite):
        attempt, wrong = worked_attempt(problem, expression, rng, habits, first=not attempts)
        gap = "\n\n" if attempts else ""
        ending = f"{END_THINK}<answer> {attempt.proposal} </answer>"
        if len(text) + len(gap) + len(attempt.text) + len(ending) > h.most_characters:
            break
        text, attempts, planted = f"{text}{gap}{attempt.text}", [*attempts, attempt], [*planted, *wrong]
        if attempt.verdict or rng.random() < stop or len(attempts) == h.most_attempts:
            break
    if not attempts:
        raise ValueError(f"most_characters={h.most_characters} leaves no room for one attempt and its answer")
    answer = attempts[-1].proposal
    return Written(f"{text}{END_THINK}<answer> {answer} </answer>", attempts, answer, planted)


def proposals(problem: Problem, rng: np.random.Generator, *, rate: float, favourite: float) -> Iterator[Expression]:
    """Yield expressions in random order, none twice but the favourite, until none is left."""
    numbers, target = problem.meta["numbers"], problem.meta["target"]
    values = {one: steps[-1][-1] for one in drawn(len(numbers), rng) if (steps := steps_of(numbers, one)) is not None}
    left, again = dict.fromkeys(values), Expression(("+",) * (len(numbers) - 1), None)
    right = dict.fromkeys(one for one, value in values.items() if value == target)
    while left:
        if right and rng.random() < rate:
            one = next(iter(right))
        elif favourite and rng.random() < favourite:
            one = again
        else:
            one = next(iter(left))
        left.pop(one, None), right.pop(one, None)
        yield one


def worked_attempt(
    problem: Problem, expression: Expression, rng: np.random.Generator, habits: Habits, *, first: bool
) -> tuple[Attempt, list[str]]:
    """Return an attempt and which of its equations are false."""
    numbers, target = problem.meta["numbers"], problem.meta["target"]
    exact = steps_of(numbers, expression)
    steps = exact
    if habits.wrong_arithmetic:  # a wrong result may not be divisible: then the attempt is right
        steps = steps_of(numbers, expression, partial(slipped, rng=rng, rate=habits.wrong_arithmetic)) or exact
    shown = steps[-1][-1]
    lead = FIRST if first else LATER[rng.integers(len(LATER))]
    proposal = proposal_text(numbers, expression)
    text = f"{lead} {proposal}: {', '.join(equation(*step) for step in steps)}."
    verdict = shown == target if habits.checked else None
    if habits.checked:
        text += f" {'That is' if verdict else 'Not'} {target}."
    wrong = [equation(*step) for step in steps if exact_result(*step[:3]) != step[3]]
    return Attempt(text, proposal, verdict, exact[-1][-1] == target, len(f"{lead} {proposal}:")), wrong


# ---- expressions


def drawn(n: int, rng: np.random.Generator) -> list[Expression]:
    """Return expressions of n numbers in random order: all up to LISTED numbers, else DRAWN of them."""
    if n <= LISTED:
        every = expressions(n)
        return [every[i] for i in rng.permutation(len(every))]
    signs, pairs = rng.integers(4, size=(DRAWN, n - 1)), rng.integers(-1, n - 1, size=DRAWN)
    tried = [Expression(tuple("+-*/"[i] for i in row), int(p)) for row, p in zip(signs, pairs)]
    return [one if one.pair in needed_pairs(one.operations) else one._replace(pair=None) for one in tried]


@lru_cache(maxsize=LISTED)
def expressions(n: int) -> tuple[Expression, ...]:
    """Return all expressions of n numbers in their order, with parentheses around at most two, where they matter.

    >>> [len(expressions(n)) for n in (2, 3, 4)]
    [4, 28, 148]
    """
    every = product("+-*/", repeat=n - 1)
    return tuple(Expression(ops, pair) for ops in every for pair in (None, *needed_pairs(ops)))


def needed_pairs(operations: Sequence[str]) -> list[int]:
    """Return which operations may stand in parentheses, so that the value is another than without: not a + (b - c).

    >>> needed_pairs(("*", "+")), needed_pairs(("-", "+")), needed_pairs(("+", "-"))
    ([1], [1], [])
    """
    level = ["-+/*".index(op) // 2 for op in operations]
    pairs = []
    for i in range(len(operations)):
        left = i > 0 and (level[i - 1] > level[i] or (level[i - 1] == level[i] and operations[i - 1] in "-/"))
        right = i + 1 < len(operations) and level[i + 1] > level[i]
        pairs += [i] if left or right else []
    return pairs


def proposal_text(numbers: Sequence[int], expression: Expression) -> str:
    """Return an expression as it is written.

    >>> proposal_text((72, 40, 11), Expression(("-", "+"), 1))
    '72 - (40 + 11)'
    """
    words = [str(n) for n in numbers]
    if expression.pair is not None:
        words[expression.pair] = "(" + words[expression.pair]
        words[expression.pair + 1] += ")"
    return " ".join([words[0], *(f"{op} {word}" for op, word in zip(expression.operations, words[1:]))])


def steps_of(
    numbers: Sequence[int], expression: Expression, write_down: Callable[[int], int] = int
) -> list[tuple[int, str, int, int]] | None:
    """Return (a, operation, b, result) of every step, parentheses first; None where one is no whole number.

    `write_down` makes what is written of a result, from which the next steps go on.
    """
    values, operations, steps = list(numbers), list(expression.operations), []
    while operations:
        if expression.pair is not None and not steps:
            i = expression.pair
        else:
            i = next((i for i, op in enumerate(operations) if op in "*/"), 0)
        a, op, b = values[i], operations.pop(i), values[i + 1]
        result = exact_result(a, op, b)
        if result is None:
            return None
        steps.append((a, op, b, write_down(result)))
        values[i : i + 2] = [steps[-1][-1]]
    return steps


def exact_result(a: int, operation: str, b: int) -> int | None:
    """Return the result of an operation; None where it is no whole number."""
    if operation == "/":
        return a // b if b and a % b == 0 else None
    return a + b if operation == "+" else a - b if operation == "-" else a * b


# ---- reading


def parse(text: str, problem: Problem) -> tuple[list[Attempt], str]:
    """Return a response's attempts, and the rest: the answer, or what the budget cut off.

    An attempt begins with "Try", "Wait, try" or "Alternatively," before an expression and a colon. It ends with its
    verdict, "That is 43." or "Not 43.", else with its paragraph or where the next begins. Nothing behind </think> or
    <answer> is one. Linear in the text; of text in other words there is no attempt.
    """
    attempts, begun, end, truths = [], None, 0, {}

    def close(stop: int, verdict: bool | None) -> int:
        """Note the attempt that has begun; return its end."""
        words = text[begun.start() : stop].rstrip()
        proposal = " ".join(begun["proposal"].split())
        if proposal not in truths:
            truths[proposal] = solves(proposal, problem)
        chosen = begun.end() - begun.start()
        attempts.append(Attempt(words, proposal, verdict, truths[proposal], chosen))
        return begun.start() + len(words)

    for mark in MARK.finditer(text):
        if begun:
            said = bool(mark["yes"] or mark["no"])
            end = close(mark.end() if said else mark.start(), bool(mark["yes"]) if said else None)
        begun = mark if mark["proposal"] and OPERATION.search(mark["proposal"]) else None
        if mark["end"]:
            break
    return attempts, text[end:].lstrip() if attempts else text


def solves(proposal: str, problem: Problem) -> bool:
    """Return whether a proposal solves the problem, as its grader sees it."""
    return grade_expression(proposal, numbers=problem.meta["numbers"], target=problem.meta["target"]).score > 0
