"""Responses -> grades: the one place where a task's name picks its grader.

grades = grade_all(problems, texts, rollouts.done)
"""

from collections.abc import Sequence

from e3jax.rewards import countdown
from e3jax.rewards.extract import Grade


def grade_all(
    problems: Sequence, texts: Sequence[str], done: Sequence[bool], *, last_line_only: bool = False
) -> list[Grade]:
    """One Grade per (Problem, response, done), in order.

    A response that its budget cut before EOS scores 0 with reason "truncated" whatever it says,
    for an answer that was never finished is none. Raises ValueError for unequal lengths and for a
    task that has no grader.
    """
    if not len(problems) == len(texts) == len(done):
        raise ValueError(f"{len(problems)} problems, {len(texts)} texts, {len(done)} done flags")
    grades = []
    for problem, text, finished in zip(problems, texts, done):
        if problem.task != "countdown":
            raise ValueError(f"{problem.id}: no grader for task {problem.task!r}; add it here")
        if finished:
            grades.append(countdown.grade_text(problem, text, last_line_only=last_line_only))
        else:
            grades.append(Grade(0.0, "truncated"))
    return grades
