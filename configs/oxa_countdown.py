"""OXA in small: four ways to fine-tune a tiny base model on Countdown, then the same GRPO on each.

    python -m e3jax.experiments.oxa --config=configs/oxa_countdown.py --workdir=runs/oxa --seeds=0,1,2,3,4
    one run of it by hand, after its base and sets (arm=base; configs/oxa_data.py:countdown):
    python -m e3jax.train.curriculum --config=configs/oxa_countdown.py:arm=full,seed=0,in=runs/oxa --workdir=runs/full

The command trains a base model a seed, makes its sets (a teacher guided by the solver; the base model's own errors),
runs all arms, goes on where it was killed, and writes results.json, arms.svg and a verdict by the rule in
e3jax/experiments/oxa.py, which was written before the first run.

Hardware and time: 2 shared CPU cores; base models as the quickstart's (4 to 5 min a seed), then sets and five arms
14 min a seed (9 min of processor time).
Expected (seed 0 alone, 2026-11-24, not five seeds yet: no verdict). pass@1 and pass@16 in %, means of both sets, 128
problems each; entropy of RL's first step in nats. Base 12.0, 73.8.
    arm             tuned           after RL        entropy     last 5 steps
    sft             25.3  87.1      27.0  82.8      .367        .331
    sft_low_ppl     15.9  79.7      27.4  82.4      .333        .332
    promote         25.2  86.7      26.6  82.8      .363        .331
    full            25.2  86.7      26.1  79.3      .362        .328
    full_strong     13.7  65.2      22.6  75.0      .464        .369
OXA does not beat SFT here. What is unlikely is mostly what is long (56 words, random 32). ul_weight 1e-4 changes
nothing (full is promote): UL's gradient in a logit is then at most 1e-4, and cross-entropy's is smaller only where
p > 1 - 1e-4. Five hundred times as much raises entropy and costs 22 points of pass@16.

Arguments: arm=base|sft|sft_low_ppl|promote|full|full_strong, seed=N, in=DIRECTORY of the experiment.
Sources: C.n = OXA's code, by section of the developers' notes (configs/common.py says where); the rest as
configs/quickstart.py, which set it on tiny models.
"""

from configs import quickstart
from configs.common import base_config, grpo_stage, oxa_stage
from e3jax.errors import UserError

ARMS = {  # arm -> the set it is tuned on (curation/pools.py)
    "sft": "random",
    "sft_low_ppl": "low_ppl",
    "promote": "promote",
    "full": "promote",
    "full_strong": "promote",
}
UL_WEIGHT = {"full": 1e-4, "full_strong": 0.05}  # C.4; own choice: 1e-4 changes nothing in so few steps (Expected)


def parse(argument: str) -> dict[str, str]:
    """ "arm=full,seed=1" -> {"arm": "full", "seed": "1", "in": "runs/oxa"}; else an error that names the choices."""
    given = {"arm": "sft", "seed": "0", "in": "runs/oxa"}
    for name, _, value in (part.partition("=") for part in argument.split(",") if part):
        if name not in given or not value or (name == "arm" and value not in ("base", *ARMS)):
            raise UserError(f"configs/oxa_countdown.py: {name}={value!r}: arm=base|{'|'.join(ARMS)}, seed=N, in=DIR")
        given[name] = value
    if not given["seed"].isdigit():
        raise UserError(f"configs/oxa_countdown.py: seed={given['seed']!r} is no number")
    return given


def get_config(argument: str = ""):
    given = parse(argument)
    arm, there = given["arm"], f"{given['in']}/seed-{given['seed']}"
    c = base_config()
    c.seed = int(given["seed"])
    c.eval.sets = {"3 numbers": (3,), "4 numbers": (4,)}
    c.eval.problems, c.eval.budgets = 256, (96,)
    c.eval.pass_problems, c.eval.pass_ks, c.eval.pass_budget = 128, (1, 2, 4, 8, 16), 96
    c.checkpoint.every, c.checkpoint.keep = 100, 1
    if arm == "base":
        c.order, of = ("short", "base"), quickstart.get_config().stages
        c.stages = {name: of[name] for name in c.order}
        return c

    c.order = ("tune", "rl")
    c.init.init_from = f"{there}/base/checkpoints/base/280"
    c.stages.tune = oxa_stage(
        promote=f"{there}/data/sets/{ARMS[arm]}.jsonl",
        suppress=f"{there}/data/sets/suppress.jsonl" if arm in UL_WEIGHT else "",
        ul_weight=UL_WEIGHT[arm] if arm in UL_WEIGHT else 0.0,
        per_step=16,  # C.4: 128
        steps=124,  # two epochs of 1,000; C.5: six of 50,000
        lr=1e-3,  # own choice: a quarter of the base model's; C.5: 2.5e-4 (1.5B)
        warmup=4,  # C.5: .03 of the steps
        rows=16, row_length=160,
    )  # fmt: skip
    c.stages.rl = grpo_stage(
        numbers=(3,), budget=96, steps=40, lr=2e-4
    )  # quickstart's stage 1, shorter; the same for all arms (C.6 had not)
    return c
