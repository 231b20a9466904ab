"""Losses, gradients, KL and advantages that verl and TRL themselves computed on ragged batches.

`golden/oracle.json` (12 samples, 3 prompts, 51 tokens, all log-probs given; golden/make_oracle.py made it from both
projects' packages) and, where it is, `../shared/data/oracle_surrogates.json` (8 samples, 2 prompts, 33 tokens),
float64, rtol 1e-6: verl divides by length + 1e-8 where we divide by the length, which is the largest difference.

Not expressible by e3jax's options, and so not tested here:
- verl KL "abs": |d|, offered by no config of the papers; "k3+": NotImplementedError in verl itself.
- verl's seq-mean-token-sum and seq-mean-token-sum-norm are no aggregations of ours: they are "dr_grpo" with another
  constant, 1 and T / #sequences in the place of the budget, which is a learning rate; checked with these.
- verl's clip fractions under seq-mean-token-mean: verl averages them over tokens whatever the loss does, ours carry the
  loss's weights; compared where the loss is a token mean, for PPO (others count other tokens as clipped).
- TRL's clip_ratio low_min / high_max: extremes over sequences do not add up over micro-batches.
- TRL's VESPO is no surrogate of ours: it is tests/own_surrogate.py, the example of a user's own.
- verl's Clip-Cov draws its tokens from a generator of its own: compared where all of the band is taken.
`test_every_entry_is_tested` fails for an entry that is neither in a table below nor in LEFT_OUT.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3jax.losses.advantages import Advantage, response_advantages
from e3jax.losses.grpo import GrpoLoss, group_advantages, grpo_loss, kl_penalty, token_weights
from e3jax.losses.surrogates import covariance_tokens
from e3jax.types import Batch

PATHS = {
    "golden": Path(__file__).parent / "golden/oracle.json",
    "shared": Path(__file__).resolve().parents[2] / "shared/data/oracle_surrogates.json",
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
    if "cov_share" in options:
        chosen, trained = np.zeros(mask.shape, bool), mask > 0
        of = (x[trained] for x in (inputs["logprob"], batch.old_logp, batch.advantage))
        chosen[trained] = covariance_tokens(*of, GrpoLoss(**options), rng=np.random.default_rng(0))
        batch = batch.replace(chosen=chosen)

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


PPO_OF_VERL = [
    ("vanilla|token-mean|clip0.2/0.2|c3", "token_mean", clip(0.2, 0.2, 3.0)),
    ("vanilla|seq-mean-token-mean|clip0.2/0.2|c3", "sequence_mean", clip(0.2, 0.2, 3.0)),
    ("vanilla|token-mean|clip0.2/0.28|c10 (DAPO)", "token_mean", clip(0.2, 0.28, 10.0)),
    ("vanilla|token-mean|clip0.2/0.28|c3|token TIS cap 2", "token_mean", clip(0.2, 0.28, 3.0, tis=2.0)),
]


@pytest.mark.parametrize(("entry", "aggregation", "options"), PPO_OF_VERL)
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


PPO_OF_TRL = [
    ("grpo|token|eps0.2/0.2", "sequence_mean", None, 0.0),
    # Both entries were made with max_completion_length 10: of the shared one the gradients are dapo's · 33/80, and
    # 33 is the token count, so B · max_length = 80 with B = 8. (T is 6, TRL's default 512.)
    ("dr_grpo|token|eps0.2/0.2", "dr_grpo", 10, 0.0),
    ("dapo|token|eps0.2/0.2", "token_mean", None, 0.0),
    ("dapo|beta0.04 k3", "token_mean", None, 0.04),
]


@pytest.mark.parametrize(("entry", "aggregation", "max_length", "kl_coef"), PPO_OF_TRL)
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


DPPO = "dppo_tv|delta.2"


def test_dppo(oracle):
    """verl's value is −A sg(p/μ) log p, ours −A p/μ, and the gradients are equal; μ is old there, the sampler here."""
    key = DPPO
    if key not in oracle["verl"]:
        return
    moved = oracle | {"inputs": oracle["inputs"] | {"rollout_logprob": oracle["inputs"]["old_logprob"]}}
    _, grad, metrics = loss_gradient_metrics(moved, "token_mean", clip(0.2, 0.2, None) | {"surrogate": "dppo_tv"})
    want, inputs = oracle["verl"][key], {name: np.asarray(x) for name, x in oracle["inputs"].items()}
    np.testing.assert_allclose(grad, want["grad"], rtol=RTOL, atol=1e-12)
    # verl counts tokens of A = 0 among those of A < 0; they have no gradient either way
    gap, none = np.exp(inputs["logprob"]) - np.exp(inputs["old_logprob"]), np.asarray(oracle["advantages"]["verl_grpo"])
    without = ((none[:, None] == 0) & (gap < -0.2) & (inputs["mask"] > 0)).sum() / inputs["mask"].sum()
    held = metrics["clip_low"] + metrics["clip_high"] + without
    np.testing.assert_allclose(held, want["metrics"]["actor/pg_clipfrac"], rtol=RTOL)


SEQUENCE = {"tis_cap": 1.5, "tis_level": "sequence", "tis_mode": "mask"}
COVARIANCE = {"cov_share": 1.0, "cov_low": 0.1, "cov_high": 0.6}


RIVALS = [
    ("verl: vanilla|seq-mean-token-sum|clip0.2/0.2|c3", "token_sum", clip(0.2, 0.2, 3.0)),
    ("verl: vanilla|seq-mean-token-sum-norm|clip0.2/0.2|c3", "token_sum_norm", clip(0.2, 0.2, 3.0)),
    ("verl: gspo|clip3e-4/4e-4", "sequence_mean", clip(3e-4, 4e-4, None) | {"surrogate": "gspo"}),
    ("verl: gspo|clip0.2/0.2", "sequence_mean", clip(0.2, 0.2, None) | {"surrogate": "gspo"}),
    ("verl: cispo|token-mean|clip0.2/0.28", "token_mean", clip(0.2, 0.28, None) | {"surrogate": "cispo"}),
    ("verl: sapo|tau1.0/1.05", "sequence_mean", clip(0.2, 0.2, None) | {"surrogate": "sapo"}),
    ("verl: gpg|token-mean", "token_mean", clip(0.2, 0.2, None) | {"surrogate": "pg"}),
    ("verl: geo_mean|clip0.4/0.4", "sequence_mean", clip(0.4, 0.4, None) | {"surrogate": "gmpo"}),
    ("verl: clip_cov|all of .1...6", "token_mean", clip(0.2, 0.2, None) | {"surrogate": "clip_cov"} | COVARIANCE),
    ("verl: kl_cov|share .2", "token_mean", clip(0.2, 0.2, None) | {"surrogate": "kl_cov", "cov_share": 0.2}),
    ("trl: bnpo|token|eps0.2/0.2", "token_mean", clip(0.2, 0.2, None)),
    ("trl: dapo|token|eps0.2/0.28|delta4", "token_mean", clip(0.2, 0.28, None) | {"delta": 4.0}),
    ("trl: grpo|sequence (GSPO)|eps0.2/0.2", "sequence_mean", clip(0.2, 0.2, None) | {"surrogate": "gspo"}),
    ("trl: grpo|sequence (GSPO)|eps3e-4/4e-4", "sequence_mean", clip(3e-4, 4e-4, None) | {"surrogate": "gspo"}),
    ("trl: cispo|eps_max5", "token_mean", clip(1.0, 4.0, None) | {"surrogate": "cispo"}),
    ("trl: sapo", "sequence_mean", clip(0.2, 0.2, None) | {"surrogate": "sapo"}),
    ("trl: vespo", "token_mean", clip(0.2, 0.2, None) | {"surrogate": "tests.own_surrogate:vespo"}),
    (
        "trl: dapo|beta0.04 k3 bias-corrected",
        "token_mean",
        clip(0.2, 0.2, None) | {"kl_coef": 0.04, "kl_corrected": True},
    ),
    ("trl: dapo|IS token_truncate max1.3", "token_mean", clip(0.2, 0.2, None, tis=1.3)),
    (
        "trl: dapo|IS token_mask 0.7..1.3",
        "token_mean",
        clip(0.2, 0.2, None, tis=1.3) | {"tis_floor": 0.7, "tis_mode": "mask"},
    ),
    ("trl: dapo|IS sequence_mask max1.5", "token_mean", clip(0.2, 0.2, None) | SEQUENCE),
    ("trl: dapo|off_policy_mask 0.05", "token_mean", clip(0.2, 0.2, None) | {"off_policy_kl": 0.05}),
]


@pytest.mark.parametrize(("entry", "aggregation", "options"), RIVALS)
def test_rivals(oracle, entry, aggregation, options):
    """Every surrogate, weight and mask of the oracle, in value and gradient."""
    project, _, key = entry.partition(": ")
    if key not in oracle[project]:
        assert "_cov" in key  # the golden one alone has these
        return
    rows, width = np.shape(oracle["inputs"]["mask"])
    newer = DPPO in oracle["verl"]  # 0.9.1, which divides this mean by the rows too
    constants = {"token_sum": 1, "token_sum_norm": width if newer else width / rows}
    max_length = constants[aggregation] if aggregation in constants else None
    aggregation = "dr_grpo" if max_length else aggregation
    got = loss_gradient_metrics(oracle, aggregation, options, max_length=max_length)
    check(got, oracle[project][key])
    if "kl" in oracle[project][key]["metrics"]:
        np.testing.assert_allclose(got[2]["kl"], oracle[project][key]["metrics"]["kl"], rtol=RTOL)


ADVANTAGES = [
    ("verl_grpo", {}),
    ("verl_grpo_no_std (dr_grpo)", {"normalize_std": False}),
    ("verl_rloo", {"kind": "rloo"}),
    ("verl_opo", {"kind": "opo"}),
    ("verl_grpo_passk", {"kind": "best_minus_second"}),
    ("verl_reinforce_plus_plus_baseline", {"kind": "reinforce_pp"}),
    ("trl_group (formula)", {"epsilon": 1e-4}),
    ("trl_batch (formula)", {"kind": "batch_std", "epsilon": 1e-4}),
]


@pytest.mark.parametrize(("row", "changes"), ADVANTAGES)
def test_advantages_of_rivals(oracle, row, changes):
    """Every advantage of the oracle, with the lengths of its mask."""
    settings = dict(normalize_std=True, ddof=1, epsilon=1e-6, kind="group", k=2, positive=1.0, negative=1.0)
    settings |= dict(truncated="train", keep=0, keep_by="shortest") | changes
    reward, length = (np.reshape(x, (-1, 4)) for x in (oracle["inputs"]["reward"], np.sum(oracle["inputs"]["mask"], 1)))
    got = response_advantages(reward, length, np.ones(reward.shape, bool), Advantage(**settings))
    np.testing.assert_allclose(got.reshape(-1), oracle["advantages"][row], rtol=RTOL, atol=1e-12)


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


KL = ["k1", "k2", "k3"]


@pytest.mark.parametrize("estimator", KL)
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


LEFT_OUT = {  # why
    ("kl", "abs"): "|d| is offered by no config of the papers",
    ("kl", "k3+"): "NotImplementedError in verl itself",
}


def test_every_entry_is_tested(oracle):
    """An entry that somebody adds to an oracle, and no test reads, would look like one that ours equals."""
    tested = {("verl", entry) for entry, *_ in PPO_OF_VERL} | {("trl", entry) for entry, *_ in PPO_OF_TRL}
    tested |= {tuple(entry.split(": ", 1)) for entry, *_ in RIVALS} | {("verl", DPPO)} | {("kl", name) for name in KL}
    tested |= {("advantages", row) for row, _ in ADVANTAGES}
    entries = {(part, name) for part in ("verl", "trl", "kl", "advantages") for name in oracle[part]}
    assert set(oracle) - {"inputs", "versions", "made_by"} == {part for part, _ in entries}
    assert not tested & set(LEFT_OUT) and entries <= tested | set(LEFT_OUT), entries - tested - set(LEFT_OUT)
