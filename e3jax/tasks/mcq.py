"""Multiple choice: MMLU, MMLU-Pro and GPQA rows -> a question with lettered choices, and the right letter.

    fields = read_mcq(row, source="gpqa-diamond", index=3, seed=0)

The choices' order: the set's own, but GPQA lists the right one first, so its order is drawn from (seed, index), and
kept as meta["order"]: order[k] is the row's number of the choice with the k-th letter.
"""

import string
from typing import Any

import numpy as np

from e3jax.tasks.math import KEPT, Fields, pick

GPQA = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def read_mcq(row: dict[str, Any], *, source: str, index: int, seed: int, shuffle: bool | None = None) -> Fields:
    """Read a row of MMLU (choices, answer: number), MMLU-Pro (options, answer: letter) or GPQA (Correct Answer, …).

    `shuffle`: draw an order; None: only where the set has no order of its own (GPQA). ValueError for a malformed row.
    """
    if GPQA[0] in row:
        question, choices, right = pick(row, ("Question",)), [row.get(name) for name in GPQA], 0
    else:
        question, choices = pick(row, ("question",)), pick(row, ("choices", "options"))
        if not isinstance(choices, list | tuple):
            raise ValueError(f"the choices are {str(choices)[:60]!r}, not a list")
        right = right_choice(pick(row, ("answer", "answer_index")), choices)
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"the question is {question!r}, not a text")
    choices = [c.strip() if isinstance(c, str) else c for c in choices]
    if any(not isinstance(c, str) or not c for c in choices):
        raise ValueError("a choice is empty")
    order = list(range(len(choices)))
    if shuffle or (shuffle is None and GPQA[0] in row):
        order = np.random.default_rng([seed, index]).permutation(len(choices)).tolist()
    letters = string.ascii_uppercase[: len(choices)]
    lines = [f"{letter}. {choices[i]}" for letter, i in zip(letters, order)]
    kept = {name: row[name] for name in KEPT if name in row and row[name] is not None}
    kept |= {"choices": [choices[i] for i in order], "order": order, "seed": seed}
    subject = next((str(kept[name]) for name in ("subject", "category") if name in kept), source)
    return Fields("mcq", "\n".join([question.strip(), "", *lines]), letters[order.index(right)], subject, kept)


def right_choice(answer: Any, choices: list) -> int:
    """Return the number of the right choice, from a number or a letter; ValueError."""
    if not 2 <= len(choices) <= 26:
        raise ValueError(f"{len(choices)} choices, not 2 to 26")
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().upper() in string.ascii_uppercase:
        number = string.ascii_uppercase.index(answer.strip().upper())
    elif isinstance(answer, int) and not isinstance(answer, bool):
        number = answer
    else:
        raise ValueError(f"the answer is {answer!r}, neither a letter nor a number")
    if not 0 <= number < len(choices):
        raise ValueError(f"the answer is {answer!r} of {len(choices)} choices")
    return number
