"""OXA's two pools of responses: a teacher's, and those that a model draws to the same queries.

problems = queries(teacher_items(questions, teacher, seed=42), 1000)
draw_responses(log, problems, student, sampling, dtype="", at_once=1024, seed=42)
for problem, response, done in student_items(log, problems, student, at_once=1024): …
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from e3jax.checkpoint.pretrained import load_tokenizer, model_config
from e3jax.errors import need_at_least_one
from e3jax.log import RunLog
from e3jax.rollout.bench import Bench, Chat, ProblemSet, check_responses, in_chat, model_for_sampling, need_room
from e3jax.rollout.responses import Request, Responses
from e3jax.runtime import barrier
from e3jax.sampler.plan import Sampling
from e3jax.tasks.problem import Problem
from e3jax.tasks.prompts import last_words, qwen3_chat
from e3jax.tasks.sets import read_row, read_rows, short_name, to_problem
from e3jax.tasks.stream import Wording
from e3jax.tasks.table import TASKS


@dataclass(frozen=True)
class Teacher:
    """A config's `teacher` section: of a set the column with responses, of Countdown how a solver's traces are made."""

    column: str = ""
    first: int = 0  # number of the first problem
    samples: int = 0  # traces of a problem with each of `habits`
    habits: Sequence[dict] = ()  # arguments of tasks/countdown_traces.py base_trace


@dataclass(frozen=True)
class Student:
    """A config's `own` section: the model whose wrong responses are suppressed, the one to train or a relative."""

    model: str
    thinking: bool
    samples: int  # responses to each query
    budget: int  # tokens
    prefix: str  # what its prompts end with already, so that its texts lack it

    def __post_init__(self):
        need_at_least_one(self, "samples", "budget")


class Item(NamedTuple):
    """One response of a pool; the problem's question is without a chat template."""

    problem: Problem
    response: str
    done: bool


def query_of(problem: Problem) -> str:
    """Return a problem's name by its words, because rows of a file repeat a problem."""
    return hashlib.sha256(problem.question.encode()).hexdigest()[:16]


def prompt_of(problem: Problem, chat: bool) -> str:
    """Return what the trained model reads: a user's turn without a system prompt (OXA's), or the bare question."""
    return qwen3_chat(problem.question) if chat else problem.question


def teacher_items(questions: ProblemSet, teacher: Teacher, *, seed: int) -> Iterator[Item]:
    """Yield a teacher's responses: of a file or set with columns problem, answer and response; or a solver's traces.

    Countdown's traces are guided by the exact solver (tasks/countdown_traces.py): `samples` for each of `habits`.
    """
    task, source = TASKS[questions.form], questions.source
    if not task.endless:
        for row in read_rows(source, split="", limit=0):
            if not row.wrong and isinstance(row.value.get(teacher.column), str):
                row_fields = read_row(row, source=short_name(source), seed=seed)
                problem = to_problem(
                    row_fields, short_name(source), row.index, questions.prompt, last_words, questions.where
                )
                yield Item(problem, row.value[teacher.column], True)
        return
    wording = Wording(questions.prompt, chat=last_words, where=questions.where)
    draw = task.open(source, seed=seed, split="train", wording=wording)
    for i, problem in enumerate(draw(teacher.first, questions.problems)):
        rng = np.random.default_rng([seed, i])
        for habits in teacher.habits:
            for _ in range(teacher.samples):
                yield Item(problem, task.trace(problem, rng, task.habits(**habits)), True)


def queries(items: Iterable[Item], most: int) -> list[Problem]:
    """Return the first `most` (0: all) different problems of a pool, in its order."""
    first_of: dict[str, Problem] = {}
    for item in items:
        first_of.setdefault(query_of(item.problem), item.problem)
        if most and len(first_of) == most:
            break
    return list(first_of.values())


def blocks_of(log: RunLog, problems: list[Problem], at_once: int) -> Iterator[tuple[range, Responses]]:
    """Yield which problems a directory of responses answers, and these: few enough that they fit in memory."""
    for first in range(0, len(problems), at_once):
        here = range(first, min(first + at_once, len(problems)))
        yield here, Responses(log.workdir / "responses" / f"{first:07d}")


def draw_responses(
    log: RunLog, problems: list[Problem], student: Student, sampling: Sampling, *, dtype: str, at_once: int, seed: int
) -> None:
    """Sample the student's responses that are not there yet; `at_once` queries are a block."""
    numbers, chat = tuple(range(student.samples)), Chat(student.thinking)
    tokenizer = load_tokenizer(student.model, model_config(student.model))
    turns = [in_chat(p, tokenizer, chat) for p in problems]
    prompts, left = [tokenizer.encode(p.question) for p in turns], []
    for here, responses in blocks_of(log, problems, at_once):
        check_responses(responses, turns, prompts, log)
        if responses.missing("response", [Request(p, numbers, prompts[p], student.budget) for p in here]):
            left.append(here)
    if not left:
        return
    log.say(f"loading {student.model}")
    with model_for_sampling(student.model, dtype=dtype, sampling=sampling) as pretrained:
        need_room(prompts, student.budget, pretrained.model, "own.budget")
        for here, responses in blocks_of(log, problems, at_once):
            if here not in left:
                continue
            responses.check([p.id for p in problems], prompts)
            barrier(f"read problems from {here.start}")  # before process 0 writes more
            bench = Bench(
                label="own responses",
                checkpoint=student.model,
                name=f"problems {here.start} to {here.stop - 1} of {len(problems)}",
                samples=student.samples,
                plain=problems,
                problems=turns,
                prompts=prompts,
                pretrained=pretrained,
                chat=chat,
                sampling=sampling,
                key=jax.random.fold_in(jax.random.key(seed), 0),
                responses=responses,
                log=log,
            )
            requests = [Request(p, numbers, prompts[p], student.budget) for p in here]
            bench.draw("response", requests, pretrained.tokenizer.stop)


def student_items(log: RunLog, problems: list[Problem], student: Student, *, at_once: int) -> Iterator[Item]:
    """Yield the student's responses (`draw_responses`) in order, with what its prompts held already in front."""
    tokenizer = load_tokenizer(student.model, model_config(student.model))
    for here, responses in blocks_of(log, problems, at_once):
        for p in here:
            for g in range(student.samples):
                r = responses.known["response", p, g]
                yield Item(problems[p], student.prefix + tokenizer.decode(r.tokens), r.done)
