"""Which arm has the higher ceiling? ScaleRL's fit to the reward of every run over its training tokens.

The first RL step samples from the base: its reward is R₀. The other steps are averaged in blocks; the compute of a
step is what the steps before it sampled. Where a run has too few blocks, or does not bend, the table says so instead of
a number (metrics/sigmoid.py).
"""

import math
from collections.abc import Sequence

import numpy as np

from e3jax.experiments.read import RunLines, spread, tokens_of
from e3jax.experiments.results import figure
from e3jax.metrics.seeds import paired_interval
from e3jax.metrics.sigmoid import ceiling_interval, fault, fit
from e3jax.report.figures import read_number

HEADER = ("arm", "seed", "points", "ceiling, %", "95 % interval", "exponent", "tokens of half the gain")


def reward_of(step: dict) -> float:
    """Return the mean score of all that an RL step drew, of which dynamic sampling trains on a selection."""
    everything = read_number(step, "drawn/reward")
    return everything if math.isfinite(everything) else read_number(step, "reward/mean")


def points(steps: list[dict], *, block: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Return R₀ and the computes (tokens) and rewards of whole blocks of steps; none for a run without RL steps."""
    if not steps:
        return math.nan, np.array([]), np.array([])
    reward, tokens = np.array([reward_of(x) for x in steps]), np.array([tokens_of(x) for x in steps])
    before = np.concatenate([[0.0], np.cumsum(tokens)[:-1]])
    whole = (len(steps) - 1) // block * block
    blocks = (x[1 : 1 + whole].reshape(-1, block).mean(axis=1) for x in (before, reward))
    return float(reward[0]), *blocks


def table(records: dict[str, dict[int, RunLines]], *, arms: Sequence[str], block: int, level: float) -> dict:
    """Return the table of ceilings: a row for every run, and one for every arm of which all runs have a ceiling."""
    rows = []
    for arm in arms:
        ceilings = []
        for seed, r in records.get(arm, {}).items():
            start, compute, reward = points(r.steps, block=block)
            curve = fit(compute, reward, start=start) if len(compute) else None
            why = fault(compute, curve, start=start) if curve else "no RL steps"
            cells = [arm, str(seed), str(len(compute))]
            if why:
                rows.append([*cells, "–", why, "–", "–"])
                continue
            ceilings.append(curve.ceiling)
            low, high = ceiling_interval(compute, reward, curve, start=start, level=level)
            shown = [f"{100 * curve.ceiling:.1f}", f"{100 * low:.1f} … {100 * high:.1f}"]
            rows.append([*cells, *shown, f"{curve.exponent:.2g}", f"{curve.middle:.3g}"])
        if len(ceilings) > 1 and len(ceilings) == len(records[arm]):
            mean, low, high = paired_interval(ceilings, level=level)
            rows.append([arm, "all", "", f"{100 * mean:.1f}", f"{100 * low:.1f} … {100 * high:.1f}", "", ""])
    title = "ScaleRL's fit: the reward that an arm's curve over training tokens tends to"
    return {"title": title, "header": list(HEADER), "rows": rows}


def tokens_figure(records: dict[str, dict[int, RunLines]], *, title: str, block: int, arms: Sequence[str]) -> dict:
    """Return the reward over training tokens: a line per arm, with the range of seeds."""
    drawn = []
    for arm in arms:
        seeds = [points(r.steps, block=block)[1:] for r in records.get(arm, {}).values()]
        seeds = [(compute, reward) for compute, reward in seeds if len(compute)]
        if seeds:
            n = min(len(compute) for compute, _ in seeds)
            x = np.mean([compute[:n] for compute, _ in seeds], axis=0)
            drawn.append({"label": arm, "x": x.tolist(), **spread([reward for _, reward in seeds])})
    return figure(title, drawn, xlabel="training tokens", percent=True)
