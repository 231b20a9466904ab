"""Read from a response's text all that training and its evaluations need, in the process that grades it.

The trainer itself reads no text that a model wrote: a function that took minutes for one text would hold up every
process of a run, which then counts as dead.

    pool = GraderPool(workers=2, timeout_s=10.0, function=READ, lost=LOST)
    one, *_ = pool.submit(problems, texts, done, following="sound").result()     # a Reading each
    GraderPool(workers=2, timeout_s=10.0, function=READ_OWN, arguments=("my_rewards.py:is_short", "", ""), lost=LOST)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from e3jax.metrics.exploration import explore
from e3jax.rewards.extract import Grade, last_boxed
from e3jax.rewards.plan import plan_share
from e3jax.rewards.repetition import most_repeats
from e3jax.tasks.countdown_traces import Attempt
from e3jax.tasks.environment import answering
from e3jax.tasks.grade import grade_one
from e3jax.tasks.own_reward import Part, grade_own, load_reward
from e3jax.tasks.own_task import load_task
from e3jax.tasks.problem import Problem
from e3jax.tasks.table import task_of

READ, READ_OWN = "e3jax.metrics.reading:read", "e3jax.metrics.reading:reader"


class Parts(NamedTuple):
    """A response taken apart."""

    attempts: list[Attempt]  # where the task's responses can be taken apart exactly, else none
    rest: str  # what is no attempt
    answer: str  # "" where there is none


class Reading(NamedTuple):
    """What is known of one response."""

    grade: Grade
    features: dict[str, float] | None  # metrics/exploration.py explore; None: not read in time
    share: float = 0.0  # of its plan that is followed (rewards/plan.py); only of right responses
    parts: Parts | None = None
    rewards: dict[str, float] | None = None  # the values of config.task.reward's parts, where there are any


LOST = Reading(Grade(0.0, "timeout"), None)


def reader(reward: str, task: str, environment: str) -> Callable[..., Any]:
    """Return `read` with the functions of config.task.reward, and a function's replies for config.environment.file.

    The user's files ("": none) are loaded here, before the first response: `task` is config.task.file.
    """
    if task:
        load_task(task)
    return answering(partial(read, reward=load_reward(reward)), environment)


def read(
    problem: Problem,
    text: str,
    done: bool,
    *,
    following: str = "off",
    apart: bool = False,
    repeats: bool = False,
    reward: list[Part] | None = None,
) -> Reading:
    """Read a response: grade and features, and where they are wanted the plan's share (`following`), parts (`apart`).

    With `repeats`, the features hold how often it says the same ten words.
    With a `reward` of the user's own, the grade is its sum (tasks/own_reward.py), and above 0 counts as right.

    >>> problem = Problem("p", "multiplication", "6 * 7 = ?", "42", "", {"where": "anywhere"})
    >>> one = read(problem, "6*7=41. Wait, \\\\boxed{42}", True, apart=True)
    >>> one.grade.reason, one.features["verifications"], one.parts.answer
    ('correct', 1, '42')
    """
    grade, rewards = grade_own(problem, text, done, reward) if reward else (grade_one(problem, text, done), None)
    features = explore(problem, text, done=done, correct=grade.score > 0)
    if repeats:
        features["repeats"] = most_repeats(text)
    share = 0.0
    if following != "off" and grade.score > 0:
        share = plan_share(problem, text, following, task_of(problem).followed)
    return Reading(grade, features, share, take_apart(problem, text) if apart else None, rewards)


def take_apart(problem: Problem, text: str) -> Parts:
    """Return attempts, rest and answer of a response."""
    task = task_of(problem)
    attempts, rest = task.parse(text, problem) if task.parse else ([], text)
    if task.boxed:
        return Parts(attempts, rest, last_boxed(text) or "")
    return Parts(attempts, rest, rest.partition("<answer>")[2].partition("</answer>")[0].strip())
