"""Which part of the recipe makes negative gradients matter? Compare GRPO with the mask, one change at a time.

    python -m e3jax.experiments.run --config=configs/experiments/ablate_recipe.py \
      --workdir=runs/experiments/ablate_recipe

e3 Fig. 5, 18. Hardware and time: 5 seeds, 68 minutes of runs in all, each on one core.
Expected (2026-11-24, docs/experiments.md, experiments/results/ablate_recipe.json): mixed, 2 of 24 statements hold. GRPO
minus mask, mean of 5 seeds and 95 % interval:
                length               attempts           entropy                at 384 tokens, points
    as it is    4.4 [-.4, 9.2]       .40 [-.03, .84]    -.002 [-.006, .001]     3.9 [-2.7, 10.5]   63.6 and 59.7 %
    token       .9 [-.9, 2.6]        .08 [-.08, .24]     .006 [-.005, .017]    -3.8 [-8.9, 1.4]    59.5 and 63.3 %
    four        4.4 [-1.0, 9.8]      .40 [-.09, .89]     .002 [-.005, .010]     .2 [-7.9, 8.2]     60.2 and 60.1 %
    cool        2.9 [-.4, 6.3]       .27 [-.04, .57]    -.002 [-.008, .004]    -.1 [-5.0, 4.9]     67.8 and 67.9 %
    kl          3.3 [-.3, 6.8]       .29 [-.03, .62]    -.001 [-.010, .007]     3.1 [-3.6, 9.7]    64.1 and 61.1 %
    long        4.0 [1.8, 6.3]       .37 [.17, .57]     -.003 [-.018, .012]    -.3 [-4.9, 4.3]     65.1 and 65.4 %
Values (docs/algorithms.md, e3): "token" has the aggregation of e3's code, "four" its number of minibatches, "cool" the
paper's temperature, "kl" fifty times its KL coefficient. "long" continues the first arms with a fresh optimiser and KL
reference, as the paper's stages do.
"""

from configs.experiments.common import EASY, ablation, countdown, curve, duel, duel_rule, over_budgets, rl

PAIRS = {  # prefix of the arms -> what is special about them, what changes
    "": ("as it is", {}),
    "token-": ("mean per token", {"grpo": {"weights": {"aggregation": "token_mean"}}}),
    "four-": ("4 minibatches", {"grpo": {"minibatches": 4}}),
    "cool-": ("temperature .6", {"grpo": {"temperature": 0.6}, "eval": {"temperature": 0.6}}),
    "kl-": ("KL .05", {"grpo": {"loss": {"kl_coef": 0.05}}}),
}


def get_config(size: str = "cpu"):
    c = ablation("ablate_recipe", size)
    c.paper = "Fig. 5, 18 (§5, App. G)"
    c.claim = (
        "With negative gradients responses get longer, make more attempts, keep more entropy and are more accurate at "
        "4 times the training budget than with GRPOMask, in every setting."
    )
    c.setting = (
        "The setting of experiment mask with 40 RL steps; one thing changed in each pair of arms: aggregation, number "
        "of minibatches, temperature of sampling and loss, KL, and 80 steps more. 24 statements at the 95 % level: one "
        "is expected to hold by chance in 40."
    )
    c.bases.countdown = countdown(size)
    pairs = {}
    for prefix, (says, change) in PAIRS.items():
        for name, one in duel(says, after="countdown", **rl(steps=40), **change).items():
            c.arms[prefix + name] = one
        pairs[says] = (prefix + "grpo", prefix + "mask")
    for name, one in duel("80 steps more", after={"grpo": "grpo", "mask": "mask"}, **rl(steps=80)).items():
        c.arms["long-" + name] = one
    pairs["80 steps more"] = ("long-grpo", "long-mask")
    c.rule = duel_rule(pairs)
    for prefix, (says, _) in {**PAIRS, "long-": ("80 steps more", {})}.items():
        c.figures += (curve(f"Response length, {says}", "length/mean", "tokens", (prefix + "grpo", prefix + "mask")),)
    c.figures += (
        curve("Wrong and ended early: gave up", "explore/give_up", "", ("grpo", "mask", "token-grpo", "token-mask")),
        over_budgets(EASY, ("countdown", "grpo", "mask", "long-grpo", "long-mask"), mark=96),
    )
    return c
