"""Define what the experiments share: two recipes of tiny base models, their evaluation, and the parts of an experiment.

Sizes: the times in the configs are those of "cpu". "gpu" (`--config=configs/experiments/mask.py:gpu`) has ten seeds, a
model with 25 times as many parameters, and more of everything; it was not run. A base is trained once per seed.
Seeds may run beside each other, one per core: give the same command with --config.seeds="(0,)" under `taskset -c 0`,
with "(1,)" on the next core, and so on. Then give it once without --config.seeds to collect; --workdir stays the same.
Sources: values are those of the quickstart unless a comment says otherwise.
"""

from ml_collections import ConfigDict

from configs import quickstart
from configs.common import grpo_stage, sft_stage
from e3jax.errors import UserError

SEEDS = {"cpu": (0, 1, 2), "gpu": tuple(range(10))}
FIVE = tuple(range(5))  # seeds of ablations
GRADIENTS = {"grpo": "all", "mask": "positive"}
LAST = 10  # a number of training is the mean of so many last RL steps
EASY, HARD = "3 numbers", "4 numbers"
PRODUCT = "2x1 digits"


def experiment(name: str, size: str) -> ConfigDict:
    """Return the fields of an experiment (e3jax/experiments/run.py), without bases, arms and rule."""
    if size not in SEEDS:
        raise UserError(f"size {size!r}: write :cpu or :gpu behind the config's name")
    c = ConfigDict()
    c.name = name
    c.paper = c.claim = c.setting = ""
    c.seeds = SEEDS[size]
    c.level = 0.95  # of the intervals over seeds (ours)
    c.minutes = ConfigDict({"base": 3.5, "sets": 1.0, "arm": 1.5})  # expected, until runs of this start are measured
    c.bases = ConfigDict(sort_keys=False)  # name -> a config of train/curriculum.py
    c.sets = ConfigDict(sort_keys=False)  # name -> sets(…): training sets that are made with a base
    c.arms = ConfigDict(sort_keys=False)  # name -> arm(…)
    c.measures = ConfigDict(sort_keys=False)  # name -> measure(…)
    c.rule = ()  # statement(…), …: written before the runs
    c.figures = ()
    c.choice = ConfigDict()  # the budget that Eq. 2 takes from a saved evaluation, and its neighbours, as arms
    c.fit = ConfigDict()  # arms, and steps of a block: ScaleRL's fit to their rewards (experiments/ceiling.py)
    c.evaluation = ConfigDict()  # a config of eval/run.py for all models of a seed (budget forcing)
    return c


def sets(*, after: str, config: ConfigDict) -> ConfigDict:
    """Return sets that curation/oxa_sets.py makes with base `after`, whose checkpoint is put into the config."""
    return ConfigDict({"after": after, "config": config})


def arm(says: str, *, after: str, sets: str = "", **change) -> ConfigDict:
    """Return an arm: what it is, in words; the base or arm that it starts from; its changes to the base's config.

    In a change "{sets}" stands for the directory of the sets named `sets`.
    """
    return ConfigDict({"says": says, "after": after, "sets": sets, "change": change})


def measure(says: str, *read, percent: bool = False) -> ConfigDict:
    """Return a measure: a number of a run, in words, and where to read it (e3jax/experiments/read.py)."""
    return ConfigDict({"says": says, "percent": percent, "read": read})


def statement(says: str, of: str, *, plus: tuple, minus: tuple = (), kind: str = "above", margin: float = 0.0) -> dict:
    """Return one line of a rule: sum of `plus` minus sum of `minus` is above or within `margin` (metrics/seeds.py)."""
    return {"says": says, "measure": of, "plus": plus, "minus": minus, "kind": kind, "margin": margin}


def rl(**fields) -> dict:
    """Return the change that runs stage "rl" alone, with these fields."""
    return {"order": ("rl",), "stages": {"rl": fields}}


def weights(**fields) -> dict:
    """Return a change of config.grpo.weights."""
    return {"grpo": {"weights": fields}}


def countdown(size: str) -> ConfigDict:
    """Return the quickstart's base model of calculator Countdown, with an RL stage on its easy problems."""
    c = quickstart.get_config()
    c.stages = {"short": c.stages.short, "base": c.stages.base}
    c.order = ("short", "base")
    c.stages.rl = grpo_stage(numbers=(3,), budget=96, steps=60, lr=2e-4)
    return sized(c, {EASY: (3,), HARD: (4,)}, size)


def products(size: str, *, verify: bool) -> ConfigDict:
    """Return MULT (no verdicts) or MULT-V (casting out nines): 2 digits x 1, same recipe, tasks/product_traces.py."""
    c = countdown(size)
    c.task.form = "products"
    one = dict(digits=(2, 1), lr=4e-3, warmup=100)
    habits = {"verify": verify, "solution_rate": 0.4}  # .2, digits in another order: below 1 % (LOG.md, 2026-11-24)
    c.stages = {
        "short": sft_stage(
            steps=2600, rows=12, row_length=128, traces={"most_tokens": 110, **habits}, evaluated=False, **one
        ),
        "base": sft_stage(
            steps=200, rows=6, row_length=512, traces={"most_tokens": 490, **habits}, evaluated=True, **one
        ),
        "rl": grpo_stage(digits=(2, 1), budget=64, steps=60, lr=2e-4),
    }
    c.stages.base.lr, c.stages.base.warmup = 2e-3, 10
    return sized(c, {PRODUCT: (2, 1)}, size)


def sized(c: ConfigDict, sets: dict, size: str) -> ConfigDict:
    """Set evaluation on `sets`, and what differs between sizes."""
    c.log.tensorboard = False
    c.checkpoint.every = 1000  # a run is short: an interrupted stage starts again
    c.eval.sets = ConfigDict(sets)
    c.eval.problems, c.eval.budgets = 256, (24, 48, 96, 192, 384)
    c.eval.pass_ks, c.eval.pass_problems, c.eval.pass_budget = (1, 4, 16), 64, 96
    return enlarged(c) if size == "gpu" else c


def enlarged(c: ConfigDict) -> ConfigDict:
    """Size "gpu": a larger model, and more of everything."""
    c.model.preset, c.model.dtype = "small", "bfloat16"
    c.eval.problems, c.eval.pass_problems = 2048, 256
    c.grpo.prompts, c.grpo.rows, c.sampler.slots = 64, 128, 512
    for stage in c.stages.values():
        stage.steps = 2 * stage.steps
        stage.lr = stage.lr / 4
    return c


def training(*names: str) -> dict:
    """Return measures of the last RL steps, by name."""
    known = {
        "length": measure(f"tokens per response, mean of the last {LAST} RL steps", "train", "length/mean", LAST),
        "wrong length": measure("the same of wrong responses", "train", "length/incorrect", LAST),
        "attempts": measure("attempts per response, last steps", "train", "explore/attempts", LAST),
        "checks": measure("verdicts per response, last steps", "train", "explore/verifications", LAST),
        "verdicts": measure(
            "verdicts that are right, last steps", "train", "explore/verdict_accuracy", LAST, percent=True
        ),
        "entropy": measure("nats per token, last steps", "train", "entropy/mean", LAST),
        "reward": measure("reward, last steps", "train", "reward/mean", LAST, percent=True),
        "grad norm": measure("gradient norm before clipping, mean of all steps", "train", "optim/grad_norm", 10_000),
        "rise": measure("tokens per response, last steps minus first steps", "rise", "length/mean", LAST),
    }
    return {name: known[name] for name in names}


def ablation(name: str, size: str) -> ConfigDict:
    """Return an experiment of GRPO against the mask over five seeds, with the measures that `duel_rule` needs."""
    c = experiment(name, size)
    c.seeds = FIVE if size == "cpu" else SEEDS[size]
    c.minutes.arm = 1.0
    c.measures.update(training("length", "attempts", "entropy", "reward"))
    c.measures["gave up"] = measure(
        f"share that ended wrong and early, last {LAST} steps", "train", "explore/give_up", LAST, percent=True
    )
    c.measures.update(accuracy(EASY, 96, 384))
    return c


def duel(says: str, *, after: dict | str, **change) -> dict:
    """Return two arms that differ in negative gradients only, {"grpo": …, "mask": …}; `after`: a base, or one each."""
    starts = after if isinstance(after, dict) else dict.fromkeys(GRADIENTS, after)
    out = {}
    for name, gradients in GRADIENTS.items():
        own = ConfigDict({"eval": {"pass_ks": (1,)}})  # pass@k takes half the time of an evaluation
        own.update(change)
        own.update(weights(gradients=gradients))
        out[name] = arm(f"{says}: {name}", after=starts[name], **own)
    return out


def duel_rule(pairs: dict) -> tuple:
    """Return e3's four claims on negative gradients (§5) for every pair {what is special: (its GRPO, its mask)}."""
    wants = {"length": "longer", "attempts": "more attempts", "entropy": "more entropy", f"{EASY} at 384": "better far"}
    return tuple(
        statement(f"{special}: {words}", of, plus=(grpo,), minus=(mask,))
        for special, (grpo, mask) in pairs.items()
        for of, words in wants.items()
    )


def accuracy(of: str, *budgets: int) -> dict:
    """Return measures such as "3 numbers at 96": accuracy on a set within a test budget."""
    return {
        f"{of} at {b}": measure(f"accuracy on {of} within {b} tokens", "eval", of, "accuracy", str(b), percent=True)
        for b in budgets
    }


def curve(title: str, key: str, ylabel: str, arms: tuple, *, percent: bool = False) -> dict:
    """Return a figure: a metric over RL steps."""
    return {"kind": "curve", "title": title, "key": key, "ylabel": ylabel, "percent": percent, "arms": arms}


def pareto(title: str, x: str, y: str, arms: tuple, *, xlabel: str, ylabel: str) -> dict:
    """Return a figure: one measure against another, which is a share; a mark per arm, with the range of seeds."""
    named = {"title": title, "x": x, "y": y, "xlabel": xlabel, "ylabel": ylabel}
    return {"kind": "pareto", **named, "percent": True, "arms": arms}


def over_tokens(title: str, arms: tuple, *, block: int) -> dict:
    """Return a figure: reward over training tokens, means of blocks of steps."""
    return {"kind": "tokens", "title": title, "block": block, "arms": arms}


def over_budgets(of: str, arms: tuple, *, mark: int | None = None) -> dict:
    """Return a figure: accuracy over test budgets."""
    return {"kind": "budget", "title": f"Accuracy: {of}", "of": of, "arms": arms, "mark": mark}
