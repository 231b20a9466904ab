"""GRPO against an example worked out by hand, and the invariances that the training loop needs.

The example: 2 prompts × 3 samples, rewards (1, 0, 0) and (1, 1, 0). With s = 1/√3 the std (ddof 1)
of both groups is s, so at ε = 0 the advantages are (2s, −s, −s) and (s, s, −2s). Clips 0.2 / 0.28,
dual clip 3. Per token, in units of s, max(−A r, −A clip r) and the derivative by logp:

    row  A    r     −A r    −A clip(r)          pg      d pg / d logp
    0    +2   1.5   −3.0    −2 · 1.28 = −2.56   −2.56    0     clip_high
    0    +2   0.5   −1.0    −2 · 0.80 = −1.60   −1.00   −1     (clip does not bind: max)
    1    −1   0.5    0.5     1 · 0.80 =  0.80    0.80    0     clip_low
    1    −1   4.0    4.0     1 · 1.28 =  1.28    3.00    0     clip_dual: 4 > 1 · 3
    2    −1   1.1    1.1     1.1                 1.10    1.1
    3    +1   1.0   −1.0    −1.0                −1.00   −1
    4    +1   0.9   −0.9    −0.9                −0.90   −0.9
    5    −2   2.0    4.0     2 · 1.28 =  2.56    4.00    4     (bound is 2 · 3 = 6)

Σ pg = 3.44 over 8 tokens; per-sequence means −1.78, 1.9, 1.1, −1, −0.9, 4 sum to 3.32.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3jax.losses.grpo import GrpoLoss, group_advantages, grpo_loss, kl_penalty, negative_mass, token_weights
from e3jax.types import Batch

S = 1 / np.sqrt(3)
REWARDS = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
MASK = np.array([[0, 1, 1], [0, 1, 1], [0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]])
RATIO = np.array([[7, 1.5, 0.5], [7, 0.5, 4], [7, 1.1, 7], [7, 1, 7], [7, 0.9, 7], [7, 2, 7]])
PG = S * np.array([[0, -2.56, -1], [0, 0.8, 3], [0, 1.1, 0], [0, -1, 0], [0, -0.9, 0], [0, 4, 0]])
DPG = S * np.array([[0, 0, -1], [0, 0, 0], [0, 1.1, 0], [0, -1, 0], [0, -0.9, 0], [0, 4, 0]])

CLIPS = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0, "tis_cap": None}
PG_ONLY = {**CLIPS, "kl_coef": 0.0, "kl_estimator": "k3", "entropy_coef": 0.0}
ALL_TERMS = {**CLIPS, "kl_coef": 0.1, "kl_estimator": "k2", "entropy_coef": 0.01}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def weights(mask, **overrides):
    options = {"aggregation": "token_mean", "max_length": None, "gradients": "all", "denominator": "shrunken"}
    return token_weights(mask, **{**options, **overrides})


def hand_example(**overrides):
    """(logp, entropy, batch) of the table; masked entries hold ratio 7, reference and sampler are
    at a distance 1 and ln 1.5 from it."""
    advantage = group_advantages(REWARDS, normalize_std=True, ddof=1, epsilon=0.0).reshape(-1)
    logp = -2.0 + np.arange(18).reshape(6, 3) / 10
    old_logp = logp - np.log(RATIO)
    batch = Batch(
        tokens=np.zeros(MASK.shape, np.int32),
        position=None,
        segment=None,
        weight=weights(MASK, **overrides),
        advantage=np.broadcast_to(advantage[:, None], MASK.shape),
        old_logp=old_logp,
        ref_logp=logp - 1.0,
        rollout_logp=old_logp - np.log(1.5),
    )
    return logp, np.full(MASK.shape, 2.0), batch


def random_example(rng, rows=8, length=6):
    """A ragged batch in which every branch of the loss occurs."""
    start = rng.integers(1, 3, size=(rows, 1))
    stop = rng.integers(4, length + 1, size=(rows, 1))
    position = np.arange(length)[None, :]
    mask = (position >= start) & (position < stop)
    logp = rng.normal(-2.0, 0.5, size=(rows, length))
    near = [logp + rng.normal(0, 0.5, logp.shape) for _ in range(3)]
    batch = Batch(
        tokens=np.zeros(mask.shape, np.int32),
        position=None,
        segment=None,
        weight=weights(mask),
        advantage=rng.normal(size=(rows, 1)) * np.ones((1, length)),
        old_logp=near[0],
        ref_logp=near[1],
        rollout_logp=near[2],
    )
    return logp, rng.uniform(0, 2, logp.shape), batch, mask


@partial(jax.jit, static_argnames=tuple(ALL_TERMS))
def jitted(logp, entropy, batch, **options):
    def loss(logp, entropy):
        return grpo_loss(logp, entropy, batch, GrpoLoss(**options))

    (value, metrics), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(logp, entropy)
    return value, metrics, grads


def value_gradient(logp, entropy, batch, options):
    return jitted(logp, entropy, batch, **options)


def assert_trees_close(got, want, **tolerance):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, **tolerance), got, want)


@pytest.mark.parametrize(
    ("aggregation", "max_length", "loss", "per_token"),
    [
        ("token_mean", None, 3.44 * S / 8, np.full((6, 1), 1 / 8)),
        ("sequence_mean", None, 3.32 * S / 6, np.array([[1 / 12], [1 / 12], [1 / 6], [1 / 6], [1 / 6], [1 / 6]])),
        ("dr_grpo", 10, 3.44 * S / 60, np.full((6, 1), 1 / 60)),
    ],
)
def test_hand_example(aggregation, max_length, loss, per_token):
    """Guards every branch of the loss at once, in value and gradient, under each denominator."""
    logp, entropy, batch = hand_example(aggregation=aggregation, max_length=max_length)
    value, metrics, (grad, _) = value_gradient(logp, entropy, batch, PG_ONLY)
    np.testing.assert_allclose(value, loss, rtol=1e-12)
    np.testing.assert_allclose(metrics["pg"], loss, rtol=1e-12)
    np.testing.assert_allclose(grad, DPG * per_token, rtol=1e-12, atol=1e-15)
    if aggregation == "token_mean":
        fractions = [metrics[name] for name in ("clip_low", "clip_high", "clip_dual")]
        np.testing.assert_allclose(fractions, [1 / 8, 1 / 8, 1 / 8], rtol=1e-12)
        product = 1.5 * 0.5 * 0.5 * 4 * 1.1 * 1 * 0.9 * 2  # ppo_kl = −mean ln r
        np.testing.assert_allclose(metrics["ppo_kl"], -np.log(product) / 8, rtol=1e-12)


def test_without_dual_clip_the_ratio_4_token_counts_in_full():
    """Guards `dual_clip=None`: pg of the ratio-4 token is 4 and not 3, with gradient 4 (in s)."""
    logp, entropy, batch = hand_example()
    value, metrics, (grad, _) = value_gradient(logp, entropy, batch, {**PG_ONLY, "dual_clip": None})
    np.testing.assert_allclose(value, (3.44 + 1) * S / 8, rtol=1e-12)
    np.testing.assert_allclose(grad[1, 2], 4 * S / 8, rtol=1e-12)
    assert metrics["clip_dual"] == 0


@pytest.mark.parametrize(
    ("estimator", "kl", "slope"), [("k1", 1.0, 1.0), ("k2", 0.5, 1.0), ("k3", np.exp(-1.0), 1 - np.exp(-1.0))]
)
def test_kl_and_entropy_terms(estimator, kl, slope):
    """Guards signs: logp − ref = 1 and H = 2 on all tokens, so the loss is pg + 0.1·KL − 0.01·2;
    d k3/d logp = 1 − e^(ref − logp); the entropy's gradient is −0.01·weight (a bonus)."""
    logp, entropy, batch = hand_example()
    options = {**ALL_TERMS, "kl_estimator": estimator}
    value, metrics, (grad, grad_entropy) = value_gradient(logp, entropy, batch, options)
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-12)
    np.testing.assert_allclose(metrics["entropy"], 2.0, rtol=1e-12)
    np.testing.assert_allclose(value, 3.44 * S / 8 + 0.1 * kl - 0.02, rtol=1e-12)
    np.testing.assert_allclose(grad, (DPG + 0.1 * slope * MASK) / 8, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(grad_entropy, -0.01 * MASK / 8, rtol=1e-12)


@pytest.mark.parametrize(("cap", "factor"), [(2.0, 1.5), (1.2, 1.2)])
def test_importance_weight_is_capped_and_detached(cap, factor):
    """Guards exp(old − rollout) (its inverse is 2/3 here) and that it multiplies pg alone."""
    logp, entropy, batch = hand_example()
    options = {**PG_ONLY, "tis_cap": cap}
    value, _, (grad, _) = value_gradient(logp, entropy, batch, options)
    np.testing.assert_allclose(value, factor * 3.44 * S / 8, rtol=1e-12)
    np.testing.assert_allclose(grad, factor * DPG / 8, rtol=1e-9, atol=1e-15)

    @jax.jit
    @jax.grad
    def by_old(old_logp):  # ratio fixed: what is left of d/d old is the weight's own gradient
        moved = batch.replace(old_logp=old_logp)
        return grpo_loss(logp + old_logp - batch.old_logp, entropy, moved, GrpoLoss(**options))[0]

    np.testing.assert_allclose(by_old(batch.old_logp), 0.0, atol=1e-15)


def test_ratio_one_is_reinforce():
    """Guards the clip and max at r = 1, where both branches tie: the gradient by the logits of a
    softmax policy is −Σ w·A·(onehot − π), not half of it."""
    rng = np.random.default_rng(2)
    _, _, batch, mask = random_example(rng)
    logits = rng.normal(size=(*mask.shape, 4))  # [B, T, V]
    onehot = np.eye(4)[rng.integers(4, size=mask.shape)]

    @jax.jit
    @jax.grad
    def gradient(logits):
        logp = (jax.nn.log_softmax(logits) * onehot).sum(-1)
        on_policy = batch.replace(old_logp=jax.lax.stop_gradient(logp))
        return grpo_loss(logp, 0 * logp, on_policy, GrpoLoss(**PG_ONLY))[0]

    policy = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    want = -(batch.weight * batch.advantage)[:, :, None] * (onehot - policy)
    np.testing.assert_allclose(gradient(logits), want, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "dr_grpo"])
def test_padding_changes_nothing(aggregation):
    """Guards means over padding: two more columns and a padding row, full of numbers that would
    show (lmpo averages over them: answers then depend on the longest neighbour)."""
    rng = np.random.default_rng(3)
    logp, entropy, batch, mask = random_example(rng)
    options = {"aggregation": aggregation, "max_length": 16}

    def pad(x):
        return np.pad(x, ((0, 1), (0, 2)), constant_values=3)

    padded_mask = np.pad(mask, ((0, 1), (0, 2)))
    padded = jax.tree.map(pad, batch).replace(weight=weights(padded_mask, **options))
    batch = batch.replace(weight=weights(mask, **options))
    want = value_gradient(logp, entropy, batch, ALL_TERMS)
    value, metrics, grads = value_gradient(pad(logp), pad(entropy), padded, ALL_TERMS)
    assert_trees_close((value, metrics), want[:2], rtol=1e-12)
    for grad, wanted in zip(grads, want[2]):
        np.testing.assert_allclose(grad[:-1, :-2], wanted, rtol=1e-12)
        assert not grad[-1].any() and not grad[:, -2:].any()


def test_order_within_a_group_changes_nothing():
    """Guards group bookkeeping: shuffled samples carry their advantages with them (Search-R1
    issue 88 mixed group indices and trained on noise)."""
    order = np.array([[2, 0, 1], [1, 2, 0]])
    advantages = [
        group_advantages(r, normalize_std=True, ddof=1, epsilon=1e-6)
        for r in (REWARDS, np.take_along_axis(REWARDS, order, axis=1))
    ]
    np.testing.assert_array_equal(advantages[1], np.take_along_axis(advantages[0], order, axis=1))
    rows = (order + np.array([[0], [3]])).reshape(-1)
    logp, entropy, batch = hand_example()
    shuffled = jax.tree.map(lambda x: x[rows], batch).replace(
        weight=weights(MASK[rows]), advantage=np.broadcast_to(advantages[1].reshape(-1)[:, None], MASK.shape)
    )
    batch = batch.replace(advantage=np.broadcast_to(advantages[0].reshape(-1)[:, None], MASK.shape))
    want, want_metrics, (want_grad, _) = value_gradient(logp, entropy, batch, ALL_TERMS)
    got, metrics, (grad, _) = value_gradient(logp[rows], entropy[rows], shuffled, ALL_TERMS)
    assert_trees_close((got, metrics), (want, want_metrics), rtol=1e-12)
    np.testing.assert_allclose(grad, want_grad[rows], rtol=1e-12)


def test_all_equal_group_has_exactly_zero_gradient():
    """Guards rounding: in float64 the mean of three 0.1 is not 0.1, and the error over
    (std + 1e-6) is a small advantage on a group that says nothing. Exactly 0, on both libraries."""
    rewards = np.array([[0.1, 0.1, 0.1], [0.0, 0.0, 0.0]])
    assert rewards[0].mean() != 0.1
    for library in (np, jnp):
        for normalize_std in (True, False):
            advantage = group_advantages(library.asarray(rewards), normalize_std=normalize_std, ddof=1, epsilon=1e-6)
            assert not advantage.any()
    logp, entropy, batch = hand_example()
    batch = batch.replace(advantage=np.broadcast_to(np.reshape(advantage, (-1, 1)), MASK.shape))
    _, metrics, (grad, _) = value_gradient(logp, entropy, batch, PG_ONLY)
    assert not grad.any()
    assert metrics["clip_low"] == metrics["clip_high"] == metrics["clip_dual"] == 0


def test_micro_batches_add_up_to_the_batch():
    """Guards the micro-batch bug (verl issues 5625, 7321). Rows 0–2 hold 5 tokens with
    Σ pg = 1.34 s, rows 3–5 hold 3 with 2.10 s. Right: 3.44/8 = 0.43 s. The mean of the two
    micro-batch means would be (1.34/5 + 2.10/3)/2 = (0.268 + 0.7)/2 = 0.484 s."""
    logp, entropy, batch = hand_example()
    halves = [slice(0, 3), slice(3, 6)]
    parts = [
        value_gradient(logp[rows], entropy[rows], jax.tree.map(lambda x, r=rows: x[r], batch), PG_ONLY)[0]
        for rows in halves
    ]
    np.testing.assert_allclose(parts, [1.34 * S / 8, 2.10 * S / 8], rtol=1e-12)
    means = [
        value_gradient(
            logp[rows],
            entropy[rows],
            jax.tree.map(lambda x, r=rows: x[r], batch).replace(weight=weights(MASK[rows])),
            PG_ONLY,
        )[0]
        for rows in halves
    ]
    np.testing.assert_allclose(sum(parts), 0.43 * S, rtol=1e-12)
    np.testing.assert_allclose(sum(means) / 2, 0.484 * S, rtol=1e-12)  # the wrong answer


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "dr_grpo"])
def test_uneven_micro_batches_add_up_in_value_gradient_and_metrics(aggregation):
    """Guards the same with every term on, micro-batches of 5, 2 and 1 rows, and the metrics."""
    rng = np.random.default_rng(4)
    logp, entropy, batch, mask = random_example(rng)
    batch = batch.replace(weight=weights(mask, aggregation=aggregation, max_length=6))
    value, metrics, grads = value_gradient(logp, entropy, batch, ALL_TERMS)
    parts = [
        value_gradient(logp[rows], entropy[rows], jax.tree.map(lambda x, r=rows: x[r], batch), ALL_TERMS)
        for rows in (slice(0, 5), slice(5, 7), slice(7, 8))
    ]
    added = jax.tree.map(lambda *x: np.sum(x, axis=0), *[part[:2] for part in parts])
    assert_trees_close(added, (value, metrics), rtol=1e-6)
    joined = jax.tree.map(lambda *x: np.concatenate(x), *[part[2] for part in parts])
    assert_trees_close(joined, grads, rtol=1e-6)


@pytest.mark.parametrize(
    ("aggregation", "denominator", "rows"),
    [  # advantages (2, −1, −1, 1, 1, −2)·s: rows 0, 3 and 4 stay, of 2, 1 and 1 tokens
        ("token_mean", "shrunken", [1 / 4, 0, 0, 1 / 4, 1 / 4, 0]),
        ("token_mean", "fixed", [1 / 8, 0, 0, 1 / 8, 1 / 8, 0]),
        ("sequence_mean", "shrunken", [1 / 6, 0, 0, 1 / 3, 1 / 3, 0]),
        ("sequence_mean", "fixed", [1 / 12, 0, 0, 1 / 6, 1 / 6, 0]),
        ("dr_grpo", "shrunken", [1 / 30, 0, 0, 1 / 30, 1 / 30, 0]),
        ("dr_grpo", "fixed", [1 / 60, 0, 0, 1 / 60, 1 / 60, 0]),
    ],
)
def test_positive_only(aggregation, denominator, rows):
    """Guards GRPOMask's two meanings, which differ by a factor in step size (e3 App. G.3), and that
    KL and entropy leave with the token: KL of 1 per token sums to Σ weight."""
    options = {
        "aggregation": aggregation,
        "max_length": 10,
        "gradients": "positive",
        "denominator": denominator,
        "advantage_b": np.array([2, -1, -1, 1, 1, -2]) * S,
    }
    want = np.array(rows)[:, None] * MASK
    for library in (np, jnp):
        got = weights(library.asarray(MASK), **{**options, "advantage_b": library.asarray(options["advantage_b"])})
        np.testing.assert_allclose(got, want, rtol=1e-12)
    logp, entropy, batch = hand_example(**options)
    _, metrics, (grad, _) = value_gradient(logp, entropy, batch, {**ALL_TERMS, "kl_estimator": "k1"})
    np.testing.assert_allclose(metrics["kl"], want.sum(), rtol=1e-12)
    np.testing.assert_allclose(metrics["entropy"], 2 * want.sum(), rtol=1e-12)
    assert not grad[np.array([1, 2, 5])].any()


def test_positive_only_without_a_positive_sample_is_zero():
    """Guards 0/0 on a batch of failures, and that A = 0 is not positive: zero weights, not NaN."""
    for aggregation in ("token_mean", "sequence_mean", "dr_grpo"):
        for denominator in ("shrunken", "fixed"):
            got = weights(
                MASK,
                aggregation=aggregation,
                max_length=10,
                gradients="positive",
                denominator=denominator,
                advantage_b=np.array([0.0, -1.0, 0.0, 0.0, -1.0, 0.0]),
            )
            np.testing.assert_array_equal(got, 0.0)


@pytest.mark.parametrize("library", [np, jnp])
def test_negative_and_no_eos(library):
    """The reference's other two masks, by hand: advantages (2, −1, −1, 0, 1, −2)·s, rows of 2, 2, 1, 1, 1, 1 tokens."""
    advantage_b = library.asarray(np.array([2.0, -1, -1, 0, 1, -2]) * S)
    closing_bt = library.asarray(np.array([[0, 0, 1], [0, 0, 1], [0, 1, 1], [0, 1, 1], [0, 1, 1], [0, 0, 1]]) > 0)
    options = {"advantage_b": advantage_b, "closing_bt": closing_bt}
    mask = library.asarray(MASK)
    got = weights(mask, gradients="negative", **options)  # rows 1, 2 and 5: 4 tokens
    np.testing.assert_allclose(got, np.array([0, 1, 1, 0, 0, 1])[:, None] * MASK / 4, rtol=1e-12)
    kept = np.array(
        [[0, 1, 1], [0, 1, 0], [0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]]
    )  # row 1's end and row 2 are gone
    np.testing.assert_allclose(weights(mask, gradients="no-eos", **options), kept / 6, rtol=1e-12)
    fixed = weights(mask, gradients="no-eos", denominator="fixed", **options)
    np.testing.assert_allclose(fixed, kept / 8, rtol=1e-12)
    rows = np.array([2, 1, 0, 1, 1, 1])[:, None]  # tokens left; row 2 is no sequence any more
    got = weights(mask, gradients="no-eos", aggregation="sequence_mean", **options)
    np.testing.assert_allclose(got, kept / (5 * np.maximum(rows, 1)), rtol=1e-12)


def test_weights_of_empty_masks():
    """Guards rows of empty mask: they are no sequences, and a batch of them is 0, not NaN."""
    mask = np.concatenate([MASK, 0 * MASK])
    for aggregation in ("token_mean", "sequence_mean", "dr_grpo"):
        options = {"aggregation": aggregation, "max_length": 10}
        np.testing.assert_array_equal(weights(mask, **options)[:6], weights(MASK, **options))
        np.testing.assert_array_equal(weights(0 * mask, **options), 0.0)


def test_k3_clamps_and_keeps_small_values():
    """Guards overflow (e^100 in float32 is inf, its gradient NaN) and cancellation: e^q − 1 − q in
    float32 at q = 1e-3 is off by a tenth when the exponential is rounded before 1 is taken off."""
    with jax.enable_x64(False):
        logp = jnp.asarray([-100.0, 0.0, -1e-3], jnp.float32)
        ref_logp = jnp.asarray([0.0, -100.0, 0.0], jnp.float32)
        got = kl_penalty(logp, ref_logp, estimator="k3")
        assert got.dtype == jnp.float32
        grad = jax.grad(lambda x: kl_penalty(x, ref_logp, estimator="k3").sum())(logp)
    np.testing.assert_array_equal(grad[:2], [0.0, 0.0])
    np.testing.assert_array_equal(got[:2], [10.0, 10.0])
    np.testing.assert_allclose(got[2], 1e-6 / 2 + 1e-9 / 6, rtol=1e-3)


def test_far_ratios_stay_finite():
    """Guards inf − inf: a token 200 nats away has ratio e^20; the dual clip ends its gradient."""
    with jax.enable_x64(False):
        one = jnp.ones((1, 1), jnp.float32)
        batch = Batch(
            tokens=jnp.zeros((1, 1), jnp.int32),
            position=None,
            segment=None,
            weight=one,
            advantage=-one,
            old_logp=-200 * one,
            ref_logp=-200 * one,
            rollout_logp=-400 * one,
        )
        value, _, (grad, _) = value_gradient(0 * one, one, batch, {**PG_ONLY, "kl_coef": 1.0, "tis_cap": 2.0})
    assert value == 3.0 * 2.0 + 10.0
    assert grad == 0.0


def test_negative_mass():
    """Guards the weighting: Σ|A| over tokens is 4 + 2 + 1 + 1 + 1 + 2 = 11 s, of which rows 1, 2
    and 5 give 2 + 1 + 2 = 5 s. (Counting samples would say 1/2.)"""
    _, _, batch = hand_example()
    np.testing.assert_allclose(negative_mass(batch.weight, batch.advantage), 5 / 11, rtol=1e-12)
    assert negative_mass(batch.weight, 0 * batch.advantage) == 0


def test_advantage_options():
    """Guards ddof and ε by hand: rewards (1, 0), R − mean = ±1/2; std √(1/2) with ddof 1, 1/2
    with ddof 0; ε = 1/2 added to the std, not to the variance."""
    rewards = np.array([[1.0, 0.0]])
    for ddof, std in ((1, np.sqrt(0.5)), (0, 0.5)):
        got = group_advantages(rewards, normalize_std=True, ddof=ddof, epsilon=0.5)
        np.testing.assert_allclose(got, np.array([[0.5, -0.5]]) / (std + 0.5), rtol=1e-12)
    got = group_advantages(rewards, normalize_std=False, ddof=1, epsilon=0.5)
    np.testing.assert_array_equal(got, [[0.5, -0.5]])


def test_bad_arguments_are_named():
    """Guards silent nonsense: a lone sample (A would be 0, or R in verl), a misspelt estimator, a
    dual clip that would cap every negative token, GRPOMask without advantages."""
    with pytest.raises(ValueError, match="no baseline"):
        group_advantages(np.ones((3, 1)), normalize_std=True, ddof=1, epsilon=1e-6)
    with pytest.raises(ValueError, match="k4"):
        kl_penalty(jnp.zeros(1), jnp.zeros(1), estimator="k4")
    logp, entropy, batch = hand_example()
    with pytest.raises(ValueError, match="dual_clip"):
        grpo_loss(logp, entropy, batch, GrpoLoss(**{**PG_ONLY, "dual_clip": 1.0}))
    with pytest.raises(ValueError, match="advantage_b"):
        weights(MASK, gradients="positive")
    with pytest.raises(ValueError, match="'no_eos': one of 'all', 'positive', 'negative', 'no-eos'"):
        weights(MASK, gradients="no_eos")
    with pytest.raises(ValueError, match="shrunk"):
        weights(MASK, denominator="shrunk")
