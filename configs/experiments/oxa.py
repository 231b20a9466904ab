"""OXA in miniature: five ways to fine-tune a tiny base model on Countdown, then the same GRPO after each.

    python -m e3jax.experiments.run --config=configs/experiments/oxa.py --workdir=runs/experiments/oxa

For every seed the command trains a base model, makes its sets (curation/oxa_sets.py: a teacher that is guided by the
solver, and the base model's own errors) and runs all arms.

Hardware and time: 10 minutes of processor time per seed on one CPU core.
Expected (5 seeds; experiments/results/oxa.json): means over seeds and both sets, 128 problems each; pass@1 and
pass@16 in %; entropy of RL's first step in nats. Base models: 12.0 and 68.4.
    arm             tuned           after RL        entropy     last 5 steps
    sft             25.2  83.7      27.2  81.4      .364        .362
    sft_low_ppl     17.9  78.0      27.8  80.9      .337        .349
    promote         25.9  83.9      26.6  81.4      .368        .368
    full            25.9  83.9      26.3  80.1      .368        .365
    full_strong     13.6  67.7      19.9  67.0      .488        .414
full - sft with 95 % intervals: entropy before RL +.004 [-.008, .016], pass@16 before RL +.2 points [-3.2, 3.7], after
RL -1.3 [-4.5, 1.9], pass@1 after RL -.8 [-4.1, 2.4]: by the rule all four are open.
OXA does not beat SFT here. What is unlikely is mostly what is long (56 words, against 32 of a random response).
ul_weight 1e-4 changes nothing (full equals promote): the gradient of the unlikelihood in a logit is then at most 1e-4,
and that of cross-entropy is smaller only where p > 1 - 1e-4. Five hundred times as much raises entropy (+.125 [.096,
.153]) and costs 16 points of pass@16 [13, 19]. Compared with sft, the likeliest responses lower entropy (-.027 [-.049,
-.004]) and pass@16 (-5.6 points [-11.1, -.2]) before RL, and RL makes up for it: the effect that OXA starts from is
there, its gain is not.
Size lm: not run, needs a GPU. The same in text, from the primed model of configs/countdown_lm.py, and with sets of
other sources: both of the model's own responses, or both of the teacher's (`MORE`).
These numbers, results/oxa.json and figures/oxa.svg were made on 2026-11-24 by the command that this one replaced,
e3jax.experiments.oxa with configs/oxa_countdown.py and --seeds=0,1,2,3,4 (in commit 173e07b), whose results.json
had a form of its own. Bases, sets, arms and rule are the same; the one runner has not been run on all five seeds.

Sources: code = OXA's released code (docs/algorithms.md, "OXA"); the rest as configs/quickstart.py, which set it for
tiny models.
"""

from configs import oxa_data, quickstart
from configs.common import base_config, grpo_stage, oxa_stage
from configs.experiments.common import (
    EASY,
    FIVE,
    HARD,
    LM_SETTING,
    SEEDS,
    accuracy,
    arm,
    at,
    countdown,
    curve,
    enlarged,
    experiment,
    in_text,
    measure,
    sets,
    shrunk,
    statement,
)

BASE, IN_TEXT = "oxa_base", "countdown"  # bases: the second one is that of the other experiments
ARMS = {  # arm -> (the set that it is tuned on, weight of the unlikelihood, description)
    "sft": ("random", 0.0, "SFT on random right responses"),
    "sft_low_ppl": ("low_ppl", 0.0, "SFT on the likeliest right responses"),
    "promote": ("promote", 0.0, "OXA's promoted set alone"),
    "full": ("promote", 1e-4, "OXA: promoted and suppressed set"),  # code
    "full_strong": ("promote", 0.05, "OXA with 500 times the ul_weight"),  # own choice: 1e-4 changes nothing
}
MORE = {  # in text, arm -> the sets that it takes them from, and the same
    "better_strong": ("data_better", "promote", 0.05, "full_strong, but the wrong responses are the teacher's"),
    "own": ("data_own", "promote", 1e-4, "OXA, both sets of the model's own responses"),
    "sft_own": ("data_own", "random", 0.0, "SFT on random right responses of its own"),
}
SOURCES = {"data_better": ("teacher", "teacher"), "data_own": ("own", "own")}  # sets -> whose right and wrong responses


def base_model(size: str):
    """Return the config of the base model, with the stages of the arms after it."""
    c = base_config()
    c.eval.sets = {"3 numbers": (3,), "4 numbers": (4,)}
    c.eval.problems, c.eval.budgets = 256, (96,)
    c.eval.pass_problems, c.eval.pass_ks, c.eval.pass_budget = 128, (1, 2, 4, 8, 16), 96
    c.checkpoint.every, c.checkpoint.keep = 100, 1
    c.log.tensorboard = False
    c.order = ("short", "base")
    c.stages = {name: quickstart.get_config().stages[name] for name in c.order}
    c.stages.tune = oxa_stage(
        promote="",
        suppress="",
        ul_weight=0.0,
        per_step=16,  # code: 128
        steps=124,  # two epochs of 1,000; code: six of 50,000
        lr=1e-3,  # own choice: a quarter of the base model's; code: 2.5e-4 (1.5B)
        warmup=4,  # code: .03 of the steps
        rows=16,
        row_length=160,
    )
    # the quickstart's stage 1, shorter; the same for all arms, which the paper's was not
    c.stages.rl = grpo_stage(numbers=(3,), budget=96, steps=40, lr=2e-4)
    return enlarged(c) if size == "gpu" else c


def base_in_text(size: str):
    """Return the primed language model of the other experiments, with the stages of the arms after it."""
    c, tiny = countdown(size), base_model("cpu").stages.tune
    c.stages.tune = oxa_stage(
        promote="", suppress="", ul_weight=0.0, per_step=tiny.per_step, steps=tiny.steps, warmup=tiny.warmup,
        lr=1e-4,  # ours: a third of the base's
        rows=16, row_length=1024,  # a prompt of 145 tokens, and 650 characters
    )  # fmt: skip
    return c


def sets_in_text(size: str) -> dict:
    """Return the sets of size lm: those of the tiny form, and of one source each."""
    made = {}
    for name, (right, wrong) in {"data": ("teacher", "own"), **SOURCES}.items():
        c = oxa_data.get_config(f"text,model={IN_TEXT}")
        c.own.budget, c.right, c.wrong = at(size, 96), right, wrong
        made[name] = sets(after=IN_TEXT, config=c)
    return made


def tuned(pool: str, ul_weight: float, says: str, *, data: str = "data", after: str = BASE):
    """Return an arm that is tuned on a set of `data` and then trained by RL."""
    suppress = "{sets}/sets/suppress.jsonl" if ul_weight else ""
    tune = {"promote": f"{{sets}}/sets/{pool}.jsonl", "suppress": suppress, "ul_weight": ul_weight}
    return arm(says, after=after, sets=data, order=("tune", "rl"), stages={"tune": tune})


def get_config(size: str = "cpu"):
    c = experiment("oxa", size, text=True)
    c.paper = "OXA"
    c.claim = (
        "Promoting right responses that the base model finds unlikely, and suppressing wrong ones that it finds "
        "likely, leaves a policy with more entropy and a higher pass@k than SFT, and both last through RL."
    )
    if in_text(size):
        return shrunk(in_words(c, size), size)
    c.setting = "Countdown with a tiny model: arms differ in their fine-tuning alone, and the same 40 RL steps follow."
    c.seeds = FIVE if size == "cpu" else SEEDS[size]
    c.minutes.update({"base": 3.0, "sets": 1.0, "arm": 1.2})  # 10 a seed were measured, how they divide was not
    c.bases[BASE] = base_model(size)
    c.sets["data"] = sets(after=BASE, config=oxa_data.get_config(f"countdown,model={BASE}"))
    for name, (pool, ul_weight, says) in ARMS.items():
        c.arms[name] = tuned(pool, ul_weight, says)

    c.measures.update(diversity(16))
    c.rule = rule(16)
    c.figures = figures(BASE, tuple(ARMS))
    return c


def diversity(k: int) -> dict:
    """Return the measures: entropy, and pass@1 and pass@k before and after RL."""
    out = {
        "entropy before RL": measure(
            "nats per token in RL's first step, before any update", "start", "entropy/mean", 1
        ),
        "entropy": measure("nats per token, mean of the last 5 RL steps", "train", "entropy/mean", 5),
    }
    for n in (1, k):
        for when, stage, words in (("before", "tune", "after tuning"), ("after", "", "after the last stage")):
            out[f"pass@{n} {when} RL"] = measure(
                f"pass@{n} {words}, mean of both sets", "sets", stage, "pass_at_k", str(n), percent=True
            )
    return out


def rule(k: int) -> tuple:
    """Return OXA's four claims: `full` against SFT."""
    return tuple(
        statement(says, of, plus=("full",), minus=("sft",))
        for says, of in (
            ("more entropy enters RL", "entropy before RL"),
            ("the start is more diverse", f"pass@{k} before RL"),
            ("the diversity lasts", f"pass@{k} after RL"),
            ("RL ends better", "pass@1 after RL"),
        )
    )


def figures(base: str, arms: tuple) -> tuple:
    """Return the figures: entropy through RL, pass@k before and after."""
    return (
        curve("Entropy", "entropy/mean", "nats per token", arms),
        {"kind": "pass_at_k", "title": "pass@k before RL", "stage": "tune", "arms": arms},
        {"kind": "pass_at_k", "title": "pass@k after RL", "stage": "", "arms": (base, *arms)},
    )


def in_words(c, size: str):
    """Add bases, sets, arms, measures and rule of a language model."""
    c.setting = (
        f"{LM_SETTING} Arms differ in their fine-tuning alone. The teacher writes search traces that the solver "
        "guides; the own responses are the primed model's."
    )
    c.minutes.update({"sets": 2.0, "arm": 6.0})  # expected, not measured: an arm has two evaluations
    c.bases[IN_TEXT] = base_in_text(size)
    c.sets.update(sets_in_text(size))
    arms = {name: ("data", *spec) for name, spec in ARMS.items()} | MORE
    for name, (data, pool, ul_weight, says) in arms.items():
        c.arms[name] = tuned(pool, ul_weight, says, data=data, after=IN_TEXT)
    k = max(c.bases[IN_TEXT].eval.pass_ks)
    one, four = at(size, 96), at(size, 384)
    c.measures.update(diversity(k))
    c.measures["entropy of all RL"] = measure("nats per token, mean of all RL steps", "train", "entropy/mean", 10_000)
    c.measures.update(accuracy(EASY, one, four) | accuracy(HARD, one, four))
    before, after, first = f"pass@{k} before RL", f"pass@{k} after RL", "pass@1 after RL"
    c.rule = (
        *rule(k),
        statement("entropy stays higher through RL", "entropy of all RL", plus=("full",), minus=("sft",)),
        statement("RL ends better far beyond the budget", f"{HARD} at {four}", plus=("full",), minus=("sft",)),
        statement("likely responses narrow the start", before, plus=("sft",), minus=("sft_low_ppl",)),
        statement("a better teacher's sets end better than the own", first, plus=("full",), minus=("own",)),
        statement("without a teacher OXA beats SFT, too", after, plus=("own",), minus=("sft_own",)),
        statement("more suppression raises entropy", "entropy before RL", plus=("full_strong",), minus=("full",)),
        statement("its own errors are the ones to suppress", after, plus=("full_strong",), minus=("better_strong",)),
    )
    c.figures = figures(IN_TEXT, ("sft", "full", "full_strong", "better_strong", "own"))
    return c
