"""Figures of the run report as inline SVG: training curves, and accuracy with intervals over log2.

Each figure is one small panel, so that a phone shows them in one column and the text keeps its
size. Text stays text and every colour becomes a CSS variable of the page (`var(--s0)`,
`currentColor`), so one SVG serves light and dark mode. matplotlib is imported only here, and
without pyplot: no global figure, no display.

    svg = draw_training(collect_stages(rows), {"reward/mean": 1}, figure_id="f1", title="Reward", window=5)
"""

import io
import math
import re
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

# (light, dark): grey, then Okabe & Ito's colour-blind safe set, brightened for a dark page.
COLOURS = (
    ("#6b7280", "#a3abb8"),
    ("#0072b2", "#58aef0"),
    ("#d55e00", "#ff8f4d"),
    ("#009e73", "#33c79c"),
    ("#b0569a", "#e19ac5"),
    ("#b98900", "#f0c04f"),
)
MARKERS = "osD^vP"  # a second cue beside the colour
MAX_MARKERS, MAX_POINTS = 12, 300  # a line of more has no markers; one of more raw points is thinned: small pages
# kind of stage -> title -> {key of metrics.jsonl: label}
PANELS = {
    "grpo": {
        "Reward": {"reward/mean": "mean", "reward/all_zero": "groups all 0", "reward/all_one": "groups all 1"},
        "Response length (tokens)": {
            "length/mean": "mean",
            "length/incorrect": "incorrect",
            "length/correct": "correct",
            "budget": "budget",
        },
        "Entropy (nats per token)": {
            "entropy/mean": "mean",
            "entropy/incorrect": "incorrect",
            "entropy/correct": "correct",
        },
        "Entropy by sign of advantage (nats)": {"entropy/positive": "positive", "entropy/negative": "negative"},
        "Entropy by phase (nats per token)": {"entropy/exploration": "exploration", "entropy/execution": "execution"},
        "Length by phase (tokens)": {"length/exploration": "exploration", "length/execution": "execution"},
        "Attempts per response": {
            "explore/attempts": "all",
            "explore/unique_attempts": "unique",
            "explore/verifications": "verifications",
        },
        "Ways to end without an answer": {"explore/give_up": "gave up", "truncated": "cut by the budget"},
        "Verdict accuracy": {"explore/verdict_accuracy": "verdicts that are right"},
        "Gradient norm": {"optim/grad_norm": "before clipping"},
        "Gradient mass of negative advantages": {"grad/negative_mass": "share"},
        "Clipped tokens (fraction)": {"loss/clip_low": "low", "loss/clip_high": "high", "loss/clip_dual": "dual"},
        "KL": {"loss/ppo_kl": "to the sampling policy", "loss/kl": "loss term"},
        "Sampler against trainer, |Δ log p|": {"parity/logp_mean": "mean", "parity/logp_max": "max"},
    },
    "sft": {
        "Loss": {"loss/total": "loss"},
        "Entropy (nats per token)": {"loss/entropy": "of the targets' distributions"},
        "Gradient norm": {"optim/grad_norm": "before clipping"},
    },
    "oxa": {
        "Cross-entropy of the promoted (nats)": {"loss/ce": "per token"},
        "Unlikelihood of the suppressed (nats)": {"loss/ul": "per token, before its weight"},
        "Entropy (nats per token)": {"loss/entropy_promoted": "promoted", "loss/entropy_suppressed": "suppressed"},
        "Probability of the targets": {"loss/p_promoted": "promoted", "loss/p_suppressed": "suppressed"},
        "Gradient norm": {"optim/grad_norm": "before clipping"},
    },
}
PHASES = ("entropy/ex", "length/ex")  # of E2C's runs only: elsewhere they are not missing
SETTINGS = {"budget"}  # drawn as dashed steps: chosen, not measured
LOG = {"optim/grad_norm", "parity/logp_mean", "parity/logp_max"}  # log y once they span 100x
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
    """One training stage's curves; a column is NaN where the step did not log that key."""

    name: str
    step: np.ndarray  # [S], counted on from the stage before
    columns: dict[str, np.ndarray]  # key -> [S]


class Line(NamedTuple):
    """One checkpoint's curve: fractions with their interval at x (budgets in tokens, or k)."""

    label: str
    colour: int  # index into COLOURS and MARKERS
    x: np.ndarray  # [X]
    mean: np.ndarray  # [X]
    low: np.ndarray  # [X]
    high: np.ndarray  # [X]
    train_budget: float  # tokens, drawn as a ring where x has it; NaN: none


def palette_css() -> str:
    """The CSS variables --s0, --s1, … that the figures are drawn in, in light and in dark mode."""
    light, dark = ("".join(f"--s{i}:{c[mode]};" for i, c in enumerate(COLOURS)) for mode in (0, 1))
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"


def read_number(row: dict, key: str) -> float:
    """row[key] as a float; NaN where an older run did not log it, or where it is null or no number."""
    value = row[key] if key in row else None
    return float(value) if is_a(value, float) else math.nan


def collect_stages(rows: list[dict]) -> list[Stage]:
    """The stages of metrics.jsonl's `rows` (all of one kind, not empty), with every panel's keys.

    A step that was logged twice (the run was resumed from before it) counts once, the last time.
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
    """(mean, low, high) of an eval row's table at a budget or k; NaN: not measured, or null."""
    values = table[str(key)] if str(key) in table else (None, None, None)
    return tuple(math.nan if value is None else float(value) for value in values)


def collect_lines(rows: list[dict], table: str, *, order: list[str]) -> list[Line]:
    """One Line per row of eval.jsonl that has the `table` ("accuracy" or "pass_at_k").

    A checkpoint's colour is its place in `order`, so that it is the same in every figure. Training
    budgets are tokens, so they are drawn over test budgets only.
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
    """Centred mean over `window` steps that skips NaN and shrinks at the ends; [S] -> [S].

    out[i] = mean of the finite y[j], |j - i| <= (window - 1) / 2; NaN where there is none. Raises
    ValueError unless `window` is odd and positive.

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
    """Training curves as one SVG: faint raw points, their running mean, stage boundaries.

    `lines` maps a column to its index in COLOURS; each needs one finite value somewhere. The mean
    does not cross a stage boundary. `figure_id` must be unique in the page.
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
                    axes.plot(x, running_mean(y, window=window), color=light, lw=1.6)
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


def draw_intervals(
    lines: list[Line],
    *,
    figure_id: str,
    title: str,
    xlabel: str,
    train_budget: float,
    dashed: list[Line] = (),
    percent: bool = True,
    names: list[str] = (),
    top: float | None = None,
    ylabel: str = "",
    log2: bool = True,
    ticks: np.ndarray | None = None,
) -> str:
    """Accuracy in % over log2 (or anything over x) as one SVG: a line per checkpoint, its interval as a band.

    `train_budget` (tokens; NaN: none) draws a vertical line and shades the extrapolation beyond it; `dashed` lines have
    no ticks of their own; `figure_id` must be unique in the page.
    `percent=False` is for values in their own unit, below 0 too; with `names` x are their places, 0, 1, …; `top` ends
    the y axis, for panels that are compared. `ticks` of the x axis: without them every x is one.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": figure_id}):
        figure, axes = panel()
        found = np.unique(np.concatenate([line.x for line in lines]))
        ticks = found if ticks is None else ticks
        ends = np.concatenate([found, *(line.x for line in dashed)])
        left = np.fmin(ends.min(), train_budget) / 2**0.3 if not names else -0.3  # fmin, fmax ignore NaN
        right = np.fmax(ends.max(), train_budget) * 2**0.3 if not names else len(names) - 0.7
        if not math.isnan(train_budget):
            axes.axvline(train_budget, color=INK, lw=1, ls=(0, (4, 2)), alpha=0.7)
            axes.axvspan(train_budget, right, color=INK, alpha=0.06, lw=0)
            label_at(axes, train_budget, "trained with", align="right")
            label_at(axes, train_budget, "beyond" if ticks[-1] > train_budget else "")
        for line in lines:
            light, marker = COLOURS[line.colour][0], MARKERS[line.colour] if len(line.x) <= MAX_MARKERS else ""
            axes.fill_between(line.x, line.low, line.high, color=light, alpha=0.16, lw=0)
            axes.plot(line.x, line.mean, color=light, lw=1.8, marker=marker, ms=4)
            own = line.x == line.train_budget
            axes.plot(line.x[own], line.mean[own], "o", ms=10, mfc="none", mec=light, mew=1.2)
        for line in dashed:
            light, marker = COLOURS[line.colour][0], MARKERS[line.colour]
            axes.plot(line.x, line.mean, color=light, lw=1.4, ls=(0, (3, 2)), marker=marker, ms=3)
        if log2 and not names:
            axes.set_xscale("log", base=2)
        if log2 or names:
            axes.set_xlim(left, right)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticks(
                ticks, [printable(names[int(tick)], lines=False) if names else f"{tick:g}" for tick in ticks]
            )
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel(printable(xlabel, lines=False))
        axes.set_ylabel(printable(ylabel, lines=False))
        if percent or min(np.nanmin([*line.mean, *line.low, np.inf]) for line in lines) >= 0:
            axes.set_ylim(bottom=0, top=top)
        if percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
        return as_svg(figure, figure_id, title)


def pass_rates_file(rates: dict[str, list[float]], *, samples: int, title: str) -> str:
    """How many problems have which pass rate, as an SVG file: a bar per number of right samples, one colour a level.

    `rates` are {level: pass rates}; a bar of two colours is split between levels (thirds of equal rates).
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
    size = f"viewBox='0 0 {width:g} {height:g}' width='{2 * width:g}' height='{2 * height:g}'"
    paper = "<rect width='100%' height='100%' fill='white'/>"
    return as_file(f"<svg xmlns='http://www.w3.org/2000/svg' {size}>{paper}{svg}</svg>\n")


def as_file(svg: str) -> str:
    """With light colours in place of a page's, and inner sizes in the file's units: a point is 4/3 of one.

    No wider than what it is shown in, a notebook's cell, say.
    """
    svg = svg.replace(" viewBox", " style='max-width:100%;height:auto' viewBox", 1)
    svg = re.sub(r'width="([\d.]+)pt" height="([\d.]+)pt"', r'width="\1" height="\2"', svg)
    for index, (light, _) in enumerate(COLOURS):
        svg = svg.replace(f"var(--s{index})", light)
    return svg.replace("currentColor", "#1c2129")


def panel():
    figure = Figure(figsize=(4.1, 2.6), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    return figure, axes


def label_at(axes, x: float, text: str, align: str = "left") -> None:
    """A small word above the axes, beside a vertical line at x."""
    away = 4 if align == "left" else -4
    place = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
    axes.annotate(printable(text, lines=False), (x, 1), (away, 2), ha=align, fontsize=8, alpha=0.8, **place)


def _dots(axes, x, y, colour: str) -> None:
    """Faint points as one path of zero-length strokes: a tenth of the bytes of SVG markers."""
    keep = np.flatnonzero(np.isfinite(y))[:: 1 + len(y) // MAX_POINTS]
    vertices = np.repeat(np.stack([x[keep], y[keep]], axis=-1), 2, axis=0)
    path = Path(vertices, np.tile([Path.MOVETO, Path.LINETO], len(keep)))
    path.should_simplify = False
    style = {"lw": 2.6, "alpha": 0.3, "fill": False, "capstyle": "round"}
    axes.add_patch(PathPatch(path, edgecolor=colour, **style))


def as_svg(figure: Figure, figure_id: str, title: str) -> str:
    """The figure as an `<svg>` to inline: own ids, the page's colours, no metadata, no prologue."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    for index, (light, _) in enumerate(COLOURS):
        text = text.replace(light, f"var(--s{index})")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{figure_id}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(printable(title, lines=False))}" ', 1)
