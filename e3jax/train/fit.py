"""Sizes that follow from a device's memory, where a config leaves them to it, and errors where memory is too small.

    device = this_device()
    settings, said = fit(settings, shape, device, room=145)       # grpo.rows=0, model.remat="auto"
    slots_that_fit(settings, shape, device, room=145, budget=512)  # sampler.slots=0

Estimates from shapes alone, in bytes a device, so that every start on the same device compiles the same programs. What
they leave out is inside the tenth of the memory that nothing here uses. benchmarks/memory_estimate.py compares them
with the compiler's plans (docs/memory.md). No result depends on these sizes, but for the order of additions.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from e3jax.errors import UserError
from e3jax.models.lora import num_adapter_params, sides
from e3jax.models.pages import MERGED, PAGE
from e3jax.models.presets import ModelConfig, num_params
from e3jax.sampler.plan import prompt_width
from e3jax.train.grpo import GrpoStage
from e3jax.train.packing import row_widths
from e3jax.train.run import Stage
from e3jax.train.settings import Settings

GIB = 2**30
USED = 0.9  # of a device's memory; the rest is left to fragments, and to what the estimates leave out
REMATS = ("matmuls", "attention", "full")  # the fewest operations first; "none" saves none of them over "matmuls"
ENOUGH = 16_384  # tokens of a micro-batch on a device: with fewer, less is kept instead (ours)
MOST = 65_536  # a micro-batch of more tokens only waits longer for its packing (ours)
ON_CPU = 4096  # the same two on a CPU, whose caches are small (LOG.md, 2026-11-21)


class Device(NamedTuple):
    """One of the devices that a run computes on."""

    platform: str  # "cpu" | "gpu" | "tpu"
    memory: int  # bytes that a program may use
    count: int  # of all processes


def this_device() -> Device:
    """Return what this process computes on: of a CPU, half of the machine's memory, shared by its devices."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return Device(device.platform, stats["bytes_limit"], len(jax.devices()))
    return Device(device.platform, machine_memory() // 2 // jax.local_device_count(), len(jax.devices()))


def machine_memory() -> int:
    """Return this machine's memory in bytes, or a container's share of it."""
    limit, physical = Path("/sys/fs/cgroup/memory.max"), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = limit.read_text().strip() if limit.exists() else ""
    return min(int(text), physical) if text.isdigit() else physical


def gpu_hint(device: Device) -> str:
    """Return how a run gets more of a GPU, as the end of an error; "" elsewhere."""
    more = "; JAX takes 75 % of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says more (.92)"
    return more if device.platform == "gpu" else ""


# ---- estimates, in bytes a device


class Shares(NamedTuple):
    """Over how many devices a run splits its parameters and its rows, and the copies of its sampling layout."""

    params: int
    rows: int
    copies: int

    @classmethod
    def of(cls, s: Settings, device: Device) -> "Shares":
        """Return the shares of `s.mesh` and `s.sampling.tensor` on so many devices."""
        rows = max(device.count // s.mesh.tensor, 1)
        return cls(max(device.count // s.mesh.data, 1), rows, max(device.count // s.sampling.tensor, 1))


def trained_params(s: Settings, shape: ModelConfig) -> int:
    """Return how many parameters are trained: all, or with LoRA those of the adapters."""
    return num_adapter_params(shape, s.model.lora) if s.model.lora.rank else num_params(shape)


def state_bytes(s: Settings, shape: ModelConfig, device: Device) -> int:
    """Return what lies there throughout: float32 parameters, Adam's two averages, the reference of RL's KL.

    With LoRA these are of the adapters, and the frozen parameters lie beside them in model.dtype.
    """
    averages = 2 * jnp.dtype(s.optim.moments_dtype).itemsize
    reference = 4 * any(isinstance(stage, GrpoStage) and stage.loss.kl_coef for stage in s.stages)
    frozen = num_params(shape) * jnp.dtype(s.model.dtype).itemsize if s.model.lora.rank else 0
    return (trained_params(s, shape) * (4 + averages + reference) + frozen) // Shares.of(s, device).params


def update_bytes(s: Settings, shape: ModelConfig, device: Device) -> int:
    """Return what an update needs whatever its rows: two gradients in float32, weights in model.dtype, logits."""
    width = jnp.dtype(s.model.dtype).itemsize
    chunk = s.model.chunk // Shares.of(s, device).rows
    logits = chunk * shape.vocab_size * (2 * 4 + width)  # float32 logits, their gradient, and that in model.dtype
    return trained_params(s, shape) * (4 + 4 + width) // Shares.of(s, device).params + logits


def token_bytes(s: Settings, shape: ModelConfig, remat: str) -> int:
    """Return what the backward pass keeps of a token: by `remat`, and inside the one block that it is in."""
    c, width = shape, jnp.dtype(s.model.dtype).itemsize
    heads, keys = c.heads * c.head_width, c.kv_heads * c.head_width
    kept = {
        "full": c.width,
        "attention": c.width + heads,
        "matmuls": 3 * c.width + 2 * heads + 2 * keys + 2 * c.mlp_width + adapted(s, c),
    }[remat]
    inside = 6 * c.width + 4 * heads + 4 * keys + 5 * c.mlp_width
    # float32 in norms and in the gradients of some products: half as much again
    return int(width * (c.layers * kept + 1.5 * inside) / s.mesh.tensor)


def adapted(s: Settings, c: ModelConfig) -> int:
    """Return the values of a token's products with a layer's adapters."""
    lora = s.model.lora
    return sum(lora.rank + sides(c)[name][1] for name in lora.names) if lora.rank else 0


def row_bytes(s: Settings, shape: ModelConfig, remat: str, width: int, device: Device) -> int:
    """Return what a row of `width` tokens needs; on a GPU with cuDNN's mask and its gradient (models/attention.py)."""
    masks = 2 * 2 * width * width if device.platform == "gpu" and s.model.dtype == "bfloat16" else 0
    return width * token_bytes(s, shape, remat) + masks


def slot_bytes(s: Settings, shape: ModelConfig, longest: int) -> int:
    """Return what a slot of the sampler needs: pages for the longest response, and its logits three times."""
    kv = s.sampling.kv_dtype(s.model.dtype)
    vector = shape.head_width * kv.itemsize + 4 * (kv == jnp.int8)  # with its scale
    pages = -(-longest // (PAGE * MERGED)) * PAGE * MERGED if longest > PAGE * MERGED else -(-longest // PAGE) * PAGE
    keys = 2 * shape.layers * shape.kv_heads * vector * pages
    return keys // s.sampling.tensor + 3 * 4 * shape.vocab_size


def need_room(s: Settings, shape: ModelConfig, device: Device) -> None:
    """Refuse an accelerator that cannot hold the training state and one gradient, whatever the sizes."""
    needed = state_bytes(s, shape, device) + 4 * trained_params(s, shape) // Shares.of(s, device).params
    adapters = "" if s.model.lora.rank else "config.model.lora.rank=16, "
    if device.platform != "cpu" and needed > device.memory:
        raise UserError(
            f"config.model.preset={s.model.preset!r}: training its {num_params(shape):,} parameters needs "
            f"{needed / GIB:.1f} GiB a device (parameters, a gradient, Adam's averages, KL reference), and there are "
            f"{device.memory / GIB:.1f} GiB: use a smaller model or more devices, or set {adapters}"
            f"config.optim.moments_dtype='bfloat16' or config.grpo.loss.kl_coef=0{gpu_hint(device)}"
        )


# ---- sizes


def fit(s: Settings, shape: ModelConfig, device: Device, *, room: int) -> tuple[Settings, list[str]]:
    """Return the settings with rows and remat that fit, and sentences on what was chosen.

    `room`: tokens that a prompt may have. UserError where not a single row fits, or not one slot.
    """
    free = USED * device.memory - state_bytes(s, shape, device) - update_bytes(s, shape, device)
    said = []
    if s.model.remat == "auto":
        tried = () if device.platform == "cpu" else REMATS  # on a CPU "full" is the fastest: configs/common.py
        remat = next((one for one in tried if holds_enough(s, shape, device, one, free, room)), "full")
        s = replace(s, model=replace(s.model, remat=remat))
        said.append(f"model.remat={s.model.remat!r}")
    stages = []
    for stage in s.stages:
        if isinstance(stage, GrpoStage) and not stage.rows:
            stage = replace(stage, rows=rows_that_fit(s, shape, device, stage, free, room))
            said.append(f"{stage.name}: grpo.rows={stage.rows}")
        stages.append(stage)
    if not s.sampling.slots:
        slots = {b: slots_that_fit(s, shape, device, room=room, budget=b) for b in sorted(budgets_of(s))}
        said += [f"slots for {budget} tokens: {most}" for budget, most in slots.items()]
    chosen = f"sizes that follow from {device.memory / GIB:.0f} GiB a device ({device.platform}): {'; '.join(said)}"
    return replace(s, stages=tuple(stages)), [chosen] if said else []


def budgets_of(s: Settings) -> set[int]:
    """Return the budgets of all rollouts of a run, in tokens."""
    stages = [stage for stage in s.stages if isinstance(stage, GrpoStage)]
    out = {stage.budget for stage in stages if stage.budget != "auto"} | {max(s.eval.budgets)}
    if any(stage.budget == "auto" for stage in stages):
        out |= {max(s.budget_rule.budgets), 2 * max(s.budget_rule.budgets)}
    return out


def longest_row(s: Settings, stage: Stage, room: int) -> int:
    """Return the tokens of a stage's widest rows."""
    if not isinstance(stage, GrpoStage):
        return stage.row_length
    return row_widths(room + (max(s.budget_rule.budgets) if stage.budget == "auto" else stage.budget))[0]


def holds_enough(s: Settings, shape: ModelConfig, device: Device, remat: str, free: float, room: int) -> bool:
    """Return whether every stage's micro-batch fits with this remat: the rows that are set, else ENOUGH tokens."""
    shards = Shares.of(s, device).rows
    for stage in s.stages:
        width = longest_row(s, stage, room)
        rows = stage.rows // shards if stage.rows else max(ENOUGH // width, 1)
        if rows * row_bytes(s, shape, remat, width, device) > free:
            return False
    return True


def rows_that_fit(s: Settings, shape: ModelConfig, device: Device, stage: GrpoStage, free: float, room: int) -> int:
    """Return the rows of a stage's micro-batches, a multiple of the devices that share them; UserError for none."""
    width, shards = longest_row(s, stage, room), Shares.of(s, device).rows
    most = ON_CPU if device.platform == "cpu" else MOST
    needed = row_bytes(s, shape, s.model.remat, width, device)
    rows = int(min(free // needed, max(most // width, 1)))
    if rows < 1:
        raise UserError(
            f"config.grpo.rows=0: not one row of {width} tokens of stage {stage.name} fits ({needed / GIB:.1f} GiB, "
            f"and {max(free, 0) / GIB:.1f} are free): lower config.stages.{stage.name}.budget"
            + (", or set config.model.remat='full'" if s.model.remat != "full" else "")
            + gpu_hint(device)
        )
    return rows * shards


def slots_that_fit(s: Settings, shape: ModelConfig, device: Device, *, room: int, budget: int) -> int:
    """Return how many responses of `budget` tokens may decode together, a multiple of the sampler's copies.

    UserError where there is no room for one a copy.
    """
    copies, width = Shares.of(s, device).copies, jnp.dtype(s.model.dtype).itemsize
    weights = num_params(shape) * width // s.sampling.tensor
    keys = 2 * shape.layers * shape.kv_heads * shape.head_width * s.sampling.kv_dtype(s.model.dtype).itemsize
    prompts = s.sampling.prefill_rows // copies * prompt_width(max(room, 1), shape.max_length) * keys
    free = USED * device.memory - state_bytes(s, shape, device) - weights - prompts // s.sampling.tensor
    needed = slot_bytes(s, shape, room + budget)
    slots = int(free // needed)
    if slots < 1:
        raise UserError(
            f"config.sampler.slots=0: no room for one response of {budget} tokens with its prompt "
            f"({needed / GIB:.2f} GiB, and {max(free, 0) / GIB:.2f} are free): lower the budget, "
            f"set config.sampler.cache='int8', or use more devices{gpu_hint(device)}"
        )
    return slots * copies
