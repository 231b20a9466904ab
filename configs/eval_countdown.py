r"""Evaluate the quickstart's checkpoints: 32 samples of 96 held-out problems with 3 and with 4 numbers.

    python -m e3jax.eval.run --config=configs/eval_countdown.py:runs/quickstart/checkpoints/hard/40 --workdir=runs/eval
    python -m e3jax.eval.run --workdir=runs/eval \
        --config=configs/eval_countdown.py:base=runs/quickstart/checkpoints/base/280,e3=runs/quickstart/checkpoints/hard/40

Here the thinking is whatever comes before "<answer>", so the word "<answer>" stops it early. No phrase means "wait".
"""

from configs import eval_math


def get_config(argument: str = "runs/quickstart/checkpoints/hard/40"):
    c = eval_math.get_config(argument)
    c.sets = {}
    for numbers in (3, 4):
        c.sets[f"{numbers} numbers"] = eval_math.one_set(
            (numbers,), form="calculator", prompt="", problems=96, samples=32
        )
    c.budgets = (96, 192, 384)
    c.train_budget = 96
    c.sampler.temperature, c.sampler.top_p, c.sampler.top_k = 1.0, 1.0, 0  # as in configs/common.py
    c.sampler.slots, c.sampler.prefill_rows, c.sampler.block = 128, 64, 16
    c.forcing.close = c.forcing.sentence = "<answer>"
    c.forcing.answer, c.forcing.thinking, c.forcing.extension = 12, 96, 32
    c.grader.workers = 2
    return c
