"""Supervised stages: cross-entropy on packed rows of train/examples.py, and the loop that all supervised stages share.

Path to the loss: configs/*.py -> train/curriculum.py -> here -> losses/sft.py; OXA's by way of train/oxa.py.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.errors import need_at_least_one, need_choice
from e3jax.losses.sft import sft_loss, sft_weights
from e3jax.models.lora import trained, with_trained
from e3jax.models.qwen3 import Qwen3
from e3jax.rollout.likelihood import row_groups
from e3jax.runtime import memory_used, put
from e3jax.train.examples import SetData, open_examples
from e3jax.train.faults import Skips, save_or_stop
from e3jax.train.logprobs import forward, gradient_of, update_jit
from e3jax.train.packing import enough_rows, pack_rows
from e3jax.train.run import Run, Stage
from e3jax.train.state import apply_gradients, learning_rate, make_optimizer, new_state


@partial(update_jit, static_argnames=("model", "chunk"))
def sft_gradient(model: Qwen3, params, token_bt, position_bt, segment_bt, weight_bt, *, chunk: int):
    """Gradients and metrics of cross-entropy on packed rows (`segment_bt` keeps neighbours apart)."""

    def loss_of(params):
        logp, entropy = forward(
            model, params, token_bt, temperature=1.0, chunk=chunk, position_bt=position_bt, segment_bt=segment_bt
        )
        loss = sft_loss(logp, weight_bt)
        share = weight_bt / jnp.maximum(weight_bt.sum(), 1e-9)
        return loss, {"loss/total": loss, "loss/entropy": (share * entropy).sum()}

    return gradient_of(loss_of, params)


@dataclass(frozen=True, kw_only=True)
class SftStage(Stage):
    """A supervised stage: config.sft and what the stage says. It learns from `traces` of a source, or from `data`."""

    rows: int  # of a step
    row_length: int  # tokens
    aggregation: str  # losses/sft.py
    position_gap: int  # responses start up to so many positions late …
    gap_rate: float  # … this often (train/examples.py)
    source: Any = None  # which problems the traces are of
    traces: Any = None  # habits of the synthetic base policy: the dataclass of the task (tasks/table.py)
    data: SetData | None = None

    def __post_init__(self):
        super().__post_init__()
        need_at_least_one(self, "rows", "row_length")
        need_choice(self, "aggregation", ("token_mean", "sequence_mean"))


def train(run: Run, params, stage: SftStage):
    """Train `params` on the stage's examples; return the final parameters."""
    examples = open_examples(run, stage)

    def batch_of(step: int) -> list[list[np.ndarray]]:
        """Return tokens, positions, segments and weights of a step: one micro-batch."""
        data = examples(stage.index, step, stage.first_step + step)
        most = enough_rows(stage.rows, len(data), groups=row_groups()) if isinstance(data, list) else stage.rows
        *packed, mask = pack_rows(data, rows=most, length=stage.row_length, pad=run.tokenizer.pad)
        return [[*packed, sft_weights(mask, aggregation=stage.aggregation)]]

    return fit(run, params, stage, kind="sft", batch_of=batch_of, gradient=sft_gradient, loss={})


@partial(jax.jit, donate_argnums=0)
def add(total, more):
    """Gradients and metrics of two micro-batches together: sums."""
    return jax.tree.map(jnp.add, total, more)


def ahead(make: Callable[[int], Any], numbers: Iterable[int], most: int = 2) -> Iterator[tuple[int, Any]]:
    """Yield (n, make(n)) in order; a thread makes up to `most` of them ahead, on the caller's mesh.

    What `make` raises is raised where its n would come.
    """
    mesh, waiting = jax.sharding.get_mesh(), deque()

    def on_mesh(n: int):
        with nullcontext() if mesh.empty else jax.set_mesh(mesh):  # a thread begins without one
            return make(n)

    pool = ThreadPoolExecutor(1)
    try:
        for n in numbers:
            waiting.append((n, pool.submit(on_mesh, n)))
            if len(waiting) > most:
                n, first = waiting.popleft()
                yield n, first.result()
        for n, last in waiting:
            yield n, last.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def fit(
    run: Run,
    params,
    stage: Stage,
    *,
    kind: str,
    batch_of: Callable[[int], list[list[np.ndarray]]],
    gradient: Callable,
    loss: dict,
    measure: Callable[[Any], dict[str, float]] | None = None,
):
    """Run the loop of every supervised stage; resume from its newest checkpoint. Return the final parameters.

    `measure(params)`: what else a logged line says of the parameters after its step.
    `batch_of(step)`: the step's micro-batches, each the arrays [B, T] that `gradient` takes after the parameters:
    tokens, positions, segments and weights over the whole batch, so that gradients and metrics are sums.
    """
    name, steps = stage.name, stage.steps
    tx = make_optimizer(run.optim, lr=stage.lr, warmup=stage.warmup, decay_steps=steps)
    store = run.store(name)
    done, state = store.newest(new_state(tx, trained(params)))
    run.log.rewind(name, done)
    skips = Skips(run, name, kind=kind, temperature=1.0, loss=loss)
    with run.log.phase(f"{name}: {kind.upper()}", total=steps) as phase:
        phase.advance(done)
        logged, since, tokens = time.monotonic(), 0, 0
        for step, batch in ahead(batch_of, range(done, steps)):
            total = None
            for micro in batch:
                placed = [put(x, "BT") for x in micro]
                more = gradient(run.model, with_trained(params, state.params), *placed, chunk=run.chunk, **loss)
                total = more if total is None else add(total, more)
            grads, metrics = total
            state, update = apply_gradients(tx, state, grads)
            policy = with_trained(params, state.params)
            skips.heed(step + 1, update["skipped"] == 1, policy, lambda batch=batch: batch)
            since, tokens = since + 1, tokens + sum(int((micro[2] > 0).sum()) for micro in batch)
            if (step + 1) % 10 == 0 or step + 1 == steps:
                values = {key: float(value) for key, value in metrics.items()}
                values |= {f"optim/{key}": float(value) for key, value in update.items()}
                seconds, logged = time.monotonic() - logged, time.monotonic()
                values |= {
                    "optim/lr": learning_rate(state),
                    "time/step_s": seconds / since,
                    "time/tokens_per_s": tokens / seconds,
                }
                values |= (measure(policy) if measure else {}) | memory_used()
                run.log.metrics(name, kind, step=step + 1, global_step=stage.first_step + step + 1, values=values)
                phase.advance(since, f"loss {values['loss/total']:.3f}")
                since, tokens = 0, 0
            save_or_stop(run, store, name, step + 1, steps, state)
    store.close(steps, state)
    return with_trained(params, state.params)
