"""Train the p^k model with GRPO or masked updates, sampled or exactly expected, all seeds in one jitted scan.

    M ← M + lr · (1/G) Σ_g A_g w(T_g) Σ_t ∇ log π(a_t | s_t)             plain SGD (e3 App. A.1)

e3's App. A says neither what A is for a single trace nor how many traces an update has. Every reading is possible here:

    "sign"      2r − 1                          "constant"  r − baseline
    "average"   r − its running mean            "group"     (r − mean) / std of the G traces (losses/grpo.py)

`masked` drops negative advantages (GRPOMask). G is the denominator in either case: "fixed" in e3's App. G.3.

    start = begin(jax.random.split(jax.random.key(0), 5), actions=100, span=3.0, stop=4.0, best=-4.0)
    method = Method("sampled", "sign", baseline=0.0, group=1, weighting="mean", masked=False, lr=0.01)
    carry, seen = some_updates(start, method, updates=1000, budget=100)      # seen["length"] [S]
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from e3jax.didactic import pk
from e3jax.losses.grpo import group_advantages

ADVANTAGES = ("sign", "constant", "average", "group")
DECAY = 0.99  # of the running mean of "average" (own choice)
STD = {"normalize_std": True, "ddof": 1, "epsilon": 1e-6}  # as configs/common.py; docs/algorithms.md, group advantages


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("baseline", "lr"),
    meta_fields=("gradient", "advantage", "group", "weighting", "masked"),
)
@dataclass(frozen=True)
class Method:
    """How an update is made; its numbers are traced, the rest is static."""

    gradient: str  # "sampled" (G traces) or "exact" (the expectation, without noise)
    advantage: str  # one of ADVANTAGES
    baseline: float  # of "constant"
    group: int  # G, traces of an update
    weighting: str  # of tokens: "mean" or "sum"
    masked: bool
    lr: float


class Carry(NamedTuple):
    """What an update passes to the next one."""

    step: jax.Array
    logits: jax.Array  # [S, K, K + 1]
    average: jax.Array  # [S], running mean of r
    keys: jax.Array  # [S]; an update's noise is fold_in(key, step)


def begin(keys_s, **init) -> Carry:
    """Return the start of training, with an M for every seed (`pk.init_logits` with **init)."""
    return Carry(
        jnp.int32(0),
        jax.vmap(lambda key: pk.init_logits(jax.random.fold_in(key, 2**31 - 1), **init))(keys_s),
        jnp.zeros(len(keys_s)),
        keys_s,
    )


def advantages(won_sg, average_s, *, advantage: str, baseline: float):
    """Return A [S, G] for rewards 0 and 1 [S, G] and their running means [S].

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
    raise ValueError(f"advantage {advantage!r}: use one of {', '.join(ADVANTAGES)}")


def mean_advantages(reward, *, advantage: str, baseline: float, group: int):
    """Return A of a trace with reward 1 and A of one with reward 0, expected over the rest of its group.

    `reward` [S] is E[r]. "group": the other G − 1 rewards are Binomial(E[r]). "average": the running mean is E[r].
    """
    one_zero = jnp.array([1.0, 0.0])
    if advantage != "group":
        a = advantages(jnp.broadcast_to(one_zero, (*reward.shape, 2)), reward, advantage=advantage, baseline=baseline)
        return a[..., 0], a[..., 1]
    others = jnp.arange(group)  # how many of the others have reward 1
    chance = jax.vmap(lambda p: jax.scipy.stats.binom.pmf(others, group - 1, p))(reward)  # [S, G]
    first = jnp.repeat(one_zero, group)[:, None]  # this trace's reward, once with 1 and once with 0
    rest = jnp.tile(others[None, :-1] < others[:, None], (2, 1))
    a = group_advantages(jnp.concatenate([first, rest], axis=1), **STD)[:, 0].reshape(2, group)
    return chance @ a[0], chance @ a[1]


def update(carry: Carry, method: Method, *, budget: int) -> Carry:
    """Make one SGD step of every seed."""
    floor = 0.0 if method.masked else -jnp.inf
    how = {"advantage": method.advantage, "baseline": method.baseline}
    if method.gradient == "exact":
        reward = jax.vmap(lambda m: pk.length_distribution(m, budget=budget)[0].sum())(carry.logits)
        won, lost = mean_advantages(reward, **how, group=method.group)
        expected = partial(pk.expected_gradient, budget=budget, weighting=method.weighting)
        step = jax.vmap(lambda m, a, b: expected(m, won=a, lost=b))
        ascent = step(carry.logits, jnp.maximum(won, floor), jnp.maximum(lost, floor))
        average = reward
    else:
        keys = jax.vmap(jax.random.fold_in, (0, None))(carry.keys, carry.step)
        states, taken, length, won = pk.draw(keys, carry.logits, group=method.group, budget=budget)
        won = won.astype(jnp.float32)
        a = jnp.maximum(advantages(won, carry.average, **how), floor)
        weight = a * pk.token_weight(length.astype(jnp.float32), weighting=method.weighting) / method.group
        ascent = pk.sampled_gradient(carry.logits, states, taken, weight)
        average = DECAY * carry.average + (1 - DECAY) * won.mean(axis=1)
    return Carry(carry.step + 1, carry.logits + method.lr * ascent, average, carry.keys)


@partial(jax.jit, static_argnames=("updates", "budget"))
def some_updates(carry: Carry, method: Method, *, updates: int, budget: int) -> tuple[Carry, dict]:
    """Make `updates` SGD steps; return the carry and `look` of it."""
    carry, _ = jax.lax.scan(lambda c, _: (update(c, method, budget=budget), None), carry, length=updates)
    return carry, look(carry, budget=budget)


@partial(jax.jit, static_argnames="budget")
def look(carry: Carry, *, budget: int) -> dict:
    """Return `pk.observe` of every seed, {name: [S]}."""
    return jax.vmap(partial(pk.observe, budget=budget))(carry.logits)
