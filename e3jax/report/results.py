"""results.json: what an experiment leaves, whoever ran it; report/paper.py makes a page of any number of them.

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

from e3jax.errors import UserError, first_line
from e3jax.records import finite
from e3jax.storage import place, write_whole

FILE = "results.json"
FIELDS = {
    "name": str, "paper": str, "claim": str, "setting": str, "command": str, "minutes": (int, float, type(None)),
    "seeds": list, "level": (int, float), "arms": dict, "measures": dict, "values": dict, "rule": list, "verdict": str,
    "figures": list, "tables": list, "failed": list,
}  # fmt: skip
PARTS = {
    "rule": ("says", "measure", "plus", "minus", "kind", "margin", "values", "mean", "low", "high", "outcome"),
    "figures": ("title", "xlabel", "ylabel", "log2", "percent", "mark", "lines"),
    "tables": ("title", "header", "rows"),
    "failed": ("arm", "seed", "why"),
}
VERDICTS = ("reproduced", "mixed", "not reproduced", "not decided")


def check(results: dict, where: str) -> dict:
    """The object itself; UserError that names the first thing missing or of another type."""
    if not isinstance(results, dict):
        raise UserError(f"{where} is no JSON object")
    for name, kind in FIELDS.items():
        if name not in results:
            raise UserError(f"{where} has no {name!r}: the format is in e3jax/report/results.py")
        if not isinstance(results[name], kind):
            raise UserError(f"{where}: {name!r} is {type(results[name]).__name__}, see e3jax/report/results.py")
    for name, keys in PARTS.items():
        for i, part in enumerate(results[name]):
            missing = [key for key in keys if not isinstance(part, dict) or key not in part]
            if missing:
                raise UserError(f"{where}: {name}[{i}] has no {missing[0]!r}, see e3jax/report/results.py")
    if results["verdict"] not in VERDICTS:
        raise UserError(f"{where}: verdict {results['verdict']!r}, one of {', '.join(VERDICTS)}")
    return results


def write(workdir: epath.PathLike, results: dict) -> epath.Path:
    """Check and write WORKDIR/results.json, whole or not at all; numbers that are not finite become null."""
    path = place(workdir) / FILE
    text = json.dumps(finite(check(results, str(path))), indent=1) + "\n"
    write_whole(path, text)
    return path


def read(path: epath.PathLike) -> dict:
    """The object of a results.json, or of the directory that holds it; UserError when there is none, or another."""
    path = place(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path} is not there: name a directory that an experiment has finished in")
    try:
        return check(json.loads(path.read_text()), str(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({first_line(error)}): run its experiment again") from error
