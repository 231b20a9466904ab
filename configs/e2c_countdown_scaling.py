"""Test-time scaling of the tiny E2C models of configs/e2c_countdown.py, on 512 held-out problems.

    python -m e3jax.eval.scaling --workdir=runs/e2c/scaling --config=configs/e2c_countdown_scaling.py:\
    sft=runs/e2c/checkpoints/sft/1000,rl1=runs/e2c/checkpoints/rl1/100,rl2=runs/e2c/checkpoints/rl2/100
"""

from configs import e2c_scaling
from configs.eval_math import one_set


def get_config(argument: str = "rl2=runs/e2c/checkpoints/rl2/100"):
    c = e2c_scaling.get_config(argument)
    c.sets = {"3 numbers": one_set((3,), form="plans", prompt="", problems=512, samples=32)}
    c.methods = (*c.methods, "sc-target", "react-target")
    c.words = False  # a closed vocabulary: no judge in words, no rescue; refining is drawing again (eval/react.py)
    c.judge.how = "likelihood"
    c.plan_budget, c.execution_budget = 8, 16  # a plan has 4 tokens, an execution 9
    c.thought = 3  # one step of a plan: operation, number, target
    c.react.accept = "form"
    c.react.chunk = 16
    c.react.refine_budget = 8
    c.tokens = 8192
    c.sampler.slots, c.sampler.prefill_rows, c.sampler.block = 512, 256, 8
    c.grader.workers = 2
    return c
