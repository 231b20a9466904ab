"""Do negative gradients need off-policy updates? Compare GRPO with the mask at one update for each batch.

    python -m e3jax.experiments.run --config=configs/experiments/ablate_on_policy.py \
        --workdir=runs/experiments/ablate_on_policy

e3 Fig. 5, 18. Hardware and time: 5 seeds, 6 minutes of arms and 10 of bases (those of ablate_size.py), each run on one
core.
Expected (2026-11-27, docs/experiments.md, experiments/results/ablate_on_policy.json): mixed, 3 of 4 statements hold.
GRPO minus mask, mean of 5 seeds and 95 % interval: length 4.9 [2.6, 7.1], attempts .44 [.24, .65], entropy .001
[-.007, .009], at 384 tokens 6.3 points [2.0, 10.7] (63.7 and 57.3 %); gave up 2.6 and 8.1 %.
Values: the recipe of ablate_recipe.py, which has 2 and 4 minibatches.
"""

from configs.experiments.common import EASY, ablation, countdown, curve, duel, duel_rule, over_budgets, rl


def get_config(size: str = "cpu"):
    c = ablation("ablate_on_policy", size)
    c.paper = "Fig. 5, 18 (§5, App. G)"
    c.claim = "Negative gradients lengthen responses and extrapolate better on-policy too: every batch is one update."
    c.setting = (
        "The setting of experiment mask with 40 RL steps, one minibatch instead of two: no ratio leaves 1, nothing is "
        "clipped. 4 statements at the 95 % level: one is expected to hold by chance in 40."
    )
    c.bases.countdown = countdown(size)
    c.arms = duel("1 minibatch", after="countdown", **rl(steps=40), grpo={"minibatches": 1})
    c.rule = duel_rule({"1 minibatch": ("grpo", "mask")})
    c.figures = (
        curve("Response length", "length/mean", "tokens", ("grpo", "mask")),
        over_budgets(EASY, ("countdown", "grpo", "mask"), mark=96),
    )
    return c
