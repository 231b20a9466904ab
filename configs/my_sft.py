"""Fine-tune a model on conversations of your own (docs/your-own.md).

    python -m e3jax.train.curriculum --config=configs/my_sft.py --workdir=runs/my-sft \
        --config.model.name=HuggingFaceTB/SmolLM2-135M-Instruct --config.stages.sft.data=chats.jsonl

The model is a hub id, a directory or a checkpoint of a run. The data are a .jsonl, .json, .csv or .parquet file, .gz
too, a hub id OWNER/NAME[@SPLIT] or a prepared set; the log says how its rows were read. Memory grows with rows x
row_length: halve rows, or row_length, where it does not suffice.

Not tuned: lr and warmup are usual ones for fine-tuning all weights of a small model. Time: docs/your-own.md.
"""

from configs.common import base_config, chats_stage


def get_config():
    c = base_config()
    c.model.name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    c.task.form = "math"  # sets of questions, should this run evaluate
    c.order = ("sft",)
    c.stages.sft = chats_stage(
        data="chats.jsonl",
        held_out=0,  # conversations whose loss is logged, and which are not trained on
        steps=100,  # the log says how many epochs that is
        per_step=16,  # examples
        lr=1e-5,
        warmup=5,
        rows=8,  # of a micro-batch
        row_length=1024,  # tokens; longer examples are left out, which the log says
    )
    return c
