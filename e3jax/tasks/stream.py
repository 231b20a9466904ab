"""Which problems a step sees: a function of (seed, step), so that there is nothing to save and nothing to resume.

problems = problems_at(form="calculator", numbers=(3, 4), seed=0, split="train", start=640, count=16)
"""

from collections.abc import Sequence

from e3jax.tasks.countdown import calculator_problem, paper_problem
from e3jax.tasks.problem import Problem

TEST_SEED = 1 << 31  # paper problems of the test split come from seeds no training run uses


def problems_at(*, form: str, numbers: Sequence[int], seed: int, split: str, start: int, count: int) -> list[Problem]:
    """Countdown problems start … start + count - 1; problem i has numbers[i % len(numbers)] numbers.

    `form` is "calculator" (tiny models) or "paper" (real tokenizers).
    """
    if form == "calculator":
        return [
            calculator_problem(seed, i, numbers=numbers[i % len(numbers)], split=split)
            for i in range(start, start + count)
        ]
    if form == "paper":
        shift = TEST_SEED if split == "test" else 0
        return [paper_problem(seed + shift, i, numbers=numbers[i % len(numbers)]) for i in range(start, start + count)]
    raise ValueError(f"task.form={form!r}: use 'calculator' or 'paper'")
