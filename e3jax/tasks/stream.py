"""Which problems a step sees: a function of (seed, number), so that there is nothing to save and nothing to resume.

draw = TASKS["calculator"].open((3, 4), seed=0, split="train")         # tasks/table.py
problems = draw(640, 16)                                               # problems 640 … 655
draw = TASKS["math"].open("e3-math-easy", seed=0, split="train", wording=Wording(prompt="e3"))
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from e3jax.errors import UserError
from e3jax.printable import printable
from e3jax.tasks.problem import Problem
from e3jax.tasks.prompts import Chat, qwen3_chat
from e3jax.tasks.sets import ANSWERS_ALONE, Needs, load_set

Stream = Callable[[int, int], list[Problem]]  # start, count -> problems


@dataclass(frozen=True)
class Wording:
    """How the questions of a run are put, where their answers are looked for, and which are too long to be put."""

    prompt: str = ""  # a name of tasks/prompts.py, "": a set's default; unused by tasks that have their own prompt
    chat: Chat = qwen3_chat
    where: str = "response"  # rewards/extract.py WHERE
    fits: Callable[[str], bool] = lambda text: True  # whether a whole prompt is short enough
    tokens: Callable[[str], int] = len  # of a whole prompt
    needs: Needs = ANSWERS_ALONE  # what the run's reward needs of a set


DEFAULT_WORDING = Wording()


def endless(make: Callable[[int], Problem]) -> Stream:
    """Return the stream of make(0), make(1), …"""
    return lambda start, count: [make(i) for i in range(start, start + count)]


def open_set(name: str, *, seed: int, split: str, wording: Wording = DEFAULT_WORDING) -> Stream:
    """Return the stream of a set; the set's own split is part of its name: "NAME@SPLIT".

    With split "train" every epoch is a new permutation of it, a function of (seed, epoch), without end; with "test" it
    comes in its own order, once. Problems whose whole text does not pass `wording.fits` are left out, with a line on
    stderr that says how many tokens the longest has.
    """
    how = dict(prompt=wording.prompt, chat=wording.chat, where=wording.where, needs=wording.needs)
    problems = load_set(name, seed=seed, **how)
    problems = fitting(name, problems, wording.fits, wording.tokens)
    if split == "test":
        return lambda start, count: problems[start : start + count]
    return endless(lambda i: problems[at(i, len(problems), seed)])


def at(i: int, size: int, seed: int) -> int:
    """Return which of `size` problems is the i-th of an endless stream: permutation i // size, place i % size."""
    return int(permutation(seed, i // size, size)[i % size])


@lru_cache(maxsize=4)  # a step may lie on the border of two epochs
def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """Return the order of one epoch: a function of the arguments."""
    return np.random.default_rng([seed, epoch, size]).permutation(size)


def fitting(
    name: str, problems: list[Problem], fits: Callable[[str], bool], tokens: Callable[[str], int]
) -> list[Problem]:
    """Return the problems whose prompts are short enough; UserError when there is none."""
    kept = [p for p in problems if fits(p.question)]
    longer = [str(p.meta["index"]) for p in problems if not fits(p.question)] if len(kept) < len(problems) else []
    if longer:
        longest = max(tokens(p.question) for p in problems)
        rows = ", ".join(longer[:20]) + (" …" if len(longer) > 20 else "")
        text = f"{name}: left out {len(longer)} of {len(problems)} problems, whose prompts are longer than "
        text += f"config.task.prompt_room: rows {rows}; the longest has {longest} tokens"
        print(printable(text, lines=False), file=sys.stderr, flush=True)
    if not kept:
        raise UserError(f"{name}: no prompt fits config.task.prompt_room: raise it to {longest}, which fits all")
    return kept
