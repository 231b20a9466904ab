"""A grid of small panels as one SVG file: a row per setting with its description beside it, a column per measure.

svg = draw_rows([Row("as written", {"GRPO": curves, "mask": curves}, 1000)], {"length": "Length"}, title="Fig. 10")
"""

import re
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from e3jax.report.figures import COLOURS, INK, STYLE, as_svg
from e3jax.report.files import svg_file

WIDTHS = (1.6, 2.0)  # of a row's description, and of a panel; inches
HEIGHT = 1.35  # of a row; inches


class Row(NamedTuple):
    """One setting."""

    words: str  # its description, whose first line is set in bold
    arms: dict[str, dict[str, np.ndarray]]  # label -> {measure: [N, seeds], "step": [N]}
    last: float  # where the x axis ends


def draw_rows(rows: list[Row], columns: dict[str, str], *, title: str) -> str:
    """Draw a grid with seeds as thin lines and their mean as a thick one; `columns` is {measure: heading}."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "panels", "font.size": 7}):
        size = (WIDTHS[0] + WIDTHS[1] * len(columns), HEIGHT * len(rows) + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(
            len(rows), len(columns) + 1, squeeze=False, width_ratios=[WIDTHS[0], *[WIDTHS[1]] * len(columns)]
        )
        for row, (words, *axes) in zip(rows, grid):
            words.axis("off")
            first, *others = row.words.split("\n")
            words.text(0, 1, first, fontweight="bold", fontsize=8, va="top", transform=words.transAxes)
            words.text(0, 0.86, "\n".join(others), va="top", linespacing=1.35, transform=words.transAxes)
            for panel, measure in zip(axes, columns):
                _panel(panel, row, measure)
        for panel, heading in zip(grid[0][1:], columns.values()):
            panel.set_title(heading, fontsize=8)
        for panel in grid[-1][1:]:
            panel.set_xlabel("updates")
        labels = [
            figure.add_artist(matplotlib.lines.Line2D([], [], color=COLOURS[1 + i][0], lw=1.8, label=name))
            for i, name in enumerate(rows[0].arms)
        ]
        figure.legend(handles=labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=8)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        svg = as_svg(figure, "panels", title)
    width, height = (float(x) for x in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    # hundredths of a point are enough for paths, and take fewer bytes
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\d\.\d\d)\d+", r"\1", path[0]), svg)
    return svg_file(svg, width, height)


def _panel(axes, row: Row, measure: str) -> None:
    """Draw one measure of one setting."""
    axes.grid(axis="y")
    for i, curve in enumerate(row.arms.values()):
        colour = COLOURS[1 + i][0]
        axes.plot(curve["step"], curve[measure], color=colour, lw=0.5, alpha=0.45)
        axes.plot(curve["step"], curve[measure].mean(axis=1), color=colour, lw=1.6)
    axes.set_xlim(0, row.last)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(color=INK)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}")
