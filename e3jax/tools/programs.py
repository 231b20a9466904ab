"""Every program that a stage runs on its accelerators, from shapes alone: nothing is allocated.

The shapes are the largest of the stage: a micro-batch at its full width, a prompt and a cache of full length. What lies
on the chip while a program runs without being an argument of it (`resident`) is counted too: the moments and the
reference during a gradient, the whole training state during sampling.

    for program in supervised_programs(resolve(config), "base", devices): program.lower().compile()

RL stages, which also sample: tools/rl_programs.py.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from e3jax.checkpoint.pretrained import model_config
from e3jax.errors import UserError
from e3jax.losses.surrogates import COVARIANCE
from e3jax.models.lora import trained
from e3jax.models.presets import flops_per_token, num_params
from e3jax.models.qwen3 import Qwen3, abstract_policy
from e3jax.sharding import make_mesh, param_axes, spec
from e3jax.train.chats import ChatStage
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


def micro_batch(mesh, rows: int, width: int, *, surrogate: str) -> Batch:
    """Shapes of a packed micro-batch; `chosen` is there for the surrogates that read it."""
    dtypes = dict.fromkeys(("tokens", "position", "segment"), jnp.int32) | {"chosen": jnp.bool}
    names = [f.name for f in dataclasses.fields(Batch) if f.name != "chosen" or surrogate in COVARIANCE]
    return Batch(
        **{name: array(mesh, "BT", (rows, width), dtypes[name] if name in dtypes else jnp.float32) for name in names}
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
        lora = m.lora if m.lora.rank else None
        return Qwen3(model_config(m.preset), dtype=jnp.dtype(m.dtype), remat=m.remat, kernel=kernel, lora=lora)

    @cached_property
    def params(self):
        return abstract_policy(self.model, self.mesh)

    @cached_property
    def trained(self):
        """What a gradient and the optimiser have: of all parameters, or of adapters."""
        return trained(self.params)

    @cached_property
    def tx(self):
        decay_steps = 0 if isinstance(self.stage, GrpoStage) else self.stage.steps
        s = self.stage
        return make_optimizer(self.settings.optim, lr=s.lr, warmup=s.warmup, decay_steps=decay_steps)

    @cached_property
    def state(self) -> TrainState:
        return train_state(self.tx, self.trained, self.mesh)

    @cached_property
    def frozen(self) -> int:
        """Bytes of the parameters that are not trained."""
        return chip_bytes(self.params) - self.masters

    @cached_property
    def masters(self) -> int:
        """Bytes of the trained parameters in float32, and of their gradient."""
        return chip_bytes(self.trained)

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
            self.lowered(apply_gradients, self.tx, self.state, self.trained),
            (self.state, self.trained),
            resident + self.frozen,
            memory_traffic=3 * self.masters + 2 * self.moments,
        )


def under(mesh: Mesh, lower: Callable[[], Any]) -> Callable[[], Any]:
    """Return what calls `lower` with the mesh set."""

    def lowered():
        with jax.set_mesh(mesh):
            return lower()

    return lowered


def supervised_programs(s: Settings, name: str, devices, *, names=NAMES) -> list[Program]:
    """Return a supervised stage's programs that are in `names`: gradient, apply, add of micro-batches; full width."""
    stage = s.stage(name)
    several = isinstance(stage, OxaStage | ChatStage)  # micro-batches, of rows that may be shorter
    oxa = isinstance(stage, OxaStage) and bool(stage.suppress)  # two weights a token; without, it is SFT
    width = row_widths(stage.row_length)[0] if several else stage.row_length
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
            t.moments + t.masters * several,
            4 * t.forward_flops,
            3 * t.gathered,
        ),
        "apply": t.apply(resident=0),
    }
    if several:
        metrics = SUMS if oxa else ("total", "entropy")
        sums = (t.trained, {f"loss/{metric}": array(t.mesh, "", (), jnp.float32) for metric in metrics})
        made["add"] = Program(
            "add",
            "gradients of two micro-batches",
            t.lowered(add_sums, sums, sums),
            (t.trained, t.trained),
            t.masters + t.moments + t.frozen,
            memory_traffic=3 * t.masters,
        )
    return [made[name] for name in names if name in made]


# ---- the update of an RL stage


def reference(t: Training) -> int:
    """Return the bytes of the KL reference beside what is frozen."""
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
    batch = micro_batch(t.mesh, t.rows, t.width, surrogate=t.stage.loss.surrogate)
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
    batch = micro_batch(t.mesh, t.rows, t.width, surrogate=t.stage.loss.surrogate)

    def gradients():
        metrics = jax.eval_shape(
            lambda p, b: grpo_gradient(t.model, p, b, **fixed(t), loss=t.stage.loss)[1], t.params, batch
        )
        return t.trained, jax.tree.map(lambda x: array(t.mesh, "", x.shape, x.dtype), metrics)

    return Program(
        "add",
        "gradients of two micro-batches",
        under(t.mesh, lambda: add.lower(gradients(), gradients())),
        (t.trained, t.trained),
        t.masters + t.moments + reference(t) + t.frozen,
        memory_traffic=3 * t.masters,
    )


def rl_score(t: Training) -> Program:
    """Return the log-probs of a micro-batch: of the old policy, of the reference."""
    batch = micro_batch(t.mesh, t.rows, t.width, surrogate=t.stage.loss.surrogate)
    return Program(
        "score",
        f"{t.rows} x {t.width} tokens",
        t.lowered(score, t.model, t.params, batch.tokens, batch.position, batch.segment, **fixed(t)),
        (t.params, batch.tokens),
        t.moments + reference(t),
        t.forward_flops,
        t.gathered,
    )
