"""Parts of benchmarks/ that nobody runs between two GPUs, and that call the trainer with arguments of their own."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.models.presets import preset
from e3jax.models.qwen3 import Qwen3, init_params
from e3jax.sharding import make_mesh


def test_an_update_is_timed(monkeypatch):
    """Guards against arguments of `update` that only a card's run would find missing."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    from ours import Ours
    from training import OurTrainer, make_work

    model = Qwen3(preset("tiny"), dtype=jnp.float32, remat="full", kernel="auto")
    params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    side = Ours(model, params, make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1]))
    work = make_work([[2, 3, 4]] * 2, np.array([[5, 9], [7, 4]]), model.config.vocab_size, seed=1)
    values = OurTrainer(side, chunk=64, room=8).update(work, rows=2, budget=16)
    assert np.isfinite(values["loss/pg"]) and values["optim/skipped"] == 0
    for name in ("training", "ours"):  # plain names, which another test may want for something else
        sys.modules.pop(name, None)
