"""Every program of an RL stage, from shapes alone: the update's (tools/programs.py) and those of its rollouts.

for program in stage_programs(resolve(config), "math", devices): program.lower().compile()
"""

from dataclasses import dataclass, replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from e3jax.errors import need
from e3jax.models.cache import KVCache
from e3jax.models.pages import AXES, PAGE, Copies, Pages, Piece
from e3jax.models.presets import flops_per_token
from e3jax.models.qwen3 import Qwen3, abstract_params
from e3jax.sampler.decode import Begin, Slots, admit, decode_block, prefill
from e3jax.sampler.layout import mover
from e3jax.sampler.page_table import PageTable
from e3jax.sampler.plan import Sampling, Sizes, plan, prompt_width
from e3jax.sampler.shared_pages import SharedPages, power_of_two, shared_pages_of
from e3jax.sharding import assert_sharded, count_slices, each_slice, sampling_mesh
from e3jax.tools.programs import (
    NAMES,
    Program,
    Training,
    array,
    chip_bytes,
    need_divides,
    reference,
    rl_add,
    rl_gradient,
    rl_score,
    under,
)
from e3jax.train.packing import row_widths
from e3jax.train.settings import Settings


def stage_programs(s: Settings, name: str, devices, *, names=NAMES, times: int = 1) -> list[Program]:
    """Return the programs of an RL stage that are in `names`; `times` the rows and slots of the config."""
    room = s.task.prompt_room
    need(room > 0, "task.prompt_room", room, "say how many tokens: no prompt is read here")
    stage = s.stage(name)
    budget = max(s.budget_rule.budgets) if stage.budget == "auto" else stage.budget
    t = Training(s, stage, devices, stage.rows * times, row_widths(room + budget)[0])
    alone = "prefill" in names and len(names) == 1
    sampling = replace(
        s.sampling,
        temperature=stage.temperature,
        slots=s.sampling.slots * times,
        prefill_rows=s.sampling.prefill_rows * (times if alone else 1),
    )
    check_divides(t, sampling)
    assert_sharded(t.params)
    d = Decoding(t, sampling, room, budget)
    makers = {
        "gradient": lambda: rl_gradient(t),
        "add": lambda: rl_add(t),
        "apply": lambda: t.apply(resident=reference(t)),
        "score": lambda: rl_score(t),
        "to_sampling": d.to_sampling,
        "prefill": d.prefill,
        "admit": d.admit,
        "decode": d.decode,
    }
    return [makers[name]() for name in names]


def check_divides(t: Training, sampling) -> None:
    """Refuse sizes that do not divide over the devices."""
    s, config = t.settings, t.model.config
    replicas, each = len(t.devices) // sampling.tensor, "devices / sampler.tensor"
    need_divides("grpo.rows", t.rows, t.mesh.shape["data"] * t.mesh.shape["fsdp"], "mesh.data x mesh.fsdp")
    need_divides("sampler.slots", sampling.slots, replicas, each)
    need_divides("sampler.prefill_rows", s.sampling.prefill_rows, replicas, each)
    need_divides("model.preset's kv_heads", config.kv_heads, s.mesh.tensor, "mesh.tensor")
    need_divides("model.preset's kv_heads", config.kv_heads, sampling.tensor, "sampler.tensor")


@dataclass(frozen=True)
class Decoding:
    """Shapes of what sampling a stage holds: all slots at the end of their budget, prompts as long as may be."""

    training: Training
    sampling: Sampling
    room: int  # tokens of a prompt
    budget: int

    @cached_property
    def mesh(self) -> Mesh:
        return sampling_mesh(self.training.mesh, tensor=self.sampling.tensor)

    @property
    def model(self) -> Qwen3:
        return self.training.model

    @cached_property
    def moved(self):
        """Shapes of the weights in the sampling layout."""
        return abstract_params(self.model, self.mesh, dtype=self.settings.model.dtype)

    @property
    def settings(self) -> Settings:
        return self.training.settings

    @property
    def resident(self) -> int:
        """Bytes of the training state, which stays where it is."""
        t = self.training
        return t.masters + t.moments + reference(t) + t.frozen

    @cached_property
    def sizes(self) -> Sizes:
        """Slots, prompts and pages, as the sampler itself plans them."""
        replicas, s = len(self.training.devices) // self.sampling.tensor, self.sampling
        prompt_b, limit_b = np.full(s.slots, self.room), np.full(s.slots, self.room + self.budget)
        return plan(s, shards=replicas, prompts=s.prefill_rows, prompt_b=prompt_b, limit_b=limit_b)

    @cached_property
    def page_table(self) -> tuple[PageTable, list[int]]:
        """The page table when every slot has reached its budget, and the pages of each piece of the pool."""
        table, slots = self.sizes.empty_table(), self.sizes.slots
        table.shared_j[:] = shared_pages_of(self.room, PAGE)
        grown = table.reserve(np.full(slots, self.room)) + table.reserve(np.full(slots, self.room + self.budget))
        return table, grown

    @cached_property
    def shared_pages(self) -> tuple[SharedPages, list[int], np.ndarray]:
        """The table of shared pages, the pages of each piece, and what is copied: each slot has a prompt of its own.

        This is the most that can be; there is room for as many owners as a group has samples.
        """
        shared, slots = self.sizes.empty_shared(), np.arange(self.sizes.slots)
        grown, copies, _ = shared.begin(slots, slots, np.full(len(slots), self.room))
        shared.widen(0, power_of_two(min(self.training.stage.group_size, shared.slots), 1) - 1)
        return shared, grown, copies

    @property
    def prompt_width(self) -> int:
        return prompt_width(self.room, self.model.config.max_length)

    @cached_property
    def slices(self) -> int:
        return count_slices(self.training.devices)

    def placed(self, mesh: Mesh, axes, rows: int, size: int) -> list[jax.ShapeDtypeStruct]:
        """Return shapes of keys, values and their scales; scales only where the cache is int8."""
        config, kv = self.model.config, self.sampling.kv_dtype(self.model.dtype)
        sizes = dict(L=config.layers, B=rows, X=rows, K=config.kv_heads, S=size, H=config.head_width)
        parts = [(a, jnp.float32 if "H" not in a else kv) for a in axes if "H" in a or kv == jnp.int8]
        return [array(mesh, a, tuple(sizes[x] for x in a), dtype) for a, dtype in parts]

    def small(self, *shape, dtype=jnp.int32) -> jax.ShapeDtypeStruct:
        """Return the shape of a value a slot, whole on every device."""
        return array(self.mesh, "", (self.sizes.slots, *shape), dtype)

    @cached_property
    def keys(self):
        key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), self.sizes.slots))
        return array(self.mesh, "", key.shape, key.dtype)

    @cached_property
    def slots(self) -> Slots:
        whole, flag = self.small(), self.small(dtype=bool)
        return Slots(self.small(1), whole, whole, whole, flag, flag, self.keys)

    @cached_property
    def cache(self) -> Pages:
        (table, grown), (shared, shared_grown, _) = self.page_table, self.shared_pages

        def pool(pieces):
            return (tuple(Piece(*self.placed(self.mesh, AXES, pages, PAGE)) for pages in pieces),)

        maps = (("JT", table.table_jn), *(("X", x) for x in table.owners()), ("XT", shared.owners()))
        return Pages(pool(grown), pool(shared_grown), *(array(self.mesh, axes, x.shape, jnp.int32) for axes, x in maps))

    @cached_property
    def prompts(self) -> KVCache:
        axes = ("LBKSH", "LBKSH", "LBKS", "LBKS")
        return KVCache(*self.placed(each_slice(self.mesh), axes, self.sizes.prompt_rows, self.prompt_width))

    def to_sampling(self) -> Program:
        """Return the move of the weights from the training layout to the sampling layout."""
        t, dtype = self.training, self.settings.model.dtype
        return Program(
            "to_sampling",
            f"{dtype}, tensor={self.sampling.tensor}",
            under(t.mesh, lambda: mover(t.params, self.mesh).lower(t.params, dtype, t.model.lora)),
            t.params,
            t.moments + reference(t),
            memory_traffic=t.masters + t.frozen + chip_bytes(self.moved),
        )

    def prefill(self) -> Program:
        """Return the prefill of as many prompts as go together."""
        rows, width, config = self.sizes.prompt_rows, self.prompt_width, self.model.config
        mesh = each_slice(self.mesh)
        kv, tokens = self.sampling.kv_dtype(self.model.dtype), array(mesh, "", (rows, width), jnp.int32)
        per_token = flops_per_token(config, (width + 1) / 2) - 2 * config.vocab_size * config.width  # no logits
        return Program(
            "prefill",
            f"{rows} x {width} tokens",
            under(mesh, lambda: prefill.lower(self.model, self.moved, tokens, kv)),
            self.moved,
            self.resident + chip_bytes(self.cache) + chip_bytes(self.prompts),
            rows * width * per_token * self.slices / len(self.training.devices),
            chip_bytes(self.moved),
        )

    def admit(self) -> Program:
        """Return the start of samples in all slots."""
        rows = (self.sizes.slots * self.sizes.copied, 3), self.shared_pages[2].shape
        copies = Copies(*(array(self.mesh, "JT", shape, jnp.int32) for shape in rows))
        whole = self.small()
        begin = Begin(self.small(dtype=bool), whole, whole, whole, self.small(2, dtype=jnp.uint32))
        pools = self.cache.pools, self.cache.shared
        return Program(
            "admit",
            f"{self.sizes.prompt_rows} prompts into {self.sizes.slots} slots",
            under(self.mesh, lambda: admit.lower(*pools, self.slots, self.prompts, copies, begin)),
            (*pools, self.slots, self.prompts),
            self.resident + chip_bytes(self.moved),
            memory_traffic=2 * chip_bytes(self.prompts),
        )

    def decode(self) -> Program:
        """Return a block of decode steps."""
        slots, block, config = self.sizes.slots, self.sampling.block, self.model.config
        enough = array(self.mesh, "", (), jnp.int32) if self.slices == 1 else None
        how = dict(steps=block, stop=((config.vocab_size - 1,),), choice=self.sampling.choice)
        work = slots * flops_per_token(config, self.room + self.budget) / len(self.training.devices)
        return Program(
            "decode",
            f"{slots} slots, {block} steps, {sum(self.page_table[1] + self.shared_pages[1])} pages of {PAGE}",
            under(self.mesh, lambda: decode_block.lower(self.model, self.moved, self.cache, self.slots, enough, **how)),
            (self.moved, self.cache, self.slots),
            self.resident + chip_bytes(self.prompts),
            block * work,
            block * (chip_bytes(self.moved) + chip_bytes(self.cache)),
            loops=block,
        )
