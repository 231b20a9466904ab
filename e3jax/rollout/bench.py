"""One model on one set, ready to be asked: what every command that draws responses begins with.

for bench, checkpoint, samples in each_bench(config, log, "eval.jsonl", load_sets(config), longest=4096):
    ask_all(bench, samples=samples, longest=4096)
    bench.responses.known["response", 0, 1].tokens
"""

import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from e3jax.checkpoint.pretrained import Pretrained, load_pretrained
from e3jax.errors import Stopped, UserError, all_errors, need, need_seed
from e3jax.log import RunLog
from e3jax.rewards.extract import WHERE
from e3jax.rollout.digests import is_scored
from e3jax.rollout.responses import Asked, Responses, fill
from e3jax.runtime import barrier, stop_asked
from e3jax.sampler.layout import sampling_layout
from e3jax.sampler.plan import Sampling
from e3jax.sharding import make_mesh
from e3jax.tasks.problem import Problem
from e3jax.tasks.prompts import qwen3_chat
from e3jax.tasks.sets import chosen_sets
from e3jax.tasks.stream import Wording
from e3jax.tasks.table import TASKS, need_form, reads_set, task_of


class Bench(NamedTuple):
    """One model on one set, ready to be asked."""

    label: str
    name: str  # of the set
    pretrained: Pretrained
    problems: list[Problem]
    prompts: list[list[int]]
    responses: Responses
    key: jax.Array
    sampling: Sampling
    log: RunLog

    def draw(self, part: str, asked: list[Asked], stop) -> None:
        """What is missing of one part, with progress; Stopped after SIGTERM."""
        total = sum(len(a.samples) for a in asked)
        left = sum(len(a.samples) for a in self.responses.missing(part, asked))
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
                asked,
                self.pretrained,
                self.sampling,
                ids=[p.id for p in self.problems],
                key=self.key,
                stop=stop,
                on_finished=heard,
            )


def load_problems(*, form: str, source, prompt: str, problems: int, where: str, seed: int) -> list[Problem]:
    """The first problems (0: all of a set) of one of config.sets; without a chat template, which is the model's.

    `where` says where the grader looks for a boxed answer (rewards/extract.py); Countdown has none.
    """
    wording = Wording(prompt, chat=str, where=where)
    return TASKS[form].open(source, seed=seed, split="test", wording=wording)(0, problems or sys.maxsize)


def in_chat(problem: Problem, tokenizer, *, thinking: bool, chat: str = "template") -> Problem:
    """The problem as a user's turn (`user_turn`); raw for Countdown (A.3)."""
    if not task_of(problem).chat:
        return problem
    return replace(problem, question=user_turn(problem.question, tokenizer, thinking=thinking, chat=chat))


def user_turn(words: str, tokenizer, *, thinking: bool, chat: str) -> str:
    """Words in the model's chat template; as they are where there is none.

    `chat` "plain" is Qwen's form without a system prompt, whatever the template says (OXA's models).
    """
    if chat == "plain":
        return qwen3_chat(words)
    return tokenizer.chat_text(words, thinking=thinking) if tokenizer.has_chat else words


def make_bench(
    label: str,
    name: str,
    pretrained: Pretrained,
    problems: list[Problem],
    *,
    longest: int,
    seed: int,
    sampling: Sampling,
    log: RunLog,
) -> Bench:
    """Prompts, and the responses that are there already; UserError when prompt and budget do not fit the model."""
    prompts = [pretrained.tokenizer.encode(p.question) for p in problems]
    most = max(range(len(prompts)), key=lambda p: len(prompts[p]))
    room = pretrained.model.config.max_length - len(prompts[most])
    if longest > room:
        raise UserError(
            f"{label}, {name}: problem {problems[most].id} has a prompt of {len(prompts[most])} tokens, which leaves "
            f"{room} of the model's length: {longest} are asked for, by config.budgets or config.budget with an answer"
        )
    responses = Responses(log.workdir / "responses" / label / name)
    check_responses(responses, problems, prompts, log)
    barrier(f"read {label} {name}")  # before process 0 writes more
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return Bench(label, name, pretrained, problems, prompts, responses, key, sampling, log)


def check_responses(responses: Responses, problems: list[Problem], prompts: list[list[int]], log: RunLog) -> None:
    """Raise UserError for responses to other questions than these; say it where that cannot be known."""
    undated = responses.check([p.id for p in problems], prompts)
    if undated:
        log.say(
            f"{responses.directory}: responses to {undated} problems were kept before digests of the questions were: "
            "they are taken for answers to the questions as they are now"
        )


def ask_all(bench: Bench, *, samples: int, longest: int) -> None:
    """The one long generation: `samples` responses per problem."""
    numbers = tuple(range(samples))
    asked = [Asked(p, numbers, prompt, longest) for p, prompt in enumerate(bench.prompts)]
    bench.draw("response", asked, bench.pretrained.tokenizer.stop)


@all_errors()
def check_models_and_sets(c: ConfigDict) -> None:
    """`models` and `sets`: labels that can be directories, fields with a meaning."""
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
def rising(c: ConfigDict, field: str) -> None:
    """A tuple of numbers, 1 or more, that rise."""
    values = list(c[field])
    right = len(values) > 0 and all(isinstance(n, int) and n >= 1 for n in values)
    need(right, field, values, "name at least one, each 1 or more")
    need(not right or values == sorted(set(values)), field, values, "must rise")


@all_errors()
def check_sampling(c: ConfigDict) -> None:
    """`sampler` and `grader` of a command that draws responses."""
    s, devices = c.sampler, len(jax.devices())
    need_seed(c.seed)
    need(s.temperature >= 0, "sampler.temperature", s.temperature, "0 (the likeliest token) or more")
    need(0 < s.top_p <= 1, "sampler.top_p", s.top_p, "above 0, 1 is off")
    need(s.top_k >= 0, "sampler.top_k", s.top_k, "0 (off) or more")
    divides = s.tensor >= 1 and devices % s.tensor == 0
    need(divides, "sampler.tensor", s.tensor, f"must divide {devices} devices")
    groups = devices // s.tensor if divides else 1
    for name in ("slots", "prefill_rows"):
        need(s[name] >= 1 and s[name] % groups == 0, f"sampler.{name}", s[name], f"a multiple of {groups}")
    need(s.block >= 1, "sampler.block", s.block, "use 1 or more")
    need(c.grader.workers >= 1, "grader.workers", c.grader.workers, "use 1 or more")


def load_sets(c: ConfigDict) -> dict[str, list[Problem]]:
    """The problems of the sets that config.only names, all of config.sets for ""."""
    chosen = chosen_sets(c.sets.to_dict(), c.only)
    sets = {name: {k: v for k, v in one.items() if k != "samples"} for name, one in chosen.items()}
    return {name: load_problems(**one, seed=c.seed) for name, one in sets.items()}


def each_bench(
    c: ConfigDict, log: RunLog, record: str, problems: dict[str, list[Problem]], *, longest: int
) -> Iterator[tuple[Bench, str, int]]:
    """(bench, checkpoint, samples) of every model and set that `record` has no line of yet; models are loaded in turn.

    A line whose set has changed since (its "scored") is dropped, and the set comes again. The sampling mesh is set
    while a bench is at work. UserError for a label that means another checkpoint in `record`.
    """
    models = dict(c.models)
    sampling = Sampling(**c.sampler)
    mesh = make_mesh(data=1, fsdp=-1, tensor=1)
    known = {(line["stage"], line["set"]): line for line in log.read(record)}
    for (label, _), line in known.items():
        if label in models and models[label] != line["checkpoint"]:
            raise UserError(
                f"{log.workdir} holds model {label!r} as {line['checkpoint']}, config.models has {models[label]}: give "
                "it another label"
            )
    for label, checkpoint in models.items():
        todo = [
            name
            for name in problems
            if not is_scored(log, known, label, name, problems[name], samples=c.sets[name].samples)
        ]
        if not todo:
            continue
        log.say(f"loading {label}: {checkpoint}")
        with jax.set_mesh(mesh):
            model, params, tokenizer = load_pretrained(checkpoint, dtype=dtype_of(c), mesh=mesh)
            with sampling_layout(params, tensor=sampling.tensor, dtype=model.dtype) as params:
                for name in todo:
                    bench = make_bench(
                        label,
                        name,
                        Pretrained(model, params, tokenizer),
                        [in_chat(p, tokenizer, thinking=c.thinking, chat=c.chat) for p in problems[name]],
                        longest=longest,
                        seed=c.seed,
                        sampling=sampling,
                        log=log,
                    )
                    log.keep(record, lambda old, n=name, m=label: (old["stage"], old["set"]) != (m, n))
                    yield bench, checkpoint, c.sets[name].samples


def dtype_of(c: ConfigDict) -> str:
    """Of weights and cache, as config.dtype says."""
    return c.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
