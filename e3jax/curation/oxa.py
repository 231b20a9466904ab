"""Choose OXA's sets from two graded pools of responses: which to promote, which to suppress, and the baselines' sets.

    promote     right, of low confidence: perplexities follow a Gaussian (docs/algorithms.md#promote)
    suppress    wrong, of high confidence: the least perplexity of every query, then the least of all (#suppress there)
    random, low_ppl    the baselines: any right ones; the least perplexity of every query, then of all

Everything is indices into arrays of one pool: ppl [N], length [N] in tokens, query [N] (integers).

    promotion = Promotion(total=50_000, low=1.0, high=5.0, width=0.05, mu=2.5, sigma=0.25, per_query=10, refill=False)
    chosen, bins = promote_set(ppl, length, query, promotion, seed=42)
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from e3jax.errors import need


@dataclass(frozen=True)
class Promotion:
    """A config's `promote` section: the perplexities that promoted responses should have."""

    total: int  # responses
    low: float  # the bins' range of perplexity, and their width
    high: float
    width: float
    mu: float  # mean and deviation of the Gaussian
    sigma: float
    per_query: int  # responses to one query at most
    refill: bool  # whether other responses make up for bins that have too few
    mu_quantile: float | None = None  # mu as a quantile of the pool instead, which carries over to other models

    def __post_init__(self):
        try:
            bin_edges(self.low, self.high, self.width)
        except ValueError as error:
            need(False, "width", self.width, str(error))
        need(self.sigma > 0, "sigma", self.sigma, "must be above 0")
        quantile = self.mu_quantile
        need(quantile is None or 0 <= quantile <= 1, "mu_quantile", quantile, "0 to 1, None for mu")
        for name, value in (("total", self.total), ("per_query", self.per_query)):
            need(value >= 1, name, value, "use 1 or more")


class Bins(NamedTuple):
    """How many responses each bin of perplexity should give, has, and gives: arrays [bins]; the edges are one more."""

    edges: np.ndarray
    target: np.ndarray
    available: np.ndarray
    taken: np.ndarray  # refilled ones included

    @property
    def short(self) -> np.ndarray:
        """Return how many responses each bin's target lacks."""
        return np.maximum(self.target - self.taken, 0)


def bin_edges(low: float, high: float, width: float) -> np.ndarray:
    """Return low, low + width, … high; raise ValueError unless a whole number of bins fits.

    >>> bin_edges(1.0, 1.2, 0.05)
    array([1.  , 1.05, 1.1 , 1.15, 1.2 ])
    """
    bins = round((high - low) / width)
    if bins < 1 or abs(low + bins * width - high) > 1e-9:
        raise ValueError(f"[{low}, {high}] is not a whole number of bins of {width}")
    return np.linspace(low, high, bins + 1)


def gaussian_targets(edges: np.ndarray, *, total: int, mu: float, sigma: float) -> np.ndarray:
    """Return n_b = total · N(mid_b; mu, sigma) / Σ N, [bins] int, whose sum is `total`.

    They are floors, and the bins with the largest remainders get one more; of equal remainders the lower bin's.

    >>> gaussian_targets(np.array([0.0, 1, 2, 3]), total=10, mu=1.5, sigma=1.0).tolist()
    [3, 4, 3]
    """
    middle = (edges[:-1] + edges[1:]) / 2
    log_weight = -0.5 * ((middle - mu) / sigma) ** 2
    weight = np.exp(log_weight - log_weight.max())  # a mu outside the bins still has its nearest ones
    exact = total * weight / weight.sum()
    target = np.floor(exact).astype(int)
    target[np.argsort(-(exact - target), kind="stable")[: total - target.sum()]] += 1
    return target


def mu_of(ppl: np.ndarray, *, low: float, high: float, quantile: float) -> float:
    """Return the Gaussian's mean as a quantile of the perplexities within [low, high]."""
    return float(np.quantile(ppl[(ppl >= low) & (ppl <= high)], quantile))


def promote_set(
    ppl: np.ndarray, length: np.ndarray, query: np.ndarray, promotion: Promotion, *, seed: int
) -> tuple[np.ndarray, Bins]:
    """Return the promoted responses' indices in the order they were taken, and the bins (Gaussian-guided sampling).

    Bins are filled from the lowest on, each in the order of falling length, ties shuffled. Rounds cap = 1 … per_query
    take a response while its query has fewer than `cap` in the bin and fewer than `per_query` in all, until the bin's
    target is met. Perplexities outside [low, high] (NaN too) are left out. OXA's make_OXA_MLE_data.py only warns of a
    shortage; `refill` takes as many from the responses that are left, from the bins nearest to mu on, under the same
    limit per query.
    """
    total, per_query, mu = promotion.total, promotion.per_query, promotion.mu
    edges = bin_edges(promotion.low, promotion.high, promotion.width)
    target = gaussian_targets(edges, total=total, mu=mu, sigma=promotion.sigma)
    inside = np.flatnonzero((ppl >= promotion.low) & (ppl <= promotion.high))
    which = np.minimum(np.searchsorted(edges, ppl[inside], side="right") - 1, len(target) - 1)  # high is in the last
    shuffled = np.random.default_rng(seed).permutation(len(inside))
    order = shuffled[np.lexsort((-length[inside[shuffled]], which[shuffled]))]  # by bin, then longest first
    members = np.split(inside[order], np.searchsorted(which[order], np.arange(1, len(target))))
    chosen: list[int] = []
    taken_b, of_query, used = np.zeros(len(target), int), {}, set()

    def take(i: int, b: int) -> None:
        chosen.append(i)
        used.add(i)
        taken_b[b] += 1
        of_query[query[i]] = of_query.get(query[i], 0) + 1

    for b, inside_b in enumerate(members):
        in_bin: dict[int, int] = {}
        for cap in range(1, per_query + 1):
            for i in inside_b:
                if taken_b[b] == target[b]:
                    break
                q = query[i]
                if i not in used and in_bin.get(q, 0) < cap and of_query.get(q, 0) < per_query:
                    take(i, b)
                    in_bin[q] = in_bin.get(q, 0) + 1
    if promotion.refill:
        nearest = np.argsort(abs((edges[:-1] + edges[1:]) / 2 - mu), kind="stable")
        for i, b in [(i, near) for near in nearest for i in members[near]]:
            if len(chosen) < total and i not in used and of_query.get(query[i], 0) < per_query:
                take(i, b)
    return np.array(chosen, int), Bins(edges, target, np.array([len(x) for x in members]), taken_b)


def least_per_query(ppl: np.ndarray, query: np.ndarray, *, total: int, least_ppl: float = 0.0) -> np.ndarray:
    """Return the `total` least of every query's least perplexity, as indices, rising in perplexity.

    Perplexities below `least_ppl` and NaN are left out first. Of equal ones the first counts. Of right responses this
    is the SFT-low-PPL baseline; of wrong ones, with least_ppl = 1.2 (degenerate below), OXA's suppressed set.

    >>> least_per_query(np.array([2.0, 1.1, 1.5, 3.0]), np.array([0, 0, 0, 1]), total=5, least_ppl=1.2).tolist()
    [2, 3]
    """
    order = np.argsort(ppl, kind="stable")
    order = order[ppl[order] >= least_ppl]  # NaN is not
    _, first = np.unique(query[order], return_index=True)
    return order[np.sort(first)][:total]


def random_set(ppl: np.ndarray, *, total: int, seed: int) -> np.ndarray:
    """Return any `total` responses that have a perplexity, as indices: the SFT baseline."""
    scored = np.flatnonzero(np.isfinite(ppl))
    return scored[np.random.default_rng(seed).permutation(len(scored))[:total]]
