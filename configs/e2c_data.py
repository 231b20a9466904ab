"""E2C's causal data (ALGORITHMS B.2) made with Qwen3-8B on e3's easy and medium problems.

    python -m e3jax.curation.e2c --config=configs/e2c_data.py --workdir=gs://BUCKET/e2c-data
    another model or set:  --config=configs/e2c_data.py:writer=CHECKPOINT --config.sets.math.source=sets/mine.jsonl

Hardware: not run, it needs a pod; slots as for configs/e3_math.py's 128 chips.
Expected: the published set has 58 thousand rows; how many solutions they were made from is not known (B.2).
Sources: B.n = E2C's paper and code, by section of the developers' notes; OWN = chosen here (B.2 found neither prompts,
nor filters, nor sampling settings).
"""

from ml_collections import ConfigDict

from configs.eval_math import models_of, one_set


def get_config(argument: str = "writer=Qwen/Qwen3-8B"):
    c = ConfigDict()
    c.seed = 42  # B.2, of its split
    c.models = models_of(argument)  # one (label, RUN/checkpoints/STAGE/STEP, Hugging Face directory or hub id)
    c.dtype = ""  # of weights and cache; "": float32 on CPU, else bfloat16
    c.chat = "template"  # its own form of a conversation
    c.thinking = False  # OWN: an execution is no thinking
    c.only = ""  # names of sets with commas between them: the others are left out of this call; "": all
    c.sets = ConfigDict()
    c.sets.math = one_set("deepscaler", samples=1, prompt="e2c")  # OWN; samples: solutions of a problem
    c.sets.math.where = "anywhere"  # of what is said after the thinking
    c.at_once = 1024  # problems that go through all phases together
    c.keep_responses = False  # True: responses/ stays

    c.solution = ConfigDict({"budget": 8192, "temperature": 0.7, "top_p": 0.8})  # Qwen's advice without thinking
    c.exploration = ConfigDict({"budget": 1024, "temperature": 0.7, "top_p": 0.8})
    c.re_execution = ConfigDict({"budget": 8192, "temperature": 0.7, "top_p": 0.8})

    c.fewest_steps, c.most_steps = 2, 12  # OWN: numbered lines of a plan
    c.most_plan_tokens = 512  # B.6: what a plan may have at test time
    c.most_execution_tokens = 3500  # OWN: with question and plan within configs/e2c.py's rows of 4,096
    c.least_followed = 0.75  # OWN: share of the plan's steps that the execution takes (rewards/plan.py followed)

    c.sampler = ConfigDict()
    c.sampler.temperature, c.sampler.top_p = 0.7, 0.8  # the phases have their own
    c.sampler.top_k = 20  # Qwen's advice
    c.sampler.slots = 512
    c.sampler.prefill_rows = 128
    c.sampler.tensor = 1
    c.sampler.block = 32
    c.sampler.cache = "compute"

    c.grader = ConfigDict({"workers": 8, "timeout_s": 10.0})
    return c
