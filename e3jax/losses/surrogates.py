"""Surrogates beside PPO's clip: from log-probs to every token's policy-gradient term (docs/algorithms.md, Rivals).

    pg_bt, held = gspo(logp_bt, batch, loss)

A surrogate is a pure function of the current log-probs [B, T], a `types.Batch` and the settings
(losses/grpo.py GrpoLoss). It returns the term of every token, and which tokens [B, T] its clip bounds, by the names
"clip_low", "clip_high" and "clip_dual"; a name that is missing is none of them. With r = exp(logp − old):

    "gspo"     max(−A s, −A clip(s, 1−εl, 1+εh)), s = exp(mean over the response of logp − old)
    "gmpo"     −A exp(mean over the response of min(d, clip(d, −εl, εh))), d = logp − old, for A < 0 the max
    "cispo"    −sg(clip(r, 1−εl, 1+εh)) A logp
    "sapo"     −A σ(τ (r − 1)) 4/τ, τ by the sign of A
    "dppo_tv"  −A exp(logp − μ), 0 where A > 0 and p − e^μ > δ, or A < 0 and p − e^μ < −δ; μ: the sampler's log-prob
    "pg"       −A logp
    "clip_cov" PPO's clip, 0 on some tokens of middling covariance of A and logp
    "kl_cov"   −A r, and + coefficient · |logp − old| on the tokens of the largest covariance

A ratio of a whole response is written as s = sg(s) · exp(logp − sg(logp)) at each of its tokens. Where a response's
tokens have one weight and one advantage, their sum has the value and the gradient of s; and a token may have an
advantage of its own (λ of E2C). Responses share rows (`batch.segment`); a mean is over one response's trained tokens
(weight ≠ 0).
"""

import jax
import jax.numpy as jnp
import numpy as np

MAX_LOG_RATIO = 20.0  # verl's bound on log-ratios before exp: e^20 is finite in float32
ROUNDING = 1e-4  # nats: of the same policy, two float32 programs differ by less
COVARIANCE = ("clip_cov", "kl_cov")  # surrogates for which `covariance_tokens` chooses tokens


def log_ratio(logp, old_logp):
    """Return logp − old_logp, bounded to ±20."""
    return jnp.clip(logp - old_logp, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def response_sum(x_bt, segment_bt):
    """Return at every token the sum of `x_bt` [B, T] over its segment, the same number at each; None: over its row.

    A segmented scan to the right, whose last value then goes to the left: no [T, T], no scatter, one order of adding.
    """
    if segment_bt is None:
        return jnp.broadcast_to(x_bt.sum(axis=1, keepdims=True), x_bt.shape)
    edge = jnp.ones_like(segment_bt[:, :1], bool)
    change = segment_bt[:, 1:] != segment_bt[:, :-1]
    first, last = jnp.concatenate([edge, change], axis=1), jnp.concatenate([change, edge], axis=1)

    def add(left, right):
        return left[0] | right[0], jnp.where(right[0], right[1], left[1] + right[1])

    def carry(left, right):
        return left[0] | right[0], jnp.where(right[0], right[1], left[1])

    running = jax.lax.associative_scan(add, (first, x_bt), axis=1)[1]
    return jax.lax.associative_scan(carry, (last, running), axis=1, reverse=True)[1]


def response_mean(x_bt, batch):
    """Return at every token the mean of `x_bt` [B, T] over the trained tokens of its response; 0 where it has none."""
    trained = batch.weight != 0
    total = response_sum(jnp.where(trained, x_bt, 0.0), batch.segment)
    return total / jnp.maximum(response_sum(trained.astype(x_bt.dtype), batch.segment), 1.0)


def shared(value_bt, x_bt):
    """Return `value_bt` with the gradient of `x_bt`: each token's own share of a number of its whole response."""
    return jax.lax.stop_gradient(value_bt) + (x_bt - jax.lax.stop_gradient(x_bt))


def clipped(ratio, advantage, loss):
    """Return PPO's pessimistic clip of a ratio, and the tokens that it bounds on either side."""
    plain, bounded = -advantage * ratio, -advantage * jnp.clip(ratio, 1 - loss.clip_low, 1 + loss.clip_high)
    held = bounded > plain
    return jnp.maximum(plain, bounded), {"clip_low": held & (ratio < 1), "clip_high": held & (ratio > 1)}


def gspo(logp_bt, batch, loss):
    """Return Group Sequence Policy Optimization (2507.18071): PPO's clip of the response's mean ratio."""
    change = log_ratio(logp_bt, batch.old_logp)
    return clipped(jnp.exp(shared(response_mean(change, batch), change)), batch.advantage, loss)


def gmpo(logp_bt, batch, loss):
    """Return Geometric-Mean Policy Optimization (2507.20673): log-ratios are clipped to [−clip_low, clip_high]."""
    change, sign = log_ratio(logp_bt, batch.old_logp), jnp.sign(batch.advantage)
    least = sign * jnp.minimum(sign * change, sign * jnp.clip(change, -loss.clip_low, loss.clip_high))
    ratio = jnp.exp(shared(response_mean(least, batch), least))
    low, high = (sign < 0) & (change < -loss.clip_low), (sign > 0) & (change > loss.clip_high)
    return -batch.advantage * ratio, {"clip_low": low, "clip_high": high}


def cispo(logp_bt, batch, loss):
    """Return the policy gradient times the clipped, detached ratio (2506.13585): no token loses its gradient."""
    ratio = jnp.exp(log_ratio(logp_bt, batch.old_logp))
    low, high = 1 - loss.clip_low, 1 + loss.clip_high
    weight = jax.lax.stop_gradient(jnp.clip(ratio, low, high))
    return -weight * batch.advantage * logp_bt, {"clip_low": ratio < low, "clip_high": ratio > high}


def sapo(logp_bt, batch, loss):
    """Return Soft Adaptive Policy Optimization: a sigmoid of the ratio, of slope 1 at ratio 1, in place of the clip."""
    ratio = jnp.exp(log_ratio(logp_bt, batch.old_logp))
    tau = jnp.where(batch.advantage > 0, loss.tau_positive, loss.tau_negative).astype(ratio.dtype)
    return -batch.advantage * jax.nn.sigmoid(tau * (ratio - 1)) * 4 / tau, {}


def dppo_tv(logp_bt, batch, loss):
    """Return DPPO with the binary total variation (2602.04879): a token leaves whose probability went too far.

    The ratio and the distance are to the sampler, as in prime-rl; its squared log-ratio is not part of this.
    """
    gap = jnp.exp(logp_bt) - jnp.exp(batch.rollout_logp)
    low = (batch.advantage < 0) & (gap < -loss.tv_bound)
    high = (batch.advantage > 0) & (gap > loss.tv_bound)
    pg = -batch.advantage * jnp.exp(log_ratio(logp_bt, batch.rollout_logp))
    return jnp.where(low | high, 0.0, pg), {"clip_low": low, "clip_high": high}


def pg(logp_bt, batch, loss):
    """Return the plain policy gradient −A logp, without ratio and clip (verl's gpg)."""
    return -batch.advantage * logp_bt, {}


def clip_cov(logp_bt, batch, loss):
    """Return Clip-Cov (2505.22617): PPO's clip, without the tokens that `covariance_tokens` chose."""
    term, held = clipped(jnp.exp(log_ratio(logp_bt, batch.old_logp)), batch.advantage, loss)
    return jnp.where(batch.chosen, 0.0, term), held


def kl_cov(logp_bt, batch, loss):
    """Return KL-Cov (2505.22617): −A r without a clip, and a KL term |logp − old| on the chosen tokens.

    Where |logp − old| is mere rounding, as before a step's first update, its slope of ±1 would be noise: it is 0 there.
    """
    change = log_ratio(logp_bt, batch.old_logp)
    away = batch.chosen & (jnp.abs(change) > ROUNDING)
    return -batch.advantage * jnp.exp(change) + jnp.where(away, loss.cov_kl_coef * jnp.abs(change), 0.0), {}


def covariance_tokens(logp, old_logp, advantage, loss, *, rng: np.random.Generator) -> np.ndarray:
    """Return which of a WHOLE minibatch's trained tokens [N] are chosen, bool, by (A − mean A)(logp − mean logp).

    `logp` are those of the policy that is about to be updated. `loss.cov_share` of the N tokens, at least one:

        "clip_cov"  drawn by `rng` from those with cov_low < covariance < cov_high which PPO's clip does not hold back
        "kl_cov"    those of the largest covariance
    """
    logp, old_logp, advantage = (np.asarray(x, np.float64) for x in (logp, old_logp, advantage))
    chosen = np.zeros(logp.shape, bool)
    if not len(logp):
        return chosen
    covariance = (advantage - advantage.mean()) * (logp - logp.mean())
    count = max(int(loss.cov_share * len(logp)), 1)
    if loss.surrogate == "kl_cov":
        chosen[np.argsort(-covariance, kind="stable")[:count]] = True
        return chosen
    ratio = np.exp(np.clip(logp - old_logp, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    held = -advantage * np.clip(ratio, 1 - loss.clip_low, 1 + loss.clip_high) > -advantage * ratio
    band = np.flatnonzero((loss.cov_low < covariance) & (covariance < loss.cov_high) & ~held)
    chosen[rng.permutation(band)[:count]] = True
    return chosen


def sampler_weights(batch, loss):
    """Return the importance weights of the old policy against the sampler [B, T], detached: exp(old − sampler's).

    `loss.tis_level`: of every token, or of the whole response, as the product of its tokens' ("sequence") or their
    geometric mean ("sequence_mean"). `loss.tis_mode`: "truncate" bounds it to [tis_floor, tis_cap], "mask" makes it 0
    outside (TRL's and verl's rejection).
    """
    mismatch = log_ratio(batch.old_logp, batch.rollout_logp)
    if loss.tis_level == "sequence":
        total = response_sum(jnp.where(batch.weight != 0, mismatch, 0.0), batch.segment)
        mismatch = jnp.clip(total, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    elif loss.tis_level == "sequence_mean":
        mismatch = response_mean(mismatch, batch)
    weight = jnp.exp(mismatch)
    if loss.tis_mode == "mask":
        floor = -jnp.inf if loss.tis_floor is None else loss.tis_floor
        weight = jnp.where((weight >= floor) & (weight <= loss.tis_cap), weight, 0.0)
    else:
        weight = jnp.minimum(weight, loss.tis_cap)
        weight = weight if loss.tis_floor is None else jnp.maximum(weight, loss.tis_floor)
    return jax.lax.stop_gradient(weight)


def near_the_sampler(logp_bt, batch, *, most: float):
    """Return 1 at the tokens that stay and 0 at those of A < 0 whose response went away, mean(μ − logp) > `most`.

    DeepSeek-V3.2's off-policy mask, as TRL has it; μ is the sampler's log-prob. Detached.
    """
    away = response_mean(batch.rollout_logp - jax.lax.stop_gradient(logp_bt), batch)
    return jnp.where((batch.advantage < 0) & (away > most), 0.0, 1.0)
