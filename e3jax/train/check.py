"""Is this config possible? Answered before anything is compiled, in a sentence for every field that is not."""

import jax
from ml_collections import ConfigDict

from e3jax.checkpoint.pretrained import model_config
from e3jax.errors import UserError, all_errors, need, need_seed
from e3jax.losses.e2c import MISSING
from e3jax.losses.grpo import GRADIENTS
from e3jax.models.attention import KERNELS, resolve_kernel
from e3jax.phases import begins_plan
from e3jax.rewards.extract import WHERE
from e3jax.rewards.plan import FOLLOWING
from e3jax.tasks.grade import UNFINISHED
from e3jax.tasks.prompts import need_prompt
from e3jax.tasks.rows import is_place
from e3jax.tasks.sets import chosen_sets
from e3jax.tasks.table import TASKS, need_form
from e3jax.train.closing import MATCHES

STAGE = ("kind", "evaluated", "warmup", "budget", "steps", "lr")  # fields of an RL stage that are not config.grpo's


def need_one_of(c: ConfigDict, field: str, allowed: tuple) -> bool:
    """Refuse a field (dotted) that has none of the values; return whether it has one."""
    value = c
    for name in field.split("."):
        value = value[name]
    return need(value in allowed, field, value, f"use one of {', '.join(map(repr, allowed))}")


def counts(values) -> bool:
    """Return whether these are whole numbers of 1 and more, at least one of them."""
    return len(values) > 0 and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in values)


@all_errors()
def check(c: ConfigDict) -> None:
    """Refuse impossible values and combinations, all of them in one UserError."""
    need_one_of(c, "model.dtype", ("float32", "bfloat16"))
    if need_one_of(c, "model.attention", ("auto", *KERNELS)):
        check_attention(c)
    need_one_of(c, "model.remat", ("none", "matmuls", "attention", "full"))
    need_one_of(c, "sampler.cache", ("compute", "int8"))
    known = need_form("task.form", c.task.form)
    need_one_of(c, "task.where", WHERE)
    need_one_of(c, "task.chat", ("template", "plain"))
    need(
        not c.task.opening or begins_plan(c.task.opening),
        "task.opening",
        c.task.opening,
        "use '<EXPLORATION>', after a blank with tokenizer='words', or '' for none",
    )
    check_prompt(c)
    need_one_of(c, "sft.aggregation", ("token_mean", "sequence_mean"))
    words = c.tokenizer == "words"
    need(
        not known or words == (TASKS[c.task.form].words is not None),
        "tokenizer",
        c.tokenizer,
        f"task.form={c.task.form!r} wants {'a hub tokenizer' if words else 'words'}",
    )
    need(words or not c.init.number_embeddings, "init.number_embeddings", True, "only with tokenizer='words'")
    check_counts(c)
    check_grpo(c.grpo, {}, "")
    check_mesh(c)
    check_sampler(c)
    check_rules(c)
    check_stages(c)
    check_room(c, c.task.prompt_room)


def check_room(c: ConfigDict, prompt_room: int) -> None:
    """Refuse what does not fit the model behind a prompt of `prompt_room` tokens."""
    with all_errors():
        most = model_config(c.model.preset).max_length
        fits = f"0 (measured) to {most - 1}: {c.model.preset} reads {most} tokens"
        if need(0 <= prompt_room < most, "task.prompt_room", prompt_room, fits):
            check_lengths(c, prompt_room, most - max(prompt_room, 1))


@all_errors()
def check_attention(c: ConfigDict) -> None:
    """The attention kernel runs on this backend, in this dtype; "auto" always does."""
    width, backend = model_config(c.model.preset).head_width, jax.default_backend()
    kernel = resolve_kernel(c.model.attention, dtype=c.model.dtype, head_width=width)
    runs_on = {"xla": backend, "splash": "tpu", "splash_interpret": backend, "cudnn": "gpu"}[kernel]
    need(runs_on == backend, "model.attention", kernel, f"runs on {runs_on}, this is {backend}: use 'auto'")
    need(
        kernel != "cudnn" or c.model.dtype == "bfloat16",
        "model.dtype",
        c.model.dtype,
        f"attention={c.model.attention!r} is cuDNN, which wants 'bfloat16'; else set attention='auto'",
    )


@all_errors()
def check_counts(c: ConfigDict) -> None:
    """Counts are at least one, lists are not empty."""
    need_seed(c.seed)
    fields = {
        "model": ("chunk",),
        "mesh": ("data", "tensor"),
        "sampler": ("tensor", "slots", "block", "prefill_rows"),
        "budget_rule": ("problems", "samples"),
        "eval": ("problems", "samples", "pass_problems", "pass_budget"),
        "checkpoint": ("every", "keep"),
        "grader": ("workers",),
        "faults": ("most_skipped",),
    }
    for section, names in fields.items():
        for name in names:
            need(c[section][name] >= 1, f"{section}.{name}", c[section][name], "use 1 or more")
    need(c.checkpoint.keep_every >= 0, "checkpoint.keep_every", c.checkpoint.keep_every, "use 0 (none) or more")
    need(c.grader.timeout_s > 0, "grader.timeout_s", c.grader.timeout_s, "must be above 0")
    for section, name in (("eval", "budgets"), ("eval", "pass_ks"), ("budget_rule", "budgets")):
        values = tuple(c[section][name])
        need(counts(values), f"{section}.{name}", values, "name at least one, each 1 or more")
    chosen_sets(c.eval.sets, c.eval.only, field="eval.only")
    for name, source in c.eval.sets.items():
        TASKS[c.task.form].check_source(f"eval.sets[{name!r}]", source)


@all_errors()
def check_prompt(c: ConfigDict) -> None:
    """task.prompt is one of the task's."""
    if fields := TASKS[c.task.form].prompt_fields:
        try:
            need_prompt(c.task.prompt, fields)
        except UserError as error:
            raise UserError(f"config.task.prompt: {error}") from error


@all_errors()
def check_grpo(g: ConfigDict, stage: dict, name: str) -> None:
    """config.grpo, or what a stage (by `name`) makes of it with its own fields: sizes, temperature, choices, clips."""

    def of(field: str) -> str:
        return f"stages.{name}.{field}" if field.partition(".")[0] in stage else f"grpo.{field}"

    for field in ("rows", "prompts", "minibatches"):
        need(g[field] >= 1, of(field), g[field], "use 1 or more")
    need(g.group_size >= 2, of("group_size"), g.group_size, "a group of one has no baseline, use 2 or more")
    split = g.minibatches >= 1 and g.prompts % g.minibatches == 0
    if "prompts" in stage:
        need(split, of("prompts"), g.prompts, f"must be a multiple of {of('minibatches')}={g.minibatches}")
    else:
        need(split, of("minibatches"), g.minibatches, f"must divide {of('prompts')}={g.prompts}")
    need(g.temperature > 0, of("temperature"), g.temperature, "must be above 0: greedy samples have no log-prob")
    need(g.parity_alarm > 0, of("parity_alarm"), g.parity_alarm, "must be above 0")
    choices = {
        "old_logp": ("trainer", "sampler"),
        "weights.aggregation": ("token_mean", "sequence_mean", "dr_grpo"),
        "weights.gradients": GRADIENTS,
        "weights.denominator": ("shrunken", "fixed"),
        "weights.closing_match": MATCHES,
        "loss.kl_estimator": ("k1", "k2", "k3"),
        "e2c.missing": MISSING,
        "reward.following": FOLLOWING,
        "reward.unfinished": UNFINISHED,
    }
    for field, allowed in choices.items():
        section, _, last = field.rpartition(".")
        value = g[section][last] if section else g[last]
        need(value in allowed, of(field), value, f"use one of {', '.join(map(repr, allowed))}")
    need(g.e2c.coefficient > 0, of("e2c.coefficient"), g.e2c.coefficient, "must be above 0; 1 is plain GRPO")
    need(g.reward.overlong_buffer >= 0, of("reward.overlong_buffer"), g.reward.overlong_buffer, "use 0 (off) or more")
    for field, least in (("dual_clip", 1.0), ("tis_cap", 0.0)):
        value = g.loss[field]
        need(
            value is None or (isinstance(value, int | float) and value > least),
            of(f"loss.{field}"),
            value,
            f"use a number above {least:g}, or None for off",
        )


@all_errors()
def check_mesh(c: ConfigDict) -> None:
    """The mesh covers the devices, and every batch divides over it."""
    devices = len(jax.devices())
    fsdp = max(devices // (c.mesh.data * c.mesh.tensor), 1) if c.mesh.fsdp == -1 else c.mesh.fsdp
    total = c.mesh.data * fsdp * c.mesh.tensor
    if not need(total == devices, "mesh", c.mesh.to_dict(), f"needs {total} devices, {devices} are here"):
        return
    batches = {"grpo.rows": c.grpo.rows}
    batches |= {f"stages.{n}.rows": c.stages[n].rows for n in c.order if n in c.stages and "rows" in c.stages[n]}
    for field, rows in batches.items():
        need(rows % (c.mesh.data * fsdp) == 0, field, rows, f"must be a multiple of data x fsdp = {c.mesh.data * fsdp}")


@all_errors()
def check_sampler(c: ConfigDict) -> None:
    """Slots and prefilled rows divide over the devices."""
    need(0 < c.sampler.top_p <= 1, "sampler.top_p", c.sampler.top_p, "above 0, 1 is off")
    devices, tensor, heads = len(jax.devices()), c.sampler.tensor, model_config(c.model.preset).kv_heads
    if tensor >= 1 and need(
        devices % tensor == 0 and heads % tensor == 0,
        "sampler.tensor",
        tensor,
        f"must divide {devices} devices and {heads} key/value heads",
    ):
        for field in ("slots", "prefill_rows"):
            rows, groups = c.sampler[field], devices // tensor
            need(
                rows % groups == 0,
                f"sampler.{field}",
                rows,
                f"must be a multiple of devices / sampler.tensor = {groups}",
            )


@all_errors()
def check_rules(c: ConfigDict) -> None:
    """Eq. 2's factor; pass@k takes problems that the set has."""
    need(c.budget_rule.kappa > 1, "budget_rule.kappa", c.budget_rule.kappa, "Eq. 2 needs kappa > 1")
    need(
        c.eval.pass_problems <= c.eval.problems,
        "eval.pass_problems",
        c.eval.pass_problems,
        f"at most eval.problems={c.eval.problems}",
    )


@all_errors()
def check_stages(c: ConfigDict) -> None:
    """Every stage that runs is there once and can run."""
    need(len(c.order) > 0 and len(set(c.order)) == len(c.order), "order", tuple(c.order), "name each stage once")
    need(set(c.order) <= set(c.stages), "order", tuple(c.order), f"stages are {sorted(c.stages)}")
    for name in dict.fromkeys(c.order):
        if name in c.stages:
            check_stage(c, name)


@all_errors()
def check_stage(c: ConfigDict, name: str) -> None:
    """One stage, but for what has to fit the model (`check_lengths`)."""
    stage, field = c.stages[name], f"stages.{name}"
    need(stage.steps >= 1, f"{field}.steps", stage.steps, "use 1 or more")
    need(stage.lr > 0, f"{field}.lr", stage.lr, "must be above 0")
    if not need(stage.kind in ("sft", "oxa", "grpo"), f"{field}.kind", stage.kind, "use 'sft', 'oxa' or 'grpo'"):
        return
    if stage.kind == "oxa":
        check_oxa(stage, field)
        return
    if stage.kind == "sft" and "data" in stage:
        check_data(stage, field)
        return
    task = TASKS[c.task.form]
    of = task.field
    if need(of in stage, field, sorted(stage), f"task.form={c.task.form!r} wants {of!r}, which says which problems"):
        task.check_source(f"{field}.{of}", stage[of])
    if stage.kind == "sft":
        check_sft(c, stage, field)
    else:
        check_rl(c, stage.to_dict(), name, of)


@all_errors()
def check_rl(c: ConfigDict, stage: dict, name: str, of: str) -> None:
    """A GRPO stage's budget, and config.grpo as its own fields change it (train/curriculum.py)."""
    field, budget = f"stages.{name}", stage["budget"]
    unknown = sorted(set(stage) - {*STAGE, *(task.field for task in TASKS.values()), *c.grpo})
    need(not unknown, field, unknown, f"no such fields: a stage says {', '.join(STAGE)}, {of}, or what config.grpo has")
    need(budget == "auto" or counts([budget]), f"{field}.budget", budget, "use a number of tokens, or 'auto' for Eq. 2")
    changes = {k: v for k, v in stage.items() if k in c.grpo}
    for section in (k for k, v in changes.items() if isinstance(v, dict)):
        missing = sorted(set(c.grpo[section]) - set(changes[section]))
        need(
            not missing,
            f"{field}.{section}",
            changes[section],
            f"stands for all of config.grpo.{section}: say {', '.join(missing)} too",
        )
    own = ConfigDict(c.grpo.to_dict() | changes)
    check_grpo(own, changes, name)
    buffer = own.reward.overlong_buffer
    of_buffer = f"{field}.reward.overlong_buffer" if "reward" in changes else "grpo.reward.overlong_buffer"
    need(not counts([budget]) or buffer <= budget, of_buffer, buffer, f"at most the budget of stage {name}, {budget}")


@all_errors()
def check_lengths(c: ConfigDict, prompt_room: int, room: int) -> None:
    """Budgets and rows fit the model, which has `room` tokens behind a prompt of `prompt_room`."""
    fits = f"{c.model.preset} has room for {room} tokens after the prompt"
    need(c.eval.pass_budget <= room, "eval.pass_budget", c.eval.pass_budget, fits)
    if counts(c.eval.budgets):
        need(max(c.eval.budgets) <= room, "eval.budgets", tuple(c.eval.budgets), fits)
    doubled = 2 * max(c.budget_rule.budgets) if counts(c.budget_rule.budgets) else 0
    for name in (n for n in c.order if n in c.stages):
        stage, field = c.stages[name], f"stages.{name}"
        if stage.kind == "grpo":
            tokens = doubled if stage.budget == "auto" else stage.budget
            need(
                not counts([tokens]) or tokens <= room,
                f"{field}.budget",
                stage.budget,
                f"asks for {tokens} tokens, {c.model.preset} has room for {room} after the prompt",
            )
        elif stage.kind == "oxa":
            need(
                stage.row_length <= prompt_room + room,
                f"{field}.row_length",
                stage.row_length,
                f"the model has room for {prompt_room + room}",
            )
        elif "traces" in stage and "most_tokens" in stage.traces:
            need(
                stage.traces.most_tokens + prompt_room <= stage.row_length,
                f"{field}.traces.most_tokens",
                stage.traces.most_tokens,
                f"prompt and trace must fit row_length={stage.row_length}",
            )


@all_errors()
def check_sft(c: ConfigDict, stage: ConfigDict, field: str) -> None:
    """A supervised stage on synthetic traces."""
    task, traced = TASKS[c.task.form], [name for name, task in TASKS.items() if task.trace]
    need(
        task.trace is not None,
        f"{field}.kind",
        "sft",
        f"traces exist for task.form {', '.join(traced)} only; else name `data` (configs/e2c.py)",
    )
    need(stage.rows >= 1, f"{field}.rows", stage.rows, "use 1 or more")
    if task.least_trace_tokens is None:
        return
    least = task.least_trace_tokens(stage[task.field])
    need(
        stage.traces.most_tokens >= least,
        f"{field}.traces.most_tokens",
        stage.traces.most_tokens,
        f"one attempt and its answer need {least}",
    )


@all_errors()
def check_data(stage: ConfigDict, field: str) -> None:
    """A supervised stage on a set with explorations."""
    data = stage.data
    need(stage.rows >= 1, f"{field}.rows", stage.rows, "use 1 or more")
    need(data.part in ("both", "exploration"), f"{field}.data.part", data.part, "use 'both' or 'exploration'")
    need(data.longer in ("drop", "cut"), f"{field}.data.longer", data.longer, "use 'drop' or 'cut'")
    need(data.per_step >= 1, f"{field}.data.per_step", data.per_step, "use 1 or more")
    share, named = data.regulariser_share, bool(data.regulariser)
    need(
        0 <= share < 1 and named == (share > 0),
        f"{field}.data.regulariser_share",
        share,
        "0 without a regulariser, below 1 with one",
    )


@all_errors()
def check_oxa(stage: ConfigDict, field: str) -> None:
    """A stage of train/oxa.py: sets that could be read, counts."""
    need(is_place(stage.promote), f"{field}.promote", stage.promote, "a .jsonl file of curation/oxa_sets.py")
    need(not stage.suppress or is_place(stage.suppress), f"{field}.suppress", stage.suppress, "a file, or '' for none")
    for name in ("per_step", "rows", "row_length"):
        need(stage[name] >= 1, f"{field}.{name}", stage[name], "use 1 or more")
    need(stage.ul_weight >= 0, f"{field}.ul_weight", stage.ul_weight, "use 0 (off) or more")
