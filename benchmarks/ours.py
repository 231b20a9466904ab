"""e3jax as the benchmarks run it, through its public functions; imports neither torch nor Tunix.

side = load("/tmp/e3jax-bench/17m")
rollouts, stats = roll(side, prompts, length_pg, key=0, slots=32, block=16, prefill_rows=8)
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.checkpoint.hf import load_hf
from e3jax.checkpoint.hf_config import read_config
from e3jax.models.qwen3 import Qwen3, abstract_params, unembedding
from e3jax.sampler.layout import sampling_layout
from e3jax.sampler.plan import Sampling
from e3jax.sampler.slots import Events, Requests, sample
from e3jax.sharding import make_mesh
from e3jax.types import Rollouts

PAD = 0
# of the update, on every side
LR, BETAS, DECAY, GRAD_CLIP = 1e-6, (0.9, 0.95), 0.01, 1.0
CLIP = 0.2


class Ours(NamedTuple):
    """The model as training has it: float32 masters laid out on a mesh of all devices."""

    model: Qwen3
    params: Any
    mesh: jax.sharding.Mesh


def load(directory, *, remat: str = "full", dtype: str = "float32", params_dtype: str = "float32") -> Ours:
    """From safetensors; `remat` matters to the update only."""
    mesh = make_mesh(data=1, fsdp=-1, tensor=1)
    model = Qwen3(read_config(directory), dtype=jnp.dtype(dtype), remat=remat, kernel="auto")
    return Ours(model, load_hf(directory, abstract_params(model, mesh, dtype=params_dtype)), mesh)


def logits(side: Ours, token_bt: np.ndarray) -> np.ndarray:
    """[B, T, V] of a few short rows, without padding."""
    position_bt = jnp.broadcast_to(jnp.arange(token_bt.shape[1]), token_bt.shape)
    hidden, _ = side.model.apply({"params": side.params}, jnp.asarray(token_bt), position_bt)
    return np.asarray(hidden @ unembedding(side.params).T)


def roll(
    side: Ours,
    prompts,
    length_pg: np.ndarray | None,
    *,
    key: int,
    slots: int,
    block: int,
    prefill_rows: int,
    samples: int | None = None,
    budget: int | None = None,
    stop=(),
    params=None,
) -> tuple[Rollouts, dict]:
    """Responses of exactly `length_pg` tokens (a budget each), or `samples` up to `budget` that end at `stop`."""
    stats = {}
    each, most = samples or length_pg.shape[1], budget or length_pg.reshape(-1).tolist()
    requests = Requests(prompts, range(len(prompts)), each, most)
    with jax.set_mesh(side.mesh):
        with sampling_layout(side.params if params is None else params, tensor=1, dtype=side.model.dtype) as moved:
            rollouts = sample(
                side.model,
                moved,
                requests,
                Sampling(temperature=1.0, slots=slots, block=block, prefill_rows=prefill_rows),
                key=jax.random.key(key),
                stop=stop,
                pad=PAD,
                events=Events(stats=stats),
            )
    if length_pg is not None:
        assert np.array_equal(rollouts.length - rollouts.prompt_len, length_pg.reshape(-1)), "lengths not as recorded"
    once = sum(map(len, prompts))
    assert stats["prefilled"] == once, f"{stats['prefilled']} prompt tokens prefilled, not {once}: once per prompt"
    stats["occupancy"] = None if math.isnan(stats["occupancy"]) else float(stats["occupancy"])
    return rollouts, stats


def peak_memory() -> int:
    """Most bytes that this process ever held resident; not its parent's, which `getrusage` mixes in after a fork."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
