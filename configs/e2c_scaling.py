r"""Scale E2C models at test time: accuracy against tokens for eight methods (docs/algorithms.md, Test-time scaling).

    python -m e3jax.scaling.run --config=configs/e2c_scaling.py:rl2=runs/e2c-rl2/checkpoints/rl2/108 --workdir=runs/tts

Argument: the checkpoints to compare, LABEL=CHECKPOINT, separated by commas.
Hardware: not run, because it needs a pod and a trained model; slots are those for the 128 chips of configs/e3_math.py.
Expected (the authors', Qwen3-8B, AIME24, K = 32): self-consistency 50.0 % with 86.2 thousand tokens, tree of thoughts
50.0 with 71.3, ReAct 53.3 with 12.4. On 30 problems that is one problem more.
Sources: "code" = E2C's scripts for test-time scaling; "ours" was chosen here.
"""

from ml_collections import ConfigDict

from configs.eval_math import models_of, one_set


def get_config(argument: str = "rl2=runs/e2c-rl2/checkpoints/rl2/108"):
    c = ConfigDict()
    c.seed = 42  # code
    c.models = models_of(argument)
    c.dtype = ""  # of weights and cache; "": float32 on CPU, else bfloat16
    c.chat = "template"  # the model's own
    c.thinking = True  # the card's chat template, as it stands
    c.ks = (1, 4, 8, 16, 32)  # code
    c.methods = ("greedy", "sc", "tot", "all", "random", "select", "cluster", "react")
    c.only = ""  # names of sets, separated by commas; this call leaves the others out. "": all
    c.sets = ConfigDict()
    c.sets.AIME24 = one_set("aime24", samples=32, prompt="e2c")  # samples: the largest K of this set
    c.sets.AIME24.where = "execution"  # rewards/plan.py, sound; "e2c_original" is the released grader, unsound

    c.words = True  # the model reads instructions; False: a tiny model, which knows only its tags
    c.plan_budget = 512  # code
    c.execution_budget = 16_384  # code; greedy
    c.thought = 256  # code: tokens of one thought of the tree
    c.tokens = 65_536  # go through the model at once when plans are scored or embedded (ours)

    c.judge = ConfigDict()
    c.judge.how = "words"  # code; "likelihood" and "prompted" are ours (scaling/choosing.py)
    c.judge.budget = 512  # code

    c.cluster = ConfigDict()
    c.cluster.most = 3  # code: M
    c.cluster.seed = 42  # code
    c.cluster.encoder = "policy"  # ours; the code's are GTE or mpnet: give "MODULE:FUNCTION" of yours

    c.react = ConfigDict()
    c.react.accept = "box"  # code
    c.react.rounds = 3  # code: refinements
    c.react.chunk = 256  # code: tokens
    c.react.tail = 3500  # code: characters
    c.react.refine_budget = 1024  # code
    c.react.refine_temperature = 0.3  # code
    c.react.explore_temperature = 0.95  # code
    c.react.rescue_budget = 64  # ours

    c.sampler = ConfigDict()
    c.sampler.temperature = 0.9  # code, for plans; ours for chains and thoughts, whose temperature was not found
    c.sampler.top_p = 0.95  # code
    c.sampler.top_k = 0
    c.sampler.slots = 512
    c.sampler.prefill_rows = 128
    c.sampler.tensor = 1
    c.sampler.block = 32
    c.sampler.cache = "compute"

    c.grader = ConfigDict({"workers": 8, "timeout_s": 10.0})
    return c
