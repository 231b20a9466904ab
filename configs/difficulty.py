r"""How hard a problem is: pass rates of a judge on DeepScaleR, and its easy, medium and hard parts as sets.

    python -m e3jax.curation.difficulty --config=configs/difficulty.py --workdir=gs://BUCKET/difficulty
    python -m e3jax.train.curriculum --config=configs/e3_math.py:stage=1 --workdir=gs://BUCKET/stage1 \
        --config.stages.math.set=gs://BUCKET/difficulty/sets/code/easy.jsonl
    another definition of the same rates, in seconds:  --config.preset=section_5
    a set from a file, the first 1,000 of it:          --config.set.source=/data/mine.jsonl --config.set.problems=1000
    Countdown on a laptop, two minutes:
    python -m e3jax.curation.difficulty --workdir=runs/difficulty \
        --config=configs/difficulty.py:form=calculator,model=runs/quickstart/checkpoints/base/280

Arguments: preset=code|section_5|appendix_i (e3jax/curation/buckets.py), with its own judge and samples;
model=CHECKPOINT, another judge; form=calculator.
Hardware: not run, it needs a pod (40,315 problems, 645,040 responses of up to 8,192 tokens; slots and prefill_rows are
set for configs/e3_math.py's 128 chips).
Expected (A.2, preset "code" on 38,400 problems): 12,853 easy, 12,693 hard, the rest medium.
Sources: A.n = e3's paper and code, by section of the developers' notes (configs/common.py says where).
"""

from ml_collections import ConfigDict

from e3jax.errors import UserError

CHOICES = {"preset": ("code", "section_5", "appendix_i"), "form": ("math", "calculator")}
JUDGES = {
    "code": "Qwen/Qwen3-1.7B",  # A.2 names none: the model that is trained (own choice)
    "section_5": "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",  # section 5
    "appendix_i": "Qwen/QwQ-32B",  # App. I
}
SAMPLES = {"code": 16, "section_5": 16, "appendix_i": 32}  # A.2; section 5 is silent: A.2's; App. I
BUDGETS = {"code": 8192, "section_5": 8192, "appendix_i": 8192}  # A.2; the paper is silent: A.2's


def parse(argument: str) -> dict[str, str]:
    """ "preset=code,model=x" -> {"preset": "code", "model": "x"}; anything else is an error that names the choices."""
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
    c.model = given["model"] or JUDGES[preset]  # RUN/checkpoints/STAGE/STEP, Hugging Face directory or hub id
    c.dtype = ""  # of weights and cache; "": float32 on CPU, else bfloat16
    c.thinking = True  # A.3: the chat template's thinking mode
    c.samples = SAMPLES[preset]
    c.budget = BUDGETS[preset]  # tokens of a response
    c.at_once = 256  # problems whose responses are drawn, then graded, together: 4,096 with 16 samples (own choice)
    c.keep_responses = False  # True: responses/ stays, 20 kB each and more

    c.set = ConfigDict()
    c.set.form = given["form"]  # "math" (a set), "calculator" or "paper" (Countdown), "multiplication"
    # A.2; a name of tasks/sets.py, a hub id or a path; how many numbers or digits of what is made
    c.set.source = (3, 4) if countdown else "deepscaler"
    c.set.prompt = "e3"  # tasks/prompts.py; Countdown has its own
    c.set.problems = 0  # the first so many; 0: all of a set
    c.set.where = "anywhere"  # A.2: normalised equality of the boxed answer, no word of a </think> (own reading)

    c.sampler = ConfigDict()
    c.sampler.temperature = 0.6  # A.2
    c.sampler.top_p = 0.95  # A.2
    c.sampler.top_k = 0  # A.2 names none
    large = c.model in (JUDGES["section_5"], JUDGES["appendix_i"])  # bf16 matrices of 32B are 64 GB: over 8 chips
    c.sampler.tensor = 8 if large else 1
    c.sampler.slots = 128 if large else 512  # 4 of 8k tokens per chip (configs/e3_math.py); 32B: reckoned, not compiled
    c.sampler.prefill_rows = 16 if large else 128
    c.sampler.block = 32
    c.sampler.cache = "compute"

    c.grader = ConfigDict()
    c.grader.workers = 8  # processes
    c.grader.timeout_s = 10.0  # per response; tried twice, then it is wrong, reason "timeout"

    if countdown:  # the tiny models' (configs/quickstart.py)
        c.set.prompt, c.set.problems = "", 256
        c.budget = 96
        c.sampler.temperature, c.sampler.top_p = 1.0, 1.0  # configs/common.py
        c.sampler.slots, c.sampler.prefill_rows, c.sampler.block = 128, 64, 16
        c.grader.workers = 2
    return c
