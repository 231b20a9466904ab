"""Attention over pages: the GPU's kernels, interpreted on this CPU, against the loops in plain XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3jax.models import pages_triton
from e3jax.models.pages import Pages, Piece, attend_pages
from e3jax.sampler.book import Book

SLOTS, SIZE, NOWHERE = 5, 16, 1 << 30
DEAD = 2  # this slot has no sample


def a_cache(dtype, *, heads: int, kv_heads: int, head_width: int, cache: str):
    """Arguments of attend_pages: slots of 1 to 200 tokens in a pool that grew three times, one slot dead."""
    rng = np.random.default_rng(0)
    length_j = rng.integers(1, 200, SLOTS)
    book = Book.empty(1, SLOTS, page=SIZE, rows=16, longest=16)
    grown = [x for share in (0.1, 0.5, 1.0) for x in book.reserve(np.maximum((length_j * share).astype(int), 1))]
    book.request_j[:] = np.arange(SLOTS)
    book.release(np.array([DEAD]))
    assert len(grown) > 1

    def random(*shape):
        x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
        return (x * 30).astype(jnp.int8) if cache == "int8" and len(shape) == 5 else x.astype(dtype)

    pieces = []
    for x in grown:
        k, v = random(2, x, kv_heads, head_width, SIZE), random(2, x, kv_heads, SIZE, head_width)
        scale = jnp.full((2, x, kv_heads, SIZE), 1 / 30) if cache == "int8" else None
        pieces.append(Piece(k, v, scale, scale))
    q, k, v = (random(SLOTS, n, head_width) for n in (heads, kv_heads, kv_heads))
    position = jnp.where(jnp.arange(SLOTS) == DEAD, NOWHERE, jnp.asarray(length_j - 1, jnp.int32))
    owners = [jnp.asarray(x) for x in book.owners()]
    return q, k, v, Pages(tuple(pieces), jnp.asarray(book.table_jn), *owners), jnp.int32(1), position


@pytest.mark.parametrize("dtype, most", [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize(
    "heads, kv_heads, cache", [(4, 2, "compute"), (6, 2, "compute"), (2, 2, "compute"), (4, 2, "int8")]
)
def test_kernels_equal_the_loops(dtype, most, heads, kv_heads, cache):
    """One, two and three queries to a key head; the same tokens are written."""
    arguments = a_cache(dtype, heads=heads, kv_heads=kv_heads, head_width=32, cache=cache)
    out, written = {}, {}
    for kernel in ("xla", "triton_interpret"):
        out[kernel], written[kernel] = jax.jit(attend_pages, static_argnames="kernel")(*arguments, kernel=kernel)
    assert np.isfinite(np.asarray(out["triton_interpret"], np.float32)).all()
    live = np.arange(SLOTS) != DEAD
    gap = np.abs(np.asarray(out["xla"] - out["triton_interpret"], np.float32))[live]
    assert gap.max() < most
    for a, b in zip(jax.tree.leaves(written["xla"]), jax.tree.leaves(written["triton_interpret"])):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="JAX 0.11 lowers Triton kernels only beside a GPU")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_kernels_lower_for_a_gpu(dtype):
    """Triton's shapes and types are right: what a GPU's compiler gets is made without one."""
    arguments = a_cache(dtype, heads=6, kv_heads=2, head_width=64, cache="compute")
    traced = jax.jit(attend_pages, static_argnames="kernel").trace(*arguments, kernel="triton")
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.custom_call @__gpu$xla.gpu.triton") == 2


def test_where_the_kernels_run():
    assert pages_triton.available(64) and not pages_triton.available(80) and not pages_triton.available(8)
    assert [pages_triton.rows_of(r) for r in (1, 2, 3, 6, 8)] == [1, 2, 4, 8, 8]
