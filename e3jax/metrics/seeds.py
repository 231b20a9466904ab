"""Is a difference there over seeds? The rule of an experiment is data, stated before it is run; this is what decides.

A statement compares arms in one measure. Per seed s, all arms of a seed share base model, problems and noise, hence the
pairing:

    d_s = Σ_{plus} m(arm, s) − Σ_{minus} m(arm, s)        mean d ± t_{(1+level)/2, n−1} · sd(d) / √n

    statement = {"says": "GRPO's responses get longer than the mask's", "measure": "length",
                 "plus": ("grpo",), "minus": ("mask",), "kind": "above", "margin": 0.0}
    row = judge(statement, values, seeds=(0, 1, 2), level=0.95)      # values[measure][arm][seed]
    verdict([row["outcome"]])                                        # "reproduced"

Outcomes of kind "above":  "yes" the interval lies above `margin`; "no" below −margin; else "open". Of "within": "yes"
inside ±margin; "no" outside of it; else "open". Seeds whose arms have the very same numbers in every measure are copies
of one run: without two distinct ones there is no interval, the outcome is "open" and `why` says so.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit  # a quantile of Student's t; jax brings scipy

KINDS = ("above", "within")
ALIKE = "all {} seeds have the very same numbers, as copies of one run have: no interval"


def paired_interval(values: Sequence[float], *, level: float) -> tuple[float, float, float]:
    """Return (mean, low, high) by Student's t over seeds. One value has no interval: (mean, nan, nan).

    >>> [round(x, 3) for x in paired_interval([1.0, 2.0, 3.0], level=0.95)]
    [2.0, -0.484, 4.484]
    """
    x = np.asarray(values, float)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"values must be finite, one per seed; got {values!r}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if x.size == 1:
        return float(x[0]), math.nan, math.nan
    half = stdtrit(x.size - 1, (1 + level) / 2) * x.std(ddof=1) / math.sqrt(x.size)
    return float(x.mean()), float(x.mean() - half), float(x.mean() + half)


def contrast(values: dict[str, dict[int, float]], *, plus, minus, seeds) -> dict[int, float]:
    """Return Σ plus − Σ minus for every seed for which all those arms have a finite value.

    >>> contrast({"a": {0: 3.0, 1: 5.0}, "b": {0: 1.0}}, plus=("a",), minus=("b",), seeds=(0, 1))
    {0: 2.0}
    """
    out = {}
    for seed in seeds:
        parts = [(sign, values.get(arm, {}).get(seed)) for sign, arms in ((1, plus), (-1, minus)) for arm in arms]
        if all(x is not None and math.isfinite(x) for _, x in parts):
            out[seed] = sum(sign * x for sign, x in parts)
    return out


def outcome(low: float, high: float, *, kind: str, margin: float) -> str:
    """Return "yes", "no" or "open" for an interval; NaN bounds (a single seed) are "open".

    >>> outcome(0.1, 0.3, kind="above", margin=0.0), outcome(-0.1, 0.3, kind="above", margin=0.0)
    ('yes', 'open')
    >>> outcome(-0.01, 0.02, kind="within", margin=0.05), outcome(0.06, 0.2, kind="within", margin=0.05)
    ('yes', 'no')
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: one of {', '.join(map(repr, KINDS))}")
    if kind == "above":
        return "yes" if low > margin else "no" if high < -margin else "open"
    return "yes" if -margin < low and high < margin else "no" if low > margin or high < -margin else "open"


def judge(statement: dict, values: dict, *, seeds: Sequence[int], level: float) -> dict:
    """Return a statement with its numbers: `values` per seed, `mean`, `low`, `high` (NaN: too few seeds), `outcome`.

    `why` is there when seeds are no seeds: fewer than two of them have numbers of their own.
    """
    plus, minus = statement["plus"], statement["minus"]
    per_seed = contrast(values[statement["measure"]], plus=plus, minus=minus, seeds=seeds)
    known = list(per_seed.values())
    mean, low, high = paired_interval(known, level=level) if known else (math.nan,) * 3
    arms = [of[arm] for of in values.values() for arm in (*plus, *minus) if arm in of]
    distinct = {tuple(repr(arm[s]) if s in arm else "" for arm in arms) for s in per_seed}  # a NaN is like another
    alike = len(distinct) == 1 < len(known)
    low, high = (math.nan, math.nan) if alike else (low, high)
    said = outcome(low, high, kind=statement["kind"], margin=statement["margin"])
    row = {**statement, "values": per_seed, "mean": mean, "low": low, "high": high, "outcome": said}
    return row | {"why": ALIKE.format(len(known))} if alike else row


def verdict(outcomes: Sequence[str]) -> str:
    """Return "reproduced" if every statement is "yes", "not reproduced" if none is, else "mixed".

    >>> verdict(["yes", "yes"]), verdict(["yes", "open"]), verdict(["open", "no"])
    ('reproduced', 'mixed', 'not reproduced')
    """
    if not outcomes:
        raise ValueError("no statement to decide on")
    if all(o == "yes" for o in outcomes):
        return "reproduced"
    return "mixed" if "yes" in outcomes else "not reproduced"
