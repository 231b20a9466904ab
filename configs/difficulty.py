r"""Measure how hard problems are: a judge's pass rates on DeepScaleR, and its easy, medium and hard parts as sets.

    python -m e3jax.curation.difficulty --config=configs/difficulty.py --workdir=gs://BUCKET/difficulty
    python -m e3jax.train.curriculum --config=configs/e3_math.py:stage=1 --workdir=gs://BUCKET/stage1 \
        --config.stages.math.set=gs://BUCKET/difficulty/sets/code/easy.jsonl
    another definition of the same rates, in seconds:  --config.preset=section_5
    a set from a file, the first 1,000 of it:          --config.set.source=/data/mine.jsonl --config.set.problems=1000
    Countdown on a laptop, two minutes:
    python -m e3jax.curation.difficulty --workdir=runs/difficulty \
        --config=configs/difficulty.py:form=calculator,model=runs/quickstart/checkpoints/base/280

Arguments: preset=code|section_5|appendix_i (e3jax/curation/buckets.py), each with its own judge and samples;
model=CHECKPOINT for another judge; form=calculator.
Hardware: not run, because it needs a pod (40,315 problems, 645,040 responses of up to 8,192 tokens). slots and
prefill_rows are set for the 128 chips of configs/e3_math.py.
Expected (e3's code, preset "code" on 38,400 problems): 12,853 easy, 12,693 hard, the rest medium.
Sources: docs/algorithms.md, Difficulty; "e3" is the paper or its code, "ours" was chosen here.
"""

from ml_collections import ConfigDict

from e3jax.errors import UserError

CHOICES = {"preset": ("code", "section_5", "appendix_i"), "form": ("math", "calculator")}
JUDGES = {
    "code": "Qwen/Qwen3-1.7B",  # e3's code names none; ours is the model that is trained
    "section_5": "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",  # e3 §6
    "appendix_i": "Qwen/QwQ-32B",  # e3 App. I
}
SAMPLES = {"code": 16, "section_5": 16, "appendix_i": 32}  # e3's code; §6 gives none, so the code's; App. I
BUDGETS = {"code": 8192, "section_5": 8192, "appendix_i": 8192}  # e3's code; the paper gives none


def parse(argument: str) -> dict[str, str]:
    """Parse "preset=code,model=x" into a dictionary; anything else is a UserError that names the choices."""
    given = dict(part.partition("=")[::2] for part in argument.split(",")) if argument else {}
    for name, value in given.items():
        if not (name == "model" and value) and (name not in CHOICES or value not in CHOICES[name]):
            choices = "; ".join(f"{n}={'|'.join(v)}" for n, v in CHOICES.items())
            raise UserError(f"configs/difficulty.py: {name}={value!r} is not one of {choices}; model=CHECKPOINT")
    return given


def get_config(argument: str = ""):
    given = {"preset": "code", "form": "math", "model": ""} | parse(argument)
    preset, countdown = given["preset"], given["form"] == "calculator"
    c = ConfigDict()
    c.seed = 0  # noise is a function of (seed, problem, sample)
    c.preset = preset
    c.model = given["model"] or JUDGES[preset]  # RUN/checkpoints/STAGE/STEP, a Hugging Face directory or a hub id
    c.dtype = ""  # of weights and cache; "": float32 on CPU, else bfloat16
    c.thinking = True  # the chat template's thinking mode, as e3
    c.samples = SAMPLES[preset]
    c.budget = BUDGETS[preset]  # tokens of a response
    c.at_once = 256  # problems drawn and graded together: 4,096 responses with 16 samples (ours)
    c.keep_responses = False  # True keeps responses/, at 20 kB a response and more

    c.set = ConfigDict()
    c.set.form = given["form"]  # "math" (a set), "calculator" or "paper" (Countdown), "multiplication"
    # e3's; a name in tasks/sets.py, a hub id or a path; of generated problems, how many numbers or digits
    c.set.source = (3, 4) if countdown else "deepscaler"
    c.set.prompt = "e3"  # a name in tasks/prompts.py; Countdown has its own
    c.set.problems = 0  # only the first so many; 0: the whole set
    c.set.where = "anywhere"  # e3's code compares boxed answers and does not mention </think> (our reading)

    c.sampler = ConfigDict()
    c.sampler.temperature = 0.6  # e3's code
    c.sampler.top_p = 0.95  # e3's code
    c.sampler.top_k = 0  # e3's code names none
    large = c.model in (JUDGES["section_5"], JUDGES["appendix_i"])  # 32B in bf16 is 64 GB: split over 8 chips
    c.sampler.tensor = 8 if large else 1
    c.sampler.slots = 128 if large else 512  # 4 per chip at 8k tokens (configs/e3_math.py); 32B: computed, not compiled
    c.sampler.prefill_rows = 16 if large else 128
    c.sampler.block = 32
    c.sampler.cache = "compute"

    c.grader = ConfigDict()
    c.grader.workers = 8  # processes
    c.grader.timeout_s = 10.0  # per response; it is tried twice, then counts as wrong with reason "timeout"

    if countdown:  # for the tiny models of configs/quickstart.py
        c.set.prompt, c.set.problems = "", 256
        c.budget = 96
        c.sampler.temperature, c.sampler.top_p = 1.0, 1.0  # configs/common.py
        c.sampler.slots, c.sampler.prefill_rows, c.sampler.block = 128, 64, 16
        c.grader.workers = 2
    return c
