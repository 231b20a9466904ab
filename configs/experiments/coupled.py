"""Is coupling needed? Change data and budget together, only one of them, or neither.

    python -m e3jax.experiments.run --config=configs/experiments/coupled.py --workdir=runs/experiments/coupled

e3 Fig. 8(d), 19 right, 21, 22. Hardware and time: 3 seeds, 29 minutes of arms in all, each on one core.
Expected (2026-11-24, docs/experiments.md, experiments/results/coupled.json): not reproduced, the arms are level. Means
of 3 seeds:
                            base  coupled  data  budget  none
    4 numbers at 192 tokens  5.9    16.1   15.6   16.0   16.3  %
    4 numbers at 384         6.1    22.3   22.9   22.0   22.0  %
    3 numbers at 384        20.2    57.4   51.8   55.1   55.1  %
Values: all arms take 60 steps in two stages with fresh optimisers, so that they differ in data and budget only.
Size lm (configs/experiments/common.py): not run, needs a GPU. 512 tokens, then 1,024. Steps are equal, so "coupled"
trains on the fewest tokens: a tie in accuracy is a gain in compute, and the measure "tokens" has it.
"""

from configs.common import grpo_stage
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
    measure,
    over_budgets,
    shrunk,
    statement,
    training,
)

ARMS = {  # numbers and budget of the first stage; the second is always 4 numbers at 192
    "coupled": ("both rise", (3,), 64),
    "data": ("only the data get harder", (3,), 192),
    "budget": ("only the budget rises", (4,), 64),
    "none": ("neither: hard problems at the long budget", (4,), 192),
}


def get_config(size: str = "cpu"):
    c = experiment("coupled", size, text=True)
    c.paper = "Fig. 8d, 19 right, 21, 22 (§6, App. H, I)"
    c.claim = (
        "A curriculum that couples data difficulty with the token budget beats one that varies only the data, only "
        "the budget, or nothing, on hard problems at the training budget and beyond it."
    )
    c.setting = (
        "Countdown: 30 steps at (3 numbers, 64 tokens), then 30 at (4 numbers, 192); the others keep one or both at "
        "their last value. The paper's Fig. 21: 3 numbers at 256, then 6 numbers at 1024, 60 steps each."
    )
    if in_text(size):
        c.setting = f"{LM_SETTING} 30 steps at (3 numbers, {at(size, 64)} tokens), then 30 at (4, {at(size, 192)})."
    else:
        c.minutes.arm = 2.5
    base = countdown(size)
    of = dict(steps=30, lr=base.stages.rl.lr)
    base.stages.first = grpo_stage(numbers=(3,), budget=at(size, 64), **of)
    base.stages.second = grpo_stage(numbers=(4,), budget=at(size, 192), **of)
    base.stages.first.evaluated = False
    c.bases.countdown = base
    for name, (says, numbers, budget) in ARMS.items():
        first = {"numbers": numbers, "budget": at(size, budget)}
        c.arms[name] = arm(says, after="countdown", order=("first", "second"), stages={"first": first})
    c.measures.update(training("reward", "length", "attempts"))
    if in_text(size):
        c.measures["tokens"] = measure("tokens per response, mean of all steps", "train", "length/mean", 10_000)
    near, far = at(size, 192), at(size, 384)
    c.measures.update(accuracy(HARD, near, far) | accuracy(EASY, far))
    c.rule = tuple(
        statement(f"better than {words} at {b} tokens", f"{HARD} at {b}", plus=("coupled",), minus=(other,))
        for b in (near, far)
        for other, words in (("data", "data alone"), ("budget", "budget alone"), ("none", "no curriculum"))
    )
    arms = tuple(ARMS)
    c.figures = (
        over_budgets(HARD, ("countdown", *arms), mark=near),
        over_budgets(EASY, ("countdown", *arms), mark=near),
        curve("Reward (its problems change at step 30)", "reward/mean", "", arms, percent=True),
        curve("Response length", "length/mean", "tokens", arms),
        curve("Attempts per response", "explore/attempts", "", arms),
    )
    return shrunk(c, size)
