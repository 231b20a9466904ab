r"""Test-time scaling of the tiny E2C models of configs/e2c_countdown.py, on 512 held-out problems.

    R=runs/e2c/checkpoints
    python -m e3jax.eval.scaling --workdir=runs/e2c/scaling \
        --config=configs/e2c_countdown_scaling.py:sft=$R/sft/1000,rl1=$R/rl1/100,rl2=$R/rl2/100

Several seeds: launch/e2c_countdown.sh. Hardware and time: 2 CPU cores, about 5 minutes of CPU time a model.
Expected, seed 0, in % (95 % intervals reach 4.5 points) at sampled tokens per problem:

          greedy   sc K=1, 8, 32          select (and react) K=8, 32   sc-target K=8, 32   react-target K=8, 32
    tokens    17       17   136   544          50   170                   136   544            74-79   194-197
    sft     28.9     16.2  20.2  25.9        33.0  34.2                  62.9  86.4             55.3   58.2
    rl1     31.4     26.0  28.3  29.6        30.5  30.5                  42.8  49.5             42.0   42.2
    rl2     30.3     26.2  31.1  31.6        29.3  29.1                  42.5  45.9             40.4   41.6

At its own cost one judged plan is ahead of self-consistency for sft at every K above 1 (+10.7 to +16.7 points), a
little for rl1 (+2.1 to +3.9), for rl2 not (+2.2 [-0.1, 4.7] at K = 4, -2.1 [-4.1, -0.3] at 32): RL leaves few different
plans. After RL greedy is within 1.4 points of the best that does not see the target. Of those that see it the loop is
ahead at K = 4, self-consistency at 32 (rl2: -1.9 [-3.8, 0.1]). "react" is "select" here, as nearly every execution has
the form that it accepts. One seed.
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
