"""Figures of curation as SVG files: how many problems or responses are where, in bars and steps.

svg = pass_rates_file({"easy": [0.75, 1.0], "hard": [0.0]}, samples=4, title="Qwen3-1.7B")
"""

import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from e3jax.report.figures import _STYLE, COLOURS, MARKERS, _as_file, _panel, _svg


def paper_file(svg: str) -> str:
    """A figure as a file: on white, twice its size."""
    width, height = (float(x) for x in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    size = f"viewBox='0 0 {width:g} {height:g}' width='{2 * width:g}' height='{2 * height:g}'"
    paper = "<rect width='100%' height='100%' fill='white'/>"
    return _as_file(f"<svg xmlns='http://www.w3.org/2000/svg' {size}>{paper}{svg}</svg>\n")


def pass_rates_file(rates: dict[str, list[float]], *, samples: int, title: str) -> str:
    """How many problems have which pass rate, as an SVG file: a bar per number of right samples, one colour a level.

    `rates` are {level: pass rates}; a bar of two colours is split between levels (thirds of equal rates).
    """
    figure_id, right = "pass-rates", np.arange(samples + 1)
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": figure_id}):
        figure, axes = _panel()
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
        svg = _svg(figure, figure_id, title)
    return paper_file(svg)


def perplexity_file(sets: dict[str, np.ndarray], edges: np.ndarray, target: np.ndarray, *, pool: np.ndarray, title: str
                    ) -> str:  # fmt: skip
    """Histograms of perplexity as an SVG file: the pool in grey, a line a set, the Gaussian that was asked for dashed.

    `sets` are {name: perplexities}, `target` counts of the bins between `edges`; what lies outside is not drawn.
    """
    figure_id = "perplexity"
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": figure_id}):
        figure, axes = _panel()
        axes.stairs(np.histogram(pool, edges)[0], edges, fill=True, color=COLOURS[0][0], alpha=0.25,
                    label=f"right ones ({len(pool):,})")  # fmt: skip
        for i, (name, ppl) in enumerate(sets.items()):
            colour = COLOURS[1 + i % (len(COLOURS) - 1)][0]
            axes.stairs(np.histogram(ppl, edges)[0], edges, color=colour, lw=1.4, label=f"{name} ({len(ppl):,})")
        axes.stairs(target, edges, color=COLOURS[1][0], lw=1.2, ls=(0, (3, 2)), label="promote, asked")
        axes.set_yscale("symlog", linthresh=10)
        axes.set_ylim(bottom=0)
        axes.set_yticks([0, *(10**n for n in range(1, 7) if 10**n <= max(axes.get_ylim()))])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("perplexity of the response")
        axes.set_ylabel("responses")
        axes.set_title(title, fontsize=8)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        return paper_file(_svg(figure, figure_id, title))


def arms_file(runs: list[dict], *, arms: Sequence[str], title: str) -> str:
    """Entropy over RL's steps, and pass@k before (dashed) and after RL, as an SVG file: a line an arm, mean over seeds.

    `runs`: arm, entropy [steps], pass_at_k {"tune" | "rl": {k: value}} each (experiments/oxa.py). Seeds are faint.
    """
    figure_id = "arms"
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": figure_id}):
        figure = Figure(figsize=(8.2, 3.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        for i, arm in enumerate(arms):
            colour, own = COLOURS[1 + i][0], [r for r in runs if r["arm"] == arm]
            entropy = np.array([r["entropy"] for r in own])
            left.plot(1 + np.arange(entropy.shape[1]), entropy.T, color=colour, lw=0.6, alpha=0.35)
            left.plot(1 + np.arange(entropy.shape[1]), entropy.mean(0), color=colour, lw=1.7, label=arm)
            for stage, dash in (("tune", (0, (3, 2))), ("rl", "-")):
                ks = sorted(map(int, own[0]["pass_at_k"][stage]))
                values = np.array([[r["pass_at_k"][stage][str(k)] for k in ks] for r in own])
                right.plot(ks, 100 * values.mean(0), color=colour, lw=1.6, ls=dash, marker=MARKERS[1 + i], ms=3.5)
        left.set_xlabel("step of RL")
        left.set_ylabel("entropy (nats per token)")
        left.set_ylim(bottom=0)
        right.set_xscale("log", base=2)
        right.xaxis.set_minor_locator(NullLocator())
        right.set_xticks(ks, map(str, ks))
        right.set_xlabel("k")
        right.set_ylabel("pass@k (%): dashed before RL")
        for axes in (left, right):
            axes.grid(axis="y")
        figure.suptitle(title, fontsize=9)
        figure.legend(loc="outside lower center", ncols=len(arms), frameon=False, fontsize=8)
        return paper_file(_svg(figure, figure_id, title))
