"""Countdown with a calculator: the model writes <calc>12*3</calc>, and the environment puts " = 36" behind it.

    python -m e3jax.train.curriculum --config=configs/my_grpo.py --workdir=runs/calculator \
        --config.model.name=HuggingFaceTB/SmolLM2-135M-Instruct --config.task.file=examples/calculator.py \
        --config.environment.file=examples/calculator.py

It is a task and an environment in one file. The environment goes with any other task too, e.g. with e3's Countdown
(task.form="paper"), whose prompt says nothing of a calculator: the model must have learnt to write to it before.
"""

from e3jax.rewards.countdown import ExpressionError, evaluate, grade_text
from e3jax.tasks.countdown import paper_problem

STOPS = ("</calc>",)  # ends a turn, besides the model's ending token


def reply(problem, transcript):
    """Return the value of what stands in the last <calc> of the newest turn; None, the end, where the turn has none."""
    _, opened, inside = transcript[-1].rpartition("<calc>")
    expression, closed, _ = inside.partition("</calc>")
    if not opened or not closed:
        return None
    try:
        return f" = {evaluate(expression)}\n"  # the project's own reader of expressions: model text is never evaluated
    except ExpressionError as error:
        return f" has no value ({error.reason})\n"


def problem(seed, i):
    """Return a problem with 3 or 4 numbers; odd seeds are held out, so that no instance is in both splits."""
    return paper_problem(seed, i, numbers=3 + i % 2, split="test" if seed % 2 else "train")


def prompt(problem):
    """Return the question, with the calculator."""
    numbers, target = problem.meta["numbers"], problem.meta["target"]
    return (
        f"Using each of the numbers {list(numbers)} exactly once and + - * /, write an expression equal to {target}. "
        "A calculator answers you: write <calc>12*3</calc> and it continues with ' = 36'. Try several expressions. "
        "End with the right one in tags, as <answer> (1 + 2) / 3 </answer>."
    )


def grade(problem, response, done):
    """Return the grade of Countdown's own grader; what the calculator said is not in the response."""
    return grade_text(problem, response) if done else 0
