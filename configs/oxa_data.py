"""Make OXA's sets: right responses of a teacher that the base model finds unlikely, wrong ones that it finds likely.

    python -m e3jax.curation.oxa_sets --config=configs/oxa_data.py:model=1.5b --workdir=gs://BUCKET/oxa-data \
        --config.set.source=/data/acereason.parquet --config.base=models/qwen2.5-math-1.5b-long
    Countdown on a laptop (configs/experiments/oxa.py does this for every seed):
    python -m e3jax.curation.oxa_sets --workdir=runs/oxa-data \
        --config=configs/oxa_data.py:countdown,model=runs/quickstart/checkpoints/base/280

Arguments: model=1.5b|7b, or countdown,model=CHECKPOINT; text,model=CHECKPOINT is e3's Countdown for a language model
that was primed by configs/countdown_lm.py (not run: it needs a GPU).
Hardware: not run at full size. It needs a pod, the teacher's file (AceReason-1.1-Math with DeepSeek-R1 responses and
answers) and DeepSeek-R1-Distill-Qwen-7B. Rows need columns problem (or question), answer, and the response.
Sources: docs/algorithms.md, OXA: "code" was read in its data scripts; "ours" was chosen here.
"""

from ml_collections import ConfigDict, config_dict

from e3jax.errors import UserError

MODELS = {"1.5b": "Qwen/Qwen2.5-Math-1.5B", "7b": "Qwen/Qwen2.5-Math-7B"}
RATES = (1.0, 0.5, 0.25, 0.1)  # of the teacher's attempts, how many it takes from the solver (ours)


def parse(argument: str) -> tuple[str, str]:
    """Parse "countdown,model=x" into ("x", "countdown"); anything else is a UserError that names the choices."""
    kind, _, rest = argument.rpartition("model=")
    kind = kind.removesuffix(",")
    if not rest or "," in rest or not (rest in MODELS if kind == "" else kind in ("countdown", "text")):
        raise UserError(
            f"configs/oxa_data.py:{argument}: use model={'|'.join(MODELS)}, or countdown,model=CHECKPOINT, or "
            "text,model=CHECKPOINT"
        )
    return rest, kind


def get_config(argument: str = "model=1.5b"):
    model, countdown = parse(argument)  # of mathematics ""
    c = ConfigDict()
    c.seed = 42  # code
    c.base = model if countdown else MODELS[model]  # its perplexities count: the model that will be trained (code)
    c.dtype = ""  # "": float32 on CPU, else bfloat16 (code)
    c.given_prompt = False  # code: perplexity of the response alone, without query or chat template
    c.most_tokens = 32_768  # code: a response is read up to here; longer ones are not trained on
    c.score_tokens = 32_768  # about so many go through the model at once (ours)
    c.at_once = 1024  # queries, or responses of a pool, in memory together (ours)

    c.set = ConfigDict()
    c.set.form = "math"
    # code: AceReason-1.1-Math; give your file, or a hub id. For Countdown: how many numbers
    c.set.source = (3, 4) if countdown else "acereason.parquet"
    c.set.prompt = "oxa"  # code
    c.set.where = "after_thinking"  # code of its RL: the answer after </think>
    c.set.problems = 0  # only the first so many queries get responses of our own; 0: all

    c.teacher = ConfigDict()
    if not countdown:
        c.teacher.column = "response"  # of the file: DeepSeek-R1's (code)

    c.own = ConfigDict()
    c.own.model = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"  # code's "dps_7b" (inferred): a relative of both sizes
    c.own.thinking = True
    c.own.samples = 4  # ours: how the authors sampled is not known
    c.own.budget = 25_000  # code: longer ones are left out
    c.own.prefix = "<think>\n"  # code: prepended, since its chat template has it in the prompt

    c.promote = ConfigDict()
    c.promote.total = 50_000  # code, like all of this section
    c.promote.low, c.promote.high, c.promote.width = 1.0, 5.0, 0.05
    c.promote.mu = 3.0 if model == "7b" else 2.5
    c.promote.mu_quantile = config_dict.placeholder(float)  # mu as a quantile of the pool, for other base models
    c.promote.sigma = 0.25
    c.promote.per_query = 1  # the script has 10; the files that were trained on have 1
    c.promote.refill = False  # code: a shortage is only reported

    c.suppress = ConfigDict()
    c.suppress.total = 50_000  # code
    c.suppress.least_ppl = 1.2  # code: below it a response is degenerate
    c.suppress.most_tokens = 25_000  # code
    c.baselines = 50_000  # code: SFT (random) and SFT-low-PPL
    c.right = "teacher"  # code: whose right responses are chosen from, the "teacher"'s or "own" …
    c.wrong = "own"  # code: … and whose wrong ones

    c.sampler = ConfigDict()
    c.sampler.temperature = 0.6  # ours: the distilled models' own setting; the authors' is not known
    c.sampler.top_p = 0.95  # likewise
    c.sampler.top_k = 0
    c.sampler.tensor = 1
    c.sampler.slots = 256  # for 128 chips, as configs/e3_math.py
    c.sampler.prefill_rows = 128
    c.sampler.block = 32
    c.sampler.cache = "compute"

    c.grader = ConfigDict()
    c.grader.workers = 8  # processes
    c.grader.timeout_s = 10.0
    if countdown:
        for_countdown(c, model)
    if countdown == "text":
        for_text(c)
    return c


def for_countdown(c: ConfigDict, model: str) -> None:
    """Set tiny values (configs/experiments/oxa.py): the solver guides the teacher, errors are the base model's."""
    c.seed = 0
    c.set.form, c.set.prompt, c.set.problems = "calculator", "", 1000
    # Alone, a response of 40 words has a perplexity of 5 to 1,500, depending on how many numbers it happens to name
    # (LOG.md, 2026-11-24)
    c.given_prompt = True
    c.most_tokens = c.suppress.most_tokens = 150
    c.score_tokens = 4096
    # The teacher knows the solution, so its traces differ in how long they look for it, from not at all to long
    c.teacher.first = 40_000_000  # first of the problem numbers that neither the base model nor RL sees
    c.teacher.samples = 2
    c.teacher.habits = [
        dict(solution_rate=rate, give_up=0.0, persistent=0.0, persistent_solution_rate=0.0, most_tokens=90)
        for rate in RATES
    ]
    c.own.model, c.own.samples, c.own.budget, c.own.prefix = model, 4, 96, ""
    c.promote.total = c.suppress.total = c.baselines = 1000  # of some 7,000 right responses
    c.promote.high, c.promote.width, c.promote.sigma = 2.0, 0.0125, 0.0625  # the code's, four times as narrow
    c.promote.mu_quantile = 0.75  # ours: within the upper half of the right responses
    c.promote.per_query = 2  # ours: 1 of each of 1,000 queries would leave nothing to choose
    c.promote.refill = True
    c.sampler.temperature, c.sampler.top_p = 1.0, 1.0
    c.sampler.slots, c.sampler.prefill_rows, c.sampler.block = 128, 64, 16
    c.grader.workers = 2


def for_text(c: ConfigDict) -> None:
    """Set what differs for a language model and problems in text; all of it is ours, and was not run."""
    c.set.form = "paper"
    c.score_tokens = 16_384
    never = dict(persistent=0.0, persistent_solution_rate=0.0, most_attempts=24)
    # 650 characters are at most 490 of SmolLM2's tokens, and RL has 512, as 90 words are of 96. The five are right in
    # 99, 99, 92, 72 and 31 % of 300 problems (LOG.md, 2026-11-30); the last one gives up, and its wrong traces are most
    # of what config.wrong="teacher" chooses from
    c.teacher.habits = [
        dict(solution_rate=rate, give_up=give_up, most_characters=650, **never)
        for rate, give_up in (*((rate, 0.0) for rate in RATES), (RATES[-1], 0.35))
    ]
    c.own.samples, c.own.budget = 8, 512  # twice as many: a primed model solves a fifth of 3 numbers
    c.most_tokens = c.suppress.most_tokens = 800
    # The choice of an expression is some 3 nats, and an attempt has 45 tokens: perplexities lie little above 1
    c.promote.high, c.promote.width, c.promote.sigma = 2.0, 0.00625, 0.03
    c.suppress.least_ppl = 1.0
    c.sampler.slots, c.sampler.prefill_rows, c.sampler.block = 512, 64, 64
    c.grader.workers = 4
