"""The command: how much an E2C model gains from more tokens at test time, by eight methods (docs/algorithms.md#tts).

    python -m e3jax.scaling.run --config=configs/e2c_scaling.py:rl2=runs/e2c/checkpoints/rl2/100 --workdir=runs/scaling

    greedy   one whole response
    sc       self-consistency: K whole responses vote
    tot      tree of thoughts: two branches a level, the leaves vote
    all      K plans, all executed, vote              random   one of K plans, drawn uniformly
    select   one of K plans, chosen by a judge        cluster  K plans, the centres of clusters, vote by size
    react    K plans, a judge, then execute, refine or switch

"-target" behind sc or react: the method may use the target, which a Countdown question states, to decide what to keep.

Every sampled token counts once for each method that would have drawn it. Tokens that are only read (prompts, copies of
plans) and tokens that we put into the model's turn are counted apart (scaling/calls.py). ledger.jsonl names the
responses behind every number, responses/MODEL/SET/ holds them. Killed anywhere, the same command draws what is
missing. Sets may change as eval/run.py says. scaling.jsonl has a line per model and set; scaling-SET.md, .csv and .svg
are its table and figure; models called LABEL@SEED make scaling-seeds-SET.md too. "sc at its cost" is self-consistency
(sc-target for methods that see the target) at the method's mean number of tokens, linear between two K, on the same
problems; the difference's interval is paired.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from e3jax.errors import all_errors, need, section
from e3jax.eval import tables
from e3jax.eval.scoring import answer_of
from e3jax.flags import run_command
from e3jax.log import RunLog
from e3jax.metrics.bootstrap import interval, ratio, ratio_difference
from e3jax.metrics.voting import at_cost, vote
from e3jax.report.files import scaling_file
from e3jax.rewards.workers import GraderPool
from e3jax.rollout.bench import Bench, Benches, benches_of, evaluation_command, need_rising
from e3jax.scaling.calls import Call
from e3jax.scaling.choosing import Clustering, Judge, best_plans, clusters, embed, embedding_calls
from e3jax.scaling.planning import (
    Candidate,
    Planning,
    Study,
    chains,
    draw_plans,
    execute,
    graded_problem,
    need_tags,
    tree,
)
from e3jax.scaling.react import React, accepted, react

LOOKS = {  # colour, and whether the line is dashed: methods that do not search plans
    "greedy": (0, True), "sc": (1, True), "tot": (2, True), "sc-target": (5, True), "all": (1, False),
    "random": (2, False), "select": (3, False), "cluster": (4, False), "react": (0, False), "react-target": (5, False),
}  # fmt: skip
JUDGED = ("select", "react", "react-target")
KINDS = ("sampled", "forced", "prompt")


@dataclass(frozen=True)
class Settings:
    """A config of this command."""

    benches: Benches
    ks: tuple[int, ...]
    methods: tuple[str, ...]  # of LOOKS
    planning: Planning
    judge: Judge
    clustering: Clustering
    react: React

    def __post_init__(self):
        need_rising(self.ks, "ks")
        known = len(self.methods) > 0 and set(self.methods) <= set(LOOKS)
        need(known, "methods", self.methods, f"some of {', '.join(LOOKS)}")
        need(
            "sc-target" not in self.methods or "sc" in self.methods, "methods", self.methods, "sc-target comes with sc"
        )
        words = self.planning.words or self.judge.how == "likelihood"
        need(words, "judge.how", self.judge.how, "without words: 'likelihood'")


@all_errors()
def check(c: ConfigDict) -> Settings:
    """Return what the config says; refuse impossible values, naming the fields, before anything is loaded."""
    benches, planning = benches_of(c), Planning(**{field.name: c[field.name] for field in fields(Planning)})
    sections = []
    for name, kind in (("judge", Judge), ("cluster", Clustering), ("react", React)):
        with section(f"{name}.{{}}".format):
            sections.append(kind(**c[name]))
    settings = Settings(benches, tuple(c.ks), tuple(c.methods), planning, *sections)
    fewest, sets = min(c.ks, default=1), benches.sets
    for name, one in sets.items():
        need(one.samples >= fewest, f"sets[{name!r}].samples", one.samples, f"{fewest} or more: the largest K")
    plain = [one.form for one in sets.values()]
    for method in c.methods:
        need(
            not method.endswith("-target") or set(plain) == {"plans"},
            "methods",
            method,
            "only form='plans' states a target in its question",
        )
    need(
        (c.react.accept == "box") == ("plans" not in plain),
        "react.accept",
        c.react.accept,
        "'box' for boxed answers, 'form' or 'target' for form='plans'",
    )
    return settings


# ---- methods


class Outcome(NamedTuple):
    """What a method came to on one problem: all it drew, and the responses that vote, with their weights."""

    calls: tuple[Call, ...]
    votes: tuple[tuple[Candidate, float], ...]


Outcomes = dict[int, Outcome]  # by problem


def voting(candidates: list[Candidate], weights=None, more: tuple[Call, ...] = ()) -> Outcome:
    """Return the outcome of candidates that vote, with their calls and `more` calls."""
    weights = [1.0] * len(candidates) if weights is None else weights
    return Outcome((*more, *(call for c in candidates for call in c.calls)), tuple(zip(candidates, weights)))


def keeping(study: Study, p: int, candidates: list[Candidate], rule: str) -> list[Candidate]:
    """Return the candidates that a rule accepts; all, where it accepts none."""
    kept = [c for c in candidates if c.done and accepted(study.bench.problems[p], c.execution, rule=rule)]
    return kept or candidates


def by_chains(study: Study, methods, *, ks) -> Iterator[tuple[str, int, Outcomes]]:
    """Yield (method, K, outcomes) of the methods that do not search plans.

    Self-consistency comes for every K up to the largest, because other methods are compared with it.
    """
    if "greedy" in methods:
        yield "greedy", 1, {p: voting(c) for p, c in chains(study, "greedy", (0,), temperature=0.0).items()}
    if "sc" in methods:
        drawn = chains(study, "chain", range(max(ks)), temperature=study.heat["temperature"])
        for k in range(1, max(ks) + 1):
            yield "sc", k, {p: voting(c[:k]) for p, c in drawn.items()}
            if "sc-target" in methods:
                kept = {p: keeping(study, p, c[:k], "target") for p, c in drawn.items()}
                yield "sc-target", k, {p: voting(kept[p])._replace(calls=voting(c[:k]).calls) for p, c in drawn.items()}
    for k in ks if "tot" in methods else ():
        leaves = tree(study, (k - 1).bit_length())
        yield "tot", k, {p: voting(c) for p, c in leaves.items()}


def by_plans(study: Study, settings: Settings, *, ks) -> Iterator[tuple[str, int, Outcomes]]:
    """Yield (method, K, outcomes) of the methods that choose among K plans; each pays for all K."""
    methods, clustering, seed = settings.methods, settings.clustering, settings.benches.seed
    pool = draw_plans(study, range(max(ks)))
    vectors = embed(study, pool, encoder=clustering.encoder) if "cluster" in methods else {}
    for k in ks:
        drawn = {p: tuple(plan.call for plan in plans[:k]) for p, plans in pool.items()}
        picks = best_plans(study, pool, k, settings.judge) if {*JUDGED} & {*methods} else {}

        def execute_chosen(chosen: dict[int, list[int]]) -> dict[int, list[Candidate]]:
            """Return the executions of plans of the pool, given by number."""
            plans = {(p, i): pool[p][i] for p, numbers in chosen.items() for i in numbers}
            done = execute(study, "execute", plans)
            return {p: [done[p, i] for i in numbers] for p, numbers in chosen.items()}

        if "all" in methods:
            done = execute_chosen({p: list(range(k)) for p in pool})
            yield "all", k, {p: voting(done[p], None, drawn[p]) for p in pool}
        if "random" in methods:
            done = execute_chosen({p: [int(np.random.default_rng([seed, k, p]).integers(k))] for p in pool})
            yield "random", k, {p: voting(done[p], None, drawn[p]) for p in pool}
        if "select" in methods:
            done = execute_chosen({p: [picks[p][0]] for p in pool})
            yield "select", k, {p: voting(done[p], None, (*drawn[p], *picks[p][1])) for p in pool}
        if "cluster" in methods:
            central = {p: clusters(vectors[p][:k], clustering.most, seed=clustering.seed) for p in pool}
            done = execute_chosen({p: [i for i, _ in plans] for p, plans in central.items()})
            encoder = clustering.encoder
            read = {p: embedding_calls(study, p, pool[p][:k], encoder=encoder) if k > 1 else () for p in pool}
            yield "cluster", k, {p: voting(done[p], [n for _, n in central[p]], drawn[p] + read[p]) for p in pool}
        for name, rules in (("react", settings.react), ("react-target", replace(settings.react, accept="target"))):
            if name in methods:
                ended = react(study, pool, picks, k, rules)
                yield name, k, {p: voting([candidate]) for p, candidate in ended.items()}


# ---- numbers


def spent(calls) -> dict[str, int]:
    """Return tokens by kind; a response that two steps of a method use was drawn once."""
    return {kind: sum(getattr(call, kind) for call in dict.fromkeys(calls)) for kind in KINDS}


def graded(study: Study, all_outcomes: list[Outcomes], grader: GraderPool) -> dict[tuple[int, str, bool], float]:
    """Return the score of every different response (problem, text, done)."""
    keys = list(
        dict.fromkeys(
            (p, c.text, c.done) for outcomes in all_outcomes for p, one in outcomes.items() for c, _ in one.votes
        )
    )
    problems = [graded_problem(study.bench.problems[p]) for p, _, _ in keys]
    grades = grader.submit(problems, [k[1] for k in keys], [k[2] for k in keys]).result()
    return {key: float(grade.score > 0) for key, grade in zip(keys, grades)}


def measured(study: Study, outcomes: Outcomes, grades: dict) -> list[dict]:
    """Return a line of ledger.jsonl per problem, without model, set, method and K."""
    lines = []
    for p, (calls, votes) in outcomes.items():
        problem = graded_problem(study.bench.problems[p])
        ballots = [
            (answer_of(problem, c.text) if c.done else None, grades[p, c.text, c.done], weight) for c, weight in votes
        ]
        lines.append(
            {
                "problem": problem.id,
                "score": vote(ballots),
                **spent(calls),
                "calls": [[call.part, call.sample, call.sampled] for call in dict.fromkeys(calls)],
            }
        )
    return lines


def column(lines: list[dict], name: str) -> np.ndarray:
    """Return one number of every problem, float64 [P]."""
    return np.array([line[name] for line in lines], float)


def against(lines: list[dict], voters: list[list[dict]]) -> dict:
    """Compare a method's `lines` with self-consistency (`voters`: its lines for K = 1, 2, …) at their mean cost."""
    costs = np.array([column(x, "sampled").mean() for x in voters])
    cost, score = column(lines, "sampled").mean(), column(lines, "score")
    weights = at_cost(cost, costs)
    other, ones = np.stack([column(x, "score") for x in voters], 1) @ weights, np.ones(len(score))
    return {
        "k": float(weights @ np.arange(1, len(costs) + 1)),
        "tokens": float(weights @ costs),
        "accuracy": interval(np.stack([other, ones], 1), ratio),
        "difference": interval(np.stack([score, ones, other, ones], 1), ratio_difference),
    }


# ---- the command


def measure(bench: Bench, grader: GraderPool, settings: Settings) -> None:
    """Run all methods of the config on one bench, and write its lines."""
    log, methods, ks = bench.log, settings.methods, [k for k in settings.ks if k <= bench.samples]
    study = Study(bench, need_tags(bench.pretrained.tokenizer, bench.label), settings.planning)
    results = [*by_chains(study, methods, ks=ks), *by_plans(study, settings, ks=ks)]
    log.say(f"{bench.label}, {bench.name}: grading")
    grades = graded(study, [outcomes for _, _, outcomes in results], grader)
    lines = {(method, k): measured(study, outcomes, grades) for method, k, outcomes in results}
    voters = {x: [lines[x, k] for k in range(1, max(ks) + 1)] for x in ("sc", "sc-target") if x in methods}
    cells = []
    bench.drop_lines("ledger.jsonl")
    for (method, k), rows in lines.items():
        if k not in ks:
            continue
        rival = "sc-target" if method.endswith("-target") else "sc"  # who may look at the target
        for row in rows:
            log.append("ledger.jsonl", bench.names | {"method": method, "k": k} | row)
        cells.append(
            {
                "method": method,
                "judge": settings.judge.how if method in JUDGED and k > 1 else "",
                "k": k,
                "accuracy": interval(np.stack([column(rows, "score"), np.ones(len(rows))], 1), ratio),
                "tokens": float(column(rows, "sampled").mean()),
                "forced": float(column(rows, "forced").mean()),
                "prompt": float(column(rows, "prompt").mean()),
                "sc": against(rows, voters[rival]) if rival in voters and method != rival else None,
            }
        )
    about = {"checkpoint": bench.checkpoint, "scored": bench.scored, "problems": len(bench.problems)}
    log.append("scaling.jsonl", bench.names | about | {"cells": cells})
    log.flush()


def show(log: RunLog, order: list[str]) -> None:
    """Write a table, on the terminal too, and a figure per set."""
    lines = sorted((x for x in log.read("scaling.jsonl") if x["stage"] in order), key=lambda x: order.index(x["stage"]))
    for name in dict.fromkeys(line["set"] for line in lines):
        rows = [line for line in lines if line["set"] == name]
        grid = tables.table_scaling(rows)
        log.console.print(tables.terminal(grid, f"{name}: accuracy [%] and tokens per problem"))
        files = {
            "md": tables.markdown(grid),
            "csv": tables.comma_separated(grid),
            "svg": scaling_file(rows, title=name, looks=LOOKS),
        }
        files = {f"scaling-{name}.{suffix}": text for suffix, text in files.items()}
        seeds = tables.table_seeds(rows)
        if len(seeds) > 1:
            files[f"scaling-seeds-{name}.md"] = tables.markdown(seeds)
        log.write(files)
    log.say(f"numbers, tables and figures: {log.workdir}")


def main(config: ConfigDict, workdir: str) -> None:
    """Measure all models of the config on all its sets; what scaling.jsonl already has is left out."""
    settings = check(config)
    planning, order = settings.planning, list(settings.benches.models)
    evaluation_command(
        config,
        workdir,
        settings.benches,
        record="scaling.jsonl",
        longest=planning.plan_budget + planning.execution_budget + 5,  # tags, EOS
        measure=partial(measure, settings=settings),
        show=lambda log, problems: show(log, order),
    )


if __name__ == "__main__":
    run_command(main)
