"""One mesh, one strict table from axis letters to mesh axes, and a check that nothing is replicated silently.

A parameter's name ends with its axes (`wq_dnh`: model width, query heads, head width), and the table below says where
each letter lives. Activations use the capitals of types.py's legend (`constrain(x, "BTD")`). flax's resolver silently
turns a misspelt name into "replicated". Here an unknown letter, two letters on one mesh axis, a size that the mesh
does not divide, and more than 2 % replicated parameter bytes are errors.

    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, param_shardings(params, mesh))
        assert_sharded(params)
"""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from e3jax.errors import UserError

# letter -> mesh axis (None: replicated). Lower case: parameters. Capitals: activations, batch and cache.
AXES = {
    "l": None, "d": "fsdp", "n": "tensor", "k": "tensor", "h": None, "f": "tensor", "v": "tensor", "g": None, "e": None,
    "i": ("fsdp", "tensor"), "o": ("fsdp", "tensor"), "r": None,  # of adapters (models/lora.py)
    "b": "data",  # rows where the width has `fsdp` (constrain_lookup)
    "B": ("data", "fsdp"), "J": ("data", "fsdp"), "X": ("data", "fsdp"), "P": None, "T": None, "S": None, "L": None,
    "D": None, "N": "tensor", "K": "tensor", "H": None, "F": "tensor", "V": "tensor",
}  # fmt: skip


def slice_of(device) -> int:
    """Return the number of the TPU slice that a device belongs to; slices reach each other by the network only."""
    return (device.platform == "tpu" and getattr(device, "slice_index", 0)) or 0


def count_slices(devices=None) -> int:
    """Return how many TPU slices the devices belong to: what `data` has to be a multiple of."""
    return len({slice_of(d) for d in (jax.devices() if devices is None else devices)})


def make_mesh(*, data: int, fsdp: int, tensor: int, devices=None) -> Mesh:
    """Return a mesh [data, fsdp, tensor] over all devices; fsdp=-1 takes what the other two leave.

    Slices lie along `data`, so that fsdp and tensor communicate inside a slice only; UserError where they do not
    divide it. So do the hosts of a slice, where its part of `data` is a multiple of them.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp == -1:
        fsdp = len(devices) // (data * tensor)
    shape = (data, fsdp, tensor)
    if math.prod(shape) != len(devices):
        raise UserError(
            f"mesh data={data} x fsdp={fsdp} x tensor={tensor} needs {math.prod(shape)} devices, "
            f"but there are {len(devices)}: set mesh.fsdp=-1, or change mesh.data or mesh.tensor"
        )
    slices = {i: [d for d in devices if slice_of(d) == i] for i in sorted({slice_of(d) for d in devices})}
    if data % len(slices):
        raise UserError(
            f"mesh.data={data} is no multiple of the {len(slices)} TPU slices, so mesh.fsdp or mesh.tensor would send "
            f"weights over the network between them: set mesh.data={len(slices)}"
        )
    inner = (data // len(slices), fsdp, tensor)
    grid = np.concatenate([within_slice(inner, slices[i]) for i in slices])
    return Mesh(grid, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def within_slice(shape: tuple[int, int, int], devices: list) -> np.ndarray:
    """Return the devices of one slice as an array [data, fsdp, tensor]."""
    hosts = len({d.process_index for d in devices})
    if hosts > 1 and shape[0] % hosts == 0:
        return np.reshape(sorted(devices, key=lambda d: (d.process_index, d.id)), shape)
    axis_types = (AxisType.Auto,) * 3
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=axis_types, devices=devices).devices


def sampling_mesh(mesh: Mesh, *, tensor: int) -> Mesh:
    """Return the sampling mesh, of the same devices in the same order: matrices lie over `tensor`, slots over the rest.

    The table of letters stays as it is: `fsdp` has size 1 here, so what training splits over it is replicated.
    """
    devices = mesh.devices.reshape(-1)
    slices = count_slices(devices)
    if tensor < 1 or len(devices) // slices % tensor:
        of = f"{len(devices)} devices" if slices == 1 else f"the {len(devices) // slices} devices of a slice"
        raise UserError(f"config.sampler.tensor={tensor} does not divide {of}: use a divisor")
    return Mesh(devices.reshape(-1, 1, tensor), mesh.axis_names, axis_types=(AxisType.Auto,) * 3)


def each_slice(mesh: Mesh) -> Mesh:
    """Return the mesh of the same devices in the same order on which every slice does the same work.

    `data` lies within a slice there, so what is spread over it has a copy in each. Of one slice it is the mesh itself.
    """
    slices = count_slices(mesh.devices.flat)
    if slices == 1:
        return mesh
    data, fsdp, tensor = mesh.devices.shape
    grid = mesh.devices.reshape(slices, data // slices, fsdp, tensor)
    return Mesh(grid, ("slice", *mesh.axis_names), axis_types=(AxisType.Auto,) * 4)


def spec(axes: str, mesh) -> PartitionSpec:
    """Return the PartitionSpec of axis letters on a mesh, such as P("fsdp", "tensor") for "dnh".

    Mesh axes of size 1 and trailing Nones are left out, so that one layout has one spelling and jit does not trace
    twice.
    """
    unknown = [a for a in axes if a not in AXES]
    if unknown:
        raise KeyError(f"axis letters {unknown} of {axes!r} are not in sharding.AXES {sorted(AXES)}")
    placed = [AXES[a] for a in axes]
    flat = [m for p in placed if p for m in ((p,) if isinstance(p, str) else p)]
    if len(flat) != len(set(flat)):
        raise ValueError(f"two letters of {axes!r} land on one mesh axis: {dict(zip(axes, placed))}")

    def larger_than_one(where):
        names = (where,) if isinstance(where, str) else where or ()
        kept = tuple(name for name in names if mesh.shape[name] > 1)
        return (kept[0] if len(kept) == 1 else kept) or None

    placed = [larger_than_one(where) for where in placed]
    while placed and placed[-1] is None:
        placed.pop()
    return PartitionSpec(*placed)


def param_axes(path, array) -> str:
    """Return the axis letters in a parameter's name; parameters stacked by nn.scan have a leading layer axis."""
    names = [p.key for p in path if hasattr(p, "key")]
    axes = names[-1].rsplit("_", 1)[-1]
    if "layers" in names:
        axes = "l" + axes
    if len(axes) != array.ndim:
        raise ValueError(f"parameter {'/'.join(names)} has {array.ndim} axes, its name says {axes!r}")
    return axes


def param_shardings(params, mesh: Mesh):
    """Return the tree of NamedSharding for a parameter tree (arrays or ShapeDtypeStructs)."""

    def place(path, array):
        sharding = NamedSharding(mesh, spec(param_axes(path, array), mesh))
        try:
            sharding.shard_shape(array.shape)
        except ValueError as error:
            raise UserError(
                f"parameter {jax.tree_util.keystr(path)} {array.shape} does not divide over "
                f"{dict(mesh.shape)}: choose a smaller mesh axis ({error})"
            ) from error
        return sharding

    return jax.tree_util.tree_map_with_path(place, params)


def constrain(x: jax.Array, axes: str) -> jax.Array:
    """Pin an activation's layout inside jit; without a mesh (`jax.set_mesh`) this is the identity."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, spec(axes, mesh))


def constrain_lookup(x_btd: jax.Array) -> jax.Array:
    """Pin the layout of what was looked up in a table [V, D]: on its way from the table's layout to that of "BTD".

    Between them rows lie over `data` alone and the width over `fsdp`, as the table's. Without this stop the rows'
    gradients would go to every other replica of the table, instead of being added up in it first.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.shape["data"] > 1 and mesh.shape["fsdp"] > 1:
        x_btd = constrain(x_btd, "bTd")
    return constrain(x_btd, "BTD")


def constrain_params(tree):
    """Pin a tree that is shaped like the parameters inside jit; otherwise XLA returns gradients replicated."""
    return jax.tree_util.tree_map_with_path(lambda path, x: constrain(x, param_axes(path, x)), tree)


def assert_sharded(params, *, limit: float = 0.02) -> None:
    """Raise UserError when more than `limit` of the parameter bytes are whole on every device of a sharding mesh.

    Takes arrays or their shapes: `tools/aot.py` calls this before it compiles, the trainer once parameters are placed.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    mesh = leaves[0][1].sharding.mesh
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return  # one device, or plain data parallelism: replication is intended
    sizes = [(jax.tree_util.keystr(p), x.size * x.dtype.itemsize, x.sharding) for p, x in leaves]
    whole = [(name, size) for name, size, sharding in sizes if sharding.is_fully_replicated]
    share = sum(size for _, size in whole) / sum(size for _, size, _ in sizes)
    if share > limit:
        listing = ", ".join(f"{name} ({size} B)" for name, size in sorted(whole, key=lambda w: -w[1]))
        raise UserError(f"{share:.1%} of the parameter bytes are replicated (limit {limit:.0%}): {listing}")
