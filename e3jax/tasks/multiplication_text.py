r"""Multiplication in text: what MULT and MULT-V think before RL with a language model, and the parser of it.

    <think>
    Add the digits. 47: 4 + 7 = 11, 1 + 1 = 2. 86: 8 + 6 = 14, 1 + 4 = 5. 2 * 5 = 10, 1 + 0 = 1. So it must be 1.

    Multiply 47 by 86.
    47 * 80 = 3760
    47 * 5 = 235
    3760 + 235 = 3995
    So the product is 3995.
    Check: 3 + 9 + 9 + 5 = 26, 2 + 6 = 8. Not 1.

    Wait, multiply 86 by 47.
    …
    Check: 4 + 0 + 4 + 2 = 10, 1 + 0 = 1. That is 1.
    </think>
    \boxed{4042}

This is MULT-V. MULT has no check: no first paragraph, no line "Check:". An attempt is a whole long multiplication. One
that is no solution has misread a digit of the second factor, so that its equations are still true; `wrong_arithmetic`
plants false ones. Casting out nines, as in tasks/product_traces.py, is our stand-in for the checks of sub-products that
the paper's traces of R1-Distill-Qwen-32B and GPT-4o have (e3 App. E.1, whose prompt asks for lines "Check:").

    habits = Habits(checked=True, solution_rate=0.5, give_up=0.35, persistent=0.05, persistent_solution_rate=0.2,
                    most_attempts=8, most_characters=3000)
    text = base_trace(problem, rng, habits)
    attempts, rest = parse(text, problem)
    false_equations(text)                                 # tasks/written_arithmetic.py
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from e3jax.errors import need_at_least_one
from e3jax.tasks.countdown_traces import Attempt
from e3jax.tasks.problem import Problem
from e3jax.tasks.written_arithmetic import END_THINK, MOST_DIGITS, equation, opening, slipped

FIRST, LATER = "Multiply", ("Wait, multiply", "Alternatively, multiply")
INTEGER = r"\d++(?>(?:,\d{3}(?!\d))*)"
MARK = re.compile(
    rf"(?ai:(?P<begin>(?>(?:\b(?:wait|alternatively), *+)?)\bmultiply *+(?P<x>{INTEGER}) *+by *+(?P<y>{INTEGER}))"
    rf"|\bproduct is *+(?P<claim>{INTEGER})\.?+"
    r"|(?P<yes>\bthat is *+\d++\.?+)|(?P<no>\bnot *+\d++\.?+)|(?P<end></think>|\\boxed))"
)


class Written(NamedTuple):
    """A trace and what is in it, for the tests of the parser."""

    text: str
    attempts: list[Attempt]
    answer: str
    planted: list[str]  # the equations that are false


class Way(NamedTuple):
    """A way to multiply: x by y, of which `read` is read."""

    x: int
    y: int
    read: int


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What the synthetic base policy does (config.stages.NAME.traces); nobody has tuned it yet.

    The meanings, and give_up .35, are those of the tiny form (tasks/product_traces.py).
    """

    # MULT-V: every product is checked, and one that passes ends the trace. Without it (MULT) a trace ends after any
    # product with probability `give_up`: it cannot know better. With give_up=1 it is the plain long multiplication.
    checked: bool
    solution_rate: float  # probability that an attempt reads the factors right
    give_up: float  # probability of answering with a product that failed its check
    persistent: float  # share of traces that never give up, …
    persistent_solution_rate: float  # … and their solution_rate
    most_attempts: int
    most_characters: int  # of a trace, as in tasks/countdown_text.py
    favourite: float = 0.0  # of the misreadings, the share that takes the last digit for the next: confidently wrong
    # Probability that the result of an equation is wrong, in a check too. What follows goes on from it.
    wrong_arithmetic: float = 0.0

    def __post_init__(self):
        need_at_least_one(self, "most_attempts", "most_characters")


def least_characters(digits: Sequence[int]) -> int:
    """Return the least `most_characters`: one checked attempt and its answer, of factors of so many digits."""
    n, lines = sum(digits), max(digits)
    return lines * (5 * n + 20) + 16 * n + 320


def base_trace(problem: Problem, rng: np.random.Generator, habits: Habits) -> str:
    """Return a response of the synthetic base policy: long multiplications, checked or not, often given up."""
    return write(problem, rng, habits).text


def write(problem: Problem, rng: np.random.Generator, habits: Habits) -> Written:
    """Return `base_trace` with what is in it. ValueError where `most_characters` has no room for one attempt."""
    h, persistent = habits, rng.random() < habits.persistent
    rate, stop = (h.persistent_solution_rate, 0.0) if persistent else (h.solution_rate, h.give_up)
    write_down = partial(slipped, rng=rng, rate=h.wrong_arithmetic)
    a, b = problem.meta["a"], problem.meta["b"]
    text, attempts, planted, wanted = opening(problem), [], [], None
    if h.checked:
        head, wanted, planted = digits_of_factors(a, b, write_down)
        text += head + "\n\n"
    for way in ways(a, b, rng, rate=rate, favourite=h.favourite):
        lead = LATER[rng.integers(len(LATER))] if attempts else FIRST
        attempt, wrong = worked_attempt(way, lead, wanted, write_down)
        gap, ending = "\n\n" if attempts else "", rf"{END_THINK}\boxed{{{attempt.proposal}}}"
        if len(text) + len(gap) + len(attempt.text) + len(ending) > h.most_characters:
            break
        text, attempts, planted = f"{text}{gap}{attempt.text}", [*attempts, attempt], [*planted, *wrong]
        if attempt.verdict or rng.random() < stop or len(attempts) == h.most_attempts:
            break
    if not attempts:
        raise ValueError(f"most_characters={h.most_characters} leaves no room for one attempt and its answer")
    answer = attempts[-1].proposal
    return Written(rf"{text}{END_THINK}\boxed{{{answer}}}", attempts, answer, planted)


def ways(a: int, b: int, rng: np.random.Generator, *, rate: float, favourite: float) -> Iterator[Way]:
    """Yield ways to multiply, in either order of the factors: right with probability `rate`, else misread.

    No misreading comes twice but the favourite, until none is left.
    """
    left = [Way(x, y, read) for x, y in dict.fromkeys(((a, b), (b, a))) for read in misreadings(y)]
    left = [left[i] for i in rng.permutation(len(left))]
    again = Way(a, b, (b // 10 * 10 + (b + 1) % 10) or 2)  # 9 alone would be read as 0
    while left:
        if rng.random() < rate:
            yield Way(a, b, b) if rng.random() < 0.5 else Way(b, a, a)
        elif favourite and rng.random() < favourite:
            yield again
        else:
            yield left.pop()


def misreadings(n: int) -> list[int]:
    """Return n with one digit changed, in every way; none is 0, and none has fewer digits.

    >>> misreadings(7), len(misreadings(70))
    ([1, 2, 3, 4, 5, 6, 8, 9], 17)
    """
    digits, wrong = str(n), []
    for place, digit in enumerate(digits):
        others = [d for d in "0123456789" if d != digit and not (place == 0 and d == "0")]
        wrong += [int(digits[:place] + d + digits[place + 1 :]) for d in others]
    return wrong


def worked_attempt(
    way: Way, lead: str, wanted: int | None, write_down: Callable[[int], int]
) -> tuple[Attempt, list[str]]:
    """Return an attempt, whose product is checked for its digits where they are `wanted`, and its false equations."""
    lines, wrong, total = [f"{lead} {way.x} by {way.y}."], [], None

    def work(x: int, operation: str, y: int, exact: int) -> int:
        """Write an equation; return its result as it is written."""
        result = write_down(exact)
        lines.append(equation(x, operation, y, result))
        wrong.extend(lines[-1:] if result != exact else [])
        return result

    parts = [int(d) * 10**place for place, d in enumerate(str(way.read)[::-1])][::-1]
    products = [work(way.x, "*", part, way.x * part) for part in parts if part]
    total = products[0]
    for one in products[1:]:
        total = work(total, "+", one, total + one)
    lines.append(f"So the product is {total}.")
    chosen, verdict = len("\n".join(lines)), None
    if wanted is not None:
        sums, digit, false = digit_sums(total, write_down)
        verdict, wrong = digit == wanted, wrong + false
        lines.append(f"Check: {sums}. {'That is' if verdict else 'Not'} {wanted}.")
    return Attempt("\n".join(lines), str(total), verdict, total == way.x * way.y, chosen), wrong


# ---- casting out nines


def digits_of_factors(a: int, b: int, write_down: Callable[[int], int]) -> tuple[str, int, list[str]]:
    """Return the first paragraph, what the digits of the product must come to, and which equations are false."""
    (a_sums, x, a_wrong), (b_sums, y, b_wrong) = digit_sums(a, write_down), digit_sums(b, write_down)
    product = write_down(x * y)
    line = equation(x, "*", y, product)
    sums, wanted, wrong = digit_sums(product, write_down)
    line += f", {sums}" if product > 9 else ""
    wrong = [*a_wrong, *b_wrong, *([line.partition(",")[0]] if product != x * y else []), *wrong]
    return f"Add the digits. {a}: {a_sums}. {b}: {b_sums}. {line}. So it must be {wanted}.", wanted, wrong


def digit_sums(n: int, write_down: Callable[[int], int]) -> tuple[str, int, list[str]]:
    """Return how the digits of n > 0 are added until one is left, that digit, and which equations are false.

    >>> digit_sums(8369913, int)
    ('8 + 3 + 6 + 9 + 9 + 1 + 3 = 39, 3 + 9 = 12, 1 + 2 = 3', 3, [])
    """
    sums, wrong = [], []
    while n > 9:
        digits = [int(d) for d in str(n)]
        result = write_down(sum(digits))
        sums.append(f"{' + '.join(map(str, digits))} = {result}")
        wrong += sums[-1:] if result != sum(digits) else []
        n = result
    return ", ".join(sums) or str(n), n, wrong


# ---- reading


def parse(text: str, problem: Problem) -> tuple[list[Attempt], str]:
    """Return a response's attempts, and the rest: the answer, or what the budget cut off.

    An attempt begins with "multiply A by B", the problem's factors, and proposes with "the product is N"; what comes
    next of "That is N" and "Not N" is its verdict. One without a product is none, nor is anything behind </think> or
    \\boxed. Linear in the text; of text in other words there is no attempt.
    """
    attempts, end, begun, right = [], 0, None, problem.answer.lstrip("0")
    for mark in MARK.finditer(text):
        if mark["end"]:
            break
        if mark["begin"]:
            begun = mark.start() if _product(mark["x"], mark["y"]) == right else None
        elif mark["claim"] and begun is not None:
            words, proposal = text[begun : mark.end()], mark["claim"].replace(",", "")
            attempts.append(Attempt(words, proposal, None, proposal.lstrip("0") == right, len(words)))
            start, begun, end = begun, None, mark.end()
        elif attempts and begun is None and attempts[-1].verdict is None and (mark["yes"] or mark["no"]):
            end = mark.end()
            attempts[-1] = attempts[-1]._replace(text=text[start:end], verdict=bool(mark["yes"]))
    return attempts, text[end:].lstrip() if attempts else text


def _product(x: str, y: str) -> str:
    """Return the product of two factors in digits; "" where one is too long to be a factor."""
    x, y = x.replace(",", ""), y.replace(",", "")
    return str(int(x) * int(y)) if max(len(x), len(y)) <= MOST_DIGITS else ""
