"""The rollout browser: RUN/samples.html, one file that works without a network, for one run or several.

It shows samples.jsonl (rollouts of training), eval_samples.jsonl (rollouts of the evaluation after each stage) and,
for `e3jax.eval.run`, every response of responses/. A response's attempts, verifications, phases, thinking and answer
are marked as spans of characters; they are read as the metrics read them (e3jax/metrics/exploration.py), so that what
is marked here is what is counted there. The page is samples.html beside this file with the samples in it as JSON; a
browser renders only what it shows. A model's text reaches the page as JSON and the screen as text nodes, and the page's
policy allows only its own script, by its hash.

    python -m e3jax.report.browser runs/quickstart
    python -m e3jax.report.browser runs/seed0 runs/seed1 --to=samples.html
"""

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from e3jax.errors import UserError
from e3jax.metrics.exploration import attempt_spans, text_attempts, verification_starts
from e3jax.phases import TAG, begins_plan, read_text
from e3jax.printable import printable
from e3jax.report.page import SAMPLES_PAGE, filled
from e3jax.report.read_run import RESPONSE, SAMPLES, read_record
from e3jax.rewards.extract import CLOSE, OPEN
from e3jax.storage import patiently, place
from e3jax.tasks.problem import Problem
from e3jax.tasks.prompts import last_question
from e3jax.tasks.written_arithmetic import read_equations

MOST_BYTES = 48e6  # text in a page; of more, training steps are left out evenly
COLUMNS = (
    "run", "from", "stage", "step", "problem", "text", "answer", "reward", "reason", "length", "truncated",
    "advantage", "attempts", "spans", "tokens", "entropy", "logp",
)  # fmt: skip
# kind of span -> (its words in the legend, the sign at its end)
KINDS = {
    "plan": ("plan (exploration)", ""),
    "execution": ("execution", ""),
    "thinking": ("thinking", ""),
    "answer": ("answer", ""),
    "right": ("attempt, the model's verdict is right", "✓"),
    "wrong": ("attempt, its verdict is wrong", "✗"),
    "open": ("attempt, no verdict", ""),
    "solution": ("really a solution", "★"),
    "check": ("verification", ""),
    "false": ("equation that is false", "≠"),
    "forced": ("said to the model, not sampled", ""),
}
# a prompt of e3's Countdown (tasks/countdown.py PROMPT), and one of multiplication (tasks/prompts.py), in any chat
COUNTDOWN = re.compile(
    r"\bnumbers \[(\d{1,9}(?:, \d{1,9}){1,11})\], create an equation that equals (\d{1,9})\b", re.ASCII
)
PRODUCT = re.compile(r"\bMultiply (\d{1,18}) and (\d{1,18})\.", re.ASCII)
CALCULATOR = re.compile(r"\d{1,9}(?: \d{1,9})+ \?\d{1,9}")  # a prompt of tasks/countdown_traces.py
SENTENCE = re.compile(r"[^.!?\n]+")
ANSWER = re.compile(r"<answer>|\\boxed\s*\{")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} open and close nothing: the graders read them so, too
TRAINING = "training"  # stands where a sample of an evaluation has the name of its set
NO_STEP = -1  # the step of a sample that was drawn after the stage


def run_samples(run_dir: epath.Path) -> tuple[list[dict], list[str]]:
    """Return all samples of a run directory, and sentences on what could not be read.

    A sample has the keys of COLUMNS, prompt and target. Raises FileNotFoundError if there is none.
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
    """Return the sample of a line of samples.jsonl; lines of older runs have no tokens."""
    per_token = {name: row[name] if name in row else [] for name in ("tokens", "entropy", "logp")}
    return _sample(row, source=TRAINING, step=row["step"], target=row["answer"], truncated=row["truncated"]) | per_token


def _evaluated(row: dict) -> dict:
    """Return the sample of a line of eval_samples.jsonl."""
    return _sample(row, source=row["set"], step=NO_STEP, target=row["target"], truncated=not row["done"])


def _sample(row: dict, *, source: str, step: int, target: Any, truncated: bool) -> dict:
    """Return a sample in one form, whatever record `row` comes from."""
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
        "forced": row["forced"] if "forced" in row else [],
        "tokens": [],
        "entropy": [],
        "logp": [],
    }


def _responses(run_dir: epath.Path, problems: list[dict], notes: list[str]) -> Iterator[dict]:
    """Yield what `e3jax.eval.run` drew, with the grades of problems.jsonl; responses without a grade are left out.

    Adds to `notes` what cannot be read.
    """
    sets: dict[tuple[str, str], dict[str, dict]] = {}  # by id, so that a line that was left out does not shift others
    for row in problems:
        sets.setdefault((row["stage"], row["set"]), {})[row["problem"]] = row
    for (stage, name), by_id in sets.items():
        for file in response_files(run_dir / "responses", stage, name):
            lines, note = read_record(file, RESPONSE)
            notes += [f"{run_dir.name}/responses/{stage}/{name}/{note.removesuffix('.')}"] if note else []
            for line in lines:
                problem, g = by_id[line["id"]] if line["id"] in by_id else None, line["sample"]
                grades = 0 if problem is None else min(len(problem["right_of"]), len(problem["reason_of"]))
                if line["part"] != "response" or g >= grades:
                    continue
                row = {
                    "stage": stage,
                    "prompt": problem["question"],
                    "response": line["text"],
                    "answer": "",
                    "reward": problem["right_of"][g],
                    "reason": problem["reason_of"][g],
                    "forced": line["forced_text"] if "forced_text" in line else [],
                }
                yield _sample(
                    row | {"length": line["length"]},
                    source=name,
                    step=NO_STEP,
                    target=problem["answer"],
                    truncated=not line["done"],
                )


def response_files(directory: epath.Path, stage: str, name: str) -> list[epath.Path]:
    """Return the files of responses of one stage and set, never outside of `directory`, whatever their names are."""
    parts = [*stage.split("/"), *name.split("/")]
    if "\0" in stage + name or {"", ".", ".."} & set(parts):
        return []
    return sorted((directory / stage / name).glob("*.jsonl"))


class Span(NamedTuple):
    """The characters [start, end) of a response and what they are."""

    start: int
    end: int
    kind: str  # of KINDS


def text_spans(prompt: str, text: str) -> list[Span]:
    """Return all spans of a response, which may lie inside one another.

    >>> [(s.start, s.end, s.kind) for s in text_spans("1 2 ?3", "1 + 2 = 3 ?3 0 yes")]
    [(0, 18, 'right'), (7, 18, 'check'), (0, 18, 'solution')]
    """
    spans = answer_spans(text)
    if TAG.search(text):
        phases = read_text(text, begun=begins_plan(prompt))
        return spans + [Span(*span, kind) for span, kind in zip(phases[:2], ("plan", "execution")) if span]
    problem, close = written_problem(prompt, text), "</think>"
    if CALCULATOR.fullmatch(prompt) and text.split(" ") == text.split():  # as the calculator's tokenizer writes
        numbers, target = prompt.split(" ?")
        meta = {"form": "calculator", "numbers": [int(n) for n in numbers.split()], "target": int(target)}
        problem, close = Problem("", "countdown", prompt, target, "", meta), "<answer>"
    elif close in text or text.lstrip().startswith("<think>") or prompt.rstrip().endswith("<think>"):
        spans.append(Span(0, len(text.partition(close)[0]), "thinking"))
    found = attempt_spans(problem, text, close=close)
    if not problem.meta and len(found) == 1:
        found = []  # free text that begins once has tried nothing else
    for a in found:
        kind = "open" if a.verdict is None else "right" if a.verdict == a.truth else "wrong"
        spans.append(Span(a.start, a.end, kind))
        if a.chosen < a.end:
            spans.append(Span(a.chosen, a.end, "check"))
        if a.truth:
            spans.append(Span(a.start, a.end, "solution"))
    if text_attempts(problem, text):
        spans += [Span(one.start, one.end, "false") for one in read_equations(text) if not one.true]
    starts = [] if problem.meta else verification_starts(text)
    return spans + [Span(start, SENTENCE.match(text, start).end(), "check") for start in starts]


def spans_of_turns(prompt: str, text: str, forced: list[list[int]]) -> list[Span]:
    """Return the spans of a response of which some characters were put there: those are read as no part of it.

    >>> text = "1 + 2 = 3 what? ?3 0 yes"
    >>> [(text[s.start : s.end], s.kind) for s in spans_of_turns("1 2 ?3", text, [[10, 16]])][::3]
    [('1 + 2 = 3 what? ?3 0 yes', 'right'), ('what? ', 'forced')]
    """
    if not forced:
        return text_spans(prompt, text)
    own, end, marks = [], 0, []  # characters that the model wrote
    for start, last in sorted(forced):
        start, last = min(max(start, end), len(text)), min(max(last, end), len(text))
        own += range(end, start)
        marks += [Span(start, last, "forced")] if start < last else []
        end = last
    own += range(end, len(text))
    spans = text_spans(prompt, "".join(text[i] for i in own))
    return [Span(own[s.start], own[s.end - 1] + 1, s.kind) for s in spans if s.start < s.end] + marks


def written_problem(prompt: str, text: str) -> Problem:
    """Return the problem of a prompt in words where the response is a trace in text; else one of free text.

    >>> text = "Try 3 + 4: 3 + 4 = 7. That is 7."
    >>> written_problem("Using the numbers [3, 4], create an equation that equals 7.", text).meta["numbers"]
    [3, 4]
    """
    problem = Problem("", "math", prompt, "", "", {})
    if match := COUNTDOWN.search(prompt):
        meta = {"form": "paper", "numbers": [int(n) for n in match[1].split(", ")], "target": int(match[2])}
        problem = Problem("", "countdown", prompt, match[2], "", meta)
    elif match := PRODUCT.search(prompt):
        a, b = int(match[1]), int(match[2])
        problem = Problem("", "multiplication", prompt, str(a * b), "", {"a": a, "b": b})
    return problem if text_attempts(problem, text) else Problem("", "math", prompt, "", "", {})


def answer_spans(text: str) -> list[Span]:
    r"""Return every <answer>…</answer> and \boxed{…} that is closed, without those inside another. Linear in len(text).

    >>> [text[s.start : s.end] for text in [r"<answer> \boxed{1} </answer> \boxed{\frac{1}{2}} \boxed{"]
    ...  for s in answer_spans(text)]
    ['<answer> \\boxed{1} </answer>', '\\boxed{\\frac{1}{2}}']
    """
    end_of, stack = {}, []  # {place of an opening brace: where it is closed}; the braces that are open
    for brace in BRACE.finditer(text):
        if brace[0] == "{":
            stack.append(brace.start())
        elif brace[0] == "}" and stack:
            end_of[stack.pop()] = brace.end()
    spans, last = [], text.rfind(CLOSE)
    for mark in ANSWER.finditer(text):
        if spans and mark.start() < spans[-1].end:
            continue  # inside an answer
        if mark[0] != OPEN and mark.end() - 1 in end_of:
            spans.append(Span(mark.start(), end_of[mark.end() - 1], "answer"))
        elif mark[0] == OPEN and mark.end() <= last:
            spans.append(Span(mark.start(), text.index(CLOSE, mark.end()) + len(CLOSE), "answer"))
    return spans


def attempts(spans: list[Span]) -> int:
    """Count the attempts among the spans."""
    return sum(s.kind in ("right", "wrong", "open") for s in spans)


def question_in(prompt: str) -> str:
    """Return the question without its chat template, "" where that is the whole prompt."""
    question = last_question(prompt)
    return "" if question == prompt else question


def page_data(run_dirs: Sequence[epath.Path]) -> dict:
    """Return all that the page shows: samples by column, each problem once, per-token numbers in thousandths.

    A problem is its prompt, its target, and its question ("": the prompt).
    """
    rows, notes, problems = [], [], {}
    for number, run_dir in enumerate(run_dirs):
        samples, unreadable = run_samples(run_dir)
        notes += unreadable
        rows += [{"run": number, **sample} for sample in samples]
    rows, left_out = thinned(rows)
    notes += [left_out] if left_out else []
    for row in rows:
        row["problem"] = problems.setdefault((row.pop("prompt"), row.pop("target")), len(problems))
    prompts = [prompt for prompt, _ in problems]
    kinds = list(KINDS)
    for row in rows:
        spans = spans_of_turns(prompts[row["problem"]], row["text"], row.pop("forced"))
        row["attempts"] = attempts(spans)
        utf16 = _utf16(row["text"])
        row["spans"] = [x for s in spans for x in (utf16(s.start), utf16(s.end), kinds.index(s.kind))]
        row["tokens"] = [len(piece.encode("utf-16-le", "surrogatepass")) // 2 for piece in row["tokens"]]
        for name in ("entropy", "logp"):
            row[name] = [None if x is None else round(1000 * x) for x in row[name]]
    return {
        "runs": [run_dir.name for run_dir in run_dirs],
        "kinds": [[key, label, sign] for key, (label, sign) in KINDS.items()],
        "problems": [[prompt, target, question_in(prompt)] for prompt, target in problems],
        "samples": {name: [row[name] for row in rows] for name in COLUMNS},
        "notes": notes,
    }


def thinned(rows: list[dict]) -> tuple[list[dict], str]:
    """Return rows whose text fits into MOST_BYTES, and a sentence on what was left out ("": nothing).

    Evaluations stay whole, of training every n-th step.
    """
    total = sum(len(row["text"]) + 12 * len(row["tokens"]) for row in rows)
    if total <= MOST_BYTES:
        return rows, ""
    every = int(total // MOST_BYTES) + 1
    kept = [row for row in rows if row["step"] == NO_STEP or row["step"] % every == 0]
    return kept, f"{total / 1e6:.0f} MB of text: only one training step of {every} is here"


def _utf16(text: str) -> Callable[[int], int]:
    """Return a function from a place in `text` to the place as a browser counts it, in UTF-16 units."""
    if text.isascii() or max(text) <= "\uffff":
        return lambda at: at
    before = [0]
    for character in text:
        before.append(before[-1] + 1 + (character > "\uffff"))
    return before.__getitem__


def page(run_dirs: Sequence[epath.Path]) -> str:
    """Return the whole page. Raises FileNotFoundError if a run has no sample."""
    return filled("samples.html", title=" · ".join(run_dir.name for run_dir in run_dirs), data=page_data(run_dirs))


def write_samples(run_dirs: Sequence[epath.PathLike], *, to: epath.PathLike | None = None) -> epath.Path:
    """Write the page to `to`, by default samples.html in the first run's directory, and return its path."""
    run_dirs = [place(run_dir) for run_dir in run_dirs]
    path = run_dirs[0] / SAMPLES_PAGE if to is None else place(to)
    text = page(run_dirs).encode(errors="replace")
    patiently(f"write {path}", lambda: path.write_bytes(text))
    return path


def main() -> None:
    """The command: write the samples of runs into one page."""
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
