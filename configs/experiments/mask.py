"""Do negative gradients make the model explore? Train with all, with positive only, negative only, all but the ends.

    python -m e3jax.experiments.run --config=configs/experiments/mask.py --workdir=runs/experiments/mask

e3 Fig. 5, 6, 17, 18. Hardware and time: 3 seeds, 63 minutes of runs in all, each on one core of a machine that did
other work too.
Expected (2026-11-24, docs/experiments.md, experiments/results/mask.json): mixed. Means of 3 seeds:
                 grpo   mask   negative  no-eos  grpo-token  mask-token  grpo-slow  mask-slow
    length         71     67      75       19        69          69         61         53
    attempts      5.7    5.3     6.1      1.0       5.5         5.6        4.8        4.1
    entropy      .381   .388    .390     .285      .396        .396       .393       .387
    easy at 96   42.8   43.9    27.5      8.6      42.2        46.0       37.2       33.7  %  (base 19.3)
    easy at 384  64.7   60.2    43.8      8.6      61.2        63.0       50.4       43.4  %  (base 20.2)
One statement holds (the mask earns less at a fifth of the rate) and seven are open: three seeds cannot resolve 5
points. Values: 2 minibatches and clips .2 and .5 as in the quickstart; "token" is the paper's aggregation, same base.

Size lm (mask.py:lm, configs/experiments/common.py): not run, needs a GPU. It asks more: do the gains remain when
responses that the budget cut count in neither loss nor baseline (is it the negative gradient, or the punished length)?
Do methods with other negative parts reach as far: NSR, W-REINFORCE (2506.01347), MaxRL? Arms and rule: `in_words`.
"""

from configs.experiments.common import (
    EASY,
    HARD,
    LM_SETTING,
    accuracy,
    arm,
    at,
    countdown,
    curve,
    experiment,
    in_text,
    measure,
    over_budgets,
    rl,
    shrunk,
    statement,
    training,
    weights,
)

FOUR = ("grpo", "mask", "negative", "no-eos")


def get_config(size: str = "cpu"):
    c = experiment("mask", size, text=True)
    c.paper = "Fig. 5, 6, 17, 18 (§5, App. G)"
    c.claim = (
        "Negative gradients promote in-context exploration: with them responses get longer, make more attempts and "
        "keep their entropy, and accuracy beyond the training budget is higher than with the negative part masked; "
        "the mask's gradient norm is larger, so the step size is not why; poorer settings keep the order."
    )
    if in_text(size):
        return shrunk(in_words(c, size), size)
    c.setting = (
        "Calculator Countdown, 3 numbers, a model of 0.16M parameters, budget 96, 60 RL steps of 16 prompts x 8, 2 "
        "minibatches, means per sequence. The paper: a 3B model, 5 numbers, budget 2048, 90 steps in three segments. "
        "Unlike Fig. 6, distinct attempts are those of one checkpoint, in wrong responses to problems with less than "
        "half of them right."
    )
    c.bases.countdown = countdown(size)
    c.arms["grpo"] = arm("all gradients", after="countdown", **rl())
    c.arms["mask"] = arm("positive only (GRPOMask)", after="countdown", **rl(), **weights(gradients="positive"))
    c.arms["negative"] = arm("negative only", after="countdown", **rl(), **weights(gradients="negative"))
    c.arms["no-eos"] = arm("no push away from ending", after="countdown", **rl(), **weights(gradients="no-eos"))
    mean = {"aggregation": "token_mean"}  # e3's code
    c.arms["grpo-token"] = arm("GRPO, mean per token", after="countdown", **rl(), **weights(**mean))
    c.arms["mask-token"] = arm(
        "mask, mean per token", after="countdown", **rl(), **weights(**mean, gradients="positive")
    )
    for name, gradients in (("grpo", "all"), ("mask", "positive")):  # Fig. 18: half the budget, a fifth of the rate
        of = weights(gradients=gradients)
        c.arms[f"{name}-short"] = arm(f"{name}, budget 48", after="countdown", **rl(budget=48, steps=40), **of)
        c.arms[f"{name}-slow"] = arm(f"{name}, lr 4e-5", after="countdown", **rl(lr=4e-5, steps=40), **of)
    c.measures.update(training("length", "wrong length", "attempts", "entropy", "reward", "grad norm"))
    c.measures.update(accuracy(EASY, 96, 384) | accuracy(HARD, 384))
    c.measures["distinct"] = measure(
        "distinct attempts of wrong responses, 16 samples", "eval", EASY, "distinct_attempts"
    )
    pair = dict(plus=("grpo",), minus=("mask",))
    c.rule = (
        statement("responses are longer than the mask's", "length", **pair),
        statement("they hold more attempts", "attempts", **pair),
        statement("entropy is higher", "entropy", **pair),
        statement("accuracy at 4 times the budget is higher", f"{EASY} at 384", **pair),
        statement("attempts at unsolved problems are more diverse", "distinct", **pair),
        statement("the mask's gradient norm is larger", "grad norm", plus=("mask",), minus=("grpo",)),
        statement("the mask earns less at half the budget too", "reward", plus=("grpo-short",), minus=("mask-short",)),
        statement("and at a fifth of the learning rate", "reward", plus=("grpo-slow",), minus=("mask-slow",)),
    )
    c.figures = (
        curve("Response length", "length/mean", "tokens", FOUR),
        curve("Length of wrong responses", "length/incorrect", "tokens", FOUR),
        curve("Attempts per response", "explore/attempts", "", FOUR),
        curve("Entropy", "entropy/mean", "nats per token", FOUR),
        curve("Reward", "reward/mean", "", FOUR, percent=True),
        curve("Gradient norm", "optim/grad_norm", "", FOUR),
        over_budgets(EASY, ("countdown", *FOUR), mark=96),
        curve("Length, mean per token", "length/mean", "tokens", ("grpo-token", "mask-token", "grpo", "mask")),
        curve(
            "Reward in poorer settings",
            "reward/mean",
            "",
            ("grpo-short", "mask-short", "grpo-slow", "mask-slow"),
            percent=True,
        ),
    )
    return c


def in_words(c, size: str):
    """Add arms, measures and rule of a language model."""
    c.setting = f"{LM_SETTING} Trained on 3 numbers within {at(size, 96)} tokens; 4 numbers are never in RL."
    c.bases.countdown = countdown(size)
    cut = {"weights": {"truncated": "mask"}, "advantage": {"truncated": "mask"}}
    positive = {"weights": {"gradients": "positive"}}
    arms = {
        "grpo": ("all gradients", {}),
        "mask": ("positive only (GRPOMask)", positive),
        "grpo-cut": ("all gradients; what the budget cut is left out", cut),
        "mask-cut": ("positive only; the same", {**cut, "weights": {"truncated": "mask", "gradients": "positive"}}),
        "nsr": ("only what is wrong, as NSR", {"advantage": {"kind": "w_reinforce", "positive": 0.0}}),
        "w-reinforce": ("W-REINFORCE, positive part times .1", {"advantage": {"kind": "w_reinforce", "positive": 0.1}}),
        "maxrl": ("MaxRL's advantages", {"advantage": {"kind": "maxrl"}}),
    }
    for name, (says, change) in arms.items():
        c.arms[name] = arm(says, after="countdown", **rl(), grpo=change)
    one, two, four = (at(size, b) for b in (96, 192, 384))
    c.measures.update(training("length", "wrong length", "attempts", "verdicts", "entropy", "gave up", "reward"))
    c.measures.update(accuracy(EASY, one, two, four) | accuracy(HARD, one, two, four))
    pair, cuts = dict(plus=("grpo",), minus=("mask",)), dict(plus=("grpo-cut",), minus=("mask-cut",))
    c.rule = (
        statement("responses are longer than the mask's", "length", **pair),
        statement("they hold more attempts", "attempts", **pair),
        statement("entropy is higher", "entropy", **pair),
        statement("fewer give up", "gave up", plus=("mask",), minus=("grpo",)),
        *(
            statement(f"more accurate than the mask on {of} at {times} the budget", f"{of} at {b}", **pair)
            for of in (EASY, HARD)
            for times, b in (("once", one), ("twice", two), ("4 times", four))
        ),
        statement("longer too where no cut response counts", "length", **cuts),
        statement("and more accurate far out", f"{HARD} at {four}", **cuts),
        statement("what is wrong is enough: NSR beats the mask", f"{HARD} at {four}", plus=("nsr",), minus=("mask",)),
        statement("W-REINFORCE does", f"{HARD} at {four}", plus=("w-reinforce",), minus=("mask",)),
        statement("GRPO reaches as far as MaxRL, or farther", f"{HARD} at {four}", plus=("grpo",), minus=("maxrl",)),
    )
    four_arms, rivals = ("grpo", "mask", "grpo-cut", "mask-cut"), ("grpo", "mask", "nsr", "w-reinforce", "maxrl")
    c.figures = (
        curve("Response length", "length/mean", "tokens", four_arms),
        curve("Attempts per response", "explore/attempts", "", four_arms),
        curve("Entropy", "entropy/mean", "nats per token", four_arms),
        curve("Wrong and ended early: gave up", "explore/give_up", "", four_arms, percent=True),
        over_budgets(EASY, ("countdown", *four_arms), mark=one),
        over_budgets(HARD, ("countdown", *four_arms), mark=one),
        over_budgets(HARD, ("countdown", *rivals), mark=one),
        curve("Length, rivals", "length/mean", "tokens", rivals),
    )
    return c
