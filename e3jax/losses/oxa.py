"""OXA: cross-entropy on promoted responses and a little unlikelihood on suppressed ones (docs/algorithms.md, OXA).

With p_t the probability of a response's token t, and means over each pool of means over a response:

    loss = mean_i CE_i + ul_weight · mean_j UL_j        CE_i = mean_t −log p_t        UL_j = mean_t −log(1 − p_t)

UL's gradient in log p is p / (1 − p): it leaves unlikely tokens alone and presses on those that the model is sure of,
up to p = 1 − 1e-6, beyond which the loss is constant (13.8 nats). It needs log p alone, which losses/tokens.py makes
from hidden states a piece at a time, so that logits of a whole sequence never exist.

    loss, metrics = oxa_loss(logp, entropy, *pool_weights(mask, suppressed), ul_weight=1e-4)
"""

import math

import jax.numpy as jnp

from e3jax.losses.sft import sft_loss, sft_weights

MOST_LOGP = math.log1p(-1e-6)  # a higher log p counts as this one, as in OXA's code


def unlikelihood(logp):
    """Return −log(1 − p) of log p <= 0, elementwise, nats: 0 at p = 0, 13.8 at p >= 1 − 1e-6, where its gradient is 0.

    Computes log(−expm1(log p)) above p = 1/2 and log1p(−p) below: each keeps its digits where the other loses them.

    >>> round(float(unlikelihood(jnp.log(0.5))), 4)  # ln 2
    0.6931
    """
    logp = jnp.minimum(logp, MOST_LOGP)
    return -jnp.where(logp > -math.log(2), jnp.log(-jnp.expm1(logp)), jnp.log1p(-jnp.exp(logp)))


def pool_weights(mask_bt, suppressed_b):
    """Return the weights of promoted and of suppressed tokens, [B, T] each: a pool sums to 1, its responses share it.

    `mask_bt` is 1 on the response's tokens in each row of the WHOLE batch; `suppressed_b` [B] says which pool a row
    belongs to. An empty pool has weights of 0. Takes numpy and jax arrays.

    >>> pool_weights(np.array([[0, 1, 1], [1, 1, 1]]), np.array([False, True]))[0]
    array([[0. , 0.5, 0.5],
           [0. , 0. , 0. ]])
    """
    suppressed_b1 = suppressed_b[:, None]
    return tuple(sft_weights(mask_bt * pool, aggregation="sequence_mean") for pool in (~suppressed_b1, suppressed_b1))


def oxa_loss(logp_bt, entropy_bt, promote_bt, suppress_bt, *, ul_weight):
    """Return loss (scalar, nats) and metrics: Σ promote · CE + ul_weight · Σ suppress · UL; all arrays are [B, T].

    Metrics are sums over the same weights, so they add up over micro-batches: `ce`, `ul`, and each pool's `entropy` and
    `p`, the mean probability of its tokens. ul_weight = 0 is `sft_loss` of the promoted tokens, bit for bit.
    """
    ce, ul = sft_loss(logp_bt, promote_bt), (suppress_bt * unlikelihood(logp_bt)).sum()
    metrics = {"ce": ce, "ul": ul}
    for pool, weight_bt in (("promoted", promote_bt), ("suppressed", suppress_bt)):
        metrics[f"entropy_{pool}"] = (weight_bt * entropy_bt).sum()
        metrics[f"p_{pool}"] = (weight_bt * jnp.exp(logp_bt)).sum()
    return ce + ul_weight * ul, metrics
