"""A task of your own: how many of some letters are vowels? Problems, prompt, grader, and how attempts are read.

    python -m e3jax.train.curriculum --config=configs/my_grpo.py --workdir=runs/letters \
        --config.model.name=HuggingFaceTB/SmolLM2-135M-Instruct --config.task.file=examples/my_task.py

An easier part of it, as `examples/my_task.py:SHORT`, can be a stage's or an evaluation set's `file`. Every function but
`problem` and `grade` may be left out. docs/your-own.md says what each may return.
"""

import random
import re
from functools import partial
from types import SimpleNamespace

VOWELS = set("aeiou")


def problem(seed, i, *, most=16):
    """Return problem i: a function of seed and i alone. Training gets even seeds, what is held out odd ones."""
    rng = random.Random(f"{seed} {i}")
    letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, most)))
    answer = sum(letter in VOWELS for letter in letters)
    return {"question": letters, "answer": answer, "difficulty": f"{len(letters)} letters"}


def prompt(problem):
    """Return what the user says; a list of messages may come back too."""
    return f"How many of the letters of {problem.question!r} are vowels (a, e, i, o, u)? End with 'Answer: NUMBER'."


def grade(problem, response, done):
    """Return 1 for a right answer at the end, .1 for a wrong number there."""
    answer = re.search(r"Answer: (\d{1,3})\.?\s*$", response)
    return 0 if not done or answer is None else 1 if answer[1] == problem.answer else 0.1


def attempts(response):
    """Return the attempts in a response, in their order: each statement of a number of vowels."""
    return re.findall(r"\b\d{1,3} vowels?\b", response)


SHORT = SimpleNamespace(problem=partial(problem, most=5), prompt=prompt, grade=grade, attempts=attempts)
