"""Every program that a stage runs on its accelerators, from shapes alone: nothing is allocated.

The shapes are the largest of the stage: a micro-batch at its full width, a prompt and a cache of full length. What lies
on the chip while a program runs without being an argument of it (`resident`) is counted too: the moments and the
reference during a gradient, the whole training state during sampling.

    for program in stage_programs(c, "math", devices): program.lower().compile()
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from e3jax.checkpoint.pretrained import model_config
from e3jax.errors import UserError, need
from e3jax.models.cache import KVCache
from e3jax.models.pages import AXES, PAGE, Pages, Piece
from e3jax.models.presets import flops_per_token, num_params
from e3jax.models.qwen3 import Qwen3, abstract_params
from e3jax.sampler.decode import Begin, Slots, admit, decode_block, prefill
from e3jax.sampler.layout import mover
from e3jax.sampler.plan import Sampling, plan, prompt_width
from e3jax.sharding import assert_sharded, make_mesh, param_axes, sampling_mesh, spec
from e3jax.train.grpo import add, grpo_gradient
from e3jax.train.logprobs import score
from e3jax.train.oxa import oxa_gradient
from e3jax.train.packing import row_widths
from e3jax.train.sft import add as add_sums
from e3jax.train.sft import sft_gradient
from e3jax.train.state import apply_gradients, make_optimizer, new_state
from e3jax.types import Batch, TrainState

NAMES = ("gradient", "add", "apply", "score", "to_sampling", "prefill", "admit", "decode")
GROWS_WITH = {"gradient": "rows", "prefill": "prefill_rows", "admit": "slots", "decode": "slots"}


class Program(NamedTuple):
    """One program and what its floor is."""

    name: str
    what: str  # its size, in words
    lower: Callable[[], Any]  # -> jax.stages.Lowered
    arguments: Any  # shapes
    resident: int  # bytes per chip that are not arguments
    flops: float  # per chip
    memory_traffic: float  # bytes per chip that have to be read or written at least
    loops: int  # runs of a loop whose end depends on data


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


def supervised_programs(c: ConfigDict, stage: str, devices, *, names=NAMES) -> list[Program]:
    """The programs of an SFT or OXA stage that are in `names`: gradient, OXA's add, apply; rows at full width."""
    mesh, config = make_mesh(**c.mesh, devices=devices), model_config(c.model.preset)
    kernel = "splash" if c.model.attention == "auto" else c.model.attention
    model = Qwen3(config, dtype=jnp.dtype(c.model.dtype), remat=c.model.remat, kernel=kernel)
    s = c.stages[stage]
    oxa = s.kind == "oxa"  # several micro-batches of rows that may be shorter, two weights a token
    width = row_widths(s.row_length)[0] if oxa else s.row_length
    need_divides(f"stages.{stage}.rows", s.rows, mesh.shape["data"] * mesh.shape["fsdp"], "mesh.data x mesh.fsdp")
    params = abstract_params(model, mesh)
    tx = make_optimizer(lr=s.lr, warmup=s.warmup, decay_steps=s.steps, **c.optim)
    state = train_state(tx, params, mesh)
    batch = [array(mesh, "BT", (s.rows, width), t) for t in [jnp.int32] * 3 + [jnp.float32] * (1 + oxa)]
    masters, moments = chip_bytes(params), chip_bytes(state.opt_state)
    forward = s.rows * width * flops_per_token(config, (width + 1) / 2) / len(devices)
    gathered = num_params(config) * model.dtype.itemsize / c.mesh.tensor

    def lower(program, *arguments, **fixed):
        def lowered():
            with jax.set_mesh(mesh):
                return program.lower(*arguments, **fixed)

        return lowered

    gradient, fixed = (oxa_gradient, {"ul_weight": s.ul_weight}) if oxa else (sft_gradient, {})
    metrics = [
        f"loss/{n}"
        for n in ("total", "ce", "ul", "entropy_promoted", "p_promoted", "entropy_suppressed", "p_suppressed")
    ]
    sums = (params, {name: array(mesh, "", (), jnp.float32) for name in metrics})
    made = {
        "gradient": Program(
            "gradient",
            f"{s.rows} x {width} tokens",
            lower(gradient, model, params, *batch, chunk=c.model.chunk, **fixed),
            (params, batch),
            moments + masters * oxa,
            4 * forward,
            3 * gathered,
            1,
        ),
        "apply": Program(
            "apply",
            f"AdamW, {c.optim.moments_dtype} moments",
            lower(apply_gradients, tx, state, params),
            (state, params),
            0,
            0.0,
            3 * masters + 2 * moments,
            1,
        ),
    }
    if oxa:
        made["add"] = Program(
            "add",
            "gradients of two micro-batches",
            lower(add_sums, sums, sums),
            (params, params),
            masters + moments,
            0.0,
            3 * masters,
            1,
        )
    return [made[name] for name in names if name in made]


def stage_programs(c: ConfigDict, stage: str, devices, *, names=NAMES, times: int = 1) -> list[Program]:
    """The programs of NAMES that are in `names`; `times` the rows and slots of the config."""
    mesh, config = make_mesh(**c.mesh, devices=devices), model_config(c.model.preset)
    sampling = sampling_mesh(mesh, tensor=c.sampler.tensor)
    kernel = "splash" if c.model.attention == "auto" else c.model.attention
    model = Qwen3(config, dtype=jnp.dtype(c.model.dtype), remat=c.model.remat, kernel=kernel)

    need(c.task.prompt_room > 0, "task.prompt_room", c.task.prompt_room, "say how many tokens: no prompt is read here")
    g, s = c.grpo, c.stages[stage]
    budget = max(c.budget_rule.budgets) if s.budget == "auto" else s.budget
    width = row_widths(c.task.prompt_room + budget)[0]
    rows, slots, chips = g.rows * times, c.sampler.slots * times, len(devices)
    replicas = chips // c.sampler.tensor
    need_divides("grpo.rows", rows, mesh.shape["data"] * mesh.shape["fsdp"], "mesh.data x mesh.fsdp")
    need_divides("sampler.slots", slots, replicas, "devices / sampler.tensor")
    need_divides("sampler.prefill_rows", c.sampler.prefill_rows, replicas, "devices / sampler.tensor")
    need_divides("model.preset's kv_heads", config.kv_heads, c.mesh.tensor, "mesh.tensor")
    need_divides("model.preset's kv_heads", config.kv_heads, c.sampler.tensor, "sampler.tensor")
    prompt_rows = c.sampler.prefill_rows * (times if "prefill" in names and len(names) == 1 else 1)

    drawing = Sampling(g.temperature, **c.sampler.to_dict() | {"slots": slots, "prefill_rows": prompt_rows})

    # ---- shapes
    params = abstract_params(model, mesh)
    assert_sharded(params)
    tx = make_optimizer(lr=s.lr, warmup=s.warmup, decay_steps=0, **c.optim)
    state, batch = train_state(tx, params, mesh), micro_batch(mesh, rows, width)
    fixed = dict(temperature=g.temperature, chunk=c.model.chunk)
    moved = abstract_params(model, sampling, dtype=c.model.dtype)

    kv_dtype = drawing.kv_dtype(model.dtype)

    def placed(axes, rows, size):
        sizes = dict(L=config.layers, B=rows, X=rows, K=config.kv_heads, S=size, H=config.head_width)
        parts = [(a, jnp.float32 if "H" not in a else kv_dtype) for a in axes if "H" in a or kv_dtype == jnp.int8]
        return [array(sampling, a, tuple(sizes[x] for x in a), dtype) for a, dtype in parts]

    def small(*shape, dtype=jnp.int32):
        return array(sampling, "", (slots, *shape), dtype)

    key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), slots))
    keys = array(sampling, "", key.shape, key.dtype)
    size = c.task.prompt_room + budget
    sizes = plan(drawing, shards=replicas, responses=slots, prompts=prompt_rows, longest=size)
    width_p, page_table = prompt_width(c.task.prompt_room, config.max_length), sizes.empty_table()
    grown = page_table.reserve(np.full(slots, c.task.prompt_room)) + page_table.reserve(np.full(slots, size))
    pools = (tuple(Piece(*placed(AXES, pages, PAGE)) for pages in grown),)
    table = array(sampling, "JT", page_table.table_jn.shape, jnp.int32)
    cache = Pages(pools, table, *(array(sampling, "X", x.shape, jnp.int32) for x in page_table.owners()))
    copies = [
        array(sampling, axes, x.shape, jnp.int32)
        for axes, x in zip(("JT", "J"), page_table.copies(np.array([], int), np.array([], int), width_p))
    ]
    state_j = Slots(small(1), small(), small(), small(), small(dtype=bool), small(dtype=bool), keys)
    prompts = KVCache(*placed(("LBKSH", "LBKSH", "LBKS", "LBKS"), prompt_rows, width_p))

    # ---- bytes and FLOPs per chip
    masters, moments, copy = chip_bytes(params), chip_bytes(state.opt_state), chip_bytes(moved)
    ref = masters if g.loss.kl_coef else 0
    training = masters + moments + ref
    kv, prompt_kv = chip_bytes(cache), chip_bytes(prompts)
    forward = rows * width * flops_per_token(config, (width + 1) / 2) / chips
    gathered = num_params(config) * model.dtype.itemsize / c.mesh.tensor  # weights of one pass, as a chip reads them
    unembed = 2 * config.vocab_size * config.width
    prompt_flops = prompt_rows * width_p * (flops_per_token(config, (width_p + 1) / 2) - unembed) / chips
    passes = 3 if c.model.remat in ("none", "matmuls") else 4
    attention = rows * width * 4 * config.layers * config.heads * config.head_width * (width + 1) / 2 / chips
    kept = attention if c.model.remat == "attention" else 0.0
    stops = ((config.vocab_size - 1,),)
    block = c.sampler.block

    def gradients():
        metrics = jax.eval_shape(lambda p, b: grpo_gradient(model, p, b, **fixed, **g.loss.to_dict())[1], params, batch)
        return params, jax.tree.map(lambda x: array(mesh, "", x.shape, x.dtype), metrics)

    def under(mesh, lower):
        def lowered():
            with jax.set_mesh(mesh):
                return lower()

        return lowered

    made = {
        "gradient": Program(
            "gradient",
            f"{rows} x {width} tokens",
            under(mesh, lambda: grpo_gradient.lower(model, params, batch, **fixed, **g.loss.to_dict())),
            (params, batch),
            moments + ref + masters,
            passes * forward - kept,
            (passes - 1) * gathered,
            1,
        ),
        "add": Program(
            "add",
            "gradients of two micro-batches",
            under(mesh, lambda: add.lower(gradients(), gradients())),
            (params, params),
            training,
            0.0,
            3 * masters,
            1,
        ),
        "apply": Program(
            "apply",
            f"AdamW, {c.optim.moments_dtype} moments",
            under(mesh, lambda: apply_gradients.lower(tx, state, params)),
            (state, params),
            ref,
            0.0,
            3 * masters + 2 * moments,
            1,
        ),
        "score": Program(
            "score",
            f"{rows} x {width} tokens",
            under(mesh, lambda: score.lower(model, params, batch.tokens, batch.position, batch.segment, **fixed)),
            (params, batch.tokens),
            moments + ref,
            forward,
            gathered,
            1,
        ),
        "to_sampling": Program(
            "to_sampling",
            f"{c.model.dtype}, tensor={c.sampler.tensor}",
            under(mesh, lambda: mover(params, sampling).lower(params, c.model.dtype)),
            params,
            moments + ref,
            0.0,
            masters + copy,
            1,
        ),
        "prefill": Program(
            "prefill",
            f"{prompt_rows} x {width_p} tokens",
            under(
                sampling,
                lambda: prefill.lower(model, moved, array(sampling, "", (prompt_rows, width_p), jnp.int32), kv_dtype),
            ),
            moved,
            training + kv + prompt_kv,
            prompt_flops,
            copy,
            1,
        ),
        "admit": Program(
            "admit",
            f"{prompt_rows} prompts into {slots} slots",
            under(
                sampling,
                lambda: admit.lower(
                    pools, state_j, prompts, *copies, Begin(small(dtype=bool), small(), small(), small(), keys)
                ),
            ),
            (pools, state_j, prompts),
            training + copy,
            0.0,
            2 * prompt_kv,
            1,
        ),
        "decode": Program(
            "decode",
            f"{slots} slots, {block} steps, {sum(grown)} pages of {PAGE}",
            under(
                sampling,
                lambda: decode_block.lower(
                    model,
                    moved,
                    cache,
                    state_j,
                    array(sampling, "", (), jnp.int32),
                    steps=block,
                    stop=stops,
                    choice=drawing.choice,
                ),
            ),
            (moved, cache, state_j),
            training + prompt_kv,
            block * slots * flops_per_token(config, size) / chips,
            block * (copy + kv),
            block,
        ),
    }
    return [made[name] for name in names]
