"""Figures of OXA as SVG files: perplexities of its sets, and what its arms did.

svg = perplexity_file({"promote": ppl}, edges, target, pool=all_ppl, title="Qwen2.5-Math-1.5B")
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from e3jax.report.figures import COLOURS, MARKERS, STYLE, as_svg, panel
from e3jax.report.files import Entry, panels_file


def perplexity_file(
    sets: dict[str, np.ndarray], edges: np.ndarray, target: np.ndarray, *, pool: np.ndarray, title: str
) -> str:
    """Histograms of perplexity: the pool of right responses in grey, a line a set, the Gaussian asked for dashed.

    `sets` are {name: perplexities}, the first the promoted; `target` counts of the bins between `edges`; what lies
    outside is not drawn.
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
        legend.append(Entry("promote, asked", 0, dashed=True))
        axes.set_yscale("symlog", linthresh=10)
        axes.set_ylim(bottom=0)
        axes.set_yticks([0, *(10**n for n in range(1, 7) if 10**n <= max(axes.get_ylim()))])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("perplexity of the response")
        axes.set_ylabel("responses")
        svg = as_svg(figure, "perplexity", title)
    return panels_file({title: svg}, title=title, legend=legend)


def arms_file(runs: list[dict], *, arms: Sequence[str], title: str) -> str:
    """Entropy over RL's steps, and pass@k before (dashed) and after RL: a line an arm, mean over seeds.

    `runs`: arm, entropy [steps], pass_at_k {"tune" | "rl": {k: value}} each (experiments/oxa.py).
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "arms"}):
        (one, left), (other, right) = panel(), panel()
        for i, arm in enumerate(arms):
            colour, own = COLOURS[1 + i][0], [r for r in runs if r["arm"] == arm]
            entropy = np.array([r["entropy"] for r in own])
            left.plot(1 + np.arange(entropy.shape[1]), entropy.mean(0), color=colour, lw=1.6)
            for stage, dash in (("tune", (0, (3, 2))), ("rl", "-")):
                ks = sorted(map(int, own[0]["pass_at_k"][stage]))
                values = np.array([[r["pass_at_k"][stage][str(k)] for k in ks] for r in own])
                right.plot(ks, 100 * values.mean(0), color=colour, lw=1.6, ls=dash, marker=MARKERS[1 + i], ms=3.5)
        left.set_xlabel("step of RL")
        left.set_ylim(bottom=0)
        right.set_xscale("log", base=2)
        right.xaxis.set_minor_locator(NullLocator())
        right.set_xticks(ks, map(str, ks))
        right.set_xlabel("k")
        right.set_ylim(bottom=0)
        right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}%"))
        names = ("entropy (nats per token)", "pass@k: dashed before RL")
        panels = {name: as_svg(f, f"arms{i}", name) for i, (name, f) in enumerate(zip(names, (one, other)))}
    return panels_file(panels, title=title, legend=[Entry(arm, 1 + i, dashed=False) for i, arm in enumerate(arms)])
