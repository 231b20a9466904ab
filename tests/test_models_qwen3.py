"""The model: one forward for training, prefill and decode (equality with transformers: test_checkpoint_hf.py)."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3jax.models.attention import cache_mask
from e3jax.models.cache import empty_cache
from e3jax.models.pages import NONE, Copies, Pages, copy_prompts, empty_piece, gather_pages
from e3jax.models.presets import preset
from e3jax.models.qwen3 import Qwen3, init_params, join_products, unstack


def apply(model, params, token, position, **how):
    """Return hidden states and cache, as one program: op by op a forward pass is a hundred of them."""
    return jax.jit(lambda params, token, position: model.apply({"params": params}, token, position, **how))(
        params, token, position
    )


def positions(b, t):
    return jnp.broadcast_to(jnp.arange(t), (b, t))


def test_cache_mask_written_out():
    """A query must not see positions of the cache that are not written."""
    assert cache_mask(jnp.array([[2]]), 4)[0].astype(int).tolist() == [[1, 1, 1, 0]]


@pytest.mark.parametrize("pools", ["of all layers", "one a layer", "one a layer, products joined"])
@pytest.mark.parametrize("sizes", [(8,), (2, 2, 4)])
def test_prefill_and_decode_equal_one_forward(tiny, sizes, pools):
    """Ragged rows: prompts into a cache, from there into pages of 4 that lie anywhere in one piece or in several.

    Rows 0 and 2 begin alike and share that page. A wrong position, mask, page or order of pages shows at the first step
    after the prompt.
    """
    model, params = tiny
    token = jax.random.randint(jax.random.key(1), (3, 20), 0, 210)
    token = token.at[2, :4].set(token[0, :4])
    full, _ = apply(model, params, token, positions(3, 20))
    cache = empty_cache(model.config, 3, 8, jnp.float32)
    _, prompts = apply(model, params, token[:, :8], positions(3, 8), cache=cache, window=8)
    start = jnp.array([4, 8, 6])  # shorter prompts than what was prefilled: the rest is written over
    table = np.full((3, 8), 99, np.int32)
    table[:, :5] = np.random.default_rng(0).permutation(24)[:15].reshape(3, 5)
    owner, order = np.full(24, -1, np.int32), np.zeros(24, np.int32)
    owner[table[:, :5]], order[table[:, :5]] = np.arange(3)[:, None], np.arange(5)
    layers, own = model.config.layers, pools != "of all layers"
    decode_params = join_products(params) if "joined" in pools else params
    copies = Copies(
        jnp.array([(0, 1, table[0, 1]), (0, 0, NONE), (2, 1, table[2, 1])]),
        jnp.array([(0, 0, 5), (1, 0, 2), (1, 1, 7), (0, 0, NONE)]),
    )
    owners = np.full((8, 2), -1, np.int32)  # of shared pages
    for row, n, y, w in ((0, 0, 5, 1), (1, 0, 2, 0), (1, 1, 7, 0), (2, 0, 5, 0)):
        owner[table[row, n]], owners[y, w], table[row, n] = -1, row, 24 + 2 * y + w

    def empty(pages):
        pool = tuple(empty_piece(model.config, pages * n, 4, jnp.float32, layers=1 if own else layers) for n in sizes)
        return jax.tree.map(lambda x: x + 1e4, (pool,) * (layers if own else 1))

    pools = copy_prompts(empty(3), empty(1), prompts, copies)
    cache = Pages(*pools, *map(jnp.asarray, (table, owner, order, owners)))
    decode_params = unstack(decode_params) if own else decode_params
    decode = jax.jit(lambda token, at, cache: model.apply({"params": decode_params}, token, at, cache=cache))
    for i in range(11):
        at = (start + i)[:, None]
        one, cache = decode(jnp.take_along_axis(token, at, 1), at, cache)
        want = jnp.take_along_axis(full, at[:, :, None], 1)
        np.testing.assert_allclose(one, want, atol=2e-5)


@pytest.mark.parametrize(
    "family", [dict(qk_norm=True), dict(qk_norm=False), dict(qk_norm=False, qkv_bias=True), dict(heads=6, kv_heads=2)]
)
def test_joined_products_equal_those_apart(family):
    """One, two and three query heads a key head; norms, neither, biases: a wrong row of the joint matrix shows.

    Float32; the tolerance is what other sums of the same products differ by.
    """
    config = replace(preset("tiny"), heads=4, kv_heads=2) if "heads" not in family else preset("tiny")
    model = Qwen3(replace(config, **family), dtype=jnp.float32, remat="none", kernel="xla")
    noise = iter(list(jax.random.split(jax.random.key(1), 100)))

    @jax.jit
    def drawn():  # scales and biases too
        params = init_params(model, jax.random.key(0))
        return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(noise), x.shape), params)

    params = drawn()
    token = jax.random.randint(jax.random.key(2), (3, 20), 0, 210)
    want, _ = apply(model, params, token, positions(3, 20))
    for layout in (join_products(params), unstack(join_products(params))):
        got, _ = apply(model, layout, token, positions(3, 20))
        np.testing.assert_allclose(got, want, atol=5e-5)


def test_gather_pages_closes_up():
    """Takes pages of two pieces in a new order; page 3 is the second piece's first."""
    empty = empty_piece(preset("tiny"), 3, 4, jnp.float32, layers=3)
    number = jnp.arange(3.0).reshape(1, 3, 1, 1, 1)
    pieces = tuple(jax.tree.map(lambda x, n=n: x + n + number, empty) for n in (0.0, 3.0))
    for part in gather_pages(pieces, jnp.array([4, 0, 3, 5]))[:2]:
        assert part[0, :, 0, 0, 0].tolist() == [4.0, 0.0, 3.0, 5.0]


def test_packed_equals_alone(tiny):
    """Two examples in one row give what each gives alone; positions restart and segments keep them apart."""
    model, params = tiny
    a, b = jnp.array([[5, 6, 7]]), jnp.array([[8, 9]])
    at, segments = jnp.array([[0, 1, 2, 0, 1]]), jnp.array([[1, 1, 1, 2, 2]])
    packed, _ = apply(model, params, jnp.concatenate([a, b], 1), at, segment_bt=segments)
    alone_a, _ = apply(model, params, a, positions(1, 3))
    alone_b, _ = apply(model, params, b, positions(1, 2))
    np.testing.assert_allclose(packed, jnp.concatenate([alone_a, alone_b], 1), atol=2e-5)


def test_remat_changes_no_gradient(tiny):
    """Recomputation saves memory and changes nothing else."""
    model, params = tiny
    token = jax.random.randint(jax.random.key(1), (2, 12), 0, 210)

    def grads(remat):
        m = Qwen3(model.config, dtype=jnp.float32, remat=remat, kernel="xla")
        return jax.jit(jax.grad(lambda p: m.apply({"params": p}, token, positions(2, 12))[0].var()))(params)

    want = grads("none")
    for remat in ("full", "attention", "matmuls"):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), want, grads(remat))


def test_embedding_gradient_sums_in_float32(tiny):
    """1,024 uses of one token: a bfloat16 sum of their gradients stalls near 256."""
    model = Qwen3(tiny[0].config, dtype=jnp.bfloat16, remat="none", kernel="xla")
    token = jnp.full((1, 1024), 7)

    def loss(params, token):  # a plain sum: every token's gradient counts the same
        hidden, _ = model.apply({"params": params}, token, positions(*token.shape))
        return hidden.astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(loss))
    many, one = (gradient(tiny[1], some)["embed_vd"][7] for some in (token, token[:, :1]))
    ratio = jnp.linalg.norm(many) / jnp.linalg.norm(one)
    assert 950 < ratio < 1100, ratio  # equal tokens attend to equal values: each contributes the same
