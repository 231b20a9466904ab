"""Check in numbers what must hold of the p^k model: closed form = enumeration = Monte Carlo, and why length rises.

`compare_laws` computes E[r] and E[T] by recursion, by a linear solve, and as means of sampled traces.
`compare_gradients` compares both sides of E[∇ log p(τ) g(τ)] = ∇E[g(τ)] along directions D: the left is sampled, the
right differentiated. For g = −1/T (constant negative advantage, mean over tokens) it is −∇E[1/T], for g = −1 (sum) 0.
`enumerate_traces` lists every trace of a tiny model, without any of pk.py's recursions.

    compare_laws(jax.random.key(0), logits, budget=100, traces=20_000)["length"]["sigmas"]     # about 1
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.didactic import pk


def enumerate_traces(logits, *, budget: int):
    """Yield every trace as (probability, length, won, ∇ log p [K, K + 1]) in float64 numpy.

    The probabilities sum to 1; there are fewer than (K − 1) K^B traces.
    """
    logits = np.asarray(logits, np.float64)
    actions = logits.shape[0]
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    seen = set()
    for start, *rest in itertools.product(range(1, actions), *[range(actions + 1)] * budget):
        end = next((i for i, a in enumerate(rest) if a in (pk.BEST, actions)), budget - 1)
        trace = (start, *rest[: end + 1])
        if trace in seen:
            continue
        seen.add(trace)
        chance, score = 1 / (actions - 1), np.zeros_like(logits)
        for state, action in itertools.pairwise(trace):
            chance *= probs[state, action]
            score[state] -= probs[state]
            score[state, action] += 1
        yield chance, len(trace) - 1, trace[-1] == pk.BEST, score


@jax.jit
def scores_along(logits, directions_d, states, taken):
    """Return ⟨∇ log p(τ), D⟩ [N, G] of `pk.sample`'s traces [B, 1, G] for every direction D [N, K, K + 1]."""
    probs = jax.nn.softmax(logits, axis=-1)

    def along(direction):
        centred = direction - (probs * direction).sum(-1, keepdims=True)
        padded = jnp.pad(centred, ((0, 0), (0, 1)))  # what lies behind the end counts as 0
        return padded[states[:, 0], taken[:, 0]].sum(axis=0)

    # one direction at a time: for all at once, XLA's CPU compiler (JAX 0.10.2) gathers wrong values
    return jax.lax.map(along, directions_d)


def against(sampled, exact) -> dict:
    """Return the mean of samples [G], what it should be, and their distance in standard errors ("sigmas")."""
    sampled = np.asarray(sampled, np.float64)
    error = sampled.std(ddof=1) / np.sqrt(sampled.size)
    return {"sampled": sampled.mean(), "exact": float(exact), "sigmas": float((sampled.mean() - exact) / error)}


def compare_laws(key, logits, *, budget: int, traces: int) -> dict:
    """Return `against` for "reward" and "length", where "exact" is the recursion, and "closed", the linear solve."""
    _, _, length, won = pk.draw(key[None], logits[None], group=traces, budget=budget)
    exact, closed = pk.observe(logits, budget=budget), pk.closed_form(logits, budget=budget)
    return {
        "reward": {"closed": float(closed[0]), **against(won[0], exact["reward"])},
        "length": {"closed": float(closed[1]), **against(length[0], exact["length"])},
    }


def compare_gradients(key, logits, *, budget: int, traces: int, directions: int = 6) -> dict:
    """Return `against` along every direction, by weighting ("mean", "sum") and advantage (−1, 2r − 1).

    The directions have length 1: −∇E[1/T], M(·, stop), and `directions` random ones.
    """
    noise, random = jax.random.split(key)
    states, taken, length, won = pk.draw(noise[None], logits[None], group=traces, budget=budget)
    rising = pk.expected_gradient(logits, budget=budget, won=-1.0, lost=-1.0, weighting="mean")
    stop = jnp.zeros_like(logits).at[:, pk.STOP].set(1.0)
    d = jnp.stack([rising, stop, *jax.random.normal(random, (directions, *logits.shape))])
    d = d / jnp.sqrt((d**2).sum((1, 2), keepdims=True))
    score = np.asarray(scores_along(logits, d, states, taken))
    comparisons = {}
    for weighting in ("mean", "sum"):
        for name, a in (("A = -1", (-1.0, -1.0)), ("A = 2r - 1", (1.0, -1.0))):
            exact = pk.expected_gradient(logits, budget=budget, won=a[0], lost=a[1], weighting=weighting)
            weight = np.where(won[0], *a) * pk.token_weight(np.asarray(length[0], np.float64), weighting=weighting)
            rows = [against(x, y) for x, y in zip(weight * score, jnp.tensordot(d, exact))]
            comparisons[f"{weighting}, {name}"] = rows
    return comparisons
