"""What both trainers do between two steps: save, end at SIGTERM, and give up when no gradient is finite any more.

skips = Skips(run, stage, kind="sft", temperature=1.0, loss={})
skips.heed(step, skipped, state.params, lambda: [batch])
save_or_stop(run, store, stage, step, steps, state)
"""

import json
import math
from collections.abc import Callable

import jax
import numpy as np

from e3jax.checkpoint.store import Store, save_params
from e3jax.errors import Stopped, UserError
from e3jax.runtime import fetch, from_main, stop_asked
from e3jax.train.run import Run
from e3jax.types import TrainState


def save_or_stop(
    run: Run,
    store: Store,
    stage: str,
    step: int,
    steps: int,
    state: TrainState,
    *,
    rank: float = math.nan,
    beside: Callable[[], None] | None = None,
) -> None:
    """Start writing a checkpoint when it is time; where SIGTERM came, write this step's and raise Stopped.

    Where the write of an earlier step has used up the time that SIGTERM leaves, that one is what is kept. `beside()`
    writes what belongs to the checkpoint and is no array of it, before the checkpoint.
    """
    stop = stop_asked()
    if stop and step < steps and (saved := store.settled()) is not None:
        run.log.flush()
        raise Stopped(f"{stage}, step {saved} of {steps} is saved, and no time was left to save step {step}")
    if step % run.settings.checkpoint.every == 0 or step == steps or stop:
        run.log.flush()
        if beside:
            beside()
        store.save(step, state, rank=rank)
    if stop and step < steps:
        store.close(step, state)
        raise Stopped(f"{stage}, step {step} of {steps} is saved")


class Skips:
    """Count steps in a row whose gradients were not finite; stop at config.faults.most_skipped, the batch on disk."""

    def __init__(self, run: Run, stage: str, *, kind: str, temperature: float, loss: dict):
        self.run, self.stage, self.streak = run, stage, 0
        self.call = {"kind": kind, "temperature": temperature, "chunk": run.chunk, "loss": loss}

    def heed(self, step: int, skipped: bool, params, batches: Callable[[], list]) -> None:
        """`params` and `batches()` are those of the step, which changed nothing if it was skipped."""
        self.streak = self.streak + 1 if skipped else 0
        if self.streak < self.run.settings.faults.most_skipped:
            return
        self.run.log.flush()
        where = self.run.workdir / "replay" / f"{self.stage}-{step}"
        if not from_main(lambda: (where / "default").exists()):  # the same command came here before
            save_params(where, params)
        kept = fetch(batches())  # every process has a part
        from_main(lambda: dump(where, self.call, kept))
        raise UserError(
            f"{self.stage}: no gradient of the last {self.streak} steps was finite, up to step {step}, and the "
            f"parameters did not change: see python -m e3jax.tools.replay --dump={where}"
        )


def dump(where, call: dict, batches: list) -> None:
    """Micro-batches as batch-N.npz and how the gradient was called as call.json, beside the parameters."""
    for i, batch in enumerate(batches):
        arrays = [np.asarray(x) for x in jax.tree.leaves(batch)]
        with (where / f"batch-{i}.npz").open("wb") as file:
            np.savez_compressed(file, *arrays)
    (where / "call.json").write_text(json.dumps(call, indent=1) + "\n")
