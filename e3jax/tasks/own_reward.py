"""Rewards of the user's own: functions of a Python file, alone or several with weights, named by config.task.reward.

    "my_rewards.py:is_short"
    "task, my_rewards.py:is_short*0.2, my_rewards.py:has_format*0.1"      # "task": the task's own grader

A function is (problem, response, done) -> a number, or a Grade with a reason of its own. Or it is TRL's, (completions,
**columns) -> a list of numbers, and is called with one completion at a time: a text, or a list of one message where the
row's prompt is a list of messages. The reward is Σ weight · number. Functions run in the graders' processes
(rewards/workers.py): one that hangs or dies costs a response its reward. One that raises ends the run with a sentence
that names its file and line.
"""

import hashlib
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from e3jax.errors import UserError
from e3jax.rewards.extract import Grade
from e3jax.tasks.chats import structured
from e3jax.tasks.grade import grade_one
from e3jax.tasks.own_file import REASON, as_grade, call, defined, load_file
from e3jax.tasks.problem import Problem
from e3jax.tasks.sets import Needs

TASK = "task"  # the name of the task's own grader
SIGNATURE = "(problem, response, done), or TRL's (completions, **columns)"
PART = re.compile(r"(?:(?P<file>[^,*]+\.py):(?P<name>[A-Za-z_]\w*)|task)\s*(?:\*\s*(?P<weight>-?[\d.]+(?:e-?\d+)?))?")
SPOKEN = ("prompt", "completion", "messages")  # columns that TRL gives otherwise


class Part(NamedTuple):
    """One function of a reward."""

    name: str  # in the metrics
    file: str  # "" for the task's own grader
    weight: float
    function: Callable[..., Any] | None = None


def parse_reward(reward: str) -> list[Part]:
    """Return the parts that config.task.reward names, functions not loaded yet; UserError."""
    parts = []
    for text in reward.split(",") if reward.strip() else ():
        match = PART.fullmatch(text.strip())
        try:
            weight = float(match["weight"] or 1) if match else math.nan
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise UserError(f"{text.strip()!r} is no reward: write FILE.py:FUNCTION, or {TASK!r}, and perhaps *WEIGHT")
        parts.append(
            Part(match["name"] or TASK, str(Path(match["file"]).expanduser()) if match["file"] else "", weight)
        )
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise UserError(f"the parts are called {', '.join(names)}: each needs a name of its own in the metrics")
    for part in parts:
        if part.file and not Path(part.file).is_file():
            raise UserError(f"{part.file} does not exist in {Path.cwd()}: name the file with its path")
    return parts


def needs_of(reward: str) -> Needs:
    """Return what config.task.reward needs of a set."""
    parts = parse_reward(reward)
    return Needs(rows=bool(parts), answers=not parts or any(not part.file for part in parts))


def load_reward(reward: str) -> list[Part]:
    """Return the parts of config.task.reward with their functions; UserError shows a file's own line.

    A file may import its neighbours.
    """
    modules: dict[str, Any] = {}
    loaded = []
    for part in parse_reward(reward):
        if part.file and part.file not in modules:
            modules[part.file] = load_file(Path(part.file).resolve())
        loaded.append(part._replace(function=find_function(modules[part.file], part) if part.file else None))
    return loaded


def find_function(module: Any, part: Part) -> Callable[..., Any]:
    """Return a part's function; UserError where there is none, or its parameters are of no known form."""
    function = vars(module)[part.name] if part.name in vars(module) else None
    if not callable(function):
        known = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
        raise UserError(f"{part.file} has no function {part.name!r}: it has {', '.join(known) or 'none'}")
    if not is_batched(function):
        try:
            inspect.signature(function).bind(None, "", True)
        except TypeError as error:
            where = defined(function, part.name, part.file)[0]
            shown = f"{part.name}{inspect.signature(function)}"
            raise UserError(f"{where}: {shown} cannot be called: a reward takes {SIGNATURE}") from error
    return function


def is_batched(function: Callable[..., Any]) -> bool:
    """Return whether a function has TRL's form."""
    return "completions" in inspect.signature(function).parameters


def grade_own(problem: Problem, text: str, done: bool, parts: list[Part]) -> tuple[Grade, dict[str, float]]:
    """Return the weighted sum of a response's rewards with a reason, and each part's value before its weight.

    The reason is the task's grader's where that takes part, else a single function's own.
    """
    grades = [
        (part, grade_one(problem, text, done) if part.function is None else grade_part(part, problem, text, done))
        for part in parts
    ]
    score = sum(part.weight * grade.score for part, grade in grades)
    reasons = [grade.reason for part, grade in grades if part.function is None or len(grades) == 1]
    return Grade(score, reasons[0] if reasons else REASON), {part.name: grade.score for part, grade in grades}


def marked(problems: list[Problem], reward: str) -> list[Problem]:
    """Return the problems with a digest of the reward's files: when these change, so does what grades a response."""
    files = [Path(part.file).read_bytes() for part in parse_reward(reward) if part.file]
    mark = {"reward": hashlib.sha256(b"\0".join(files)).hexdigest()[:16]} if files else {}
    return [replace(problem, meta=problem.meta | mark) for problem in problems] if files else problems


def grader(reward: str) -> Callable[[Problem, str, bool], Grade]:
    """Return what grades a response by a reward alone, whose functions are loaded once."""
    parts = load_reward(reward)
    return lambda problem, text, done: grade_own(problem, text, done, parts)[0]


def grade_part(part: Part, problem: Problem, text: str, done: bool) -> Grade:
    """Return what a function of the user's own makes of a response; UserError names its file and line."""
    arguments = (part, problem, text) if is_batched(part.function) else (problem, text, done)
    function = batched if is_batched(part.function) else part.function
    response = f"the response {text[:60]!r} to {problem.id}"
    return as_grade(call(function, *arguments, name=part.name, spec=part.file, at=response), stands(part))


def batched(part: Part, problem: Problem, text: str) -> Any:
    """Return the value of a function of TRL's form, called with one completion; None there means that it has none: 0.

    Columns are those of the problem's row, and `answer`. UserError for a parameter that is no column.
    """
    row = problem.meta["row"] if "row" in problem.meta else {}
    prompt = structured(row["prompt"]) if "prompt" in row else problem.question
    talk = isinstance(prompt, list)
    columns = {"answer": problem.answer} | {name: x for name, x in row.items() if name not in SPOKEN}
    given = {"prompts": [prompt], "completions": [[{"role": "assistant", "content": text}] if talk else text]}
    given |= {name: [value] for name, value in columns.items()}
    parameters = inspect.signature(part.function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        given = {name: value for name, value in given.items() if name in parameters}
    named = [
        n for n, p in parameters.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if missing := [name for name in named if name not in given]:
        raise UserError(f"{stands(part)} asks for {missing[0]!r}: the columns of {problem.id} are {', '.join(columns)}")
    values = part.function(**given)
    if not hasattr(values, "__len__") or len(values) != 1:
        raise UserError(f"{stands(part)} gave {str(values)[:60]!r} for one completion: return a list of one number")
    return 0.0 if values[0] is None else values[0]


def stands(part: Part) -> str:
    """Say where a function stands."""
    return defined(part.function, part.name, part.file)[1]
