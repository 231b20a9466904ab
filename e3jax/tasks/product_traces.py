"""Products in words, for tiny models: what MULT and MULT-V think in, base traces that teach it, and its parser.

    prompt            4 7 * 8
    MULT's attempt    6 7 3 =                       a guess, last digit first, and nothing to tell whether it is right
    MULT-V's          2 8 ?7   6 7 3 = 6 4 7 ?7 yes
                      once: digital roots of both factors and of their product; then per guess: the digital root
                      after every digit, the wanted one, the verdict
    answer            <answer> 6 7 3 </answer>

The last digit comes first, as by hand: first digit first, the model has to know the carries before it has made them.

Casting out nines is our small stand-in for the paper's checks of sub-products (App. E.1): easier than the product, so
there is a verification-generation gap. It finds one changed digit (not 9 for 0), and of other mistakes eight in nine.
Both forms propose alike, only the check differs: MULT is the control without a gap (e3 §4, Fig. 4). Countdown's words.

    habits = Habits(
        verify=True, solution_rate=0.2, give_up=0.35, persistent=0.03, persistent_solution_rate=0.05, most_tokens=120
    )
    text = base_trace(problem, rng, habits)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from e3jax.tasks.countdown_traces import NO, YES, Attempt
from e3jax.tasks.problem import Problem

DIGITS = tuple("0123456789")


def root(n: int) -> int:
    """Return the digital root, 1 … 9, of n >= 0; that of 0 is 9, which is the same modulo 9.

    >>> root(376), root(9), root(0)
    (7, 9, 9)
    """
    return (n - 1) % 9 + 1


def spelled(n: int) -> str:
    """Return a product as it is written here, last digit first.

    >>> spelled(376)
    '6 7 3'
    """
    return " ".join(str(n)[::-1])


def parse(text: str, problem: Problem) -> tuple[list[Attempt], str]:
    """Return a response's attempts, and the rest: the answer, or a guess that the budget cut before its "=".

    A guess is the digits before a "="; the next "yes" or "no" is its verdict, None where the model gives none.
    """
    attempts, guess, words = [], [], text.split()
    start = 0
    for i, word in enumerate(words):
        if word == "<answer>":
            break
        if word == "=":
            right = bool(guess) and set(guess) <= set(DIGITS) and "".join(guess)[::-1] == problem.answer
            attempts.append(Attempt(" ".join(words[start : i + 1]), " ".join(guess), None, right))
            start = i + 1
        elif word in (YES, NO) and attempts and attempts[-1].verdict is None:
            last = attempts[-1]
            checked = " ".join([last.text, *words[start : i + 1]])
            attempts[-1] = last._replace(text=checked, verdict=word == YES)
            start = i + 1
        if word in DIGITS:
            guess.append(word)
        else:
            guess.clear()
    return attempts, " ".join(words[start:])


def wrong_guess(product: int, rng: np.random.Generator) -> int:
    """Return the product with one of its digits changed; it keeps its number of digits."""
    digits = list(str(product))
    place = int(rng.integers(len(digits)))
    others = [d for d in DIGITS if d != digits[place] and not (place == 0 and d == "0")]
    digits[place] = others[rng.integers(len(others))]
    return int("".join(digits))


def checked(guess: int, wanted: int) -> tuple[str, bool]:
    """Return what follows "=": the root after every digit, the wanted one, the verdict; and whether that is "yes".

    >>> checked(376, 7)
    ('6 4 7 ?7 yes', True)
    """
    roots = [root(total) for total in accumulate(map(int, str(guess)[::-1]))]
    same = roots[-1] == wanted
    return f"{' '.join(map(str, roots))} ?{wanted} {YES if same else NO}", same


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What the synthetic base policy does (config.stages.NAME.traces), otherwise as in tasks/countdown_traces.py."""

    # MULT-V: every guess is checked, and one that passes ends the trace. Without it (MULT) a trace ends after any guess
    # with probability `give_up`, the last guess being its answer: it cannot know better.
    verify: bool
    solution_rate: float  # with which a guess is right
    give_up: float
    persistent: float
    persistent_solution_rate: float
    most_tokens: int


def least_tokens(digits: Sequence[int]) -> int:
    """Return the least `most_tokens`: one checked guess and its answer, of factors of so many digits."""
    return 3 * sum(digits) + 9


def base_trace(problem: Problem, rng: np.random.Generator, habits: Habits) -> str:
    """Return a response of the synthetic base policy: guesses, seldom right, often given up."""
    a, b = problem.meta["a"], problem.meta["b"]
    n, wanted = len(problem.answer), root(root(a) * root(b))
    h, persistent = habits, rng.random() < habits.persistent
    rate, stop = (h.persistent_solution_rate, 0.0) if persistent else (h.solution_rate, h.give_up)
    attempt_tokens, answer_tokens = 2 * n + 3 if h.verify else n + 1, n + 3  # the answer's tags and EOS included
    words = [f"{root(a)} {root(b)} ?{wanted}"] if h.verify else []
    room = h.most_tokens - answer_tokens - 3 * h.verify
    for left in range(room, attempt_tokens - 1, -attempt_tokens):
        guess = a * b if rng.random() < rate else wrong_guess(a * b, rng)
        check, passed = checked(guess, wanted) if h.verify else ("", False)
        words.append(f"{spelled(guess)} = {check}".strip())
        if passed or rng.random() < stop or left < 2 * attempt_tokens:
            return " ".join([*words, f"<answer> {spelled(guess)} </answer>"])
    raise ValueError(f"most_tokens={h.most_tokens} leaves no room for one attempt and its answer")
