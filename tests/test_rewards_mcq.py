"""rewards/mcq.py: letters as models write them."""

import pytest

from e3jax.rewards.extract import Grade
from e3jax.rewards.mcq import grade_text
from e3jax.tasks.grade import grade_one
from e3jax.tasks.problem import Problem


def question(answer="C", where="response"):
    return Problem("id", "mcq", "?", answer, "?", {"where": where})


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (r"\boxed{C}", "correct"),
        (r"\boxed{c}", "correct"),
        (r"\boxed{(C)}", "correct"),
        (r"\boxed{\text{(C)}}", "correct"),
        (r"\boxed{\textbf{C.}}", "correct"),
        (r"\boxed{\mathrm{C}}", "correct"),
        (r"\boxed{C. \text{ the third}}", "correct"),
        (r"\boxed{\text{C) the third}}", "correct"),
        (r"\boxed{C: 42}", "correct"),
        (r"\boxed{B} no, \boxed{C}", "correct"),
        ("The answer is C.", "correct"),
        ("The answer is (C)", "correct"),
        ("Answer: **C**", "correct"),
        ("The answer is B. No, the correct answer is: C", "correct"),
        (r"the answer is C, \boxed{B}", "wrong_choice"),  # a box counts before what is said
        (r"\boxed{D}", "wrong_choice"),
        ("Answer: B", "wrong_choice"),
        (r"\boxed{CD}", "not_a_choice"),
        (r"\boxed{C, D}", "not_a_choice"),
        (r"\boxed{C) or D)}", "not_a_choice"),  # two guesses were one answer
        (r"\boxed{(C) or (D)}", "not_a_choice"),
        (r"\boxed{C} or \boxed{D}", "not_a_choice"),
        (r"\boxed{\textbf{(C)}\ 12}", "correct"),
        (r"\boxed{**C**}", "correct"),
        (r"\boxed{\text{Option C}}", "correct"),
        (r"\boxed{\displaystyle \mathbf{C}}", "correct"),
        (r"\boxed{C and D}", "not_a_choice"),
        (r"\boxed{42}", "not_a_choice"),
        (r"\boxed{Cat}", "not_a_choice"),
        (r"\boxed{Z}", "not_a_choice"),
        (r"\boxed{" + "C" * 70_000 + "}", "not_a_choice"),
        ("I like C.", "no_answer"),
        ("The answer is Copper", "no_answer"),
        ("the answer is a matter of taste", "no_answer"),
        (r"\boxed{C", "no_answer"),
    ],
)
def test_forms(end, reason):
    grade = grade_text(question(), "<think>The answer is D</think> " + end, where="response")
    assert grade == Grade(float(reason == "correct"), reason)


def test_thinking_is_no_answer():
    """A letter inside the thinking does not count; in the reference's form a box there does."""
    assert grade_text(question(), "The answer is C</think> Hm.", where="response").reason == "no_answer"
    assert grade_text(question(), "The answer is C", where="response").reason == "no_thinking"
    assert grade_text(question(), "The answer is C", where="anywhere").reason == "correct"
    inside = r"\boxed{C}</think> Hm."
    assert grade_one(question(), inside, True).reason == "correct"
    assert grade_one(question(where="after_thinking"), inside, True).reason == "no_answer"
    assert grade_one(question(), inside, False) == Grade(0.0, "truncated")
