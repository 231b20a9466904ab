"""VESPO as a user would add it: a function in a file of one's own, named "tests.own_surrogate:vespo" in the config.

TRL's loss_type "vespo", with w = Π exp(logp − old) of a response: −sg(φ(w)) A logp, φ(w) = e^λ w^k e^(−λ w).
"""

import math

import jax
import jax.numpy as jnp

from e3jax.losses.surrogates import log_ratio, response_sum


def vespo(logp_bt, batch, loss):
    change = jnp.where(batch.weight != 0, log_ratio(logp_bt, batch.old_logp), 0.0)
    log_w = jnp.clip(response_sum(change, batch.segment), math.log(1e-8), 20.0)
    k, decay = (jnp.where(batch.advantage >= 0, *pair).astype(log_w.dtype) for pair in ((2.0, 3.0), (3.0, 2.0)))
    phi = jax.lax.stop_gradient(jnp.exp(decay + k * log_w - decay * jnp.exp(log_w)))
    return -phi * batch.advantage * logp_bt, {}
