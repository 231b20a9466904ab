"""Figures as SVG files of their own: a title, panels beside each other, and below them a legend of the lines.

path.write_text(panels_file({"pass@k": svg}, title="3 numbers", legend=[Entry("base", 0, dashed=False)]))
"""

import math
import re
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from e3jax.report.figures import COLOURS, STYLE, Axes, Line, as_svg, collect_lines, draw_intervals, panel
from e3jax.report.page import escaped

TEXT = "font-family='DejaVu Sans, Verdana, sans-serif' font-size='10' fill='currentColor'"
BESIDE = 3  # panels in a row
PAPER = "<rect width='100%' height='100%' fill='white'/>"


class Entry(NamedTuple):
    """One line of a legend."""

    name: str
    colour: int
    dashed: bool


def panels_file(panels: dict[str, str], *, title: str, legend: list[Entry]) -> str:
    """Return one SVG file of panels, BESIDE in a row; `panels` maps a title to its inline SVG, all of one size."""
    boxes = [re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups() for svg in panels.values()]
    width, height = (max(float(box[i]) for box in boxes) for i in (0, 1))
    parts, head = [f"<text x='10' y='17' {TEXT} font-weight='bold'>{escaped(title)}</text>"], 26
    room = height + (16 if len(panels) > 1 else 0)
    for i, (name, svg) in enumerate(panels.items()):
        x, y = i % BESIDE * width, head + i // BESIDE * room
        if len(panels) > 1:
            parts.append(f"<text x='{x + 10:g}' y='{y + 11:g}' {TEXT}>{escaped(name)}</text>")
        parts.append(f"<g transform='translate({x:g} {y + room - height:g})'>{svg}</g>")
    top = head + -(-len(panels) // BESIDE) * room
    for i, entry in enumerate(legend):
        y, dash = top + 16 * i + 8, ' stroke-dasharray="4 3"' if entry.dashed else ""
        parts.append(
            f"<path d='M12 {y:g}h22' stroke='var(--s{entry.colour})' stroke-width='2'{dash}/>"
            f"<text x='40' y='{y + 3.5:g}' {TEXT}>{escaped(entry.name)}</text>"
        )
    across, down = width * min(len(panels), BESIDE), top + 16 * len(legend) + 8
    return svg_file("".join(parts), across, down)


def extrapolation_file(rows: list[dict], *, order: list[str], title: str, train_budget: int) -> str:
    """Return an SVG file like e3's Fig. 8: accuracy over test budgets, a line per model.

    `rows` are lines of eval.jsonl for one set. What lies beyond `train_budget` (tokens; 0: none) is shaded. A model
    that was made to "wait" (e3 App. I) has a dashed line over the mean lengths that followed, as in Fig. 9.
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
    """Return accuracy over the mean length of a row's "wait-1", "wait-2", …; None if it has none."""
    times = sorted(int(name.removeprefix("wait-")) for name in row["forcing"] if name.startswith("wait-"))
    waits = [row["forcing"][f"wait-{n}"] for n in times]
    if not waits:
        return None
    length, values = np.array([w["length"] for w in waits]), np.array([w["accuracy"] for w in waits]).T
    return Line(str(row["stage"]), colour, length, *values, math.nan)


def chains_file(rows: list[dict], *, title: str) -> str:
    """Return an SVG file like e3's Fig. 12: pass@k after 0, 1, 2, … chained attempts, a panel per model.

    `rows` are lines of probes.jsonl for one set.
    """
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
            lines,
            figure_id=f"chains{i}",
            title=f"{title}, {row['stage']}",
            xlabel="k",
            train_budget=math.nan,
            axes=Axes(top=top),
        )
        legend = legend or [Entry(f"{line.label} chained attempts", line.colour, False) for line in lines]
    return panels_file(panels, title=f"{title}: pass@k", legend=legend)


def conditional_file(rows: list[dict], *, order: list[str], title: str, probes: dict[str, str]) -> str:
    """Return an SVG file like e3's Fig. 15: the probes of App. G.1 over the number of the attempt, a line per model.

    `rows` are lines of probes.jsonl for one set, `probes` maps a probe to the title of its panel. "" where no row has
    a value.
    """
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
                lines, figure_id=probe, title=name, xlabel="attempt", train_budget=math.nan, axes=Axes(percent=False)
            )
    legend = [Entry(row["stage"], colours[row["stage"]], False) for row in rows]
    return panels_file(panels, title=title, legend=legend) if panels else ""


def tokens_file(rows: list[dict], *, title: str, panels: dict[str, dict[str, str]]) -> str:
    """Return an SVG file of means per token over checkpoints, in the order of `rows`, such as the KL of e3's Fig. 13.

    `panels` maps a panel's title to its lines, {key of row["tokens"]: label}.
    """
    drawn, legend, names = {}, [], [str(row["stage"]) for row in rows]
    for i, (heading, keys) in enumerate(panels.items()):
        lines = []
        for key, name in keys.items():
            values = _columns([row["tokens"][key] for row in rows])
            lines.append(Line(name, len(lines), np.arange(len(rows)), *values, math.nan))
            legend.append(Entry(f"{heading}: {name}", lines[-1].colour, False))
        drawn[heading] = draw_intervals(
            lines,
            figure_id=f"tokens{i}",
            title=heading,
            xlabel="model",
            train_budget=math.nan,
            axes=Axes(percent=False, names=names),
        )
    return panels_file(drawn, title=title, legend=legend)


def scaling_file(rows: list[dict], *, title: str, looks: dict[str, tuple[int, bool]]) -> str:
    """Return an SVG file of accuracy over sampled tokens per problem: a line per method over its K, a panel per model.

    `rows` are lines of scaling.jsonl for one set. `looks` is {method: (colour, dashed)}; dashed lines have no band.
    """
    panels, legend = {}, {}
    cells = [cell for row in rows for cell in row["cells"]]
    ticks = 2.0 ** np.arange(math.floor(math.log2(min(c["tokens"] for c in cells))), 64)
    ticks = ticks[ticks <= max(c["tokens"] for c in cells)]
    for i, row in enumerate(rows):
        lines = {False: [], True: []}
        for method in dict.fromkeys(cell["method"] for cell in row["cells"]):
            points = sorted((c for c in row["cells"] if c["method"] == method), key=lambda c: c["tokens"])
            colour, dash = looks[method]
            x, values = np.array([c["tokens"] for c in points]), np.array([c["accuracy"] for c in points]).T
            lines[dash].append(Line(method, colour, x, *values, math.nan))
            legend[method] = Entry(method, colour, dash)
        panels[str(row["stage"])] = draw_intervals(
            lines[False] or lines[True],
            figure_id=f"scaling{i}",
            title=f"{title}, {row['stage']}",
            xlabel="sampled tokens per problem",
            train_budget=math.nan,
            dashed=lines[True] if lines[False] else [],
            axes=Axes(top=1.05 * (max(c["accuracy"][2] for c in cells) or 1), ticks=ticks),  # of nothing right: 1
        )
    return panels_file(panels, title=title, legend=list(legend.values()))


def pass_rates_file(rates: dict[str, list[float]], *, samples: int, title: str) -> str:
    """Return an SVG file of how many problems have each pass rate: a bar per number of right samples.

    `rates` is {level: pass rates}, each level in a colour of its own. A bar of two colours is split between levels,
    which happens where thirds divide problems of equal rates.
    """
    figure_id, right = "pass-rates", np.arange(samples + 1)
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": figure_id}):
        figure, axes = panel()
        below = np.zeros(samples + 1)
        for i, (level, values) in enumerate(rates.items()):
            height = np.bincount(np.rint(np.array(values) * samples).astype(int), minlength=samples + 1)
            colour = COLOURS[(3, 1, 2)[i % 3]][0]
            axes.bar(right, height, bottom=below, width=0.8, color=colour, lw=0, label=f"{level} ({len(values):,})")
            below += height
        axes.set_xlim(-0.8, samples + 0.8)
        axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel(f"right of {samples} samples")
        axes.set_ylabel("problems")
        axes.set_title(title, fontsize=8)
        figure.legend(loc="outside lower center", ncols=len(rates), frameon=False, fontsize=8)
        svg = as_svg(figure, figure_id, title)
    width, height = (float(x) for x in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    return svg_file(svg, width, height)


def perplexity_file(
    sets: dict[str, np.ndarray], edges: np.ndarray, target: np.ndarray, *, pool: np.ndarray, title: str
) -> str:
    """Return an SVG file of perplexity histograms: the pool of right responses in grey, a line per set.

    `sets` is {name: perplexities}, the promoted set first. `target` is the number of responses that the promoted set
    was to have in each bin between `edges`, drawn as a dashed line. What lies outside of `edges` is not drawn.
    """
    legend = [Entry(f"right responses ({len(pool):,})", 0, dashed=False)]
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "perplexity"}):
        figure, axes = panel()
        axes.stairs(np.histogram(pool, edges)[0], edges, fill=True, color=COLOURS[0][0], alpha=0.25)
        for i, (name, ppl) in enumerate(sets.items()):
            colour = 1 + i % (len(COLOURS) - 1)
            axes.stairs(np.histogram(ppl, edges)[0], edges, color=COLOURS[colour][0], lw=1.4)
            legend.append(Entry(f"{name} ({len(ppl):,})", colour, dashed=False))
        axes.stairs(target, edges, color=COLOURS[0][0], lw=1.2, ls=(0, (3, 2)))
        legend.append(Entry("promote, target", 0, dashed=True))
        axes.set_yscale("symlog", linthresh=10)
        axes.set_ylim(bottom=0)
        axes.set_yticks([0, *(10**n for n in range(1, 7) if 10**n <= max(axes.get_ylim()))])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("perplexity of the response")
        axes.set_ylabel("responses")
        svg = as_svg(figure, "perplexity", title)
    return panels_file({title: svg}, title=title, legend=legend)


def as_file(svg: str) -> str:
    """Return an `<svg>` for a file: in the light colours, with inner sizes in the file's units (a point is 4/3 of one).

    It gets no wider than what shows it, such as the cell of a notebook.
    """
    svg = svg.replace(" viewBox", " style='max-width:100%;height:auto' viewBox", 1)
    svg = re.sub(r'width="([\d.]+)pt" height="([\d.]+)pt"', r'width="\1" height="\2"', svg)
    for index, (light, _) in enumerate(COLOURS):
        svg = svg.replace(f"var(--s{index})", light)
    return svg.replace("currentColor", "#1c2129")


def svg_file(inner: str, width: float, height: float) -> str:
    """Return an SVG file with a white background around `inner`, shown at twice its size."""
    size = f"viewBox='0 0 {width:g} {height:g}' width='{2 * width:g}' height='{2 * height:g}'"
    return as_file(f"<svg xmlns='http://www.w3.org/2000/svg' {size}>{PAPER}{inner}</svg>\n")


def _columns(intervals: list[list[float | None]]) -> np.ndarray:
    """Turn [mean, low, high] of every x into an array [3, X]; null becomes NaN."""
    return np.array([[math.nan if v is None else v for v in one] for one in intervals], float).T
