"""Benches, each one model on one set, ready to be sampled from; and the frame of the commands that measure them.

def main(config, workdir):
    settings = check(config)
    evaluation_command(config, workdir, settings.benches, record="eval.jsonl", longest=4096, measure=…, show=…)

def measure(bench, grader):     # for every model and set that the record has no line of
    sample_all(bench, longest=4096)
    bench.responses.known["response", 0, 1].tokens
"""

import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from e3jax.checkpoint.pretrained import Pretrained, load_pretrained
from e3jax.errors import Stopped, UserError, all_errors, need, need_seed, section
from e3jax.flags import keep_programs
from e3jax.log import RunLog
from e3jax.models.qwen3 import Qwen3
from e3jax.rewards.extract import WHERE
from e3jax.rewards.workers import GraderPool, Graders
from e3jax.rollout.digests import is_scored, what_was_scored
from e3jax.rollout.episodes import NO_TURNS, Turns, open_environment, sampling_on
from e3jax.rollout.responses import Request, Responses, fill
from e3jax.runtime import barrier, stop_asked
from e3jax.sampler.layout import sampling_layout
from e3jax.sampler.plan import Sampling
from e3jax.sharding import count_slices, make_mesh
from e3jax.tasks.environment import judging
from e3jax.tasks.own_reward import load_reward, marked, needs_of
from e3jax.tasks.problem import Problem
from e3jax.tasks.prompts import last_words, no_chat, qwen3_chat
from e3jax.tasks.sets import chosen_sets
from e3jax.tasks.stream import Wording
from e3jax.tasks.table import TASKS, need_form, reads_set, task_of

# ---- settings


@dataclass(frozen=True)
class ProblemSet:
    """Where problems come from: one of config.sets, or config.set."""

    form: str
    source: Any  # as tasks/stream.py takes it: a set's name or path; numbers of Countdown, digits of a product
    prompt: str
    problems: int  # the first so many; 0: all of a set
    where: str  # where the grader looks for a boxed answer (rewards/extract.py); Countdown has none
    samples: int = 1  # responses to each


@dataclass(frozen=True)
class Chat:
    """How a user's turn is written: config.chat and config.thinking."""

    thinking: bool
    style: str = "template"  # the model's own; "plain": Qwen's without a system prompt (OXA's models)

    def __post_init__(self):
        need(self.style in ("template", "plain"), "chat", self.style, "use 'template' or 'plain'")


@dataclass(frozen=True)
class Benches:
    """Which models are measured on which sets, and how they are sampled and graded."""

    models: dict[str, str]  # label -> checkpoint
    sets: dict[str, ProblemSet]
    seed: int
    dtype: str  # config.dtype
    chat: Chat
    sampling: Sampling
    grader: Graders
    reward: str = ""  # of the user's own (tasks/own_reward.py); "": the tasks' graders


@all_errors()
def benches_of(c: ConfigDict, *, reward: str = "") -> Benches:
    """Return what a config says of models and sets; refuse impossible values, naming the fields.

    `reward`: config.reward of the commands that have it.
    """
    check_models_and_sets(c)
    try:
        load_reward(reward)
    except UserError as error:
        need(False, "reward", reward, str(error))
    return Benches(
        models=dict(c.models),
        sets={name: ProblemSet(**one) for name, one in chosen_sets(c.sets, c.only).items()},
        seed=c.seed,
        dtype=c.dtype,
        chat=Chat(c.thinking, c.chat),
        sampling=sampling_of(c),
        grader=graders_of(c),
        reward=reward,
    )


@all_errors()
def check_models_and_sets(c: ConfigDict) -> None:
    """Refuse `models` and `sets` whose labels cannot be directories, or whose fields have no meaning."""
    models = list(c.models)
    right = all(
        isinstance(m, tuple | list) and len(m) == 2 and all(isinstance(x, str) and x for x in m) for m in models
    )
    right = need(len(models) > 0 and right, "models", c.models, "name at least one (label, checkpoint)")
    for field, labels in (("models", [label for label, _ in models] if right else ["-"]), ("sets", list(c.sets))):
        need(len(labels) > 0 and len(set(labels)) == len(labels), field, labels, "name at least one, each once")
        for label in labels:
            need("/" not in label and not label.startswith("."), field, label, "a label is a directory's name too")
    for name, one in chosen_sets(c.sets, c.only).items():
        known = need_form(f"sets[{name!r}].form", one.form)
        need(one.where in WHERE, f"sets[{name!r}].where", one.where, f"use one of {', '.join(map(repr, WHERE))}")
        least = int(known and not reads_set(one.form))
        need(one.problems >= least, f"sets[{name!r}].problems", one.problems, "how many; 0 (all) of a set with an end")
        need(one.samples >= 1, f"sets[{name!r}].samples", one.samples, "use 1 or more; config.only names some sets")


@all_errors()
def sampling_of(c: ConfigDict) -> Sampling:
    """Return a config's `sampler` section; refuse values that are impossible, or do not divide this machine's devices.

    The seed of its noise is checked too.
    """
    need_seed(c.seed)
    with section("sampler.{}".format):
        sampling, devices = Sampling(**c.sampler), len(jax.devices())
        divides = sampling.tensor >= 1 and devices % sampling.tensor == 0
        need(divides, "tensor", sampling.tensor, f"must divide {devices} devices")
        groups = devices // sampling.tensor if divides else 1
        for name, value in (("slots", sampling.slots), ("prefill_rows", sampling.prefill_rows)):
            need(value >= 1 and value % groups == 0, name, value, f"a multiple of {groups}")
    return sampling


def graders_of(c: ConfigDict) -> Graders:
    """Return a config's `grader` section; refuse impossible values."""
    with section("grader.{}".format):
        return Graders(**c.grader)


@all_errors()
def need_rising(values: Sequence[int], field: str) -> None:
    """Refuse a tuple unless it holds numbers, 1 or more, that rise."""
    values = list(values)
    right = len(values) > 0 and all(isinstance(n, int) and n >= 1 for n in values)
    need(right, field, values, "name at least one, each 1 or more")
    need(not right or values == sorted(set(values)), field, values, "must rise")


def dtype_name(dtype: str) -> str:
    """Return the dtype of weights and cache that config.dtype names; "" is float32 on a CPU, else bfloat16."""
    return dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")


# ---- problems


def load_problems(questions: ProblemSet, *, seed: int, split: str = "test", reward: str = "") -> list[Problem]:
    """Return a set's problems without a chat template, which is the model's, as `reward` needs them."""
    wording = Wording(questions.prompt, chat=last_words, where=questions.where, needs=needs_of(reward))
    draw = TASKS[questions.form].open(questions.source, seed=seed, split=split, wording=wording)
    return marked(draw(0, questions.problems or sys.maxsize), reward)


def in_chat(problem: Problem, tokenizer, chat: Chat) -> Problem:
    """Return the problem as a user's turn (`user_turn`); Countdown gets no template (docs/algorithms.md#prompts)."""
    if not task_of(problem).chat:
        return problem
    return replace(problem, question=user_turn(problem.question, tokenizer, chat, *before_of(problem)))


def before_of(problem: Problem) -> list[list[dict[str, str]]]:
    """Return the messages before a problem's words as a further argument of a chat; none where there are none."""
    return [problem.meta["before"]] if "before" in problem.meta else []


def user_turn(words: str, tokenizer, chat: Chat, *more: Sequence[dict[str, str]]) -> str:
    """Return words, and the messages before them, in the model's chat template; as they are where there is none."""
    if chat.style == "plain":
        return qwen3_chat(words, *more)
    return tokenizer.chat_text(words, *more, thinking=chat.thinking) if tokenizer.has_chat else no_chat(words, *more)


# ---- benches


class Bench(NamedTuple):
    """One model on one set, ready to be sampled from."""

    label: str  # of the model
    checkpoint: str
    name: str  # of the set
    samples: int  # responses to each problem
    plain: list[Problem]  # as the set has them: no chat template
    problems: list[Problem]  # as the model reads them
    prompts: list[list[int]]  # their tokens
    pretrained: Pretrained
    chat: Chat
    sampling: Sampling
    key: jax.Array
    responses: Responses
    log: RunLog

    @property
    def names(self) -> dict[str, str]:
        """Return the fields that every line of a record about this model and set begins with."""
        return {"stage": self.label, "set": self.name}

    @property
    def scored(self) -> dict[str, Any]:
        """Return a line's "scored": what its numbers count (rollout/digests.py)."""
        return what_was_scored(self.plain, self.samples)

    def drop_lines(self, record: str) -> None:
        """Drop a record's lines of this model and set, which are about to be written anew."""
        self.log.keep(record, lambda line: (line["stage"], line["set"]) != (self.label, self.name))

    def draw(self, part: str, requests: list[Request], stop: Sequence) -> None:
        """Sample this part's missing responses and show progress. Raise Stopped on SIGTERM."""
        total = sum(len(r.samples) for r in requests)
        left = sum(len(r.samples) for r in self.responses.missing(part, requests))
        where = f"{self.label}, {self.name}: {part}"
        if not left:
            return
        with self.log.phase(where, total=total) as phase:
            phase.advance(total - left, f"{total - left} were there" if left < total else None)
            tokens = 0

            def heard(finished: int, drawn: int) -> None:
                nonlocal tokens
                tokens += drawn
                phase.advance(finished, f"{tokens:,} tokens drawn")
                if stop_asked():
                    raise Stopped(f"{where}, {phase.done} of {total} responses are kept")

            fill(
                self.responses,
                part,
                requests,
                self.pretrained,
                self.sampling,
                key=self.key,
                stop=stop,
                on_finished=heard,
            )


def sample_all(bench: Bench, *, longest: int) -> None:
    """Sample the one long generation: `bench.samples` responses to each problem, of at most `longest` tokens."""
    numbers = tuple(range(bench.samples))
    requests = [Request(p, numbers, prompt, longest) for p, prompt in enumerate(bench.prompts)]
    bench.draw("response", requests, bench.pretrained.tokenizer.stop)


def need_room(prompts: Sequence[Sequence[int]], budget: int, model: Qwen3, field: str) -> None:
    """Refuse a budget, a field of the config, that does not fit into the model's length behind the longest prompt."""
    longest, most = max(map(len, prompts)), model.config.max_length
    need(longest + budget <= most, field, budget, f"{most - longest} or less: the longest prompt has {longest} tokens")


def check_responses(responses: Responses, problems: list[Problem], prompts: list[list[int]], log: RunLog) -> None:
    """Raise UserError for responses to other questions than these; say so where that cannot be known."""
    undated = responses.check([p.id for p in problems], prompts)
    if undated:
        log.say(
            f"{responses.directory}: responses to {undated} problems were kept before digests of the questions were: "
            "they are taken for answers to the questions as they are now"
        )


@contextmanager
def model_for_sampling(checkpoint: str, *, dtype: str, sampling: Sampling) -> Iterator[Pretrained]:
    """Load a model onto all devices; within the block it lies in the sampling layout, and that layout's mesh is set."""
    mesh = make_mesh(data=count_slices(), fsdp=-1, tensor=1)
    with jax.set_mesh(mesh):
        model, params, tokenizer = load_pretrained(checkpoint, dtype=dtype_name(dtype), mesh=mesh)
        with sampling_layout(params, tensor=sampling.tensor, dtype=model.dtype) as params:
            yield Pretrained(model, params, tokenizer)


def make_bench(
    benches: Benches, label: str, name: str, pretrained: Pretrained, plain: list[Problem], *, longest: int, log: RunLog
) -> Bench:
    """Return the bench of a loaded model and a set's problems, with the responses that are on disk already.

    Raise UserError where a prompt and `longest` tokens behind it do not fit the model.
    """
    problems = [in_chat(p, pretrained.tokenizer, benches.chat) for p in plain]
    prompts = [pretrained.tokenizer.encode(p.question) for p in problems]
    most = max(range(len(prompts)), key=lambda p: len(prompts[p]))
    room = pretrained.model.config.max_length - len(prompts[most])
    if longest > room and benches.sampling.environment is None:  # an episode ends where its context is full
        raise UserError(
            f"{label}, {name}: problem {problems[most].id} has a prompt of {len(prompts[most])} tokens, which leaves "
            f"{room} of the model's length: {longest} are wanted, by config.budgets or config.budget with an answer"
        )
    responses = Responses(log.workdir / "responses" / label / name)
    check_responses(responses, problems, prompts, log)
    barrier(f"read {label} {name}")  # before process 0 writes more
    return Bench(
        label=label,
        checkpoint=benches.models[label],
        name=name,
        samples=benches.sets[name].samples,
        plain=plain,
        problems=problems,
        prompts=prompts,
        pretrained=pretrained,
        chat=benches.chat,
        sampling=sampling_on(benches.sampling, problems),
        key=jax.random.fold_in(jax.random.key(benches.seed), zlib.crc32(name.encode())),
        responses=responses,
        log=log,
    )


def each_bench(
    benches: Benches, problems: dict[str, list[Problem]], log: RunLog, *, record: str, longest: int
) -> Iterator[Bench]:
    """Yield the bench of every model and set that `record` has no line of; a model is loaded once.

    A line whose set has changed since (its "scored") is dropped, and the set comes again. The sampling mesh is set
    while a bench is at work. Raise UserError for a label that means another checkpoint in `record`.
    """
    known = {(line["stage"], line["set"]): line for line in log.read(record)}
    for (label, _), line in known.items():
        if label in benches.models and benches.models[label] != line["checkpoint"]:
            raise UserError(
                f"{log.workdir} holds model {label!r} as {line['checkpoint']}, config.models has "
                f"{benches.models[label]}: give it another label"
            )
    for label, checkpoint in benches.models.items():
        todo = [
            name
            for name, one in problems.items()
            if not is_scored(log, known, label, name, one, samples=benches.sets[name].samples)
        ]
        if not todo:
            continue
        log.say(f"loading {label}: {checkpoint}")
        with model_for_sampling(checkpoint, dtype=benches.dtype, sampling=benches.sampling) as pretrained:
            for name in todo:
                bench = make_bench(benches, label, name, pretrained, problems[name], longest=longest, log=log)
                bench.drop_lines(record)
                yield bench


# ---- commands


@contextmanager
def run_directory(config: ConfigDict, workdir: str) -> Iterator[RunLog]:
    """Open a command's run directory for a block; at the block's end the directory is marked as done and closed."""
    keep_programs()
    log = RunLog(workdir, config.to_dict(), tensorboard=False, wandb="")
    yield log
    log.done()
    log.close()
    barrier("end")


def evaluation_command(
    config: ConfigDict,
    workdir: str,
    benches: Benches,
    *,
    record: str,
    longest: int,
    measure: Callable[[Bench, GraderPool], None],
    show: Callable[[RunLog, dict[str, list[Problem]]], None],
    turns: Turns = NO_TURNS,
) -> None:
    """Measure every model on every set that `record` has no line of, then show everything.

    `measure(bench, grader)` ends with its line in `record`; a response has `longest` tokens at most, forced ones too.
    `show(log, problems)` gets all sets' problems by name. `turns`: what happens between the turns of a response.
    """
    seed, reward = benches.seed, benches.reward
    problems = {name: load_problems(one, seed=seed, reward=reward) for name, one in benches.sets.items()}
    with run_directory(config, workdir) as log:
        with benches.grader.start(**judging(problems.values(), turns.file, reward)) as grader:
            how = dict(style=benches.chat.style, thinking=benches.chat.thinking, restarts=True)
            environment = open_environment(turns, grader, **how)
            benches = replace(benches, sampling=replace(benches.sampling, environment=environment))
            for bench in each_bench(benches, problems, log, record=record, longest=longest):
                measure(bench, grader)
        show(log, problems)
