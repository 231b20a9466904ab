r"""Scale the tiny E2C models of configs/e2c_countdown.py at test time, on 512 held-out problems.

    R=runs/e2c/checkpoints
    python -m e3jax.scaling.run --workdir=runs/e2c/scaling \
        --config=configs/e2c_countdown_scaling.py:sft=$R/sft/1000,rl1=$R/rl1/100,rl2=$R/rl2/100

Several seeds: launch/e2c_countdown.sh. Hardware and time: 2 CPU cores, about 3 minutes of CPU time a model.
Expected, means of seeds 0, 1, 2 (2026-11-24; experiments/results/e2c-scaling.jsonl has every seed with 95 % intervals,
which reach 4.5 points), accuracy in % at sampled tokens per problem:

          greedy   sc K=1, 8, 32          select K=4, 8, 32        sc-target K=8, 32   react-target K=8, 32
    tokens    17       17   136   544         30    50   170               136   544           72-74   191-194
    sft     25.5     14.6  21.0  27.7       26.6  29.1  31.5              55.8  76.1            51.6   53.8
    rl1     30.5     25.8  28.6  30.1       29.7  30.3  30.4              38.5  42.9            39.1   40.0
    rl2     30.4     26.9  30.2  31.1       30.7  30.8  30.9              39.0  42.6            38.0   38.8

At its own cost one judged plan is ahead of self-consistency, in points, mean and [least, most] of the seeds:
    sft   K = 4 +12.4 [9.9, 14.2]   K = 8 +14.7 [13.7, 15.7]   K = 32 +8.6 [6.0, 11.0]
    rl1         +3.7 [2.1, 5.6]           +3.8 [2.6, 5.9]             +1.3 [.2, 1.9]
    rl2         +3.1 [3.0, 3.2]           +1.9 [1.0, 2.5]             +.1 [-1.4, 1.8]
RL leaves few different plans, so there is less to choose from, and greedy decoding is as good as any method that does
not see the target. A random plan and the tree of thoughts are behind self-consistency at K = 32 (means). Of the two
methods that see the target (the loop stops when the value is right) the loop is ahead at K = 4, self-consistency at 32.
"react" equals "select" here, because nearly every execution has the form that it accepts.
"""

from configs import e2c_scaling
from configs.eval_math import one_set


def get_config(argument: str = "rl2=runs/e2c/checkpoints/rl2/100"):
    c = e2c_scaling.get_config(argument)
    c.sets = {"3 numbers": one_set((3,), form="plans", prompt="", problems=512, samples=32)}
    c.methods = (*c.methods, "sc-target", "react-target")
    c.words = False  # a closed vocabulary has no judge in words and no rescue; refining draws again (scaling/react.py)
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
