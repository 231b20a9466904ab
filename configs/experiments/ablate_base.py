"""Which base model makes negative gradients matter? Compare GRPO with the mask from four bases of Countdown.

    python -m e3jax.experiments.run --config=configs/experiments/ablate_base.py --workdir=runs/experiments/ablate_base

e3 Fig. 5, 16. Hardware and time: 5 seeds, 108 minutes of runs in all, each on one core.
Expected (2026-11-24, docs/experiments.md, experiments/results/ablate_base.json): mixed, 7 of 16 statements hold. GRPO
minus mask, mean of 5 seeds and 95 % interval:
                length             attempts           entropy              at 384 tokens, points
    countdown   4.4 [-.4, 9.2]     .40 [-.03, .84]    -.002 [-.006, .001]  3.9 [-2.7, 10.5]   63.6 and 59.7 %
    single      4.4 [1.3, 7.5]     .42 [.13, .70]     .007 [-.005, .019]   2.3 [-2.0, 6.5]    57.3 and 55.0 %
    confident   9.3 [2.6, 16.0]    .83 [.23, 1.44]    .005 [-.035, .045]   .9 [-1.6, 3.5]     42.0 and 41.1 %
    unchecked   5.3 [2.9, 7.7]     .59 [.32, .85]     .079 [.059, .099]    -.2 [-3.4, 3.1]    8.0 and 8.2 %
Values: bases of the quickstart's recipe, each with one habit changed (tasks/countdown_traces.py).
"""

from configs.experiments.common import EASY, ablation, countdown, curve, duel, duel_rule, over_budgets, rl, training

BASES = {  # name -> what is special about it, the changed habits of its traces
    "countdown": ("as it is", {}),
    "single": ("hardly chains attempts", {"give_up": 0.8}),
    "confident": ("confidently wrong", {"favourite": 0.7}),
    "unchecked": ("cannot verify", {"checked": False}),
}


def get_config(size: str = "cpu"):
    c = ablation("ablate_base", size)
    c.paper = "Fig. 5, 16 (§4, §5, App. A)"
    c.claim = (
        "Negative gradients matter where the base model chains attempts, can verify them, and puts much probability on "
        "what is wrong: with them responses get longer, make more attempts, keep more entropy and extrapolate better."
    )
    c.setting = (
        "The setting of experiment mask with 40 RL steps, from bases that differ in one thing: after a wrong attempt "
        "they end with probability .8 instead of .35; 70 % of the attempts that are no solutions are one and the same "
        "wrong sum; target and distance are not written, so that verdicts are guesses. 16 statements at the 95 % "
        "level: one is expected to hold by chance in 40."
    )
    pairs = {}
    for name, (says, habits) in BASES.items():
        base = countdown(size)
        for stage in ("short", "base"):
            base.stages[stage].traces.update(habits)
        c.bases[name] = base
        for gradients, one in duel(says, after=name, **rl(steps=40)).items():
            c.arms[f"{name}-{gradients}"] = one
        pairs[says] = (f"{name}-grpo", f"{name}-mask")
    c.measures.update(training("verdicts"))
    c.rule = duel_rule(pairs)
    for grpo, mask in pairs.values():
        c.figures += (
            curve(f"Response length, base {grpo.removesuffix('-grpo')}", "length/mean", "tokens", (grpo, mask)),
        )
    c.figures += (
        over_budgets(EASY, ("confident-grpo", "confident-mask", "single-grpo", "single-mask"), mark=96),
        curve(
            "Entropy",
            "entropy/mean",
            "nats per token",
            ("countdown-grpo", "countdown-mask", "confident-grpo", "confident-mask"),
        ),
    )
    return c
