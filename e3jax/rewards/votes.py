"""What a response votes for in maj@k: its answer in a normal form in which different spellings count together."""

from collections.abc import Callable

from e3jax.phases import begins_plan, split_text
from e3jax.rewards.countdown_plans import Execution, read_execution
from e3jax.rewards.extract import IN_PHASES, boxed_answer, last_answer
from e3jax.rewards.latex import MAX_CHARS, normal, number


def tagged_vote(problem, text: str) -> str | None:
    """Return the last <answer>…</answer> without blanks; None without one."""
    answer = last_answer(text)
    return None if answer is None else "".join(answer.split())


def execution_vote(problem, text: str, *, read: Callable[[str], Execution | None] = read_execution) -> str | None:
    """Return the value in which the execution of a plan of Countdown ends; None where it is malformed."""
    execution = read(split_text(text, begun=begins_plan(problem.question))[1])
    return str(execution[1][-1].value) if execution and execution[1] else None


def boxed_vote(problem, text: str) -> str | None:
    """Return the boxed answer in the graders' normal form, cut to MAX_CHARS; None without one.

    It is looked for in `problem.meta["where"]` (extract.boxed_answer), of a plan in its execution.
    """
    where = problem.meta["where"]
    if where in IN_PHASES:
        _, execution, _ = split_text(text, begun=begins_plan(problem.question))
        text, where = execution if where == "execution" else text, "anywhere"
    answer, _ = boxed_answer(text, where=where)
    if answer is None or len(answer) > MAX_CHARS:
        return answer and answer[:MAX_CHARS]
    text = normal(answer)
    exact = number(text)
    return str(exact[0]) if exact and exact[1] else text  # 7.0 is 7; 2/4 is no vote for 1/2, being graded otherwise
