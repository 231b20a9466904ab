"""rewards/multiplication.py: only the integer itself."""

import pytest

from e3jax.rewards.extract import Grade
from e3jax.tasks.grade import grade_one
from e3jax.tasks.problem import Problem

PRODUCT = Problem("id", "multiplication", "123 times 456", "56088", "?", {"where": "response"})


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("56088", "correct"),
        (" 56088 ", "correct"),
        ("56,088", "correct"),
        (r"56{,}088", "correct"),
        (r"56,\!088", "correct"),
        ("$56088$", "correct"),
        ("056088", "correct"),
        ("+56088", "correct"),
        ("56089", "wrong_value"),
        ("-56088", "wrong_value"),
        ("−56088", "wrong_value"),
        (r"123\times456", "not_an_integer"),  # math-verify takes it
        ("123*456", "not_an_integer"),
        (r"123 \cdot 456", "not_an_integer"),
        ("56088.0", "not_an_integer"),
        ("56087+1", "not_an_integer"),
        (r"\frac{56088}{1}", "not_an_integer"),
        (r"5.6088\times10^4", "not_an_integer"),
        ("560,88", "not_an_integer"),
        ("56 088", "not_an_integer"),
        ("５６０８８", "not_an_integer"),
        ("x = 56088", "not_an_integer"),
        ("0" * 201, "too_long"),
        ("9" * 70_000, "too_long"),
        ("", "no_answer"),
    ],
)
def test_forms(answer, reason):
    text = rf"<think>123 * 456</think> \boxed{{{answer}}}"
    assert grade_one(PRODUCT, text, True) == Grade(float(reason == "correct"), reason)


def test_a_product_of_more_digits_than_python_converts():
    """Guards: int() refuses 4,301 digits, and a grader that raises ends the run."""
    problem = Problem("id", "multiplication", "?", "1" * 5000, "?", {"where": "response"})
    assert grade_one(problem, r"</think>\boxed{123}", True) == Grade(0.0, "wrong_value")


def test_thinking_and_budget():
    assert grade_one(PRODUCT, r"\boxed{56088}", True) == Grade(0.0, "no_thinking")
    assert grade_one(PRODUCT, r"</think>\boxed{56088}", False) == Grade(0.0, "truncated")
