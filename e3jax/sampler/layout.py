"""From the training layout to the sampling layout, on the same devices, once per RL step.

Training splits every float32 master over `fsdp` and gathers a layer when it is used. A decode step needs every layer
for one token, so sampling wants the matrices there already: cast to the sampling dtype, replicated where they fit, else
split over a small `tensor` axis (`sharding.sampling_mesh`).

    with sampling_layout(params, tensor=1, dtype=model.dtype) as params:
        rollouts = sample(model, params, prompts, …)
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from e3jax.models.qwen3 import cast_matrices
from e3jax.sharding import param_shardings, sampling_mesh


@contextmanager
def sampling_layout(params, *, tensor: int, dtype) -> Iterator:
    """Within: the sampling mesh is set, and the value is `params` moved to it. Without a mesh nothing is moved."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        yield params
        return
    mesh = sampling_mesh(mesh, tensor=tensor)
    with jax.set_mesh(mesh):
        yield to_sampling(params, mesh, dtype=dtype)


def mover(params, mesh: jax.sharding.Mesh):
    """The program of `to_sampling` as a function of (params, dtype); arrays or shapes. Traced once a layout."""
    return jax.jit(cast_matrices, static_argnums=1, out_shardings=param_shardings(params, mesh))


def to_sampling(params, mesh: jax.sharding.Mesh, *, dtype):
    """A copy of `params` with matrices in `dtype`, laid out for `mesh`, whose devices are those of the masters."""
    return mover(params, mesh)(params, dtype)
