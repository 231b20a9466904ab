"""e3 end to end on a laptop.

python -m e3jax.train.curriculum --config=configs/quickstart.py --workdir=runs/quickstart
"""

from configs.common import base_config, grpo_stage, sft_stage


def get_config():
    c = base_config()
    c.order = ("base", "easy", "hard")
    c.stages.base = sft_stage(numbers=(3, 4), steps=1700, lr=3e-3)
    c.stages.easy = grpo_stage(numbers=(3,), budget=96, steps=80, lr=2e-4)
    c.stages.hard = grpo_stage(numbers=(3, 4), budget="auto", steps=60, lr=1e-4)
    c.eval.sets = {"3 numbers": (3,), "4 numbers": (4,)}
    return c
