"""The command: what an E2C model gains from more tokens at test time, by eight methods (ALGORITHMS B.6).

    python -m e3jax.scaling.run --config=configs/e2c_scaling.py:rl2=runs/e2c/checkpoints/rl2/100 --workdir=runs/scaling

    greedy   one whole response
    sc       self-consistency: K whole responses vote
    tot      tree of thoughts: two branches a level, the leaves vote
    all      K plans, all executed, vote              random   one of K plans, whichever
    select   one of K plans, chosen by a judge        cluster  K plans, the centres of clusters, vote by size
    react    K plans, a judge, then execute, refine or switch

"-target" behind sc or react: the target, which a Countdown question states, may decide what is kept.

Every sampled token is counted once for each method that would have drawn it; what is only read (prompts, copies of
plans) and what we put into the model's turn stand beside it (scaling/calls.py). ledger.jsonl names the responses behind
every number, responses/MODEL/SET/ holds them. Killed anywhere, the same command draws what is missing. Sets may
change as eval/run.py says. scaling.jsonl has a line per model and set; scaling-SET.md, .csv and .svg are its table and
figure; models called LABEL@SEED make scaling-seeds-SET.md too. "sc at its cost" is self-consistency (sc-target for
methods that see the target) at the method's mean number of tokens, linear between two K, on the same problems; the
difference's interval is paired.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from e3jax.errors import all_errors, need
from e3jax.eval import tables
from e3jax.eval.scoring import answer_of
from e3jax.flags import keep_programs, run_command
from e3jax.log import RunLog
from e3jax.metrics.bootstrap import interval, ratio, ratio_difference
from e3jax.metrics.voting import at_cost, vote
from e3jax.report.files import scaling_file
from e3jax.rewards.workers import GraderPool
from e3jax.rollout.bench import check_models_and_sets, check_sampling, each_bench, load_sets, rising
from e3jax.rollout.digests import what_was_scored
from e3jax.runtime import barrier
from e3jax.scaling.calls import Call
from e3jax.scaling.choosing import JUDGES, clusters, embed, embedding_calls, judge
from e3jax.scaling.planning import Run, Study, chains, draw_plans, execute, graded_problem, need_tags, tree
from e3jax.scaling.react import ACCEPT, accepted, react
from e3jax.tasks.sets import chosen_sets

LOOKS = {  # colour and whether dashed: those that do not search plans are
    "greedy": (0, True), "sc": (1, True), "tot": (2, True), "sc-target": (5, True), "all": (1, False),
    "random": (2, False), "select": (3, False), "cluster": (4, False), "react": (0, False), "react-target": (5, False),
}  # fmt: skip
JUDGED = ("select", "react", "react-target")
KINDS = ("sampled", "forced", "prompt")


class Outcome(NamedTuple):
    """What a method came to on one problem: all it drew, and the responses that vote, with their weights."""

    calls: tuple[Call, ...]
    votes: tuple[tuple[Run, float], ...]


Outcomes = dict[int, Outcome]


def voting(runs: list[Run], weights=None, more: tuple[Call, ...] = ()) -> Outcome:
    """Runs that vote, each paying for itself."""
    weights = [1.0] * len(runs) if weights is None else weights
    return Outcome((*more, *(call for run in runs for call in run.calls)), tuple(zip(runs, weights)))


def keeping(study: Study, p: int, runs: list[Run], rule: str) -> list[Run]:
    """Those that a rule accepts; all, when it accepts none."""
    kept = [r for r in runs if r.done and accepted(study.bench.problems[p], r.execution, rule=rule)]
    return kept or runs


def by_chains(study: Study, methods, *, ks, thought: int) -> Iterator[tuple[str, int, Outcomes]]:
    """What does not search plans. Self-consistency comes for every K up to the largest: others are compared with it."""
    if "greedy" in methods:
        yield "greedy", 1, {p: voting(r) for p, r in chains(study, "greedy", (0,), temperature=0.0).items()}
    if "sc" in methods:
        drawn = chains(study, "chain", range(max(ks)), temperature=study.temperature)
        for k in range(1, max(ks) + 1):
            yield "sc", k, {p: voting(r[:k]) for p, r in drawn.items()}
            if "sc-target" in methods:
                kept = {p: keeping(study, p, r[:k], "target") for p, r in drawn.items()}
                yield "sc-target", k, {p: voting(kept[p])._replace(calls=voting(r[:k]).calls) for p, r in drawn.items()}
    for k in ks if "tot" in methods else ():
        leaves = tree(study, (k - 1).bit_length(), thought=thought)
        yield "tot", k, {p: voting(r) for p, r in leaves.items()}


def by_plans(
    study: Study, methods, *, ks, seed: int, judging: dict, clustering: dict, reacting: dict
) -> Iterator[tuple[str, int, Outcomes]]:
    """What chooses among K plans; all of them pay for all K."""
    pool = draw_plans(study, range(max(ks)))
    cluster = dict(clustering)
    encoder, vectors = cluster.pop("encoder"), {}
    if "cluster" in methods:
        vectors = embed(study, pool, encoder=encoder)
    for k in ks:
        drawn = {p: tuple(plan.call for plan in plans[:k]) for p, plans in pool.items()}
        picks = judge(study, pool, k, **judging) if {*JUDGED} & {*methods} else {}

        def executed(chosen: dict[int, list[int]]) -> dict[int, list[Run]]:
            """Plans of the pool by number -> their runs."""
            asked = {(p, i): pool[p][i] for p, numbers in chosen.items() for i in numbers}
            runs = execute(study, "execute", asked)
            return {p: [runs[p, i] for i in numbers] for p, numbers in chosen.items()}

        if "all" in methods:
            runs = executed({p: list(range(k)) for p in pool})
            yield "all", k, {p: voting(runs[p], None, drawn[p]) for p in pool}
        if "random" in methods:
            runs = executed({p: [int(np.random.default_rng([seed, k, p]).integers(k))] for p in pool})
            yield "random", k, {p: voting(runs[p], None, drawn[p]) for p in pool}
        if "select" in methods:
            runs = executed({p: [picks[p][0]] for p in pool})
            yield "select", k, {p: voting(runs[p], None, (*drawn[p], *picks[p][1])) for p in pool}
        if "cluster" in methods:
            found = {p: clusters(vectors[p][:k], **cluster) for p in pool}
            runs = executed({p: [i for i, _ in own] for p, own in found.items()})
            read = {p: embedding_calls(study, p, pool[p][:k], encoder=encoder) if k > 1 else () for p in pool}
            yield "cluster", k, {p: voting(runs[p], [n for _, n in found[p]], drawn[p] + read[p]) for p in pool}
        for name in ("react", "react-target"):
            if name in methods:
                rule = {"accept": "target"} if name == "react-target" else {}
                ended = react(study, pool, picks, k=k, **(reacting | rule))
                yield name, k, {p: voting([run]) for p, run in ended.items()}


def spent(calls) -> dict[str, int]:
    """Tokens by kind; a response that was asked for twice was drawn once."""
    return {kind: sum(getattr(call, kind) for call in dict.fromkeys(calls)) for kind in KINDS}


def graded(study: Study, all_outcomes: list[Outcomes], grader: GraderPool) -> dict[tuple[int, str, bool], float]:
    """Score of every different response (problem, text, done)."""
    keys = list(
        dict.fromkeys(
            (p, run.text, run.done) for found in all_outcomes for p, one in found.items() for run, _ in one.votes
        )
    )
    problems = [graded_problem(study.bench.problems[p]) for p, _, _ in keys]
    grades = grader.submit(problems, [k[1] for k in keys], [k[2] for k in keys]).result()
    return {key: float(grade.score > 0) for key, grade in zip(keys, grades)}


def measured(study: Study, outcomes: Outcomes, grades: dict) -> list[dict]:
    """A line of ledger.jsonl per problem, without whose it is."""
    lines = []
    for p, (calls, votes) in outcomes.items():
        problem = graded_problem(study.bench.problems[p])
        ballots = [
            (answer_of(problem, run.text) if run.done else None, grades[p, run.text, run.done], weight)
            for run, weight in votes
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
    """One number of every problem, float64 [P]."""
    return np.array([line[name] for line in lines], float)


def against(lines: list[dict], voters: list[list[dict]]) -> dict:
    """Self-consistency (`voters`: its lines for K = 1, 2, …) at the mean cost of a method's `lines`."""
    costs = np.array([column(x, "sampled").mean() for x in voters])
    cost, own = column(lines, "sampled").mean(), column(lines, "score")
    weights = at_cost(cost, costs)
    other, ones = np.stack([column(x, "score") for x in voters], 1) @ weights, np.ones(len(own))
    return {
        "k": float(weights @ np.arange(1, len(costs) + 1)),
        "tokens": float(weights @ costs),
        "accuracy": interval(np.stack([other, ones], 1), ratio),
        "difference": interval(np.stack([own, ones, other, ones], 1), ratio_difference),
    }


def study_of(bench, asked, *, c: ConfigDict) -> Study:
    """The bench with everything that is asked of it."""
    return Study(
        bench=bench,
        asked=tuple(asked),
        tags=need_tags(bench.pretrained.tokenizer, bench.label),
        words=c.words,
        thinking=c.thinking,
        chat=c.chat,
        plan_budget=c.plan_budget,
        execution_budget=c.execution_budget,
        temperature=c.sampler.temperature,
        top_p=c.sampler.top_p,
        tokens=c.tokens,
    )


def measure(study: Study, grader: GraderPool, *, ks, c: ConfigDict, about: dict) -> None:
    """All methods of the config on one bench; its lines; `about` is what else the line in scaling.jsonl says."""
    log, methods = study.bench.log, tuple(c.methods)
    found = [
        *by_chains(study, methods, ks=ks, thought=c.thought),
        *by_plans(
            study,
            methods,
            ks=ks,
            seed=c.seed,
            judging=c.judge.to_dict(),
            clustering=c.cluster.to_dict(),
            reacting=c.react.to_dict(),
        ),
    ]
    log.say(f"{study.bench.label}, {study.bench.name}: grading")
    grades = graded(study, [outcomes for _, _, outcomes in found], grader)
    lines = {(method, k): measured(study, outcomes, grades) for method, k, outcomes in found}
    voters = {x: [lines[x, k] for k in range(1, max(ks) + 1)] for x in ("sc", "sc-target") if x in methods}
    of, cells = {"stage": study.bench.label, "set": study.bench.name}, []
    log.keep("ledger.jsonl", lambda old: (old["stage"], old["set"]) != (of["stage"], of["set"]))
    for (method, k), own in lines.items():
        if k not in ks:
            continue
        rival = "sc-target" if method.endswith("-target") else "sc"  # who may look at the target
        for line in own:
            log.append("ledger.jsonl", of | {"method": method, "k": k} | line)
        cells.append(
            {
                "method": method,
                "judge": c.judge.how if method in JUDGED and k > 1 else "",
                "k": k,
                "accuracy": interval(np.stack([column(own, "score"), np.ones(len(own))], 1), ratio),
                "tokens": float(column(own, "sampled").mean()),
                "forced": float(column(own, "forced").mean()),
                "prompt": float(column(own, "prompt").mean()),
                "sc": against(own, voters[rival]) if rival in voters and method != rival else None,
            }
        )
    log.append("scaling.jsonl", of | about | {"problems": len(study.asked), "cells": cells})
    log.flush()


@all_errors()
def check(c: ConfigDict) -> None:
    """Refuse impossible values, naming the fields, before anything is loaded."""
    check_models_and_sets(c)
    check_sampling(c)
    rising(c, "ks")
    fewest, sets = min(c.ks, default=1), chosen_sets(c.sets, c.only)
    for name, one in sets.items():
        need(one.samples >= fewest, f"sets[{name!r}].samples", one.samples, f"{fewest} or more: the largest K")
    need(
        len(c.methods) > 0 and set(c.methods) <= set(LOOKS), "methods", tuple(c.methods), f"some of {', '.join(LOOKS)}"
    )
    plain = [one.form for one in sets.values()]
    for method in c.methods:
        need(
            not method.endswith("-target") or set(plain) == {"plans"},
            "methods",
            method,
            "only form='plans' states a target in its question",
        )
        need(method != "sc-target" or "sc" in c.methods, "methods", tuple(c.methods), "sc-target comes with sc")
    need(c.judge.how in JUDGES, "judge.how", c.judge.how, f"use one of {', '.join(JUDGES)}")
    need(c.words or c.judge.how == "likelihood", "judge.how", c.judge.how, "without words: 'likelihood'")
    need(c.react.accept in ACCEPT, "react.accept", c.react.accept, f"use one of {', '.join(ACCEPT)}")
    need(
        (c.react.accept == "box") == ("plans" not in plain),
        "react.accept",
        c.react.accept,
        "'box' for boxed answers, 'form' or 'target' for form='plans'",
    )
    for field in ("plan_budget", "execution_budget", "thought", "tokens"):
        need(c[field] >= 1, field, c[field], "use 1 or more")
    need(c.cluster.most >= 1, "cluster.most", c.cluster.most, "use 1 or more")
    need(c.react.chunk >= 4, "react.chunk", c.react.chunk, "use 4 or more: a loop is a piece of a quarter of it")


def show(log: RunLog, lines: list[dict], order: list[str]) -> None:
    """A table and a figure per set."""
    lines = sorted((x for x in lines if x["stage"] in order), key=lambda x: order.index(x["stage"]))
    for name in dict.fromkeys(line["set"] for line in lines):
        own = [line for line in lines if line["set"] == name]
        grid = tables.table_scaling(own)
        log.console.print(tables.terminal(grid, f"{name}: accuracy [%] and tokens per problem"))
        files = {
            "md": tables.markdown(grid),
            "csv": tables.comma_separated(grid),
            "svg": scaling_file(own, title=name, looks=LOOKS),
        }
        files = {f"scaling-{name}.{suffix}": text for suffix, text in files.items()}
        seeds = tables.table_seeds(own)
        if len(seeds) > 1:
            files[f"scaling-seeds-{name}.md"] = tables.markdown(seeds)
        log.write(files)
    log.say(f"numbers, tables and figures: {log.workdir}")


def main(config: ConfigDict, workdir: str) -> None:
    """All models of the config on all its sets; what scaling.jsonl already has is left out."""
    check(config)
    keep_programs()
    problems = load_sets(config)
    log = RunLog(workdir, config.to_dict(), tensorboard=False, wandb="")
    longest = config.plan_budget + config.execution_budget + 5  # tags, EOS
    with GraderPool(**config.grader.to_dict()) as grader:
        for bench, checkpoint, samples in each_bench(config, log, "scaling.jsonl", problems, longest=longest):
            study = study_of(bench, [p.question for p in problems[bench.name]], c=config)
            about = {"checkpoint": checkpoint, "scored": what_was_scored(problems[bench.name], samples)}
            measure(study, grader, ks=[k for k in config.ks if k <= samples], c=config, about=about)
    show(log, log.read("scaling.jsonl"), list(dict(config.models)))
    log.done()
    log.close()
    barrier("end")


if __name__ == "__main__":
    run_command(main)
