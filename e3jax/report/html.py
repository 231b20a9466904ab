"""The report of a run: RUN_DIR/report.html, one self-contained file made from the run's JSON lines.

It shows what a run claims (accuracy of every checkpoint at every test budget with 95 % intervals, pass@k, the table
behind Eq. 2) beside what one needs to doubt it (training curves, coloured rollouts, the config). A run that is still
going can be read: sections without a record are left out and named, and lines that cannot be read, such as half-written
ones, are skipped and counted (report/read_run.py). All text of a model or a config is escaped, and nothing is loaded
from the network.

    path = write_report("runs/countdown")      # the command: python -m e3jax.report runs/countdown
"""

import json
import math
import runpy
from typing import Any

import numpy as np
from etils import epath

from e3jax.report import figures
from e3jax.report.figures import read_interval, read_number
from e3jax.report.page import SAMPLES_PAGE, escaped, figure_html, page, table_html
from e3jax.report.panels import OPTIONAL, SETTINGS, shown_panels
from e3jax.report.read_run import load_run
from e3jax.storage import place
from e3jax.tasks.prompts import last_question

SAMPLES = 10  # rollouts shown
BEHAVIOUR = ("attempts", "length", "give_up", "verdict_accuracy", "truncated")  # keys of eval.jsonl's "explore"
PROTOCOL = ("problems", "samples", "temperature")  # keys of eval.jsonl, shown as they are
XLABEL = {"accuracy": "test budget (tokens)", "pass_at_k": "k (samples)"}
CAPTION = {
    "accuracy": "Bands: 95 % intervals. Rings: training budgets; dashed: the last one's; beyond it: extrapolation.",
    "pass_at_k": "Share of problems that at least one of k samples solves.",
}
RULE = (
    "<p class='rule'>B<sub>tr</sub> = smallest B ≥ B<sub>0</sub> with J(2B) ≤ κ J(B)</p>"
    "<p class='key'>e3 paper, Eq. 2; J: accuracy in % of the model that enters the stage, on its problems.</p>"
)
CHIPS = (
    ", one chip per attempt: <span class='chip right'>✓ the model's verdict on it is right</span> "
    "<span class='chip wrong'>✗ its verdict is wrong</span> <span class='chip open'>· no verdict, or the truth is "
    "unknown</span> ★ really a solution"
)


def report_page(run_dir: epath.PathLike) -> str:
    """Return the report of what the run has logged so far. Raises FileNotFoundError where there is no run."""
    run_dir = place(run_dir)
    run = load_run(run_dir)
    latest = {(row["stage"], row["set"]): row for row in run.evals if row["accuracy"]}
    sets = {}  # problem set -> its rows, first checkpoint first; of one that was measured twice the last
    for row in latest.values():
        sets.setdefault(row["set"], []).append(row)
    sections = {
        "Result": _headline(sets),
        "Accuracy against the test budget": _interval_figures(sets, "accuracy"),
        "pass@k": _interval_figures(sets, "pass_at_k"),
        "Training with RL": _training(run.metrics, "grpo"),
        "Supervised training": _training(run.metrics, "sft") + _training(run.metrics, "oxa"),
        "Choice of the training budget": _budgets(run.budgets),
        "Rollouts": _rollouts(run.samples),
        "Config": _config(run.config),
    }
    body = "".join(f"<section><h2>{key}</h2>{text}</section>" for key, text in sections.items() if text)
    empty = [key for key, text in sections.items() if not text]
    body += f"<p class='none'>Nothing was recorded for: {', '.join(empty)}.</p>" if empty else ""
    notes = "".join(f"<p class='note'>{escaped(note)}</p>" for note in run.notes)
    link = ""
    if run.samples or (run_dir / "samples.jsonl").is_file():
        link = f"<p class='key'><a href='{SAMPLES_PAGE}'>All samples, to search and compare</a></p>"
    return page(run_dir.name, f"<h1>{escaped(run_dir.name)}</h1>{_stages(run.metrics)}{link}{notes}", body)


def write_report(run_dir: epath.PathLike) -> epath.Path:
    """Write RUN_DIR/report.html and return its path."""
    path = place(run_dir) / "report.html"
    path.write_bytes(report_page(run_dir).encode(errors="replace"))  # text may hold half of a surrogate pair
    return path


def describe_result(rows: list[dict]) -> str:
    """Return in words what one set's rows of eval.jsonl show (first checkpoint first), and no more than was measured.

    It compares the first with the last checkpoint at the last one's training budget, or at their smallest common
    budget if they were not both tested at that one; then it says what the largest common budget adds to each.
    """
    first, last = rows[0], rows[-1]
    budgets = sorted({int(b) for b in first["accuracy"]} & {int(b) for b in last["accuracy"]})
    if not budgets:
        return f"On {last['set']}, the first and the last checkpoint share no test budget."
    train = read_number(last, "train_budget")
    one, many = int(train) if train in budgets else budgets[0], budgets[-1]
    start, start_many = (read_interval(first["accuracy"], b) for b in (one, many))
    end, end_many = (read_interval(last["accuracy"], b) for b in (one, many))
    what = f"the training budget of {last['stage']}" if train == one else "the smallest tested"
    text = f"On {last['set']}, accuracy at {one} tokens ({what}) "
    if first is last:
        text += f"is {_percent(end[0])}% ({last['stage']})"
    else:
        text += f"goes from {_percent(start[0])}% ({first['stage']}) to {_percent(end[0])}% "
        text += f"({last['stage']}): {_change(start, end)}"
    if many == one:
        return f"{text}. No larger budget was tested."
    text += f". From {one} to {many} tokens ({many / one:.3g}x), {last['stage']} changes by "
    text += _change(end, end_many)
    if first is not last:
        text += f", {first['stage']} by {_change(start, start_many)}"
    return f"{text}."


def _change(before: tuple, after: tuple) -> str:
    """Return the difference of two (mean, low, high) in points, and whether their intervals overlap."""
    overlap = before[1] <= after[2] and after[1] <= before[2]
    note = " (the 95 % intervals overlap)" if overlap else ""
    return f"{_format(100 * (after[0] - before[0]), '{:+.1f}')} points{note}"


def _format(value: float, style: str) -> str:
    return "n/a" if math.isnan(value) else style.format(value)


def _percent(fraction: float) -> str:
    return _format(100 * fraction, "{:.1f}")


def _stages(metrics: list[dict]) -> str:
    """Return the run in one line: its stages, their steps, and their minutes if every step logged its time."""
    parts = []
    for name, kind in dict.fromkeys((row["stage"], row["kind"]) for row in metrics):
        rows = {row["step"]: row for row in metrics if (row["stage"], row["kind"]) == (name, kind)}
        steps = sorted(rows)  # each line stands for the steps since the line before
        seconds = [read_number(rows[b], "time/step_s") * (b - a) for a, b in zip([0, *steps], steps)]
        minutes = sum(seconds) / 60
        time = _format(minutes, ", {:.1f} min") if not math.isnan(minutes) else ""
        parts.append(f"<b>{escaped(name)}</b> {escaped(kind.upper())}, {steps[-1]} steps{time}")
    return f"<p class='stages'>{' → '.join(parts)}</p>"


def _headline(sets: dict[str, list[dict]]) -> str:
    """Return the table of accuracy by checkpoint and test budget for every set, with a sentence on what it shows."""
    out = []
    for name, rows in sets.items():
        budgets = sorted({int(budget) for row in rows for budget in row["accuracy"]})
        values = np.array([[read_interval(row["accuracy"], b) for b in budgets] for row in rows])
        best = np.nan_to_num(values[..., 0], nan=-1.0).max(axis=0)  # of [checkpoint, budget]
        cells = []
        for row, intervals in zip(rows, values):
            cells.append([escaped(row["stage"])])
            for b, top, (mean, low, high) in zip(budgets, best, intervals):
                text = f"<b>{_percent(mean)}</b>" if mean == top else _percent(mean)
                ring = "<sup>◯</sup>" if read_number(row, "train_budget") == b else ""
                cells[-1].append(f"{text}{ring}<small>{_percent(low)}, {_percent(high)}</small>")
            cells[-1].append(_format(100 * (intervals[-1, 0] - intervals[0, 0]), "{:+.1f}"))
        gain = f"gain<small>{budgets[0]} → {budgets[-1]}</small>"
        head = ["checkpoint", *(f"{b}<small>tokens</small>" for b in budgets), gain]
        out.append(f"<h3>{escaped(name)}</h3><p class='lead'>{escaped(describe_result(rows))}</p>")
        counts = "".join(f"; {key} {rows[-1][key]}" for key in PROTOCOL if key in rows[-1])
        key = "Accuracy in % with its 95 % interval; bold: best of the column; ◯: the training budget"
        out += [table_html(head, cells), f"<p class='key'>{key}{escaped(counts)}.</p>"]
        out += [_behaviour(rows)]
    return "".join(out)


def _behaviour(rows: list[dict]) -> str:
    """Return the folded table of the checkpoints' exploration metrics; "" where none was measured."""
    values = {row["stage"]: [read_number(row["explore"], key) for key in BEHAVIOUR] for row in rows if "explore" in row}
    known = [i for i in range(len(BEHAVIOUR)) if not all(math.isnan(of[i]) for of in values.values())]
    if not known:
        return ""
    cells = [[escaped(stage), *(_format(of[i], "{:.3g}") for i in known)] for stage, of in values.items()]
    table = table_html(["checkpoint", *(BEHAVIOUR[i] for i in known)], cells)
    return f"<details><summary>Exploration of the checkpoints</summary>{table}</details>"


def _interval_figures(sets: dict[str, list[dict]], table: str) -> str:
    """Return a figure per problem set from eval.jsonl's `table`, "accuracy" or "pass_at_k"."""
    order = list(dict.fromkeys(row["stage"] for rows in sets.values() for row in rows))
    drawn = []
    for i, (name, rows) in enumerate(sets.items()):
        lines = figures.collect_lines(rows, table, order=order)
        if lines:
            ids = {"figure_id": f"{table}{i}", "title": str(name), "xlabel": XLABEL[table]}
            svg = figures.draw_intervals(lines, train_budget=lines[-1].train_budget, **ids)
            at = read_number(rows[-1], "pass_at_k_budget") if table == "pass_at_k" else math.nan
            name += _format(at, " at {:.0f} tokens") if not math.isnan(at) else ""
            drawn.append(figure_html(name, [(line.label, line.colour, False) for line in lines], svg))
    if not drawn:
        return ""
    return f"<p class='key'>{CAPTION[table]}</p><div class='grid'>{''.join(drawn)}</div>"


def _training(metrics: list[dict], kind: str) -> str:
    """Return the training curves of all stages of one kind, a figure per panel that has a value."""
    rows = [row for row in metrics if row["kind"] == kind]
    if not rows:
        return ""
    stages = figures.collect_stages(rows)
    window = 2 * int(sum(len(stage.step) for stage in stages) // 50) + 1
    drawn, absent = [], []
    for i, (title, labels) in enumerate(shown_panels(kind, [stage.columns for stage in stages]).items()):
        logged = {k for k in labels for stage in stages if np.isfinite(stage.columns[k]).any()}
        absent += [key for key in labels if key not in logged and not key.startswith(OPTIONAL)]
        colours = {key: 1 + n for n, key in enumerate(labels) if key in logged}
        if colours:
            ids = {"figure_id": f"{kind}{i}", "title": title}
            svg = figures.draw_training(stages, colours, window=window, **ids)
            legend = [(labels[k], c, k in SETTINGS) for k, c in colours.items()]
            drawn.append(figure_html(title, legend, svg))
    text = f"Points are single steps, lines their running mean over {window} inside a stage."
    text += f" Not logged: {', '.join(absent)}." if absent else ""
    return f"<p class='key'>{text}</p><div class='grid'>{''.join(drawn)}</div>"


def _budgets(choices: list[dict]) -> str:
    """Return the table of Eq. 2 for every stage that chose its budget by it; "" for none."""
    out = [RULE] if choices else []
    for choice in choices:
        cells = []
        for row in choice["rows"]:
            j, doubled = (_percent(read_number(row, k)) for k in ("accuracy", "accuracy_doubled"))
            satisfied = "yes" if row["satisfied"] else "no"
            cells.append([escaped(row["budget"]), j, doubled, _ratio(row), satisfied])
        marked = {i for i, row in enumerate(choice["rows"]) if row["chosen"]}
        head = ["B (tokens)", "J(B)", "J(2B)", "J(2B) / J(B)", f"≤ κ = {escaped(choice['kappa'])}"]
        why = "the smallest that satisfies the rule" if choice["satisfied"] else "no B satisfies it"
        if all(read_number(row, "accuracy_doubled") == 0 for row in choice["rows"]):
            why = "no problem was solved at any B (0/0)"
        counts = [f"{choice[key]} {key}" for key in ("problems", "samples") if key in choice]
        text = f"Chosen: {choice['chosen']} tokens, {why}. B0 = {choice['minimum']:.0f} tokens. "
        out.append(f"<h3>{escaped(choice['stage'])}</h3>{table_html(head, cells, marked)}")
        out.append(f"<p class='key'>{escaped(text + ', '.join(counts))}</p>")
        out += [f"<p class='key'>{escaped(remark)}</p>" for remark in _list(choice, "remarks")]
    return "".join(out)


def _ratio(row: dict) -> str:
    """Return J(2B) / J(B), with its interval if the record has one; JSON's null is an infinite end."""
    text = _format(read_number(row, "ratio"), "{:.2f}")
    low, high = [*_list(row, "interval"), None, None][:2]
    if not isinstance(low, float):
        return text
    return f"{text} [{low:.2f}, {f'{high:.2f}' if isinstance(high, float) else '∞'}]"


def _list(row: dict, key: str) -> list:
    """Return row[key] if it is a list, else []."""
    return row[key] if key in row and isinstance(row[key], list) else []


def _rollouts(samples: list[dict]) -> str:
    """Return the first rollouts of the last stage."""
    if not samples:
        return ""
    stage = samples[-1]["stage"]
    shown = [sample for sample in samples if sample["stage"] == stage][:SAMPLES]
    chips = CHIPS if any(sample["attempts"] for sample in shown) else ""
    key = f"<p class='key'>The first {len(shown)} of {escaped(stage)}{chips}.</p>"
    return key + "".join(_rollout(i, sample) for i, sample in enumerate(shown, 1))


def _rollout(number: int, sample: dict) -> str:
    """Return one rollout: its attempts as chips, facts, its end, and its text folded."""
    chips = ""
    for attempt in sample["attempts"]:
        verdict, truth = attempt["verdict"], attempt["truth"]
        style, sign = "open", "·"
        if verdict is not None and truth is not None:
            style, sign = ("right", "✓") if (verdict == "yes") == truth else ("wrong", "✗")
        star = " ★" if truth else ""
        chips += f"<li class='chip {style}'>{sign} {escaped(attempt['text'])}{star}</li>"
    facts = [escaped(sample["set"])]
    shown = ("target", "reward", "reason", "length", "answer")
    facts += [f"{key} <b>{escaped(sample[key])}</b>" for key in shown if key in sample and sample[key] != ""]
    facts += ["cut by the budget"] if "done" in sample and not sample["done"] else []
    style = "solved" if read_number(sample, "reward") > 0 else "failed"
    asked, tail, text = (escaped(x) for x in (last_question(sample["prompt"]), _tail(sample), sample["response"]))
    whole = "" if tail == text else f"<details><summary>full text</summary><pre>{text}</pre></details>"
    return (
        f"<article class='{style}'><h4>{number}. {asked}</h4><p class='facts'>{' · '.join(facts)}</p>"
        f"<ol class='chips'>{chips}</ol><pre>{tail}</pre>{whole}</article>"
    )


def _tail(sample: dict) -> Any:
    """Return what of a rollout is no attempt."""
    return sample["tail"] if "tail" in sample else ""


def _config(config: Any) -> str:
    if config is None:
        return ""
    text = json.dumps(config, indent=2, ensure_ascii=False)
    return f"<details><summary>config.json</summary><pre>{escaped(text)}</pre></details>"


if __name__ == "__main__":  # the command's former name
    runpy.run_module("e3jax.report", run_name="__main__")
