r"""The command: make E2C's causal data with any checkpoint: a solution, its plan, and an execution made from the plan.

    python -m e3jax.curation.e2c --config=configs/e2c_data.py --workdir=runs/e2c-data
    python -m e3jax.train.curriculum --config=configs/e2c.py:stage=sft --workdir=runs/e2c-sft \
        --config.stages.sft.data.set=runs/e2c-data/SET.jsonl

The model solves a problem, sums its solution up as a plan, and solves the problem again from question and plan alone,
so that the execution depends on the plan (docs/algorithms.md#e2c-data). What a filter drops goes no further, and is
counted by its first fault. The prompts are in tasks/plan_prompts.py. How the paper's set was filtered is not known;
every filter is ours.

RUN then holds SET.jsonl with the published set's columns (question, exploration, execution, re_execution, answer,
cot), which train/examples.py reads, rows.jsonl (a line per problem: its rows, and what was dropped) and counts.md.
Killed anywhere, the same command draws what is missing and ends with the same rows.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ml_collections import ConfigDict

from e3jax.errors import all_errors, need, need_at_least_one, section
from e3jax.eval import tables
from e3jax.flags import run_command
from e3jax.log import RunLog
from e3jax.phases import TAG
from e3jax.rewards.extract import THINKING_ENDS, Grade
from e3jax.rewards.plan import followed, steps
from e3jax.rewards.workers import GraderPool
from e3jax.rollout.bench import Bench, Benches, benches_of, check_responses, evaluation_command
from e3jax.rollout.digests import line_digests, still_counts
from e3jax.rollout.responses import Request, Responses, discard
from e3jax.runtime import barrier
from e3jax.scaling.calls import ask, turn_tokens
from e3jax.scaling.planning import bare
from e3jax.tasks.plan_prompts import fill
from e3jax.tasks.problem import Problem
from e3jax.tasks.sets import chosen_sets
from e3jax.tasks.table import reads_set

PHASES = ("solution", "exploration", "re_execution")


@dataclass(frozen=True)
class Phase:
    """A config's section of one of PHASES: how its texts are sampled."""

    budget: int  # tokens
    temperature: float
    top_p: float

    def __post_init__(self):
        need_at_least_one(self, "budget")
        need(self.temperature >= 0, "temperature", self.temperature, "0 or more")


@dataclass(frozen=True)
class Limits:
    """What the filters let through: fields of the config."""

    fewest_steps: int  # numbered lines of a plan
    most_steps: int
    most_plan_tokens: int
    most_execution_tokens: int
    least_followed: float  # share of the plan's steps that the execution takes

    def __post_init__(self):
        steps_rise = 1 <= self.fewest_steps <= self.most_steps
        need(steps_rise, "fewest_steps", self.fewest_steps, f"1 to most_steps={self.most_steps}")
        need(0 <= self.least_followed <= 1, "least_followed", self.least_followed, "a share, 0 to 1")


@dataclass(frozen=True)
class Settings:
    """A config of this command."""

    benches: Benches
    phases: dict[str, Phase]  # by PHASES
    limits: Limits
    at_once: int  # problems that go through all phases together
    keep_responses: bool

    def __post_init__(self):
        need_at_least_one(self, "at_once")


@all_errors()
def check(c: ConfigDict) -> Settings:
    """Return what the config says; refuse impossible values, naming the fields, before anything is loaded."""
    benches, phases = benches_of(c), {}
    need(len(c.models) == 1, "models", c.models, "one model writes a set")
    for name, one in chosen_sets(c.sets, c.only).items():
        need(reads_set(one.form), f"sets[{name!r}].form", one.form, "'math': a set of questions")
    for name in PHASES:
        with section(f"{name}.{{}}".format):
            phases[name] = Phase(**c[name])
    limits = Limits(**{field.name: c[field.name] for field in fields(Limits)})
    return Settings(benches, phases, limits, c.at_once, c.keep_responses)


# ---- filters


def after_thinking(text: str) -> str:
    """Return what a thinking model says behind its thought; the whole text where it does not think."""
    return text.rpartition(THINKING_ENDS)[2].strip()


def plan_fault(plan: str, tokens: int, *, limits: Limits) -> str:
    """Return why a plan is not taken, "" if it is: tags in it, a box, too few or too many numbered steps, too long."""
    if TAG.search(plan):
        return "tags"
    if "\\boxed" in plan:
        return "tells_answer"
    if not limits.fewest_steps <= len(steps(plan)) <= limits.most_steps:
        return "steps"
    return "long" if tokens > limits.most_plan_tokens else ""


def execution_fault(plan: str, execution: str, tokens: int, grade: Grade, *, limits: Limits) -> str:
    """Return why an execution is not taken, "" if it is: the grader's reason, tags, too long, plan not followed."""
    if not grade.score > 0:
        return grade.reason
    if TAG.search(execution):
        return "tags"
    if tokens > limits.most_execution_tokens:
        return "long"
    return "not_followed" if followed(plan, execution) < limits.least_followed else ""


# ---- phases


class Drafts:
    """Solutions of a block of problems on their way to rows."""

    def __init__(self, bench: Bench, grader: GraderPool, limits: Limits):
        self.bench, self.grader, self.limits = bench, grader, limits
        self.rows: dict[tuple[int, int], dict[str, Any]] = {}  # (problem, sample) -> columns
        self.dropped: dict[int, Counter] = {}  # problem -> how many of its solutions were dropped, by fault

    def draw(self, part: str, prompts: dict, phase: Phase) -> dict[tuple[int, int], tuple[str, int]]:
        """Return {(problem, sample): (text, tokens)} of responses that ended by themselves, and drop the others."""
        requests = [Request(p, (g,), prompt, phase.budget) for (p, g), prompt in prompts.items()]
        tokenizer, out = self.bench.pretrained.tokenizer, {}
        how = dict(stop=tokenizer.stop, temperature=phase.temperature, top_p=phase.top_p)
        for key, (response, call) in ask(self.bench, part, requests, **how).items():
            if response.done:
                out[key] = tokenizer.decode(response.tokens), call.sampled
            else:
                self.drop(key, part, "truncated")
        return out

    def drop(self, key: tuple[int, int], part: str, fault: str) -> None:
        """Drop a row, and count its fault."""
        self.dropped.setdefault(key[0], Counter())[f"{part}: {fault}"] += 1
        self.rows.pop(key, None)

    def grade(self, texts: dict[tuple[int, int], str]) -> dict[tuple[int, int], Grade]:
        """Return the grades of whole texts."""
        problems = [self.bench.problems[p] for p, _ in texts]
        return dict(zip(texts, self.grader.submit(problems, list(texts.values()), [True] * len(texts)).result()))

    def solve(self, problems: Sequence[int], phase: Phase) -> None:
        """Step 1: sample full solutions. Wrong ones are dropped, so that every plan is one that led to the answer."""
        prompts = {(p, g): self.bench.prompts[p] for p in problems for g in range(self.bench.samples)}
        drawn = self.draw("solution", prompts, phase)
        grades = self.grade({key: after_thinking(text) for key, (text, _) in drawn.items()})
        for key, (text, _) in drawn.items():
            problem = self.bench.problems[key[0]]
            self.rows[key] = {
                "question": bare(problem),
                "exploration": "",
                "execution": after_thinking(text),
                "re_execution": "",
                "answer": problem.answer,
                "cot": text,
            }
            if not grades[key].score > 0:
                self.drop(key, "solution", grades[key].reason)

    def summarise(self, phase: Phase) -> None:
        """Step 2: sum each solution up as a plan."""
        prompts = {
            key: turn_tokens(self.bench, fill("summarise", problem=row["question"], solution=row["execution"]))
            for key, row in self.rows.items()
        }
        for key, (text, _) in self.draw("exploration", prompts, phase).items():
            plan = after_thinking(text)
            fault = plan_fault(plan, len(self.bench.pretrained.tokenizer.encode(plan)), limits=self.limits)
            self.rows[key]["exploration"] = plan
            if fault:
                self.drop(key, "exploration", fault)

    def execute(self, phase: Phase) -> None:
        """Step 3: solve the problem again, from question and plan alone."""
        prompts = {}
        for (p, g), row in self.rows.items():
            words = fill("execute", problem=self.bench.plain[p].question, plan=row["exploration"])
            prompts[p, g] = turn_tokens(self.bench, words)
        texts = {key: after_thinking(text) for key, (text, _) in self.draw("re_execution", prompts, phase).items()}
        grades = self.grade(texts)
        for key, text in texts.items():
            count = len(self.bench.pretrained.tokenizer.encode(text))
            fault = execution_fault(self.rows[key]["exploration"], text, count, grades[key], limits=self.limits)
            self.rows[key]["re_execution"] = text
            if fault:
                self.drop(key, "re_execution", fault)


# ---- the command


def write_rows(bench: Bench, grader: GraderPool, settings: Settings) -> None:
    """Append a line of rows.jsonl for every problem that has none, block by block."""
    log, plain = bench.log, bench.plain
    known = still_counts(
        log,
        "rows.jsonl",
        plain,
        samples=bench.samples,
        wanted=lambda x: (x["stage"], x["set"]) == (bench.label, bench.name),
    )
    for first in range(0, len(plain), settings.at_once):
        todo = [p for p in range(first, min(first + settings.at_once, len(plain))) if p not in known]
        if not todo:
            continue
        directory = log.workdir / "responses" / bench.label / bench.name / f"{first:07d}"
        where = f"{bench.name} from {first} of {len(plain)}"
        block = bench._replace(name=where, responses=Responses(directory))
        check_responses(block.responses, bench.problems, bench.prompts, log)
        barrier(f"read {where}")  # before process 0 writes more
        drafts, phases = Drafts(block, grader, settings.limits), settings.phases
        drafts.solve(todo, phases["solution"])
        drafts.summarise(phases["exploration"])
        drafts.execute(phases["re_execution"])
        for p in todo:
            rows = [row for (q, _), row in sorted(drafts.rows.items()) if q == p]
            dropped = dict(drafts.dropped[p]) if p in drafts.dropped else {}
            log.append(
                "rows.jsonl",
                bench.names
                | {
                    "index": p,
                    "problem": plain[p].id,
                    **line_digests(plain[p], bench.samples),
                    "rows": rows,
                    "dropped": dropped,
                },
            )
        log.flush()
        barrier(f"wrote {where}")
        if not settings.keep_responses:
            discard(directory)
    log.append("done.jsonl", bench.names | {"checkpoint": bench.checkpoint, "scored": bench.scored})


def table(lines: Sequence[dict]) -> tables.Grid:
    """Return a table of what happened to a set's solutions, by phase and first fault."""
    kept, dropped = sum(len(x["rows"]) for x in lines), sum((Counter(x["dropped"]) for x in lines), Counter())
    order = sorted(dropped, key=lambda name: (PHASES.index(name.split(":")[0]), -dropped[name], name))
    return [
        ["", "solutions"],
        ["drawn", str(kept + dropped.total())],
        *([f"dropped, {n}", str(dropped[n])] for n in order),
        ["kept", str(kept)],
    ]


def write(log: RunLog, name: str, problems: int) -> None:
    """Write SET.jsonl of the first `problems` problems, and its counts."""
    of_set = (x for x in log.read("rows.jsonl") if x["set"] == name and x["index"] < problems)
    lines = sorted(of_set, key=lambda x: x["index"])
    rows = [row | {"id": line["problem"]} for line in lines for row in line["rows"]]
    grid = table(lines)
    files = {
        f"{name}.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        f"counts-{name}.md": tables.markdown(grid),
    }
    log.write(files)
    log.console.print(tables.terminal(grid, f"{name}: what was kept"))
    log.say(f"{len(rows)} rows: {log.workdir / name}.jsonl")


def main(config: ConfigDict, workdir: str) -> None:
    """Make the rows of all sets."""
    settings = check(config)

    def show(log: RunLog, problems: dict[str, list[Problem]]) -> None:
        for name in problems:
            write(log, name, len(problems[name]))
        if not settings.keep_responses:
            discard(log.workdir / "responses")

    evaluation_command(
        config,
        workdir,
        settings.benches,
        record="done.jsonl",
        longest=max(phase.budget for phase in settings.phases.values()),
        measure=lambda bench, grader: write_rows(bench, grader, settings),
        show=show,
    )


if __name__ == "__main__":
    run_command(main)
