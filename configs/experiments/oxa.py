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
These numbers, results/oxa.json and figures/oxa.svg were made on 2026-11-24 by the command that this one replaced,
e3jax.experiments.oxa with configs/oxa_countdown.py and --seeds=0,1,2,3,4 (in commit 173e07b), whose results.json
had a form of its own. Bases, sets, arms and rule are the same; the one runner has not been run on all five seeds.

Sources: code = OXA's released code (docs/algorithms.md, "OXA"); the rest as configs/quickstart.py, which set it for
tiny models.
"""

from configs import oxa_data, quickstart
from configs.common import base_config, grpo_stage, oxa_stage
from configs.experiments.common import FIVE, SEEDS, arm, curve, enlarged, experiment, measure, sets, statement

BASE = "oxa_base"
ARMS = {  # arm -> (the set that it is tuned on, weight of the unlikelihood, description)
    "sft": ("random", 0.0, "SFT on random right responses"),
    "sft_low_ppl": ("low_ppl", 0.0, "SFT on the likeliest right responses"),
    "promote": ("promote", 0.0, "OXA's promoted set alone"),
    "full": ("promote", 1e-4, "OXA: promoted and suppressed set"),  # code
    "full_strong": ("promote", 0.05, "OXA with 500 times the ul_weight"),  # own choice: 1e-4 changes nothing
}


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


def tuned(pool: str, ul_weight: float, says: str):
    """Return an arm that is tuned on a set of `pool` and then trained by RL."""
    suppress = "{sets}/sets/suppress.jsonl" if ul_weight else ""
    tune = {"promote": f"{{sets}}/sets/{pool}.jsonl", "suppress": suppress, "ul_weight": ul_weight}
    return arm(says, after=BASE, sets="data", order=("tune", "rl"), stages={"tune": tune})


def get_config(size: str = "cpu"):
    c = experiment("oxa", size)
    c.paper = "OXA"
    c.claim = (
        "Promoting right responses that the base model finds unlikely, and suppressing wrong ones that it finds "
        "likely, leaves a policy with more entropy and a higher pass@k than SFT, and both last through RL."
    )
    c.setting = "Countdown with a tiny model: arms differ in their fine-tuning alone, and the same 40 RL steps follow."
    c.seeds = FIVE if size == "cpu" else SEEDS[size]
    c.minutes.update({"base": 3.0, "sets": 1.0, "arm": 1.2})  # 10 a seed were measured, how they divide was not
    c.bases[BASE] = base_model(size)
    c.sets["data"] = sets(after=BASE, config=oxa_data.get_config(f"countdown,model={BASE}"))
    for name, (pool, ul_weight, says) in ARMS.items():
        c.arms[name] = tuned(pool, ul_weight, says)

    c.measures["entropy before RL"] = measure(
        "nats per token in RL's first step, before any update", "start", "entropy/mean", 1
    )
    c.measures["entropy"] = measure("nats per token, mean of the last 5 RL steps", "train", "entropy/mean", 5)
    for k in (1, 16):
        for when, stage, words in (("before", "tune", "after tuning"), ("after", "", "after the last stage")):
            c.measures[f"pass@{k} {when} RL"] = measure(
                f"pass@{k} {words}, mean of both sets", "sets", stage, "pass_at_k", str(k), percent=True
            )
    c.rule = tuple(
        statement(says, of, plus=("full",), minus=("sft",))
        for says, of in (
            ("more entropy enters RL", "entropy before RL"),
            ("the start is more diverse", "pass@16 before RL"),
            ("the diversity lasts", "pass@16 after RL"),
            ("RL ends better", "pass@1 after RL"),
        )
    )
    arms = tuple(ARMS)
    c.figures = (
        curve("Entropy", "entropy/mean", "nats per token", arms),
        {"kind": "pass_at_k", "title": "pass@k before RL", "stage": "tune", "arms": arms},
        {"kind": "pass_at_k", "title": "pass@k after RL", "stage": "", "arms": (BASE, *arms)},
    )
    return c
