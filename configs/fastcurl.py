"""FastCuRL (2503.17287): short prompts at 8k tokens, all at 16k, long ones at 24k, all again at 16k with 16 responses.

    python -m e3jax.train.curriculum --config=configs/fastcurl.py --workdir=gs://BUCKET/fastcurl

The nearest published coupled curriculum: e3 couples budgets with difficulty, FastCuRL with the length of the prompt.
Not run: it needs a pod and the hub. Checked: every stage passes its check (tests/test_configs.py), and the split by the
length of the prompt is tested (tests/test_train_selection.py).
Expected (the authors', FastCuRL-1.5B-Preview, mean of 16 samples): AIME 2024 43.1, MATH-500 88.0, AMC 2023 74.2,
Minerva 31.6, OlympiadBench 50.4; the model it starts from has 28.8, 82.8, 62.9, 26.5, 43.3.

Arguments: chips=128, the devices that rows and slots are meant for; split=NUMBER, the tokens of a prompt, template and
instruction included, up to which it is short.
Sources: "script" is the released run_fastcurl_1.5b_*.sh of the stage, "README" the release's. Stages 1 and 3 read files
train_s_cot and train_l_cot there, 2 and 4 one called train_L2, taken here for the whole of DeepScaleR's 40,315.
"""

from configs.common import base_config, grpo_stage, parse_arguments
from e3jax.errors import UserError

CHOICES = {"split": ()}
MODEL = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
LONGEST = 1024  # tokens of a prompt; script


def get_config(argument: str = ""):
    # 96: half of the problems are no longer, as 160 steps of 128 are half of them (ours: the median of 9,998 of them,
    # with Qwen3's tokenizer and template and this prompt)
    given = parse_arguments("fastcurl.py", argument, CHOICES, split="96", chips="128")
    if not given["split"].isdigit():
        raise UserError(f"configs/fastcurl.py: split={given['split']!r}: use a number of tokens, as 96")
    chips, split = int(given["chips"]), int(given["split"])
    c = base_config()
    c.order = ("short", "all", "long", "again")
    common = {"set": "deepscaler", "lr": 1e-6}  # script
    # Steps: remembered, not looked up. They are one pass over each file, of 128 prompts at first and then of 64, and
    # together README's 860 of 128
    c.stages.short = grpo_stage(budget=8192, steps=160, prompts=128, minibatches=2, **common)
    c.stages.all = grpo_stage(budget=16_384, steps=590, prompts=64, minibatches=1, **common)
    c.stages.long = grpo_stage(budget=24_576, steps=230, prompts=64, minibatches=1, **common)
    c.stages.again = grpo_stage(budget=16_384, steps=580, prompts=64, minibatches=1, group_size=16, **common)
    c.stages.short.prompt_tokens = (1, split)
    c.stages.long.prompt_tokens = (split + 1, LONGEST)

    c.task.form = "math"
    c.task.prompt = "e3"  # DeepScaleR's, on which its code is built
    c.task.prompt_room = LONGEST
    c.tokenizer = c.init.init_from = MODEL
    c.init.number_embeddings = False
    c.model.preset = "deepseek-r1-distill-qwen-1.5b"
    c.model.dtype = "bfloat16"
    c.model.chunk = 512 * chips

    c.grpo.group_size = 8  # script; 16 in the last stage
    c.grpo.temperature = 0.6  # script
    c.grpo.rows = chips
    c.grpo.weights.aggregation = "token_mean"  # verl's default, which the script keeps, as the next three
    c.grpo.loss.clip_high = 0.2
    c.grpo.loss.entropy_coef = 0.001
    c.optim.beta2 = 0.999
    c.grpo.loss.kl_coef = 0.001  # script

    c.sampler.slots = 4 * chips  # as configs/e3_math.py, for a model of this size at 16k tokens
    c.sampler.prefill_rows = chips
    c.sampler.block = 32

    c.eval.sets = {"aime24": "aime24"}  # script: the set that it watches
    c.eval.problems = 30
    c.eval.samples = 8  # script
    c.eval.temperature = 0.6  # script
    c.eval.budgets = (8192, 16_384, 24_576, 32_768)  # ours
    c.eval.pass_ks = (1, 2, 4, 8)
    c.eval.pass_problems = 30
    c.eval.pass_budget = 16_384
    c.checkpoint.every = 10  # script, in stage 1
    return c
