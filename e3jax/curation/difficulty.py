"""The command: how often a model solves each problem of a set, and the set's easy, medium and hard parts as sets.

    python -m e3jax.curation.difficulty --config=configs/difficulty.py --workdir=runs/difficulty
    python -m e3jax.train.curriculum --config=configs/e3_math.py:stage=1 --workdir=runs/stage1 \
        --config.stages.math.set=runs/difficulty/sets/code/easy.jsonl

Killed anywhere, the same command draws the responses that are missing and ends with the same numbers: a response's
noise is a function of (seed, problem, sample) alone. RUN then holds rates.jsonl (a line a problem), pass_rates.svg, and
sets/PRESET/{easy,medium,hard,medhard}.jsonl, which tasks/sets.py reads. Another --config.preset makes its sets of the
same rates. Of a block of `config.at_once` problems the responses are kept until their rates are written.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from e3jax.checkpoint.pretrained import Pretrained, load_pretrained
from e3jax.curation.buckets import LEVELS, PRESETS, bucket
from e3jax.errors import all_errors, need
from e3jax.eval.scoring import count
from e3jax.flags import keep_programs, run_command
from e3jax.log import RunLog
from e3jax.report.files import pass_rates_file
from e3jax.rewards.extract import WHERE
from e3jax.rewards.workers import GraderPool
from e3jax.rollout.bench import Bench, check_responses, check_sampling, in_chat
from e3jax.rollout.digests import line_digests, still_counts
from e3jax.rollout.responses import Asked, Responses, discard
from e3jax.runtime import barrier, unless_stopped
from e3jax.sampler.layout import sampling_layout
from e3jax.sampler.plan import Sampling
from e3jax.sharding import make_mesh
from e3jax.tasks.problem import Problem
from e3jax.tasks.stream import Wording
from e3jax.tasks.table import TASKS, need_form, reads_set

SETS = {level: (level,) for level in LEVELS} | {"medhard": ("medium", "hard")}  # e3's second stage trains on both


@all_errors()
def check(c: ConfigDict) -> None:
    """Refuse impossible values, naming the fields, before anything is loaded."""
    need(c.preset in PRESETS, "preset", c.preset, f"use one of {', '.join(PRESETS)}")
    need_form("set.form", c.set.form)
    need(c.set.where in WHERE, "set.where", c.set.where, f"use one of {', '.join(WHERE)}")
    least = 0 if reads_set(c.set.form) else 1
    need(c.set.problems >= least, "set.problems", c.set.problems, "how many; 0 (all) of a set that has an end")
    for field in ("samples", "budget", "at_once"):
        need(c[field] >= 1, field, c[field], "use 1 or more")
    check_sampling(c)


def load_problems(*, form: str, source, prompt: str, problems: int, where: str, seed: int) -> list[Problem]:
    """Problems to train on, without a chat template: of a set its own order, of a generator its split "train"."""
    split = "test" if reads_set(form) else "train"  # a set's "train" is shuffled and has no end (tasks/stream.py)
    draw = TASKS[form].open(source, seed=seed, split=split, wording=Wording(prompt, chat=str, where=where))
    return draw(0, problems or sys.maxsize)


def measure(
    bench: Bench,
    grader: GraderPool,
    known: set[int],
    plain: Sequence[Problem],
    *,
    samples: int,
    budget: int,
    at_once: int,
    keep_responses: bool,
) -> None:
    """Draw and grade what rates.jsonl lacks, a block of problems after the other, and append a line for each.

    `known` are the problems that it has; `plain` all problems without a chat template.
    """
    log, problems = bench.log, bench.problems
    numbers = tuple(range(samples))
    for first in range(0, len(problems), at_once):
        todo = [p for p in range(first, min(first + at_once, len(problems))) if p not in known]
        if not todo:
            continue
        where = f"problems {first} to {min(first + at_once, len(problems)) - 1} of {len(problems)}"
        directory = log.workdir / "responses" / f"{first:07d}"
        block = bench._replace(name=where, responses=Responses(directory))
        check_responses(block.responses, problems, bench.prompts, log)
        barrier(f"read {where}")  # before process 0 writes more
        asked = [Asked(p, numbers, bench.prompts[p], budget) for p in todo]
        block.draw("response", asked, bench.pretrained.tokenizer.stop)
        drawn = [[block.responses.known["response", p, g] for g in numbers] for p in todo]
        with log.phase(f"{where}: grading", total=len(todo) * samples) as phase:
            counts = count(
                [problems[p] for p in todo],
                drawn,
                decode=bench.pretrained.tokenizer.decode,
                grade=grader.submit,
                budgets=(budget,),
                on_graded=unless_stopped(phase.advance, f"{where}, grading"),
            )
        for p, c in zip(todo, counts):
            right = int(c.right_g.sum())
            log.append(
                "rates.jsonl",
                {
                    "index": p,
                    "problem": c.problem.id,
                    **line_digests(plain[p], samples),
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
        if not keep_responses:
            discard(directory)


def as_row(problem: Problem, level: str, rate: dict[str, Any]) -> dict[str, Any]:
    """A line of a written set: what tasks/sets.py reads, the prompt left out (Countdown's is the problem)."""
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
    """{set: rows}: each level, and medium and hard together, in the order of `problems`."""
    levels = bucket([r["rate"] for r in rates], preset)
    rows = [as_row(p, level, r) for p, level, r in zip(problems, levels, rates)]
    return {name: [row for row in rows if row["difficulty"] in of] for name, of in SETS.items()}


def write(log: RunLog, problems: Sequence[Problem], *, preset: str, title: str) -> None:
    """The sets of `preset`, the histogram, and how many problems each has."""
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
    """Rates of all problems, then the sets."""
    check(config)
    keep_programs()
    problems = load_problems(**config.set.to_dict(), seed=config.seed)
    log = RunLog(workdir, config.to_dict(), tensorboard=False, wandb="")
    title = f"{config.model[-56:]}\n{config.samples} samples, {config.budget} tokens"
    known = still_counts(log, "rates.jsonl", problems, samples=config.samples, wanted=lambda line: True)
    if len(known) < len(problems):
        sampling = Sampling(**config.sampler)
        mesh = make_mesh(data=1, fsdp=-1, tensor=1)
        dtype = config.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
        with GraderPool(**config.grader.to_dict()) as grader, jax.set_mesh(mesh):
            log.say(f"loading {config.model}")
            model, params, tokenizer = load_pretrained(config.model, dtype=dtype, mesh=mesh)
            asked = [in_chat(p, tokenizer, thinking=config.thinking) for p in problems]
            prompts = [tokenizer.encode(p.question) for p in asked]
            longest = max(map(len, prompts))
            need(
                longest + config.budget <= model.config.max_length,
                "budget",
                config.budget,
                f"{model.config.max_length - longest} or less: the longest prompt has {longest} tokens",
            )
            key = jax.random.fold_in(jax.random.key(config.seed), 0)
            with sampling_layout(params, tensor=sampling.tensor, dtype=model.dtype) as params:
                bench = Bench(
                    "difficulty", "", Pretrained(model, params, tokenizer), asked, prompts, None, key, sampling, log
                )
                measure(
                    bench,
                    grader,
                    known,
                    problems,
                    samples=config.samples,
                    budget=config.budget,
                    at_once=config.at_once,
                    keep_responses=config.keep_responses,
                )
    write(log, problems, preset=config.preset, title=title)
    if not config.keep_responses:
        discard(log.workdir / "responses")
    log.done()
    log.close()
    barrier("end")


if __name__ == "__main__":
    run_command(main)
