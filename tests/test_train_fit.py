"""Sizes that follow from memory: by hand for one model, in the right order for all, and a sentence where none fits."""

import importlib
from dataclasses import replace

import jax
import pytest

from e3jax.errors import UserError
from e3jax.models.presets import preset
from e3jax.runtime import out_of_memory
from e3jax.train.fit import Device, fit, machine_memory, need_room, slot_bytes, slots_that_fit, state_bytes, this_device
from e3jax.train.settings import resolve

GIB = 2**30
ROOM = 145


def settings(name: str, **changes):
    """Return the settings of the language-model recipe for a preset."""
    config = importlib.import_module("configs.countdown_lm").get_config(f"model={name}")
    config.unlock()
    config.model.dtype = "bfloat16"  # as on an accelerator
    for field, value in changes.items():
        config.update_from_flattened_dict({field.replace("__", "."): value})
    return resolve(config), preset(name)


def gpu(gib: float, count: int = 1) -> Device:
    return Device("gpu", int(gib * GIB), count)


def test_state_and_slots_by_hand():
    """SmolLM2-135M: 16 bytes a parameter throughout, and 23,040 bytes a token in pages."""
    s, shape = settings("smollm2-135m")
    assert state_bytes(s, shape, gpu(24)) == 134_515_008 * 16
    assert state_bytes(s, shape, gpu(24, 8)) == 134_515_008 * 2
    # 30 layers x 2 x 3 heads x 64 x 2 bytes; 657 tokens are two merged groups of 512; three times float32 logits
    assert slot_bytes(s, shape, ROOM + 512) == 23_040 * 1024 + 12 * 49_152
    int8 = replace(s, sampling=replace(s.sampling, cache="int8"))
    assert slot_bytes(int8, shape, ROOM + 512) == 30 * 2 * 3 * (64 + 4) * 1024 + 12 * 49_152


@pytest.mark.parametrize(("name", "gib"), [("smollm2-135m", 24), ("smollm2-135m", 80), ("qwen3-0.6b", 24)])
def test_everything_fits_into_the_memory(name, gib):
    """What is chosen adds up to less than the memory, for every stage and budget, and the log says it."""
    s, shape = settings(name)
    chosen, said = fit(s, shape, gpu(gib), room=ROOM)
    assert chosen.model.remat in ("matmuls", "attention", "full")
    rows = {stage.name: stage.rows for stage in chosen.stages}
    assert rows["traces"] == s.stage("traces").rows and min(rows.values()) >= 1
    slots = [slots_that_fit(s, shape, gpu(gib), room=ROOM, budget=budget) for budget in (512, 2048, 4096)]
    assert slots[0] > slots[1] > slots[2] >= 1
    kept = slots[2] * slot_bytes(s, shape, ROOM + 4096) + state_bytes(s, shape, gpu(gib))
    assert kept < gib * GIB
    (line,) = said
    for words in (f"{gib} GiB a device (gpu)", "model.remat=", "easy: grpo.rows=", "slots for 512 tokens: "):
        assert words in line


def test_adapters_by_hand():
    """Rank 16 on SmolLM2-135M: 2 bytes a frozen parameter, 16 an adapter's; 1.7B then has room on a 24 GiB GPU."""
    s, shape = settings("smollm2-135m", model__lora__rank=16)
    # in + out of q, k, v, o, gate, up, down, by 30 layers
    adapters = 30 * 16 * (1152 + 768 + 768 + 1152 + 3 * 2112)
    assert state_bytes(s, shape, gpu(24)) == 134_515_008 * 2 + adapters * 16
    s, shape = settings("qwen3-1.7b", model__lora__rank=16)
    need_room(s, shape, gpu(24))
    full = settings("qwen3-1.7b")[0]
    assert state_bytes(s, shape, gpu(24)) < state_bytes(full, shape, gpu(24)) / 6
    assert fit(s, shape, gpu(24), room=ROOM)[0].stage("easy").rows >= 1


def test_more_memory_keeps_more():
    """More memory: never fewer rows or slots, never more recomputing; set values stay."""
    order = ("full", "attention", "matmuls")
    s, shape = settings("qwen3-0.6b")
    tried = [fit(s, shape, gpu(gib), room=ROOM)[0] for gib in (24, 40, 80, 140)]
    kept = [order.index(one.model.remat) for one in tried]
    assert kept == sorted(kept) and kept[0] < kept[-1]
    slots = [slots_that_fit(s, shape, gpu(gib), room=ROOM, budget=2048) for gib in (24, 40, 80, 140)]
    assert slots == sorted(slots) and slots[0] < slots[-1]
    s, shape = settings("qwen3-0.6b", grpo__rows=8, model__remat="full", sampler__slots=64)
    assert fit(s, shape, gpu(80), room=ROOM) == (s, [])


def test_sizes_divide_over_devices():
    """Rows are a multiple of the mesh's shards, slots of the sampler's copies."""
    s, shape = settings("qwen3-0.6b", stages__traces__rows=24)
    device = Device("tpu", 16 * GIB, 8)
    chosen, _ = fit(s, shape, device, room=ROOM)
    assert all(stage.rows % 8 == 0 for stage in chosen.stages)
    assert slots_that_fit(s, shape, device, room=ROOM, budget=512) % 8 == 0


def test_a_device_too_small_is_one_sentence():
    """A model whose training state is larger than the GPU, a budget of which not one row or slot fits."""
    s, shape = settings("qwen3-1.7b")
    with pytest.raises(UserError, match=r"preset='qwen3-1.7b': training its 1,720,574,976 parameters needs 32.0 GiB"):
        need_room(s, shape, gpu(24))
    need_room(s, shape, Device("cpu", GIB, 1))  # a machine has more than this, and a disk behind it
    s, shape = settings("qwen3-0.6b", stages__easy__budget=30_000, model__remat="matmuls")
    with pytest.raises(UserError, match=r"not one row of .* lower config.stages.easy.budget, or set"):
        fit(s, shape, gpu(24), room=ROOM)
    with pytest.raises(UserError, match=r"config.sampler.slots=0: no room for one response of 30000 tokens"):
        slots_that_fit(s, shape, gpu(14), room=ROOM, budget=30_000)


def test_this_machine():
    """A CPU without memory statistics counts as half of the machine, shared by its simulated devices."""
    device = this_device()
    assert device.platform == "cpu" and device.count == len(jax.devices())
    assert device.memory == machine_memory() // 2 // jax.local_device_count() > 1 << 26


def test_out_of_memory_names_what_to_lower():
    """XLA's own error says how many bytes; other errors stay what they are."""
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 64 bytes.\nmore")
    with pytest.raises(UserError, match=r"ran out of memory \(Out of memory .* 64 bytes\): lower config.grpo.rows"):
        with out_of_memory("lower config.grpo.rows"):
            raise error
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        with out_of_memory("lower config.grpo.rows"):
            raise jax.errors.JaxRuntimeError("INTERNAL: other")
