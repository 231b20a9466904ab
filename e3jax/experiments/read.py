"""Read an experiment's numbers and curves from finished run directories.

A measure says where its number stands, in one of these forms:

    ("start", key, n)              mean over the first n RL steps of metrics.jsonl
    ("train", key, n)              mean over the last n RL steps
    ("rise", key, n)               "train" minus "start"
    ("eval", set, key, …)          a number of eval.jsonl after the last stage: ("eval", "3 numbers", "accuracy", "96")
    ("sets", stage, key, …)        the mean over all sets of that number after `stage` ("": the last one)
    ("gain", set, few, many)       accuracy at `many` tokens minus accuracy at `few`, after the last stage
    ("wait", set, how)             accuracy after forcing (eval/run.py; "wait-2") minus accuracy without it
    ("best", set)                  the highest accuracy of a model, alone or forced in any way
    ("spent",)                     tokens that all RL steps sampled, those too that were not trained on
    ("scaled", set, method, k, …)  a number of scaling.jsonl's cell ("accuracy"; "sc", "difference") of a method and K

    value(lines, ("train", "length/mean", 10))        # NaN where the run has no such number
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np
from etils import epath

from e3jax.experiments.results import figure
from e3jax.readers import json_lines
from e3jax.records import read_lines
from e3jax.report.figures import read_number, running_mean
from e3jax.report.read_run import MAYBE, RECORDS
from e3jax.train.eq2 import choose_budget

FORMS = ("start", "train", "rise", "eval", "sets", "gain", "wait", "best", "spent", "scaled")
FORCED = {"explore": {"length": float}, "forcing": {str: {"length": float, "accuracy": [MAYBE, MAYBE, MAYBE]}}}
SCALED = {  # lines of scaling.jsonl; "sc" is null for self-consistency itself
    "stage": str, "set": str,
    "cells": [{"method": str, "k": int, "accuracy": [MAYBE, MAYBE, MAYBE], "tokens": float,
               "sc": ({"difference": [MAYBE, MAYBE, MAYBE]}, None)}],
}  # fmt: skip
WINDOW = 5  # RL steps of the running mean of a curve


def last_line(path: epath.Path) -> dict:
    """Return the last whole line of a JSON-lines file that is being written, {} if there is none."""
    tail = b"\n".join(path.read_bytes().split(b"\n")[-3:]) if path.is_file() else b""
    whole = [value for _, value, _ in json_lines(tail) if isinstance(value, dict)]  # without half-written lines
    return whole[-1] if whole else {}


class RunLines(NamedTuple):
    """What one run left that measures and figures read."""

    steps: list[dict]  # lines of RL steps
    evals: dict[str, dict]  # set -> its last evaluation
    forced: dict[str, dict]  # set -> its forced evaluation
    stages: dict[str, dict[str, dict]]  # stage -> set -> its evaluation after that stage
    scaled: dict[str, list[dict]]  # set -> the cells of its test-time scaling


def read_run(run: epath.Path, *, label: str, forced: epath.Path, scaled: epath.Path) -> RunLines:
    """Return the lines of a finished run, and its lines (stage `label`) of the evaluations in `forced` and `scaled`."""
    shape = RECORDS["eval.jsonl"]
    steps = [x for x in read_lines(run / "metrics.jsonl", RECORDS["metrics.jsonl"]) if x["kind"] == "grpo"]
    evals, stages = {}, {}
    for line in read_lines(run / "eval.jsonl", shape):
        evals[line["set"]] = line  # the last stage's line wins
        stages.setdefault(line["stage"], {})[line["set"]] = line
    forced_lines = read_lines(forced / "eval.jsonl", shape | FORCED)
    own = {x["set"]: x for x in forced_lines if x["stage"] == label}
    cells = {x["set"]: x["cells"] for x in read_lines(scaled / "scaling.jsonl", SCALED) if x["stage"] == label}
    return RunLines(steps, evals, own, stages, cells)


def digest(run: epath.Path) -> str:
    """Return a hash of what a run logged. Lines of training contain times, so no other run has the same hash."""
    paths = [run / name for name in ("metrics.jsonl", "eval.jsonl", "scaling.jsonl", "pool.jsonl")]
    logged = b"".join(path.read_bytes() for path in paths if path.exists())
    return hashlib.sha256(logged or str(run).encode()).hexdigest()


def inside(tree, keys) -> float:
    """Return tree[key][key]…, of a [mean, low, high] the mean; NaN where something is missing or null.

    >>> inside({"accuracy": {"96": [0.5, 0.4, 0.6]}}, ("accuracy", "96"))
    0.5
    """
    for key in keys:
        if not isinstance(tree, dict) or str(key) not in tree:
            return math.nan
        tree = tree[str(key)]
    tree = tree[0] if isinstance(tree, list) else tree
    return math.nan if tree is None else float(tree)


def mean_of(steps: list[dict], key: str) -> float:
    """Return the mean of a metric over the steps that have it; NaN if none has."""
    known = [x for x in (read_number(step, key) for step in steps) if math.isfinite(x)]
    return sum(known) / len(known) if known else math.nan


def tokens_of(step: dict) -> float:
    """Return how many tokens an RL step sampled; NaN where it does not say."""
    drawn = read_number(step, "drawn/tokens")  # with dynamic sampling, of all rounds
    rate = read_number(step, "time/rollout_tokens_per_s")
    tokens = drawn if math.isfinite(drawn) else rate * read_number(step, "time/rollout_s")
    return float(np.round(tokens))  # a rate times its time is a whole number, but for rounding


def mean_over_sets(r: RunLines, stage: str, keys) -> float:
    """Return the mean over all sets of a number of eval.jsonl after `stage` ("": the last); NaN if a set lacks it."""
    lines = r.evals if not stage else r.stages[stage] if stage in r.stages else {}
    return float(np.mean([inside(line, keys) for line in lines.values()])) if lines else math.nan


def value(r: RunLines, read) -> float:
    """Return one measure of one run; NaN where the run has no such number (a base has no RL steps)."""
    kind, *rest = read
    if kind in ("start", "train", "rise"):
        key, n = rest
        first, last = mean_of(r.steps[:n], key), mean_of(r.steps[-n:], key)
        return first if kind == "start" else last if kind == "train" else last - first
    if kind == "spent":
        return sum(map(tokens_of, r.steps)) if r.steps else math.nan
    if kind == "eval":
        return inside(r.evals, rest)
    if kind == "sets":
        return mean_over_sets(r, rest[0], rest[1:])
    if kind == "gain":
        name, few, many = rest
        return inside(r.evals, (name, "accuracy", many)) - inside(r.evals, (name, "accuracy", few))
    if kind == "scaled":
        return inside(cell_of(r, *rest[:3]), rest[3:])
    if kind in ("wait", "best") and rest[0] in r.forced:
        line = r.forced[rest[0]]
        alone = inside(line, ("accuracy", max(line["accuracy"], key=int)))
        waits = {how: inside(x, ("accuracy",)) for how, x in line["forcing"].items()}
        return waits[rest[1]] - alone if kind == "wait" else max(alone, *waits.values())
    if kind in FORMS:
        return math.nan
    raise ValueError(f"measure {read!r} must begin with one of {', '.join(FORMS)}")


def cell_of(r: RunLines, of: str, method: str, k: int | str) -> dict:
    """Return the numbers of a method at K on a set (scaling/run.py); {} where it was not measured."""
    cells = r.scaled[of] if of in r.scaled else []
    return next((cell for cell in cells if (cell["method"], cell["k"]) == (method, int(k))), {})


def spread(curves: list[np.ndarray]) -> dict[str, list[float]]:
    """Return the mean of several seeds' curves, with the least and greatest as low and high, cut to the shortest."""
    n = min(map(len, curves))
    x = np.array([c[:n] for c in curves])
    return {"mean": x.mean(0).tolist(), "low": x.min(0).tolist(), "high": x.max(0).tolist()}


def curve_figure(records: dict, *, title: str, key: str, ylabel: str, percent: bool, arms) -> dict:
    """Return a metric over RL steps: a line per arm, the running mean over WINDOW steps, with the range of seeds."""
    drawn = []
    for arm in arms:
        seeds = [np.array([read_number(s, key) for s in r.steps]) for r in records.get(arm, {}).values() if r.steps]
        if seeds:
            of = spread([running_mean(y, window=WINDOW) for y in seeds])
            drawn.append({"label": arm, "x": list(range(1, len(of["mean"]) + 1)), **of})
    return figure(title, drawn, xlabel="RL step", ylabel=ylabel, percent=percent)


def budget_figure(records: dict, *, title: str, of: str, mark: int | None, arms) -> dict:
    """Return accuracy over test budgets on one set, as e3's Fig. 8: a line per arm, with the range of seeds."""
    drawn = []
    for arm in arms:
        seeds = [r.evals[of]["accuracy"] for r in records.get(arm, {}).values() if of in r.evals]
        if seeds:
            x = sorted(map(int, seeds[0]))
            drawn.append({"label": arm, "x": x, **spread([np.array([a[str(b)][0] for b in x]) for a in seeds])})
    return figure(title, drawn, xlabel="test budget (tokens)", log2=True, percent=True, mark=mark)


def pass_at_k_figure(records: dict, *, title: str, stage: str, arms) -> dict:
    """Return pass@k over k after `stage` ("": the last), a mean over sets: a line per arm, with the range of seeds."""
    drawn = []
    for arm in arms:
        seeds = []
        for r in records.get(arm, {}).values():
            lines = [x for x in (r.stages.get(stage, {}) if stage else r.evals).values() if "pass_at_k" in x]
            ks = sorted(map(int, lines[0]["pass_at_k"])) if lines else []
            seeds += [np.array([mean_over_sets(r, stage, ("pass_at_k", k)) for k in ks])] if ks else []
        if seeds:
            drawn.append({"label": arm, "x": ks, **spread(seeds)})
    return figure(title, drawn, xlabel="k (samples)", log2=True, percent=True)


def against_figure(values: dict, *, title: str, measure: str, percent: bool, xlabel: str, ylabel: str, groups) -> dict:
    """Return a measure over a setting of the arms, such as the training budget; `groups` is {label: ((x, arm), …)}."""
    drawn = []
    for label, points in groups.items():
        known = [(x, list(values[measure][arm].values())) for x, arm in points if values[measure].get(arm)]
        known = [(x, v) for x, v in known if np.isfinite(v).all()]
        if known:
            of = {k: [float(f(v)) for _, v in known] for k, f in (("mean", np.mean), ("low", np.min), ("high", np.max))}
            drawn.append({"label": label, "x": [x for x, _ in known], **of})
    return figure(title, drawn, xlabel=xlabel, ylabel=ylabel, log2=True, percent=percent)


def pareto_figure(values: dict, *, title: str, x: str, y: str, xlabel: str, ylabel: str, percent: bool, arms) -> dict:
    """Return one measure against another: an upright line per arm at its mean x, from its least to its greatest y."""
    drawn = []
    for arm in arms:
        pairs = [(values[x][arm][seed], of) for seed, of in values[y].get(arm, {}).items() if seed in values[x][arm]]
        pairs = np.array([pair for pair in pairs if np.isfinite(pair).all()])
        if len(pairs):
            at, (low, high) = float(pairs[:, 0].mean()), (pairs[:, 1].min(), pairs[:, 1].max())
            ends = [float(low), float(pairs[:, 1].mean()), float(high)]
            drawn.append({"label": arm, "x": [at] * 3, "mean": ends, "low": [None] * 3, "high": [None] * 3})
    return figure(title, drawn, xlabel=xlabel, ylabel=ylabel, percent=percent)


def forced_figure(records: dict, *, title: str, of: str, arms) -> dict:
    """Return accuracy over mean length, as e3's Fig. 9: without forcing (longest budget), then forced to continue."""
    drawn = []
    for arm in arms:
        seeds = [r.forced[of] for r in records.get(arm, {}).values() if of in r.forced]
        if not seeds:
            continue
        ways = sorted(seeds[0]["forcing"], key=lambda how: int(how.rpartition("-")[2]))
        points = [[(s["explore"]["length"], s["accuracy"][max(s["accuracy"], key=int)][0])] for s in seeds]
        for p, s in zip(points, seeds):
            p += [(s["forcing"][how]["length"], s["forcing"][how]["accuracy"][0]) for how in ways]
        x = np.array(points)  # [seed, way, (length, accuracy)]
        drawn.append({"label": arm, "x": x[..., 0].mean(0).tolist(), **spread(list(x[..., 1]))})
    return figure(title, drawn, xlabel="mean length (tokens)", percent=True)


def scaled_figure(records: dict, *, title: str, of: str, methods, arms) -> dict:
    """Return accuracy over sampled tokens per problem at test time: a line per arm and method, with seeds' range."""
    drawn = []
    for arm, method in ((arm, method) for arm in arms for method in methods):
        found = [r.scaled[of] for r in records.get(arm, {}).values() if of in r.scaled]
        seeds = [sorted((x for x in cells if x["method"] == method), key=lambda x: x["k"]) for cells in found]
        if seeds and all(seeds):
            tokens = np.mean([[x["tokens"] for x in cells] for cells in seeds], 0)
            y = spread([np.array([x["accuracy"][0] for x in cells]) for cells in seeds])
            drawn.append({"label": f"{arm}, {method}", "x": tokens.tolist(), **y})
    return figure(title, drawn, xlabel="sampled tokens per problem", log2=True, percent=True)


def choices(records: dict, *, judge: str, of: str, budgets, kappas) -> list[tuple[int, float, int, dict]]:
    """Return Eq. 2's choice for every kappa, from arm `judge`: (seed, kappa, budget, {B: J(2B) / J(B)})."""
    out = []
    for seed, r in records.get(judge, {}).items():
        accuracy = {int(b): x[0] for b, x in r.evals[of]["accuracy"].items()}
        for kappa in kappas:
            chosen, rows = choose_budget(accuracy, budgets=budgets, minimum=0, kappa=kappa)
            out.append((seed, kappa, chosen, {row["budget"]: row["ratio"] for row in rows}))
    return out


def add_choice(values: dict, chosen: dict[int, int], *, arms: dict[int, str]) -> None:
    """Add the arms "chosen", "half" and "double" to `values`: per seed those of Eq. 2's budget and its neighbours."""
    order = sorted(arms)
    for of in values.values():
        for name, shift in (("half", -1), ("chosen", 0), ("double", 1)):
            place = {seed: order.index(budget) + shift for seed, budget in chosen.items()}
            of[name] = {
                seed: of[arms[order[i]]][seed]
                for seed, i in place.items()
                if 0 <= i < len(order) and seed in of.get(arms[order[i]], {})
            }
