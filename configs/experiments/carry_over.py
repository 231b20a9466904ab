"""Does it change what is learnt that steps do not wait for their longest responses? Carrying over against waiting.

    python -m e3jax.experiments.run --config=configs/experiments/carry_over.py --workdir=runs/experiments/carry_over

No claim of e3: its steps wait. Hardware and time: 3 seeds, 166 minutes of one CPU core in sum, beside other work that
took most of it. Measured (docs/experiments.md): rewards of the last steps .2 points apart [-7.4, 7.7], which is open;
over tokens trained within the seeds' spread; slots 95 % busy instead of 36 to 38; and a step takes longer.
Values: budget 384, at which most responses are far shorter than the longest; a slot for each of the 128 responses of a
step, so that the arm that waits has one wave. The arm that carries over reads the sampler's log-probs, as it must
(docs/algorithms.md, carry-over). "sampler" waits and reads them too: these two differ in one thing. A bound of 2 steps
was begun and given up before any result: in steps 2 to 4 it threw 18 to 42 % of the tokens away, since the longest
response takes 3 steps.
"""

from configs.experiments.common import (
    EASY,
    HARD,
    accuracy,
    arm,
    countdown,
    curve,
    experiment,
    measure,
    over_budgets,
    rl,
    statement,
    training,
)

ARMS = ("waits", "sampler", "carries")
MARGIN = 0.05  # of a reward or an accuracy: what three seeds of these arms differ by (configs/experiments/mask.py)


def get_config(size: str = "cpu"):
    c = experiment("carry_over", size)
    c.paper = "none: e3's steps wait"
    c.claim = "A step that does not wait for its longest responses teaches the same, in less time."
    c.setting = (
        "Calculator Countdown, 3 numbers, a model of 0.16M parameters, budget 384, 40 RL steps of 16 prompts x 8 with "
        "128 slots; unfinished responses go on for at most four steps."
    )
    c.bases.countdown = countdown(size)
    change = rl(budget=384, steps=40) | {"sampler": {"slots": 128, "prefill_rows": 32}}
    changes = {"waits": {}, "sampler": {"old_logp": "sampler"}, "carries": {"old_logp": "sampler", "carry_over": 4}}
    says = {
        "waits": "every step waits for its longest response",
        "sampler": "the same, with importance weights to the sampler's log-probs",
        "carries": "what is unfinished goes on in the next step",
    }
    for name in ARMS:
        c.arms[name] = arm(says[name], after="countdown", grpo=changes[name], **change)
    c.measures.update(training("length", "reward", "entropy"))
    c.measures["longest"] = measure("tokens of a step's longest response, mean of all steps", "train", "length/max", 40)
    c.measures["mean length"] = measure("tokens of a response, mean of all steps", "train", "length/mean", 40)
    c.measures["all rewards"] = measure("reward, mean of all steps", "train", "reward/mean", 40, percent=True)
    c.measures["seconds"] = measure("seconds of a step, mean of the last 30", "train", "time/step_s", 30)
    c.measures["seconds of rollouts"] = measure("seconds of its rollouts", "train", "time/rollout_s", 30)
    c.measures.update(accuracy(EASY, 96, 384) | accuracy(HARD, 384))
    pair = dict(plus=("carries",), minus=("sampler",))
    same = dict(kind="within", margin=MARGIN, **pair)
    c.rule = (
        statement("rewards along the way are the same", "all rewards", **same),
        statement("and those of the last steps", "reward", **same),
        statement("so is the accuracy", f"{EASY} at 384", **same),
        statement("on harder problems too", f"{HARD} at 384", **same),
        statement("a step takes less time", "seconds", plus=("sampler",), minus=("carries",)),
    )
    c.figures = (
        curve("Reward", "reward/mean", "", ARMS, percent=True),
        curve("Response length", "length/mean", "tokens", ARMS),
        curve("Seconds of a step", "time/step_s", "s", ARMS),
        over_budgets(EASY, ("countdown", *ARMS), mark=384),
    )
    return c
