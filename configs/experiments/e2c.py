"""E2C in miniature: λ on the plan, in one and in two stages of RL; then plans that are judged at test time.

    python -m e3jax.experiments.run --config=configs/experiments/e2c.py --workdir=runs/experiments/e2c

Sizes cpu and gpu have the tiny model of configs/e2c_countdown.py. Hardware and time: one core; not run as an experiment
with arms (estimated: 15 minutes a seed). What e2c_countdown.py measured without a rule is in docs/recipes/e2c.md.
Size lm: not run, needs a GPU. It is the same in text (tasks/countdown_plans_text.py), from a model with E2C's four tags
as tokens: λ and the judge want to know which tokens are the plan's, and a tag that is ordinary text has no token that
would say so. A model without them is refused with a sentence. launch/experiments_gpu.sh makes one; by hand:
    python -m e3jax.tools.convert --from=models/smollm2-135m --to=models/smollm2-135m-tags \
        --add_tokens='<EXPLORATION>,</EXPLORATION>,<EXECUTION>,</EXECUTION>'
    python -m e3jax.experiments.run --config=configs/experiments/e2c.py:lm,model=models/smollm2-135m-tags \
        --workdir=runs/experiments-lm/e2c
After SFT and after RL a model draws K plans of a problem, and the one that it finds likeliest is executed
(scaling/run.py). "At equal tokens" is self-consistency at the mean number of sampled tokens that this takes, on the
same problems.

Sources: "code" = E2C's scripts (docs/algorithms.md, E2C); "ours" was chosen here; the rest as the two recipes.
"""

from configs import countdown_lm, e2c_countdown, e2c_countdown_scaling
from configs.common import grpo_stage, plans_stage
from configs.eval_math import one_set
from configs.experiments.common import (
    EASY,
    HARD,
    LM_SETTING,
    accuracy,
    arm,
    at,
    curve,
    enlarged,
    experiment,
    in_text,
    measure,
    parse_size,
    shrunk,
    statement,
    training,
)

BASE = "e2c_base"
WHOLE, TWO = ("whole",), ("first", "second")
ARMS = {  # arm -> (its stages, λ of the last one, whether plans that are followed pay, description)
    "one": (WHOLE, 1.0, False, "one stage, λ = 1"),
    "one-lambda": (WHOLE, 2.0, False, "one stage, λ = 2"),
    "two": (TWO, 1.0, False, "two stages, the first at temperature 1.3, λ = 1"),
    "two-lambda": (TWO, 2.0, False, "two stages, λ = 2 in the second"),
    "e2c": (TWO, 2.0, True, "the same, and in the second a plan that is followed pays: E2C's scripts"),
}
FEW, MANY = 4, 16  # plans (ours): where choosing won with the tiny model, and where it won less


def rl_stages(*, numbers: tuple, budget: int, steps: int, lr: float) -> dict:
    """Return RL in one stage, and in two of half its steps, of which the first samples hotter."""
    usual = {
        "numbers": numbers, "budget": budget, "lr": lr, "e2c": {"coefficient": 1.0, "missing": "plain"},
        "reward": {"following": "off", "overlong_buffer": 0, "overlong_factor": 1.0},
    }  # fmt: skip
    return {
        "whole": grpo_stage(**usual, steps=2 * steps, temperature=1.0),
        "first": grpo_stage(**usual, steps=steps, temperature=1.3),  # code, as the next
        "second": grpo_stage(**usual, steps=steps, temperature=1.0),
    }


def base_model(size: str):
    """Return the model of size cpu after SFT on plans, with the stages of the arms after it."""
    c = e2c_countdown.get_config()
    c.log.tensorboard = False
    c.checkpoint.every = 1000  # a run is short: an interrupted stage starts again
    like = c.stages.rl1
    c.stages = {
        "traces": c.stages.sft,
        **rl_stages(numbers=like.numbers, budget=like.budget, steps=like.steps, lr=like.lr),
    }
    c.order = ("traces",)
    return enlarged(c) if size == "gpu" else c


def base_in_text(size: str):
    """Return a language model after SFT on plans in text, with the stages of the arms after it."""
    name, model = parse_size(size)
    c = countdown_lm.get_config(f"model={model},size={'smoke' if name == 'lm-smoke' else 'full'}")
    like, rl, tiny = c.stages.traces, c.stages.easy, e2c_countdown.get_config()
    c.task.form, c.task.opening = "plans_text", "<EXPLORATION>"
    c.order = ("traces",)
    fields = {name: like[name] for name in ("steps", "lr", "warmup", "row_length")}
    rows = -(-like.rows // 3)  # some 130 traces, as many as the recipe's, which are longer
    rate = tiny.stages.sft.traces.solution_rate
    c.stages = {
        "traces": plans_stage(numbers=(3, 4), rows=rows, solution_rate=rate, evaluated=True, **fields),
        **rl_stages(numbers=(3, 4), budget=at(size, 24), steps=rl.steps // 2, lr=rl.lr),
    }
    c.sft.position_gap, c.sft.gap_rate = 0, 0.0
    c.grpo.weights.aggregation = tiny.grpo.weights.aggregation
    c.grpo.loss.clip_high, c.grpo.loss.kl_coef = tiny.grpo.loss.clip_high, tiny.grpo.loss.kl_coef
    c.log.tensorboard = False
    c.checkpoint.every = 1000
    c.eval.budgets, c.eval.pass_budget = (at(size, 24),), at(size, 24)
    c.eval.pass_ks = (1, FEW, MANY)
    return c


def judged(size: str):
    """Return the measurement at test time (scaling/run.py) of all models of a seed."""
    c = e2c_countdown_scaling.get_config()
    c.methods, c.ks = ("greedy", "sc", "random", "select"), (1, FEW, 8, MANY)
    c.sets = {EASY: one_set((3,), form="plans", prompt="", problems=256, samples=MANY)}
    if in_text(size):
        c.sets = {HARD: one_set((4,), form="plans_text", prompt="", problems=256, samples=MANY)}
        # of SmolLM2's tokens, measured: a plan has 46 at most, an execution 36, a whole response 84 of at(size, 24)
        c.plan_budget = c.execution_budget = at(size, 24) // 2
        c.react.accept = "box"  # of "react", which is no method here: the arithmetic of plans in text has no such rule
        c.tokens = 32_768
    return c


def get_config(size: str = "cpu"):
    c = experiment("e2c", size, text=True)
    c.paper = "E2C"
    c.claim = (
        "A model that plans before it computes is trained best in two stages, of which the first makes plans diverse "
        "and the second weighs their tokens with λ > 1; and choosing one of several plans is worth more than voting "
        "over as many tokens of whole responses."
    )
    c.setting = "Countdown of 3 numbers with a tiny model: SFT on plans, half of which work, then 200 RL steps."
    if in_text(size):
        c.setting = (
            f"{LM_SETTING.partition(',')[0]} with E2C's tags as tokens, SFT on plans in text, half of which work; RL "
            "on 3 and 4 numbers, 64 prompts x 8, means per token; measured on 4 numbers."
        )
    c.bases[BASE] = base_in_text(size) if in_text(size) else base_model(size)
    of, budget = (HARD if in_text(size) else EASY), at(size, 24)
    for name, (order, coefficient, shaped, says) in ARMS.items():
        last = {"e2c": {"coefficient": coefficient}}
        if shaped:  # the penalty on length grows over the last sixth, as the tiny recipe's
            last["reward"] = {"following": "sound", "overlong_buffer": budget // 6}
        c.arms[name] = arm(says, after=BASE, order=order, stages={order[-1]: last})
    c.scaling = judged(size)
    c.measures.update(training("length", "reward", "entropy"))
    for phase, words in (("exploration", "plan"), ("execution", "execution")):
        c.measures[f"{words} entropy"] = measure(
            f"nats per token of the {words}, mean of the last 10 RL steps", "train", f"entropy/{phase}", 10
        )
    c.measures.update(accuracy(of, budget))
    c.measures[f"pass@{MANY}"] = measure(f"pass@{MANY} on {of}", "eval", of, "pass_at_k", str(MANY), percent=True)
    for k in (FEW, MANY):
        c.measures[f"judged {k}"] = measure(
            f"accuracy of one judged plan of {k} minus that of self-consistency at equal tokens",
            "scaled", of, "select", k, "sc", "difference", percent=True,
        )  # fmt: skip
        c.measures[f"one of {k}"] = measure(
            f"accuracy of one judged plan of {k}", "scaled", of, "select", k, "accuracy", percent=True
        )
    right, varied, gain = f"{of} at {budget}", f"pass@{MANY}", f"judged {FEW}"
    stages = dict(plus=("two-lambda",), minus=("one-lambda",))
    c.rule = (
        statement("RL raises accuracy over SFT", right, plus=("e2c",), minus=(BASE,)),
        statement("λ on the plan helps in one stage", right, plus=("one-lambda",), minus=("one",)),
        statement("and in two", right, plus=("two-lambda",), minus=("two",)),
        statement("two stages are better than one", right, **stages),
        statement("and leave more variety", varied, **stages),
        statement("paying for plans that are followed helps", right, plus=("e2c",), minus=("two-lambda",)),
        statement(f"after SFT one judged plan of {FEW} beats voting at equal tokens", gain, plus=(BASE,)),
        statement("after E2C it does, too", gain, plus=("e2c",)),
        statement("but by less, since RL makes plans alike", gain, plus=(BASE,), minus=("e2c",)),
        statement("two stages leave the judge more to choose from", gain, **stages),
    )
    arms = tuple(ARMS)
    scaled = {"kind": "scaled", "of": of, "methods": ("sc", "select")}
    c.figures = (
        curve("Entropy of plans", "entropy/exploration", "nats per token", arms),
        curve("Entropy of executions", "entropy/execution", "nats per token", arms),
        curve("Reward", "reward/mean", "", arms, percent=True),
        {**scaled, "title": f"Judged plans and self-consistency: {of}", "arms": (BASE, "e2c")},
    )
    return shrunk(c, size)
