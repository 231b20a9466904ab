"""The command: measure how often a model solves each problem of a set; write its easy, medium and hard parts as sets.

    python -m e3jax.curation.difficulty --config=configs/difficulty.py --workdir=runs/difficulty
    python -m e3jax.train.curriculum --config=configs/e3_math.py:stage=1 --workdir=runs/stage1 \
        --config.stages.math.set=runs/difficulty/sets/code/easy.jsonl

Killed anywhere, the same command draws the responses that are missing and ends with the same numbers: a response's
noise is a function of (seed, problem, sample) alone. RUN then holds rates.jsonl (a line a problem), pass_rates.svg, and
sets/PRESET/{easy,medium,hard,medhard}.jsonl, which tasks/sets.py reads. Another --config.preset makes its sets from the
same rates. Problems go in blocks of `config.at_once`; a block's responses are kept until its rates are written.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from ml_collections import ConfigDict

from e3jax.checkpoint.pretrained import Pretrained
from e3jax.curation.buckets import LEVELS, PRESETS, bucket
from e3jax.errors import all_errors, need, need_at_least_one
from e3jax.eval.scoring import count
from e3jax.flags import run_command
from e3jax.log import RunLog
from e3jax.report.files import pass_rates_file
from e3jax.rewards.extract import WHERE
from e3jax.rewards.workers import GraderPool, Graders
from e3jax.rollout.bench import (
    Bench,
    Chat,
    ProblemSet,
    check_responses,
    graders_of,
    in_chat,
    load_problems,
    model_for_sampling,
    need_room,
    run_directory,
    sampling_of,
)
from e3jax.rollout.digests import line_digests, still_counts
from e3jax.rollout.responses import Request, Responses, discard
from e3jax.runtime import barrier, unless_stopped
from e3jax.sampler.plan import Sampling
from e3jax.tasks.problem import Problem
from e3jax.tasks.table import need_form, reads_set

SETS = {level: (level,) for level in LEVELS} | {"medhard": ("medium", "hard")}  # e3's second stage trains on both


@dataclass(frozen=True)
class Settings:
    """A config of this command."""

    questions: ProblemSet
    preset: str  # the definition of easy, medium and hard (curation/buckets.py)
    model: str
    dtype: str
    chat: Chat
    seed: int
    samples: int  # responses to each problem
    budget: int  # tokens of a response
    at_once: int  # problems of a block
    keep_responses: bool
    sampling: Sampling
    grader: Graders

    def __post_init__(self):
        need(self.preset in PRESETS, "preset", self.preset, f"use one of {', '.join(PRESETS)}")
        need_at_least_one(self, "samples", "budget", "at_once")


@all_errors()
def check(c: ConfigDict) -> Settings:
    """Return what the config says; refuse impossible values, naming the fields, before anything is loaded."""
    need_form("set.form", c.set.form)
    need(c.set.where in WHERE, "set.where", c.set.where, f"use one of {', '.join(WHERE)}")
    least = 0 if reads_set(c.set.form) else 1
    need(c.set.problems >= least, "set.problems", c.set.problems, "how many; 0 (all) of a set that has an end")
    return Settings(
        ProblemSet(**c.set),
        preset=c.preset,
        model=c.model,
        dtype=c.dtype,
        chat=Chat(c.thinking),
        seed=c.seed,
        samples=c.samples,
        budget=c.budget,
        at_once=c.at_once,
        keep_responses=c.keep_responses,
        sampling=sampling_of(c),
        grader=graders_of(c),
    )


def training_problems(questions: ProblemSet, *, seed: int) -> list[Problem]:
    """Return problems to train on, without a chat template: a set's in its order, a generator's of split "train"."""
    form = questions.form
    split = "test" if reads_set(form) else "train"  # a set's "train" is shuffled and has no end (tasks/stream.py)
    return load_problems(questions, seed=seed, split=split)


def make_bench(settings: Settings, pretrained: Pretrained, plain: list[Problem], log: RunLog) -> Bench:
    """Return the bench of all problems; every block of them puts its own responses in."""
    problems = [in_chat(p, pretrained.tokenizer, settings.chat) for p in plain]
    prompts = [pretrained.tokenizer.encode(p.question) for p in problems]
    need_room(prompts, settings.budget, pretrained.model, "budget")
    return Bench(
        label="difficulty",
        checkpoint=settings.model,
        name="",
        samples=settings.samples,
        plain=plain,
        problems=problems,
        prompts=prompts,
        pretrained=pretrained,
        chat=settings.chat,
        sampling=settings.sampling,
        key=jax.random.fold_in(jax.random.key(settings.seed), 0),
        responses=None,
        log=log,
    )


def measure(bench: Bench, grader: GraderPool, known: set[int], settings: Settings) -> None:
    """Sample and grade the problems that rates.jsonl lacks, block by block, and append a line for each.

    `known` are the problems that it has.
    """
    log, problems, samples = bench.log, bench.problems, bench.samples
    numbers = tuple(range(samples))
    for first in range(0, len(problems), settings.at_once):
        behind = min(first + settings.at_once, len(problems))
        todo = [p for p in range(first, behind) if p not in known]
        if not todo:
            continue
        where = f"problems {first} to {behind - 1} of {len(problems)}"
        directory = log.workdir / "responses" / f"{first:07d}"
        block = bench._replace(name=where, responses=Responses(directory))
        check_responses(block.responses, problems, bench.prompts, log)
        barrier(f"read {where}")  # before process 0 writes more
        requests = [Request(p, numbers, bench.prompts[p], settings.budget) for p in todo]
        block.draw("response", requests, bench.pretrained.tokenizer.stop)
        drawn = [[block.responses.known["response", p, g] for g in numbers] for p in todo]
        with log.phase(f"{where}: grading", total=len(todo) * samples) as phase:
            counts = count(
                [problems[p] for p in todo],
                drawn,
                decode=bench.pretrained.tokenizer.decode,
                grade=grader.submit,
                budgets=(settings.budget,),
                on_graded=unless_stopped(phase.advance, f"{where}, grading"),
            )
        for p, c in zip(todo, counts):
            right = int(c.right_g.sum())
            log.append(
                "rates.jsonl",
                {
                    "index": p,
                    "problem": c.problem.id,
                    **line_digests(bench.plain[p], samples),
                    "samples": samples,
                    "correct": right,
                    "rate": right / samples,
                    "length": float(c.length_g.mean()),
                    "truncated": float(1 - c.done_g.mean()),
                    "reasons": dict(Counter(c.reasons).most_common()),
                },
            )
        log.flush()
        barrier(f"graded {where}")
        if not settings.keep_responses:
            discard(directory)


def as_row(problem: Problem, level: str, rate: dict[str, Any]) -> dict[str, Any]:
    """Return a line of a written set, as tasks/sets.py reads it: without the prompt (Countdown's is the problem)."""
    bare = problem.meta["problem"] if "problem" in problem.meta else problem.question
    meta = {name: value for name, value in problem.meta.items() if name not in ("problem", "where")}
    measured = {"pass_rate": rate["rate"], "samples": rate["samples"], "was": problem.difficulty, "id": problem.id}
    return {
        "task": problem.task,
        "problem": bare,
        "answer": problem.answer,
        "difficulty": level,
        "meta": meta | measured,
    }


def split_set(problems: Sequence[Problem], rates: Sequence[dict], preset: str) -> dict[str, list[dict[str, Any]]]:
    """Return {set: rows}: each level, and medium and hard together, in the order of `problems`."""
    levels = bucket([r["rate"] for r in rates], preset)
    rows = [as_row(p, level, r) for p, level, r in zip(problems, levels, rates)]
    return {name: [row for row in rows if row["difficulty"] in of] for name, of in SETS.items()}


def write(log: RunLog, problems: Sequence[Problem], *, preset: str, title: str) -> None:
    """Write the sets of `preset` and the histogram, and say how many problems each set has."""
    lines = [line for line in log.read("rates.jsonl") if line["index"] < len(problems)]  # fewer than before, maybe
    rates = sorted(lines, key=lambda line: line["index"])
    sets = split_set(problems, rates, preset)
    files = {
        f"sets/{preset}/{name}.jsonl": "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        for name, rows in sets.items()
        if rows
    }
    files["pass_rates.svg"] = pass_rates_file(
        {level: [row["meta"]["pass_rate"] for row in sets[level]] for level in LEVELS},
        samples=rates[0]["samples"],
        title=title,
    )
    log.write(files)
    for name, rows in sets.items():
        mean = sum(row["meta"]["pass_rate"] for row in rows) / len(rows) if rows else float("nan")
        place = f"mean pass rate {mean:.3f}, {log.workdir}/sets/{preset}/{name}.jsonl" if rows else "no file"
        log.say(f"{name}: {len(rows)} of {len(problems)} problems, {place}")


def main(config: ConfigDict, workdir: str) -> None:
    """Measure the rates of all problems, then write the sets."""
    settings = check(config)
    problems = training_problems(settings.questions, seed=settings.seed)
    with run_directory(config, workdir) as log:
        known = still_counts(log, "rates.jsonl", problems, samples=settings.samples, wanted=lambda line: True)
        if len(known) < len(problems):
            log.say(f"loading {settings.model}")
            with (
                settings.grader.start() as grader,
                model_for_sampling(settings.model, dtype=settings.dtype, sampling=settings.sampling) as pretrained,
            ):
                measure(make_bench(settings, pretrained, problems, log), grader, known, settings)
        title = f"{settings.model[-56:]}\n{settings.samples} samples, {settings.budget} tokens"
        write(log, problems, preset=settings.preset, title=title)
        if not settings.keep_responses:
            discard(log.workdir / "responses")


if __name__ == "__main__":
    run_command(main)
