"""Figures as SVG files of their own: panels beside each other, a title, and a legend of the lines below.

path.write_text(panels_file({"pass@k": svg}, title="3 numbers", legend=[Entry("base", 0, dashed=False)]))
"""

import math
import re
from typing import NamedTuple

import numpy as np

from e3jax.report.figures import COLOURS, Line, as_file, collect_lines, draw_intervals
from e3jax.report.page import escaped

STYLE = "font-family='DejaVu Sans, Verdana, sans-serif' font-size='10' fill='currentColor'"
BESIDE = 3  # panels in a row


class Entry(NamedTuple):
    """A line of the legend."""

    name: str
    colour: int
    dashed: bool


def panels_file(panels: dict[str, str], *, title: str, legend: list[Entry]) -> str:
    """{title of a panel: its inline SVG (report/figures.py), all of one size} -> one file, BESIDE panels a row."""
    boxes = [re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups() for svg in panels.values()]
    width, height = (max(float(box[i]) for box in boxes) for i in (0, 1))
    parts, head = [f"<text x='10' y='17' {STYLE} font-weight='bold'>{escaped(title)}</text>"], 26
    room = height + (16 if len(panels) > 1 else 0)
    for i, (name, svg) in enumerate(panels.items()):
        x, y = i % BESIDE * width, head + i // BESIDE * room
        if len(panels) > 1:
            parts.append(f"<text x='{x + 10:g}' y='{y + 11:g}' {STYLE}>{escaped(name)}</text>")
        parts.append(f"<g transform='translate({x:g} {y + room - height:g})'>{svg}</g>")
    top = head + -(-len(panels) // BESIDE) * room
    for i, entry in enumerate(legend):
        y, dash = top + 16 * i + 8, ' stroke-dasharray="4 3"' if entry.dashed else ""
        parts.append(
            f"<path d='M12 {y:g}h22' stroke='var(--s{entry.colour})' stroke-width='2'{dash}/>"
            f"<text x='40' y='{y + 3.5:g}' {STYLE}>{escaped(entry.name)}</text>"
        )
    across, down = width * min(len(panels), BESIDE), top + 16 * len(legend) + 8
    size = f"viewBox='0 0 {across:g} {down:g}' width='{2 * across:g}' height='{2 * down:g}'"
    paper = "<rect width='100%' height='100%' fill='white'/>"
    return as_file(f"<svg xmlns='http://www.w3.org/2000/svg' {size}>{paper}{''.join(parts)}</svg>\n")


def extrapolation_file(rows: list[dict], *, order: list[str], title: str, train_budget: int) -> str:
    """Fig. 8's form as an SVG file: accuracy over test budgets, a line per model, what lies beyond training shaded.

    `rows` are lines of eval.jsonl for one set; where a model was made to "wait" (App. I), a dashed line over the mean
    lengths that came of it, as in Fig. 9. `train_budget` in tokens, 0: none.
    """
    lines = collect_lines(rows, "accuracy", order=order)
    dashed = [line for row in rows if (line := waiting_line(row, colour=order.index(row["stage"]) % len(COLOURS)))]
    svg = draw_intervals(
        lines,
        figure_id="extrapolation",
        title=title,
        xlabel="test budget (tokens)",
        train_budget=float(train_budget) or math.nan,
        dashed=dashed,
    )
    legend = [Entry(line.label, line.colour, False) for line in lines]
    legend += [Entry(f'{line.label} + "wait"', line.colour, True) for line in dashed]
    return panels_file({title: svg}, title=title, legend=legend)


def waiting_line(row: dict, *, colour: int) -> Line | None:
    """Accuracy over mean length of a row's "wait-N" (N rising); None without any."""
    times = sorted(int(name.removeprefix("wait-")) for name in row["forcing"] if name.startswith("wait-"))
    waits = [row["forcing"][f"wait-{n}"] for n in times]
    if not waits:
        return None
    length, values = np.array([w["length"] for w in waits]), np.array([w["accuracy"] for w in waits]).T
    return Line(str(row["stage"]), colour, length, *values, math.nan)


def chains_file(rows: list[dict], *, title: str) -> str:
    """Fig. 12's form: pass@k after 0, 1, 2, … chained attempts, a panel per model; `rows` of probes.jsonl, one set."""
    panels, legend = {}, []
    cells = [cell for row in rows for cell in row["chains"].values()]
    top = 1.02 * max(high or 0.01 for cell in cells for _, _, high in cell["pass_at_k"].values())
    for i, row in enumerate(rows):
        lines = []
        for colour, (attempts, cell) in enumerate(row["chains"].items()):
            ks = np.array(sorted(map(int, cell["pass_at_k"])))
            values = np.array([cell["pass_at_k"][str(k)] for k in ks]).T
            lines.append(Line(attempts, colour % len(COLOURS), ks, *values, math.nan))
        panels[str(row["stage"])] = draw_intervals(
            lines, figure_id=f"chains{i}", title=f"{title}, {row['stage']}", xlabel="k", train_budget=math.nan, top=top
        )
        legend = legend or [Entry(f"{line.label} chained attempts", line.colour, False) for line in lines]
    return panels_file(panels, title=f"{title}: pass@k", legend=legend)


def conditional_file(rows: list[dict], *, order: list[str], title: str, probes: dict[str, str]) -> str:
    """Fig. 15's form: App. G.1's probes over the attempt's number, a line per model; `probes` {name: panel's title}."""
    panels, colours = {}, {name: i % len(COLOURS) for i, name in enumerate(order)}
    for probe, name in probes.items():
        lines = []
        for row in rows:
            by = {int(k): v[probe] for k, v in row["conditional"]["by_attempt"].items()}
            x = np.array(sorted(by))
            if len(x):
                lines.append(Line(row["stage"], colours[row["stage"]], x, *_columns([by[k] for k in x]), math.nan))
        if lines:
            panels[name] = draw_intervals(
                lines, figure_id=probe, title=name, xlabel="attempt", train_budget=math.nan, percent=False
            )
    legend = [Entry(row["stage"], colours[row["stage"]], False) for row in rows]
    return panels_file(panels, title=title, legend=legend) if panels else ""


def tokens_file(rows: list[dict], *, title: str, panels: dict[str, dict[str, str]]) -> str:
    """Numbers per token by checkpoint, in the rows' order: {panel: {key of row["tokens"]: its name}}; Fig. 13's KL."""
    drawn, legend, names = {}, [], [str(row["stage"]) for row in rows]
    for i, (panel, keys) in enumerate(panels.items()):
        lines = []
        for key, name in keys.items():
            values = _columns([row["tokens"][key] for row in rows])
            lines.append(Line(name, len(lines), np.arange(len(rows)), *values, math.nan))
            legend.append(Entry(f"{panel}: {name}", lines[-1].colour, False))
        drawn[panel] = draw_intervals(
            lines,
            figure_id=f"tokens{i}",
            title=panel,
            xlabel="model",
            train_budget=math.nan,
            percent=False,
            names=names,
        )
    return panels_file(drawn, title=title, legend=legend)


def scaling_file(rows: list[dict], *, title: str, looks: dict[str, tuple[int, bool]]) -> str:
    """Accuracy over sampled tokens per problem, a line per method over its K, a panel per model.

    `rows` are lines of scaling.jsonl for one set; `looks` {method: (colour, dashed)}, dashed lines without a band.
    """
    panels, legend = {}, {}
    cells = [cell for row in rows for cell in row["cells"]]
    ticks = 2.0 ** np.arange(math.floor(math.log2(min(c["tokens"] for c in cells))), 64)
    ticks = ticks[ticks <= max(c["tokens"] for c in cells)]
    for i, row in enumerate(rows):
        lines = {False: [], True: []}
        for method in dict.fromkeys(cell["method"] for cell in row["cells"]):
            own = sorted((c for c in row["cells"] if c["method"] == method), key=lambda c: c["tokens"])
            colour, dash = looks[method]
            x, values = np.array([c["tokens"] for c in own]), np.array([c["accuracy"] for c in own]).T
            lines[dash].append(Line(method, colour, x, *values, math.nan))
            legend[method] = Entry(method, colour, dash)
        panels[str(row["stage"])] = draw_intervals(
            lines[False] or lines[True],
            figure_id=f"scaling{i}",
            title=f"{title}, {row['stage']}",
            xlabel="sampled tokens per problem",
            train_budget=math.nan,
            dashed=lines[True] if lines[False] else [],
            top=1.05 * max(c["accuracy"][2] for c in cells),
            ticks=ticks,
        )
    return panels_file(panels, title=title, legend=list(legend.values()))


def _columns(intervals: list[list[float | None]]) -> np.ndarray:
    """[mean, low, high] of every x -> [3, X]; null is NaN."""
    return np.array([[math.nan if v is None else v for v in one] for one in intervals], float).T
