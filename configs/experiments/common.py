"""Define what the experiments share: two recipes of tiny base models, their evaluation, and the parts of an experiment.

Sizes: the times in the configs are those of "cpu". "gpu" (`--config=configs/experiments/mask.py:gpu`) has ten seeds, a
model with 25 times as many parameters, and more of everything; it was not run. "lm" is a language model in text on one
GPU, the recipe of configs/countdown_lm.py; `mask.py:lm,model=DIR` says which, and "lm-smoke" has steps that two CPU
cores take. Its statements are in the repository before any run of theirs. It wants a directory of its own, such as
runs/experiments-lm, since bases have the same names. A base is trained once per seed.
Seeds may run beside each other, one per core: give the same command with --config.seeds="(0,)" --config.part=True under
`taskset -c 0`, with "(1,)" on the next core, and so on. Then give it once without the two to collect; --workdir stays.
Sources: values are those of the quickstart unless a comment says otherwise.
"""

from ml_collections import ConfigDict

from configs import countdown_lm, quickstart
from configs.common import grpo_stage, sft_stage, text_stage
from e3jax.errors import UserError

SEEDS = {"cpu": (0, 1, 2), "gpu": tuple(range(10)), "lm": (0, 1, 2), "lm-smoke": (0,)}
# Budgets of the tiny models' language, and what stands for them in text: 512 is the recipe's, and the others keep their
# ratios to it, but for 64, since half of 512 holds 6 attempts in text and 64 words hold 5
IN_TEXT = {
    "lm": {24: 128, 48: 256, 64: 512, 96: 512, 192: 1024, 384: 2048},
    "lm-smoke": {24: 3, 48: 6, 64: 12, 96: 12, 192: 24, 384: 48},
}
FIVE = tuple(range(5))  # seeds of ablations
GRADIENTS = {"grpo": "all", "mask": "positive"}
LAST = 10  # a number of training is the mean of so many last RL steps
EASY, HARD = "3 numbers", "4 numbers"
PRODUCT = "2x1 digits"
DIGITS_IN_TEXT = (3, 2)  # ours, not run; the paper has 5 x 5 for a 3B model
LM_SETTING = (
    "SmolLM2-135M-Instruct, primed on search traces in text (configs/countdown_lm.py); RL of 64 prompts x 8, 4 "
    "minibatches, means per sequence, temperature 1."
)


def parse_size(size: str) -> tuple[str, str]:
    """Return a size's name and its model: "lm,model=DIR" is ("lm", "DIR"), and without a model that is the recipe's."""
    name, _, model = size.partition(",model=")
    if name not in SEEDS or (model and name not in IN_TEXT):
        raise UserError(f"size {size!r}: write :cpu, :gpu, :lm or :lm,model=DIRECTORY behind the config's name")
    return name, model or countdown_lm.MODEL


def in_text(size: str) -> bool:
    """Return whether a size has a language model and problems in text."""
    return parse_size(size)[0] in IN_TEXT


def at(size: str, tokens: int) -> int:
    """Return the budget that stands for `tokens` of the tiny models' language."""
    return IN_TEXT[parse_size(size)[0]][tokens] if in_text(size) else tokens


def experiment(name: str, size: str, *, text: bool = False) -> ConfigDict:
    """Return the fields of an experiment (e3jax/experiments/run.py), without bases, arms and rule.

    `text`: it can be made with a language model.
    """
    if in_text(size) and not text:
        raise UserError(f"size {size!r}: experiment {name} has :cpu and :gpu only")
    c = ConfigDict()
    c.name = name
    c.paper = c.claim = c.setting = ""
    c.seeds = SEEDS[parse_size(size)[0]]
    c.part = False  # this call makes some seeds beside others: it writes runs, and no results
    c.level = 0.95  # of the intervals over seeds (ours)
    # expected, until runs of this start are measured; in text: a feasibility run (docs/recipes/countdown.md)
    c.minutes = ConfigDict({"base": 3.5, "sets": 1.0, "arm": 4.5 if in_text(size) else 1.5})
    c.bases = ConfigDict(sort_keys=False)  # name -> a config of train/curriculum.py
    c.sets = ConfigDict(sort_keys=False)  # name -> sets(…): training sets that are made with a base
    c.arms = ConfigDict(sort_keys=False)  # name -> arm(…)
    c.measures = ConfigDict(sort_keys=False)  # name -> measure(…)
    c.rule = ()  # statement(…), …: written before the runs
    c.figures = ()
    c.choice = ConfigDict()  # the budget that Eq. 2 takes from a saved evaluation, and its neighbours, as arms
    c.fit = ConfigDict()  # arms, and steps of a block: ScaleRL's fit to their rewards (experiments/ceiling.py)
    c.evaluation = ConfigDict()  # a config of eval/run.py for all models of a seed (budget forcing)
    c.scaling = ConfigDict()  # a config of scaling/run.py for all models of a seed (E2C's judged plans)
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


def shrunk(c: ConfigDict, size: str) -> ConfigDict:
    """Return an experiment of size "lm-smoke" with 2 steps a stage and an evaluation of 2 problems, others as it is."""
    if parse_size(size)[0] != "lm-smoke":
        return c
    changes = [one.change.stages for one in c.arms.values() if "stages" in one.change]
    for stage in [stage for stages in (*(b.stages for b in c.bases.values()), *changes) for stage in stages.values()]:
        if "steps" in stage:
            stage.steps = 2
        if "row_length" in stage:
            stage.row_length = 1024  # where a tokenizer makes a token of every character
        if "per_step" in stage:
            stage.per_step = 2
    for one in c.sets.values():
        few_responses(one.config)
    if c.evaluation:
        c.evaluation.sampler.slots = c.evaluation.sampler.prefill_rows = 2
        for one in c.evaluation.sets.values():
            one.problems = one.samples = 2
        c.evaluation.pass_ks, c.evaluation.forcing.samples = (1, 2), 2
    if c.scaling:
        c.scaling.sampler.slots = c.scaling.sampler.prefill_rows = 2
        for one in c.scaling.sets.values():
            one.problems, one.samples = 2, 4
        c.scaling.ks = (1, 4)
    return c


def few_responses(c: ConfigDict) -> None:
    """Shrink the making of OXA's sets; a model of two steps solves nothing, so that all sets are the teacher's."""
    c.right = c.wrong = "teacher"
    c.set.problems, c.teacher.samples = 8, 1
    for habits in c.teacher.habits:
        habits.update(most_characters=440)  # as configs/countdown_lm.py
    c.promote.total = c.suppress.total = c.baselines = 4
    c.promote.high, c.promote.width, c.promote.sigma = 1e6 + 1, 1e4, 1e5  # a random model's perplexities
    c.sampler.slots = c.sampler.prefill_rows = 2


def rl(**fields) -> dict:
    """Return the change that runs stage "rl" alone, with these fields."""
    return {"order": ("rl",), "stages": {"rl": fields}}


def weights(**fields) -> dict:
    """Return a change of config.grpo.weights."""
    return {"grpo": {"weights": fields}}


def countdown(size: str) -> ConfigDict:
    """Return the quickstart's base model of calculator Countdown, with an RL stage on its easy problems.

    In text: the primed model of configs/countdown_lm.py.
    """
    if in_text(size):
        return countdown_in_text(size)
    c = quickstart.get_config()
    c.stages = {"short": c.stages.short, "base": c.stages.base}
    c.order = ("short", "base")
    c.stages.rl = grpo_stage(numbers=(3,), budget=96, steps=60, lr=2e-4)
    return sized(c, {EASY: (3,), HARD: (4,)}, size)


def countdown_in_text(size: str) -> ConfigDict:
    """Return a language model primed for Countdown, with an RL stage on its easy problems."""
    name, model = parse_size(size)
    c = countdown_lm.get_config(f"model={model},size={'smoke' if name == 'lm-smoke' else 'full'}")
    c.stages = {"traces": c.stages.traces, "rl": c.stages.easy}
    c.order = ("traces",)
    c.stages.rl.budget = at(size, 96)
    return sized(c, {EASY: (3,), HARD: (4,)}, size)


def products_in_text(size: str, *, verify: bool) -> ConfigDict:
    """Return a language model primed on long multiplication, with checks (MULT-V) or without (MULT)."""
    c = countdown_in_text(size)
    c.task.form = "multiplication"
    c.task.prompt = "multiply"  # for both: the prompt that asks for checks would tell the arms apart
    like = c.stages.traces
    habits = {
        "checked": verify,
        "solution_rate": 0.4,  # as the tiny form's
        "most_attempts": 8,
        "most_characters": max(like.traces.most_characters, 600),  # what a checked attempt takes
    }
    fields = {name: like[name] for name in ("steps", "lr", "warmup", "rows", "row_length")}
    rl = {name: c.stages.rl[name] for name in ("budget", "steps", "lr")}
    c.stages = {
        "traces": text_stage(digits=DIGITS_IN_TEXT, traces=habits, evaluated=True, **fields),
        "rl": grpo_stage(digits=DIGITS_IN_TEXT, **rl),
    }
    c.eval.sets = ConfigDict({product_set(size): DIGITS_IN_TEXT})
    return c


def product_set(size: str) -> str:
    """Return the name of the set of products."""
    return "{}x{} digits".format(*DIGITS_IN_TEXT) if in_text(size) else PRODUCT


def products(size: str, *, verify: bool) -> ConfigDict:
    """Return MULT (no verdicts) or MULT-V (casting out nines): 2 digits x 1, same recipe, tasks/product_traces.py."""
    if in_text(size):
        return products_in_text(size, verify=verify)
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
    c.eval.budgets = tuple(at(size, b) for b in (24, 48, 96, 192, 384))
    c.eval.pass_budget = at(size, 96)
    if in_text(size):
        return c
    c.eval.problems, c.eval.pass_ks, c.eval.pass_problems = 256, (1, 4, 16), 64
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
        "gave up": measure(
            f"share that ended wrong and early, last {LAST} steps", "train", "explore/give_up", LAST, percent=True
        ),
        "rise": measure("tokens per response, last steps minus first steps", "rise", "length/mean", LAST),
    }
    return {name: known[name] for name in names}


def ablation(name: str, size: str) -> ConfigDict:
    """Return an experiment of GRPO against the mask over five seeds, with the measures that `duel_rule` needs."""
    c = experiment(name, size)
    c.seeds = FIVE if size == "cpu" else SEEDS[size]
    c.minutes.arm = 1.0
    c.measures.update(training("length", "attempts", "entropy", "reward", "gave up"))
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
