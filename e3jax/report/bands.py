"""Curves of several runs as one SVG: a line per group of runs, its seeds as a band.

band = seed_band([collect_stages(rows) for rows in seeds], "reward/mean", label="grpo", colour=1, window=5)
svg = draw_bands([band], figure_id="f1", title="Reward", starts={"easy": 0.5, "hard": 80.5}, end=120.5)
"""

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator

from e3jax.report.figures import COLOURS, INK, STYLE, Line, Stage, as_svg, label_at, panel, running_mean


def seed_band(seeds: list[list[Stage]], key: str, *, label: str, colour: int, window: int) -> Line | None:
    """Running means of `key` inside every stage, their mean over seeds and its range; x are steps. None: not logged.

    A step that some seeds have not reached is the mean of those that have.
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
    """One quantity over training steps up to `end`; `starts` are stages' names and where they begin, {} for none.

    `figure_id` must be unique in the page.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": figure_id}):
        figure, axes = panel()
        for band in bands:
            light = COLOURS[band.colour][0]
            axes.fill_between(band.x, band.low, band.high, color=light, alpha=0.18, lw=0)
            axes.plot(band.x, band.mean, color=light, lw=1.7)
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
