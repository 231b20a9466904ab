"""OXA's loss against torch's numbers (committed), closed forms, SFT; a step's two pools, packed and sharded."""

import dataclasses
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3jax.errors import UserError
from e3jax.losses.oxa import oxa_loss, pool_weights, unlikelihood
from e3jax.losses.tokens import token_logp_and_entropy
from e3jax.metrics.names import undefined
from e3jax.models.presets import preset
from e3jax.models.qwen3 import Qwen3, init_params
from e3jax.sharding import make_mesh, param_shardings
from e3jax.tasks.countdown_traces import WORDS
from e3jax.tokenizer import WordTokenizer
from e3jax.train import oxa
from e3jax.train.sft import add, sft_gradient
from tests.stages import oxa_stage

# torch 2.13 in float64: log p clamped to log(1 − 1e-6), log(−expm1) above ln ½, log1p(−exp) below; and its gradient
PROBABILITY = [1e-30, 1e-8, 1e-3, 0.2, 0.5, 0.7, 0.99, 0.99999, 1 - 2e-6]
UL = [
    1.0000000000000024e-30,
    1.0000000049999983e-08,
    0.0010005003335835337,
    0.22314355131420976,
    0.6931471805599453,
    1.203972804325936,
    4.605170185988091,
    11.51292546497478,
    13.122363377431084,
    13.815510557935518,
    13.815510557935518,
]
UL_GRADIENT = [
    1.0000000000000024e-30,
    1.0000000099999984e-08,
    0.0010010010010010014,
    0.25,
    1.0,
    2.333333333333333,
    98.99999999999991,
    99999.0000004551,
    499999.00001337775,
    0.0,
    0.0,
]


def test_unlikelihood_equals_torch():
    """From p = 1e-30 to p = 1, value and gradient; a plain log(1 − p) is −inf at 1 and 0 below 1e-8 in float32."""
    logp = jnp.array([math.log(p) for p in PROBABILITY] + [-5e-7, 0.0], jnp.float32)
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(unlikelihood)))(logp)
    np.testing.assert_allclose(value, UL, rtol=2e-6)
    np.testing.assert_allclose(gradient, UL_GRADIENT, rtol=2e-6)


def test_gradient_is_the_closed_form():
    """d UL / d log p = p / (1 − p), on both sides of the switch at ln 2 and next to the clamp; finite at −inf."""
    logp = np.concatenate([-np.logspace(-5.9, 2, 400), -math.log(2) + np.array([-1e-6, 0, 1e-6]), [-np.inf]]).astype(
        np.float32
    )
    exact = logp.astype(np.float64)
    want = np.exp(exact) / -np.expm1(exact)
    got = jax.jit(jax.vmap(jax.value_and_grad(unlikelihood)))(logp)
    np.testing.assert_allclose(got[1], want, rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(
        got[0], np.where(exact < -1, -np.log1p(-np.exp(exact)), -np.log(-np.expm1(exact))), rtol=1e-5, atol=1e-37
    )
    assert (got[0][-1], got[1][-1]) == (0.0, 0.0)


MASK = np.array([[0, 1, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]], np.float32)
SUPPRESSED = np.array([False, True, False, True])


@pytest.mark.parametrize("chunk", [4, 64])
def test_whole_loss_equals_torch(chunk):
    """From hidden states in pieces: value, and the norm of every position's gradient; p = 1 and 0 are among them."""
    rng = np.random.default_rng(7)
    logits, targets = rng.normal(size=(4, 5, 6)) * 3, rng.integers(0, 6, size=(4, 5))
    logits[1, 2, targets[1, 2]], logits[3, 3, targets[3, 3]] = 40.0, -40.0

    def loss_of(hidden):  # the unembedding is the identity, so hidden states are logits
        scores = token_logp_and_entropy(hidden, jnp.eye(6), jnp.asarray(targets), temperature=1.0, chunk=chunk)
        return oxa_loss(*scores, *pool_weights(MASK, SUPPRESSED), ul_weight=0.05)

    (loss, metrics), grad = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(jnp.asarray(logits, jnp.float32))
    want = {"ce": 3.216600975995298, "ul": 4.277076215758791}  # torch 2.13, float64
    assert {k: float(metrics[k]) for k in want} == pytest.approx(want, rel=2e-6)
    assert float(loss) == pytest.approx(3.430454786783238, rel=2e-6)
    norms = np.zeros((4, 5))
    norms[0, 1:] = 0.16521468565205985, 0.14906255297955806, 0.16125890447999786, 0.10130232633313437
    norms[1, 3] = 0.014475942620073038
    norms[2, 1:3] = 0.1291166618374612, 0.3240802516732563
    norms[3, 3:] = 4.4229522416941915e-21, 0.001236927741535617
    np.testing.assert_allclose(jnp.linalg.norm(grad, axis=-1), norms, rtol=2e-5, atol=1e-9)


def test_unequal_lengths_give_means_of_means():
    """A long response counts as much as a short one, and one pool's size does not change the other's mean."""
    logp = jnp.where(MASK > 0, jnp.log(jnp.array([0.5, 0.5, 0.25, 0.75]))[:, None], -9.0)
    loss_of = jax.jit(oxa_loss)
    _, metrics = loss_of(logp, jnp.ones_like(logp), *pool_weights(MASK, SUPPRESSED), ul_weight=1.0)
    assert float(metrics["ce"]) == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)
    assert float(metrics["ul"]) == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)
    assert float(metrics["p_promoted"]) == pytest.approx((0.5 + 0.25) / 2)
    assert float(metrics["entropy_suppressed"]) == pytest.approx(1.0)
    three = np.array([False, True, True, True])  # one promoted, three suppressed: still means
    _, metrics = loss_of(logp, logp, *pool_weights(MASK, three), ul_weight=1.0)
    assert float(metrics["ce"]) == pytest.approx(math.log(2), rel=1e-6)
    assert float(metrics["ul"]) == pytest.approx((math.log(2) + math.log(4 / 3) + math.log(4)) / 3, rel=1e-6)
    _, metrics = loss_of(logp, logp, *pool_weights(MASK, ~(SUPPRESSED | True)), ul_weight=1.0)
    assert float(metrics["ul"]) == 0.0  # SFT: no suppressed pool


# ---- a step of train/oxa.py

PROMOTED = oxa.Pool("promoted", [(f"{i} 5 2 ?24", "7 + 5 * 2 = 12 24 ?24 0 yes " * (1 + i % 3)) for i in range(1, 9)])
SUPPRESS = oxa.Pool("suppressed", [(f"{i} 5 2 ?9", "5 + 2 * 7 " * (1 + i % 5)) for i in range(1, 8)])


@pytest.fixture(scope="module")
def run():
    model = Qwen3(dataclasses.replace(preset("tiny"), layers=1), dtype=jnp.float32, remat="none", kernel="xla")
    return SimpleNamespace(model=model, tokenizer=WordTokenizer(WORDS), seed=3)


def summed(run, params, batch, **loss):
    total = None
    for micro in batch:
        more = oxa.oxa_gradient(run.model, params, *map(jnp.asarray, micro), chunk=512, **loss)
        total = more if total is None else add(total, more)
    return total


def test_micro_batches_and_devices_add_up(run):
    """Micro-batches on one device and one batch on eight make the same loss, metrics and gradients."""
    params = jax.jit(lambda: init_params(run.model, jax.random.key(0)))()
    params |= {"embed_vd": params["embed_vd"] * 8}
    weight = {"ul_weight": 0.1}
    one, many = (oxa.make_batch(run, [PROMOTED, SUPPRESS], oxa_stage(rows=rows), 1) for rows in (8, 2))
    assert len(one) == 1 < len(many)
    for batch in (one, many):  # denominators are global: each pool's weights sum to 1 over all micro-batches
        assert [sum(micro[k].sum() for micro in batch) for k in (3, 4)] == pytest.approx([1.0, 1.0], rel=1e-6)
        assert all((micro[3] * micro[4] == 0).all() for micro in batch)
    want, want_metrics = summed(run, params, many, **weight)
    mesh = make_mesh(data=2, fsdp=4, tensor=1)
    with jax.set_mesh(mesh):
        got, metrics = summed(run, jax.device_put(params, param_shardings(params, mesh)), one, **weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)
    metrics, want_metrics = ({k: float(v) for k, v in values.items()} for values in (metrics, want_metrics))
    assert metrics == pytest.approx(want_metrics, rel=1e-4)
    assert not undefined("oxa", metrics)
    assert metrics["loss/ul"] > 0 and metrics["loss/total"] > metrics["loss/ce"]
    # without weight on the suppressed it is SFT on the promoted, bit for bit
    off, off_metrics = summed(run, params, many, ul_weight=0.0)
    plain = None
    for tokens, positions, segments, promote, _ in many:
        batch = map(jnp.asarray, (tokens, positions, segments, promote))
        more = sft_gradient(run.model, params, *batch, chunk=512)
        plain = more if plain is None else add(plain, more)
    jax.tree.map(np.testing.assert_array_equal, off, plain[0])
    assert float(off_metrics["loss/total"]) == float(plain[1]["loss/total"]) and not undefined("sft", plain[1])
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(off)))  # a weight does something


def test_without_a_suppressed_set_it_is_sft(run, monkeypatch, tmp_path):
    """The baselines of a paper's arms were logged as OXA, under metrics that plain fine-tuning does not have."""
    called = {}
    monkeypatch.setattr(oxa, "fit", lambda run, params, stage, **how: called.update(how))
    for name, pool in (("promote", PROMOTED), ("suppress", SUPPRESS)):
        rows = [json.dumps({"prompt": prompt, "response": response}) + "\n" for prompt, response in pool.rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("promote", "suppress")}
    oxa.train(run, None, oxa_stage(**files))
    assert called["kind"] == "oxa" and {len(micro) for micro in called["batch_of"](0)} == {5}
    oxa.train(run, None, oxa_stage(promote=files["promote"], suppress=""))
    assert (called["kind"], called["gradient"], called["loss"]) == ("sft", sft_gradient, {})
    batch = called["batch_of"](0)
    assert {len(micro) for micro in batch} == {4} and sum(micro[3].sum() for micro in batch) == pytest.approx(1.0)


def test_pools_are_shuffled_per_epoch():
    """Every row comes at most once an epoch, in another order each; a rest that fills no step is left out."""
    steps = [SUPPRESS.at(step, per_step=3, seed=0) for step in range(4)]  # 7 rows: 2 steps an epoch
    assert all(len(set(steps[i] + steps[i + 1])) == 6 for i in (0, 2))
    assert steps[:2] != steps[2:] and steps == [SUPPRESS.at(step, per_step=3, seed=0) for step in range(4)]


def test_a_set_that_does_not_fit_is_named(run, tmp_path):
    """Nothing is cut silently, and a file of another kind is not trained on."""
    with pytest.raises(UserError, match=r"promoted: \d\d tokens .* row_length=24"):
        oxa.make_batch(run, [PROMOTED], oxa_stage(per_step=8, rows=4, row_length=24), 0)
    (tmp_path / "x.jsonl").write_text('{"prompt": "1 2 ?3"}\n')
    with pytest.raises(UserError, match="line 1: needs the texts prompt and response"):
        oxa.read_pool(tmp_path / "x.jsonl", per_step=1)
    (tmp_path / "y.jsonl").write_text('{"prompt": "1 2 ?3", "response": "yes"}\n')
    with pytest.raises(UserError, match="has 1 rows, a step takes 4"):
        oxa.read_pool(tmp_path / "y.jsonl", per_step=4)
