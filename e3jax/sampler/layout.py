"""From the training layout to the sampling layout, on the same devices, once per RL step.

Training splits every float32 parameter over `fsdp` and gathers a layer when it is used. A decode step needs every layer
for one token, so sampling has the matrices in place already: cast to the sampling dtype, replicated where they fit,
else split over a small `tensor` axis (`sharding.sampling_mesh`). Adapters are merged on the way (models/lora.py), so
that the sampler knows nothing of them.

On a GPU a decode step of a small model is a matter of how many kernels it has: there the layout has every layer's
matrices apart, so that none is sliced out of a stack, and q, k, v in one matrix, gate and up in another.

    with sampling_layout(params, tensor=1, dtype=model.dtype) as params:
        rollouts = sample(model, params, prompts, …)
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from e3jax.models.lora import Lora, merged, without
from e3jax.models.qwen3 import cast_matrices, join_products, unstack
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


def few_weights(params, dtype, lora: Lora | None):
    """Return the same in the layout of GPUs."""
    return few_kernels(merged(params, lora, dtype=dtype), dtype)


def few_kernels(params, dtype):
    """Return a copy for GPUs: matrices in `dtype`, layers apart, products of one input joined."""
    return unstack(join_products(cast_matrices(params, dtype)))


def mover(params, mesh: jax.sharding.Mesh, weights=None):
    """Return the program of `to_sampling`, of (params, dtype, lora), for arrays or shapes; traced once per layout.

    `weights`, one of the two functions above, instead of that for the mesh's devices.
    """
    weights = weights or (few_weights if mesh.devices.flat[0].platform == "gpu" else sampling_weights)
    shapes = jax.eval_shape(lambda params: weights(params, "float32", None), without(params))
    return jax.jit(weights, static_argnums=(1, 2), out_shardings=param_shardings(shapes, mesh))


def to_sampling(params, mesh: jax.sharding.Mesh, *, dtype, lora: Lora | None = None):
    """Return a copy of `params` with matrices in `dtype`, laid out over `mesh`, which has the same devices."""
    return mover(params, mesh)(params, dtype, lora)


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
