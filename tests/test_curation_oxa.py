"""Selection: the target histogram to the count, limits and shortages on any pool; the command's sets after a kill."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e3jax.curation.oxa import Promotion, bin_edges, gaussian_targets, least_per_query, mu_of, promote_set, random_set

RELEASED = dict(low=1.0, high=5.0, width=0.05, mu=2.5, sigma=0.25)  # OXA's code, 1.5B


def test_a_rich_pool_gives_the_target_to_the_count():
    """OXA's 80 bins, the weights worked out again in plain Python; nothing short, one a query."""
    rng = np.random.default_rng(0)
    ppl, n = rng.uniform(0.9, 5.2, 60_000), 5000
    chosen, bins = promote_set(
        ppl,
        rng.integers(1, 900, len(ppl)),
        np.arange(len(ppl)),
        Promotion(total=n, per_query=1, refill=False, **RELEASED),
        seed=42,
    )
    middles = [1.0 + 0.05 * (i + 0.5) for i in range(80)]
    weight = [2.718281828459045 ** (-((m - 2.5) ** 2) / (2 * 0.25**2)) for m in middles]
    exact = [n * w / sum(weight) for w in weight]
    want = [int(x) for x in exact]
    for i in sorted(range(80), key=lambda i: want[i] - exact[i])[: n - sum(want)]:
        want[i] += 1
    assert bins.target.tolist() == want and sum(want) == n
    assert np.histogram(ppl[chosen], bins.edges)[0].tolist() == want == bins.taken.tolist()
    assert len(set(chosen.tolist())) == n and bins.short.sum() == 0


def test_longest_first_then_other_queries_first():
    """One bin by hand: round 1 takes every query's longest, round 2 seconds; the limit per query ends it."""
    ppl, edge = np.full(6, 2.0), dict(low=1.5, high=2.5, width=1.0, mu=2.0, sigma=1.0, refill=False)
    length, query = np.array([9, 8, 7, 3, 2, 1]), np.array([0, 0, 0, 1, 1, 2])

    def take(total, per_query):
        return promote_set(ppl, length, query, Promotion(total=total, per_query=per_query, **edge), seed=0)[0].tolist()

    assert take(3, 10) == [0, 3, 5]
    assert take(5, 10) == [0, 3, 5, 1, 4]
    assert take(6, 10) == [0, 3, 5, 1, 4, 2]
    assert take(6, 2) == [0, 3, 5, 1, 4]
    assert take(6, 1) == [0, 3, 5]


def test_ties_are_random_by_the_seed():
    """Of equal lengths another seed makes another choice, and the same seed the same."""
    pool = np.full(200, 2.5), np.full(200, 7), np.arange(200)
    promotion = Promotion(total=20, per_query=1, refill=True, **RELEASED)
    one, again, other = (promote_set(*pool, promotion, seed=s)[0].tolist() for s in (1, 1, 2))
    assert one == again != other and len(one) == 20
    assert random_set(pool[0], total=20, seed=1).tolist() != random_set(pool[0], total=20, seed=2).tolist()


@st.composite
def pools(draw):
    """Draw small pools with many ties, several responses a query, and perplexities in and out of range, NaN too."""
    n = draw(st.integers(0, 40))
    ppl = draw(st.lists(st.sampled_from([0.5, 1.0, 1.1, 1.3, 1.5, 1.9, 2.0, 2.4, np.nan]), min_size=n, max_size=n))
    length = draw(st.lists(st.integers(1, 3), min_size=n, max_size=n))
    query = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    return np.array(ppl, float), np.array(length, int), np.array(query, int)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(pools(), st.integers(1, 30), st.integers(1, 4), st.floats(0.5, 2.5), st.integers(0, 3))
def test_any_pool_keeps_the_limits(pool, total, per_query, mu, seed):
    """Targets, caps, range and no repeats hold; a bin is short only where the limit or the pool leaves nothing."""
    ppl, length, query = pool
    common = dict(low=1.0, high=2.0, width=0.25, mu=mu, sigma=0.2, per_query=per_query, total=total)
    chosen, bins = promote_set(ppl, length, query, Promotion(refill=False, **common), seed=seed)
    inside = ppl[(ppl >= 1.0) & (ppl <= 2.0)]
    assert bins.target.sum() == total and (bins.target >= 0).all()
    assert bins.available.tolist() == np.histogram(inside, bins.edges)[0].tolist()
    assert (bins.taken <= bins.target).all() and (bins.taken <= bins.available).all()
    assert np.histogram(ppl[chosen], bins.edges)[0].tolist() == bins.taken.tolist()
    full, _ = promote_set(ppl, length, query, Promotion(refill=True, **common), seed=seed)
    for picked in (chosen, full):
        assert len(set(picked.tolist())) == len(picked) <= total
        assert not len(picked) or np.bincount(query[picked]).max() <= per_query
        assert ((ppl[picked] >= 1.0) & (ppl[picked] <= 2.0)).all()
    assert full[: len(chosen)].tolist() == chosen.tolist()  # refilling adds, it does not change
    room = {q: min(per_query, int((query[np.isin(ppl, inside)] == q).sum())) for q in set(query.tolist())}
    assert len(full) == min(total, sum(room.values()))
    left = np.setdiff1d(np.flatnonzero((ppl >= 1.0) & (ppl <= 2.0)), chosen)
    count = np.bincount(query[chosen], minlength=7)
    which = np.minimum(np.searchsorted(bins.edges, ppl[left], side="right") - 1, 3)
    for b in np.flatnonzero(bins.short):  # what is left of a short bin is of queries that are full
        assert (count[query[left[which == b]]] == per_query).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(pools(), st.integers(1, 10))
def test_least_per_query(pool, total):
    """Equals plain loops: no degenerate response, the least perplexity of its query, the least of all."""
    ppl, _, query = pool
    chosen = least_per_query(ppl, query, total=total, least_ppl=1.05)
    best = {}
    for p, q in zip(ppl.tolist(), query.tolist()):
        if p >= 1.05:
            best[q] = min(best.get(q, np.inf), p)
    assert ppl[chosen].tolist() == sorted(best.values())[:total]
    assert len(set(query[chosen].tolist())) == len(chosen)
    assert all(best[q] == p for p, q in zip(ppl[chosen], query[chosen]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 500), st.floats(-3, 9), st.floats(0.01, 3))
def test_largest_remainder(total, mu, sigma):
    """The sum is exact and no bin is off by a whole one, wherever the Gaussian lies, even outside the bins."""
    edges = bin_edges(1.0, 5.0, 0.05)
    target = gaussian_targets(edges, total=total, mu=mu, sigma=sigma)
    z = -0.5 * (((edges[:-1] + edges[1:]) / 2 - mu) / sigma) ** 2
    exact = total * np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    assert target.sum() == total and (abs(target - exact) < 1).all()


def test_mu_as_a_quantile_and_bad_bins():
    """The quantile is of what lies within the bins only; bins that do not fit are an error."""
    ppl = np.array([0.5, 1.0, 2.0, 3.0, 9.0, np.nan])
    assert mu_of(ppl, low=1.0, high=5.0, quantile=0.5) == 2.0
    with pytest.raises(ValueError, match="whole number of bins"):
        bin_edges(1.0, 2.0, 0.3)
