"""results.json: what an experiment leaves, whoever ran it; experiments/paper.py makes a page of any number of them.

One JSON object. Numbers that are not finite are null. Required:

    name       str        short, unique: "mask"
    paper      str        where the claim is: "Fig. 5, 6, 17, 18 (§5, App. G)"
    claim      str        the paper's claim in our words
    setting    str        what was run here, and what differs from the paper
    command    str        what makes this file again
    minutes    number     wall time of the runs it is made of; null: unknown
    seeds      [int]
    level      number     of all intervals: 0.95
    arms       {arm: str}                     name -> what it is, in words
    measures   {measure: {"says": str, "percent": bool}}
    values     {measure: {arm: {seed (as str): number}}}
    rule       [statement]                    metrics/seeds.py: says, measure, plus, minus, kind, margin, as
                                              stated before the run; values {seed: number}, mean, low, high, outcome
    verdict    "reproduced" | "mixed" | "not reproduced" | "not decided" (fewer than two seeds)
    figures    [figure]
    tables     [{"title": str, "header": [str], "rows": [[str]]}]
    failed     [{"arm": str, "seed": int, "why": str}]

A figure holds data, not drawings (a page escapes and draws them; report/figures.py):

    {"title": str, "xlabel": str, "ylabel": str, "log2": bool, "percent": bool, "mark": number | null,
     "lines": [{"label": str, "x": [number], "mean": [number], "low": [number], "high": [number]}]}

`mark` is an x where a vertical line stands (a training budget); `low` and `high` are null where there is no interval.

    write(workdir, results)           # checks, then WORKDIR/results.json
    results = read("runs/experiments/mask")
"""

import json

from etils import epath

from e3jax.errors import UserError
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
PARTS = {  # shapes (e3jax/readers.py) of what the page reads of them
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
OUTCOMES, KINDS = ("yes", "no", "open"), ("above", "within")


def check(results: dict, where: str) -> dict:
    """The object itself; UserError that names the first thing missing or of another type."""
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
        raise UserError(f"{where}: verdict {results['verdict']!r}, one of {', '.join(VERDICTS)}")
    wrong = fault(results, SHAPE) or contradiction(results)
    if wrong:
        raise UserError(f"{where}: {wrong}, see e3jax/experiments/results.py")
    return results


def contradiction(results: dict) -> str:
    """Return what of a results.json does not fit something else in it, "" where all does."""
    absent = [measure for measure in results["measures"] if measure not in results["values"]]
    if absent:
        return f"there are no values of the measure {absent[0]!r}"
    for i, row in enumerate(results["rule"]):
        if row["measure"] not in results["measures"]:
            return f"rule[{i}] is about {row['measure']!r}, which is no measure"
        if row["kind"] not in KINDS or row["outcome"] not in OUTCOMES:
            return f"rule[{i}] is {row['kind']!r} and {row['outcome']!r}: one of {KINDS} and one of {OUTCOMES}"
    for i, figure in enumerate(results["figures"]):
        for line in figure["lines"] or [{"x": []}]:
            if not line["x"] or {len(line[key]) for key in ("mean", "low", "high")} != {len(line["x"])}:
                return f"figures[{i}] has a line without points, or with fewer means than points"
            if figure["log2"] and min(line["x"]) <= 0:
                return f"figures[{i}] has x = {min(line['x'])} on a logarithmic axis"
    return ""


def write(workdir: epath.PathLike, results: dict) -> epath.Path:
    """Check and write WORKDIR/results.json, whole or not at all; numbers that are not finite become null."""
    path = place(workdir) / FILE
    text = json.dumps(finite(results), indent=1) + "\n"
    check(json.loads(text), str(path))
    write_whole(path, text)
    return path


def read(path: epath.PathLike) -> dict:
    """The object of a results.json, or of the directory that holds it; UserError when there is none, or another."""
    path = place(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path} is not there: name a directory that an experiment has finished in")
    return check(read_json(path, object, advice="run its experiment again"), str(path))
