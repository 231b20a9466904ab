"""Set a run up: check its config, claim its directory, build model, tokenizer, mesh and graders; compile nothing."""

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from e3jax.checkpoint.pretrained import describe_run, load_tokenizer, model_config
from e3jax.errors import need
from e3jax.flags import keep_programs
from e3jax.log import RunLog
from e3jax.metrics.reading import LOST, READ, READ_OWN
from e3jax.models.qwen3 import Qwen3
from e3jax.phases import NO_TAGS, tag_ids
from e3jax.rewards.plan import UNSOUND
from e3jax.runtime import from_main
from e3jax.sharding import make_mesh
from e3jax.tasks.own_reward import needs_of
from e3jax.tasks.prompts import PROMPTS
from e3jax.tasks.table import TASKS
from e3jax.tokenizer import WordTokenizer
from e3jax.train.check import check, check_room
from e3jax.train.closing import check_closing
from e3jax.train.fit import fit, need_room, slots_that_fit, this_device
from e3jax.train.grpo import GrpoStage
from e3jax.train.run import Run, problem_source
from e3jax.train.settings import Settings

PROBED = 32  # problems of each stage and set whose prompts are measured where problems have no end
SPARE = 8  # tokens that a later problem's prompt may have more


def make_run(config: ConfigDict, workdir: str) -> Run:
    """Check the config, claim the run directory, build model, tokenizer and mesh."""
    s = check(config)
    shape = model_config(s.model.preset)
    words = TASKS[s.task.form].words
    tokenizer = WordTokenizer(words) if s.tokenizer == "words" else load_tokenizer(s.tokenizer, shape)
    tokens = f"has {tokenizer.vocab_size} tokens, {s.model.preset} holds {shape.vocab_size}"
    need(tokenizer.vocab_size <= shape.vocab_size, "tokenizer", s.tokenizer, tokens)
    need(not s.task.opening or tag_ids(tokenizer), "task.opening", s.task.opening, NO_TAGS)
    for stage in s.stages:
        if isinstance(stage, GrpoStage) and stage.weights.gradients == "no-eos":
            check_closing(tokenizer, stage.weights.closing, match=stage.weights.closing_match)
    check_thinking(s, tokenizer)
    room = room_for_prompts(s, tokenizer)
    device = from_main(this_device)
    need_room(s, shape, device)
    s, chosen = fit(s, shape, device, room=room)
    lora = s.model.lora if s.model.lora.rank else None
    model = Qwen3(shape, dtype=jnp.dtype(s.model.dtype), remat=s.model.remat, kernel=s.model.attention, lora=lora)
    mesh = make_mesh(data=s.mesh.data, fsdp=s.mesh.fsdp, tensor=s.mesh.tensor)
    keep_programs()
    log = RunLog(workdir, config.to_dict(), tensorboard=s.log.tensorboard, wandb=s.log.wandb)
    for remark in chosen + [UNSOUND] * (s.task.where == "e2c_original"):
        log.say(remark)
    from_main(lambda: describe_run(workdir, s.model.preset, model.config, tokenizer))
    return Run(
        workdir=log.workdir,
        log=log,
        model=model,
        tokenizer=tokenizer,
        mesh=mesh,
        settings=s,
        draw_from=problem_source(s.task, tokenizer, seed=s.seed, prompt_room=room),
        prompt_room=room,
        grader=s.grader.start(lost=LOST, **reading(s)),
        slots_for=lambda budget: s.sampling.slots or slots_that_fit(s, shape, device, room=room, budget=budget),
    )


def reading(s: Settings) -> dict[str, Any]:
    """Return the graders' function, with the user's own files as its arguments where there are any."""
    files = s.task.reward, s.task.file, s.environment.file
    return {"function": READ_OWN, "arguments": files} if any(files) else {"function": READ}


def check_thinking(s: Settings, tokenizer) -> None:
    """Refuse a reward that waits for "</think>" where nothing could make this model write it.

    A thought can come from the tokenizer or its chat template, from the prompt's words, from a supervised stage, or
    from a checkpoint of an earlier run.
    """
    if not TASKS[s.task.form].boxed or s.task.where not in ("response", "after_thinking") or not asks_tasks_grader(s):
        return
    taught = any(not isinstance(stage, GrpoStage) for stage in s.stages) or "/checkpoints/" in s.init.init_from
    templated = tokenizer.has_chat and s.task.chat == "template"
    words = PROMPTS[s.task.prompt] if s.task.prompt else ""  # no default prompt speaks of thoughts
    need(
        taught or not templated or tokenizer.thinks or "think>" in words,
        "task.where",
        s.task.where,
        "counts only answers of responses with '</think>', but neither the tokenizer nor its chat template nor "
        f"task.prompt={s.task.prompt!r} knows a thought, so every reward would be 0: set 'anywhere'",
    )


def asks_tasks_grader(s: Settings) -> bool:
    """Return whether something reads answers as the task's grader does: RL or an evaluation without an own reward."""
    reads = any(isinstance(stage, GrpoStage) for stage in s.stages) or len(s.eval.sets) > 0
    return reads and needs_of(s.task.reward).answers


def room_for_prompts(s: Settings, tokenizer) -> int:
    """Return config.task.prompt_room, or for 0 the tokens of the longest prompt of all stages and evaluation sets.

    Of problems without end the first PROBED are measured, and a prompt_room that is too small for them is refused; 0
    has SPARE tokens more for the others. A set's longer problems are left out instead (`problem_source`), so that a
    set is measured for 0 alone.
    """
    room, endless = s.task.prompt_room, TASKS[s.task.form].endless
    if room and not endless:
        return room
    sources = {f"stages.{stage.name}": (stage.source, "train") for stage in s.stages if has_source(stage)}
    sources |= {f"eval.sets[{name!r}]": (source, "test") for name, source in s.eval.sets.items()}
    draw_from = problem_source(s.task, tokenizer, seed=s.seed, prompt_room=1 << 60)
    lengths = {}
    for name, (source, split) in sources.items():
        draw = draw_from(source, split=split if endless else "test")  # a set in its own order, once
        lengths[name] = max(len(tokenizer.encode(p.question)) for p in draw(0, PROBED if endless else 1 << 60))
    name = max(lengths, key=lengths.get, default="order")
    longest = lengths[name] if lengths else 0
    if room == 0:
        need(longest > 0, "task.prompt_room", 0, "no stage and no set has prompts to measure: say how many tokens")
        room = longest + (SPARE if endless and s.tokenizer != "words" else 0)  # of words, every number is one token
        check_room(s, room)
    advice = f"use {longest} or more, or 0 for what is measured"
    measured = f"prompts of config.{name} have up to {longest} tokens (of the first {PROBED} problems)"
    need(longest <= room, "task.prompt_room", room, f"{measured}: {advice}")
    return room


def has_source(stage) -> bool:
    """Return whether a stage draws its problems from a source, instead of reading files."""
    return hasattr(stage, "source") and stage.source is not None
