"""Environments of the user's own: what is said to the model between its turns, by a function of a Python file.

    config.environment.file = "my_environment.py"       # or "my_environment.py:NAME", an object with these

    reply(problem, transcript)  -> a text, which is put behind the model's turn; None ends the episode; Restart(text)
                                begins a new context with it (in evaluations by e3jax.eval.run)
    STOPS = ("</calc>",)        texts at which a turn ends, besides the model's ending tokens; left out, none

`transcript` is a tuple of texts: the model's first turn, the reply to it, its second turn, … and its newest turn last.
`reply` must be a function of its arguments, so that a run that was killed ends with the same numbers. It runs in the
graders' processes (rewards/workers.py), with their limits of time and memory: a reply that is not there in time ends
the episode, which then counts as cut. How replies become tokens: rollout/turns.py.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from e3jax.errors import UserError
from e3jax.tasks.grade import grade_one
from e3jax.tasks.own_file import call, defined, load_named, member
from e3jax.tasks.own_reward import grader
from e3jax.tasks.own_task import load_task
from e3jax.tasks.problem import Problem
from e3jax.tasks.table import task_of

STOPS = "STOPS"  # the environment's name for the texts that end a turn
JUDGE = "e3jax.tasks.environment:judge_of"


class Restart(NamedTuple):
    """A reply that begins a new context: the model reads this text as a user's first turn, and nothing before it."""

    text: str


class Reply(NamedTuple):
    """What an environment says to a turn."""

    text: str | None  # None: the episode is over
    restart: bool = False
    lost: bool = False  # it did not answer in time, or died


class OwnEnvironment(NamedTuple):
    """The parts of a user's environment."""

    spec: str  # "FILE.py" or "FILE.py:NAME"
    reply: Callable[..., Any]
    stops: tuple[str, ...]


def load_environment(spec: str) -> OwnEnvironment:
    """Return the environment that "FILE.py" or "FILE.py:NAME" names; UserError."""
    thing = load_named(spec)
    takes = (Problem("", "", "", "", "", {}), ("",))
    reply = member(thing, "reply", spec, takes=takes, like="(problem, transcript)")
    stops = getattr(thing, STOPS, ())
    if not isinstance(stops, tuple | list) or not all(isinstance(text, str) and text for text in stops):
        raise UserError(f"{spec}: {STOPS} is {stops!r}: write a tuple of texts, as STOPS = ('</calc>',)")
    return OwnEnvironment(spec, reply, tuple(stops))


def reply_to(environment: OwnEnvironment, problem: Problem, transcript: Sequence[str]) -> Reply:
    """Return what an environment replies to the newest turn of a transcript; UserError shows the user's own line."""
    spec, at = environment.spec, f"the turn {transcript[-1][:60]!r} of {problem.id}"
    value = call(environment.reply, problem, tuple(transcript), name="reply", spec=spec, at=at)
    text = value.text if isinstance(value, Restart) else value
    if text is not None and not isinstance(text, str):
        where = defined(environment.reply, "reply", spec)[1]
        raise UserError(f"{where} gave {str(value)[:60]!r}: return a text, None or Restart(text)")
    return Reply(text, restart=isinstance(value, Restart))


def answering(judge: Callable[..., Any], environment: str) -> Callable[..., Any]:
    """Return a function for the graders' processes: `judge`, or with reply=True what the environment replies.

    "" is no environment: `judge` alone.
    """
    if not environment:
        return judge
    loaded = load_environment(environment)

    def judge_or_reply(problem: Problem, text: Any, done: bool, *, reply: bool = False, **options) -> Any:
        return reply_to(loaded, problem, text) if reply else judge(problem, text, done, **options)

    return judge_or_reply


def judge_of(task: str, environment: str, reward: str = "") -> Callable[..., Any]:
    """Return grade_one, or what `answering` makes of it, with the user's files loaded ("": none), before any response.

    `task`: names of tasks' files, with commas between them. `reward`: of the user's own, in the place of grade_one.
    """
    for spec in filter(None, task.split(",")):
        load_task(spec)
    return answering(grader(reward) if reward else grade_one, environment)


def judging(sets: Iterable[Sequence[Problem]], environment: str, reward: str) -> dict[str, Any]:
    """Return what GraderPool is started with where files of the user's own are loaded before the first response."""
    files = sorted({p.meta["file"] for problems in sets for p in problems if task_of(p).own})
    own = ",".join(files), environment, reward
    return {"function": JUDGE, "arguments": own} if any(own) else {}
