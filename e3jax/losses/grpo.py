"""GRPO: advantages within a group, weights of tokens, and the clipped policy-gradient loss.

The loss of e3 (§5), E2C and their baselines, as their verl forks compute it (`core_algos.py`, `dp_actor.py`;
docs/algorithms.md, GRPO). Sums are over the response tokens, EOS included, of all samples of a mini-batch, with
r = exp(logp − old_logp):

    A    = (R − mean_group R) / (std_group R + ε)
    pg   = max(−A r, −A clip(r, 1 − clip_low, 1 + clip_high)),   for A < 0 at most −A·dual_clip
    loss = Σ weight · [pg + kl_coef · KL(logp, ref_logp) − entropy_coef · H]

`weight` is mask / global denominator, so that micro-batches add up to the batch exactly, and leaving out negative
gradients (GRPOMask, e3 App. G.3) only changes the weight. Other advantages are in losses/advantages.py, other terms in
the place of pg in losses/surrogates.py.

Usage: `loss, metrics = grpo_loss(logp, entropy, batch, GrpoLoss(clip_low=0.2, clip_high=0.5, dual_clip=3.0,
kl_coef=1e-3, kl_estimator="k3", entropy_coef=2e-3, tis_cap=None))`.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from e3jax.errors import UserError, need, need_choice
from e3jax.losses import surrogates
from e3jax.losses.surrogates import MAX_LOG_RATIO, log_ratio, near_the_sampler, sampler_weights
from e3jax.losses.tokens import AGGREGATIONS, token_denominator

MAX_K3 = 10.0  # verl's bound on the k3 estimate of one token
GRADIENTS = ("all", "positive", "negative", "no-eos")  # which tokens are trained: `token_weights`
DENOMINATORS = ("shrunken", "fixed")
KL_ESTIMATORS = ("k1", "k2", "k3")
TRUNCATED = ("train", "mask")  # responses that the budget cut: like all others, or left out
MATCHES = ("text", "token")  # how `closing` is recognised: train/closing.py
HELD = ("clip_low", "clip_high", "clip_dual")  # fractions of tokens that a surrogate's clip bounds
TIS_LEVELS = ("token", "sequence", "sequence_mean")  # losses/surrogates.py sampler_weights
TIS_MODES = ("truncate", "mask")


@dataclass(frozen=True)
class GrpoLoss:
    """The terms of `grpo_loss`: config.grpo.loss, or a stage's `loss`. Hashable: a static argument of compiled code."""

    clip_low: float  # the ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_high: float
    dual_clip: float | None  # bound on the ratio of a token with A < 0; None: off
    kl_coef: float
    kl_estimator: str  # "k1", "k2", "k3": `kl_penalty`
    entropy_coef: float
    tis_cap: float | None  # bound on a token's importance weight against the sampler; None: off
    surrogate: str = "ppo"  # a name of SURROGATES, or a function of your own as "module:function"
    delta: float | None = None  # "ppo": bound on the ratio of the unclipped branch; None: off
    tau_positive: float = 1.0  # "sapo": slope of the gate for A > 0
    tau_negative: float = 1.05  # … and for A <= 0
    tv_bound: float = 0.2  # "dppo_tv": a token leaves beyond this change of its probability
    cov_share: float = 2e-4  # "clip_cov", "kl_cov": share of a minibatch's tokens that are chosen
    cov_low: float = 1.0  # "clip_cov": they are drawn from covariances above this …
    cov_high: float = 5.0  # … and below this
    cov_kl_coef: float = 1.0  # "kl_cov": factor of their KL term
    tis_level: str = "token"
    tis_mode: str = "truncate"
    tis_floor: float | None = None  # lower bound of the weight; None: none
    off_policy_kl: float | None = None  # responses of A < 0 further from the sampler leave pg; None: off
    kl_corrected: bool = False  # KL times the ratio: unbiased under the current policy

    def __post_init__(self):
        need_choice(self, "kl_estimator", KL_ESTIMATORS)
        need_choice(self, "tis_level", TIS_LEVELS)
        need_choice(self, "tis_mode", TIS_MODES)
        for name, least in (("dual_clip", 1.0), ("tis_cap", 0.0), ("tis_floor", 0.0), ("delta", 1.0)):
            value = getattr(self, name)
            right = value is None or (isinstance(value, int | float) and value > least)
            need(right, name, value, f"use a number above {least:g}, or None for off")
        for name in ("tau_positive", "tau_negative", "tv_bound"):
            need(getattr(self, name) > 0, name, getattr(self, name), "must be above 0")
        need(0 < self.cov_share <= 1, "cov_share", self.cov_share, "use a share above 0, at most 1")
        need(self.cov_low < self.cov_high, "cov_low", self.cov_low, f"must be below cov_high={self.cov_high}")
        try:
            surrogate_of(self.surrogate)
        except UserError as error:
            need(False, "surrogate", self.surrogate, str(error))
        off = self.tis_cap is None
        allowed = "does nothing while tis_cap is None: set tis_cap, the weight's upper bound"
        need(not off or self.tis_level == "token", "tis_level", self.tis_level, allowed)
        need(not off or self.tis_mode == "truncate", "tis_mode", self.tis_mode, allowed)
        need(not off or self.tis_floor is None, "tis_floor", self.tis_floor, allowed)
        allowed = "surrogate='dppo_tv' has the ratio to the sampler already: the weight would count it twice, use None"
        need(off or self.surrogate != "dppo_tv", "tis_cap", self.tis_cap, allowed)


@dataclass(frozen=True)
class TokenWeights:
    """Which tokens are trained and how they are averaged: config.grpo.weights, for `token_weights`."""

    aggregation: str  # losses/tokens.py token_denominator
    gradients: str
    denominator: str
    closing: str  # what ends a thought, for gradients="no-eos" (train/closing.py)
    closing_match: str
    truncated: str = "train"  # responses that the budget cut; "mask": they leave the loss (losses/advantages.py)
    no_spread: str = "keep"  # groups without an advantage; "drop": they leave the loss

    def __post_init__(self):
        need_choice(self, "aggregation", AGGREGATIONS)
        need_choice(self, "gradients", GRADIENTS)
        need_choice(self, "denominator", DENOMINATORS)
        need_choice(self, "closing_match", MATCHES)
        need_choice(self, "truncated", TRUNCATED)
        need_choice(self, "no_spread", ("keep", "drop"))


def group_advantages(rewards_pg, *, normalize_std: bool, ddof: int, epsilon: float):
    """Return A = (R − mean R) / (std R + ε) within each row of `rewards_pg` [P, G], or R − mean R alone.

    DeepSeekMath §4.1. verl and e3 have ddof 1 and ε 1e-6, TRL ddof 1 and ε 1e-4; `normalize_std=False` is Dr. GRPO.
    A group of equal rewards gives exactly 0, not the rounding error of its mean over ε. Takes numpy and jax arrays
    and keeps the dtype of the rewards.

    >>> group_advantages(np.array([[1.0, 0.0]]), normalize_std=False, ddof=1, epsilon=1e-6)
    array([[ 0.5, -0.5]])
    """
    if rewards_pg.ndim != 2 or rewards_pg.shape[1] < 2:
        raise ValueError(
            f"rewards must be [P, G] with G >= 2, got {rewards_pg.shape}: "
            "a group of one has no baseline; sample more responses per prompt"
        )
    spread = rewards_pg.max(axis=1, keepdims=True) != rewards_pg.min(axis=1, keepdims=True)
    centred = (rewards_pg - rewards_pg.mean(axis=1, keepdims=True)) * spread
    if not normalize_std:
        return centred
    return centred / (rewards_pg.std(axis=1, ddof=ddof, keepdims=True) + epsilon)


def token_weights(
    mask_bt, *, aggregation, max_length, advantage_b=None, closing_bt=None, keep_b=None, gradients, denominator
):
    """Return `Batch.weight` [B, T] = mask / denominator, over the WHOLE mini-batch (`token_denominator`).

    `gradients` says which tokens keep their weight. The others leave pg, KL and entropy alike (docs/algorithms.md,
    GRPOMask and "No gradient on endings"):

        "all"       every token
        "positive"  sequences of `advantage_b` [B] > 0: e3's GRPOMask (App. G.3)
        "negative"  sequences of advantage < 0
        "no-eos"    all but the end of sequences of advantage < 0: nothing is pushed away from closing the thought.
                    `closing_bt` [B, T] is True from the first token that closes it ("</") onward

    `keep_b` [B] bool, where it is given, takes the weight from further responses (losses/advantages.py
    counted_responses).

    `denominator` says which tokens it counts:

        "shrunken"  those that keep their weight (App. G.3 and the code: a larger step)
        "fixed"     those of the full mask, as if the terms of the others were 0

    Where no token is left, or the mask is empty, weights are 0. Takes numpy and jax arrays.
    """
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator {denominator!r}: 'shrunken' or 'fixed'")
    if gradients not in GRADIENTS:
        raise ValueError(f"gradients {gradients!r}: one of {', '.join(map(repr, GRADIENTS))}")
    full = mask = mask_bt * 1.0
    if gradients != "all":
        if advantage_b is None:
            raise ValueError(f"gradients={gradients!r} needs advantage_b [B] to know which are positive")
        sign_b1 = advantage_b[:, None]
        if gradients == "no-eos":
            mask = full * (1 - closing_bt * (sign_b1 < 0))
        else:
            mask = full * (sign_b1 > 0 if gradients == "positive" else sign_b1 < 0)
    if keep_b is not None:
        mask = mask * keep_b[:, None]
    counted = mask if denominator == "shrunken" else full
    return mask / token_denominator(counted, aggregation=aggregation, max_length=max_length)


def kl_penalty(logp, ref_logp, *, estimator):
    """Estimate KL(π ‖ π_ref) at each sampled token, elementwise, from d = logp − ref_logp.

        "k1"  d                        "k2"  d²/2
        "k3"  e^q − q − 1, q = clip(−d, ±20), clipped to ±10      verl's low_var_kl; e3's choice

    Schulman, "Approximating KL divergence" (2020); the clips are those of verl's `core_algos.py`. As a loss on
    on-policy samples only k2 has the gradient of the reverse KL in expectation.
    """
    diff = logp - ref_logp
    if estimator == "k1":
        return diff
    if estimator == "k2":
        return 0.5 * diff**2
    if estimator == "k3":
        minus = jnp.clip(-diff, -MAX_LOG_RATIO, MAX_LOG_RATIO)
        return jnp.clip(jnp.expm1(minus) - minus, -MAX_K3, MAX_K3)
    raise ValueError(f"kl_estimator {estimator!r} is not 'k1', 'k2' or 'k3'")


def ppo(logp_bt, batch, loss: GrpoLoss):
    """Return PPO's clipped term, max(−A r, −A clip(r, 1 − clip_low, 1 + clip_high)), and the tokens that are bounded.

    `dual_clip` (verl's c; None = off, as in TRL) bounds the term of a token with A < 0 by −A·c, so that its gradient is
    zero once r > c. `delta` (TRL's) bounds r in the first branch instead.
    """
    advantage = batch.advantage
    ratio = jnp.exp(log_ratio(logp_bt, batch.old_logp))
    plain = -advantage * (ratio if loss.delta is None else jnp.minimum(ratio, loss.delta))
    clipped = -advantage * jnp.clip(ratio, 1 - loss.clip_low, 1 + loss.clip_high)
    single = jnp.maximum(plain, clipped)
    # −A·c for A < 0; it cannot bind for A >= 0, where pg <= 0.
    bound = jnp.inf if loss.dual_clip is None else jnp.abs(advantage) * loss.dual_clip
    low, high = (clipped > plain) & (ratio < 1), (clipped > plain) & (ratio > 1)
    return jnp.minimum(single, bound), {"clip_low": low, "clip_high": high, "clip_dual": single > bound}


SURROGATES = {  # name -> function (logp_bt, batch, loss) -> (pg_bt, what is bounded): losses/surrogates.py
    "ppo": ppo,
    "gspo": surrogates.gspo,
    "gmpo": surrogates.gmpo,
    "cispo": surrogates.cispo,
    "sapo": surrogates.sapo,
    "dppo_tv": surrogates.dppo_tv,
    "pg": surrogates.pg,
    "clip_cov": surrogates.clip_cov,
    "kl_cov": surrogates.kl_cov,
}


def surrogate_of(name: str) -> Callable:
    """Return a surrogate by its name in SURROGATES or as "module:function"; UserError where there is none."""
    if name in SURROGATES:
        return SURROGATES[name]
    module, colon, function = name.partition(":")
    names = f"use one of {', '.join(map(repr, SURROGATES))}, or a function of your own as 'module:function'"
    if not (module and colon and function):
        raise UserError(names)
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"cannot be imported ({error}): {names}") from error


def grpo_loss(logp_bt, entropy_bt, batch, loss: GrpoLoss):
    """Return loss (scalar) and metrics of one `types.Batch`: Σ weight·[pg + kl_coef·KL − entropy_coef·H].

    `logp_bt` and `entropy_bt` [B, T] are the current policy's, aligned with the tokens; logp − old is bounded to ±20.
    `loss.surrogate` says what pg is: `ppo`, or one of losses/surrogates.py. `tis_cap` (None = off) multiplies pg by the
    truncated importance weight of the sampler, min(exp(old_logp − rollout_logp), cap), detached (`sampler_weights`).

    Metrics are sums over `weight` too, so they add up over micro-batches like the loss: `pg`, `kl`, `entropy`,
    `ppo_kl` = old − logp, and the fractions `clip_low` and `clip_high` (PPO: the clipped branch is strictly larger;
    their sum is verl's pg_clipfrac) and `clip_dual` (its pg_clipfrac_lower).
    """
    pg, held = surrogate_of(loss.surrogate)(logp_bt, batch, loss)
    if loss.tis_cap is not None:
        pg = pg * sampler_weights(batch, loss)
    if loss.off_policy_kl is not None:
        pg = pg * near_the_sampler(logp_bt, batch, most=loss.off_policy_kl)
    kl = kl_penalty(logp_bt, batch.ref_logp, estimator=loss.kl_estimator)
    terms = {
        "pg": pg,
        "kl": kl * jnp.exp(log_ratio(logp_bt, batch.old_logp)) if loss.kl_corrected else kl,
        "entropy": entropy_bt,
        "ppo_kl": batch.old_logp - logp_bt,
    }
    terms |= {name: held[name] if name in held else jnp.zeros(pg.shape, bool) for name in HELD}
    metrics = {name: jnp.sum(batch.weight * term) for name, term in terms.items()}
    total = metrics["pg"]
    if loss.kl_coef:  # 0 · x would still be differentiated, which takes a tenth of an update's time for the entropy
        total += loss.kl_coef * metrics["kl"]
    if loss.entropy_coef:
        total -= loss.entropy_coef * metrics["entropy"]
    return total, metrics


def negative_mass(weight_bt, advantage_bt):
    """Return the share of Σ weight·|A| that comes from A < 0: how much of the update is negative gradient.

    A scalar in [0, 1]; 0 where no token has an advantage. It is a ratio of sums, which does not add up over
    micro-batches: compute it over the whole mini-batch.
    """
    mass = weight_bt * abs(advantage_bt)
    total = mass.sum()
    return (mass * (advantage_bt < 0)).sum() / (total + (total == 0))
