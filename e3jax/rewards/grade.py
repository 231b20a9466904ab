"""Responses -> grades: the one place where a task's name picks its grader.

grades = grade_all(problems, texts, rollouts.done)
"""

from collections.abc import Sequence

from e3jax.rewards import countdown
from e3jax.rewards.extract import Grade


def grade_one(problem, text: str, done: bool, *, last_line_only: bool = False) -> Grade:
    """A response that its budget cut before EOS scores 0, reason "truncated": an answer never finished is none.

    ValueError for a task that has no grader.
    """
    if problem.task != "countdown":
        raise ValueError(f"{problem.id}: no grader for task {problem.task!r}; add it here")
    if not done:
        return Grade(0.0, "truncated")
    return countdown.grade_text(problem, text, last_line_only=last_line_only)


def grade_all(
    problems: Sequence, texts: Sequence[str], done: Sequence[bool], *, last_line_only: bool = False
) -> list[Grade]:
    """`grade_one` of every (Problem, response, done), in order; ValueError for unequal lengths."""
    if not len(problems) == len(texts) == len(done):
        raise ValueError(f"{len(problems)} problems, {len(texts)} texts, {len(done)} done flags")
    return [grade_one(p, text, d, last_line_only=last_line_only) for p, text, d in zip(problems, texts, done)]
