"""Is this config possible? Answered before anything is compiled, in a sentence for every field that is not.

What one section can know is refused by its dataclass; here is what spans sections, or depends on the machine.
"""

from typing import Any, NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from e3jax.checkpoint.pretrained import model_config
from e3jax.errors import UserError, all_errors, are_counts, need
from e3jax.models.attention import resolve_kernel
from e3jax.models.lora import sides
from e3jax.storage import place
from e3jax.tasks.own_reward import load_reward
from e3jax.tasks.prompts import need_prompt
from e3jax.tasks.rows import is_place
from e3jax.tasks.table import TASKS, forms
from e3jax.train.chats import ChatStage
from e3jax.train.grpo import GrpoStage
from e3jax.train.oxa import OxaStage
from e3jax.train.settings import Settings, plain_values, resolve
from e3jax.train.sft import SftStage


@all_errors()
def check(config: ConfigDict) -> Settings:
    """Return the config's settings; refuse impossible values and combinations, all of them in one UserError."""
    check_tokenizer(plain_values(config))  # first: with another form a stage has other fields
    s = resolve(config)
    check_attention(s)
    check_lora(s)
    check_prompt(s)
    check_sources(s)
    check_mesh(s, config)
    check_sampler(s)
    check_restricted(s)
    check_asked(s)
    check_selection(s)
    check_carry_over(s)
    check_traces(s)
    check_chats(s)
    check_reward(s)
    check_room(s, s.task.prompt_room)
    return s


def check_room(s: Settings, prompt_room: int) -> None:
    """Refuse what does not fit the model behind a prompt of `prompt_room` tokens."""
    with all_errors():
        most = model_config(s.model.preset).max_length
        allowed = f"0 (measured) to {most - 1}: {s.model.preset} reads {most} tokens"
        if need(0 <= prompt_room < most, "task.prompt_room", prompt_room, allowed):
            check_lengths(s, prompt_room, most - max(prompt_room, 1))


@all_errors()
def check_attention(s: Settings) -> None:
    """Refuse an attention kernel that does not run on this backend, or in this dtype; "auto" always does."""
    width, backend = model_config(s.model.preset).head_width, jax.default_backend()
    kernel = resolve_kernel(s.model.attention, dtype=s.model.dtype, head_width=width)
    runs_on = {"xla": backend, "splash": "tpu", "splash_interpret": backend, "cudnn": "gpu"}[kernel]
    if not need(runs_on == backend, "model.attention", kernel, f"runs on {runs_on}, this is {backend}: use 'auto'"):
        return
    cudnn = f"attention={s.model.attention!r} is cuDNN, which wants 'bfloat16'; else set attention='auto'"
    need(kernel != "cudnn" or s.model.dtype == "bfloat16", "model.dtype", s.model.dtype, cudnn)


@all_errors()
def check_lora(s: Settings) -> None:
    """Refuse adapters of a random model, which would stay random, and of a rank that no matrix has."""
    rank, shape = s.model.lora.rank, model_config(s.model.preset)
    if not rank:
        return
    frozen = "adapters lie beside a trained model: set model.name or init.init_from, or rank=0 to train all parameters"
    need(bool(s.init.init_from), "model.lora.rank", rank, frozen)
    least = min((side for name in s.model.lora.names for side in sides(shape)[name]), default=rank)
    need(rank <= least, "model.lora.rank", rank, f"the smallest matrix has {least} rows or columns: use that or less")


@all_errors()
def check_tokenizer(c: dict[str, Any]) -> None:
    """Refuse a tokenizer that does not know the task's words."""
    tokenizer, numbers, form = c["tokenizer"], c["init"]["number_embeddings"], c["task"]["form"]
    words = tokenizer == "words"
    need(words or not numbers, "init.number_embeddings", numbers, "only with tokenizer='words'")
    if form in forms():
        wanted = f"task.form={form!r} wants {'a hub tokenizer' if words else 'words'}"
        need(words == (TASKS[form].words is not None), "tokenizer", tokenizer, wanted)


@all_errors()
def check_prompt(s: Settings) -> None:
    """Refuse a task.prompt that is none of the task's; a set's may be left out (tasks/prompts.py default_prompt)."""
    task = TASKS[s.task.form]
    if (fields := task.prompt_fields) and (s.task.prompt or task.endless):
        try:
            need_prompt(s.task.prompt, fields)
        except UserError as error:
            raise UserError(f"config.task.prompt: {error}") from error


@all_errors()
def check_sources(s: Settings) -> None:
    """Refuse stages and evaluation sets whose problems the task has not."""
    task = TASKS[s.task.form]
    for stage in s.stages:
        if isinstance(stage, GrpoStage) or (isinstance(stage, SftStage) and stage.data is None):
            task.check_source(f"stages.{stage.name}.{task.field}", stage.source)
    for name, source in s.eval.sets.items():
        task.check_source(f"eval.sets[{name!r}]", source)


@all_errors()
def check_mesh(s: Settings, config: ConfigDict) -> None:
    """Refuse a mesh that does not cover the devices, and batches that do not divide over it."""
    devices, mesh = len(jax.devices()), s.mesh
    fsdp = max(devices // (mesh.data * mesh.tensor), 1) if mesh.fsdp == -1 else mesh.fsdp
    total, shards = mesh.data * fsdp * mesh.tensor, mesh.data * fsdp
    if not need(total == devices, "mesh", config.mesh.to_dict(), f"needs {total} devices, {devices} are here"):
        return
    batches = {"grpo.rows": config.grpo.rows}
    batches |= {f"stages.{x.name}.rows": x.rows for x in s.stages if "rows" in config.stages[x.name]}
    for field, rows in batches.items():
        need(rows % shards == 0, field, rows, f"must be a multiple of data x fsdp = {shards}")


@all_errors()
def check_sampler(s: Settings) -> None:
    """Refuse slots and prefilled rows that do not divide over the devices."""
    devices, tensor, heads = len(jax.devices()), s.sampling.tensor, model_config(s.model.preset).kv_heads
    if tensor < 1:
        return
    allowed = f"must divide {devices} devices and {heads} key/value heads"
    if need(devices % tensor == 0 and heads % tensor == 0, "sampler.tensor", tensor, allowed):
        groups = devices // tensor
        for field in ("slots", "prefill_rows"):
            rows = getattr(s.sampling, field)
            need(
                rows % groups == 0,
                f"sampler.{field}",
                rows,
                f"must be a multiple of devices / sampler.tensor = {groups}",
            )


@all_errors()
def check_restricted(s: Settings) -> None:
    """Refuse RL on samples of top-p or top-k, unless the stage corrects for them: its ratio would be biased."""
    if not s.sampling.restricted:
        return
    field = "top_p" if s.sampling.top_p < 1 else "top_k"
    for stage in s.stages:
        if not isinstance(stage, GrpoStage):
            continue
        cure = (
            f"stage {stage.name} would train on tokens drawn from another distribution than the trainer's: use 1.0 and "
            "top_k=0 in training (e3jax.eval.run has its own), or grpo.restricted_sampling='renormalise'"
        )
        corrected = stage.restricted_sampling == "renormalise"
        need(corrected, f"sampler.{field}", getattr(s.sampling, field), cure)
        reads = stage.loss.tis_cap is not None or stage.loss.surrogate == "dppo_tv" or stage.old_logp == "sampler"
        allowed = "nothing reads the corrected log-prob: set loss.tis_cap, old_logp='sampler' or surrogate='dppo_tv'"
        need(reads or not corrected, f"stages.{stage.name}.restricted_sampling", stage.restricted_sampling, allowed)


@all_errors()
def check_asked(s: Settings) -> None:
    """Refuse a length in the prompt of a task that has no user's turn, and LCPO's reward without one."""
    turns = [name for name in forms() if TASKS[name].chat]
    allowed = f"the length is asked for in a user's turn, which task.form {', '.join(turns)} alone have: use ()"
    need(not s.task.lengths or TASKS[s.task.form].chat, "task.lengths", s.task.lengths, allowed)
    for stage in s.stages:
        if isinstance(stage, GrpoStage):
            asks = "pays for the length that the prompt asks for: set task.lengths, L1 has (100, 4000)"
            field = f"stages.{stage.name}.reward.lcpo"
            need(stage.reward.lcpo == "off" or len(s.task.lengths) > 0, field, stage.reward.lcpo, asks)


@all_errors()
def check_selection(s: Settings) -> None:
    """Refuse to leave out problems of a task that makes new ones without end."""
    for stage in s.stages:
        if isinstance(stage, GrpoStage) and stage.selects:
            said = (stage.drop_above, stage.prompt_tokens)
            allowed = f"task.form={s.task.form!r} makes new problems without end: only those of a set are left out"
            need(not TASKS[s.task.form].endless, f"stages.{stage.name}.drop_above, prompt_tokens", said, allowed)


@all_errors()
def check_carry_over(s: Settings) -> None:
    """Refuse to end a step before its longest response where responses have turns, or a later stage counts them."""
    for stage in s.stages:
        if isinstance(stage, GrpoStage) and s.environment.file:
            for field in ("carry_over", "over_sampling"):
                value, allowed = getattr(stage, field), "not with an environment: a turn is sampled to its end, use 0"
                need(not value, f"stages.{stage.name}.{field}", value, allowed)
        if isinstance(stage, GrpoStage) and (stage.carry_over or stage.over_sampling):
            readers = [x.name for x in s.stages if isinstance(x, GrpoStage) and x.reads_drawn and x.index > stage.index]
            said = f"stages.{stage.name}.carry_over, over_sampling", (stage.carry_over, stage.over_sampling)
            need(not readers, *said, f"drop_above of stage {', '.join(readers)} wants what is drawn: use 0 and 0")


@all_errors()
def check_lengths(s: Settings, prompt_room: int, room: int) -> None:
    """Refuse budgets and rows that do not fit the model, which has `room` tokens behind a prompt of `prompt_room`."""
    fits = f"{s.model.preset} has room for {room} tokens after the prompt"
    need(s.eval.pass_budget <= room, "eval.pass_budget", s.eval.pass_budget, fits)
    if are_counts(s.eval.budgets):
        need(max(s.eval.budgets) <= room, "eval.budgets", tuple(s.eval.budgets), fits)
    doubled = 2 * max(s.budget_rule.budgets) if are_counts(s.budget_rule.budgets) else 0
    for stage in s.stages:
        field = f"stages.{stage.name}"
        if isinstance(stage, GrpoStage):
            tokens = doubled if stage.budget == "auto" else stage.budget
            asks = f"asks for {tokens} tokens, {s.model.preset} has room for {room} after the prompt"
            need(not are_counts([tokens]) or tokens <= room, f"{field}.budget", stage.budget, asks)
        elif isinstance(stage, OxaStage | ChatStage):
            allowed = f"the model has room for {prompt_room + room}"
            need(stage.row_length <= prompt_room + room, f"{field}.row_length", stage.row_length, allowed)
        elif (limit := longest_trace(stage)).tokens:
            allowed = f"prompt and trace must fit row_length={stage.row_length}"
            if limit.field == "most_characters":
                allowed += ", where a character may be a token, and two are set aside for the ends"
            need(limit.tokens + prompt_room <= stage.row_length, f"{field}.traces.{limit.field}", limit.value, allowed)


class Limit(NamedTuple):
    """How long the synthetic traces of a stage may be: a field of its habits, its value, and as many tokens at most."""

    field: str
    value: int
    tokens: int


def longest_trace(stage: SftStage) -> Limit:
    """Return the limit of a stage's traces; of 0 tokens where its habits have none.

    In text, which is ASCII, a byte-level tokenizer makes at most one token of a character; EOS and the blank that
    SentencePiece puts in front are two more.
    """
    habits = stage.traces
    if hasattr(habits, "most_characters"):
        return Limit("most_characters", habits.most_characters, habits.most_characters + 2)
    most = getattr(habits, "most_tokens", 0)
    return Limit("most_tokens", most, most)


@all_errors()
def check_traces(s: Settings) -> None:
    """Refuse supervised stages on traces that the task has not, or that leave no room for one attempt."""
    task, traced = TASKS[s.task.form], [name for name, row in TASKS.items() if row.trace]
    for stage in s.stages:
        if not isinstance(stage, SftStage) or stage.data is not None:
            continue
        field = f"stages.{stage.name}"
        allowed = f"traces exist for task.form {', '.join(traced)} only; else name `data` (configs/e2c.py)"
        if need(task.trace is not None, f"{field}.kind", "sft", allowed) and task.least_trace_tokens:
            least, limit = task.least_trace_tokens(stage.source), longest_trace(stage)
            needed = f"one attempt and its answer need {least}"
            need(limit.value >= least, f"{field}.traces.{limit.field}", limit.value, needed)


@all_errors()
def check_chats(s: Settings) -> None:
    """Refuse data that are not there, and a chat template where the tokenizer is a list of words, which has none."""
    for stage in s.stages:
        if isinstance(stage, ChatStage):
            path = stage.data.partition("@")[0]
            there = not is_place(path) or place(epath.Path(path).expanduser()).exists()
            need(there, f"stages.{stage.name}.data", stage.data, "does not exist: name a file or a directory")
            has_none = "tokenizer='words' has no chat template: use 'none'"
            need(s.tokenizer != "words" or stage.template == "none", f"stages.{stage.name}.template", "chat", has_none)


@all_errors()
def check_reward(s: Settings) -> None:
    """Refuse a reward of the user's own that cannot be loaded, and a budget by Eq. 2 beside it or an own task."""
    try:
        load_reward(s.task.reward)
    except UserError as error:
        need(False, "task.reward", s.task.reward, str(error))
    if not s.task.reward and not TASKS[s.task.form].own:
        return
    for stage in s.stages:
        if isinstance(stage, GrpoStage):
            advice = "Eq. 2 compares accuracies, and a reward of yours may be anything: give a number of tokens"
            need(stage.budget != "auto", f"stages.{stage.name}.budget", "auto", advice)
