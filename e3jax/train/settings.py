"""Turn a config into typed settings. Only here is a stage merged over its base, and only from here does code get it.

    settings = resolve(config)
    settings.stages[2].loss.kl_coef        # config.grpo.loss.kl_coef, or what the stage says instead

A ConfigDict is what a person writes and overrides. Each section becomes the frozen dataclass that stands beside the
code which uses it; its `__post_init__` checks what one section can know. train/check.py checks what spans sections or
depends on the machine.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from e3jax.errors import all_errors, need, need_seed, section
from e3jax.eval.in_training import Evaluation
from e3jax.rewards.workers import Graders
from e3jax.rollout.episodes import Turns
from e3jax.sampler.plan import Sampling
from e3jax.sections import build, merged
from e3jax.tasks.table import TASKS, forms
from e3jax.train.chats import ChatStage
from e3jax.train.eq2 import BudgetRule
from e3jax.train.grpo import GrpoStage
from e3jax.train.named_model import spelled_out
from e3jax.train.oxa import OxaStage
from e3jax.train.run import Checkpoints, Faults, Init, Logging, MeshShape, ModelSettings, Stage, TaskSettings
from e3jax.train.sft import SftStage
from e3jax.train.state import Optimizer

STAGE_KINDS = {"sft": SftStage, "oxa": OxaStage, "grpo": GrpoStage}  # "sft" with the name of its data: ChatStage
OWN = "own"  # the form of config.task.file
BASES = {"sft": "sft", "grpo": "grpo"}  # kind of stage -> the section that it is laid over; OXA has none


@dataclass(frozen=True)
class Settings:
    """A whole training config; `stages` in the order they run."""

    seed: int
    tokenizer: str
    init: Init
    model: ModelSettings
    mesh: MeshShape
    task: TaskSettings
    environment: Turns
    sampling: Sampling  # its temperature is a placeholder: each stage sets its own
    optim: Optimizer
    budget_rule: BudgetRule
    eval: Evaluation
    checkpoint: Checkpoints
    faults: Faults
    grader: Graders
    log: Logging
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        """Return a stage of the order by its name."""
        return next(stage for stage in self.stages if stage.name == name)


def resolve(config: ConfigDict) -> Settings:
    """Return the settings of a config, or raise one UserError that lists every error within a section or stage."""
    with all_errors():
        c = plain_values(config)
        need_seed(c["seed"])
        section_types = dict(
            init=Init,
            model=ModelSettings,
            mesh=MeshShape,
            task=TaskSettings,
            environment=Turns,
            optim=Optimizer,
            budget_rule=BudgetRule,
            eval=Evaluation,
            checkpoint=Checkpoints,
            faults=Faults,
            grader=Graders,
            log=Logging,
        )
        parts = {name: build_section(f"{name}.{{}}".format, kind, c[name]) for name, kind in section_types.items()}
        parts["sampling"] = build_section("sampler.{}".format, Sampling, {"temperature": 1.0} | c["sampler"])
        check_bases(c)
        order, stages = tuple(c["order"]), c["stages"]
        need(len(order) > 0 and len(set(order)) == len(order), "order", order, "name each stage once")
        need(set(order) <= set(stages), "order", order, f"stages are {sorted(stages)}")
        return Settings(seed=c["seed"], tokenizer=c["tokenizer"], stages=resolve_stages(c, order), **parts)


def plain_values(config: ConfigDict) -> dict[str, Any]:
    """Return a config as nested dictionaries, with what model.name and task.file stand for in its place."""
    c = spelled_out(config.to_dict())
    file = c["task"]["file"]
    if not file:
        return c
    field = TASKS[OWN].field
    with_file = {
        name: stage if stage["kind"] != "grpo" or field in stage else stage | {field: file}
        for name, stage in c["stages"].items()
    }
    return c | {"task": c["task"] | {"form": OWN}, "stages": with_file}


def build_section(path: Callable[[str], str], kind: type, values: Mapping[str, Any]):
    """Return `build(kind, values)`; `path` turns a field into the dotted name that errors show."""
    with section(path):
        return build(kind, values)


def check_bases(c: dict) -> None:
    """Check config.sft and config.grpo too: a wrong value is an error there even if every stage overrides it."""
    # stand-ins for what only a stage has
    common = dict(name="", index=0, first_step=0, first_problem=0, evaluated=False, steps=1, lr=1.0, warmup=0)
    build_section("grpo.{}".format, GrpoStage, c["grpo"] | common | dict(source=(), budget="auto"))
    build_section("sft.{}".format, SftStage, c["sft"] | common | dict(rows=1, row_length=1))


def resolve_stages(c: dict, order: tuple[str, ...]) -> tuple[Stage, ...]:
    """Return the stages in their order, each laid over its base."""
    stages, first_step, first_problem = [], 0, 0
    # duplicates and unknown names were refused, but checking goes on
    for index, name in enumerate(dict.fromkeys(n for n in order if n in c["stages"])):
        position = dict(name=name, index=index, first_step=first_step, first_problem=first_problem)
        stage = resolve_stage(c, c["stages"][name], **position)
        if stage is None:
            continue
        stages.append(stage)
        first_step += stage.steps
        drawn = stage.prompts * stage.rounds if isinstance(stage, GrpoStage) else c["grpo"]["prompts"]
        first_problem += stage.steps * drawn
    return tuple(stages)


def resolve_stage(c: dict, given: dict, *, name: str, **position) -> Stage | None:
    """Return a stage: `given`, laid over the base of its kind; None if its kind was refused (the error is noted)."""
    given = dict(given)
    kind = given.pop("kind")
    if not need(kind in STAGE_KINDS, f"stages.{name}.kind", kind, f"use one of {', '.join(map(repr, STAGE_KINDS))}"):
        return None
    base = BASES[kind] if kind in BASES else None
    values = merged(c[base], given) if base else given
    kind_of_stage = STAGE_KINDS[kind]
    if kind == "sft" and "data" in given and isinstance(given["data"], str):
        kind_of_stage = ChatStage
        values = {"aggregation": c["sft"]["aggregation"]} | given

    def path(field: str) -> str:
        """Return the field's path as the error shows it: stages.NAME.field if the stage sets it, else grpo.field."""
        return f"{base}.{field}" if base and has(c[base], field) and not has(given, field) else f"stages.{name}.{field}"

    form = c["task"]["form"]
    if kind != "oxa" and "data" not in given and form in forms():
        task = TASKS[form]
        wanted = f"task.form={form!r} wants {task.field!r}, which says which problems"
        if not need(task.field in values, f"stages.{name}", sorted(given), wanted):
            return None
        fields = {one.field for one in TASKS.values()}  # those of other tasks are ignored
        values = {k: v for k, v in values.items() if k not in fields} | {"source": values[task.field]}
        if "traces" in values and task.habits:
            values["traces"] = build_section(f"stages.{name}.traces.{{}}".format, task.habits, values["traces"])
    return build_section(path, kind_of_stage, values | position | {"name": name})


def has(values: Mapping[str, Any], field: str) -> bool:
    """Return whether a dotted field is there."""
    first, _, rest = field.partition(".")
    return first in values and (not rest or (isinstance(values[first], Mapping) and has(values[first], rest)))
