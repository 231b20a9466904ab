"""Losses, gradients, KL and advantages that verl and TRL themselves computed on ragged batches.

`golden/oracle.json` (12 samples, 3 prompts, 51 tokens, all log-probs given; golden/make_oracle.py made it from both
projects' packages) and, where it is, `../shared/data/oracle.json` (8 samples, 2 prompts, 33 tokens), float64, rtol
1e-6: verl divides by length + 1e-8 where we divide by the length, which is the largest difference.

Not expressible by e3jax's options, and so not tested here:
- verl KL "abs": |d|, offered by no config of the papers; "k3+": NotImplementedError in verl itself.
- verl's clip fractions under seq-mean-token-mean: verl averages them over tokens whatever the loss
  does, ours carry the loss's weights; compared where the loss is a token mean.
- TRL's clip_ratio low_min / high_max: extremes over sequences do not add up over micro-batches.
RLOO is a constant factor G/(G − 1) on R − mean, so it is a learning rate; the factor is checked.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3jax.losses.grpo import GrpoLoss, group_advantages, grpo_loss, kl_penalty, token_weights
from e3jax.types import Batch

PATHS = {
    "golden": Path(__file__).parent / "golden/oracle.json",
    "shared": Path(__file__).resolve().parents[2] / "shared/data/oracle.json",
}
RTOL = 1e-6


@pytest.fixture(scope="module", params=PATHS)
def oracle(request):
    path = PATHS[request.param]
    if request.param == "shared" and not path.exists():
        pytest.skip(f"{path} is absent: more of verl's and TRL's own numbers, on another batch")
    return json.loads(path.read_text())


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def loss_gradient_metrics(oracle, aggregation, options, *, max_length=None):
    inputs = {name: np.asarray(values) for name, values in oracle["inputs"].items()}
    mask = inputs["mask"]
    advantage = np.asarray(oracle["advantages"]["verl_grpo"])  # both projects were fed these
    batch = Batch(
        tokens=np.zeros(mask.shape, np.int32),
        position=None,
        segment=None,
        weight=token_weights(
            mask, aggregation=aggregation, max_length=max_length, gradients="all", denominator="fixed"
        ),
        advantage=np.broadcast_to(advantage[:, None], mask.shape),
        old_logp=inputs["old_logprob"],
        ref_logp=inputs["ref_logprob"],
        rollout_logp=inputs["rollout_logprob"],
    )
    options = {"kl_coef": 0.0, "kl_estimator": "k3", "entropy_coef": 0.0, **options}

    @jax.jit
    def value_and_gradient(logp):
        return jax.value_and_grad(lambda logp: grpo_loss(logp, 0 * logp, batch, GrpoLoss(**options)), has_aux=True)(
            logp
        )

    (loss, metrics), grad = value_and_gradient(inputs["logprob"])
    assert loss.dtype == jnp.float64
    return loss, grad, metrics


def check(got, want):
    loss, grad, _ = got
    np.testing.assert_allclose(loss, want["loss"], rtol=RTOL)
    np.testing.assert_allclose(grad, want["grad"], rtol=RTOL, atol=1e-12)  # atol: the exact zeros


def clip(low, high, dual, tis=None):
    return {"clip_low": low, "clip_high": high, "dual_clip": dual, "tis_cap": tis}


@pytest.mark.parametrize(
    ("entry", "aggregation", "options"),
    [
        ("vanilla|token-mean|clip0.2/0.2|c3", "token_mean", clip(0.2, 0.2, 3.0)),
        ("vanilla|seq-mean-token-mean|clip0.2/0.2|c3", "sequence_mean", clip(0.2, 0.2, 3.0)),
        ("vanilla|token-mean|clip0.2/0.28|c10 (DAPO)", "token_mean", clip(0.2, 0.28, 10.0)),
        ("vanilla|token-mean|clip0.2/0.28|c3|token TIS cap 2", "token_mean", clip(0.2, 0.28, 3.0, tis=2.0)),
    ],
)
def test_verl(oracle, entry, aggregation, options):
    """Guards the clip sides, the dual clip's branch, the denominator and the TIS order (the weight
    multiplies the clipped loss; it does not enter the ratio). Gradient included: a wrong branch
    can have the right value."""
    want = oracle["verl"][entry]
    got = loss_gradient_metrics(oracle, aggregation, options)
    check(got, want)
    if aggregation == "token_mean":
        metrics, theirs = got[2], want["metrics"]
        np.testing.assert_allclose(metrics["clip_low"] + metrics["clip_high"], theirs["actor/pg_clipfrac"], rtol=RTOL)
        np.testing.assert_allclose(metrics["clip_dual"], theirs["actor/pg_clipfrac_lower"], rtol=RTOL)
        np.testing.assert_allclose(metrics["ppo_kl"], theirs["actor/ppo_kl"], rtol=RTOL)


@pytest.mark.parametrize(
    ("entry", "aggregation", "max_length", "kl_coef"),
    [
        ("grpo|token|eps0.2/0.2", "sequence_mean", None, 0.0),
        # Both entries were made with max_completion_length 10: of the shared one the gradients are dapo's · 33/80, and
        # 33 is the token count, so B · max_length = 80 with B = 8. (T is 6, TRL's default 512.)
        ("dr_grpo|token|eps0.2/0.2", "dr_grpo", 10, 0.0),
        ("dapo|token|eps0.2/0.2", "token_mean", None, 0.0),
        ("dapo|beta0.04 k3", "token_mean", None, 0.04),
    ],
)
def test_trl(oracle, entry, aggregation, max_length, kl_coef):
    """Guards the loss without a dual clip (TRL has none) and the KL's place inside the mean."""
    want = oracle["trl"][entry]
    options = clip(0.2, 0.2, None) | {"kl_coef": kl_coef}
    got = loss_gradient_metrics(oracle, aggregation, options, max_length=max_length)
    check(got, want)
    if aggregation == "token_mean":
        metrics, theirs = got[2], want["metrics"]
        np.testing.assert_allclose(metrics["clip_low"], theirs["clip_ratio/low_mean"], rtol=RTOL)
        np.testing.assert_allclose(metrics["clip_high"], theirs["clip_ratio/high_mean"], rtol=RTOL)
        if kl_coef:
            np.testing.assert_allclose(metrics["kl"], theirs["kl"], rtol=RTOL)


@pytest.mark.parametrize(
    ("row", "normalize_std", "epsilon", "factor"),
    [
        ("verl_grpo", True, 1e-6, 1.0),
        ("trl_group (formula)", True, 1e-4, 1.0),
        ("verl_grpo_no_std (dr_grpo)", False, 1e-6, 1.0),
        ("verl_rloo", False, 1e-6, 4 / 3),  # G / (G − 1), G = 4
    ],
)
def test_advantages(oracle, row, normalize_std, epsilon, factor):
    """Guards ddof (population std would be 13 % off at G = 4) and the place of ε."""
    rewards = np.asarray(oracle["inputs"]["reward"]).reshape(-1, 4)
    assert oracle["inputs"]["group"] == np.repeat(np.arange(len(rewards)), 4).tolist()
    got = group_advantages(rewards, normalize_std=normalize_std, ddof=1, epsilon=epsilon)
    np.testing.assert_allclose(factor * got.reshape(-1), oracle["advantages"][row], rtol=RTOL)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl(oracle, estimator):
    """Guards the direction of the difference: k3 of (logp − ref) instead of (ref − logp) is also
    non-negative and also small."""
    want = oracle["kl"][estimator]
    logp, ref_logp, mask = (np.asarray(oracle["inputs"][name]) for name in ("logprob", "ref_logprob", "mask"))
    per_token = mask * kl_penalty(logp, ref_logp, estimator=estimator)
    np.testing.assert_allclose(per_token, want["per_token"], rtol=RTOL, atol=1e-12)

    def token_mean(logp):
        return (mask * kl_penalty(logp, ref_logp, estimator=estimator)).sum() / mask.sum()

    value, grad = jax.value_and_grad(token_mean)(logp)
    np.testing.assert_allclose(value, want["token_mean"], rtol=RTOL)
    np.testing.assert_allclose(grad, want["grad"], rtol=RTOL, atol=1e-12)
