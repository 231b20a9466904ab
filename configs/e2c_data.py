"""Make E2C's causal data with Qwen3-8B on e3's easy and medium problems (docs/algorithms.md, Causal data).

    python -m e3jax.curation.e2c --config=configs/e2c_data.py --workdir=gs://BUCKET/e2c-data
    another model or set:  --config=configs/e2c_data.py:writer=CHECKPOINT --config.sets.math.source=sets/mine.jsonl

Hardware: not run, because it needs a pod; slots are those for the 128 chips of configs/e3_math.py.
Expected: the published set has 58 thousand rows; how many solutions they were made from is not known.
Sources: E2C's code; "ours" was chosen here, since prompts, filters and sampling settings of the data were not found.
"""

from ml_collections import ConfigDict

from configs.eval_math import models_of, one_set


def get_config(argument: str = "writer=Qwen/Qwen3-8B"):
    c = ConfigDict()
    c.seed = 42  # that of the code's split
    c.models = models_of(argument)  # one (label, RUN/checkpoints/STAGE/STEP or a Hugging Face directory or a hub id)
    c.dtype = ""  # of weights and cache; "": float32 on CPU, else bfloat16
    c.chat = "template"  # the model's own
    c.thinking = False  # ours: an execution is not a thought
    c.only = ""  # names of sets, separated by commas; this call leaves the others out. "": all
    c.sets = ConfigDict()
    c.sets.math = one_set("deepscaler", samples=1, prompt="e2c")  # ours; samples: solutions per problem
    c.sets.math.where = "anywhere"  # in the text after the thinking
    c.at_once = 1024  # problems that pass through all phases together
    c.keep_responses = False  # True keeps responses/

    c.solution = ConfigDict({"budget": 8192, "temperature": 0.7, "top_p": 0.8})  # Qwen's advice without thinking
    c.exploration = ConfigDict({"budget": 1024, "temperature": 0.7, "top_p": 0.8})
    c.re_execution = ConfigDict({"budget": 8192, "temperature": 0.7, "top_p": 0.8})

    c.fewest_steps, c.most_steps = 2, 12  # ours: numbered lines of a plan
    c.most_plan_tokens = 512  # code: what a plan may have at test time
    c.most_execution_tokens = 3500  # ours: with question and plan it fits into the rows of 4,096 in configs/e2c.py
    c.least_followed = 0.75  # ours: share of the plan's steps that the execution takes (rewards/plan.py followed)

    c.sampler = ConfigDict()
    c.sampler.temperature, c.sampler.top_p = 0.7, 0.8  # each phase has its own, above
    c.sampler.top_k = 20  # Qwen's advice
    c.sampler.slots = 512
    c.sampler.prefill_rows = 128
    c.sampler.tensor = 1
    c.sampler.block = 32
    c.sampler.cache = "compute"

    c.grader = ConfigDict({"workers": 8, "timeout_s": 10.0})
    return c
