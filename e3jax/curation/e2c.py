r"""The command: E2C's causal data from any checkpoint: question -> solution -> exploration -> execution made from it.

    python -m e3jax.curation.e2c --config=configs/e2c_data.py --workdir=runs/e2c-data
    python -m e3jax.train.curriculum --config=configs/e2c.py:stage=sft --workdir=runs/e2c-sft \
        --config.stages.sft.data.set=runs/e2c-data/SET.jsonl

The model solves a problem, sums its solution up as a plan, and solves the problem again from question and plan alone:
so the execution depends on the plan (ALGORITHMS B.2). What a filter drops goes no further, and is counted by its
first fault. Words: tasks/plan_prompts.py. How the paper's set was filtered is not known; every filter is ours.

RUN then holds SET.jsonl with the published set's columns (question, exploration, execution, re_execution, answer,
cot), which train/examples.py reads, rows.jsonl (a line per problem: its rows, and what was dropped) and counts.md.
Killed anywhere, the same command draws what is missing and ends with the same rows.
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from e3jax.errors import all_errors, need
from e3jax.eval import tables
from e3jax.flags import keep_programs, run_command
from e3jax.log import RunLog
from e3jax.phases import TAG
from e3jax.rewards.extract import THINKING_ENDS, Grade
from e3jax.rewards.plan import followed, steps
from e3jax.rewards.workers import GraderPool
from e3jax.rollout.bench import Bench, check_models_and_sets, check_responses, check_sampling, each_bench, load_sets
from e3jax.rollout.digests import line_digests, still_counts, what_was_scored
from e3jax.rollout.responses import Responses, discard
from e3jax.runtime import barrier
from e3jax.scaling.calls import Request, ask, said
from e3jax.scaling.planning import bare
from e3jax.tasks.plan_prompts import fill
from e3jax.tasks.problem import Problem
from e3jax.tasks.sets import chosen_sets
from e3jax.tasks.table import reads_set

PHASES = ("solution", "exploration", "re_execution")
LIMITS = ("fewest_steps", "most_steps", "most_plan_tokens", "most_execution_tokens", "least_followed")


def after_thinking(text: str) -> str:
    """What a thinking model says in the end; all of it where it does not think."""
    return text.rpartition(THINKING_ENDS)[2].strip()


def plan_fault(
    plan: str, tokens: int, *, fewest_steps: int, most_steps: int, most_plan_tokens: int, **_execution
) -> str:
    """Why a plan is not taken, "" if it is: tags in it, a box, too few or many numbered steps, too long."""
    if TAG.search(plan):
        return "tags"
    if "\\boxed" in plan:
        return "tells_answer"
    if not fewest_steps <= len(steps(plan)) <= most_steps:
        return "steps"
    return "long" if tokens > most_plan_tokens else ""


def execution_fault(
    plan: str, execution: str, tokens: int, grade: Grade, *, most_execution_tokens: int, least_followed: float, **_plan
) -> str:
    """Why an execution is not taken, "" if it is: the grader's reason, tags in it, too long, the plan not followed."""
    if not grade.score > 0:
        return grade.reason
    if TAG.search(execution):
        return "tags"
    if tokens > most_execution_tokens:
        return "long"
    return "not_followed" if followed(plan, execution) < least_followed else ""


class Drafts:
    """Solutions of a block of problems on their way to rows: {(problem, sample): columns}, and what was dropped."""

    def __init__(self, bench: Bench, grader: GraderPool, asked: Sequence[str], *, form: dict, limits: dict):
        self.bench, self.grader, self.asked = bench, grader, asked
        self.form, self.limits = form, limits  # form: thinking and chat
        self.rows: dict[tuple[int, int], dict[str, Any]] = {}
        self.dropped: dict[int, Counter] = {}

    def draw(self, part: str, prompts: dict, *, budget: int, temperature: float, top_p: float) -> dict:
        """{(problem, sample): (text, tokens)} of those that ended by themselves; the others are dropped."""
        requests = [Request(p, (g,), prompt, 0, budget) for (p, g), prompt in prompts.items()]
        tokenizer, out = self.bench.pretrained.tokenizer, {}
        how = dict(stop=tokenizer.stop, temperature=temperature, top_p=top_p)
        for key, (response, call) in ask(self.bench, part, requests, **how).items():
            if response.done:
                out[key] = tokenizer.decode(response.tokens), call.sampled
            else:
                self.drop(key, part, "truncated")
        return out

    def drop(self, key: tuple[int, int], part: str, fault: str) -> None:
        """Count it, and go on without it."""
        self.dropped.setdefault(key[0], Counter())[f"{part}: {fault}"] += 1
        self.rows.pop(key, None)

    def grade(self, texts: dict[tuple[int, int], str]) -> dict[tuple[int, int], Grade]:
        """Grades of whole texts."""
        problems = [self.bench.problems[p] for p, _ in texts]
        return dict(zip(texts, self.grader.submit(problems, list(texts.values()), [True] * len(texts)).result()))

    def said(self, words: str) -> list[int]:
        """A user's turn in tokens."""
        return said(self.bench, words, **self.form)

    def solve(self, problems: Sequence[int], samples: int, **how) -> None:
        """Step 1: full solutions; wrong ones go no further, so that a plan is one that led to the answer."""
        drawn = self.draw("solution", {(p, g): self.bench.prompts[p] for p in problems for g in range(samples)}, **how)
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

    def summarise(self, **how) -> None:
        """Step 2: of a solution the plan."""
        prompts = {
            key: self.said(fill("summarise", problem=row["question"], solution=row["execution"]))
            for key, row in self.rows.items()
        }
        for key, (text, _) in self.draw("exploration", prompts, **how).items():
            plan = after_thinking(text)
            fault = plan_fault(plan, len(self.bench.pretrained.tokenizer.encode(plan)), **self.limits)
            self.rows[key]["exploration"] = plan
            if fault:
                self.drop(key, "exploration", fault)

    def execute(self, **how) -> None:
        """Step 3: the solution again, from question and plan alone."""
        prompts = {
            key: self.said(fill("execute", problem=self.asked[key[0]], plan=row["exploration"]))
            for key, row in self.rows.items()
        }
        texts = {key: after_thinking(text) for key, (text, _) in self.draw("re_execution", prompts, **how).items()}
        grades = self.grade(texts)
        for key, text in texts.items():
            count = len(self.bench.pretrained.tokenizer.encode(text))
            fault = execution_fault(self.rows[key]["exploration"], text, count, grades[key], **self.limits)
            self.rows[key]["re_execution"] = text
            if fault:
                self.drop(key, "re_execution", fault)


def write_rows(bench: Bench, grader: GraderPool, plain: Sequence[Problem], *, samples: int, c: ConfigDict) -> None:
    """A line of rows.jsonl for every problem that has none, a block of problems after the other.

    `plain` are the problems without a chat template.
    """
    asked = [p.question for p in plain]
    log, of = bench.log, {"stage": bench.label, "set": bench.name}
    known = still_counts(
        log, "rows.jsonl", plain, samples=samples, wanted=lambda x: (x["stage"], x["set"]) == (bench.label, bench.name)
    )
    limits = {name: c[name] for name in LIMITS}
    for first in range(0, len(asked), c.at_once):
        todo = [p for p in range(first, min(first + c.at_once, len(asked))) if p not in known]
        if not todo:
            continue
        directory = log.workdir / "responses" / bench.label / bench.name / f"{first:07d}"
        where = f"{bench.name} from {first} of {len(asked)}"
        drafts = Drafts(
            bench._replace(name=where, responses=Responses(directory)),
            grader,
            asked,
            form={"thinking": c.thinking, "chat": c.chat},
            limits=limits,
        )
        check_responses(drafts.bench.responses, bench.problems, bench.prompts, log)
        barrier(f"read {where}")  # before process 0 writes more
        drafts.solve(todo, samples, **c.solution.to_dict())
        drafts.summarise(**c.exploration.to_dict())
        drafts.execute(**c.re_execution.to_dict())
        for p in todo:
            rows = [row for (q, _), row in sorted(drafts.rows.items()) if q == p]
            dropped = dict(drafts.dropped[p]) if p in drafts.dropped else {}
            log.append(
                "rows.jsonl",
                of
                | {
                    "index": p,
                    "problem": plain[p].id,
                    **line_digests(plain[p], samples),
                    "rows": rows,
                    "dropped": dropped,
                },
            )
        log.flush()
        barrier(f"wrote {where}")
        if not c.keep_responses:
            discard(directory)


def table(lines: Sequence[dict]) -> tables.Grid:
    """What happened to all solutions of a set, by phase and first fault."""
    kept, dropped = sum(len(x["rows"]) for x in lines), sum((Counter(x["dropped"]) for x in lines), Counter())
    order = sorted(dropped, key=lambda name: (PHASES.index(name.split(":")[0]), -dropped[name], name))
    return [
        ["", "solutions"],
        ["drawn", str(kept + dropped.total())],
        *([f"dropped, {n}", str(dropped[n])] for n in order),
        ["kept", str(kept)],
    ]


def write(log: RunLog, name: str, problems: int) -> None:
    """SET.jsonl of the first `problems` problems, and its counts."""
    mine = (x for x in log.read("rows.jsonl") if x["set"] == name and x["index"] < problems)
    lines = sorted(mine, key=lambda x: x["index"])
    rows = [row | {"id": line["problem"]} for line in lines for row in line["rows"]]
    grid = table(lines)
    files = {
        f"{name}.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        f"counts-{name}.md": tables.markdown(grid),
    }
    log.write(files)
    log.console.print(tables.terminal(grid, f"{name}: what was kept"))
    log.say(f"{len(rows)} rows: {log.workdir / name}.jsonl")


@all_errors()
def check(c: ConfigDict) -> None:
    """Refuse impossible values, naming the fields, before anything is loaded."""
    check_models_and_sets(c)
    check_sampling(c)
    need(len(c.models) == 1, "models", c.models, "one model writes a set")
    for name, one in chosen_sets(c.sets, c.only).items():
        need(reads_set(one.form), f"sets[{name!r}].form", one.form, "'math': a set of questions")
    for phase in PHASES:
        need(c[phase].budget >= 1, f"{phase}.budget", c[phase].budget, "use 1 or more")
        need(c[phase].temperature >= 0, f"{phase}.temperature", c[phase].temperature, "0 or more")
    need(1 <= c.fewest_steps <= c.most_steps, "fewest_steps", c.fewest_steps, f"1 to most_steps={c.most_steps}")
    need(0 <= c.least_followed <= 1, "least_followed", c.least_followed, "a share, 0 to 1")
    need(c.at_once >= 1, "at_once", c.at_once, "use 1 or more")


def main(config: ConfigDict, workdir: str) -> None:
    """Rows of all sets."""
    check(config)
    keep_programs()
    problems = load_sets(config)
    log = RunLog(workdir, config.to_dict(), tensorboard=False, wandb="")
    longest = max(config[phase].budget for phase in PHASES)
    with GraderPool(**config.grader.to_dict()) as grader:
        for bench, checkpoint, samples in each_bench(config, log, "done.jsonl", problems, longest=longest):
            write_rows(bench, grader, problems[bench.name], samples=samples, c=config)
            line = {"stage": bench.label, "set": bench.name, "checkpoint": checkpoint}
            log.append("done.jsonl", line | {"scored": what_was_scored(problems[bench.name], samples)})
    for name in problems:
        write(log, name, len(problems[name]))
    if not config.keep_responses:
        discard(log.workdir / "responses")
    log.done()
    log.close()
    barrier("end")


if __name__ == "__main__":
    run_command(main)
