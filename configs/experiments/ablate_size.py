"""Is the model too small for negative gradients to matter? Compare GRPO with the mask at .16M and .6M parameters.

    python -m e3jax.experiments.run --config=configs/experiments/ablate_size.py --workdir=runs/experiments/ablate_size

e3 Fig. 5. Hardware and time: 5 seeds, 49 minutes of runs in all, each on one core (29 with launch/experiments.sh
--jobs=2).
Expected (2026-11-27, docs/experiments.md, experiments/results/ablate_size.json): mixed, 4 of 8 statements hold. GRPO
minus mask, mean of 5 seeds and 95 % interval:
                length          attempts         entropy              at 384 tokens, points
    countdown   5.1 [.5, 9.7]   .45 [.01, .88]   -.005 [-.014, .005]  6.2 [-.1, 12.6]   64.5 and 58.3 %
    wide        1.6 [.7, 2.5]   .15 [.06, .24]   -.004 [-.012, .003]   .8 [-4.4, 6.0]   77.9 and 77.1 %
Values: the larger model has twice the width and heads of the quickstart's, and the same learning rates.
"""

from configs.experiments.common import EASY, ablation, countdown, curve, duel, duel_rule, over_budgets, rl

PRESETS = {"countdown": "", "wide": "tiny-wide"}  # "": the preset of the size


def get_config(size: str = "cpu"):
    c = ablation("ablate_size", size)
    c.paper = "Fig. 5 (§5)"
    c.claim = "Negative gradients lengthen responses and extrapolate better in a larger model too."
    c.setting = (
        "The setting of experiment mask with 40 RL steps, from a model of .16M parameters and one of .6M (size gpu: "
        "4.8M and .6M), trained on the same traces. 8 statements at the 95 % level: one is expected to hold by chance "
        "in 40."
    )
    pairs = {}
    for name, preset in PRESETS.items():
        c.bases[name] = countdown(size)
        c.bases[name].model.preset = preset or c.bases[name].model.preset
        for gradients, one in duel(name, after=name, **rl(steps=40)).items():
            c.arms[f"{name}-{gradients}"] = one
        pairs[name] = (f"{name}-grpo", f"{name}-mask")
    c.rule = duel_rule(pairs)
    arms = tuple(c.arms)
    c.figures = (curve("Response length", "length/mean", "tokens", arms), over_budgets(EASY, ("wide", *arms), mark=96))
    return c
