"""Train a model with RL on questions and a reward of your own (docs/your-own.md).

    python -m e3jax.train.curriculum --config=configs/my_grpo.py --workdir=runs/my-grpo \
        --config.model.name=runs/my-sft/checkpoints/sft/100 --config.stages.rl.set=questions.jsonl \
        --config.task.reward=my_rewards.py:is_short

The model is a hub id, a directory or a checkpoint of a run; the set a .jsonl, .json, .csv or .parquet file, .gz too, a
hub id OWNER/NAME[@SPLIT] or a prepared set. Without a reward, answers are compared with the set's as mathematics, and
the prompt asks for a \\boxed{} one.

Not tuned: small numbers for one small device. Time: docs/your-own.md.
"""

from configs.common import base_config, grpo_stage


def get_config():
    c = base_config()
    c.model.name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    c.task.form = "math"  # a set of questions
    c.task.where = "anywhere"  # a box counts without a </think>; "response" for models that think
    c.task.prompt_room = 0  # as long as the longest prompt
    c.task.reward = ""
    c.order = ("rl",)
    c.stages.rl = grpo_stage(set="questions.jsonl", budget=256, steps=50, lr=1e-6, evaluated=False)
    c.grpo.prompts, c.grpo.group_size = 8, 8  # 64 responses a step
    c.grpo.minibatches = 1  # on-policy
    c.grpo.rows = 8  # of a micro-batch
    c.sampler.slots, c.sampler.prefill_rows = 64, 8
    return c
