"""From finished run directories to an experiment's numbers and curves.

A measure says where its number stands, in one of these forms:

    ("train", key, n)              mean of the last n RL steps of metrics.jsonl
    ("rise", key, n)               that minus the mean of the first n
    ("eval", set, key, …)          the last stage's line of eval.jsonl: ("eval", "3 numbers", "accuracy", "96")
    ("gain", set, few, many)       accuracy at `many` tokens minus that at `few`, after the last stage
    ("wait", set, how)             accuracy after forcing (eval/run.py; "wait-2") minus that without it
    ("best", set)                  the highest accuracy of a model by itself and however it was forced

    value(records, ("train", "length/mean", 10))        # NaN where the run has no such number
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np
from etils import epath

from e3jax.readers import json_lines
from e3jax.records import read_lines
from e3jax.report.figures import read_number, running_mean
from e3jax.report.read_run import MAYBE, RECORDS
from e3jax.train.eq2 import choose_budget

FORMS = ("train", "rise", "eval", "gain", "wait", "best")
FORCED = {"explore": {"length": float}, "forcing": {str: {"length": float, "accuracy": [MAYBE, MAYBE, MAYBE]}}}
WINDOW = 5  # RL steps of the running mean of a curve


def last_line(path: epath.Path) -> dict:
    """The last whole line of a JSON-lines file that is being written; {} when there is none."""
    tail = b"\n".join(path.read_bytes().split(b"\n")[-3:]) if path.is_file() else b""
    whole = [value for _, value, _ in json_lines(tail) if isinstance(value, dict)]  # not those that are being written
    return whole[-1] if whole else {}


class Records(NamedTuple):
    """What one run left: its RL steps, the last evaluation of every set, and forced evaluations by set."""

    steps: list[dict]
    evals: dict[str, dict]
    forced: dict[str, dict]


def read_run(run: epath.Path, *, label: str, forced: epath.Path) -> Records:
    """The records of a finished run, and its lines (stage `label`) of the evaluation in `forced`."""
    evaluated = RECORDS["eval.jsonl"]
    steps = [x for x in read_lines(run / "metrics.jsonl", RECORDS["metrics.jsonl"]) if x["kind"] == "grpo"]
    evals = {x["set"]: x for x in read_lines(run / "eval.jsonl", evaluated)}  # the last stage's line wins
    made_longer = read_lines(forced / "eval.jsonl", evaluated | FORCED)
    return Records(steps, evals, {x["set"]: x for x in made_longer if x["stage"] == label})


def digest(run: epath.Path) -> str:
    """Return a hash of what a run logged. Its lines have times, so that no other run has the same one."""
    paths = [run / name for name in ("metrics.jsonl", "eval.jsonl")]
    logged = b"".join(path.read_bytes() for path in paths if path.exists())
    return hashlib.sha256(logged or str(run).encode()).hexdigest()


def inside(tree, keys) -> float:
    """tree[key][key]…, the first of a [mean, low, high]; NaN where something is missing or null.

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
    """Mean of a metric over RL steps that have it; NaN when none has."""
    known = [x for x in (read_number(step, key) for step in steps) if math.isfinite(x)]
    return sum(known) / len(known) if known else math.nan


def value(r: Records, read) -> float:
    """One measure of one run; NaN where the run has no such number (a base has no RL steps)."""
    kind, *rest = read
    if kind in ("train", "rise"):
        key, n = rest
        return mean_of(r.steps[-n:], key) - (mean_of(r.steps[:n], key) if kind == "rise" else 0.0)
    if kind == "eval":
        return inside(r.evals, rest)
    if kind == "gain":
        name, few, many = rest
        return inside(r.evals, (name, "accuracy", many)) - inside(r.evals, (name, "accuracy", few))
    if kind in ("wait", "best") and rest[0] in r.forced:
        line = r.forced[rest[0]]
        alone = inside(line, ("accuracy", max(line["accuracy"], key=int)))
        waits = {how: inside(x, ("accuracy",)) for how, x in line["forcing"].items()}
        return waits[rest[1]] - alone if kind == "wait" else max(alone, *waits.values())
    if kind in FORMS:
        return math.nan
    raise ValueError(f"measure {read!r}: begins with one of {', '.join(FORMS)}")


def spread(curves: list[np.ndarray]) -> dict[str, list[float]]:
    """Curves of several seeds -> mean, and the least and greatest seed as low and high; cut to the shortest."""
    n = min(map(len, curves))
    x = np.array([c[:n] for c in curves])
    return {"mean": x.mean(0).tolist(), "low": x.min(0).tolist(), "high": x.max(0).tolist()}


def curve_figure(records: dict, *, title: str, key: str, ylabel: str, percent: bool, arms) -> dict:
    """A metric over RL steps, a line per arm (running mean over 5 steps per seed), the range of seeds as its band."""
    drawn = []
    for arm in arms:
        seeds = [np.array([read_number(s, key) for s in r.steps]) for r in records.get(arm, {}).values() if r.steps]
        if seeds:
            of = spread([running_mean(y, window=WINDOW) for y in seeds])
            drawn.append({"label": arm, "x": list(range(1, len(of["mean"]) + 1)), **of})
    return {
        "title": title,
        "xlabel": "RL step",
        "ylabel": ylabel,
        "log2": False,
        "percent": percent,
        "mark": None,
        "lines": drawn,
    }


def budget_figure(records: dict, *, title: str, of: str, mark: int | None, arms) -> dict:
    """Accuracy over test budgets on one set (Fig. 8's form), a line per arm, the range of seeds as its band."""
    drawn = []
    for arm in arms:
        seeds = [r.evals[of]["accuracy"] for r in records.get(arm, {}).values() if of in r.evals]
        if seeds:
            x = sorted(map(int, seeds[0]))
            drawn.append({"label": arm, "x": x, **spread([np.array([a[str(b)][0] for b in x]) for a in seeds])})
    return {
        "title": title,
        "xlabel": "test budget (tokens)",
        "ylabel": "",
        "log2": True,
        "percent": True,
        "mark": mark,
        "lines": drawn,
    }


def against_figure(values: dict, *, title: str, measure: str, percent: bool, xlabel: str, ylabel: str, groups) -> dict:
    """A measure over a setting of the arms, as the training budget: `groups` is {label: ((x, arm), …)}."""
    drawn = []
    for label, points in groups.items():
        known = [(x, list(values[measure][arm].values())) for x, arm in points if values[measure].get(arm)]
        known = [(x, v) for x, v in known if np.isfinite(v).all()]
        if known:
            of = {k: [float(f(v)) for _, v in known] for k, f in (("mean", np.mean), ("low", np.min), ("high", np.max))}
            drawn.append({"label": label, "x": [x for x, _ in known], **of})
    return {
        "title": title,
        "xlabel": xlabel,
        "ylabel": ylabel,
        "log2": True,
        "percent": percent,
        "mark": None,
        "lines": drawn,
    }


def forced_figure(records: dict, *, title: str, of: str, arms) -> dict:
    """Fig. 9's form: accuracy over mean length, by itself (no forcing, all budgets' longest) and made to go on."""
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
    return {
        "title": title,
        "xlabel": "mean length (tokens)",
        "ylabel": "",
        "log2": False,
        "percent": True,
        "mark": None,
        "lines": drawn,
    }


def choices(records: dict, *, judge: str, of: str, budgets, kappas) -> list[tuple[int, float, int, dict]]:
    """Eq. 2 with every kappa from the judge's saved evaluation: (seed, kappa, budget, {B: J(2B) / J(B)})."""
    out = []
    for seed, r in records.get(judge, {}).items():
        accuracy = {int(b): x[0] for b, x in r.evals[of]["accuracy"].items()}
        for kappa in kappas:
            chosen, rows = choose_budget(accuracy, budgets=budgets, minimum=0, kappa=kappa)
            out.append((seed, kappa, chosen, {row["budget"]: row["ratio"] for row in rows}))
    return out


def add_choice(values: dict, chosen: dict[int, int], *, arms: dict[int, str]) -> None:
    """Arms "chosen", "half" and "double" in place: per seed those trained at Eq. 2's budget and its neighbours."""
    order = sorted(arms)
    for of in values.values():
        for name, shift in (("half", -1), ("chosen", 0), ("double", 1)):
            place = {seed: order.index(budget) + shift for seed, budget in chosen.items()}
            of[name] = {
                seed: of[arms[order[i]]][seed]
                for seed, i in place.items()
                if 0 <= i < len(order) and seed in of.get(arms[order[i]], {})
            }
