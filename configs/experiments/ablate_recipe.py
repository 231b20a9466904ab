"""Which part of the recipe makes negative gradients matter? GRPO beside the mask, one thing changed at a time.

    python -m e3jax.experiments.run --config=configs/experiments/ablate_recipe.py \
      --workdir=runs/experiments/ablate_recipe

Fig. 5, 18. Hardware and time: 2 CPU cores, 5 seeds, by estimate 80 min of arms. Expected: not run yet.
Values: "token" A.5's aggregation, "four" A.6's minibatches; temperature .6 is that of evaluation in the paper (A.6);
KL of fifty times A.6's; "long" goes on from the first arms with a fresh optimiser and KL reference, as the paper (A.6).
"""

from configs.experiments.common import EASY, ablation, countdown, curve, duel, duel_rule, over_budgets, rl

PAIRS = {  # arms' prefix: what is special, changes
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
