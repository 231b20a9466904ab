"""From a config to what the loops need, checked before anything is compiled.

Below this file there is no config object: most sections are spread as keyword arguments, so that a knob which nothing
reads is a TypeError.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from e3jax.checkpoint.pretrained import describe_run, load_tokenizer, model_config
from e3jax.checkpoint.store import Store
from e3jax.errors import need
from e3jax.flags import keep_programs
from e3jax.log import RunLog
from e3jax.metrics.reading import LOST, READ
from e3jax.models.qwen3 import Qwen3
from e3jax.phases import NO_TAGS, tag_ids
from e3jax.rewards.plan import UNSOUND
from e3jax.rewards.workers import GraderPool
from e3jax.runtime import from_main
from e3jax.sharding import make_mesh
from e3jax.tasks.prompts import PROMPTS, qwen3_chat
from e3jax.tasks.stream import Stream, Wording
from e3jax.tasks.table import TASKS
from e3jax.tokenizer import WordTokenizer
from e3jax.train.check import check, check_room
from e3jax.train.closing import check_closing

PROBED = 32  # problems of each stage and set whose prompts are measured where problems have no end
SPARE = 8  # tokens that a later problem's prompt may have more


class Checkpoints(NamedTuple):
    """config.checkpoint."""

    every: int
    keep: int
    keep_every: int
    best: str


class Run(NamedTuple):
    """What stays the same through all stages of a run."""

    workdir: epath.Path
    log: RunLog
    model: Qwen3
    tokenizer: Any
    mesh: jax.sharding.Mesh
    seed: int
    form: str  # of the task: a name in tasks/table.py
    draw_from: Callable[..., Stream]  # (a stage's or evaluation's source, split=) -> what draws its problems
    chunk: int  # tokens whose logits exist at once
    prompt_room: int  # tokens that a prompt may have: fixes the shapes of a stage
    grader: GraderPool
    checkpoint: Checkpoints
    most_skipped: int  # steps in a row without a finite gradient before the run stops

    def store(self, stage: str) -> Store:
        """Checkpoints of one stage; the ranks of earlier ones are in the metrics that were logged with them."""
        c = self.checkpoint
        known = [x for x in self.log.read("metrics.jsonl") if x["stage"] == stage] if c.best else []
        return Store(
            self.workdir / "checkpoints" / stage,
            keep=c.keep,
            keep_every=c.keep_every,
            say=self.log.say,
            ranks={x["step"]: self.rank(x) for x in known},
        )

    def rank(self, values: dict) -> float:
        """What a checkpoint is kept for: its config.checkpoint.best, "-NAME" for the least; NaN where it has none."""
        name = self.checkpoint.best.removeprefix("-")
        value = values[name] if name in values and values[name] is not None else math.nan
        return -value if self.checkpoint.best.startswith("-") else value

    def key(self, stage_index: int, step: int) -> jax.Array:
        """The one source of randomness of a step: a function of (seed, stage, step), never stored."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), stage_index), step)


def make_run(c: ConfigDict, workdir: str) -> Run:
    """Check the config, claim the run directory, build model, tokenizer and mesh."""
    check(c)
    model = Qwen3(
        model_config(c.model.preset), dtype=jnp.dtype(c.model.dtype), remat=c.model.remat, kernel=c.model.attention
    )
    words = TASKS[c.task.form].words
    tokenizer = WordTokenizer(words) if c.tokenizer == "words" else load_tokenizer(c.tokenizer, model.config)
    need(
        tokenizer.vocab_size <= model.config.vocab_size,
        "tokenizer",
        c.tokenizer,
        f"has {tokenizer.vocab_size} tokens, {c.model.preset} holds {model.config.vocab_size}",
    )
    need(not c.task.opening or tag_ids(tokenizer), "task.opening", c.task.opening, NO_TAGS)
    for weights in [c.grpo.weights, *(c.stages[name].weights for name in c.order if "weights" in c.stages[name])]:
        if weights.gradients == "no-eos":
            check_closing(tokenizer, weights.closing, match=weights.closing_match)
    check_thinking(c, tokenizer)
    task = c.task.to_dict() | {"prompt_room": room_for_prompts(c, tokenizer)}
    mesh = make_mesh(**c.mesh)
    keep_programs()
    log = RunLog(workdir, c.to_dict(), tensorboard=c.log.tensorboard, wandb=c.log.wandb)
    if c.task.where == "e2c_original":
        log.say(UNSOUND)
    from_main(lambda: describe_run(workdir, c.model.preset, model.config, tokenizer))
    return Run(
        workdir=log.workdir,
        log=log,
        model=model,
        tokenizer=tokenizer,
        mesh=mesh,
        seed=c.seed,
        form=c.task.form,
        draw_from=problem_source(c.seed, tokenizer, **task),
        chunk=c.model.chunk,
        prompt_room=task["prompt_room"],
        grader=GraderPool(**c.grader, function=READ, lost=LOST),
        checkpoint=Checkpoints(**c.checkpoint),
        **c.faults,
    )


def check_thinking(c: ConfigDict, tokenizer) -> None:
    """Refuse a reward that waits for "</think>" where nothing could make this model write it.

    A thought can come from the tokenizer or its chat template, from the prompt's words, from a supervised stage, or
    from a checkpoint of an earlier run.
    """
    if not TASKS[c.task.form].boxed or c.task.where not in ("response", "after_thinking"):
        return
    taught = any(c.stages[name].kind != "grpo" for name in c.order) or "/checkpoints/" in c.init.init_from
    templated = tokenizer.has_chat and c.task.chat == "template"
    need(
        taught or not templated or tokenizer.thinks or "think>" in PROMPTS[c.task.prompt],
        "task.where",
        c.task.where,
        "counts only answers of responses with '</think>', but neither the tokenizer nor its chat template nor "
        f"task.prompt={c.task.prompt!r} knows a thought, so every reward would be 0: set 'anywhere'",
    )


def room_for_prompts(c: ConfigDict, tokenizer) -> int:
    """Return config.task.prompt_room, or for 0 the tokens of the longest prompt of all stages and evaluation sets.

    Of problems without end the first PROBED are measured, and a prompt_room that is too small for them is refused; 0
    has SPARE tokens more for the others. A set's longer problems are left out instead (`problem_source`), so that a
    set is measured for 0 alone.
    """
    room, task = c.task.prompt_room, TASKS[c.task.form]
    endless, of = task.endless, task.field
    if room and not endless:
        return room
    stages = {f"stages.{name}": c.stages[name] for name in c.order}
    sources = {name: (stage[of], "train") for name, stage in stages.items() if of in stage}
    sources |= {f"eval.sets[{name!r}]": (source, "test") for name, source in c.eval.sets.items()}
    draw_from = problem_source(c.seed, tokenizer, **(c.task.to_dict() | {"prompt_room": 1 << 60}))
    lengths = {}
    for name, (source, split) in sources.items():
        draw = draw_from(source, split=split if endless else "test")  # a set in its own order, once
        lengths[name] = max(len(tokenizer.encode(p.question)) for p in draw(0, PROBED if endless else 1 << 60))
    name = max(lengths, key=lengths.get, default="order")
    longest = lengths[name] if lengths else 0
    if room == 0:
        need(longest > 0, "task.prompt_room", 0, "no stage and no set has prompts to measure: say how many tokens")
        room = longest + (SPARE if endless and c.tokenizer != "words" else 0)  # of words, every number is one token
        check_room(c, room)
    need(
        longest <= room,
        "task.prompt_room",
        room,
        f"prompts of config.{name} have up to {longest} tokens (of the first {PROBED} problems): use {longest} or "
        "more, or 0 for what is measured",
    )
    return room


def problem_source(
    seed: int,
    tokenizer,
    *,
    form: str,
    prompt: str,
    chat: str,
    thinking: bool,
    where: str,
    opening: str,
    prompt_room: int,
):
    """`Task.open` with all but source and split said; prompts are in the tokenizer's chat template, if it has one.
    Behind each comes `opening`, which a response is forced to start with.

    `chat` "plain" is Qwen's form of one user turn without a system prompt, whatever the template says.

    A token has at least one byte, so that most prompts are known to fit without being encoded.
    """

    def fits(text: str) -> bool:
        return len((text + opening).encode()) < prompt_room or tokens(text) <= prompt_room

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text + opening))

    def opened(source, *, split: str) -> Stream:
        draw = stream(source, split=split)
        return lambda start, count: [replace(p, question=p.question + opening) for p in draw(start, count)]

    task = TASKS[form]
    templated = partial(tokenizer.chat_text, thinking=thinking) if task.chat and tokenizer.has_chat else str
    words = qwen3_chat if task.chat and chat == "plain" else templated
    stream = partial(task.open, seed=seed, wording=Wording(prompt, words, where, fits, tokens))
    return opened if opening else stream
