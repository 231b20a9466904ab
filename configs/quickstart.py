"""Run e3 end to end on a laptop: a base model with a verification habit, two coupled RL stages, extrapolation.

    python -m e3jax.train.curriculum --config=configs/quickstart.py --workdir=runs/quickstart

Hardware, time and expected numbers: docs/quickstart.md (3 seeds). Values were set on single runs of seed 0 (LOG.md,
2026-11-21).
"""

from configs.common import base_config, grpo_stage, sft_stage


def get_config():
    c = base_config()
    c.order = ("short", "base", "easy", "hard")

    # The base model is trained in two parts, as language models are: on short text first, then on long contexts.
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
        steps=280,
        lr=2e-3,
        warmup=10,
        rows=6,
        row_length=512,
        traces={"most_tokens": 500},
        evaluated=True,
    )

    # The coupled curriculum (e3 §6): easy data at a short budget, then harder data at the budget that Eq. 2 chooses.
    c.stages.easy = grpo_stage(numbers=(3,), budget=96, steps=80, lr=2e-4)  # higher rates hurt the prototype's verifier
    c.stages.hard = grpo_stage(numbers=(3, 4), budget="auto", steps=40, lr=2e-4)

    c.budget_rule.samples = 1  # as the expected numbers were measured; a line warns where another budget is as likely

    c.eval.sets = {"3 numbers": (3,), "4 numbers": (4,)}  # stage 1's problems, and the harder half of stage 2's
    return c
