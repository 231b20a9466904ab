r"""Probe the quickstart's checkpoints: e3 Def. 4.1, pass@k by chained attempts, App. G.1, KL to the base.

    R=runs/quickstart/checkpoints
    python -m e3jax.eval.probes --workdir=runs/probes \
        --config=configs/probes.py:base=$R/base/280,stage1=$R/easy/80,stage2=$R/hard/40

Argument: checkpoints in the order of training, LABEL=CHECKPOINT, separated by commas. KL is measured to the first one,
the base (another: --config.base=LABEL).
The paper's form on a real tokenizer (not run: no hub could be reached):
    --config.sets.probe.form=paper --config.close='</think>' --config.chains.closing=$'\n</think>\n<answer>'
    --config.chains.answer=32 --config.budget=2048 --config.sampler.temperature=0.6
Hardware and time: a laptop's CPU, about a minute of CPU time per model (two shared cores, JAX 0.10).
Expected (seed 0 of the quickstart): pass@1 after 0, 4 and 16 attempts 1, 11 and 16 % for the base model, 1, 17 and 41 %
after stage 1; KL to the base .12 nats per token; p(end) after a wrong attempt .25, then .01.
Sources: e3's code (docs/algorithms.md, Probes and pass@k by number of attempts).
"""

from ml_collections import ConfigDict

from configs import eval_countdown, eval_math


def get_config(argument: str = "runs/quickstart/checkpoints/hard/40"):
    c = ConfigDict()
    c.seed = 0
    c.models = eval_math.models_of(argument)
    c.base = c.models[0][0]  # label of the model to which KL is measured
    c.dtype, c.chat, c.thinking = "", "template", True  # as in configs/eval_math.py
    c.only = ""  # names of sets, separated by commas; this call leaves the others out. "": all
    c.sets = ConfigDict()
    c.sets.probe = eval_math.one_set((3, 4), form="calculator", prompt="", problems=96, samples=8)  # e3: 8 rollouts
    c.budget = 256  # tokens of a response, as Eq. 2 chose for the quickstart's second stage
    c.close = "<answer>"  # ends the thinking; in text it is "</think>"
    c.tokens = 8192  # so many go through the model at once when responses are scored
    c.sampler = eval_countdown.get_config().sampler

    c.chains = ConfigDict()
    c.chains.attempts = (0, 1, 2, 4, 8, 16)  # e3: 2, 4, 8, 16; 0 is an answer without any verification
    c.chains.rollouts = 4  # of a problem; e3: 8
    c.chains.completions = 8  # of a rollout, as e3
    c.chains.closing = "<answer>"  # put where the chain is cut; e3: "\n</think>\n<answer>"
    c.chains.end = "</answer>"  # ends a completion
    c.chains.answer = 12  # tokens; e3: 32
    c.chains.pass_ks = (1, 2, 4, 8, 16, 32)

    c.conditional = ConfigDict()
    c.conditional.rollouts = 4  # of a problem
    c.conditional.attempts = 8  # only the first so many of a rollout

    c.unique = ConfigDict()
    c.unique.most_success = 0.5  # e3 App. G.1 keeps problems with about this success rate or less
    c.grader = ConfigDict({"workers": 2, "timeout_s": 10.0})
    return c
