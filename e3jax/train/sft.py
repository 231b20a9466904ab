"""Supervised stages: cross-entropy on packed rows of train/examples.py.

Path to the loss: configs/*.py -> train/curriculum.py -> here -> losses/sft.py.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.losses.sft import sft_loss, sft_weights
from e3jax.models.qwen3 import Qwen3
from e3jax.runtime import put
from e3jax.sharding import constrain_params
from e3jax.train.examples import Examples
from e3jax.train.faults import Skips, save_or_stop
from e3jax.train.packing import pack_rows
from e3jax.train.setup import Run
from e3jax.train.state import apply_gradients, learning_rate, make_optimizer, new_state
from e3jax.train.steps import forward


@partial(jax.jit, static_argnames=("model", "chunk"))
def sft_gradient(model: Qwen3, params, token_bt, position_bt, segment_bt, weight_bt, *, chunk: int):
    """Gradients and metrics of cross-entropy on packed rows (`segment_bt` keeps neighbours apart)."""

    def loss_of(params):
        logp, entropy = forward(
            model, params, token_bt, temperature=1.0, chunk=chunk,
            position_bt=position_bt, segment_bt=segment_bt,
        )  # fmt: skip
        loss = sft_loss(logp, weight_bt)
        share = weight_bt / jnp.maximum(weight_bt.sum(), 1e-9)
        return loss, {"loss/total": loss, "loss/entropy": (share * entropy).sum()}

    grads, metrics = jax.grad(loss_of, has_aux=True)(params)
    return constrain_params(grads), metrics


def train(
    run: Run, params, *, stage: str, stage_index: int, first_step: int, examples: Examples, steps: int, lr: float,
    warmup: int, rows: int, row_length: int, aggregation: str, optim: dict,
):  # fmt: skip
    """Train `params` for `steps`; resumes from the stage's newest checkpoint. Returns the final parameters."""
    tx, store = make_optimizer(lr=lr, warmup=warmup, decay_steps=steps, **optim), run.store(stage)
    done, state = store.newest(new_state(tx, params))
    run.log.rewind(stage, done)
    skips = Skips(run, stage, kind="sft", temperature=1.0, loss={})

    def batch_of(step: int) -> list[np.ndarray]:
        """Tokens, positions, segments and weights of a step."""
        data = examples(stage_index, step, first_step + step)
        *packed, mask = pack_rows(data, rows=rows, length=row_length, pad=run.tokenizer.pad)
        return [*packed, sft_weights(mask, aggregation=aggregation)]

    with run.log.phase(f"{stage}: SFT", total=steps) as phase:
        phase.advance(done)
        logged, since = time.monotonic(), 0
        batch = batch_of(done) if done < steps else None
        for step in range(done, steps):
            grads, metrics = sft_gradient(run.model, state.params, *(put(x, "BT") for x in batch), chunk=run.chunk)
            state, update = apply_gradients(tx, state, grads)
            this, batch = batch, batch_of(step + 1)  # while the device works
            skips.heed(step + 1, update["skipped"] == 1, state.params, lambda this=this: [this])
            since += 1
            if (step + 1) % 10 == 0 or step + 1 == steps:
                values = {name: float(value) for name, value in metrics.items()}
                values |= {f"optim/{name}": float(value) for name, value in update.items()}
                seconds, logged = (time.monotonic() - logged) / since, time.monotonic()
                values |= {
                    "optim/lr": learning_rate(state),
                    "time/step_s": seconds,
                    "time/tokens_per_s": (this[2] > 0).sum() / seconds,
                }
                run.log.metrics(stage, "sft", step=step + 1, global_step=first_step + step + 1, values=values)
                phase.advance(since, f"loss {values['loss/total']:.3f}")
                since = 0
            save_or_stop(run, store, stage, step + 1, steps, state)
    store.close(steps, state)
    return state.params
