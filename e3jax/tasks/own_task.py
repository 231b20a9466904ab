"""A task of the user's own: a Python file, or an object in one, that makes problems and grades responses.

    config.task.file = "my_task.py"                     # or "my_task.py:HARD", an object with these functions
    draw = open_own("my_task.py", seed=0, split="train")

    problem(seed, i)                  -> dict(question=…, answer=…, …), or a Problem: a function of its arguments
    grade(problem, response, done)    -> a number or a Grade; done is False where the budget cut the response
    prompt(problem)                   -> what the user says: a text, or messages; left out, the question as it is
    attempts(response)                -> the attempts in it, texts of it in their order; left out, read as free text

Training gets even seeds and everything held out odd ones, so that no held-out seed is ever one of training. The file
reaches the graders' processes by its name, in the problem's meta. examples/my_task.py is a whole one.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from e3jax.errors import UserError, need, need_seed
from e3jax.rewards.extract import Grade, last_answer, last_boxed
from e3jax.tasks.chats import plain, read_messages
from e3jax.tasks.countdown_traces import Attempt
from e3jax.tasks.own_file import as_grade, call, defined, load_named, member, split_name
from e3jax.tasks.problem import SPLITS, Problem
from e3jax.tasks.stream import DEFAULT_WORDING, Stream, Wording, endless

TASK = "own"  # Problem.task


class OwnTask(NamedTuple):
    """The functions of a user's task."""

    spec: str  # "FILE.py" or "FILE.py:NAME"
    problem: Callable[..., Any]
    grade: Callable[..., Any]
    prompt: Callable[..., Any] | None
    attempts: Callable[..., Any] | None

    def ask(self, name: str, *arguments: Any, at: str) -> Any:
        """Return what one of the functions gives; UserError shows its line."""
        return call(getattr(self, name), *arguments, name=name, spec=self.spec, at=at)

    def stands(self, name: str) -> str:
        """Say where one of the functions stands."""
        return defined(getattr(self, name), name, self.spec)[1]


def load_task(spec: str) -> OwnTask:
    """Return the task that "FILE.py" or "FILE.py:NAME" names, loaded once; UserError."""
    return load_once(spec, split_name(spec)[0].resolve())


@cache
def load_once(spec: str, path: Path) -> OwnTask:
    """Return the task that a spec names, which is in the file `path`."""
    thing, a_problem = load_named(spec), Problem("", TASK, "", "", "", {})
    how = {
        "problem": dict(takes=(0, 0), like="(seed, i)"),
        "grade": dict(takes=(a_problem, "", True), like="(problem, response, done)"),
        "prompt": dict(takes=(a_problem,), like="(problem)"),
        "attempts": dict(takes=("",), like="(response)"),
    }
    needed = ("problem", "grade")
    functions = {n: member(thing, n, spec, **h) if n in needed or hasattr(thing, n) else None for n, h in how.items()}
    return OwnTask(spec, **functions)


def need_own(field: str, spec) -> None:
    """Refuse config.`field` unless it names a task's file."""
    try:
        load_task(spec)
    except UserError as error:
        need(False, field, spec, str(error))
    except (AttributeError, TypeError):
        need(False, field, spec, "name a file: FILE.py, or FILE.py:NAME")


def open_own(spec: str, *, seed: int, split: str, wording: Wording = DEFAULT_WORDING) -> Stream:
    """Return the stream of a user's problems, put as `wording` says."""
    task = load_task(spec)
    need_seed(seed)
    return endless(lambda i: make_problem(task, seed, i, split=split, wording=wording))


def seed_of(seed: int, split: str) -> int:
    """Return the seed that a split's problems are made from: even for training, odd for what is held out.

    >>> seed_of(3, "train"), seed_of(3, "test")
    (6, 7)
    """
    return 2 * seed + SPLITS.index(split)


def make_problem(task: OwnTask, seed: int, i: int, *, split: str, wording: Wording) -> Problem:
    """Return problem i of a split, its question as the model reads it; meta["problem"] is the question itself."""
    at = f"problem {i} of {split}"
    made = task.ask("problem", seed_of(seed, split), i, at=at)
    if isinstance(made, Mapping) and {"question", "answer"} <= made.keys():
        rest = {name: value for name, value in made.items() if name not in ("question", "answer", "difficulty")}
        label = str(made["difficulty"]) if "difficulty" in made else short(task.spec)
        made = Problem("", TASK, made["question"], str(made["answer"]), label, rest)
    if not isinstance(made, Problem) or not isinstance(made.question, str):
        raise UserError(
            f"{task.stands('problem')} gave {str(made)[:60]!r}: return a Problem, or a dict with question, a text, and "
            "answer"
        )
    problem = Problem(
        id=f"{short(task.spec)}-{split}-{seed}-{i}",
        task=TASK,
        question=made.question,
        answer=made.answer,
        difficulty=made.difficulty,
        meta={**made.meta, "file": task.spec, "problem": made.question},
    )
    words = problem.question if task.prompt is None else task.ask("prompt", problem, at=at)
    *before, last = messages_of(task, words)
    before = {"before": before} if before else {}
    question = wording.chat(last["content"], *before.values())
    return Problem(problem.id, TASK, question, problem.answer, problem.difficulty, problem.meta | before)


def messages_of(task: OwnTask, words: Any) -> list[dict[str, str]]:
    """Return a prompt as messages, of which the user's is the last; UserError."""
    try:
        messages = read_messages([{"role": "user", "content": words}] if isinstance(words, str) else words, "prompt")
    except ValueError as error:
        where = task.stands("problem" if task.prompt is None else "prompt")
        raise UserError(f"{where}: {error}: return a text, or messages with role and content") from error
    if messages[-1]["role"] != "user":
        speaker = messages[-1]["role"]
        raise UserError(f"{task.stands('prompt')}: the last message is by {speaker!r}: end with the user's")
    return [plain(message) for message in messages]


def short(spec: str) -> str:
    """Return a task's name in ids and records.

    >>> short("tasks/my_task.py"), short("tasks/my_task.py:HARD")
    ('my_task', 'my_task:HARD')
    """
    file, colon, name = spec.partition(":")
    return Path(file).stem + colon + name


# ---- responses


def grade(problem: Problem, text: str, done: bool) -> Grade:
    """Grade a response by its own file's grader."""
    task = load_task(problem.meta["file"])
    value = task.ask("grade", problem, text, done, at=f"the response {text[:60]!r} to {problem.id}")
    return as_grade(value, task.stands("grade"))


def parse(text: str, problem: Problem) -> tuple[list[Attempt], str]:
    """Return a response's attempts as its file's `attempts` reads them, and what comes after the last; else none.

    UserError for an attempt that is not a part of the response, behind the one before it.
    """
    task, out, end = load_task(problem.meta["file"]), [], 0
    if task.attempts is None:
        return [], text
    for one in task.ask("attempts", text, at=f"the response {text[:60]!r} to {problem.id}"):
        attempt = one if isinstance(one, Attempt) else Attempt(one, one, None, None)
        start = text.find(attempt.text, end) if isinstance(attempt.text, str) else -1
        if start < 0:
            raise UserError(
                f"{task.stands('attempts')} gave {str(attempt.text)[:60]!r}, which is not in the rest of the response: "
                "return parts of it, in their order"
            )
        out.append(attempt)
        end = start + len(attempt.text)
    return out, text[end:].lstrip() if out else text


def vote(problem: Problem, text: str) -> str | None:
    r"""Return what a response votes for in maj@k: its last box, else its last <answer>, else nothing.

    >>> vote(None, r"\boxed{4}"), vote(None, "<answer> 5 </answer>"), vote(None, "6")
    ('4', '5', None)
    """
    return last_boxed(text) or last_answer(text)
