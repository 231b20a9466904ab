"""Which budget and which data? Train on easy problems at three budgets, and on easy, mixed and hard ones at one.

    python -m e3jax.experiments.run --config=configs/experiments/budgets.py --workdir=runs/experiments/budgets

e3 Fig. 7. Hardware and time: 3 seeds, 28 minutes of arms in all, each on one core.
Expected (2026-11-24, docs/experiments.md, experiments/results/budgets.json): mixed, 1 of 5 statements holds, of 2 the
opposite does:
                            base  easy-24  easy-96  easy-384  mixed-96  hard-96      (means of 3 seeds)
    length                           22       72      151        78       83
    3 numbers at 24 tokens   6.6     7.7      6.8      6.2       7.3      6.4  %
    3 numbers at 384        20.2    25.8     62.0     66.3      59.6     53.3  %
    4 numbers at 384         6.1     4.3     19.8     18.5      21.6     21.5  %
Values: 24 tokens hold two attempts at 3 numbers, which stands for the paper's "shorter than a typical response".
Size lm (configs/experiments/common.py): not run, needs a GPU. 256, 512 and 2,048 tokens stand for 24, 96 and 384.
"""

from configs.experiments.common import (
    EASY,
    HARD,
    LM_SETTING,
    accuracy,
    arm,
    at,
    countdown,
    curve,
    experiment,
    in_text,
    over_budgets,
    rl,
    shrunk,
    statement,
    training,
)


def get_config(size: str = "cpu"):
    c = experiment("budgets", size, text=True)
    c.paper = "Fig. 7 (§6)"
    c.claim = (
        "Training only at a short budget kills in-context exploration, at a long one it is hard to optimise: a middle "
        "budget extrapolates best. At that budget training on easy problems alone extrapolates better to hard ones "
        "than a mixture does, and hard problems alone shorten responses."
    )
    c.setting = (
        "Countdown of 3 numbers at 24, 96 and 384 tokens, then 3, 3 and 4, or 4 numbers at 96; tested on 4 numbers at "
        "384. The paper: mathematics at 4k, 8k, 16k, tested on AIME 25 at 32k; our hard problems are not out of the "
        "base model's distribution."
    )
    short, middle, long = (at(size, b) for b in ((48, 96, 384) if in_text(size) else (24, 96, 384)))
    if in_text(size):
        c.setting = f"{LM_SETTING} 50 steps; problems and budgets as the arms say."
    c.bases.countdown = countdown(size)
    for b in (short, middle, long):
        c.arms[f"easy-{b}"] = arm(f"3 numbers, budget {b}", after="countdown", **rl(budget=b, steps=50))
    for name, words, numbers in (("mixed", "3 and 4 numbers", (3, 4)), ("hard", "4 numbers", (4,))):
        change = rl(numbers=numbers, budget=middle, steps=50)
        c.arms[f"{name}-{middle}"] = arm(f"{words}, budget {middle}", after="countdown", **change)
    c.measures.update(training("length", "rise", "reward"))
    c.measures.update(accuracy(EASY, short, middle, long) | accuracy(HARD, middle, long))
    few, some, many = (f"easy-{b}" for b in (short, middle, long))
    mixed, hard, far = f"mixed-{middle}", f"hard-{middle}", f"{EASY} at {long}"
    c.rule = (
        statement("the short budget is best at its own length", f"{EASY} at {short}", plus=(few,), minus=(some,)),
        statement(f"and worse than the middle one at {long}", far, plus=(some,), minus=(few,)),
        statement("the long budget is not better at its own length", far, plus=(some,), minus=(many,)),
        statement("easy data extrapolate better than mixed", f"{HARD} at {long}", plus=(some,), minus=(mixed,)),
        statement("hard data shorten responses", "rise", plus=(some,), minus=(hard,)),
    )
    by_budget, by_data = ("countdown", few, some, many), ("countdown", some, mixed, hard)
    c.figures = (
        over_budgets(EASY, by_budget),
        over_budgets(HARD, by_budget),
        over_budgets(HARD, by_data, mark=middle),
        curve("Length by budget", "length/mean", "tokens", by_budget[1:]),
        curve(f"Length by data, budget {middle}", "length/mean", "tokens", by_data[1:]),
        curve("Wrong and ended early: gave up", "explore/give_up", "", (*by_budget[1:], mixed, hard)),
    )
    return shrunk(c, size)
