"""e3's mathematics runs on Qwen3, stage 1 (8k tokens) or stage 2 (16k), for a TPU v5e slice.

    python -m e3jax.tools.aot --config=configs/e3_math.py:stage=2 --topology=v5e:8x16             # 1.7B
    python -m e3jax.tools.aot --config=configs/e3_math.py:stage=2,model=8b --topology=v5e:16x16
    python -m e3jax.tools.aot --config=configs/e3_math.py:stage=2,seq=32k --topology=v5e:8x16

Not run: it needs a pod, and task.form="math" (data, prompt and grader) is not there yet, which is where the
trainer's check stops. What is checked is that every program compiles for the slice and fits (benchmarks/aot).

Arguments: stage=1|2; model=0.6b|1.7b|4b|8b; seq=32k (budget 32,768: what extrapolation evaluates at); chips=128, the
devices that rows and slots are meant for, 256 for 8b.
Sources: A.n and T8 (= Table 8, in A.6) as in configs/common.py; AOT = the compiler's figures, benchmarks/aot.
"""

from configs.common import base_config, grpo_stage
from e3jax.errors import UserError

CHOICES = {"stage": ("1", "2"), "model": ("0.6b", "1.7b", "4b", "8b"), "seq": ("32k",)}
SAMPLING_TENSOR = {"0.6b": 1, "1.7b": 1, "4b": 2, "8b": 4}  # bf16 matrices of 4b are 8 GB, of 8b 16: split (AOT)
SLOTS_PER_CHIP = {"0.6b": 4, "1.7b": 4, "4b": 2, "8b": 2}  # 1.7b: 5 fit at 16k tokens, 9 at 8k (AOT)


def parse(argument: str) -> dict[str, str]:
    """ "stage=2,model=8b" -> {"stage": "2", "model": "8b"}; anything else is an error that names the choices."""
    given = dict(part.partition("=")[::2] for part in argument.split(",")) if argument else {}
    for name, value in given.items():
        allowed = CHOICES[name] if name in CHOICES else ()
        if value not in allowed and not (name == "chips" and value.isdigit() and int(value) > 0):
            raise UserError(
                f"configs/e3_math.py: {name}={value!r} is not one of "
                + "; ".join(f"{n}={'|'.join(v)}" for n, v in CHOICES.items()) + "; chips=NUMBER"
            )  # fmt: skip
    return given


def get_config(argument: str = "stage=1"):
    given = {"stage": "1", "model": "1.7b", "seq": "", "chips": ""} | parse(argument)
    size, second = given["model"], given["stage"] == "2"
    chips = int(given["chips"] or (256 if size == "8b" else 128))
    budget = 32_768 if given["seq"] else 16_384 if second else 8192  # T8; 32k: A.7
    c = base_config()
    c.order = ("math",)
    c.stages.math = grpo_stage(
        numbers=(),  # a Countdown field; which problems a mathematics stage sees comes with its data
        budget=budget,
        steps=60 if second else 100,  # A.6: the released model's checkpoints
        lr=1e-6,  # T8
    )

    c.task.form = "math"  # not there yet
    c.task.prompt_room = 1024  # T8
    c.tokenizer = f"Qwen/Qwen3-{size.upper()}"
    c.init.init_from = f"Qwen/Qwen3-{size.upper()}"  # A.6: hybrid Qwen3-1.7B; stage 2 starts from stage 1's step 100
    c.init.number_embeddings = False

    c.model.preset = f"qwen3-{size}"
    c.model.dtype = "bfloat16"
    c.model.remat = "full"  # "attention": 1.8 GiB more, a tenth of the FLOPs less (AOT)
    c.model.chunk = 512 * chips  # 512 tokens' logits per chip: .3 GB in float32

    c.grpo.prompts = 64 if second else 128  # T8
    c.grpo.group_size = 32 if second else 8  # T8; the text says 16 in stage 1 (A.8)
    c.grpo.minibatches = 2 if second else 4  # T8: mini 32 prompts of 64 or 128
    c.grpo.temperature = 0.6  # T8
    c.grpo.rows = chips  # one packed row per chip (AOT)
    c.grpo.weights.aggregation = "token_mean"  # A.5
    c.grpo.loss.clip_low = 0.2  # T8
    c.grpo.loss.clip_high = 0.35 if second else 0.5  # T8
    c.grpo.loss.kl_coef = 0.001  # T8
    c.grpo.loss.entropy_coef = 0.001 if second else 0.002  # T8

    c.sampler.tensor = SAMPLING_TENSOR[size]  # matrices of the sampling layout are split over so many chips
    c.sampler.slots = SLOTS_PER_CHIP[size] // (2 if given["seq"] else 1) * chips  # 32k: twice the cache (AOT)
    c.sampler.prefill_rows = chips // SAMPLING_TENSOR[size]  # the least: one prompt per group of chips
    c.sampler.block = 32  # steps; one block is about half a second on v5e at best (AOT)

    c.eval.sets = {}
    c.eval.budgets = (8192, 16_384, 32_768)  # A.7: 32,768 and shorter cuts of it
    c.eval.pass_budget = 8192
    c.eval.temperature = 0.6  # A.7
    return c
