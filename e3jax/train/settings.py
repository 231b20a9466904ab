"""From a config to typed settings: the only place that merges a stage over its base, and the only door to the code.

    settings = resolve(config)
    settings.stages[2].loss.kl_coef        # config.grpo.loss.kl_coef, or what the stage says instead

A ConfigDict is what a person writes and overrides. Each section becomes the frozen dataclass that stands beside the
code which uses it; what one section alone shows to be wrong is refused there, in its `__post_init__`. What spans
sections, or depends on the machine, is refused by train/check.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from e3jax.errors import all_errors, need, need_seed, section
from e3jax.eval.in_training import Evaluation
from e3jax.rewards.workers import Graders
from e3jax.sampler.plan import Sampling
from e3jax.sections import build, merged
from e3jax.tasks.table import TASKS, forms
from e3jax.train.eq2 import BudgetRule
from e3jax.train.grpo import GrpoStage
from e3jax.train.oxa import OxaStage
from e3jax.train.run import Checkpoints, Faults, Init, Logging, MeshShape, ModelSettings, TaskSettings
from e3jax.train.sft import SftStage
from e3jax.train.stage import Stage
from e3jax.train.state import Optimizer

KINDS = {"sft": SftStage, "oxa": OxaStage, "grpo": GrpoStage}
BASES = {"sft": "sft", "grpo": "grpo"}  # kind of stage -> the section that its fields are laid over


@dataclass(frozen=True)
class Settings:
    """A whole training config; `stages` in the order they run."""

    seed: int
    tokenizer: str
    init: Init
    model: ModelSettings
    mesh: MeshShape
    task: TaskSettings
    sampling: Sampling  # at the temperature of no stage: each brings its own
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
    """Return the settings of a config, all that is wrong within a section or stage in one UserError."""
    c = config.to_dict()
    with all_errors():
        need_seed(c["seed"])
        kinds = dict(
            init=Init,
            model=ModelSettings,
            mesh=MeshShape,
            task=TaskSettings,
            optim=Optimizer,
            budget_rule=BudgetRule,
            eval=Evaluation,
            checkpoint=Checkpoints,
            faults=Faults,
            grader=Graders,
            log=Logging,
        )
        parts = {name: built(f"{name}.{{}}".format, kind, c[name]) for name, kind in kinds.items()}
        parts["sampling"] = built("sampler.{}".format, Sampling, {"temperature": 1.0} | c["sampler"])
        check_bases(c)
        order, stages = tuple(c["order"]), c["stages"]
        need(len(order) > 0 and len(set(order)) == len(order), "order", order, "name each stage once")
        need(set(order) <= set(stages), "order", order, f"stages are {sorted(stages)}")
        return Settings(seed=c["seed"], tokenizer=c["tokenizer"], stages=resolve_stages(c, order), **parts)


def built(path: Callable[[str], str], kind: type, values: Mapping[str, Any]):
    """Return `build(kind, values)`, with `path` from a field of the section to its place in the config."""
    with section(path):
        return build(kind, values)


def check_bases(c: dict) -> None:
    """Refuse what config.sft and config.grpo say, though every stage may say something else."""
    common = dict(name="", index=0, first_step=0, first_problem=0, evaluated=False, steps=1, lr=1.0, warmup=0)
    built("grpo.{}".format, GrpoStage, c["grpo"] | common | dict(source=(), budget="auto"))
    built("sft.{}".format, SftStage, c["sft"] | common | dict(rows=1, row_length=1))


def resolve_stages(c: dict, order: tuple[str, ...]) -> tuple[Stage, ...]:
    """Return the stages in their order, each laid over its base."""
    stages, first_step, first_problem = [], 0, 0
    for index, name in enumerate(dict.fromkeys(n for n in order if n in c["stages"])):
        where = dict(name=name, index=index, first_step=first_step, first_problem=first_problem)
        stage = resolve_stage(c, c["stages"][name], **where)
        if stage is None:
            continue
        stages.append(stage)
        first_step += stage.steps
        first_problem += stage.steps * (stage.prompts if isinstance(stage, GrpoStage) else c["grpo"]["prompts"])
    return tuple(stages)


def resolve_stage(c: dict, given: dict, *, name: str, **where) -> Stage | None:
    """Return a stage: `given`, laid over the base of its kind; None where the kind is refused."""
    given = dict(given)
    kind = given.pop("kind")
    if not need(kind in KINDS, f"stages.{name}.kind", kind, f"use one of {', '.join(map(repr, KINDS))}"):
        return None
    base = BASES[kind] if kind in BASES else None
    values = merged(c[base], given) if base else given

    def path(field: str) -> str:
        """Return where a person finds the value: in the stage, or in the base that it did not change."""
        return f"{base}.{field}" if base and has(c[base], field) and not has(given, field) else f"stages.{name}.{field}"

    form = c["task"]["form"]
    if kind != "oxa" and "data" not in given and form in forms():
        task = TASKS[form]
        wanted = f"task.form={form!r} wants {task.field!r}, which says which problems"
        if not need(task.field in values, f"stages.{name}", sorted(given), wanted):
            return None
        fields = {one.field for one in TASKS.values()}  # a config may keep another task's beside its own
        values = {k: v for k, v in values.items() if k not in fields} | {"source": values[task.field]}
        if "traces" in values and task.habits:
            values["traces"] = built(f"stages.{name}.traces.{{}}".format, task.habits, values["traces"])
    return built(path, KINDS[kind], values | where | {"name": name})


def has(values: Mapping[str, Any], field: str) -> bool:
    """Return whether a dotted field is there."""
    first, _, rest = field.partition(".")
    return first in values and (not rest or (isinstance(values[first], Mapping) and has(values[first], rest)))
