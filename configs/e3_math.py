"""Train e3's mathematics on Qwen3 (Table 8): stage 1 at 8k tokens on easy problems, stage 2 at 16k on harder ones.

    python -m e3jax.train.curriculum --config=configs/e3_math.py:stage=1 --workdir=gs://BUCKET/math1
    python -m e3jax.train.curriculum --config=configs/e3_math.py:stage=2 --workdir=gs://BUCKET/math2 \
        --config.init.init_from=gs://BUCKET/math1/checkpoints/math/100
    launch/curriculum.sh runs both in this order on a pod (its --help has the two lines).

Not run: it needs a pod. Checked: every program compiles for the slice and fits (benchmarks/aot), and the same recipe
runs through on a CPU with a tiny model and real data (tests/test_train_math.py).
    python -m e3jax.tools.aot --config=configs/e3_math.py:stage=2 --topology=v5e:8x16             # 1.7B
    python -m e3jax.tools.aot --config=configs/e3_math.py:stage=2,model=8b --topology=v5e:16x16
    python -m e3jax.tools.aot --config=configs/e3_math.py:stage=2,seq=32k --topology=v5e:8x16
Expected (the paper's, after both stages, 32k tokens): AIME 25 pass@1 43.8 (base 35.5), HMMT Feb 25 24.7 (22.2).
Without a network on the pod, run python -m e3jax.tools.prepare and give what it wrote: --config.stages.math.set=….

Arguments: stage=1|2; model=0.6b|1.7b|4b|8b; seq=32k (budget 32,768, at which extrapolation is evaluated); chips=128,
the devices that rows and slots are meant for (256 for 8b).
Sources: docs/algorithms.md, e3. "Table 8" is the paper's; "code" was read in its code; "released" = grpo_8k.sh and
grpo_16k.sh of the release, "main" = the same scripts in the main branch of math-curriculum; "aot" = the compiler's
figures in benchmarks/aot. Where a line names Table 8 alone, the scripts agree with it or are not known.
"""

from configs.common import base_config, grpo_stage, parse_arguments

CHOICES = {"stage": ("1", "2"), "model": ("0.6b", "1.7b", "4b", "8b"), "seq": ("32k",)}
SAMPLING_TENSOR = {"0.6b": 1, "1.7b": 1, "4b": 2, "8b": 4}  # in bf16 4b has 8 GB of matrices, 8b 16: split (aot)
SLOTS_PER_CHIP = {"0.6b": 4, "1.7b": 4, "4b": 2, "8b": 2}  # 1.7b: 4 fit at 16k tokens, 10 at 8k (aot)


def get_config(argument: str = "stage=1"):
    given = parse_arguments("e3_math.py", argument, CHOICES, stage="1", model="1.7b", seq="", chips="")
    size, second = given["model"], given["stage"] == "2"
    chips = int(given["chips"] or (256 if size == "8b" else 128))
    budget = 32_768 if given["seq"] else 16_384 if second else 8192  # Table 8; evaluations have 32k
    c = base_config()
    c.order = ("math",)
    c.stages.math = grpo_stage(
        # The released sets. Stage 2's runs read files named medium2500 and medium5000, where the text says medium and
        # hard. e3-math-medhard has some 2.5k rows and is what was released.
        set="e3-math-medhard" if second else "e3-math-easy",
        budget=budget,
        # The released model is step 100 of stage 1 and then step 60 of stage 2. "main" goes on to step 301 at most
        steps=60 if second else 100,
        lr=1e-6,  # Table 8
    )

    c.task.form = "math"
    c.task.prompt = "e3"  # code
    c.task.thinking = True  # Qwen3's default
    c.task.where = "response"  # code, where the split at </think> is overwritten
    c.task.prompt_room = 1024  # Table 8; "released" has 512 in stage 1. Longer prompts are left out
    c.tokenizer = f"Qwen/Qwen3-{size.upper()}"
    c.init.init_from = f"Qwen/Qwen3-{size.upper()}"  # stage 2 starts from step 100 of stage 1
    c.init.number_embeddings = False

    c.model.preset = f"qwen3-{size}"
    c.model.dtype = "bfloat16"
    c.model.remat = "full"  # "attention" takes 1.8 GiB more for a tenth of the FLOPs less (aot)
    c.model.chunk = 512 * chips  # 512 tokens' logits per chip are .3 GB in float32

    c.grpo.prompts = 64 if second else 128  # Table 8
    c.grpo.group_size = 32 if second else 8  # Table 8, released, main; the text has 16 in stage 1
    c.grpo.minibatches = 2 if second else 4  # Table 8, main: mini-batches of 32 prompts; released: 64
    c.grpo.temperature = 0.6  # Table 8
    c.grpo.rows = chips  # one packed row per chip (aot)
    c.grpo.advantage.normalize_std = True  # code; the text also cites Dr. GRPO, which does not normalise
    c.grpo.weights.aggregation = "token_mean"  # code: per micro-batch; here per mini-batch
    c.grpo.loss.clip_low = 0.2  # Table 8
    c.grpo.loss.clip_high = 0.35 if second else 0.5  # Table 8, main, the run's name; released: .2 in stage 1
    c.grpo.loss.dual_clip = 3.0  # code; not in the paper
    c.grpo.loss.kl_coef = 0.001  # Table 8
    c.grpo.loss.entropy_coef = 0.001 if second else 0.002  # Table 8, main, the run's name; released: 0 in stage 1
    c.optim.weight_decay = 0.01  # code
    c.optim.beta2 = 0.999  # code: torch's AdamW with its defaults
    c.optim.grad_clip = 1.0  # code

    c.sampler.tensor = SAMPLING_TENSOR[size]  # while sampling, matrices are split over so many chips
    c.sampler.slots = SLOTS_PER_CHIP[size] // (2 if given["seq"] else 1) * chips  # 32k: twice the cache (aot)
    c.sampler.prefill_rows = chips // SAMPLING_TENSOR[size]  # the least possible: one prompt per group of chips
    c.sampler.block = 32  # steps; one block takes half a second on v5e at best (aot)

    # A short look at the end of the stage; configs/eval_math.py evaluates as the paper's tables
    c.eval.sets = {"aime25": "aime25", "hmmt25": "hmmt25"}
    c.eval.problems = 30  # the whole of each set
    c.eval.samples = 4  # ours; the paper has 128
    c.eval.budgets = (8192, 16_384, 32_768)  # the paper: 32,768 and shorter cuts of it
    c.eval.pass_ks = (1, 2, 4, 8)
    c.eval.pass_problems = 30
    c.eval.pass_budget = 8192
    c.eval.temperature = 0.6  # the paper, with top-p .95 and top-k 20 as in configs/eval_math.py; a run has one sampler

    c.checkpoint.every = 10  # ours: a spot chip is lost within hours. The code has 30 in stage 2
    c.checkpoint.keep_every = 20 if second else 50
    return c
