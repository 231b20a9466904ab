"""From the training layout to the sampling layout, on the same devices, once per RL step.

Training splits every float32 parameter over `fsdp` and gathers a layer when it is used. A decode step needs every layer
for one token, so sampling has the matrices in place already: cast to the sampling dtype, replicated where they fit,
else split over a small `tensor` axis (`sharding.sampling_mesh`).

On a GPU a decode step of a small model is a matter of how many kernels it has: there the layout has every layer's
matrices apart, so that none is sliced out of a stack, and q, k, v in one matrix, gate and up in another.

    with sampling_layout(params, tensor=1, dtype=model.dtype) as params:
        rollouts = sample(model, params, prompts, …)
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from e3jax.models.qwen3 import cast_matrices, join_products, unstack
from e3jax.sharding import param_shardings, sampling_mesh


@contextmanager
def sampling_layout(params, *, tensor: int, dtype) -> Iterator:
    """Set the sampling mesh within the block, and yield `params` moved to it; without a mesh nothing is moved."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        yield params
        return
    mesh = sampling_mesh(mesh, tensor=tensor)
    with jax.set_mesh(mesh):
        yield to_sampling(params, mesh, dtype=dtype)


def few_kernels(params, dtype):
    """Return a copy for GPUs: matrices in `dtype`, layers apart, products of one input joined."""
    return unstack(join_products(cast_matrices(params, dtype)))


def mover(params, mesh: jax.sharding.Mesh, layout=None):
    """Return the program of `to_sampling`, of (params, dtype), for arrays or shapes; it is traced once per layout.

    `layout`, a function of (params, dtype), instead of that of the mesh's devices.
    """
    layout = layout or (few_kernels if mesh.devices.flat[0].platform == "gpu" else cast_matrices)
    shapes = jax.eval_shape(lambda params: layout(params, "float32"), params)
    return jax.jit(layout, static_argnums=1, out_shardings=param_shardings(shapes, mesh))


def to_sampling(params, mesh: jax.sharding.Mesh, *, dtype):
    """Return a copy of `params` with matrices in `dtype`, laid out over `mesh`, which has the same devices."""
    return mover(params, mesh)(params, dtype)


def of_prefill_and_decoding(params, dtype, *, platform: str) -> tuple:
    """Return the parameters that prefills read and those that decoding reads, on the mesh that is set.

    One copy for both, but for a CPU: it loops over stacked layers in a prefill, which compiles faster, and has them
    apart in decoding. `params` may be in the layout already.
    """
    if platform == "gpu":
        params = params if "layers" not in params else jax.jit(few_kernels, static_argnums=1)(params, dtype)
        return params, params
    params = cast_matrices(params, dtype)  # once, not at every token
    return params, unstack(params) if platform == "cpu" else params
