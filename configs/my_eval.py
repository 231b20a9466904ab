"""Evaluate models on questions of your own, with a grader of your own where you have one (docs/your-own.md).

    python -m e3jax.eval.run --config=configs/my_eval.py:runs/my-grpo/checkpoints/rl/50 --workdir=runs/my-eval \
        --config.sets.mine.source=questions.jsonl --config.reward=my_rewards.py:is_short
    before and after:  --config=configs/my_eval.py:before=Qwen/Qwen3-0.6B,after=runs/my-grpo/checkpoints/rl/50

A model is a hub id, a directory or a checkpoint of a run; the set a file, a hub id or a prepared set, as in my_grpo.py.
Without a grader of your own, answers are compared with the set's as mathematics. Every response is kept: with a changed
grader the same command grades them again, without sampling.

Not tuned: small numbers for one small device. Time: docs/your-own.md.
"""

from configs import eval_math


def get_config(argument: str = "HuggingFaceTB/SmolLM2-135M-Instruct"):
    c = eval_math.get_config(argument)
    c.sets = {"mine": eval_math.one_set("questions.jsonl", prompt="", samples=4)}  # responses to each question
    c.sets.mine.where = "anywhere"  # a box counts without a </think>; "response" for models that think
    c.reward = ""
    c.budgets = (128, 256)  # tokens; the last is generated, the others are read off it
    c.pass_ks = (1, 2, 4)
    c.train_budget = 0
    c.sampler.temperature, c.sampler.top_p, c.sampler.top_k = 1.0, 1.0, 0  # as my_grpo.py trains
    c.sampler.slots, c.sampler.prefill_rows = 64, 8
    c.grader.workers = 2
    return c
