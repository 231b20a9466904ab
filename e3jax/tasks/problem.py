"""One question with a checkable answer: what task files make and graders read.

Every generator makes problem i from (seed, i) alone, so that a run can be resumed, sharded or
re-read without storing any problem.

    problem = countdown.paper_problem(0, 7, numbers=4); print(problem.question)

Generated problems are split by a hash of what is asked: `split_of` sends one eighth of all instances to "test" and the
others to "train", whatever the seed, so that no problem of one split is ever one of the other.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from e3jax.errors import UserError, need_seed

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Problem:
    """A question, the answer it is graded against, and what the grader needs besides.

    For Countdown: `question` is the whole prompt, `answer` is str(target) and `meta` is
    {"form": "paper" | "calculator", "numbers": (int, …), "target": int}.
    """

    id: str  # unique over task, family, split, size, seed and index
    task: str  # names the grader: tasks/table.py
    question: str
    answer: str
    difficulty: str  # the label that metrics are grouped by, as "3 numbers"
    meta: dict[str, Any]


def split_of(*instance: int) -> str:
    """Return the split of an instance, which must be in a normal form: numbers that may change places come sorted.

    >>> split_of(2, 5, 7, 24), split_of(1, 1, 2)
    ('train', 'train')
    """
    eighth = hashlib.sha256(" ".join(map(str, instance)).encode()).digest()[0] % 8
    return "test" if eighth == 0 else "train"


def draws_of(seed: int, *numbers: int, split: str) -> np.random.Generator:
    """Return the random numbers of one problem, a function of the arguments. UserError for another split or seed."""
    if split not in SPLITS:
        raise UserError(f"split={split!r}: use 'train' or 'test'")
    need_seed(seed)
    return np.random.default_rng([seed, *numbers, SPLITS.index(split)])
