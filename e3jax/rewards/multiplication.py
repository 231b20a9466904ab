r"""Multiplication's grader: the boxed integer itself, never a product that the grader would have to work out.

The paper's reward code was not released; exact integers are our reading of App. E.1. math-verify must not be used: it
takes \boxed{123\times456} for 56088.

    grade_text(problem, r"… </think> \boxed{56,088}", where="response")  # Grade(score=1.0, reason="correct")

Reasons: correct; no_thinking, no_answer (extract.boxed_answer); not_an_integer; too_long; wrong_value.
"""

import re

from e3jax.rewards.extract import Grade, boxed_answer, last_answer

MAX_CHARS = 200
INTEGER = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:,\d{3})+)", re.ASCII)


def grade_text(problem, text: str, *, where: str) -> Grade:
    """Grade a response; `problem.answer` is the product in digits, `where` as in extract.boxed_answer.

    Commas between thousands (also LaTeX's {,} and ,\\!), dollars around and leading zeros are read.
    """
    answer, why = boxed_answer(text, where=where)
    if answer is None:
        return Grade(0.0, why)
    if len(answer) > MAX_CHARS:
        return Grade(0.0, "too_long")
    digits = re.sub(r"\{,\}|,\\!", ",", answer.strip("$ \n").replace("−", "-"))
    if not INTEGER.fullmatch(digits):
        return Grade(0.0, "not_an_integer")
    right = _plain(digits) == _plain(problem.answer)
    return Grade(float(right), "correct" if right else "wrong_value")


def _plain(digits: str) -> str:
    """Return an integer's digits without commas, plus and leading zeros; int() would refuse 4,301 of them."""
    number = digits.replace(",", "").lstrip("+-").lstrip("0") or "0"
    return "-" + number if digits.startswith("-") and number != "0" else number


def grade_words(problem, text: str) -> Grade:
    """Grade a tiny model's response (tasks/product_traces.py), whose answer is digits, last first.

    Reasons: correct; no_answer; not_an_integer; too_long; wrong_value.
    """
    answer = last_answer(text)
    if answer is None:
        return Grade(0.0, "no_answer")
    if len(answer) > MAX_CHARS:
        return Grade(0.0, "too_long")
    digits = answer.split()
    if not digits or not all(re.fullmatch(r"[0-9]", d) for d in digits):
        return Grade(0.0, "not_an_integer")
    right = "".join(digits)[::-1] == problem.answer
    return Grade(float(right), "correct" if right else "wrong_value")
