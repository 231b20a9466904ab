"""Does a base model gain from being forced to think longer? Compare budget forcing with RL.

    python -m e3jax.experiments.run --config=configs/experiments/wait.py --workdir=runs/experiments/wait

e3 Fig. 9 (App. I); needs pip install -e '.[hf]'. Hardware and time: 3 seeds, 10 minutes in all, each run on one core.
Expected (2026-11-24, docs/experiments.md, experiments/results/wait.json): mixed. Points lost by waiting 1, 2, 4 times,
means of 3 seeds: base 8.1, 7.4, 5.7 (seeds at 4: +5.6, -9.1, -13.5), after RL 20.2, 22.2, 31.0. The best of all ways:
base 22.9, after RL 64.5 %.
Values: "no" is the only word of this language that says that an attempt failed.
Size lm (configs/experiments/common.py): not run, needs a GPU. "Wait" instead of </think>, 1, 2 and 4 times.
"""

from configs import eval_countdown, eval_math
from configs.experiments.common import (
    EASY,
    LM_SETTING,
    accuracy,
    arm,
    at,
    countdown,
    experiment,
    in_text,
    measure,
    rl,
    shrunk,
    statement,
    training,
)


def get_config(size: str = "cpu"):
    c = experiment("wait", size, text=True)
    c.paper = "Fig. 9 (App. I)"
    c.claim = (
        "Forcing a model to go on with “Wait” adds length but little accuracy; a model trained with e3 does better "
        "with as many tokens, without being forced."
    )
    c.setting = (
        "Countdown of 3 numbers; at the end of its thinking a response gets “no” instead, 1, 2 and 4 times. "
        "The paper: Qwen3-1.7B and others, “Wait”, “But wait”, “Alternatively”, “But hold on”, 2 to 8 times."
    )
    c.bases.countdown = countdown(size)
    c.arms["e3"] = arm(f"RL on 3 numbers, budget {at(size, 96)}", after="countdown", **rl())
    c.evaluation = eval_countdown.get_config()
    c.evaluation.sets = {EASY: eval_math.one_set((3,), form="calculator", prompt="", problems=96, samples=8)}
    c.evaluation.pass_ks = (1, 8)
    if in_text(size):
        in_words(c, size)
    c.evaluation.forcing.wait, c.evaluation.forcing.samples = (1, 2, 4), 8
    c.evaluation.forcing.phrases = ("Wait",) if in_text(size) else ("no",)
    c.measures.update(training("length", "reward"))
    c.measures.update(accuracy(EASY, at(size, 96), at(size, 384)))
    for n in (1, 2, 4):
        c.measures[f"wait {n}"] = measure(
            f"accuracy gained by waiting {n} times", "wait", EASY, f"wait-{n}", percent=True
        )
    c.measures["best"] = measure("best accuracy, by itself or forced", "best", EASY, percent=True)
    c.rule = (
        statement("waiting adds nothing to the base", "wait 4", plus=("countdown",), kind="within", margin=0.02),
        statement("RL does better than the base at its best", "best", plus=("e3",), minus=("countdown",)),
    )
    c.figures = ({"kind": "forced", "title": f"Made to go on: {EASY}", "of": EASY, "arms": ("countdown", "e3")},)
    return shrunk(c, size)


def in_words(c, size: str) -> None:
    """Set the evaluation of a language model, and what was run."""
    c.setting = f"{LM_SETTING} Countdown of 3 numbers; </think> is replaced by “Wait”, 1, 2 and 4 times."
    c.evaluation.sets = {EASY: eval_math.one_set((3,), form="paper", prompt="", problems=96, samples=8)}
    c.evaluation.budgets = tuple(at(size, b) for b in (96, 192, 384))
    c.evaluation.train_budget = at(size, 96)
    c.evaluation.pass_ks = (1, 8)
    c.evaluation.sampler.slots = 256
    c.evaluation.forcing.close, c.evaluation.forcing.sentence = "</think>", "\n</think>\n"
    c.evaluation.forcing.answer, c.evaluation.forcing.thinking = at(size, 24), at(size, 384)
    c.evaluation.forcing.extension = at(size, 96)
