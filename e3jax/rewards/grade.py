"""Responses -> grades: the one place where a task's name picks its grader.

grades = grade_all(problems, texts, rollouts.done)
"""

from collections.abc import Sequence

from e3jax.errors import UserError
from e3jax.rewards import countdown, countdown_plans, math, mcq, multiplication, plan
from e3jax.rewards.extract import IN_PHASES, WHERE, Grade

BOXED = {"math": math.grade_text, "mcq": mcq.grade_text, "multiplication": multiplication.grade_text}


def grade_one(problem, text: str, done: bool, *, last_line_only: bool = False) -> Grade:
    """A response that its budget cut before EOS scores 0, reason "truncated": an answer never finished is none.

    Tasks whose answer is boxed ("math", "mcq", "multiplication") read `problem.meta["where"]`: where it is looked for
    (extract.boxed_answer, plan.grade_text). In the problem it reaches the grader's processes too.
    ValueError for a task that has no grader; UserError without "where".
    """
    if problem.task not in ("countdown", "countdown_plans", "products", *BOXED):
        raise ValueError(f"{problem.id}: no grader for task {problem.task!r}; add it here")
    if problem.task in BOXED and "where" not in problem.meta:
        raise UserError(f'{problem.id}: meta["where"] must say where its answer is looked for: {", ".join(WHERE)}')
    if not done:
        return Grade(0.0, "truncated")
    if problem.task == "countdown":
        return countdown.grade_text(problem, text, last_line_only=last_line_only)
    if problem.task == "countdown_plans":
        return countdown_plans.grade_text(problem, text)
    if problem.task == "products":
        return multiplication.grade_words(problem, text)
    where, grade = problem.meta["where"], BOXED[problem.task]
    if where in IN_PHASES:
        return plan.grade_text(problem, text, where=where, grade=grade)
    return grade(problem, text, where=where)


def grade_all(
    problems: Sequence, texts: Sequence[str], done: Sequence[bool], *, last_line_only: bool = False
) -> list[Grade]:
    """`grade_one` of every (Problem, response, done), in order; ValueError for unequal lengths."""
    if not len(problems) == len(texts) == len(done):
        raise ValueError(f"{len(problems)} problems, {len(texts)} texts, {len(done)} done flags")
    return [grade_one(p, text, d, last_line_only=last_line_only) for p, text, d in zip(problems, texts, done)]
