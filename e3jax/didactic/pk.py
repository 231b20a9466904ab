"""The p^k model (e3 App. A): a bigram policy that guesses until it hits a*, gives up, or runs out of budget.

State s is the last action; the next one is drawn from π(a | s) ∝ exp M(s, a) over K actions and `stop`. A trace starts
in a state drawn from π_0, which is no token, and has T <= B tokens: it ends with reward 1 at a*, with reward 0 at
`stop` or after B tokens. So (T, r) comes from an absorbing Markov chain, and everything about it is exact here:

    visits = Σ_{t<B} π_0 G^t = π_0 (I − G^B)(I − G)^-1        G: π without the columns of a* and stop
    E[r] = visits · π(a* | ·)          E[T] = Σ_s visits_s
    E[g(T, r) ∇ log p(τ)] = ∇ E[g(T, r)]   for any g that does not depend on M: advantage times token weight

The last line is the exact policy gradient (`expected_gradient`). For g = −1/T, which is a constant negative advantage
with the mean over tokens of e3's App. A, it is −∇E[1/T]: length grows. For g = −1, the sum over tokens, it is 0.

    logits = init_logits(jax.random.key(0), actions=100, span=3.0, stop=4.0, best=-4.0)
    observe(logits, budget=100)["length"]     # about 7 tokens
"""

from functools import partial

import jax
import jax.numpy as jnp

BEST, STOP = 0, -1  # columns of M: a* first, stop last


@partial(jax.jit, static_argnames="actions")
def init_logits(key, *, actions: int, span: float, stop: float, best: float):
    """Draw M [K, K + 1] uniformly from [−span, span], but M(s, stop) = stop and M(s, a*) = best (e3 App. A.1)."""
    logits = jax.random.uniform(key, (actions, actions + 1), minval=-span, maxval=span)
    return logits.at[:, STOP].set(stop).at[:, BEST].set(best)


def initial_states(actions: int):
    """Return π_0 [K], uniform over all actions but a* (e3 App. A.1).

    >>> initial_states(3).tolist()
    [0.0, 0.5, 0.5]
    """
    return jnp.full(actions, 1 / (actions - 1)).at[BEST].set(0.0)


def split(logits):
    """Return G [K, K], π(a* | s) [K] and π(stop | s) [K]: a trace goes on, is right, or gives up.

    The row of a* is never used, because a trace ends there.
    """
    probs = jax.nn.softmax(logits, axis=-1)
    return probs[:, :STOP].at[:, BEST].set(0.0), probs[:, BEST], probs[:, STOP]


@partial(jax.jit, static_argnames="budget")
def length_distribution(logits, *, budget: int):
    """Return won [B] and lost [B], the probabilities that a trace ends after t = 1 … B tokens with reward 1 or 0.

    A trace that the budget cuts has lost after B tokens, so all of them sum to 1. Differentiable.
    """
    go_on, best, stop = split(logits)

    def token(alive, _):
        return alive @ go_on, (alive @ best, alive @ stop)

    alive, (won, lost) = jax.lax.scan(token, initial_states(logits.shape[0]), length=budget)
    return won, lost.at[-1].add(alive.sum())


@partial(jax.jit, static_argnames="budget")
def closed_form(logits, *, budget: int):
    """Return E[r] and E[T] by one linear solve: visits = π_0 (I − G^B)(I − G)^-1.

    The system is singular if a trace can neither be right nor give up.
    """
    go_on, best, _ = split(logits)
    start = initial_states(logits.shape[0])
    left = start - start @ jnp.linalg.matrix_power(go_on, budget)
    visits = jnp.linalg.solve((jnp.eye(logits.shape[0]) - go_on).T, left)
    return visits @ best, visits.sum()


def token_weight(length, *, weighting: str):
    """Return a token's weight in a trace of `length` tokens: "sum" 1, "mean" 1/T (e3 App. A.1).

    >>> token_weight(4.0, weighting="mean")
    0.25
    """
    if weighting not in ("sum", "mean"):
        raise ValueError(f"weighting {weighting!r}: use 'sum' or 'mean'")
    return 1 / length if weighting == "mean" else 1 + 0 * length


@partial(jax.jit, static_argnames=("budget", "weighting"))
def expected_gradient(logits, *, budget: int, won: float, lost: float, weighting: str):
    """Return E[w(T) A ∇ log p(τ)] = ∇E[w(T) A] [K, K + 1] exactly; A is `won` for reward 1 and `lost` for reward 0."""

    def objective(logits):
        of_won, of_lost = length_distribution(logits, budget=budget)
        weight = token_weight(jnp.arange(1.0, budget + 1), weighting=weighting)
        return weight @ (won * of_won + lost * of_lost)

    return jax.grad(objective)(logits)


@partial(jax.jit, static_argnames="budget")
def observe(logits, *, budget: int) -> dict:
    """Return exact E[r], E[T] and E[1/T], and means over s ≠ a* of π(stop), π(a*) and π(· | s)'s entropy (nats)."""
    won, lost = length_distribution(logits, budget=budget)
    logp = jax.nn.log_softmax(logits[1:], axis=-1)
    tokens = jnp.arange(1.0, budget + 1)
    return {
        "length": tokens @ (won + lost),
        "reward": won.sum(),
        "p_stop": jnp.exp(logp[:, STOP]).mean(),
        "p_best": jnp.exp(logp[:, BEST]).mean(),
        "entropy": -(jnp.exp(logp) * logp).sum(-1).mean(),
        "inverse_length": (1 / tokens) @ (won + lost),
    }


def sample(logits_s, u_sbg, start_sg):
    """Sample G traces of each of S policies [S, K, K + 1] from uniforms [S, B, G] and initial states [S, G].

    Returns states and actions [B, S, G], length [S, G] and won [S, G]; behind the end stands action K + 1, which is
    none. A token takes one uniform through the inverse distribution function, so that the traces of one seed do not
    depend on the other seeds.
    """
    policies, actions = logits_s.shape[0], logits_s.shape[1]
    budget, group = u_sbg.shape[1:]
    upper = jnp.triu(jnp.ones((actions + 1, actions + 1)))
    cdf = jnp.matmul(jax.nn.softmax(logits_s, axis=-1), upper, precision="highest")
    which = jnp.arange(policies)[:, None]
    noise = jnp.moveaxis(u_sbg, 1, 0)

    def unfinished(carry):
        t, alive, *_ = carry
        return (t < budget) & alive.any()

    def token(carry):
        t, alive, state, length, won, states, taken = carry
        row = cdf[which, state]  # [S, G, K + 1]
        action = (row <= noise[t][..., None] * row[..., -1:]).sum(-1)
        states, taken = states.at[t].set(state), taken.at[t].set(jnp.where(alive, action, actions + 1))
        won, length = won | (alive & (action == BEST)), length + alive
        alive = alive & (action != BEST) & (action != actions)
        return t + 1, alive, jnp.where(alive, action, state), length, won, states, taken

    empty = jnp.zeros((budget, policies, group), jnp.int32)
    none = jnp.zeros((policies, group), bool)
    begin = (0, ~none, start_sg, 0 * start_sg, none, empty, empty + actions + 1)
    _, _, _, length, won, states, taken = jax.lax.while_loop(unfinished, token, begin)
    return states, taken, length, won


@partial(jax.jit, static_argnames=("group", "budget"))
def draw(keys_s, logits_s, *, group: int, budget: int):
    """Return `sample` with noise from one key per policy."""
    actions = logits_s.shape[1]
    pairs = jax.vmap(jax.random.split)(keys_s)
    u = jax.vmap(lambda key: jax.random.uniform(key, (budget, group)))(pairs[:, 0])
    start = jax.vmap(lambda key: jax.random.randint(key, (group,), 1, actions))(pairs[:, 1])  # a* is action 0
    return sample(logits_s, u, start)


@jax.jit
def sampled_gradient(logits_s, states, taken, coefficient_sg):
    """Return Σ_g coefficient Σ_t ∇ log π(a_t | s_t) [S, K, K + 1] of `sample`'s traces.

    It is counts(s, a) − counts(s) π(a | s), with counts weighted by the coefficients.
    """
    which = jnp.arange(logits_s.shape[0])[:, None]
    weight = jnp.broadcast_to(coefficient_sg, taken.shape)
    counts = jnp.zeros_like(logits_s).at[which, states, taken].add(weight, mode="drop")
    return counts - counts.sum(-1, keepdims=True) * jax.nn.softmax(logits_s, axis=-1)
