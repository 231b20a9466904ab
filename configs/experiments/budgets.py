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
"""

from configs.experiments.common import (
    EASY,
    HARD,
    accuracy,
    arm,
    countdown,
    curve,
    experiment,
    over_budgets,
    rl,
    statement,
    training,
)


def get_config(size: str = "cpu"):
    c = experiment("budgets", size)
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
    c.bases.countdown = countdown(size)
    for b in (24, 96, 384):
        c.arms[f"easy-{b}"] = arm(f"3 numbers, budget {b}", after="countdown", **rl(budget=b, steps=50))
    c.arms["mixed-96"] = arm("3 and 4 numbers, budget 96", after="countdown", **rl(numbers=(3, 4), steps=50))
    c.arms["hard-96"] = arm("4 numbers, budget 96", after="countdown", **rl(numbers=(4,), steps=50))
    c.measures.update(training("length", "rise", "reward"))
    c.measures.update(accuracy(EASY, 24, 96, 384) | accuracy(HARD, 96, 384))
    far = f"{EASY} at 384"
    c.rule = (
        statement("the short budget is best at its own length", f"{EASY} at 24", plus=("easy-24",), minus=("easy-96",)),
        statement("and worse than the middle one at 384", far, plus=("easy-96",), minus=("easy-24",)),
        statement("the long budget is not better at its own length", far, plus=("easy-96",), minus=("easy-384",)),
        statement("easy data extrapolate better than mixed", f"{HARD} at 384", plus=("easy-96",), minus=("mixed-96",)),
        statement("hard data shorten responses", "rise", plus=("easy-96",), minus=("hard-96",)),
    )
    by_budget, by_data = (
        ("countdown", "easy-24", "easy-96", "easy-384"),
        ("countdown", "easy-96", "mixed-96", "hard-96"),
    )
    c.figures = (
        over_budgets(EASY, by_budget),
        over_budgets(HARD, by_budget),
        over_budgets(HARD, by_data, mark=96),
        curve("Length by budget", "length/mean", "tokens", by_budget[1:]),
        curve("Length by data, budget 96", "length/mean", "tokens", by_data[1:]),
        curve("Wrong and ended early: gave up", "explore/give_up", "", (*by_budget[1:], "mixed-96", "hard-96")),
    )
    return c
