"""The rollout browser: RUN/samples.html, one file that works without a network; several runs share one page.

It shows samples.jsonl (rollouts of training), eval_samples.jsonl (of the evaluations after each stage), and for
`e3jax.eval.run` every response of responses/. The page is samples.html beside this file with the samples as JSON in
it; a browser renders only what it shows. A model's text reaches the page as JSON and the screen as text nodes, and the
page's policy allows its own script alone, by its hash.

    python -m e3jax.report.browser runs/quickstart
    python -m e3jax.report.browser runs/seed0 runs/seed1 --to=samples.html
"""

import argparse
import base64
import hashlib
import importlib.resources
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from e3jax.errors import UserError
from e3jax.printable import printable
from e3jax.report.html import SAMPLES_PAGE
from e3jax.report.page import escaped
from e3jax.report.read_run import RESPONSE, SAMPLES, read_record
from e3jax.report.spans import KINDS, attempts, text_spans
from e3jax.storage import patiently, place

MOST_BYTES = 48e6  # of text in a page; above it, training steps are left out evenly
COLUMNS = (
    "run", "from", "stage", "step", "problem", "text", "answer", "reward", "reason", "length", "truncated",
    "advantage", "attempts", "spans", "tokens", "entropy", "logp",
)  # fmt: skip
TRAINING = "training"  # where a sample is from, else the name of the set it answers
NO_STEP = -1  # of a sample that was drawn after the stage


def run_samples(run_dir: epath.Path) -> tuple[list[dict], list[str]]:
    """All samples of a run directory with the keys of COLUMNS, prompt and target; sentences on what was left out.

    Raises FileNotFoundError where there is none.
    """
    rows, notes = {}, []
    for name, shape in SAMPLES.items():
        rows[name], note = read_record(run_dir / name, shape)
        notes += [f"{run_dir.name}/{note.removesuffix('.')}"] if note else []
    samples = [*map(_trained, rows["samples.jsonl"]), *map(_evaluated, rows["eval_samples.jsonl"])]
    samples += _responses(run_dir, rows["problems.jsonl"], notes)
    if not samples:
        raise FileNotFoundError(
            f"{run_dir} holds no sample: neither {' nor '.join(SAMPLES)} has a line"
            + "".join(f"; {note}" for note in notes)
        )
    return samples, notes


def _trained(row: dict) -> dict:
    """A line of samples.jsonl; lines of older runs have no tokens."""
    per_token = {name: row[name] if name in row else [] for name in ("tokens", "entropy", "logp")}
    return _sample(row, source=TRAINING, step=row["step"], target=row["answer"], truncated=row["truncated"]) | per_token


def _evaluated(row: dict) -> dict:
    """A line of eval_samples.jsonl."""
    return _sample(row, source=row["set"], step=NO_STEP, target=row["target"], truncated=not row["done"])


def _sample(row: dict, *, source: str, step: int, target: Any, truncated: bool) -> dict:
    return {
        "from": str(source),
        "stage": str(row["stage"]),
        "step": step,
        "prompt": str(row["prompt"]),
        "target": str(target),
        "text": str(row["response"]),
        "answer": str(row["answer"]) if step == NO_STEP else "",
        "reward": row["reward"],
        "reason": str(row["reason"]),
        "length": row["length"],
        "truncated": bool(truncated),
        "advantage": row["advantage"] if "advantage" in row else None,
        "tokens": [],
        "entropy": [],
        "logp": [],
    }


def _responses(run_dir: epath.Path, problems: list[dict], notes: list[str]) -> Iterator[dict]:
    """What `e3jax.eval.run` drew, graded by problems.jsonl; a response whose set is not graded yet is left out.

    What cannot be read is added to `notes`.
    """
    sets: dict[tuple[str, str], dict[str, dict]] = {}  # by id: a line that was left out must not shift the others
    for row in problems:
        sets.setdefault((row["stage"], row["set"]), {})[row["problem"]] = row
    for (stage, name), asked in sets.items():
        for file in response_files(run_dir / "responses", stage, name):
            lines, note = read_record(file, RESPONSE)
            notes += [f"{run_dir.name}/responses/{stage}/{name}/{note.removesuffix('.')}"] if note else []
            for line in lines:
                problem, g = asked[line["id"]] if line["id"] in asked else None, line["sample"]
                graded = 0 if problem is None else min(len(problem["right_of"]), len(problem["reason_of"]))
                if line["part"] != "response" or g >= graded:
                    continue
                row = {
                    "stage": stage,
                    "prompt": problem["question"],
                    "response": line["text"],
                    "answer": "",
                    "reward": problem["right_of"][g],
                    "reason": problem["reason_of"][g],
                }
                yield _sample(
                    row | {"length": line["length"]},
                    source=name,
                    step=NO_STEP,
                    target=problem["answer"],
                    truncated=not line["done"],
                )


def response_files(directory: epath.Path, stage: str, name: str) -> list[epath.Path]:
    """Return the files of responses of one stage and set: inside `directory`, whatever records call the two."""
    parts = [*stage.split("/"), *name.split("/")]
    if "\0" in stage + name or {"", ".", ".."} & set(parts):
        return []
    return sorted((directory / stage / name).glob("*.jsonl"))


def page_data(run_dirs: Sequence[epath.Path]) -> dict:
    """Everything the page shows: columns over samples; text of problems once; per-token numbers in thousandths."""
    rows, notes, problems = [], [], {}
    for number, run_dir in enumerate(run_dirs):
        samples, said = run_samples(run_dir)
        notes += said
        rows += [{"run": number, **sample} for sample in samples]
    rows, left_out = thinned(rows)
    notes += [left_out] if left_out else []
    for row in rows:
        row["problem"] = problems.setdefault((row.pop("prompt"), row.pop("target")), len(problems))
    prompts = [prompt for prompt, _ in problems]
    kinds = list(KINDS)
    for row in rows:
        spans = text_spans(prompts[row["problem"]], row["text"])
        row["attempts"] = attempts(spans)
        utf16 = _utf16(row["text"])
        row["spans"] = [x for s in spans for x in (utf16(s.start), utf16(s.end), kinds.index(s.kind))]
        row["tokens"] = [len(piece.encode("utf-16-le", "surrogatepass")) // 2 for piece in row["tokens"]]
        for name in ("entropy", "logp"):
            row[name] = [None if x is None else round(1000 * x) for x in row[name]]
    return {
        "runs": [run_dir.name for run_dir in run_dirs],
        "kinds": [[key, label, sign] for key, (label, sign) in KINDS.items()],
        "problems": list(problems),
        "samples": {name: [row[name] for row in rows] for name in COLUMNS},
        "notes": notes,
    }


def thinned(rows: list[dict]) -> tuple[list[dict], str]:
    """Rows whose text stays below MOST_BYTES: every n-th training step, evaluations whole; and what was left out."""
    total = sum(len(row["text"]) + 12 * len(row["tokens"]) for row in rows)
    if total <= MOST_BYTES:
        return rows, ""
    every = int(total // MOST_BYTES) + 1
    kept = [row for row in rows if row["step"] == NO_STEP or row["step"] % every == 0]
    return kept, f"{total / 1e6:.0f} MB of text: only one training step of {every} is here"


def _utf16(text: str):
    """Places in a string as a browser counts them."""
    if text.isascii() or max(text) <= "\uffff":
        return lambda at: at
    before = [0]
    for character in text:
        before.append(before[-1] + 1 + (character > "\uffff"))
    return before.__getitem__


def page(run_dirs: Sequence[epath.Path]) -> str:
    """The whole page. FileNotFoundError where a run has no sample."""
    template = (importlib.resources.files("e3jax.report") / "samples.html").read_text(encoding="utf-8")
    data = json.dumps(page_data(run_dirs), separators=(",", ":")).replace("<", "\\u003c")  # no tag can end the script
    hashes = {
        tag: base64.b64encode(hashlib.sha256(re.search(f"<{tag}>(.*?)</{tag}>", template, re.S)[1].encode()).digest())
        for tag in ("script", "style")
    }
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'" + "".join(
        f"; {tag}-src 'sha256-{digest.decode()}'" for tag, digest in hashes.items()
    )
    title = escaped(" · ".join(run_dir.name for run_dir in run_dirs))
    return template.replace("{{policy}}", policy).replace("{{title}}", title).replace("{{data}}", data)


def write_samples(run_dirs: Sequence[epath.PathLike], *, to: epath.PathLike | None = None) -> epath.Path:
    """Write the page to `to`, by default samples.html in the first run's directory; returns its path."""
    run_dirs = [place(run_dir) for run_dir in run_dirs]
    path = run_dirs[0] / SAMPLES_PAGE if to is None else place(to)
    text = page(run_dirs).encode(errors="replace")
    patiently(f"write {path}", lambda: path.write_bytes(text))
    return path


def main() -> None:
    """The command: samples of runs on one page."""
    about = {"prog": "python -m e3jax.report.browser", "description": "Write a page of a run's samples."}
    parser = argparse.ArgumentParser(**about)
    parser.add_argument("run_dir", nargs="+", help="directories that a training or evaluation command wrote")
    parser.add_argument("--to", help="the page's file; default: samples.html in the (first) run directory")
    arguments = parser.parse_args()
    try:
        print(printable(write_samples(arguments.run_dir, to=arguments.to), lines=False))
    except (OSError, UserError) as error:
        parser.exit(2, f"{printable(error, lines=False)}\n")


if __name__ == "__main__":
    main()
