"""POLARIS: three stages of longer budgets and hotter samples, each without the problems that were solved too often.

    python -m e3jax.train.curriculum --config=configs/polaris.py --workdir=gs://BUCKET/polaris

https://hkunlp.github.io/blog/2025/Polaris, POLARIS-4B-Preview. drawn.jsonl in the run's directory holds each problem
that was drawn, with the mean score of its group; a stage leaves out those above .9 over the stages before
(e3jax/train/selection.py).
Not run: it needs a pod and the hub. Checked: every stage passes its check (tests/test_configs.py), and so does what is
left out after a kill (tests/test_train_selection.py).
Expected (the authors', with budgets of 40k, 48k, 52k): AIME24 81.2, AIME25 79.4 (Qwen3-4B 73.8, 65.6; mean of 32).

Arguments: chips=128, the devices that rows and slots are meant for.
Sources: "blog"; "scripts" are the names of the released stages' scripts, which could not be read themselves. Budgets
are 3/4 of the authors', because Qwen3-4B reads 40,960 tokens here and they extend its positions.
"""

from configs.common import base_config, grpo_stage, parse_arguments

MODEL = "Qwen/Qwen3-4B"
TEMPERATURES = {"first": 1.4, "second": 1.45, "third": 1.5}  # scripts
BUDGETS = {"first": 30_720, "second": 36_864, "third": 39_936}  # 3/4 of 40k, 48k, 52k (scripts)
STEPS = {"first": 240, "second": 230, "third": 230}  # blog: 700 in sum; how they fall on the stages is ours


def get_config(argument: str = ""):
    given = parse_arguments("polaris.py", argument, {}, chips="128")
    chips = int(given["chips"])
    c = base_config()
    c.order = tuple(TEMPERATURES)
    for name in c.order:
        c.stages[name] = grpo_stage(
            set="POLARIS-Project/Polaris-Dataset-53K",  # blog
            budget=BUDGETS[name],
            steps=STEPS[name],
            temperature=TEMPERATURES[name],
            lr=1e-6,  # ours: e3's
        )
        c.stages[name].drop_above = 1.0 if name == "first" else 0.9  # blog

    c.task.form = "math"
    c.task.prompt = "e3"  # the same words as the README's example
    c.task.prompt_room = 1024  # ours
    c.tokenizer = c.init.init_from = MODEL
    c.init.number_embeddings = False
    c.model.preset = "qwen3-4b"
    c.model.dtype = "bfloat16"
    c.model.chunk = 512 * chips

    c.grpo.prompts, c.grpo.group_size = 128, 8  # blog
    c.grpo.minibatches = 1  # ours
    c.grpo.rows = chips
    c.grpo.weights.aggregation = "token_mean"  # verl's default
    c.grpo.loss.clip_high = 0.28  # ours: DAPO's
    c.grpo.loss.kl_coef = 0.0  # ours: DAPO's
    c.optim.beta2 = 0.999  # verl's default

    c.sampler.tensor = 2  # as configs/e3_math.py for this model
    c.sampler.slots = chips  # half of what configs/e3_math.py has at 16k tokens
    c.sampler.prefill_rows = chips // 2
    c.sampler.block = 32

    c.eval.sets = {"aime24": "aime24", "aime25": "aime25"}
    c.eval.problems = 30
    c.eval.samples = 4  # ours; blog: 32
    c.eval.temperature = 1.4  # README
    c.eval.budgets = (30_720, 36_864, 39_936)
    c.eval.pass_ks = (1, 2, 4, 8)
    c.eval.pass_problems = 30
    c.eval.pass_budget = 30_720
    c.checkpoint.every = 10  # as configs/e3_math.py
    return c
