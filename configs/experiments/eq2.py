"""Does Eq. 2 choose well? Train stage 2 at every budget after the same stage 1; see what other kappas would choose.

    python -m e3jax.experiments.run --config=configs/experiments/eq2.py --workdir=runs/experiments/eq2

e3 Fig. 19 left. Hardware and time: 3 seeds, 13 minutes of arms in all, each on one core.
Expected (2026-11-24, docs/experiments.md, experiments/results/eq2.json): not reproduced. Even at 192 tokens doubling
gains a factor of 1.32, 1.41, 1.12, so Eq. 2 takes the largest budget of the grid for every seed (with kappa 1.5: 96 for
seed 2), and none is above it. Accuracy on 4 numbers at 384, means of 3 seeds: base 6.1, stage 1 15.4, then stage 2 at
48 tokens 15.9, at 96 23.0, at 192 20.8 %.
J is the accuracy of the stage-1 model on the hard set (pass@1; the paper's J(pi_1) is pass@128), and B0 is left out.
The kappas are those that e3 App. H discusses.
Size lm (configs/experiments/common.py): not run, needs a GPU. Stage 1 at 512 tokens, stage 2 at 256, 512 and 1,024.
"""

from configs.common import grpo_stage
from configs.experiments.common import (
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

BUDGETS = (48, 96, 192)


def get_config(size: str = "cpu"):
    c = experiment("eq2", size, text=True)
    c.paper = "Fig. 19 left (§6.1, App. H)"
    c.claim = (
        "The shortest budget at which doubling gains less than kappa = 1.2 trains stage 2 about as well as any longer "
        "budget and much better than a shorter one; kappa above 1.3 chooses too short, below 1.05 too long."
    )
    c.setting = (
        "Stage 1: Countdown of 3 numbers at 64 tokens, 40 steps. Stage 2: 4 numbers at 48, 96 and 192 tokens, 40 steps "
        "each. The paper: 3 and 4 numbers at 256, then 7 numbers at 128 to 2048. Where the choice is the smallest or "
        "the largest budget, that seed has no neighbour on that side."
    )
    budgets = tuple(at(size, b) for b in BUDGETS)
    if in_text(size):
        c.setting = f"{LM_SETTING} Stage 1: 3 numbers at {at(size, 64)} tokens; stage 2: 4 numbers at {budgets}."
    base = countdown(size)
    base.stages.first = grpo_stage(numbers=(3,), budget=at(size, 64), steps=40, lr=base.stages.rl.lr)
    c.bases.countdown = base
    c.arms["first"] = arm("stage 1 alone", after="countdown", order=("first",))
    for b in budgets:
        c.arms[f"second-{b}"] = arm(f"then budget {b}", after="first", **rl(numbers=(4,), budget=b, steps=40))
    c.choice.judge, c.choice.of, c.choice.budgets = "first", HARD, budgets
    c.choice.arms = tuple((b, f"second-{b}") for b in budgets)
    c.choice.kappa, c.choice.kappas = 1.2, (1.02, 1.05, 1.1, 1.2, 1.3, 1.5)
    c.measures.update(training("reward", "length"))
    c.measures.update(accuracy(HARD, *(at(size, b) for b in (96, 192, 384))))
    longest = at(size, 384)
    far = f"{HARD} at {longest}"
    c.rule = (
        statement("better than the budget below", far, plus=("chosen",), minus=("half",)),
        statement("as good as the one above", far, plus=("chosen",), minus=("double",), kind="within", margin=0.05),
    )
    seconds = tuple(f"second-{b}" for b in budgets)
    points = {HARD: tuple((b, f"second-{b}") for b in budgets)}
    c.figures = (
        over_budgets(HARD, ("countdown", "first", *seconds)),
        {
            "kind": "against",
            "title": f"Accuracy at {longest} tokens by stage 2's budget",
            "measure": far,
            "percent": True,
            "xlabel": "training budget (tokens)",
            "ylabel": "",
            "groups": points,
        },
        curve("Reward in stage 2", "reward/mean", "", seconds, percent=True),
    )
    return shrunk(c, size)
