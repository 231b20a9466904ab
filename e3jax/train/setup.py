"""From a config to what the loops need, checked before anything is compiled.

Below this file there is no config object: sections are spread as keyword arguments, so that a knob which nothing
reads is a TypeError.
"""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from e3jax.checkpoint.store import Store
from e3jax.log import RunLog
from e3jax.models.presets import preset
from e3jax.models.qwen3 import Qwen3
from e3jax.sharding import make_mesh
from e3jax.tasks.countdown_traces import WORDS
from e3jax.tokenizer import HubTokenizer, WordTokenizer
from e3jax.types import UserError


class Run(NamedTuple):
    """What stays the same through all stages of a run."""

    workdir: epath.Path
    log: RunLog
    model: Qwen3
    tokenizer: Any
    mesh: jax.sharding.Mesh
    seed: int
    form: str  # of the task: "calculator" or "paper"
    chunk: int  # tokens whose logits exist at once
    save_every: int
    keep: int

    def store(self, stage: str) -> Store:
        """Checkpoints of one stage."""
        return Store(self.workdir / "checkpoints" / stage, keep=self.keep)

    def key(self, stage_index: int, step: int) -> jax.Array:
        """The one source of randomness of a step: a function of (seed, stage, step), never stored."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), stage_index), step)


def need(holds: bool, field: str, value, allowed: str) -> None:
    """Raise UserError("config.field=value: allowed") unless it holds."""
    if not holds:
        raise UserError(f"config.{field}={value!r}: {allowed}")


def check(c: ConfigDict) -> None:
    """Refuse impossible values and combinations, with one sentence."""
    shape, g = preset(c.model.preset), c.grpo
    need(
        g.group_size >= 2,
        "grpo.group_size",
        g.group_size,
        "a group of one has no baseline, use 2 or more",
    )
    need(g.prompts >= 1, "grpo.prompts", g.prompts, "use 1 or more")
    need(
        g.prompts % g.minibatches == 0,
        "grpo.minibatches",
        g.minibatches,
        f"must divide grpo.prompts={g.prompts}",
    )
    need(
        g.temperature > 0,
        "grpo.temperature",
        g.temperature,
        "must be above 0: greedy samples have no log-prob",
    )
    need(set(c.order) <= set(c.stages), "order", tuple(c.order), f"stages are {sorted(c.stages)}")
    need(
        c.model.dtype in ("float32", "bfloat16"),
        "model.dtype",
        c.model.dtype,
        "use 'float32' or 'bfloat16'",
    )
    need(c.model.remat in ("none", "full"), "model.remat", c.model.remat, "use 'none' or 'full'")
    need(
        c.task.form in ("calculator", "paper"),
        "task.form",
        c.task.form,
        "use 'calculator' or 'paper'",
    )
    parts = c.mesh.data * (len(jax.devices()) // (c.mesh.data * c.mesh.tensor) if c.mesh.fsdp == -1 else c.mesh.fsdp)
    for field, rows in (
        ("grpo.rows", g.rows),
        ("sft.rows", c.sft.rows),
        ("sampler.slots", c.sampler.slots),
    ):
        need(
            rows % max(parts, 1) == 0,
            field,
            rows,
            f"must be a multiple of mesh data x fsdp = {parts}",
        )
    room = shape.max_length - c.task.prompt_room
    longest = max(c.eval.budgets)
    need(
        longest <= room,
        "eval.budgets",
        tuple(c.eval.budgets),
        f"{c.model.preset} has room for {room} tokens after the prompt",
    )
    for name in c.order:
        stage, field = c.stages[name], f"stages.{name}"
        need(stage.kind in ("sft", "grpo"), f"{field}.kind", stage.kind, "use 'sft' or 'grpo'")
        need(stage.steps >= 1, f"{field}.steps", stage.steps, "use 1 or more")
        if stage.kind == "grpo":
            auto = stage.budget == "auto"
            need(auto or (isinstance(stage.budget, int) and stage.budget > 0), f"{field}.budget", stage.budget,
                 "use a number of tokens or 'auto' (Eq. 2)")  # fmt: skip
            most = 2 * max(c.budget_rule.budgets) if auto else stage.budget
            need(most <= room, f"{field}.budget", stage.budget,
                 f"asks for {most} tokens, {c.model.preset} has room for {room} after the prompt")  # fmt: skip
    need(c.budget_rule.kappa > 1, "budget_rule.kappa", c.budget_rule.kappa, "Eq. 2 needs kappa > 1")


def make_run(c: ConfigDict, workdir: str) -> Run:
    """Check the config, claim the run directory, build model, tokenizer and mesh."""
    check(c)
    tokenizer = WordTokenizer(WORDS) if c.tokenizer == "words" else HubTokenizer(c.tokenizer)
    model = Qwen3(preset(c.model.preset), dtype=jnp.dtype(c.model.dtype), remat=c.model.remat)
    need(tokenizer.vocab_size <= model.config.vocab_size, "tokenizer", c.tokenizer,
         f"has {tokenizer.vocab_size} tokens, {c.model.preset} holds {model.config.vocab_size}")  # fmt: skip
    mesh = make_mesh(**c.mesh)
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/e3jax/xla"))
    jax.config.update("jax_compilation_cache_dir", cache)
    log = RunLog(workdir, c.to_dict(), tensorboard=c.log.tensorboard, wandb=c.log.wandb)
    return Run(
        workdir=epath.Path(workdir), log=log, model=model, tokenizer=tokenizer, mesh=mesh, seed=c.seed,
        form=c.task.form, chunk=c.model.chunk, save_every=c.checkpoint.every, keep=c.checkpoint.keep,
    )  # fmt: skip
