"""Read what a run directory holds, for pages. Every line is checked here, and a page says which were left out.

run = load_run(place("runs/countdown"))
run.evals[0]["accuracy"]["96"]      # always three numbers or nulls
run.notes                           # ["eval.jsonl: 1 unreadable line skipped, line 3: there is no stage"]
"""

from typing import Any, NamedTuple

from etils import epath

from e3jax.errors import UserError
from e3jax.readers import MOST_WHOLE, read_json, read_lines

LONGEST = 200  # characters of the name of a stage or set


def name(value: Any) -> str:
    """Check the name of a stage, a set or a kind: short enough for a figure, without half of a surrogate pair."""
    good = isinstance(value, str) and 0 < len(value) <= LONGEST and value == value.encode(errors="replace").decode()
    return "" if good else f"a name of 1 to {LONGEST} characters"


def count(value: Any) -> str:
    """Check a number of things: 0, 1, 2, …"""
    return "" if type(value) is int and 0 <= value <= MOST_WHOLE else "a whole number, 0 or more"


MAYBE = (float, None)
INTERVALS = {int: [MAYBE, MAYBE, MAYBE]}  # budget in tokens, or k -> mean, low, high
ATTEMPT = {"text": str, "verdict": object, "truth": object}
RECORDS = {  # what a report reads: file -> shape of its lines (e3jax/readers.py)
    "metrics.jsonl": {"stage": name, "kind": name, "step": count},
    "eval.jsonl": {"stage": name, "set": name, "accuracy": INTERVALS, "pass_at_k?": INTERVALS, "explore?": dict},
    "budget.jsonl": {
        "stage": name, "kappa": float, "minimum": float, "chosen": object, "satisfied": object,
        "rows": [{"budget": object, "satisfied": object, "chosen": object}],
    },
    "eval_samples.jsonl": {"stage": name, "set": name, "prompt": str, "response": str, "attempts": [ATTEMPT]},
}  # fmt: skip
MARKS = [[int, int]]  # characters of a response that an environment put there
GRADED = {"prompt": str, "response": str, "reward": float, "reason": object, "answer": object, "length": count}
SAMPLES = {  # what the page of samples reads
    "samples.jsonl": {
        "stage": name, "step": count, **GRADED, "truncated": object, "advantage?": MAYBE, "tokens?": [str],
        "entropy?": [MAYBE], "logp?": [MAYBE], "forced?": MARKS,
    },
    "eval_samples.jsonl": {"stage": name, "set": name, **GRADED, "target": object, "done": object, "forced?": MARKS},
    "problems.jsonl": {
        "stage": name, "set": name, "problem": str, "question": str, "answer": object, "reason_of": [object],
        "right_of": [(float, bool)],
    },
}  # fmt: skip
RESPONSE = {
    "part": str, "id": str, "sample": count, "done": object, "length": count, "text": str, "forced_text?": MARKS,
}  # fmt: skip
FILES = ("config.json", *dict.fromkeys([*RECORDS, *SAMPLES]))


class RunRecords(NamedTuple):
    """What a run directory holds. A missing file is an empty list, a missing config None."""

    config: Any
    metrics: list[dict]
    evals: list[dict]
    budgets: list[dict]
    samples: list[dict]
    notes: list[str]  # sentences on what could not be read


def read_record(path: epath.Path, shape: Any) -> tuple[list[dict], str]:
    """Return the lines that have the shape, and a note on the others ("" if there are none).

    A process that is killed while it writes leaves half a line: the last one or, after a resume, one glued to the next.
    A file that does not exist gives ([], "").
    """
    if not path.exists():
        return [], ""
    try:
        rows, faults = read_lines(path, shape)
    except UserError as error:
        return [], f"{path.name} could not be read: {error}."
    if not faults:
        return rows, ""
    return rows, f"{path.name}: {len(faults)} unreadable line{'s'[: len(faults) > 1]} skipped, {faults[0]}."


def load_run(run_dir: epath.Path) -> RunRecords:
    """Read a run directory. Raises FileNotFoundError if it holds no file of a run."""
    if not any((run_dir / file).is_file() for file in ("config.json", *RECORDS)):
        raise FileNotFoundError(
            f"{run_dir} holds none of config.json, {', '.join(RECORDS)}: "
            "give the directory that a training command wrote."
        )
    read, config = [read_record(run_dir / file, shape) for file, shape in RECORDS.items()], None
    notes = [note for _, note in read if note]
    if (run_dir / "config.json").exists():
        try:
            config = read_json(run_dir / "config.json", object)
        except UserError as error:
            notes.append(f"config.json could not be read: {error}.")
    return RunRecords(config, *(rows for rows, _ in read), notes)
