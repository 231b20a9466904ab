"""E2C in small: SFT on two phases, RL that diversifies, RL that weighs the plan; a tiny model on Countdown.

    python -m e3jax.train.curriculum --config=configs/e2c_countdown.py --workdir=runs/e2c
"""

from configs.common import base_config, grpo_stage, plans_stage


def get_config():
    c = base_config()
    c.order = ("sft", "rl1", "rl2")
    c.task.form = "plans"
    c.task.opening = " <EXPLORATION>"
    c.task.prompt_room = 10

    c.stages.sft = plans_stage(
        numbers=(3,), steps=1000, lr=4e-3, warmup=50, rows=12, row_length=128, solution_rate=0.5, evaluated=True,
    )  # fmt: skip
    c.sft.gap_rate = 0.0

    c.stages.rl1 = grpo_stage(numbers=(3,), budget=24, steps=100, lr=3e-4, temperature=1.3)
    c.stages.rl2 = grpo_stage(
        numbers=(3,), budget=24, steps=100, lr=3e-4,
        e2c={"coefficient": 2.0, "missing": "plain"},
        reward={"following": "sound", "overlong_buffer": 4, "overlong_factor": 1.0},
    )  # fmt: skip
    c.grpo.loss.kl_coef = 0.0
    c.grpo.loss.clip_high = 0.2
    c.grpo.weights.aggregation = "token_mean"

    c.eval.sets = {"3 numbers": (3,)}
    c.eval.budgets = (24,)
    c.eval.pass_budget = 24
    return c
