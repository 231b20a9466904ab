"""Which problems a step sees: a function of (seed, number), so that there is nothing to save and nothing to resume.

draw = open_stream("calculator", (3, 4), seed=0, split="train")
problems = draw(640, 16)                                # problems 640 … 655
draw = open_stream("math", "e3-math-easy", seed=0, split="train", prompt="e3")
"""

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from e3jax.errors import UserError
from e3jax.printable import printable
from e3jax.tasks.countdown import calculator_problem, paper_problem
from e3jax.tasks.countdown_plans import plans_problem
from e3jax.tasks.multiplication import multiplication_problem, products_problem
from e3jax.tasks.problem import Problem
from e3jax.tasks.prompts import Chat, qwen3_chat
from e3jax.tasks.sets import load_set

# config.task.form -> the field of a stage that says which problems: of a form's generator, or of a set
FIELDS = {
    "calculator": "numbers", "plans": "numbers", "paper": "numbers", "math": "set", "multiplication": "digits",
    "products": "digits",
}  # fmt: skip

COUNTDOWN = {"calculator": calculator_problem, "plans": plans_problem, "paper": paper_problem}

Stream = Callable[[int, int], list[Problem]]  # start, count -> problems


def open_stream(
    form: str,
    source,
    *,
    seed: int,
    split: str,
    prompt: str = "",
    chat: Chat = qwen3_chat,
    where: str = "response",
    fits: Callable[[str], bool] = lambda text: True,
    tokens: Callable[[str], int] = len,
) -> Stream:
    """What draws problems start … start + count - 1 of a stage or an evaluation.

    `source` is what the form's field says: numbers of Countdown, digits of multiplication, the name of a set. Countdown
    and multiplication are made, without end, and no problem of split "test" is one of "train". A set (its own split is
    part of its name: "NAME@SPLIT") is read once: with "train" every epoch is a new permutation of it, a function of
    (seed, epoch), without end; with "test" it comes in its own order, once. `prompt`, `chat` and `where` are as
    in tasks/sets.py. Of a set, problems whose whole text does not pass `fits` are left out, with a line on stderr
    that says how many `tokens` the longest has.
    """
    if form in COUNTDOWN:
        return lambda start, count: problems_at(
            form=form, numbers=source, seed=seed, split=split, start=start, count=count
        )
    if form == "multiplication":
        made = dict(digits=tuple(source), split=split, prompt=prompt, chat=chat, where=where)
        return lambda start, count: [multiplication_problem(seed, i, **made) for i in range(start, start + count)]
    if form == "products":
        which = dict(digits=tuple(source), split=split)
        return lambda start, count: [products_problem(seed, i, **which) for i in range(start, start + count)]
    if form != "math":
        raise ValueError(f"task.form={form!r}: use one of {', '.join(FIELDS)}")
    problems = fitting(source, load_set(source, prompt=prompt, seed=seed, chat=chat, where=where), fits, tokens)
    if split == "test":
        return lambda start, count: problems[start : start + count]
    return lambda start, count: [problems[at(i, len(problems), seed)] for i in range(start, start + count)]


def problems_at(*, form: str, numbers: Sequence[int], seed: int, split: str, start: int, count: int) -> list[Problem]:
    """Countdown problems start … start + count - 1; problem i has numbers[i % len(numbers)] numbers.

    `form` is "calculator", "plans" (the same to be planned first; tiny models) or "paper" (real tokenizers).
    """
    if form not in COUNTDOWN:
        raise ValueError(f"task.form={form!r}: use {', '.join(map(repr, COUNTDOWN))}")
    make = COUNTDOWN[form]
    return [make(seed, i, numbers=numbers[i % len(numbers)], split=split) for i in range(start, start + count)]


def at(i: int, size: int, seed: int) -> int:
    """Which of `size` problems is the i-th of an endless stream: permutation i // size, place i % size."""
    return int(permutation(seed, i // size, size)[i % size])


@lru_cache(maxsize=4)  # a step may lie on the border of two epochs
def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of one epoch: a function of its arguments."""
    return np.random.default_rng([seed, epoch, size]).permutation(size)


def fitting(
    name: str, problems: list[Problem], fits: Callable[[str], bool], tokens: Callable[[str], int]
) -> list[Problem]:
    """The problems whose prompt is short enough; UserError when there is none."""
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
