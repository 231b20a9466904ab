"""Train E2C in small: SFT in two phases, RL that diversifies plans, RL that weighs them; a tiny model on Countdown.

    python -m e3jax.train.curriculum --config=configs/e2c_countdown.py --workdir=runs/e2c

Hardware and time: 2 CPU cores, 2.7 minutes of CPU time in all (SFT 1,000 steps, each RL stage 100); 8.5 minutes by
the clock on a shared machine.
Expected, seeds 0, 1, 2 (2026-11-24), 512 held-out problems, one response at temperature 1 (95 % intervals reach 4
points); entropies are means of the last ten steps, nats per token; pass@16 of 128 problems:

    after   pass@1 [%]          pass@16 [%]     well formed         entropy of plan     of execution
    sft     15.8 12.9 12.1      79 77 71        .992 .996 .994
    rl1     27.1 28.1 22.7      55 51 54        .996 .990 .994      .66 .61 .64         .15 .20 .27  (at 1.3)
    rl2     30.9 27.9 22.5      52 52 45        .996 .994 .998      .36 .38 .35         .06 .09 .14

RL raises pass@1 over SFT on every seed (+10.6 to +15.2 after stage 1) and pays with variety (pass@16). The plan's
entropy is above the execution's in every step of both stages of every seed. In stage 2 accuracy keeps rising on its own
problems and hardly on held-out ones: 3 numbers make only 2,489 instances, and SFT has seen all that are not held out.
Sources: docs/algorithms.md, E2C: "code" = its scripts; "ours" was chosen here.
"""

from configs.common import base_config, grpo_stage, plans_stage


def get_config():
    c = base_config()
    c.order = ("sft", "rl1", "rl2")
    c.task.form = "plans"
    c.task.opening = " <EXPLORATION>"  # code: generation is forced to start with it
    c.task.prompt_room = 10  # six numbers, the target, the tag

    c.stages.sft = plans_stage(
        numbers=(3,),
        steps=1000,
        lr=4e-3,
        warmup=50,
        rows=12,
        row_length=128,  # as the quickstart (LOG.md, 2026-11-21)
        solution_rate=0.5,  # ours (E2C's are all right): wrong plans teach to execute any, and leave RL a choice
        evaluated=True,
    )
    c.sft.gap_rate = 0.0  # responses are as long in RL as here

    rl = dict(numbers=(3,), budget=24, steps=100, lr=3e-4)  # ours; a response has 17 tokens
    c.stages.rl1 = grpo_stage(**rl, temperature=1.3)  # code; λ = 1 and no shaping are defaults
    c.stages.rl2 = grpo_stage(
        **rl,
        temperature=1.0,
        e2c={"coefficient": 2.0, "missing": "plain"},  # code
        # ours: the penalty begins at 20 tokens
        reward={"following": "sound", "unfinished": "wrong", "overlong_buffer": 4, "overlong_factor": 1.0},
    )
    c.grpo.weights.aggregation = "token_mean"  # code
    c.grpo.loss.clip_high = 0.2  # code
    c.grpo.loss.kl_coef = 0.0  # code

    c.eval.sets = {"3 numbers": (3,)}
    c.eval.budgets = (24,)
    c.eval.pass_budget = 24
    return c
