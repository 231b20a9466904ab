"""Easy, medium, hard: the three definitions that e3's paper and code use for DMATH, from how often a problem is solved.

They do not agree, so the definition is chosen by name (p: share of a judge's samples that are right):

    "code"        the released preprocessing: easy p > 10/16, hard p = 0, medium between (16 samples)
    "section_5"   "evenly across three levels" by the judge's performance: thirds of the ranking
    "appendix_i"  "hard if the pass@1 … is 0 … medium if this value is between 0.0 and 0.2 and easy otherwise" (32)

    labels = bucket([0.0, 0.1, 0.9], "code")
"""

from collections.abc import Sequence

import numpy as np

from e3jax.errors import UserError

LEVELS = ("easy", "medium", "hard")
EASY_ABOVE = 10 / 16  # "code"
EASY_FROM = 0.2  # "appendix_i"
PRESETS = ("code", "section_5", "appendix_i")


def bucket(rate_p: Sequence[float], preset: str) -> list[str]:
    """Return a level of LEVELS for every pass rate; raise UserError for an unknown preset or rates outside [0, 1].

    >>> bucket([0, 1 / 16, 10 / 16, 11 / 16], "code")
    ['hard', 'medium', 'medium', 'easy']
    >>> bucket([0, 1 / 16, 10 / 16, 11 / 16], "appendix_i")
    ['hard', 'medium', 'easy', 'easy']
    >>> bucket([0.5, 0, 1], "section_5")
    ['medium', 'hard', 'easy']
    """
    rate_p = np.asarray(rate_p, np.float64)
    if preset not in PRESETS:
        raise UserError(f"preset {preset!r}: use one of {', '.join(PRESETS)}")
    if not ((rate_p >= 0) & (rate_p <= 1)).all():
        raise UserError(f"pass rates lie in [0, 1]; these are from {rate_p.min()} to {rate_p.max()}")
    if preset == "section_5":
        return thirds(rate_p)
    easy_p = rate_p > EASY_ABOVE if preset == "code" else rate_p >= EASY_FROM
    return np.where(easy_p, "easy", np.where(rate_p > 0, "medium", "hard")).tolist()


def thirds(rate_p: np.ndarray) -> list[str]:
    """Return levels by thirds: the highest rates are easy, the lowest hard; sizes differ by one at most.

    The paper does not say which of equal rates come first: a fixed shuffle decides, and the set's order does not.
    """
    shuffle_p = np.random.default_rng(0).permutation(len(rate_p))
    out = np.empty(len(rate_p), object)
    for level, which in zip(LEVELS, np.array_split(np.lexsort((shuffle_p, -rate_p)), len(LEVELS))):
        out[which] = level
    return out.tolist()
