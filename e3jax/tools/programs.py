"""Every program that a stage runs on its accelerators, from shapes alone: nothing is allocated.

The shapes are the largest of the stage: a micro-batch at its full width, a prompt and a cache of full length. What lies
on the chip while a program runs without being an argument of it (`resident`) is counted too: the moments and the
reference during a gradient, the whole training state during sampling.

    for program in stage_programs(resolve(config), "math", devices): program.lower().compile()
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from e3jax.checkpoint.pretrained import model_config
from e3jax.errors import UserError, need
from e3jax.models.cache import KVCache
from e3jax.models.pages import AXES, PAGE, Pages, Piece
from e3jax.models.presets import flops_per_token, num_params
from e3jax.models.qwen3 import Qwen3, abstract_params
from e3jax.sampler.decode import Begin, Slots, admit, decode_block, prefill
from e3jax.sampler.layout import mover
from e3jax.sampler.plan import plan, prompt_width
from e3jax.sharding import assert_sharded, make_mesh, param_axes, sampling_mesh, spec
from e3jax.train.grpo import GrpoStage, add, grpo_gradient
from e3jax.train.logprobs import score
from e3jax.train.oxa import OxaStage, oxa_gradient
from e3jax.train.packing import row_widths
from e3jax.train.settings import Settings
from e3jax.train.sft import add as add_sums
from e3jax.train.sft import sft_gradient
from e3jax.train.state import apply_gradients, make_optimizer, new_state
from e3jax.types import Batch, TrainState

NAMES = ("gradient", "add", "apply", "score", "to_sampling", "prefill", "admit", "decode")
GROWS_WITH = {"gradient": "rows", "prefill": "prefill_rows", "admit": "slots", "decode": "slots"}
SUMS = ("total", "ce", "ul", "entropy_promoted", "p_promoted", "entropy_suppressed", "p_suppressed")  # OXA's metrics


class Program(NamedTuple):
    """One program, what it holds, and what its floor is."""

    name: str
    what: str  # its size, in words
    lower: Callable[[], Any]  # -> jax.stages.Lowered
    arguments: Any  # shapes
    resident: int  # bytes per chip that are not arguments
    flops: float = 0.0  # per chip
    memory_traffic: float = 0.0  # bytes per chip that have to be read or written at least
    loops: int = 1  # runs of a loop whose end depends on data


def chip_bytes(tree) -> int:
    """Bytes of a tree of shapes on one chip."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def array(mesh, axes: str, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    """A shape laid out by its axes."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec(axes, mesh)))


def need_divides(field: str, value: int, by: int, what: str) -> None:
    """Raise unless `by` divides the field's value."""
    if value % by:
        raise UserError(f"config.{field}={value} does not divide over {what} = {by}: use a multiple of {by}")


def train_state(tx, params, mesh) -> TrainState:
    """Shapes of the state that an update donates, its moments laid out as the parameters."""

    def placed(path, x):
        return array(mesh, param_axes(path, x) if x.ndim else "", x.shape, x.dtype)

    shapes = jax.eval_shape(lambda p: new_state(tx, p), params)
    return shapes.replace(
        step=array(mesh, "", (), jnp.int32),
        params=params,
        opt_state=jax.tree_util.tree_map_with_path(placed, shapes.opt_state),
    )


def micro_batch(mesh, rows: int, width: int) -> Batch:
    """Shapes of a packed micro-batch."""
    whole = {"tokens", "position", "segment"}
    return Batch(
        **{
            f.name: array(mesh, "BT", (rows, width), jnp.int32 if f.name in whole else jnp.float32)
            for f in dataclasses.fields(Batch)
        }
    )


@dataclass(frozen=True)
class Training:
    """Shapes of what training a stage holds on `devices`, and its bytes per chip."""

    settings: Settings
    stage: Any
    devices: Any
    rows: int  # of a micro-batch
    width: int  # of its rows, tokens

    @cached_property
    def mesh(self) -> Mesh:
        m = self.settings.mesh
        return make_mesh(data=m.data, fsdp=m.fsdp, tensor=m.tensor, devices=self.devices)

    @cached_property
    def model(self) -> Qwen3:
        m = self.settings.model
        kernel = "splash" if m.attention == "auto" else m.attention
        return Qwen3(model_config(m.preset), dtype=jnp.dtype(m.dtype), remat=m.remat, kernel=kernel)

    @cached_property
    def params(self):
        return abstract_params(self.model, self.mesh)

    @cached_property
    def tx(self):
        decay_steps = 0 if isinstance(self.stage, GrpoStage) else self.stage.steps
        s = self.stage
        return make_optimizer(self.settings.optim, lr=s.lr, warmup=s.warmup, decay_steps=decay_steps)

    @cached_property
    def state(self) -> TrainState:
        return train_state(self.tx, self.params, self.mesh)

    @cached_property
    def masters(self) -> int:
        """Bytes of the parameters in float32."""
        return chip_bytes(self.params)

    @cached_property
    def moments(self) -> int:
        """Bytes of Adam's two averages."""
        return chip_bytes(self.state.opt_state)

    @property
    def forward_flops(self) -> float:
        """FLOPs of one forward pass of a micro-batch."""
        per_token = flops_per_token(self.model.config, (self.width + 1) / 2)
        return self.rows * self.width * per_token / len(self.devices)

    @property
    def gathered(self) -> float:
        """Bytes of the weights of one pass, as a chip reads them."""
        return num_params(self.model.config) * self.model.dtype.itemsize / self.settings.mesh.tensor

    def lowered(self, program, *arguments, **fixed) -> Callable[[], Any]:
        """Return what lowers a program on the training mesh."""
        return under(self.mesh, lambda: program.lower(*arguments, **fixed))

    def apply(self, *, resident: int) -> Program:
        """Return the optimiser's update."""
        return Program(
            "apply",
            f"AdamW, {self.settings.optim.moments_dtype} moments",
            self.lowered(apply_gradients, self.tx, self.state, self.params),
            (self.state, self.params),
            resident,
            memory_traffic=3 * self.masters + 2 * self.moments,
        )


def under(mesh: Mesh, lower: Callable[[], Any]) -> Callable[[], Any]:
    """Return what calls `lower` with the mesh set."""

    def lowered():
        with jax.set_mesh(mesh):
            return lower()

    return lowered


def supervised_programs(s: Settings, name: str, devices, *, names=NAMES) -> list[Program]:
    """Return the programs of a supervised stage that are in `names`: gradient, OXA's add, apply; rows at full width."""
    stage = s.stage(name)
    oxa = isinstance(stage, OxaStage)  # several micro-batches of rows that may be shorter, two weights a token
    width = row_widths(stage.row_length)[0] if oxa else stage.row_length
    t = Training(s, stage, devices, stage.rows, width)
    shards = t.mesh.shape["data"] * t.mesh.shape["fsdp"]
    need_divides(f"stages.{name}.rows", stage.rows, shards, "mesh.data x mesh.fsdp")
    batch = [array(t.mesh, "BT", (t.rows, width), kind) for kind in [jnp.int32] * 3 + [jnp.float32] * (1 + oxa)]
    gradient, fixed = (oxa_gradient, {"ul_weight": stage.ul_weight}) if oxa else (sft_gradient, {})
    made = {
        "gradient": Program(
            "gradient",
            f"{t.rows} x {width} tokens",
            t.lowered(gradient, t.model, t.params, *batch, chunk=s.model.chunk, **fixed),
            (t.params, batch),
            t.moments + t.masters * oxa,
            4 * t.forward_flops,
            3 * t.gathered,
        ),
        "apply": t.apply(resident=0),
    }
    if oxa:
        sums = (t.params, {f"loss/{metric}": array(t.mesh, "", (), jnp.float32) for metric in SUMS})
        made["add"] = Program(
            "add",
            "gradients of two micro-batches",
            t.lowered(add_sums, sums, sums),
            (t.params, t.params),
            t.masters + t.moments,
            memory_traffic=3 * t.masters,
        )
    return [made[name] for name in names if name in made]


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


# ---- the update of an RL stage


def reference(t: Training) -> int:
    """Return the bytes of the KL reference."""
    return t.masters if t.stage.loss.kl_coef else 0


def fixed(t: Training) -> dict[str, Any]:
    """Return what scoring and gradients share."""
    return dict(temperature=t.stage.temperature, chunk=t.settings.model.chunk)


def rl_gradient(t: Training) -> Program:
    """Return the gradient of a micro-batch. remat "attention" keeps the attention's results of the forward pass."""
    remat, config = t.settings.model.remat, t.model.config
    passes = 3 if remat in ("none", "matmuls") else 4
    per_token = 4 * config.layers * config.heads * config.head_width * (t.width + 1) / 2
    kept = t.rows * t.width * per_token / len(t.devices) if remat == "attention" else 0.0
    batch = micro_batch(t.mesh, t.rows, t.width)
    return Program(
        "gradient",
        f"{t.rows} x {t.width} tokens",
        t.lowered(grpo_gradient, t.model, t.params, batch, **fixed(t), loss=t.stage.loss),
        (t.params, batch),
        t.moments + reference(t) + t.masters,
        passes * t.forward_flops - kept,
        (passes - 1) * t.gathered,
    )


def rl_add(t: Training) -> Program:
    """Return the sum of two micro-batches' gradients and metrics."""
    batch = micro_batch(t.mesh, t.rows, t.width)

    def gradients():
        metrics = jax.eval_shape(
            lambda p, b: grpo_gradient(t.model, p, b, **fixed(t), loss=t.stage.loss)[1], t.params, batch
        )
        return t.params, jax.tree.map(lambda x: array(t.mesh, "", x.shape, x.dtype), metrics)

    return Program(
        "add",
        "gradients of two micro-batches",
        under(t.mesh, lambda: add.lower(gradients(), gradients())),
        (t.params, t.params),
        t.masters + t.moments + reference(t),
        memory_traffic=3 * t.masters,
    )


def rl_score(t: Training) -> Program:
    """Return the log-probs of a micro-batch: of the old policy, of the reference."""
    batch = micro_batch(t.mesh, t.rows, t.width)
    return Program(
        "score",
        f"{t.rows} x {t.width} tokens",
        t.lowered(score, t.model, t.params, batch.tokens, batch.position, batch.segment, **fixed(t)),
        (t.params, batch.tokens),
        t.moments + reference(t),
        t.forward_flops,
        t.gathered,
    )


# ---- its rollouts


@dataclass(frozen=True)
class Decoding:
    """Shapes of what sampling a stage holds: all slots at the end of their budget, prompts as long as may be."""

    training: Training
    sampling: Any  # sampler/plan.py Sampling
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
        return t.masters + t.moments + reference(t)

    @cached_property
    def sizes(self):
        """Slots, prompts and pages, as the sampler itself plans them."""
        replicas, s = len(self.training.devices) // self.sampling.tensor, self.sampling
        return plan(s, shards=replicas, responses=s.slots, prompts=s.prefill_rows, longest=self.room + self.budget)

    @cached_property
    def page_table(self):
        """The page table when every slot has reached its budget, and the pages of each piece of the pool."""
        table, slots = self.sizes.empty_table(), self.sizes.slots
        grown = table.reserve(np.full(slots, self.room)) + table.reserve(np.full(slots, self.room + self.budget))
        return table, grown

    @property
    def prompt_width(self) -> int:
        return prompt_width(self.room, self.model.config.max_length)

    def placed(self, axes, rows: int, size: int) -> list[jax.ShapeDtypeStruct]:
        """Return shapes of keys, values and their scales; scales only where the cache is int8."""
        config, kv = self.model.config, self.sampling.kv_dtype(self.model.dtype)
        sizes = dict(L=config.layers, B=rows, X=rows, K=config.kv_heads, S=size, H=config.head_width)
        parts = [(a, jnp.float32 if "H" not in a else kv) for a in axes if "H" in a or kv == jnp.int8]
        return [array(self.mesh, a, tuple(sizes[x] for x in a), dtype) for a, dtype in parts]

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
        table, grown = self.page_table
        pools = (tuple(Piece(*self.placed(AXES, pages, PAGE)) for pages in grown),)
        owners = (array(self.mesh, "X", x.shape, jnp.int32) for x in table.owners())
        return Pages(pools, array(self.mesh, "JT", table.table_jn.shape, jnp.int32), *owners)

    @cached_property
    def prompts(self) -> KVCache:
        axes = ("LBKSH", "LBKSH", "LBKS", "LBKS")
        return KVCache(*self.placed(axes, self.sizes.prompt_rows, self.prompt_width))

    def to_sampling(self) -> Program:
        """Return the move of the weights from the training layout to the sampling layout."""
        t, dtype = self.training, self.settings.model.dtype
        return Program(
            "to_sampling",
            f"{dtype}, tensor={self.sampling.tensor}",
            under(t.mesh, lambda: mover(t.params, self.mesh).lower(t.params, dtype)),
            t.params,
            t.moments + reference(t),
            memory_traffic=t.masters + chip_bytes(self.moved),
        )

    def prefill(self) -> Program:
        """Return the prefill of as many prompts as go together."""
        rows, width, config = self.sizes.prompt_rows, self.prompt_width, self.model.config
        kv, tokens = self.sampling.kv_dtype(self.model.dtype), array(self.mesh, "", (rows, width), jnp.int32)
        per_token = flops_per_token(config, (width + 1) / 2) - 2 * config.vocab_size * config.width  # no logits
        return Program(
            "prefill",
            f"{rows} x {width} tokens",
            under(self.mesh, lambda: prefill.lower(self.model, self.moved, tokens, kv)),
            self.moved,
            self.resident + chip_bytes(self.cache) + chip_bytes(self.prompts),
            rows * width * per_token / len(self.training.devices),
            chip_bytes(self.moved),
        )

    def admit(self) -> Program:
        """Return the start of samples in all slots."""
        nothing, table = np.array([], int), self.page_table[0]
        copies = [
            array(self.mesh, axes, x.shape, jnp.int32)
            for axes, x in zip(("JT", "J"), table.copies(nothing, nothing, self.prompt_width))
        ]
        whole = self.small()
        begin = Begin(self.small(dtype=bool), whole, whole, whole, self.keys)
        pools = self.cache.pools
        return Program(
            "admit",
            f"{self.sizes.prompt_rows} prompts into {self.sizes.slots} slots",
            under(self.mesh, lambda: admit.lower(pools, self.slots, self.prompts, *copies, begin)),
            (pools, self.slots, self.prompts),
            self.resident + chip_bytes(self.moved),
            memory_traffic=2 * chip_bytes(self.prompts),
        )

    def decode(self) -> Program:
        """Return a block of decode steps."""
        slots, block, config = self.sizes.slots, self.sampling.block, self.model.config
        enough, stop = array(self.mesh, "", (), jnp.int32), ((config.vocab_size - 1,),)
        how = dict(steps=block, stop=stop, choice=self.sampling.choice)
        work = slots * flops_per_token(config, self.room + self.budget) / len(self.training.devices)
        return Program(
            "decode",
            f"{slots} slots, {block} steps, {sum(self.page_table[1])} pages of {PAGE}",
            under(self.mesh, lambda: decode_block.lower(self.model, self.moved, self.cache, self.slots, enough, **how)),
            (self.moved, self.cache, self.slots),
            self.resident + chip_bytes(self.prompts),
            block * work,
            block * (chip_bytes(self.moved) + chip_bytes(self.cache)),
            loops=block,
        )
