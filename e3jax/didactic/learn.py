"""Training of the p^k model: GRPO and masked updates, sampled or exactly expected, all seeds in one jitted scan.

    M ← M + lr · (1/G) Σ_g A_g w(T_g) Σ_t ∇ log π(a_t | s_t)             plain SGD (App. A.1)

App. A says neither what A is for a single trace nor how many traces an update has. Here is each way of reading it:

    "sign"      2r − 1                          "constant"  r − baseline
    "average"   r − its running mean            "group"     (r − mean) / std of the G traces (losses/grpo.py)

and `masked` leaves out what is negative (GRPOMask; as G is the denominator either way, App. G.3's "fixed").

    start = begin(jax.random.split(jax.random.key(0), 5), actions=100, span=3.0, stop=4.0, best=-4.0)
    for carry, seen in learn(start, updates=1000, points=10, gradient="sampled", advantage="sign", baseline=0.0, …):
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from e3jax.didactic import pk
from e3jax.losses.grpo import group_advantages

ADVANTAGES = ("sign", "constant", "average", "group")
DECAY = 0.99  # of "average" (own choice)
STD = {"normalize_std": True, "ddof": 1, "epsilon": 1e-6}  # A.5, as in configs/common.py


class Carry(NamedTuple):
    """What an update hands to the next one."""

    step: jax.Array
    logits: jax.Array  # [S, K, K + 1]
    average: jax.Array  # [S], running mean of r
    keys: jax.Array  # [S]; an update's noise is fold_in(key, step)


def begin(keys_s, **init) -> Carry:
    """Every seed's own M (`pk.init_logits` with **init)."""
    return Carry(
        jnp.int32(0),
        jax.vmap(lambda key: pk.init_logits(jax.random.fold_in(key, 2**31 - 1), **init))(keys_s),
        jnp.zeros(len(keys_s)),
        keys_s,
    )


def advantages(won_sg, average_s, *, advantage: str, baseline: float):
    """A [S, G] of rewards 0 and 1 [S, G].

    >>> advantages(jnp.array([[1.0, 0.0]]), jnp.zeros(1), advantage="sign", baseline=0.0).tolist()
    [[1.0, -1.0]]
    """
    if advantage == "sign":
        return 2 * won_sg - 1
    if advantage == "constant":
        return won_sg - baseline
    if advantage == "average":
        return won_sg - average_s[:, None]
    if advantage == "group":
        return group_advantages(won_sg, **STD)
    raise ValueError(f"advantage {advantage!r}: one of {', '.join(ADVANTAGES)}")


def mean_advantages(reward, *, advantage: str, baseline: float, group: int):
    """(A of a trace with reward 1, with reward 0), expected over the rest of its group; `reward` [S] is E[r].

    "group": the other G − 1 rewards are Binomial(E[r]). "average": the running mean is E[r].
    """
    one_zero = jnp.array([1.0, 0.0])
    if advantage != "group":
        a = advantages(jnp.broadcast_to(one_zero, (*reward.shape, 2)), reward, advantage=advantage, baseline=baseline)
        return a[..., 0], a[..., 1]
    others = jnp.arange(group)  # how many of them have reward 1
    chance = jax.vmap(lambda p: jax.scipy.stats.binom.pmf(others, group - 1, p))(reward)  # [S, G]
    first = jnp.repeat(one_zero, group)[:, None]  # this trace's reward, once with 1 and once with 0
    rest = jnp.tile(others[None, :-1] < others[:, None], (2, 1))
    a = group_advantages(jnp.concatenate([first, rest], axis=1), **STD)[:, 0].reshape(2, group)
    return chance @ a[0], chance @ a[1]


def update(
    carry: Carry,
    *,
    gradient: str,
    advantage: str,
    baseline: float,
    group: int,
    weighting: str,
    masked: bool,
    lr: float,
    budget: int,
) -> Carry:
    """One SGD step of every seed; `gradient` is "sampled" (G traces) or "exact" (its expectation, without noise)."""
    floor = 0.0 if masked else -jnp.inf
    if gradient == "exact":
        reward = jax.vmap(lambda m: pk.length_distribution(m, budget=budget)[0].sum())(carry.logits)
        won, lost = mean_advantages(reward, advantage=advantage, baseline=baseline, group=group)
        expected = partial(pk.expected_gradient, budget=budget, weighting=weighting)
        step = jax.vmap(lambda m, a, b: expected(m, won=a, lost=b))
        ascent = step(carry.logits, jnp.maximum(won, floor), jnp.maximum(lost, floor))
        average = reward
    else:
        keys = jax.vmap(jax.random.fold_in, (0, None))(carry.keys, carry.step)
        states, taken, length, won = pk.draw(keys, carry.logits, group=group, budget=budget)
        won = won.astype(jnp.float32)
        a = jnp.maximum(advantages(won, carry.average, advantage=advantage, baseline=baseline), floor)
        weight = a * pk.token_weight(length.astype(jnp.float32), weighting=weighting) / group
        ascent = pk.sampled_gradient(carry.logits, states, taken, weight)
        average = DECAY * carry.average + (1 - DECAY) * won.mean(axis=1)
    return Carry(carry.step + 1, carry.logits + lr * ascent, average, carry.keys)


@partial(jax.jit, static_argnames=("updates", "gradient", "advantage", "group", "weighting", "masked", "budget"))
def some_updates(carry: Carry, *, updates: int, budget: int, **how):
    """`updates` SGD steps -> (carry, `pk.observe` of every seed afterwards, {name: [S]})."""
    step = partial(update, budget=budget, **how)
    carry, _ = jax.lax.scan(lambda c, _: (step(c), None), carry, length=updates)
    return carry, look(carry, budget=budget)


@partial(jax.jit, static_argnames="budget")
def look(carry: Carry, *, budget: int) -> dict:
    """`pk.observe` of every seed, {name: [S]}."""
    return jax.vmap(partial(pk.observe, budget=budget))(carry.logits)
