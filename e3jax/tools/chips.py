"""Accelerators that this machine's compiler can compile for, and what one of their devices can do at most.

The numbers are those of Google's system-architecture pages (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e), per chip, as
read in 2026; a v4 device is half a chip. Programs reach less. Nothing here was measured. The network between slices is
that of the same pages: 6.4 Tbit/s for a pod of 256 chips of v5e, 50 Gbit/s for a chip of v5p; None where they are
silent.
"""

from typing import NamedTuple

from e3jax.errors import UserError

GIB = 2**30


class Chip(NamedTuple):
    """What one device has and can do."""

    memory: float  # GiB
    flops: float  # FLOP/s in bfloat16
    bandwidth: float  # bytes/s of its memory
    links: float  # bytes/s to its neighbours, all links together
    network: float | None  # bytes/s to other slices, its share of the data-center network
    shapes: tuple[str, ...]  # slices that resolved with libtpu 0.0.52


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8")
CHIPS = {
    "v5e": Chip(16, 197e12, 819e9, 1600e9 / 8, 6.4e12 / 256 / 8, FLAT),
    "v6e": Chip(32, 918e12, 1640e9, 3584e9 / 8, None, FLAT),
    "v5p": Chip(95, 459e12, 2765e9, 4800e9 / 8, 50e9 / 8, CUBE),
    "v4": Chip(16, 275e12 / 2, 1228e9 / 2, 2400e9 / 8 / 2, None, CUBE),
}


def find_devices(topology: str, slices: int = 1) -> tuple[Chip, list]:
    """Return what one device of "v5e:8x16" can do, and the devices of so many slices, none of which needs to exist."""
    from jax.experimental import topologies  # libtpu, which this loads, reads its environment variables once

    known = "; ".join(f"{name}:{' '.join(chip.shapes)}" for name, chip in CHIPS.items())
    generation, _, shape = topology.partition(":")
    if generation.lower().startswith(("h100", "h200", "a100", "b200", "gpu", "cuda")):
        raise UserError(
            f"--topology={topology!r}: JAX {_version()} has no GPU topologies: its CUDA plugin answers 'No visible GPU "
            f"devices' on a machine without one, so a GPU program can only be compiled on a GPU; here: {known}"
        )
    if generation not in CHIPS or not shape:
        raise UserError(f"--topology={topology!r} is unknown; these resolve: {known}")
    several = {"num_slices": slices} if slices > 1 else {}
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **several)
        return CHIPS[generation], described.devices
    except RuntimeError as error:  # JaxRuntimeError
        if "libtpu" in str(error) or "not found" in str(error).lower():
            raise UserError(f"the TPU compiler is not installed ({error}): pip install libtpu") from error
        raise UserError(f"--topology={topology!r} does not resolve ({error}); these do: {known}") from error


def _version() -> str:
    import jax

    return jax.__version__
