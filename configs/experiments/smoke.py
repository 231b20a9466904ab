"""Run an experiment in seconds, to prove that the runner works on a machine; the tests use it. It learns nothing.

python -m e3jax.experiments.run --config=configs/experiments/smoke.py --workdir=runs/experiments-smoke/smoke
"""

from configs import smoke
from configs.common import grpo_stage
from configs.experiments.common import (
    EASY,
    accuracy,
    arm,
    curve,
    experiment,
    over_budgets,
    rl,
    statement,
    training,
    weights,
)


def get_config(size: str = "cpu"):
    c = experiment("smoke", size)
    c.paper, c.claim, c.setting = "none", "GRPO is longer than the mask.", "2 steps of a random model."
    c.seeds = (0, 1)
    base = smoke.get_config()
    base.order, base.stages = (
        ("base",),
        {"base": base.stages.base, "rl": grpo_stage(numbers=(3,), budget=24, steps=2, lr=2e-4)},
    )
    base.stages.base.steps = 2
    base.eval.sets = {EASY: (3,)}
    base.eval.problems, base.eval.budgets = 8, (12, 24)  # the shapes of training: less to compile
    base.eval.pass_ks, base.eval.pass_problems = (1, 2), 8
    base.log.tensorboard = False
    c.bases.countdown = base
    c.arms["grpo"] = arm("all gradients", after="countdown", **rl())
    c.arms["mask"] = arm("GRPOMask", after="countdown", **rl(), **weights(gradients="positive"))
    c.choice.judge, c.choice.of, c.choice.budgets = "countdown", EASY, (12,)
    c.choice.arms, c.choice.kappa, c.choice.kappas = ((12, "grpo"),), 1.2, (1.1, 1.2)
    c.measures.update(training("length", "entropy") | accuracy(EASY, 12, 24))
    c.rule = (statement("longer", "length", plus=("grpo",), minus=("mask",)),)
    c.figures = (
        curve("Response length", "length/mean", "tokens", ("grpo", "mask")),
        over_budgets(EASY, ("countdown", "grpo", "mask"), mark=24),
        {
            "kind": "against",
            "title": "Length",
            "measure": "length",
            "percent": False,
            "xlabel": "budget",
            "ylabel": "",
            "groups": {"one": ((24, "grpo"),)},
        },
    )
    return c
