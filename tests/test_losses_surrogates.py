"""Surrogates: exact under packing, micro-batches, padding and a mesh; by hand where no oracle has them; in the update.

Each variant is evaluated once on unpacked responses, one a row, in float64; every other layout has to give its loss,
its metrics and its gradient by every log-prob. verl's and TRL's own numbers are in test_losses_oracle.py.
"""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from e3jax.errors import UserError
from e3jax.losses.grpo import SURROGATES, GrpoLoss, grpo_loss, surrogate_of, token_weights
from e3jax.losses.surrogates import covariance_tokens, response_mean, response_sum
from e3jax.runtime import put
from e3jax.sharding import make_mesh
from e3jax.tools.replay import BATCHES
from e3jax.train import grpo
from e3jax.train.credit import choose_tokens, weigh
from e3jax.train.packing import MiniBatch, best_fit, pack_micro_batches
from e3jax.train.state import new_state
from e3jax.types import Batch
from tests.stages import grpo_stage
from tests.test_train_grpo import MIXED, graded, setting  # noqa: F401 (a fixture)

BASE = dict(clip_low=0.2, clip_high=0.3, dual_clip=3.0, kl_coef=0.1, kl_estimator="k3", entropy_coef=0.01, tis_cap=None)
COVARIANCE = dict(cov_share=0.2, cov_low=-1.0, cov_high=1.0)
VARIANTS = {name: dict(surrogate=name) for name in SURROGATES} | {
    "clip_cov": dict(surrogate="clip_cov", **COVARIANCE),
    "kl_cov": dict(surrogate="kl_cov", **COVARIANCE),
    "own": dict(surrogate="tests.own_surrogate:vespo"),
    "ppo, delta": dict(delta=1.4),
    "ppo, sequence weights": dict(tis_cap=1.5, tis_floor=0.5, tis_level="sequence"),
    "ppo, masked mean weights": dict(tis_cap=1.1, tis_level="sequence_mean", tis_mode="mask"),
    "gspo, off-policy mask": dict(surrogate="gspo", off_policy_kl=0.05, kl_corrected=True),
}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def example(loss: GrpoLoss, *, aggregation="token_mean"):
    """Return logp, entropy and a Batch of 12 responses of 1 to 9 tokens behind prompts of 2, one a row, and lengths."""
    rng = np.random.default_rng(5)
    rows, width = 12, 11
    length = np.concatenate([[11, 3], rng.integers(3, 12, rows - 2)])
    at = np.arange(width)
    mask = (at >= 2) & (at < length[:, None])
    logp = -np.abs(rng.normal(0.9, 0.7, mask.shape))
    old, ref, sampler = (logp - rng.normal(0, 0.4, logp.shape) for _ in range(3))
    advantage = rng.choice([-1.5, -0.5, 0.0, 0.7, 1.2], (rows, 1)) * (1 + at % 3) / 2  # λ and BRPO: one a token
    weight = token_weights(mask, aggregation=aggregation, max_length=9, gradients="all", denominator="shrunken")
    chosen = np.zeros(mask.shape, bool)
    if loss.surrogate in ("clip_cov", "kl_cov"):
        trained = weight != 0
        chosen[trained] = covariance_tokens(
            logp[trained], old[trained], advantage[trained], loss, rng=np.random.default_rng(0)
        )
        assert chosen.sum() == int(0.2 * trained.sum())
    whole = np.arange(width) < length[:, None]
    batch = Batch(
        tokens=np.zeros(mask.shape, np.int32),
        position=np.zeros(mask.shape, np.int32),
        segment=whole.astype(np.int32),
        weight=weight,
        advantage=advantage,
        old_logp=old,
        ref_logp=ref,
        rollout_logp=sampler,
        chosen=chosen,
    )
    return logp, rng.uniform(0, 2, mask.shape), batch, length


@partial(jax.jit, static_argnames="loss")
def compiled(logp, entropy, batch, loss):
    return jax.value_and_grad(lambda logp: grpo_loss(logp, entropy, batch, loss), has_aux=True)(logp)


def value_gradient(logp, entropy, batch, loss):
    """Return loss, metrics and the gradient by log-probs."""
    (value, metrics), grad = compiled(logp, entropy, batch, loss)
    assert value.dtype == jnp.float64
    return value, metrics, np.asarray(grad)


def packed_batch(m, batch):
    """Return a micro-batch of `batch`'s rows; its padding is 3 everywhere, so that it would show, but of weight 0."""
    moved = {name: m.take(np.asarray(x), 3) for name, x in vars(batch).items() if name not in ("weight", "chosen")}
    moved |= {"weight": m.take(batch.weight), "chosen": m.take(batch.chosen), "segment": m.segments()}
    return Batch(**moved)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_layout_gives_the_same(name):
    """One a row, in packed micro-batches whose padding is full of numbers, and over 8 devices."""
    loss = GrpoLoss(**BASE | VARIANTS[name])
    logp, entropy, batch, length = example(loss)
    want = value_gradient(logp, entropy, batch, loss)
    assert abs(want[2]).max() > 1e-3 and all(np.isfinite(x) for x in jax.tree.leaves(want[:2]))
    micro = pack_micro_batches(length, [(2, 24)])
    assert len(micro) > 1
    compare(together(micro, logp, entropy, batch, loss), want)
    with jax.set_mesh(make_mesh(data=2, fsdp=4, tensor=1)):
        compare(together(best_fit(length, [(8, 22)]), logp, entropy, batch, loss), want)


def together(micro, logp, entropy, batch, loss):
    """Return the sums of micro-batches, with gradients in the rows that they came from."""
    grad, sums, segments = np.zeros(logp.shape), [], 0
    for m in micro:
        arrays = [put(x, "BT") for x in (m.take(logp, 3), m.take(entropy, 3))]
        one = packed_batch(m, batch)
        segments = max(segments, one.segment.max())
        value, metrics, part = value_gradient(*arrays, jax.tree.map(lambda x: put(x, "BT"), one), loss)
        m.back(part, grad)
        sums.append((value, metrics))
    assert segments > 1  # rows are shared
    return *jax.tree.map(lambda *x: np.sum([np.asarray(y) for y in x]), *sums), grad


def compare(got, want):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-9, atol=1e-13), got, want)


@pytest.mark.parametrize("name", VARIANTS)
def test_lambda_and_aggregations_compose(name):
    """λ multiplies a token's gradient, of any surrogate; weights of an aggregation multiply it too."""
    loss = GrpoLoss(**BASE | VARIANTS[name] | dict(kl_coef=0.0, entropy_coef=0.0, cov_kl_coef=0.0))
    logp, entropy, batch, _ = example(loss)
    want = value_gradient(logp, entropy, batch, loss)[2]
    lambda_bt = np.where(np.arange(logp.shape[1]) < 6, 2.0, 1.0)[None] * np.ones(logp.shape)
    got = value_gradient(logp, entropy, batch.replace(advantage=batch.advantage * lambda_bt), loss)[2]
    np.testing.assert_allclose(got, lambda_bt * want, rtol=1e-12, atol=1e-15)
    for aggregation in ("sequence_mean", "dr_grpo"):
        other = example(loss, aggregation=aggregation)[2]
        got = value_gradient(logp, entropy, other, loss)[2]
        share = np.divide(other.weight, batch.weight, out=np.zeros(logp.shape), where=batch.weight != 0)
        np.testing.assert_allclose(got, share * want, rtol=1e-12, atol=1e-15)


def test_sums_over_segments():
    """Rows with one, two and four segments and padding, against a loop; integers are exact, and equal in a segment."""
    x = np.arange(18.0).reshape(3, 6)
    segment = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 2, 0], [1, 2, 3, 4, 0, 0]])
    want = np.array([[x[b][segment[b] == segment[b, t]].sum() for t in range(6)] for b in range(3)])
    np.testing.assert_array_equal(jax.jit(response_sum)(x, segment), want)
    np.testing.assert_array_equal(response_sum(jnp.asarray(x), None), x.sum(1, keepdims=True) * np.ones((1, 6)))
    batch = SimpleNamespace(weight=(np.arange(6) % 2 == 1) * np.ones((3, 1)), segment=segment)
    mean = response_mean(jnp.asarray(x), batch)
    np.testing.assert_allclose(mean[1], [7, 7, 9, 9, 9, 11])  # token 1; token 3; token 5, of the padding
    assert mean[2, 0] == 0  # nothing of this response is trained


def one_row(advantage, p, mu, **changes):
    """Return loss, metrics and gradient of tokens of weight 1 with these probabilities, now and of the sampler."""
    shape = (1, len(p))
    zero = np.zeros(shape)
    batch = Batch(
        tokens=zero.astype(int),
        position=None,
        segment=None,
        weight=zero + 1,
        advantage=np.reshape(advantage, shape),
        old_logp=np.log(np.reshape(mu, shape)),
        ref_logp=zero,
        rollout_logp=np.log(np.reshape(mu, shape)),
        chosen=zero.astype(bool),
    )
    loss = GrpoLoss(**BASE | dict(kl_coef=0.0, entropy_coef=0.0) | changes)
    return value_gradient(np.log(np.reshape(p, shape)), zero, batch, loss)


def test_dppo_by_hand():
    """δ = .2 and μ = .5: A > 0 leaves at .8 (+.3), stays at .6 and .2; A < 0 leaves at .2 (−.3), stays at .4 and .9.

    The terms are −A p/μ, and their gradient by log p is the term itself.
    """
    advantage, p = [1, 1, 1, -1, -1, -1], [0.8, 0.6, 0.2, 0.2, 0.4, 0.9]
    value, metrics, grad = one_row(advantage, p, [0.5] * 6, surrogate="dppo_tv")
    np.testing.assert_allclose(grad[0], [0, -1.2, -0.4, 0, 0.8, 1.8], rtol=1e-12)
    np.testing.assert_allclose(value, 1.0, rtol=1e-12)
    assert metrics["clip_high"] == metrics["clip_low"] == 1
    # a rare token may change its ratio tenfold: .001 → .01
    np.testing.assert_allclose(one_row([1], [0.01], [0.001], surrogate="dppo_tv")[2], [[-10]], rtol=1e-12)


def test_covariances_by_hand():
    """A = (1, 1, −1, −1), log p = (−1, −3, −1, −3), means 0 and −2: covariances 1, −1, −1, 1."""
    advantage, logp = np.array([1.0, 1, -1, -1]), np.array([-1.0, -3, -1, -3])
    how = dict(surrogate="kl_cov", cov_share=0.5)
    chosen = covariance_tokens(logp, logp, advantage, GrpoLoss(**BASE | how), rng=None)
    assert chosen.tolist() == [True, False, False, True]
    how = dict(surrogate="clip_cov", cov_low=0.5, cov_high=2.0, cov_share=1.0)
    rng = np.random.default_rng(0)
    chosen = covariance_tokens(logp, logp, advantage, GrpoLoss(**BASE | how), rng=rng)
    assert chosen.tolist() == [True, False, False, True]
    old = logp - np.array([1.0, 0, 0, 0])  # the clip holds the first one back already
    chosen = covariance_tokens(logp, old, advantage, GrpoLoss(**BASE | how), rng=rng)
    assert chosen.tolist() == [False, False, False, True]
    one = GrpoLoss(**BASE | how | dict(cov_share=0.01))
    drawn = [tuple(covariance_tokens(logp, logp, advantage, one, rng=np.random.default_rng(i))) for i in range(20)]
    assert {sum(x) for x in drawn} == {1} and len(set(drawn)) == 2  # at least one, drawn from both
    assert drawn[3] == tuple(covariance_tokens(logp, logp, advantage, one, rng=np.random.default_rng(3)))
    nothing = np.zeros(0)
    assert covariance_tokens(nothing, nothing, nothing, one, rng=rng).shape == (0,)


def test_a_choice_does_not_depend_on_the_packing():
    """Clip-Cov's and KL-Cov's means are of the minibatch, and its draws are in the order of the rollouts."""
    loss = GrpoLoss(**BASE | VARIANTS["clip_cov"])
    logp, _, batch, length = example(loss)
    terms = SimpleNamespace(weight_bt=batch.weight, advantage_bt=batch.advantage)
    index, got = np.arange(4, 12), []
    for shapes in ([(2, 24), (2, 12)], [(8, 22)]):
        micro = [m.of(index) for m in pack_micro_batches(length[index], shapes)]
        arrays = [[m.take(x.astype(np.float32)) for m in micro] for x in (logp, batch.old_logp)]
        rng = np.random.default_rng(7)
        got.append(choose_tokens(MiniBatch(index, micro), *arrays, terms, loss, rng=rng))
    np.testing.assert_array_equal(*got)
    trained = batch.weight[index] != 0
    assert got[0].sum() == int(0.2 * trained.sum()) and not got[0][:4].any() and not got[0][batch.weight == 0].any()


@pytest.mark.parametrize("surrogate", ["clip_cov", "kl_cov"])
def test_micro_batches_in_the_update(setting, surrogate):  # noqa: F811
    """Two updates of a step, in micro-batches of 16 and of 3 rows: the same parameters, the same tokens chosen.

    The second minibatch's tokens are chosen under the parameters after the first update.
    """
    run, params = setting
    run, out = SimpleNamespace(**vars(run), seed=3), []
    advantage_b, tx = np.where(MIXED > 0, 1.0, -1.0), optax.sgd(0.05)
    loss = BASE | VARIANTS[surrogate] | dict(kl_coef=0.0, entropy_coef=0.0)
    with jax.enable_x64(False):
        g = graded(run.model, params, MIXED)
        for rows in (16, 3):
            state = new_state(tx, jax.tree.map(jnp.copy, params))
            stage = grpo_stage(minibatches=2, rows=rows, prompts=4, group_size=4, loss=loss)
            state, values, rebuild = grpo.update(run, tx, state, g, advantage_b, params, stage)
            out.append((state.params, values))
            made = rebuild()
            assert sum(batch.chosen.sum() for batch in made) > 3
            arrays = jax.tree.leaves(made[0])  # as tools/replay.py reads a dump
            assert len(arrays) in BATCHES["grpo"] and (Batch(*arrays).chosen == made[0].chosen).all()
    moved = jax.tree.map(lambda x, y: float(abs(x - y).max()), out[0][0], params)
    step = max(jax.tree.leaves(moved))
    assert step > 1e-3
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6 * max(1, step)), out[0][0], out[1][0])
    assert out[0][1]["loss/pg"] == pytest.approx(out[1][1]["loss/pg"], abs=1e-6)


def test_an_advantage_for_every_token(setting):  # noqa: F811
    """As BRPO has it: where a response's tokens have one, the update is that of one a response, bit for bit.

    In micro-batches, packed and over a mesh: every variant of test_every_layout_gives_the_same has one a token.
    """
    run, params = setting
    tx, out = optax.sgd(0.05), []
    with jax.enable_x64(False):
        g = graded(run.model, params, MIXED)
        advantage_b = np.where(MIXED > 0, 1.0, -1.0)
        advantage_bt = np.broadcast_to(advantage_b[:, None], g.rollouts.tokens.shape)
        pieces_bt = advantage_bt * (1 + np.arange(advantage_bt.shape[1]) // 4 % 2)
        loss = BASE | dict(kl_coef=0.0, entropy_coef=0.0)
        stage = grpo_stage(minibatches=1, rows=16, prompts=4, group_size=4, loss=loss)
        for advantage in (advantage_b, advantage_bt, pieces_bt):
            state = new_state(tx, jax.tree.map(jnp.copy, params))
            out.append(grpo.update(run, tx, state, g, advantage, params, stage)[0].params)
    jax.tree.map(np.testing.assert_array_equal, out[0], out[1])
    moved = [float(abs(x - y).max()) for x, y in zip(jax.tree.leaves(out[1]), jax.tree.leaves(out[2]))]
    assert max(moved) > 1e-4


def test_what_the_loss_leaves_out(setting):  # noqa: F811
    """Truncated responses and groups without spread have no weight, and the rest shares theirs."""
    run, _ = setting
    length = np.array([4, 3, 4, 4])
    sampled = (np.arange(4) >= 1) & (np.arange(4) < length[:, None])
    r = SimpleNamespace(sampled=sampled, done=np.array([True, False, True, True]))
    parts = [MiniBatch(np.arange(4), [])]
    for weights, want in (
        (dict(truncated="mask"), [1 / 9, 0, 1 / 9, 1 / 9]),
        (dict(no_spread="drop"), [1 / 5, 1 / 5, 0, 0]),
        (dict(truncated="mask", no_spread="drop"), [1 / 3, 0, 0, 0]),
        (dict(truncated="mask", no_spread="drop", denominator="fixed"), [1 / 11, 0, 0, 0]),
    ):
        stage = grpo_stage(minibatches=1, group_size=2, weights=dict(aggregation="token_mean") | weights)
        got = weigh(run, r, parts, np.array([1.0, -1, 0, 0]), stage)
        np.testing.assert_allclose(got, np.array(want)[:, None] * sampled, rtol=1e-6, err_msg=str(weights))


def test_what_cannot_be_is_refused():
    """In a sentence that names the field and what to do."""
    refused = {
        "surrogate='trpo': use one of 'ppo'": dict(surrogate="trpo"),
        "surrogate='tests.nothing:here': cannot be imported": dict(surrogate="tests.nothing:here"),
        "surrogate='tests.own_surrogate:nothing': cannot be imported": dict(surrogate="tests.own_surrogate:nothing"),
        "would count it twice": dict(surrogate="dppo_tv", tis_cap=2.0),
        "tis_mode='mask': does nothing while tis_cap is None": dict(tis_mode="mask"),
        "tis_level='response': use one of": dict(tis_level="response"),
        "delta=1.0: use a number above 1": dict(delta=1.0),
        "cov_low=6.0: must be below cov_high": dict(cov_low=6.0),
        "tv_bound=0: must be above 0": dict(tv_bound=0),
    }
    for sentence, changes in refused.items():
        with pytest.raises(UserError, match=sentence):
            GrpoLoss(**BASE | changes)
    assert surrogate_of("gspo") is SURROGATES["gspo"]
