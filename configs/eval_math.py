"""Evaluate as e3 does: AIME 25, HMMT Feb 25 and MATH-500, one generation of 32k tokens each, scored at 4k … 32k.

    python -m e3jax.eval.run --config=configs/eval_math.py --workdir=gs://BUCKET/eval
    python -m e3jax.eval.run --workdir=gs://BUCKET/eval \
        --config=configs/eval_math.py:Qwen3-1.7B=Qwen/Qwen3-1.7B,e3=gs://BUCKET/math2/checkpoints/math/60
    one set from a file:      --config.sets.AIME25.source=/data/aime25.json
    some of the sets:         --config.only=AIME25,HMMT25
    more of a set, later, in the same directory:  --config.sets.AIME25.samples=256
    budget forcing (App. I):  --config.forcing.wait='(2,4,6,8)' --config.forcing.early_stop='(4096,8192,16384)'

Argument: the checkpoints to compare, LABEL=CHECKPOINT, separated by commas; without one, e3's base model.
Hardware: not run, because it needs a pod (11,680 responses of up to 32,768 tokens per model). slots and prefill_rows
are set for the 128 chips of configs/e3_math.py.
Expected (Tables 1 and 3, in %): Qwen3-1.7B AIME 25 pass@1 35.5, pass@32 65.2; HMMT 25 22.2 and 54.9; MATH-500 55.98 at
4,096 and 85.45 at 32,768 tokens. e3-1.7B 43.8, 67.2; 24.7, 56.1; 66.53, 86.95. Table 1's pass@32 is bootstrapped from
128 rollouts: compare it with --config.pass_at_k=bootstrap (one right of 128 is 22.2 there and 25.0 unbiased).
Sources: e3's paper and code (docs/algorithms.md, e3, Measures); "ours" was chosen here.
"""

from ml_collections import ConfigDict

from e3jax.errors import UserError

# Qwen's words for a thought that is cut short, with the end of the thought (its documentation of thinking budgets)
EARLY_STOP = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
    "\n</think>\n\n"
)


def one_set(source, *, samples: int, form: str = "math", prompt: str = "e3", problems: int = 0) -> ConfigDict:
    """Return a set to evaluate on: its source, as tasks/stream.py calls it, and how many samples a problem gets."""
    return ConfigDict(
        {
            "form": form,
            "source": source,  # a name in tasks/sets.py, a hub id or a path; numbers of Countdown, digits of a product
            "prompt": prompt,  # a name in tasks/prompts.py; Countdown has its own
            "problems": problems,  # the first so many; 0: all
            "samples": samples,
            "where": "response",  # as e3: the last box of a response that has a </think> (rewards/extract.py)
        }
    )


def models_of(argument: str) -> tuple[tuple[str, str], ...]:
    """Parse "a=x,b=y" into (("a", "x"), ("b", "y")); a checkpoint without a label is called "model"."""
    if argument and "=" not in argument and "," not in argument:
        return (("model", argument),)
    pairs = tuple(part.partition("=")[::2] for part in argument.split(","))
    if not all(label and checkpoint for label, checkpoint in pairs):
        raise UserError(f"{argument!r}: write LABEL=CHECKPOINT, with commas between several")
    return pairs


def get_config(argument: str = "Qwen3-1.7B=Qwen/Qwen3-1.7B"):
    c = ConfigDict()
    c.seed = 0  # noise is a function of (seed, set's name, problem, sample)
    c.models = models_of(argument)  # (label, RUN/checkpoints/STAGE/STEP or a Hugging Face directory or a hub id)
    c.dtype = ""  # of weights and cache; "": float32 on CPU, else bfloat16
    c.chat = "template"  # the model's own; "plain": Qwen's form without a system prompt (configs/oxa.py)
    c.thinking = True  # the chat template's thinking mode, as e3
    c.train_budget = 16_384  # e3's second stage: a line in the figures, beyond which is extrapolation; 0: none

    c.reward = ""  # "FILE.py:FUNCTION", or several with weights, grades in the tasks' place (docs/your-own.md); "": off
    c.only = ""  # names of sets, separated by commas; this call leaves the others out. "": all
    c.sets = ConfigDict()
    c.sets.AIME25 = one_set("aime25", samples=128)  # e3 §6.2: 128 rollouts for pass@k up to 32
    c.sets.HMMT25 = one_set("hmmt25", samples=128)
    c.sets.MATH500 = one_set("math500", samples=8)  # Table 3
    c.budgets = (4096, 8192, 16_384, 24_576, 32_768)  # Table 3; the last one is generated, the others are cuts of it
    c.pass_ks = (1, 2, 4, 8, 16, 32)  # Table 1; a set with fewer samples has those that are possible
    # pass@k in the tables. "bootstrap" draws with replacement as Table 1 (§6.2), for comparisons with it. It is not the
    # default because it is too low, more so where few samples are right. eval.jsonl has both
    c.pass_at_k = "unbiased"

    c.sampler = ConfigDict()
    c.sampler.temperature = 0.6  # e3
    c.sampler.top_p = 0.95  # e3
    c.sampler.top_k = 20  # e3
    c.sampler.slots = 256  # 2 per chip at 32k tokens (configs/e3_math.py:seq=32k)
    c.sampler.prefill_rows = 128
    c.sampler.tensor = 1
    c.sampler.block = 32
    c.sampler.cache = "compute"

    c.environment = ConfigDict()
    # what is said to the model between its turns, as in configs/common.py; here a reply may begin a new context
    c.environment.file = ""
    c.environment.turns = 8  # of the model, at most (ours)
    c.environment.turn_tokens = 0  # most tokens of one turn; 0: what the longest of budgets leaves

    c.forcing = ConfigDict()
    c.forcing.early_stop = ()  # thinking budgets in tokens; () is off
    c.forcing.sentence = EARLY_STOP
    c.forcing.answer = 4096  # tokens for the answer after it (ours)
    c.forcing.wait = ()  # App. I: (2, 4, 6, 8) times; () is off
    c.forcing.phrases = ("Wait", "But wait", "Alternatively", "But hold on")  # App. I
    c.forcing.thinking = 16_384  # App. I: "we first run a 16K-token rollout, stopping at </think>"
    c.forcing.extension = 2048  # App. I
    c.forcing.close = "</think>"
    c.forcing.samples = 8  # the first so many of a problem are forced (ours; the paper does not say)

    c.grader = ConfigDict()
    c.grader.workers = 8  # processes
    c.grader.timeout_s = 10.0  # per response; it is tried twice, then counts as wrong with reason "timeout"
    return c
