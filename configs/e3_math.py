"""e3's mathematics runs on Qwen3 (Table 8): stage 1 at 8k tokens on easy problems, stage 2 at 16k on harder ones.

    python -m e3jax.train.curriculum --config=configs/e3_math.py:stage=1 --workdir=gs://BUCKET/math1
    python -m e3jax.train.curriculum --config=configs/e3_math.py:stage=2 --workdir=gs://BUCKET/math2 \
        --config.init.init_from=gs://BUCKET/math1/checkpoints/math/100
    launch/curriculum.sh runs both in this order on a pod (its --help has the two lines).

Not run: it needs a pod. What is checked: every program compiles for the slice and fits (benchmarks/aot), and the same
recipe runs through on a CPU with a tiny model and real data (tests/test_train_math.py).
    python -m e3jax.tools.aot --config=configs/e3_math.py:stage=2 --topology=v5e:8x16             # 1.7B
    python -m e3jax.tools.aot --config=configs/e3_math.py:stage=2,model=8b --topology=v5e:16x16
    python -m e3jax.tools.aot --config=configs/e3_math.py:stage=2,seq=32k --topology=v5e:8x16
Expected (the paper's, of both stages, 32k tokens): AIME 25 pass@1 43.8 (base 35.5), HMMT Feb 25 24.7 (22.2) (A.7).
Without a network on the pod: python -m e3jax.tools.prepare, and name what it wrote with --config.stages.math.set=….

Arguments: stage=1|2; model=0.6b|1.7b|4b|8b; seq=32k (budget 32,768: what extrapolation evaluates at); chips=128, the
devices that rows and slots are meant for, 256 for 8b.
Sources: A.n and T8 (= Table 8, in A.6) as in configs/common.py; RELEASE = grpo_8k.sh and grpo_16k.sh of the released
scripts, MAIN = the same of math-curriculum's main branch (A.6); AOT = the compiler's figures, benchmarks/aot.
Where a line names T8 alone, the scripts agree with it or nothing is known of theirs.
"""

from configs.common import base_config, grpo_stage, parse_arguments

CHOICES = {"stage": ("1", "2"), "model": ("0.6b", "1.7b", "4b", "8b"), "seq": ("32k",)}
SAMPLING_TENSOR = {"0.6b": 1, "1.7b": 1, "4b": 2, "8b": 4}  # bf16 matrices of 4b are 8 GB, of 8b 16: split (AOT)
SLOTS_PER_CHIP = {"0.6b": 4, "1.7b": 4, "4b": 2, "8b": 2}  # 1.7b: 4 fit at 16k tokens, 10 at 8k (AOT)


def get_config(argument: str = "stage=1"):
    given = parse_arguments("e3_math.py", argument, CHOICES, stage="1", model="1.7b", seq="", chips="")
    size, second = given["model"], given["stage"] == "2"
    chips = int(given["chips"] or (256 if size == "8b" else 128))
    budget = 32_768 if given["seq"] else 16_384 if second else 8192  # T8; 32k: A.7
    c = base_config()
    c.order = ("math",)
    c.stages.math = grpo_stage(
        # A.2: the released sets. Stage 2's runs read files named medium2500 and medium5000, the text says
        # medium and hard (A.8); e3-math-medhard has some 2.5k rows and is what was released.
        set="e3-math-medhard" if second else "e3-math-easy",
        budget=budget,
        # A.6: the released model is stage 1's step 100 and then stage 2's step 60. MAIN goes on to step 301 at most
        steps=60 if second else 100,
        lr=1e-6,  # T8
    )

    c.task.form = "math"
    c.task.prompt = "e3"  # A.3
    c.task.thinking = True  # A.3: Qwen3's default
    c.task.where = "response"  # A.4: the code's; its split at </think> was overwritten
    c.task.prompt_room = 1024  # T8; RELEASE has 512 in stage 1. Problems with longer prompts are left out
    c.tokenizer = f"Qwen/Qwen3-{size.upper()}"
    c.init.init_from = f"Qwen/Qwen3-{size.upper()}"  # A.6: hybrid Qwen3-1.7B; stage 2 starts from stage 1's step 100
    c.init.number_embeddings = False

    c.model.preset = f"qwen3-{size}"
    c.model.dtype = "bfloat16"
    c.model.remat = "full"  # "attention": 1.8 GiB more, a tenth of the FLOPs less (AOT)
    c.model.chunk = 512 * chips  # 512 tokens' logits per chip: .3 GB in float32

    c.grpo.prompts = 64 if second else 128  # T8
    c.grpo.group_size = 32 if second else 8  # T8, RELEASE, MAIN; the text says 16 in stage 1 (A.8)
    c.grpo.minibatches = 2 if second else 4  # T8, MAIN: mini 32 prompts of 64 or 128; RELEASE: mini 64 in stage 1
    c.grpo.temperature = 0.6  # T8
    c.grpo.rows = chips  # one packed row per chip (AOT)
    c.grpo.advantage.normalize_std = True  # A.5; the text cites Dr. GRPO beside it, which does not (A.8)
    c.grpo.weights.aggregation = "token_mean"  # A.5. Theirs is per micro-batch, ours over the whole mini-batch (A.8)
    c.grpo.loss.clip_low = 0.2  # T8
    c.grpo.loss.clip_high = 0.35 if second else 0.5  # T8, MAIN and the run's name; RELEASE has .2 in stage 1
    c.grpo.loss.dual_clip = 3.0  # A.5: in the code, not in the paper
    c.grpo.loss.kl_coef = 0.001  # T8
    c.grpo.loss.entropy_coef = 0.001 if second else 0.002  # T8, MAIN and the run's name; RELEASE has 0 in stage 1
    c.optim.weight_decay = 0.01  # A.5
    c.optim.beta2 = 0.999  # e3's code: torch's AdamW as it comes
    c.optim.grad_clip = 1.0  # A.5

    c.sampler.tensor = SAMPLING_TENSOR[size]  # matrices of the sampling layout are split over so many chips
    c.sampler.slots = SLOTS_PER_CHIP[size] // (2 if given["seq"] else 1) * chips  # 32k: twice the cache (AOT)
    c.sampler.prefill_rows = chips // SAMPLING_TENSOR[size]  # the least: one prompt per group of chips
    c.sampler.block = 32  # steps; one block is about half a second on v5e at best (AOT)

    # A short look at the end of the stage; evaluation as in the paper's tables is configs/eval_math.py
    c.eval.sets = {"aime25": "aime25", "hmmt25": "hmmt25"}
    c.eval.problems = 30  # all there are
    c.eval.samples = 4  # own choice; A.7: 128
    c.eval.budgets = (8192, 16_384, 32_768)  # A.7: 32,768 and shorter cuts of it
    c.eval.pass_ks = (1, 2, 4, 8)
    c.eval.pass_problems = 30
    c.eval.pass_budget = 8192
    c.eval.temperature = 0.6  # A.7; top-p .95 and top-k 20 are configs/eval_math.py's: one sampler serves a run here

    c.checkpoint.every = 10  # own choice: a spot chip is lost within hours. A.6: 30 in stage 2
    c.checkpoint.keep_every = 20 if second else 50
    return c
