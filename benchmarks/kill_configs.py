"""Configs of the commands that kill_commands.py kills, as small as they come.

--config=benchmarks/kill_configs.py:NAME=MODEL        NAME: a case of kill_commands.py, MODEL: its tiny checkpoint
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))


def get_config(argument: str):
    """ "NAME=MODEL" -> the config of a case."""
    name, _, model = argument.partition("=")
    return globals()[f"config_{name}"](model)


def small(sampler) -> None:
    sampler.slots, sampler.prefill_rows, sampler.block = 8, 8, 8


def config_train(_):
    from configs import smoke

    c = smoke.get_config()
    c.order, c.checkpoint.every = ("base", "easy"), 1
    c.stages.base.steps = 10
    return c


def config_difficulty(model):
    from configs import difficulty

    c = difficulty.get_config(f"form=calculator,model={model}")
    c.set.problems, c.samples, c.budget, c.at_once, c.grader.workers = 60, 6, 24, 8, 1
    small(c.sampler)
    return c


def config_e2c(model):
    from configs import e2c_data

    c = e2c_data.get_config(f"tiny={model}")
    c.sets.math.source, c.sets.math.samples, c.at_once, c.grader.workers = f"{model}/set.jsonl", 3, 4, 1
    for phase in (c.solution, c.exploration, c.re_execution):
        phase.budget, phase.top_p = 8, 1.0
    small(c.sampler)
    c.sampler.top_k = 0
    return c


def config_pools(model):
    from configs import oxa_data

    c = oxa_data.get_config(f"countdown,model={model}")
    c.set.problems, c.at_once, c.own.samples, c.own.budget, c.score_tokens = 30, 24, 3, 24, 1024
    c.promote.high, c.promote.width, c.promote.sigma = 4001.0, 40.0, 500.0  # a random model's
    c.promote.total, c.suppress.total, c.baselines, c.grader.workers = 40, 20, 30, 1
    small(c.sampler)
    return c


def config_eval(model):
    from configs import eval_countdown

    c = eval_countdown.get_config(f"tiny={model},other={model}/")
    c.sets = {"3 numbers": dict(c.sets["3 numbers"].to_dict(), problems=12, samples=8)}
    c.budgets, c.pass_ks, c.train_budget, c.grader.workers = (16, 32), (1, 8), 16, 1
    c.forcing.update(early_stop=(16,), wait=(1,), phrases=("no",), thinking=16, extension=8, samples=2)
    small(c.sampler)
    return c


def config_probes(model):
    from configs import probes

    c = probes.get_config(f"base={model},e3={model}/")
    c.sets.probe.update(source=(3,), problems=8, samples=2)
    c.budget, c.tokens, c.grader.workers = 64, 512, 1
    small(c.sampler)
    c.chains.update(attempts=(0, 1), rollouts=2, completions=2, answer=8, pass_ks=(1, 4))
    c.conditional.update(rollouts=2, attempts=4)
    return c


def config_scaling(model):
    from configs import e2c_countdown_scaling

    c = e2c_countdown_scaling.get_config(f"tiny={model},other={model}/")
    c.sets["3 numbers"].problems, c.sets["3 numbers"].samples, c.ks, c.grader.workers = 8, 4, (1, 2, 4), 1
    small(c.sampler)
    c.react.rounds = 1
    return c


def config_didactic(_):
    from configs.experiments import pk

    c = pk.get_config()
    c.seeds, c.points, c.budget, c.model.actions = 2, 40, 20, 10
    c.checks.traces, c.checks.policies = 200, 50
    c.settings = {
        name: pk.setting(advantage="sign", lr=0.1, updates=updates) for name, updates in (("one", 8000), ("two", 4000))
    }
    c.order = ("one", "two")
    return c


def config_experiment(_):
    from configs.experiments import smoke

    c = smoke.get_config()
    c.seeds = (0,)
    return c


def config_oxa(_):
    from configs.experiments import oxa

    c = oxa.get_config()
    c.seeds = (0,)
    c.sets.data.config = config_pools(oxa.BASE)
    base = c.bases[oxa.BASE]
    base.eval.sets, base.eval.problems, base.eval.budgets = {"3 numbers": (3,)}, 4, (24,)
    base.eval.pass_problems, base.eval.pass_ks, base.eval.pass_budget, base.eval.samples = 4, (1, 2), 24, 1
    base.grpo.prompts, base.grpo.group_size, base.grpo.rows = 4, 4, 8
    base.sampler.slots, base.sampler.prefill_rows = 16, 8
    for name, steps in (("short", 4), ("base", 4), ("tune", 4), ("rl", 2)):
        base.stages[name].steps = steps
    base.stages.rl.budget, base.stages.tune.per_step, base.stages.tune.rows = 24, 4, 4
    return c
