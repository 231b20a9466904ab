"""Merge the finished runs of experiments from several machines and days into one directory.

    python -m e3jax.experiments.collect monday/ tuesday/ --to=runs/experiments-lm
    python -m e3jax.experiments.run --config=configs/experiments/mask.py:lm --workdir=runs/experiments-lm/mask

Each argument is what launch/experiments_gpu.sh left under --out: runs without checkpoints, NAME/ARM/seed0 and
bases/NAME/seed0, and evaluations of finished models, NAME/eval/seed0 and NAME/scaling/seed0. The second command then
finds these runs done, and makes the results of all. Refused: one run that was made twice with other numbers; a run of
another commit, or with changes that were not committed; and arms of a seed that started from different bases, since a
difference between them would be a difference between bases.
"""

import argparse
import hashlib
import sys
from typing import NamedTuple

from etils import epath

from e3jax.errors import UserError
from e3jax.experiments.read import digest
from e3jax.printable import printable
from e3jax.records import read_lines
from e3jax.storage import place, write_whole

SMALL = ("*.json", "*.jsonl", "*.html", "DONE")  # of a run directory; checkpoints and tb/ stay where they are
STARTS = {"time": str, "commit": str}  # what is read of a line of starts.jsonl
# what a finished run, and an evaluation, has
ENDS = "*/*/seed*/DONE", "*/eval/seed*/eval.jsonl", "*/scaling/seed*/scaling.jsonl"


class Found(NamedTuple):
    """A finished run."""

    name: str  # where it is below its directory: "mask/grpo/seed0"
    directory: epath.Path
    config: str  # SHA-256 of config.json
    records: str  # SHA-256 of its records, which hold times: equal only for copies
    commits: frozenset[str]


def find(where: epath.Path) -> list[Found]:
    """Return the finished runs and evaluations below a directory, by name. UserError if there is none."""
    if not where.is_dir():
        raise UserError(f"{where} is no directory: name what launch/experiments_gpu.sh left under --out")
    found = []
    for run in sorted(path.parent for end in ENDS for path in where.glob(end)):
        config = hashlib.sha256((run / "config.json").read_bytes()).hexdigest()
        commits = frozenset(line["commit"] for line in read_lines(run / "starts.jsonl", STARTS))
        found.append(Found(run.relative_to(where).as_posix(), run, config, digest(run), commits))
    if not found:
        raise UserError(f"{where} has no finished run NAME/ARM/seed0: is it what --out named?")
    return found


def check(runs: list[Found], *, any_commit: bool) -> dict[str, Found]:
    """Return one run a name. UserError for what must not be merged; `any_commit` lets different commits pass."""
    chosen = {}
    for run in runs:
        other = chosen.setdefault(run.name, run)
        if other.config != run.config:
            raise UserError(f"{run.directory} and {other.directory} have different configs: leave one of them out")
        if other.records != run.records:
            kind = "base" if run.name.startswith("bases/") else "run"
            advice = "arms of one seed need one base: give the bases/ of the first machine to the next one"
            raise UserError(
                f"{run.directory} and {other.directory} are the same {kind} made twice: "
                + (advice if kind == "base" else "leave one of them out")
            )
    commits = sorted(set().union(*(run.commits for run in runs)))
    changed = [commit for commit in commits if commit.endswith("+dirty")]
    if not any_commit and (len(commits) > 1 or changed):
        raise UserError(
            f"the runs are of {len(commits)} commits ({', '.join(commits)}): make them with one, without changes of "
            "its files, or say --any_commit"
        )
    return chosen


def collect(directories: list[str], to: epath.PathLike, *, any_commit: bool = False) -> int:
    """Copy the small files of every finished run to `to`, and return how many runs were not there before."""
    to, new = place(to), 0
    there = find(to) if any(path for end in ENDS for path in to.glob(end)) else []
    runs = [run for directory in directories for run in find(place(directory))]
    for name, run in check([*there, *runs], any_commit=any_commit).items():
        if run in there:
            continue
        (to / name).mkdir(parents=True, exist_ok=True)
        files = [path for pattern in SMALL for path in run.directory.glob(pattern) if path.name != "lock.json"]
        ends = {end.rpartition("/")[2] for end in ENDS}
        for path in sorted(files, key=lambda path: path.name in ends):  # last, so that half a copy is not finished
            write_whole(to / name / path.name, path.read_bytes())
        new += 1
    return new


def main() -> None:
    """The command: merge, and say how many runs came."""
    parser = argparse.ArgumentParser(
        prog="python -m e3jax.experiments.collect", description="Merge finished runs of several machines."
    )
    parser.add_argument("directories", nargs="+", help="what launch/experiments_gpu.sh left under --out")
    parser.add_argument("--to", required=True, help="the directory of all runs")
    parser.add_argument("--any_commit", action="store_true", help="merge runs of different commits")
    given = parser.parse_args()
    try:
        new = collect(given.directories, given.to, any_commit=given.any_commit)
        print(printable(f"{given.to}: {new} runs came", lines=False), file=sys.stderr)
    except (OSError, UserError) as error:
        parser.exit(2, f"error: {printable(error, lines=False)}\n")


if __name__ == "__main__":
    main()
