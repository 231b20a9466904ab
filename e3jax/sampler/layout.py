"""From the training layout to the sampling layout, on the same devices, once per RL step.

Training splits every float32 parameter over `fsdp` and gathers a layer when it is used. A decode step needs every layer
for one token, so sampling has the matrices in place already: cast to the sampling dtype, replicated where they fit,
else split over a small `tensor` axis (`sharding.sampling_mesh`). Adapters are merged on the way (models/lora.py), so
that the sampler knows nothing of them.

    with sampling_layout(params, tensor=1, dtype=model.dtype) as params:
        rollouts = sample(model, params, prompts, …)
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from e3jax.models.lora import Lora, merged, without
from e3jax.models.qwen3 import cast_matrices
from e3jax.sharding import param_shardings, sampling_mesh


@contextmanager
def sampling_layout(params, *, tensor: int, dtype, lora: Lora | None = None) -> Iterator:
    """Set the sampling mesh within the block, and yield `params` moved to it; without a mesh nothing is moved."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        yield merged(params, lora, dtype=dtype)
        return
    mesh = sampling_mesh(mesh, tensor=tensor)
    with jax.set_mesh(mesh):
        yield to_sampling(params, mesh, dtype=dtype, lora=lora)


def sampling_weights(params, dtype, lora: Lora | None):
    """Return matrices in `dtype`, with adapters merged into them in float32 first."""
    return cast_matrices(merged(params, lora, dtype=dtype), dtype)


def mover(params, mesh: jax.sharding.Mesh):
    """Return the program of `to_sampling`, of (params, dtype, lora), for arrays or shapes; traced once per layout."""
    return jax.jit(sampling_weights, static_argnums=(1, 2), out_shardings=param_shardings(without(params), mesh))


def to_sampling(params, mesh: jax.sharding.Mesh, *, dtype, lora: Lora | None = None):
    """Return a copy of `params` with matrices in `dtype`, laid out over `mesh`, which has the same devices."""
    return mover(params, mesh)(params, dtype, lora)
