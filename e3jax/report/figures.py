"""Panels of the reports as inline SVG: training curves, bands over seeds, and accuracy with intervals.

Each figure is one small panel, so that a phone shows them in one column and the text keeps its size. Text stays text,
and every colour becomes a CSS variable of the page (`var(--s0)`, `currentColor`), so that one SVG serves light and dark
mode. pyplot is not used: it would need a display and keep global figures.

    svg = draw_training(collect_stages(rows), {"reward/mean": 1}, figure_id="f1", title="Reward", window=5)
    band = seed_band([collect_stages(rows) for rows in seeds], "reward/mean", label="grpo", colour=1, window=5)
    svg = draw_bands([band], figure_id="f2", title="Reward", starts={"easy": 0.5, "hard": 80.5}, end=120.5)
"""

import io
import math
import re
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from e3jax.printable import printable
from e3jax.readers import is_a
from e3jax.report.panels import LOG, PANELS, SETTINGS

# (light, dark): grey, then the colour-blind safe set of Okabe and Ito, brightened for a dark page
COLOURS = (
    ("#6b7280", "#a3abb8"),
    ("#0072b2", "#58aef0"),
    ("#d55e00", "#ff8f4d"),
    ("#009e73", "#33c79c"),
    ("#b0569a", "#e19ac5"),
    ("#b98900", "#f0c04f"),
)
MARKERS = "osD^vP"  # a second cue beside the colour
# A line of more points has no markers, and raw points above MAX_POINTS are thinned: both keep the page small.
MAX_MARKERS, MAX_POINTS = 12, 300
INK = "#010203"  # stands for the page's text colour
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a stage called "$x" is a name, not mathematics
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
}


class Stage(NamedTuple):
    """The curves of one training stage. A column is NaN where a step did not log its key."""

    name: str
    step: np.ndarray  # [S], continuing the count of the stage before
    columns: dict[str, np.ndarray]  # key -> [S]


class Line(NamedTuple):
    """One curve with its interval, usually a checkpoint's accuracy over x: budgets in tokens, or k."""

    label: str
    colour: int  # index into COLOURS and MARKERS
    x: np.ndarray  # [X]
    mean: np.ndarray  # [X]
    low: np.ndarray  # [X]
    high: np.ndarray  # [X]
    train_budget: float  # in tokens, marked with a ring if it is one of x; NaN: none


def palette_css() -> str:
    """Return the CSS variables --s0, --s1, … of the figures' colours, for light and dark mode."""
    light, dark = ("".join(f"--s{i}:{c[mode]};" for i, c in enumerate(COLOURS)) for mode in (0, 1))
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"


def read_number(row: dict, key: str) -> float:
    """Return row[key] as a float, NaN if it is missing (older runs log fewer keys), null or no number."""
    value = row[key] if key in row else None
    return float(value) if is_a(value, float) else math.nan


def collect_stages(rows: list[dict]) -> list[Stage]:
    """Return the stages of lines of metrics.jsonl (at least one, all of one kind), with the keys of all panels.

    A resumed run may log a step twice; the last line counts.
    """
    keys = {key for panels in PANELS.values() for lines in panels.values() for key in lines}
    stages, offset = [], 0
    for name in dict.fromkeys(row["stage"] for row in rows):
        steps = {row["step"]: row for row in rows if row["stage"] == name}
        order = sorted(steps)
        columns = {key: np.array([read_number(steps[s], key) for s in order]) for key in keys}
        stages.append(Stage(str(name), np.array(order) + offset, columns))
        offset += order[-1]
    return stages


def read_interval(table: dict, key: int) -> tuple[float, ...]:
    """Return (mean, low, high) of a table of eval.jsonl at a budget or k, NaN where it is missing or null."""
    values = table[str(key)] if str(key) in table else (None, None, None)
    return tuple(math.nan if value is None else float(value) for value in values)


def collect_lines(rows: list[dict], table: str, *, order: list[str]) -> list[Line]:
    """Return a Line for each line of eval.jsonl that has the `table` ("accuracy" or "pass_at_k").

    The colour of a checkpoint is its place in `order`, the same in every figure. Only "accuracy" gets the training
    budget, because its x are tokens too.
    """
    lines = []
    for row in (row for row in rows if table in row):
        x = sorted(int(key) for key in row[table])
        if x:
            intervals = np.array([read_interval(row[table], key) for key in x]).T  # [3, X]
            train = read_number(row, "train_budget") if table == "accuracy" else math.nan
            colour = order.index(row["stage"]) % len(COLOURS)
            lines.append(Line(str(row["stage"]), colour, np.array(x), *intervals, train))
    return lines


def running_mean(y: np.ndarray, *, window: int) -> np.ndarray:
    """Return the centred mean over `window` steps, which skips NaN and shrinks at the ends; [S] -> [S].

    out[i] = mean of the finite y[j] with |j - i| <= (window - 1) / 2, NaN if there is none. Raises ValueError unless
    `window` is odd and positive.

    >>> running_mean(np.array([1.0, np.nan, 4.0, 6.0]), window=3)
    array([1. , 2.5, 5. , 5. ])
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and positive so that the mean is centred: {window}")
    half, finite = window // 2, np.isfinite(y)
    cut, ones = slice(half, half + len(y)), np.ones(window)
    total = np.convolve(np.where(finite, y, 0.0), ones)[cut]
    count = np.round(np.convolve(finite.astype(float), ones)[cut])
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def draw_training(stages: list[Stage], lines: dict[str, int], *, figure_id: str, title: str, window: int) -> str:
    """Draw training curves as one SVG: faint raw points, their running mean, and where stages begin.

    `lines` maps a column, which needs a finite value, to its index in COLOURS. The mean does not cross a stage
    boundary. `figure_id` must be unique in the page.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": figure_id}):
        figure, axes = panel()
        for key, colour in lines.items():
            light = COLOURS[colour][0]
            for stage in stages:
                x, y = stage.step, stage.columns[key]
                if key in SETTINGS:
                    axes.step(x, y, where="mid", color=light, lw=1.2, ls=(0, (4, 2)))
                else:
                    _dots(axes, x, y, light)
                    axes.plot(x, running_mean(y, window=window), color=light, lw=1.6, clip_on=False)
        y = np.concatenate([stage.columns[key] for key in lines for stage in stages])
        y = y[np.isfinite(y)]
        if LOG.issuperset(lines) and y.min() > 0 and y.max() > 100 * y.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(numticks=6))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        elif y.min() >= 0:
            axes.set_ylim(bottom=0, top=1.06 * y.max() if y.max() > 0 else 1)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlim(stages[0].step[0] - 0.5, stages[-1].step[-1] + 0.5)
        for stage in stages if len(stages) > 1 else []:
            if stage is not stages[0]:
                axes.axvline(stage.step[0] - 0.5, color=INK, lw=0.8, alpha=0.45)
            label_at(axes, stage.step[0] - 0.5, stage.name)
        return as_svg(figure, figure_id, title)


def seed_band(seeds: list[list[Stage]], key: str, *, label: str, colour: int, window: int) -> Line | None:
    """Return the mean over seeds of the running means of `key`, with the range of seeds as its interval; x are steps.

    The running means do not cross stages. At a step that only some seeds have reached, the mean is over those. None
    where no seed logged `key`.
    """
    curves = []
    for stages in seeds:
        smooth = [running_mean(stage.columns[key], window=window) for stage in stages]
        steps = [step for stage in stages for step in stage.step.tolist()]
        curves.append(dict(zip(steps, np.concatenate(smooth).tolist())) if stages else {})
    x = sorted({step for curve in curves for step, y in curve.items() if np.isfinite(y)})
    if not x:
        return None
    y = np.array([[curve[step] if step in curve else np.nan for step in x] for curve in curves])  # [seeds, X]
    mean, low, high = np.nanmean(y, 0), np.nanmin(y, 0), np.nanmax(y, 0)
    return Line(label, colour, np.array(x), mean, low, high, float("nan"))


def draw_bands(bands: list[Line], *, figure_id: str, title: str, starts: dict[str, float], end: float) -> str:
    """Draw one quantity over the training steps of several groups of runs as one SVG, up to step `end`.

    `starts` maps the name of a stage to the step where it begins; {} draws no boundaries. `figure_id` must be unique in
    the page.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": figure_id}):
        figure, axes = panel()
        for band in bands:
            light = COLOURS[band.colour][0]
            axes.fill_between(band.x, band.low, band.high, color=light, alpha=0.18, lw=0)
            axes.plot(band.x, band.mean, color=light, lw=1.7, clip_on=False)
        low, high = min(b.low.min() for b in bands), max(b.high.max() for b in bands)
        if low >= 0:
            axes.set_ylim(bottom=0, top=1.06 * high if high > 0 else 1)
        axes.set_xlabel("step")
        axes.set_xlim(0.5, end)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        for i, (name, step) in enumerate(starts.items() if len(starts) > 1 else ()):
            if i:
                axes.axvline(step, color=INK, lw=0.8, alpha=0.45)
            label_at(axes, step, name)
        return as_svg(figure, figure_id, title)


@dataclass(frozen=True)
class Axes:
    """How `draw_intervals` draws its axes, apart from the label of x."""

    ylabel: str = ""
    percent: bool = True  # y holds fractions, which are shown in %; otherwise values in their own unit, maybe negative
    top: float | None = None  # end of y, for panels that are to be compared
    log2: bool = True  # x is logarithmic
    ticks: np.ndarray | None = None  # of x; None: a tick at every x of a line
    names: list[str] = ()  # x counts 0, 1, … and these are the labels of its ticks


def draw_intervals(
    lines: list[Line],
    *,
    figure_id: str,
    title: str,
    xlabel: str,
    train_budget: float,
    dashed: list[Line] = (),
    axes: Axes = Axes(),
) -> str:
    """Draw lines with their intervals as one SVG, usually accuracy in % over log2 of the budget.

    A vertical line stands at `train_budget` (tokens; NaN: none), and the extrapolation beyond it is shaded. `dashed`
    lines add no ticks. `figure_id` must be unique in the page.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": figure_id}):
        figure, ax = panel()
        every_x = np.unique(np.concatenate([line.x for line in lines]))
        ticks = every_x if axes.ticks is None else axes.ticks
        ends = np.concatenate([every_x, *(line.x for line in dashed)])
        left = np.fmin(ends.min(), train_budget) / 2**0.3 if not axes.names else -0.3  # fmin, fmax ignore NaN
        right = np.fmax(ends.max(), train_budget) * 2**0.3 if not axes.names else len(axes.names) - 0.7
        if not math.isnan(train_budget):
            ax.axvline(train_budget, color=INK, lw=1, ls=(0, (4, 2)), alpha=0.7)
            ax.axvspan(train_budget, right, color=INK, alpha=0.06, lw=0)
            label_at(ax, train_budget, "trained with", align="right")
            label_at(ax, train_budget, "beyond" if ticks[-1] > train_budget else "")
        for line in lines:
            light, marker = COLOURS[line.colour][0], MARKERS[line.colour] if len(line.x) <= MAX_MARKERS else ""
            ax.fill_between(line.x, line.low, line.high, color=light, alpha=0.16, lw=0)
            ax.plot(line.x, line.mean, color=light, lw=1.8, marker=marker, ms=4, clip_on=False)
            at_budget = line.x == line.train_budget
            ring = dict(ms=10, mfc="none", mec=light, mew=1.2, clip_on=False)
            ax.plot(line.x[at_budget], line.mean[at_budget], "o", **ring)
        for line in dashed:
            light, marker = COLOURS[line.colour][0], MARKERS[line.colour]
            ax.plot(line.x, line.mean, color=light, lw=1.4, ls=(0, (3, 2)), marker=marker, ms=3, clip_on=False)
        _scale_x(ax, axes, ticks, left, right)
        ax.set_xlabel(printable(xlabel, lines=False))
        ax.set_ylabel(printable(axes.ylabel, lines=False))
        if axes.percent or min(np.nanmin([*line.mean, *line.low, np.inf]) for line in lines) >= 0:
            ax.set_ylim(bottom=0, top=axes.top)
        if axes.percent:
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
        return as_svg(figure, figure_id, title)


def _scale_x(ax, axes: Axes, ticks: np.ndarray, left: float, right: float) -> None:
    """Set the scale, limits and ticks of x."""
    if axes.log2 and not axes.names:
        ax.set_xscale("log", base=2)
    if axes.log2 or axes.names:
        ax.set_xlim(left, right)
        ax.xaxis.set_minor_locator(NullLocator())
        labels = [printable(axes.names[int(x)], lines=False) if axes.names else f"{x:g}" for x in ticks]
        ax.set_xticks(ticks, labels)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def panel():
    """Return the figure and axes of one empty panel."""
    figure = Figure(figsize=(4.1, 2.6), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    return figure, axes


def label_at(axes, x: float, text: str, align: str = "left") -> None:
    """Write a small word above the axes, beside a vertical line at x."""
    away = 4 if align == "left" else -4
    place = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
    axes.annotate(printable(text, lines=False), (x, 1), (away, 2), ha=align, fontsize=8, alpha=0.8, **place)


def _dots(axes, x, y, colour: str) -> None:
    """Draw faint points as one path of zero-length strokes, which takes a tenth of the bytes of SVG markers."""
    keep = np.flatnonzero(np.isfinite(y))[:: 1 + len(y) // MAX_POINTS]
    vertices = np.repeat(np.stack([x[keep], y[keep]], axis=-1), 2, axis=0)
    path = Path(vertices, np.tile([Path.MOVETO, Path.LINETO], len(keep)))
    path.should_simplify = False
    style = {"lw": 2.6, "alpha": 0.3, "fill": False, "capstyle": "round"}
    axes.add_patch(PathPatch(path, edgecolor=colour, clip_on=False, **style))


def as_svg(figure: Figure, figure_id: str, title: str) -> str:
    """Return the figure as an `<svg>` to inline: ids of its own, the page's colours, no metadata, no prologue."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    for index, (light, _) in enumerate(COLOURS):
        text = text.replace(light, f"var(--s{index})")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{figure_id}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(printable(title, lines=False))}" ', 1)
