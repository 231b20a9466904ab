r"""Test-time scaling of E2C models (ALGORITHMS B.6): accuracy against tokens for eight methods.

    python -m e3jax.scaling.run --config=configs/e2c_scaling.py:rl2=runs/e2c-rl2/checkpoints/rl2/108 --workdir=runs/tts

Argument: checkpoints to compare, LABEL=CHECKPOINT with commas between them.
Hardware: not run, it needs a pod and a trained model; slots as for configs/e3_math.py's 128 chips.
Expected (B.7, the paper's, Qwen3-8B, AIME24, K = 32): SC 50.0 % with 86.2 thousand tokens, ToT 50.0 with 71.3, ReAct
53.3 with 12.4. On 30 problems that is one problem more.
Sources: B.n = E2C's paper and code, by section of the developers' notes; OWN = chosen here.
"""

from ml_collections import ConfigDict

from configs.eval_math import models_of, one_set


def get_config(argument: str = "rl2=runs/e2c-rl2/checkpoints/rl2/108"):
    c = ConfigDict()
    c.seed = 42  # B.6
    c.models = models_of(argument)
    c.dtype = ""  # of weights and cache; "": float32 on CPU, else bfloat16
    c.chat = "template"  # its own form of a conversation
    c.thinking = True  # the card's chat template, as it stands
    c.ks = (1, 4, 8, 16, 32)  # B.6
    c.methods = ("greedy", "sc", "tot", "all", "random", "select", "cluster", "react")
    c.only = ""  # names of sets with commas between them: the others are left out of this call; "": all
    c.sets = ConfigDict()
    c.sets.AIME24 = one_set("aime24", samples=32, prompt="e2c")  # samples: the largest K of this set
    c.sets.AIME24.where = "execution"  # rewards/plan.py, sound; "e2c_original" is the released grader, unsound

    c.words = True  # the model reads instructions; False: tiny models, which only know their tags
    c.plan_budget = 512  # B.6
    c.execution_budget = 16_384  # B.6, greedy
    c.thought = 256  # B.6: tokens of a thought of the tree
    c.tokens = 65_536  # through the model at once when plans are scored or embedded (OWN)

    c.judge = ConfigDict()
    c.judge.how = "words"  # B.6; "likelihood", "prompted" are ours (scaling/choosing.py)
    c.judge.budget = 512  # B.6

    c.cluster = ConfigDict()
    c.cluster.most = 3  # B.6: M
    c.cluster.seed = 42  # B.6
    c.cluster.encoder = "policy"  # OWN; B.6: GTE or mpnet, as "MODULE:FUNCTION" of yours

    c.react = ConfigDict()
    c.react.accept = "box"  # B.6
    c.react.rounds = 3  # B.6: refinements
    c.react.chunk = 256  # B.6
    c.react.tail = 3500  # B.6: characters
    c.react.refine_budget = 1024  # B.6
    c.react.refine_temperature = 0.3  # B.6
    c.react.explore_temperature = 0.95  # B.6
    c.react.rescue_budget = 64  # OWN

    c.sampler = ConfigDict()
    c.sampler.temperature = 0.9  # B.6, of plans; chains and thoughts too (OWN: not in the notes)
    c.sampler.top_p = 0.95  # B.6
    c.sampler.top_k = 0
    c.sampler.slots = 512
    c.sampler.prefill_rows = 128
    c.sampler.tensor = 1
    c.sampler.block = 32
    c.sampler.cache = "compute"

    c.grader = ConfigDict({"workers": 8, "timeout_s": 10.0})
    return c
