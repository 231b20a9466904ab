"""Responses -> grades, each by the grader of its problem's row of tasks/table.py.

grades = grade_all(problems, texts, rollouts.done)
"""

from collections.abc import Sequence

from e3jax.errors import UserError
from e3jax.rewards import plan
from e3jax.rewards.extract import IN_PHASES, WHERE, Grade
from e3jax.tasks.problem import Problem
from e3jax.tasks.table import task_of


def grade_one(problem: Problem, text: str, done: bool) -> Grade:
    """Grade one response. `done` False: its budget cut it before EOS.

    A cut response scores 0 with reason "truncated", unless `problem.meta["unfinished"]` is "graded": then what is
    there is graded like any other text, as e3's reward does (config.grpo.reward.unfinished).

    Tasks whose answer is boxed read `problem.meta["where"]`: where it is looked for (extract.boxed_answer,
    plan.grade_text). In the problem it reaches the grader's processes too. A task of the user's own says itself what a
    cut response is worth.
    ValueError for a task that has no row; UserError without "where".
    """
    task = task_of(problem)
    if task.boxed and "where" not in problem.meta:
        raise UserError(f'{problem.id}: meta["where"] must say where its answer is looked for: {", ".join(WHERE)}')
    if task.own:
        return task.grade(problem, text, done)
    if not done and ("unfinished" not in problem.meta or problem.meta["unfinished"] != "graded"):
        return Grade(0.0, "truncated")
    if not task.boxed:
        return task.grade(problem, text)
    where = problem.meta["where"]
    if where in IN_PHASES:
        return plan.grade_text(problem, text, where=where, grade=task.grade)
    return task.grade(problem, text, where=where)


def nothing_read(reasons: Sequence[str], problems: Sequence, *, where_field: str, prompt_field: str) -> str | None:
    """Return a sentence when no response of a step or an evaluated set gave the grader an answer to read, else None.

    All of it scores 0, whatever the model knows; the cause is nearly always where the answer is looked for.
    The two fields are the names of what a person would change, e.g. "config.task.where".
    """
    unread = [i for i, reason in enumerate(reasons) if reason in ("no_thinking", "no_answer")]
    if not reasons or len(unread) < len(reasons):
        return None
    thoughtless = sum(reason == "no_thinking" for reason in reasons)
    meta, what = problems[0].meta, f"none of {len(reasons)} responses has an answer that the grader can read"
    if "where" not in meta:
        return f"{what} (no_answer): the prompt asks for <answer> … </answer>; a base model must learn that form first"
    cure = f"{where_field}={meta['where']!r} reads a boxed answer"
    if thoughtless:
        return (
            f"{what}; {thoughtless} lack '</think>' (no_thinking): {cure} of a response that ends its thought; set "
            f"{where_field}='anywhere' for a model that does not think, or a longer budget for one that does"
        )
    return f"{what} (no_answer): {cure}; choose a {prompt_field} that asks for \\boxed{{}}, as 'e3' does"


def grade_all(problems: Sequence[Problem], texts: Sequence[str], done: Sequence[bool]) -> list[Grade]:
    """Return `grade_one` of every (Problem, response, done), in order; ValueError for unequal lengths."""
    if not len(problems) == len(texts) == len(done):
        raise ValueError(f"{len(problems)} problems, {len(texts)} texts, {len(done)} done flags")
    return [grade_one(p, text, d) for p, text, d in zip(problems, texts, done)]
