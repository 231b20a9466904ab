"""Equations in text: written by the traces of language models, and read back out of whatever a model writes.

    equation(72, "*", 40, 2880)                    # "72 * 40 = 2880"
    false_equations("72 * 40 = 2890, 3 + 4 = 7")   # ["72 * 40 = 2890"]

Nothing is evaluated but by the exact parser of rewards/countdown.py, and reading takes time linear in the text.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from e3jax.rewards.countdown import ExpressionError, evaluate
from e3jax.tasks.problem import Problem

THINK, END_THINK = "<think>\n", "\n</think>\n"
MOST_DIGITS = 40  # of an integer that is read: the product of 18 by 18 digits has 36
# Groups are atomic, (?>(?:…)*), not possessive, (?:…)*+: Python up to 3.11.4 matches the latter wrongly (gh-106052)
NUMBER = r"\d++(?>(?:,\d{3}(?!\d))*)(?>(?:\.\d++)?)"  # "2,880" is one number, "2880, 2880" are two
SIDE = rf"(?>(?:{NUMBER}|\\times|\\cdot|\\div|[-+*/()×·÷− ])+)"
CHAIN = re.compile(rf"{SIDE}(?>(?:={SIDE})*)", re.ASCII)  # matches wherever it begins, so that no run is read twice
OPERATION = re.compile(r"[\d)] *+(?:[-+*/×·÷−]|\\times|\\cdot|\\div)", re.ASCII)
BULLETS = ("- ", "* ", "+ ")
SLIPS = (1, -1, 2, -2, 10, -10)  # what a planted error is off by


class Equation(NamedTuple):
    """An equation with an operation on one side at least, in characters of the text."""

    start: int
    end: int
    true: bool


def equation(a: int, operation: str, b: int, result: int) -> str:
    """Return an equation as traces write it.

    >>> equation(10, "-", -2, 12)
    '10 - (-2) = 12'
    """
    return f"{a} {operation} {b if b >= 0 else f'({b})'} = {result}"


def slipped(result: int, rng: np.random.Generator, rate: float) -> int:
    """Return the result, or with probability `rate` one that is wrong; a positive one stays positive."""
    if not rate or rng.random() >= rate:
        return result
    wrong = [result + off for off in SLIPS if result + off > 0 or result <= 0]
    return wrong[rng.integers(len(wrong))]


def opening(problem: Problem) -> str:
    """Return how a response begins: "<think>", unless the prompt ends with it (e3's Box E.1, templates of R1)."""
    return "" if problem.question.rstrip().endswith("<think>") else THINK


def read_equations(text: str) -> Iterator[Equation]:
    """Yield the equations of a text; "3 + 4 = 7 = 14 / 2" is two. Sides that cannot be read are left out: decimals, x.

    >>> [one.true for one in read_equations("3 + 4 = 7 = 15 / 2, 2x + 1 = 4; so 2 * (3 - 5) = -4.")]
    [True, False, True]
    """
    for chain in CHAIN.finditer(text):
        if "=" not in chain[0]:
            continue
        sides, at = [], chain.start()
        for piece in chain[0].split("="):
            sides.append((at, piece))
            at += len(piece) + 1
        sides[0] = _first_side(*sides[0], before=text[chain.start() - 1 : chain.start()])
        sides[-1] = (sides[-1][0], _last_side(sides[-1][1]))
        for (start, left), (right_start, right) in pairwise(sides):
            if OPERATION.search(left) or OPERATION.search(right):
                true = _same(left.strip(), right.strip())
                if true is not None:
                    start += len(left) - len(left.lstrip())
                    yield Equation(start, right_start + len(right.rstrip()), true)


def false_equations(text: str) -> list[str]:
    """Return the equations of a text that do not hold."""
    return [text[one.start : one.end] for one in read_equations(text) if not one.true]


def _first_side(start: int, side: str, *, before: str) -> tuple[int, str]:
    """Return a chain's first side without a bullet or a parenthesis around the chain; "" if it goes on from `before`.

    In "2x + 1 = 4" and "x2 + 1 = 4" it does: what is left of the side is no number.
    """
    bare, inside = side.lstrip(), before not in ("", "\n")
    if inside and (bare[:1] in set("+*/)") or bare.startswith("- ") or (side == bare and before.isalnum())):
        bare = ""
    elif bare.startswith(BULLETS):
        bare = bare[2:].lstrip()
    if bare.startswith("(") and bare.count("(") > bare.count(")"):
        bare = bare[1:]
    return start + len(side) - len(bare), bare


def _last_side(side: str) -> str:
    """Return a chain's last side without what follows it: "7 - too low", "7)", "7**"."""
    bare = side.rstrip(" +-*/(×·÷−")
    return bare[:-1] if bare.endswith(")") and bare.count(")") > bare.count("(") else bare


def _same(left: str, right: str) -> bool | None:
    """Return whether two sides have the same value; None where one cannot be read. A division by zero has none."""
    values = _value(left), _value(right)
    if None in values:
        return None
    return values[0] == values[1] != "none"


@lru_cache(maxsize=4096)
def _value(side: str) -> Fraction | str | None:
    """Return a side's value, "none" where it divides by zero, None where it cannot be read."""
    try:
        return evaluate(side.replace(",", ""), most_digits=MOST_DIGITS)
    except ExpressionError as error:
        return "none" if error.reason == "division_by_zero" else None
