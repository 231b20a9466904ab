"""Train OXA on Qwen2.5-Math-1.5B and 7B: fine-tuning on curated sets, then RLVR, for OXA and its baselines.

    python -m e3jax.train.curriculum --config=configs/oxa.py:arm=full --workdir=gs://BUCKET/full \
        --config.init.init_from=models/qwen2.5-math-1.5b-long \
        --config.stages.tune.promote=gs://BUCKET/oxa-data/sets/promote.jsonl \
        --config.stages.tune.suppress=gs://BUCKET/oxa-data/sets/suppress.jsonl
    python -m e3jax.train.curriculum --config=configs/oxa.py:arm=full,stage=rl --workdir=gs://BUCKET/full-rl \
        --config.init.init_from=gs://BUCKET/full/checkpoints/tune/2340 \
        --config.stages.rl.set=/data/deepscaler_10k.parquet
    python -m e3jax.eval.run --workdir=gs://BUCKET/eval \
        --config=configs/eval_math.py:full=gs://BUCKET/full/checkpoints/tune/2340 --config.chat=plain \
        --config.sets.AIME25.prompt=oxa --config.sets.AIME25.where=after_thinking    # code; likewise for the other sets

configs/oxa_data.py makes the sets. models/qwen2.5-math-1.5b-long is the hub's directory with rope_theta 1000000 and
max_position_embeddings 40000 in its config.json, as the authors changed it; the presets "…-long" have these values.

Not run: it needs a pod. Expected (the authors', 1.5B against SFT): +6 pass@1 and +5 pass@k, means over six benchmarks;
higher entropy of the policy that enters RL (entropy/mean of RL's first step); gains that stay through RL.
    python -m e3jax.tools.aot --config=configs/oxa.py:arm=full --topology=v5e:4x8
    python -m e3jax.tools.aot --config=configs/oxa.py:stage=rl --topology=v5e:4x8

Arguments: model=1.5b|7b; stage=tune|rl; arm=sft|sft_low_ppl|promote|full; budgets=released for the authors' budgets (RL
of the 1.5B's baselines at 16,384 tokens, OXA's at 18,432; without it all arms have the same); chips=32, which rows and
slots are meant for.
Sources: docs/algorithms.md, OXA: "code" was read in its code; "ours" was chosen here; "aot" = tools/aot's answer.
"""

from configs.common import base_config, grpo_stage, oxa_stage, parse_arguments

CHOICES = {
    "model": ("1.5b", "7b"), "stage": ("tune", "rl"), "arm": ("sft", "sft_low_ppl", "promote", "full"),
    "budgets": ("equal", "released"),
}  # fmt: skip
SETS = {"sft": "random", "sft_low_ppl": "low_ppl", "promote": "promote", "full": "promote"}  # curation/oxa_sets.py


def get_config(argument: str = ""):
    first = {name: values[0] for name, values in CHOICES.items()}
    given = parse_arguments("oxa.py", argument, CHOICES, **first, chips="32")
    large, arm, chips = given["model"] == "7b", given["arm"], int(given["chips"])
    c = base_config()
    c.seed = 42  # code
    c.task.form, c.task.prompt, c.task.chat = "math", "oxa", "plain"  # code: template without a system prompt
    c.task.where = "after_thinking"  # code
    c.task.prompt_room = 1536  # code
    c.tokenizer = f"Qwen/Qwen2.5-Math-{given['model'].upper()}"
    c.init.init_from = f"models/qwen2.5-math-{given['model']}-long"
    c.init.number_embeddings = False

    c.model.preset = f"qwen2.5-math-{given['model']}-long"  # code: rope_theta 1e6, 40,000 positions
    c.model.dtype = "bfloat16"  # code
    c.model.remat = "full"
    c.model.chunk = 512 * chips  # 512 tokens' logits per chip
    c.optim.beta1, c.optim.beta2 = 0.9, 0.95  # code

    if given["stage"] == "tune":
        c.order = ("tune",)
        c.stages.tune = oxa_stage(
            promote=f"sets/{SETS[arm]}.jsonl",
            suppress="sets/suppress.jsonl" if arm == "full" else "",
            ul_weight=1e-4,  # code
            per_step=128,  # code: 128 of each pool
            steps=6 * (50_000 // 128),  # code: six epochs
            lr=5e-5 if large else 2.5e-4,  # code
            warmup=70,  # code: .03 of the steps, then a cosine
            rows=chips,  # one packed row a chip (aot)
            row_length=32_768 + 1536,  # code: 32,768; prompts on top of it (ours, so that nothing is cut)
        )
        c.optim.weight_decay = 0.1  # code
    else:
        baseline = arm in ("sft", "sft_low_ppl")
        budget = 16_384 if large or (given["budgets"] == "released" and baseline) else 18_432  # code
        c.order = ("rl",)
        # code: DeepScaleR-10K, 20 epochs of 9,998
        c.stages.rl = grpo_stage(set="deepscaler_10k.parquet", budget=budget, steps=20 * (9998 // 64), lr=2e-6)
        c.optim.weight_decay = 0.01  # verl's default; OXA's RL script names none
        c.optim.beta2 = 0.999  # verl's default, torch's AdamW; the script names none
    c.grpo.prompts, c.grpo.group_size, c.grpo.minibatches = 64, 8, 1  # code: on-policy
    c.grpo.temperature = 0.85  # code
    c.grpo.rows = chips
    c.grpo.weights.aggregation = "token_mean"  # code
    c.grpo.loss.clip_low = c.grpo.loss.clip_high = 0.2  # code
    c.grpo.loss.dual_clip = 3.0  # code
    c.grpo.loss.kl_coef, c.grpo.loss.kl_estimator, c.grpo.loss.entropy_coef = 0.001, "k3", 0.0  # code

    c.sampler.tensor = 4 if large else 1  # 7B in bf16 is 15 GB
    c.sampler.slots = (2 if large else 4) * chips  # 1.5B has 2 key/value heads: 0.5 GiB of cache for 18k tokens
    c.sampler.prefill_rows = chips // c.sampler.tensor
    c.sampler.block = 32

    c.eval.sets = {
        "aime24": "aime24",
        "aime25": "aime25",
    }  # a short look; evaluate the authors' six sets with configs/eval_math.py
    c.eval.problems, c.eval.pass_problems = 30, 30
    c.eval.samples = 4  # ours; code: 128
    c.eval.budgets = (8192, 16_384, 32_768)  # code: 32,768
    c.eval.pass_ks, c.eval.pass_budget = (1, 2, 4, 8), 16_384
    c.eval.temperature = 0.6  # code
    c.checkpoint.every, c.checkpoint.keep_every = 20, 100  # code: 20
    c.grader.workers = 8
    return c
