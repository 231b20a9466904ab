"""Run every stage of the quickstart in a handful of steps, to prove that a machine can; the tests use it too.

    python -m e3jax.train.curriculum --config=configs/smoke.py --workdir=runs/smoke

It learns nothing. Expected: a reward near 0, and a report with all its sections.
"""

from configs import quickstart


def get_config():
    c = quickstart.get_config()
    c.stages.short.steps = c.stages.base.steps = 40
    c.stages.short.rows = c.stages.base.rows = 4
    c.stages.base.row_length, c.stages.base.traces.most_tokens = 160, 150
    c.stages.easy.steps = c.stages.hard.steps = 4
    c.stages.easy.budget = 24
    c.grpo.prompts, c.grpo.group_size, c.grpo.rows = 4, 4, 8
    c.grpo.samples_logged = 1
    c.sampler.slots, c.sampler.prefill_rows = 16, 8
    c.budget_rule.problems, c.budget_rule.samples, c.budget_rule.budgets = 4, 1, (16, 24)
    c.eval.problems, c.eval.samples, c.eval.budgets = 4, 1, (24, 48)
    c.eval.pass_ks, c.eval.pass_problems, c.eval.pass_budget = (1, 2), 2, 24
    c.checkpoint.every = 2
    return c
