"""The tasks: one row each. All that the other code knows of a task it knows from here; nothing compares their names.

    draw = TASKS["calculator"].open((3, 4), seed=0, split="train")
    grade = task_of(problem).grade(problem, text)

To add a task, write a file with its functions and add a row (CONTRIBUTING.md, "Adding something").
tests/test_tasks_table.py adds a whole one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from e3jax.errors import need
from e3jax.rewards import countdown as countdown_grader
from e3jax.rewards import countdown_plans as plans_grader
from e3jax.rewards import math, mcq, multiplication, plan
from e3jax.rewards.extract import Grade
from e3jax.rewards.votes import boxed_vote, execution_vote, tagged_vote
from e3jax.tasks import (
    countdown_plans,
    countdown_plans_text,
    countdown_text,
    countdown_traces,
    multiplication_text,
    own_task,
    product_traces,
)
from e3jax.tasks.countdown import calculator_problem, need_numbers, open_countdown, paper_problem
from e3jax.tasks.multiplication import need_digits, open_multiplication, open_products
from e3jax.tasks.problem import Problem
from e3jax.tasks.sets import need_set
from e3jax.tasks.stream import Stream, open_set


@dataclass(frozen=True, kw_only=True)
class Task:
    """A row: where problems come from, which words they use, how responses are graded and read.

    Problems, where `name` is a form (config.task.form) at all:
      field                which field of a stage says which problems, its source: "numbers", "digits", "set"
      open                 (source, *, seed, split, wording) -> Stream, which draws them
      check_source         (field, source): refuse an impossible source with errors.need
      endless              problems are made without end, and none of split "test" is one of "train"; False: a set
    Words:
      words                the closed vocabulary of tiny models; None: a real tokenizer
      prompt_fields        the placeholders that config.task.prompt must have; (): the task has its own prompt
      chat                 the question goes into the model's chat template
    Supervised traces:
      trace                (problem, rng, habits) -> a response of the synthetic base policy; None: there are none
      habits               the dataclass of a supervised stage's field `traces`
      least_trace_tokens   (source) -> the least habits.most_tokens, of traces in text the least habits.most_characters;
                           None: traces have one length
    Responses:
      grade                (problem, text) -> Grade, for boxed tasks (problem, text, *, where)
      own                  the user's file: its grade takes (problem, text, done), and may be any number
      boxed                the answer is in a \\boxed{}, looked for in problem.meta["where"]; else in <answer> tags
      vote                 (problem, text) -> what a response votes for in maj@k, or None
      followed             (plan, execution) -> the share of the plan that the execution follows (E2C)
      parse                (text, problem) -> its attempts exactly, and the rest; None: free text, read as e3 reads it,
                           as is a real tokenizer's text that has no such attempt
      equations            an attempt is a proposed expression; else it is a block of thought (metrics/exploration.py)
    """

    name: str
    problem_task: str  # what Problem.task says, in records too
    field: str = ""
    open: Callable[..., Stream] | None = None
    check_source: Callable[[str, Any], None] | None = None
    endless: bool = True
    words: tuple[str, ...] | None = None
    prompt_fields: tuple[str, ...] = ()
    chat: bool = False
    trace: Callable[..., str] | None = None
    habits: type | None = None
    least_trace_tokens: Callable[[Any], int] | None = None
    grade: Callable[..., Grade]
    own: bool = False
    boxed: bool = False
    vote: Callable[[Problem, str], str | None]
    followed: Callable[[str, str], float] = plan.followed
    parse: Callable[[str, Problem], tuple[list[countdown_traces.Attempt], str]] | None = None
    equations: bool = False


ROWS = (
    Task(
        name="calculator",  # Countdown for tiny models, read left to right
        problem_task="countdown",
        field="numbers",
        open=partial(open_countdown, calculator_problem),
        check_source=partial(need_numbers, most=6),
        words=countdown_traces.WORDS,
        trace=countdown_traces.base_trace,
        habits=countdown_traces.Habits,
        least_trace_tokens=countdown_traces.least_tokens,
        grade=countdown_grader.grade_calculator,
        vote=tagged_vote,
        parse=countdown_traces.parse,
        equations=True,
    ),
    Task(
        name="plans",  # the same in E2C's two phases
        problem_task="countdown_plans",
        field="numbers",
        open=partial(open_countdown, countdown_plans.plans_problem),
        check_source=partial(need_numbers, most=6),
        words=countdown_plans.WORDS,
        trace=countdown_plans.plan_trace,
        habits=countdown_plans.Habits,
        grade=plans_grader.grade_text,
        vote=execution_vote,
        followed=plans_grader.followed,
    ),
    Task(
        name="paper",  # e3's Countdown
        problem_task="countdown",
        field="numbers",
        open=partial(open_countdown, paper_problem),
        check_source=partial(need_numbers, most=12),
        trace=countdown_text.base_trace,
        habits=countdown_text.Habits,
        least_trace_tokens=countdown_text.least_characters,
        grade=countdown_grader.grade_text,
        vote=tagged_vote,
        parse=countdown_text.parse,
        equations=True,
    ),
    Task(
        name="plans_text",  # calculator Countdown in E2C's two phases, in text
        problem_task="countdown_plans_text",
        field="numbers",
        open=partial(open_countdown, countdown_plans_text.plans_problem),
        check_source=partial(need_numbers, most=6),
        trace=countdown_plans_text.plan_trace,
        habits=countdown_plans.Habits,
        grade=countdown_plans_text.grade_text,
        vote=partial(execution_vote, read=countdown_plans_text.read_execution),
        followed=countdown_plans_text.followed,
        parse=countdown_plans_text.parse,
    ),
    Task(
        name="math",  # a set of questions, whose rows may be of any task (tasks/sets.py)
        problem_task="math",
        field="set",
        open=open_set,
        check_source=need_set,
        endless=False,
        prompt_fields=("problem",),
        chat=True,
        grade=math.grade_text,
        boxed=True,
        vote=boxed_vote,
    ),
    Task(
        name="multiplication",  # e3's MULT
        problem_task="multiplication",
        field="digits",
        open=open_multiplication,
        check_source=need_digits,
        prompt_fields=("a", "b"),
        chat=True,
        trace=multiplication_text.base_trace,
        habits=multiplication_text.Habits,
        least_trace_tokens=multiplication_text.least_characters,
        grade=multiplication.grade_text,
        boxed=True,
        vote=boxed_vote,
        parse=multiplication_text.parse,
    ),
    Task(
        name="products",  # the same for tiny models
        problem_task="products",
        field="digits",
        open=open_products,
        check_source=need_digits,
        words=countdown_traces.WORDS,
        trace=product_traces.base_trace,
        habits=product_traces.Habits,
        least_trace_tokens=product_traces.least_tokens,
        grade=multiplication.grade_words,
        vote=tagged_vote,
        parse=product_traces.parse,
    ),
    Task(
        name="own",  # a file of the user's (config.task.file)
        problem_task=own_task.TASK,
        field="file",
        open=own_task.open_own,
        check_source=own_task.need_own,
        chat=True,
        grade=own_task.grade,
        own=True,
        vote=own_task.vote,
        parse=own_task.parse,
    ),
    Task(name="mcq", problem_task="mcq", chat=True, grade=mcq.grade_text, boxed=True, vote=boxed_vote),  # rows of sets
)
TASKS = {task.name: task for task in ROWS}


def forms() -> list[str]:
    """Return the tasks that a config can name as its form: those with a source of problems."""
    return [name for name, task in TASKS.items() if task.open]


def need_form(field: str, name: str) -> bool:
    """Refuse config.`field`, whose value is `name`, unless it is a form; return whether it is one."""
    return need(name in forms(), field, name, f"use one of {', '.join(map(repr, forms()))}")


def reads_set(name: str) -> bool:
    """Return whether it is a form whose problems are a set with an end."""
    return name in forms() and not TASKS[name].endless


def task_of(problem: Problem) -> Task:
    """Return the row of a problem: that of its `task`; of several, the one that its meta["form"] names.

    >>> from e3jax.tasks.countdown import paper_problem
    >>> task_of(paper_problem(0, 0, numbers=3)).name
    'paper'
    """
    rows = [task for task in TASKS.values() if task.problem_task == problem.task]
    if len(rows) > 1:
        rows = [task for task in rows if task.name == problem.meta["form"]]
    if not rows:
        form = f" and form {problem.meta['form']!r}" if "form" in problem.meta else ""
        raise ValueError(f"{problem.id}: no row of tasks/table.py has problems of task {problem.task!r}{form}: add one")
    return rows[0]
