"""What the stages of a run share, made from its settings: model, tokenizer, mesh, records, problems, graders."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
from etils import epath

from e3jax.checkpoint.pretrained import Pretrained
from e3jax.checkpoint.store import Store
from e3jax.errors import UserError, are_counts, need, need_at_least_one, need_choice
from e3jax.log import RunLog
from e3jax.models.attention import KERNELS
from e3jax.models.lora import Lora
from e3jax.models.qwen3 import Qwen3
from e3jax.phases import begins_plan
from e3jax.rewards.extract import WHERE
from e3jax.rewards.workers import GraderPool
from e3jax.rollout.episodes import Environment, open_environment
from e3jax.sampler.plan import Sampling
from e3jax.tasks.own_reward import needs_of, parse_reward
from e3jax.tasks.own_task import need_own
from e3jax.tasks.prompts import asking_for_length, no_chat, qwen3_chat
from e3jax.tasks.stream import Stream, Wording
from e3jax.tasks.table import TASKS, need_form
from e3jax.train.state import Optimizer


@dataclass(frozen=True)
class Init:
    """Where the parameters come from."""

    number_embeddings: bool
    init_from: str  # RUN/checkpoints/STAGE/STEP, a Hugging Face directory or hub id; "": random


@dataclass(frozen=True)
class ModelSettings:
    """Shape of the model, and how it computes."""

    name: str  # what stood for the next two, tokenizer and initial weights (train/named_model.py); "": nothing
    preset: str
    dtype: str
    attention: str
    remat: str
    chunk: int  # tokens whose logits exist at once
    lora: Lora

    def __post_init__(self):
        need_choice(self, "dtype", ("float32", "bfloat16"))
        need_choice(self, "attention", ("auto", *KERNELS))
        need_choice(self, "remat", ("auto", "none", "matmuls", "attention", "full"))
        need_at_least_one(self, "chunk")


@dataclass(frozen=True)
class MeshShape:
    """Devices along each axis of the training mesh; fsdp -1: all that are left."""

    data: int
    fsdp: int
    tensor: int

    def __post_init__(self):
        need_at_least_one(self, "data", "tensor")


@dataclass(frozen=True)
class TaskSettings:
    """Which task, how its problems become prompts, and where its grader looks for an answer."""

    form: str
    prompt: str
    chat: str
    thinking: bool
    where: str
    opening: str
    prompt_room: int
    reward: str  # of the user's own (tasks/own_reward.py); "": the task's grader alone
    lengths: tuple  # the fewest and most tokens that a prompt asks a response to have (LCPO); (): it asks for none
    file: str  # of the user's own task (tasks/own_task.py); "": the task is `form`

    def __post_init__(self):
        need_form("form", self.form)
        try:
            parse_reward(self.reward)
        except UserError as error:
            need(False, "reward", self.reward, str(error))
        right = not self.lengths or (len(self.lengths) == 2 and are_counts(self.lengths))
        allowed = "use two whole numbers, the fewest and the most tokens, or () for off"
        need(right and list(self.lengths) == sorted(self.lengths), "lengths", self.lengths, allowed)
        if self.file:
            need_own("file", self.file)
        need_choice(self, "where", WHERE)
        need_choice(self, "chat", ("template", "plain"))
        allowed = "use '<EXPLORATION>', after a blank with tokenizer='words', or '' for none"
        need(not self.opening or begins_plan(self.opening), "opening", self.opening, allowed)


@dataclass(frozen=True)
class Checkpoints:
    """Which steps are saved and kept."""

    every: int
    keep: int
    keep_every: int
    best: str  # a metric, "-NAME" for the least; "": none

    def __post_init__(self):
        need_at_least_one(self, "every", "keep")
        need(self.keep_every >= 0, "keep_every", self.keep_every, "use 0 (none) or more")


@dataclass(frozen=True)
class Faults:
    """When a run gives up."""

    most_skipped: int  # steps in a row without a finite gradient

    def __post_init__(self):
        need_at_least_one(self, "most_skipped")


@dataclass(frozen=True)
class Logging:
    """Who else gets the metrics."""

    tensorboard: bool
    wandb: str  # project name; "": off


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of `config.order`: where it stands in the run, and its optimiser's schedule."""

    name: str
    index: int  # in the order: names its noise
    first_step: int  # steps of the stages before it
    first_problem: int  # of an RL stage's source: no stage sees a problem of an earlier one
    evaluated: bool  # accuracy and pass@k are measured when it ends
    steps: int
    lr: float
    warmup: int  # steps of linear warm-up; 0: none

    def __post_init__(self):
        need(self.steps >= 1, "steps", self.steps, "use 1 or more")
        need(self.lr > 0, "lr", self.lr, "must be above 0")
        need(self.warmup >= 0, "warmup", self.warmup, "use 0 (none) or more")

    @property
    def reads_drawn(self) -> bool:
        """Return whether it wants to know which problems the stages before it drew (train/selection.py)."""
        return False


class Run(NamedTuple):
    """What stays the same through all stages of a run."""

    workdir: epath.Path
    log: RunLog
    model: Qwen3
    tokenizer: Any
    mesh: jax.sharding.Mesh
    settings: "Settings"  # noqa: F821 (train/settings.py, which imports this file)
    draw_from: Callable[..., Stream]  # (a stage's or evaluation's source, split=) -> what draws its problems
    prompt_room: int  # tokens that a prompt may have: fixes the shapes of a stage
    grader: GraderPool
    slots_for: Callable[[int], int]  # budget -> config.sampler.slots, or for 0 what memory holds

    @property
    def seed(self) -> int:
        """Return config.seed: problems, noise and initial weights are functions of it."""
        return self.settings.seed

    @property
    def chunk(self) -> int:
        """Return how many tokens' logits exist at once."""
        return self.settings.model.chunk

    @property
    def optim(self) -> Optimizer:
        """Return the settings of every stage's optimiser."""
        return self.settings.optim

    def sampling(self, temperature: float, *, budget: int) -> Sampling:
        """Return how responses of at most `budget` tokens are drawn at a stage's temperature."""
        how = dict(temperature=temperature, slots=self.slots_for(budget), environment=self.environment())
        return replace(self.settings.sampling, **how)

    def environment(self) -> Environment | None:
        """Return what replies between turns, None where a response is one turn."""
        task = self.settings.task
        how = dict(style=task.chat, thinking=task.thinking, restarts=False)
        return open_environment(self.settings.environment, self.grader, **how)

    def pretrained(self, params) -> Pretrained:
        """Return the model with these parameters, as it can be asked something."""
        return Pretrained(self.model, params, self.tokenizer)

    def store(self, stage: str) -> Store:
        """Return the checkpoints of one stage; the ranks of earlier ones are in the metrics logged with them."""
        c = self.settings.checkpoint
        known = [x for x in self.log.read("metrics.jsonl") if x["stage"] == stage] if c.best else []
        return Store(
            self.workdir / "checkpoints" / stage,
            keep=c.keep,
            keep_every=c.keep_every,
            say=self.log.say,
            ranks={x["step"]: self.rank(x) for x in known},
        )

    def rank(self, values: dict) -> float:
        """Return what a checkpoint is kept for, by config.checkpoint.best; NaN where it has no such metric."""
        best = self.settings.checkpoint.best
        name = best.removeprefix("-")
        value = values[name] if name in values and values[name] is not None else math.nan
        return -value if best.startswith("-") else value

    def key(self, stage_index: int, step: int) -> jax.Array:
        """Return the one source of randomness of a step: a function of (seed, stage, step), never stored."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), stage_index), step)


def problem_source(task: TaskSettings, tokenizer, *, seed: int, prompt_room: int) -> Callable[..., Stream]:
    """Return (source, split=) -> what draws its problems (tasks/table.py), with their prompts as the model reads them.

    A prompt is in the tokenizer's chat template, if it has one; `task.chat` "plain" is Qwen's form of one user turn
    without a system prompt, whatever the template says. Behind it comes `task.opening`, which a response is forced to
    start with. Of sets, problems of more than `prompt_room` tokens are left out; a token has at least one byte, so that
    most are known to fit without being encoded. With `task.lengths` the user's turn ends with the length it asks for.
    """

    def fits(text: str) -> bool:
        return len((text + task.opening).encode()) < prompt_room or tokens(text) <= prompt_room

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text + task.opening))

    def opened(source, *, split: str) -> Stream:
        draw = stream(source, split=split)
        return lambda start, count: [replace(p, question=p.question + task.opening) for p in draw(start, count)]

    row = TASKS[task.form]
    templated = partial(tokenizer.chat_text, thinking=task.thinking) if row.chat and tokenizer.has_chat else no_chat
    chat = qwen3_chat if row.chat and task.chat == "plain" else templated
    if task.lengths:
        chat = asking_for_length(chat, seed=seed, fewest=task.lengths[0], most=task.lengths[1])
    wording = Wording(task.prompt, chat, task.where, fits, tokens, needs_of(task.reward))
    stream = partial(row.open, seed=seed, wording=wording)
    return opened if task.opening else stream
