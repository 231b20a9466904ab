"""Chunked log-prob and entropy against a plain log-softmax in numpy-style float64, and the memory
claim read from the jaxpr."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3jax.losses.tokens import next_token_logp_and_entropy, token_denominator, token_logp_and_entropy

B, T, D, V = 3, 7, 5, 11
CHUNKS = [1, 4, 6, 20, 21, 1000]  # below B, one step, two steps with padding, T − 1, exact, single


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def example(dtype=np.float64):
    rng = np.random.default_rng(0)
    return (
        jnp.asarray(rng.normal(size=(B, T, D)), dtype),
        jnp.asarray(rng.normal(size=(V, D)), dtype),
        jnp.asarray(rng.integers(V, size=(B, T))),
    )


def plain(hidden, embed, targets, temperature):
    """Compute all logits at once, log-softmax and −Σ p log p, as in a textbook."""
    logp_btv = jax.nn.log_softmax(hidden @ embed.T / temperature, axis=-1)
    logp = jnp.take_along_axis(logp_btv, targets[:, :, None], axis=-1)[:, :, 0]
    return logp, -(jnp.exp(logp_btv) * logp_btv).sum(-1)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_value_and_gradient_equal_the_plain_computation(x64, chunk):
    """Guards the reshapes: a chunk that transposes [B, T] or leaks its padding changes the order
    of values or adds the padding's gradient to the embedding. Temperature ≠ 1 throughout."""
    hidden, embed, targets = example()
    logp_bar, entropy_bar = np.random.default_rng(1).normal(size=(2, B, T))
    zero = np.zeros((B, T))

    def value_and_gradients(score):
        value, vjp = jax.vjp(score, hidden, embed)
        return value, vjp((logp_bar, zero)), vjp((zero, entropy_bar))

    want = value_and_gradients(lambda h, e: plain(h, e, targets, 0.6))
    got = jax.jit(value_and_gradients, static_argnums=0)(
        lambda h, e: token_logp_and_entropy(h, e, targets, temperature=0.6, chunk=chunk)
    )
    assert got[0][0].dtype == jnp.float64
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-10, atol=1e-12), got, want)


def test_products_of_a_bfloat16_model_are_in_bfloat16():
    """Backward too: float32 gradients of the logits make both products several times as slow on a GPU."""
    hidden, embed, targets = example(np.float32)

    def loss(hidden, embed):
        return token_logp_and_entropy(hidden, embed, targets, temperature=0.6, chunk=1000)[0].sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden.astype(jnp.bfloat16), embed)
    products = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
    assert len(products) == 3
    assert {v.aval.dtype for e in products for v in e.invars} == {jnp.dtype("bfloat16")}
    d_hidden, d_embed = jax.grad(loss, argnums=(0, 1))(hidden.astype(jnp.bfloat16), embed)
    want = jax.grad(loss, argnums=(0, 1))(hidden, embed)
    for got, exact in zip((d_hidden, d_embed), want):
        gap = np.linalg.norm(np.asarray(got, np.float32) - exact) / np.linalg.norm(exact)
        assert gap < 0.02  # 8 bits
    assert d_embed.dtype == jnp.float32


def test_hand_numbers():
    """Two tokens, logits (0, ln 3)/1: p = (1/4, 3/4); guards the sign of both outputs and that the
    division by the temperature reaches both (at 1/2 the odds are squared: p = (1/10, 9/10))."""
    hidden = jnp.ones((1, 1, 1))
    embed = jnp.asarray([[0.0], [np.log(3.0)]])
    target = jnp.zeros((1, 1), int)
    for temperature, p in [(1.0, 0.25), (0.5, 0.1)]:
        logp, entropy = token_logp_and_entropy(hidden, embed, target, temperature=temperature, chunk=8)
        np.testing.assert_allclose(logp[0, 0], np.log(p), rtol=1e-6)
        np.testing.assert_allclose(entropy[0, 0], -p * np.log(p) - (1 - p) * np.log(1 - p), rtol=1e-6)


def test_large_logits_stay_finite():
    """Guards the subtraction of the maximum: exp(1000) is inf. The likeliest token has logp 0."""
    hidden = jnp.full((1, 2, 1), 1000.0)
    embed = jnp.asarray([[1.0], [0.0]])
    logp, entropy = token_logp_and_entropy(hidden, embed, jnp.asarray([[0, 1]]), temperature=1.0, chunk=8)
    np.testing.assert_array_equal(logp, [[0.0, -1000.0]])
    np.testing.assert_array_equal(entropy, [[0.0, 0.0]])


def test_bfloat16_inputs_give_float32_outputs_and_embedding_gradient_summed_in_float32():
    """Guards two roundings: log-probs in bfloat16 (steps of 0.03 at −5), and a sum over chunks in
    bfloat16, where 1024 equal contributions stop growing at 256 of them."""
    length = 1024
    hidden = jnp.ones((1, length, 1), jnp.bfloat16)
    embed = jnp.zeros((2, 1), jnp.bfloat16)

    def loss(embed):
        logp, entropy = token_logp_and_entropy(hidden, embed, jnp.zeros((1, length), int), temperature=1.0, chunk=1)
        assert logp.dtype == entropy.dtype == jnp.float32
        return logp.sum()

    # dlogp/dz = (1, 0) − (1/2, 1/2) per token, times hidden = 1, times 1024 tokens
    grad = jax.grad(loss)(embed).astype(jnp.float32)
    np.testing.assert_array_equal(grad[:, 0], [512.0, -512.0])


def test_next_token_alignment():
    """Guards the off-by-one: entry t is about tokens[t] given hidden[t − 1]; column 0 is 0."""
    hidden, embed, tokens = example(np.float32)
    logp, entropy = next_token_logp_and_entropy(hidden, embed, tokens, temperature=0.7, chunk=5)
    assert logp.shape == entropy.shape == (B, T)
    np.testing.assert_array_equal(logp[:, 0], 0)
    np.testing.assert_array_equal(entropy[:, 0], 0)
    for t in range(1, T):
        z = np.asarray(hidden[:, t - 1]) @ np.asarray(embed).T / 0.7
        p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        np.testing.assert_allclose(logp[:, t], np.log(p[np.arange(B), np.asarray(tokens[:, t])]), rtol=2e-5)
        np.testing.assert_allclose(entropy[:, t], -(p * np.log(p)).sum(-1), rtol=2e-5)


def equations(jaxpr):
    """Return all equations of a jaxpr, those of inner jaxprs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for param in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(param, "jaxpr", param)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def largest_array(jaxpr):
    """Return the largest number of elements of any array in a jaxpr, inner jaxprs included."""
    arrays = (v.aval for eqn in equations(jaxpr) for v in (*eqn.invars, *eqn.outvars))
    return max(a.size for a in arrays if hasattr(a, "size"))


@pytest.mark.parametrize("length, chunk", [(4224, 2048), (100, 64), (66, 64)])
def test_pieces_are_of_one_size(length, chunk):
    """4,223 tokens in pieces of 2,048 would make 6,144."""
    shapes = [
        jax.ShapeDtypeStruct(s, d)
        for s, d in (((1, length, 4), jnp.float32), ((16, 4), jnp.float32), ((1, length), jnp.int32))
    ]
    jaxpr = jax.make_jaxpr(lambda h, e, t: next_token_logp_and_entropy(h, e, t, temperature=1.0, chunk=chunk))(*shapes)
    (loop,) = (e for e in equations(jaxpr.jaxpr) if e.primitive.name == "scan")
    count, _, steps = next(v.aval.shape[:3] for v in loop.invars if v.aval.ndim == 4)
    assert steps <= chunk and length - 1 <= count * steps < length - 1 + count


def test_logits_of_the_whole_batch_never_exist():
    """Guards the memory claim, forward and backward: without the checkpoint, lax.map would stack
    the softmax of every chunk for the backward pass, [B, T, V] again."""
    batch, length, width, vocab, chunk = 2, 64, 4, 128, 16

    def traced(chunk):
        def loss(hidden, embed):
            targets = jnp.zeros((batch, length), int)
            logp, entropy = token_logp_and_entropy(hidden, embed, targets, temperature=1.0, chunk=chunk)
            return logp.sum() + entropy.sum()

        shapes = jnp.zeros((batch, length, width)), jnp.zeros((vocab, width))
        return largest_array(jax.make_jaxpr(jax.grad(loss, (0, 1)))(*shapes).jaxpr)

    assert traced(chunk) == chunk * vocab
    assert traced(batch * length) == batch * length * vocab  # the detector sees them when they are


def test_token_denominator_by_hand():
    """Guards what counts as a sequence: rows (3 tokens), (1 token), (empty) are two sequences."""
    mask = np.array([[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    assert token_denominator(mask, aggregation="token_mean", max_length=None) == 4
    np.testing.assert_array_equal(  # #sequences · own length; the empty row must not be 0
        token_denominator(mask, aggregation="sequence_mean", max_length=None), [[6], [2], [1]]
    )
    assert token_denominator(mask, aggregation="dr_grpo", max_length=10) == 20
    assert token_denominator(mask * 0, aggregation="token_mean", max_length=None) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"chunk": 0}, "chunk"),
        ({"targets": jnp.zeros((B, T + 1), int)}, "targets"),
    ],
)
def test_bad_arguments_are_named(override, message):
    """Guards against T = 0 turning into inf, and a [B, T + 1] target into a silent broadcast."""
    hidden, embed, targets = example(np.float32)
    args = {"temperature": 1.0, "chunk": 4, "targets": targets} | override
    targets = args.pop("targets")
    with pytest.raises(ValueError, match=message):
        token_logp_and_entropy(hidden, embed, targets, **args)


def test_bad_aggregations_are_named():
    """Guards against a misspelt aggregation that falls through to a default."""
    with pytest.raises(ValueError, match="'mean'"):
        token_denominator(np.ones((1, 1)), aggregation="mean", max_length=None)
    with pytest.raises(ValueError, match="max_length"):
        token_denominator(np.ones((1, 1)), aggregation="dr_grpo", max_length=None)
