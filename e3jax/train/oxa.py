"""OXA's fine-tuning, and its baselines': equal shares of a promoted and a suppressed set in every step.

Path to the loss: configs/*.py -> train/curriculum.py -> here -> losses/oxa.py. The sets are files written by
curation/oxa_sets.py. A step takes the next `per_step` rows of either set, each in its own order: a permutation per
epoch, a function of (seed, epoch), the rest that does not fill a step left out (docs/algorithms.md, OXA). Without a
suppressed set it is SFT by sequence means, with SFT's loss and metrics: arms differ in their data alone.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from etils import epath

from e3jax.errors import UserError, need, need_at_least_one
from e3jax.losses.oxa import oxa_loss, pool_weights
from e3jax.models.qwen3 import Qwen3
from e3jax.rollout.likelihood import row_groups
from e3jax.storage import place
from e3jax.tasks.chat_tokens import encode_pair
from e3jax.tasks.rows import file_rows, is_place
from e3jax.tasks.stream import permutation
from e3jax.train.logprobs import forward, gradient_of, update_jit
from e3jax.train.packing import pack_examples
from e3jax.train.run import Run, Stage
from e3jax.train.sft import fit, sft_gradient

FIELDS = ("prompt", "response")  # of a row: texts as the model reads and writes them


class Pool(NamedTuple):
    """One set; texts, because tokens of 50,000 long responses fill a host's memory."""

    name: str
    rows: list[tuple[str, str]]  # prompt, response

    def at(self, step: int, *, per_step: int, seed: int) -> list[tuple[str, str]]:
        """The rows of a step: a function of its arguments."""
        steps = len(self.rows) // per_step  # of an epoch
        order, first = permutation(seed, step // steps, len(self.rows)), step % steps * per_step
        return [self.rows[i] for i in order[first : first + per_step]]


@partial(update_jit, static_argnames=("model", "chunk"))
def oxa_gradient(model: Qwen3, params, token_bt, position_bt, segment_bt, *weights_bt, chunk: int, ul_weight: float):
    """Return gradients and metrics of `oxa_loss` on packed rows; sums over micro-batches are the batch's."""

    def loss_of(params):
        logp, entropy = forward(
            model, params, token_bt, temperature=1.0, chunk=chunk, position_bt=position_bt, segment_bt=segment_bt
        )
        loss, metrics = oxa_loss(logp, entropy, *weights_bt, ul_weight=ul_weight)
        return loss, {"loss/total": loss, **{f"loss/{name}": value for name, value in metrics.items()}}

    return gradient_of(loss_of, params)


def read_pool(path: epath.PathLike, *, per_step: int) -> Pool:
    """A set of curation/oxa_sets.py; UserError when it is none, or smaller than a step's share."""
    rows = []
    for row in file_rows(place(path)):
        if row.wrong or not all(name in row.value and isinstance(row.value[name], str) for name in FIELDS):
            raise UserError(f"{path} {row.where}: {row.wrong or 'needs the texts ' + ' and '.join(FIELDS)}: mend it")
        rows.append(tuple(row.value[name] for name in FIELDS))
    if len(rows) < per_step:
        raise UserError(f"{path} has {len(rows)} rows, a step takes {per_step}: lower the stage's per_step")
    return Pool(str(path), rows)


@dataclass(frozen=True, kw_only=True)
class OxaStage(Stage):
    """Fine-tuning on files of curation/oxa_sets.py; without `suppress` it is plain fine-tuning on `promote`."""

    promote: str
    suppress: str  # "": none
    ul_weight: float  # of the suppressed set's unlikelihood; 0: off
    per_step: int  # examples of either set
    rows: int  # of a micro-batch
    row_length: int  # tokens

    def __post_init__(self):
        super().__post_init__()
        need(is_place(self.promote), "promote", self.promote, "a .jsonl file of curation/oxa_sets.py")
        need(not self.suppress or is_place(self.suppress), "suppress", self.suppress, "a file, or '' for none")
        need_at_least_one(self, "per_step", "rows", "row_length")
        need(self.ul_weight >= 0, "ul_weight", self.ul_weight, "use 0 (off) or more")


def make_batch(run: Run, pools: list[Pool], stage: OxaStage, step: int) -> list[list[np.ndarray]]:
    """Return the step's packed micro-batches: tokens, positions, segments and each pool's weights, [rows, width]."""
    tokenizer, examples, suppressed = run.tokenizer, [], []
    for index, pool in enumerate(pools):
        for prompt, response in pool.at(step, per_step=stage.per_step, seed=run.seed + index):
            one = encode_pair(prompt, response, encode=tokenizer.encode, end=tokenizer.eos, everything=False)
            if len(one.tokens) > stage.row_length:
                raise UserError(
                    f"{pool.name}: {len(one.tokens)} tokens of {response[:40]!r}… do not fit the stage's "
                    f"row_length={stage.row_length}: raise it, or select with fewer (config.most_tokens)"
                )
            examples.append(one)
            suppressed.append(index > 0)
    return pack_examples(
        examples,
        lambda mask_bt: pool_weights(mask_bt, np.array(suppressed))[: len(pools)],
        rows=stage.rows,
        width=stage.row_length,
        pad=tokenizer.pad,
        groups=row_groups(),
    )


def train(run: Run, params, stage: OxaStage):
    """Fine-tune `params`; return the final parameters. Without a suppressed set it is SFT, and is logged as that."""
    pools = [read_pool(path, per_step=stage.per_step) for path in (stage.promote, stage.suppress) if path]
    batch_of = partial(make_batch, run, pools, stage)
    if not stage.suppress:
        return fit(run, params, stage, kind="sft", batch_of=batch_of, gradient=sft_gradient, loss={})
    loss = {"ul_weight": stage.ul_weight}
    return fit(run, params, stage, kind="oxa", batch_of=batch_of, gradient=oxa_gradient, loss=loss)
