"""e3 end to end on a laptop.

python -m e3jax.train.curriculum --config=configs/quickstart.py --workdir=runs/quickstart
"""

from configs.common import base_config, grpo_stage, sft_stage


def get_config():
    c = base_config()
    c.order = ("short", "base", "easy", "hard")
    c.stages.short = sft_stage(
        numbers=(3, 4),
        steps=2600,
        lr=4e-3,
        warmup=100,
        rows=12,
        row_length=128,
        traces={"most_tokens": 120},
        evaluated=False,
    )
    c.stages.base = sft_stage(
        numbers=(3, 4),
        steps=240,
        lr=2e-3,
        warmup=10,
        rows=6,
        row_length=512,
        traces={"most_tokens": 500},
        evaluated=True,
    )
    c.stages.easy = grpo_stage(numbers=(3,), budget=96, steps=80, lr=2e-4)
    c.stages.hard = grpo_stage(numbers=(3, 4), budget="auto", steps=60, lr=2e-4)
    c.eval.sets = {"3 numbers": (3,), "4 numbers": (4,)}
    return c
