"""The format of results.json, which every experiment leaves; experiments/paper.py makes a page of any number of them.

It is one JSON object. Numbers that are not finite are null. Required:

    name       str        short, unique: "mask"
    paper      str        where the claim is: "Fig. 5, 6, 17, 18 (§5, App. G)"
    claim      str        the paper's claim in our words
    setting    str        what was run here, and how it differs from the paper
    command    str        the command that makes this file
    minutes    number     wall time of all runs; null: unknown
    seeds      [int]
    level      number     of all intervals: 0.95
    arms       {arm: str}                     name -> its description
    measures   {measure: {"says": str, "percent": bool}}
    values     {measure: {arm: {seed (as str): number}}}
    rule       [statement]                    metrics/seeds.py: says, measure, plus, minus, kind, margin, as
                                              stated before the run; values {seed: number}, mean, low, high, outcome
    verdict    "reproduced" | "mixed" | "not reproduced" | "not decided" (fewer than two seeds)
    figures    [figure]
    tables     [{"title": str, "header": [str], "rows": [[str]]}]
    failed     [{"arm": str, "seed": int, "why": str}]

A figure holds data, which a page draws (report/figures.py):

    {"title": str, "xlabel": str, "ylabel": str, "log2": bool, "percent": bool, "mark": number | null,
     "lines": [{"label": str, "x": [number], "mean": [number], "low": [number], "high": [number]}]}

`mark` is the x of a vertical line (a training budget); `low` and `high` are null where there is no interval.

    write(workdir, results)           # checks, then writes WORKDIR/results.json
    results = read("runs/experiments/mask")
"""

import json

from etils import epath

from e3jax.errors import UserError
from e3jax.metrics.seeds import KINDS
from e3jax.readers import fault, read_json
from e3jax.records import finite
from e3jax.storage import place, write_whole

FILE = "results.json"
FIELDS = {
    "name": str,
    "paper": str,
    "claim": str,
    "setting": str,
    "command": str,
    "minutes": (int, float, type(None)),
    "seeds": list,
    "level": (int, float),
    "arms": dict,
    "measures": dict,
    "values": dict,
    "rule": list,
    "verdict": str,
    "figures": list,
    "tables": list,
    "failed": list,
}
MAYBE = (float, None)
PARTS = {  # shapes (e3jax/readers.py) of what the page reads of the fields that are lists
    "rule": {
        "says": str, "measure": str, "plus": [str], "minus": [str], "kind": str, "margin": float,
        "values": {str: MAYBE}, "mean": MAYBE, "low": MAYBE, "high": MAYBE, "outcome": str,
    },
    "figures": {
        "title": str, "xlabel": str, "ylabel": str, "log2": bool, "percent": bool, "mark": MAYBE,
        "lines": [{"label": str, "x": [float], "mean": [MAYBE], "low": [MAYBE], "high": [MAYBE]}],
    },
    "tables": {"title": str, "header": [object], "rows": [[object]]},
    "failed": {"arm": object, "seed": object, "why": object},
}  # fmt: skip
SHAPE = {
    **{name: [shape] for name, shape in PARTS.items()},
    "arms": {str: str},
    "level": float,
    "minutes": MAYBE,
    "measures": {str: {"says": str, "percent": bool}},
    "values": {str: {str: {str: MAYBE}}},
}
VERDICTS = ("reproduced", "mixed", "not reproduced", "not decided")
OUTCOMES = ("yes", "no", "open")


def figure(
    title: str,
    lines: list[dict],
    *,
    xlabel: str,
    ylabel: str = "",
    log2: bool = False,
    percent: bool = False,
    mark: float | None = None,
) -> dict:
    """Return a figure as results.json has it."""
    return {
        "title": title,
        "xlabel": xlabel,
        "ylabel": ylabel,
        "log2": log2,
        "percent": percent,
        "mark": mark,
        "lines": lines,
    }


def check(results: dict, where: str) -> dict:
    """Return the object, or raise a UserError that names the first field that is missing or wrong."""
    if not isinstance(results, dict):
        raise UserError(f"{where} is no JSON object")
    for name, kind in FIELDS.items():
        if name not in results:
            raise UserError(f"{where} has no {name!r}: the format is in e3jax/experiments/results.py")
        if not isinstance(results[name], kind):
            raise UserError(f"{where}: {name!r} is {type(results[name]).__name__}, see e3jax/experiments/results.py")
    for name, keys in PARTS.items():
        for i, part in enumerate(results[name]):
            missing = [key for key in keys if not isinstance(part, dict) or key not in part]
            if missing:
                raise UserError(f"{where}: {name}[{i}] has no {missing[0]!r}, see e3jax/experiments/results.py")
    if results["verdict"] not in VERDICTS:
        raise UserError(f"{where}: verdict {results['verdict']!r} is not one of {', '.join(VERDICTS)}")
    wrong = fault(results, SHAPE) or contradiction(results)
    if wrong:
        raise UserError(f"{where}: {wrong}, see e3jax/experiments/results.py")
    return results


def contradiction(results: dict) -> str:
    """Return what contradicts another part of a results.json, "" if nothing does."""
    absent = [measure for measure in results["measures"] if measure not in results["values"]]
    if absent:
        return f"there are no values of the measure {absent[0]!r}"
    for i, row in enumerate(results["rule"]):
        if row["measure"] not in results["measures"]:
            return f"rule[{i}] is about {row['measure']!r}, which is no measure"
        if row["kind"] not in KINDS or row["outcome"] not in OUTCOMES:
            return f"rule[{i}] is {row['kind']!r} and {row['outcome']!r}: use one of {KINDS} and one of {OUTCOMES}"
    for i, figure in enumerate(results["figures"]):
        for line in figure["lines"] or [{"x": []}]:
            if not line["x"] or {len(line[key]) for key in ("mean", "low", "high")} != {len(line["x"])}:
                return f"figures[{i}] has a line without points, or with fewer means than points"
            if figure["log2"] and min(line["x"]) <= 0:
                return f"figures[{i}] has x = {min(line['x'])} on a logarithmic axis"
    return ""


def write(workdir: epath.PathLike, results: dict) -> epath.Path:
    """Check and write WORKDIR/results.json (whole or not at all) and return its path."""
    path = place(workdir) / FILE
    text = json.dumps(finite(results), indent=1) + "\n"
    check(json.loads(text), str(path))
    write_whole(path, text)
    return path


def read(path: epath.PathLike) -> dict:
    """Return a checked results.json, named itself or by its directory. UserError if there is none, or it is wrong."""
    path = place(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path} does not exist: name the directory of a finished experiment")
    return check(read_json(path, object, advice="run its experiment again"), str(path))
