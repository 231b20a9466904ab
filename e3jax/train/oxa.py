"""OXA's fine-tuning, and its baselines': equal shares of a promoted and a suppressed set in every step.

Path to the loss: configs/*.py -> train/curriculum.py -> here -> losses/oxa.py. The sets are files written by
curation/oxa_sets.py. A step takes the next `per_step` rows of either set, each in its own order: a permutation per
epoch, a function of (seed, epoch), the rest that does not fill a step left out (ALGORITHMS C.4). Without a suppressed
set it is plain cross-entropy by sequence means: arms differ in their data alone.
"""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from e3jax.errors import UserError
from e3jax.losses.oxa import oxa_loss, pool_weights
from e3jax.models.qwen3 import Qwen3
from e3jax.rollout.likelihood import row_groups
from e3jax.sharding import constrain_params
from e3jax.storage import place
from e3jax.tasks.rows import file_rows
from e3jax.tasks.stream import permutation
from e3jax.train.logprobs import forward
from e3jax.train.packing import enough_rows, pack_micro_batches, row_widths
from e3jax.train.setup import Run
from e3jax.train.sft import fit

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


@partial(jax.jit, static_argnames=("model", "chunk"))
def oxa_gradient(
    model: Qwen3, params, token_bt, position_bt, segment_bt, promote_bt, suppress_bt, *, chunk: int, ul_weight: float
):
    """Gradients and metrics of `oxa_loss` on packed rows; sums over micro-batches are the batch's."""

    def loss_of(params):
        logp, entropy = forward(
            model, params, token_bt, temperature=1.0, chunk=chunk, position_bt=position_bt, segment_bt=segment_bt
        )
        loss, metrics = oxa_loss(logp, entropy, promote_bt, suppress_bt, ul_weight=ul_weight)
        return loss, {"loss/total": loss, **{f"loss/{name}": value for name, value in metrics.items()}}

    grads, metrics = jax.grad(loss_of, has_aux=True)(params)
    return constrain_params(grads), metrics


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


def make_batch(run: Run, pools: list[Pool], step: int, *, per_step: int, rows: int, row_length: int):
    """The step's packed micro-batches: tokens, positions, segments, weights of both pools, [rows, width] each."""
    encode, eos, pad = run.tokenizer.encode, run.tokenizer.eos, run.tokenizer.pad
    read, said, suppressed = [], [], []
    for index, pool in enumerate(pools):
        for prompt, response in pool.at(step, per_step=per_step, seed=run.seed + index):
            read.append(encode(prompt))
            said.append([*encode(response), eos])
            suppressed.append(index > 0)
            if len(read[-1]) + len(said[-1]) > row_length:
                raise UserError(
                    f"{pool.name}: {len(read[-1]) + len(said[-1])} tokens of {response[:40]!r}… do not fit the stage's "
                    f"row_length={row_length}: raise it, or select with fewer (config.most_tokens)"
                )
    lengths = np.array([len(p) + len(r) for p, r in zip(read, said)])
    token_bt = np.full((len(read), lengths.max()), pad, np.int32)
    mask_bt = np.zeros(token_bt.shape, np.float32)
    for i, (prompt, response) in enumerate(zip(read, said)):
        token_bt[i, : lengths[i]] = prompt + response
        mask_bt[i, len(prompt) : lengths[i]] = 1
    weights = [w.astype(np.float32) for w in pool_weights(mask_bt, np.array(suppressed))]
    return [
        [m.take(token_bt, pad), m.positions(), m.segments(), *(m.take(w) for w in weights)]
        for m in pack_micro_batches(
            lengths, rows=enough_rows(rows, len(lengths), groups=row_groups()), widths=row_widths(row_length)
        )
    ]


def train(
    run: Run,
    params,
    *,
    stage: str,
    stage_index: int,
    first_step: int,
    promote: str,
    suppress: str,
    ul_weight: float,
    per_step: int,
    steps: int,
    lr: float,
    warmup: int,
    rows: int,
    row_length: int,
    optim: dict,
):
    """Fine-tune `params` for `steps`; `suppress` "" is without a suppressed set. Returns the final parameters."""
    pools = [read_pool(path, per_step=per_step) for path in (promote, suppress) if path]
    return fit(
        run,
        params,
        stage=stage,
        kind="oxa",
        first_step=first_step,
        steps=steps,
        lr=lr,
        warmup=warmup,
        optim=optim,
        batch_of=partial(make_batch, run, pools, per_step=per_step, rows=rows, row_length=row_length),
        gradient=oxa_gradient,
        loss={"ul_weight": ul_weight},
    )
