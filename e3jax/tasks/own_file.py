"""Python files of the user's own: loaded once, asked by name; every error shows the user's own file and line.

    thing = load_named("my_task.py")             # the file
    thing = load_named("my_task.py:EASY")        # the object EASY of it
    function = member(thing, "grade", "my_task.py", takes=(None, "", True), like="(problem, response, done)")
    grade = as_grade(call(function, problem, text, True, name="grade", spec="my_task.py", at="x"), "my_task.py: grade")

Rewards (own_reward.py), tasks (own_task.py) and environments (environment.py) are read so. Where they run in the
graders' processes (rewards/workers.py), one that hangs or dies costs a response; one that raises ends the run.
"""

import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from e3jax.errors import UserError, first_line
from e3jax.rewards.extract import Grade

REASON = "own"  # of a number without one
CODE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")  # of a reason: a metric's name
LONGEST_CODE = 40


def split_name(spec: str) -> tuple[Path, str]:
    """Return the file and the name in it ("": none) of "FILE.py" or "FILE.py:NAME"; UserError where it is not there."""
    file, _, name = spec.partition(":")
    if not file.endswith(".py") or (":" in spec and not name.isidentifier()):
        raise UserError(f"{spec!r} is no Python file: write FILE.py, or FILE.py:NAME for an object in it")
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"{file} does not exist in {Path.cwd()}: name the file with its path")
    return path, name


def load_named(spec: str) -> Any:
    """Return the file that "FILE.py" names, as a module, or the object NAME of "FILE.py:NAME"; UserError.

    A file is loaded once in a process, and may import its neighbours.
    """
    path, name = split_name(spec)
    module = load_once(path.resolve())
    if not name:
        return module
    if name not in vars(module):
        raise UserError(f"{path} has no {name!r}: name an object that stands in the file")
    return vars(module)[name]


@cache
def load_once(path: Path) -> Any:
    """Return a Python file as a module; it is loaded at the first call."""
    return load_file(path)


def load_file(path: Path) -> Any:
    """Return a Python file as a module, loaded anew; UserError shows its line."""
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"own_file_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up, and so does pickle
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{at_line(error, path)}: {said(error)}: mend it") from error
    return module


def member(thing: Any, name: str, spec: str, *, takes: tuple, like: str) -> Callable[..., Any]:
    """Return the function `name` of a file or object; UserError where there is none that can be called with `takes`."""
    function = getattr(thing, name, None)
    if not callable(function):
        raise UserError(f"{spec} has no function {name!r}: write {name}{like}")
    try:
        inspect.signature(function).bind(*takes)
    except TypeError as error:
        shown = f"{name}{inspect.signature(function)}"
        raise UserError(f"{defined(function, name, spec)[0]}: {shown} cannot be called: it takes {like}") from error
    return function


def call(function: Callable[..., Any], *arguments: Any, name: str, spec: str, at: str) -> Any:
    """Return what a function of the user's own gives; UserError names its file and line, and what it was called `at`.

    MemoryError and RecursionError pass: the text's doing, as for every grader.
    """
    path = Path(spec.partition(":")[0]).expanduser().resolve()
    try:
        return function(*arguments)
    except (MemoryError, RecursionError, UserError):
        raise
    except Exception as error:
        raise UserError(f"{at_line(error, path)}, in {name} at {at}: {said(error)}: mend it") from error


def as_grade(value: Any, where: str) -> Grade:
    """Return what a user's function gave as a Grade: a number, or a Grade of its own. UserError; `where` it stands."""
    if isinstance(value, Grade):
        if not is_code(value.reason):
            raise UserError(f"{where} gave the reason {value.reason!r}: use letters, digits, _, . or -")
        return Grade(number(value.score, where), value.reason)
    return Grade(number(value, where), REASON)


def is_code(reason: Any) -> bool:
    """Return whether a reason can be a part of a metric's name."""
    return isinstance(reason, str) and 0 < len(reason) <= LONGEST_CODE and set(reason) <= CODE


def number(value: Any, where: str) -> float:
    """Return a value as a finite float; UserError."""
    try:
        score = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"{where} gave {str(value)[:60]!r}, not a finite number: return a number or a Grade")
    return score


def defined(function: Callable[..., Any], name: str, spec: str) -> tuple[str, str]:
    """Return where a function stands, and that with its name: ("a.py line 3", "a.py line 3: grade")."""
    inner, file = inspect.unwrap(function), spec.partition(":")[0]
    inner = inner.__func__ if inspect.ismethod(inner) else inner
    where = f"{file} line {inner.__code__.co_firstlineno}" if inspect.isfunction(inner) else file
    return where, f"{where}: {name}"


def at_line(error: Exception, path: Path) -> str:
    """Return the file, and the line in it at which an error came up."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    line = frames[-1].lineno if frames else None
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line = error.lineno
    return f"{path} line {line}" if line else str(path)


def said(error: Exception) -> str:
    """Return the kind of an error and what it says."""
    return f"{type(error).__name__}: {first_line(error)}"
