"""Attention over pages: the GPU's kernels, interpreted on this CPU, against the loops in plain XLA."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3jax.models import pages_triton
from e3jax.models.pages import Pages, Piece, attend_pages, axes_of
from e3jax.models.presets import preset
from e3jax.models.qwen3 import Qwen3, init_params
from e3jax.runtime import put
from e3jax.sampler.page_table import PageTable
from e3jax.sharding import make_mesh

SLOTS, SIZE, NOWHERE = 6, 16, 1 << 30
DEAD = 2  # this slot has no sample


def a_cache(dtype, *, heads: int, kv_heads: int, head_width: int = 32, cache: str = "compute", shards: int = 1):
    """Return arguments of attend_pages: slots of 1 to 200 tokens in a pool that grew three times, one slot dead."""
    rng = np.random.default_rng(0)
    length_j = rng.integers(1, 200, SLOTS)
    table = PageTable.empty(shards, SLOTS, page=SIZE, columns=16, longest=16)
    grown = [x for share in (0.1, 0.5, 1.0) for x in table.reserve(np.maximum((length_j * share).astype(int), 1))]
    table.request_j[:] = np.arange(SLOTS)
    table.release(np.array([DEAD]))
    assert len(grown) > 1

    def random(*shape):
        x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
        return (x * 30).astype(jnp.int8) if cache == "int8" and len(shape) == 5 else x.astype(dtype)

    def scales(*shape):  # of every entry its own: a wrong page, head or layer shows
        return jnp.asarray(rng.uniform(0.01, 0.06, shape), jnp.float32) if cache == "int8" else None

    pieces = []
    for x in grown:
        k, v = random(2, x, kv_heads, head_width, SIZE), random(2, x, kv_heads, SIZE, head_width)
        pieces.append(Piece(k, v, scales(2, x, kv_heads, SIZE), scales(2, x, kv_heads, SIZE)))
    q, k, v = (random(SLOTS, n, head_width) for n in (heads, kv_heads, kv_heads))
    position = jnp.where(jnp.arange(SLOTS) == DEAD, NOWHERE, jnp.asarray(length_j - 1, jnp.int32))
    return q, k, v, Pages((tuple(pieces),), table.table_jn, *table.owners()), jnp.int32(1), position


def compare(arguments, most: float) -> None:
    """Compare live slots' attention by both ways, and what both wrote, bit for bit."""
    run = jax.jit(attend_pages, static_argnames="kernel")
    (loops, written), (kernels, same) = (run(*arguments, kernel=k) for k in ("xla", "triton_interpret"))
    assert np.isfinite(np.asarray(kernels, np.float32)).all()
    gap = np.abs(np.asarray(loops, np.float32) - np.asarray(kernels, np.float32))
    assert gap[np.arange(SLOTS) != DEAD].max() < most
    for a, b in zip(jax.tree.leaves(written), jax.tree.leaves(same)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype, most", [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize(
    "heads, kv_heads, cache", [(4, 2, "compute"), (6, 2, "compute"), (2, 2, "compute"), (4, 2, "int8")]
)
def test_kernels_equal_the_loops(dtype, most, heads, kv_heads, cache):
    """With one, two and three queries to a key head; the same tokens are written."""
    compare(a_cache(dtype, heads=heads, kv_heads=kv_heads, cache=cache), most)


def test_kernels_equal_the_loops_on_a_mesh():
    """Every device has its own slots, pages and heads."""
    with jax.set_mesh(make_mesh(data=2, fsdp=1, tensor=2, devices=jax.devices()[:4])):
        q, k, v, cache, layer, position = a_cache(jnp.float32, heads=4, kv_heads=2, shards=2)
        pieces = tuple(
            Piece(*(put(np.asarray(x), axes) for x, axes in zip(piece, axes_of(piece)) if x is not None))
            for piece in cache.pools[0]
        )
        small = [put(np.asarray(x), axes) for x, axes in zip(cache[1:], ("JT", "X", "X"))]
        compare((q, k, v, Pages((pieces,), *small), layer, position), 1e-6)


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="JAX 0.11 lowers Triton kernels only beside a GPU")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_kernels_lower_for_a_gpu(dtype):
    """Triton accepts shapes and types: the program for a GPU's compiler is made without a GPU."""
    arguments = a_cache(dtype, heads=6, kv_heads=2, head_width=64)
    traced = jax.jit(attend_pages, static_argnames="kernel").trace(*arguments, kernel="triton")
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.custom_call @__gpu$xla.gpu.triton") == 2


def test_what_the_kernels_can_read():
    """Offsets of an int8 array between 2³¹ and 2³² entries would wrap around, because Pallas goes by bytes."""

    def pool(pages, dtype):
        k = jax.ShapeDtypeStruct((28, pages, 8, 128, 64), dtype)
        return [Piece(k, k, None, None)]

    assert not pages_triton.available()  # no GPU here
    for head_width, wide_enough in {64: True, 128: True, 80: False, 8: False}.items():
        assert pages_triton.fits(head_width, "bfloat16", pool(8, jnp.bfloat16)) == wide_enough
    assert [pages_triton.fits(256, dtype, pool(8, dtype)) for dtype in (jnp.bfloat16, jnp.float32)] == [True, False]
    at_128 = partial(pages_triton.fits, 128, "bfloat16")
    assert at_128(pool(1024, jnp.int8)) and at_128(pool(4096, jnp.int8))
    assert not at_128(pool(2048, jnp.int8))
    assert all(at_128(pool(1 << n, jnp.bfloat16)) for n in range(16))
    assert [pages_triton.rows_of(r) for r in (1, 2, 3, 6, 8)] == [1, 2, 4, 8, 8]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kernel", ["auto", "xla"])
def test_decoding_on_a_gpu_has_its_kernels_in_every_dtype(monkeypatch, dtype, kernel):
    """A float32 model needed attention="xla", which took the slow loops in decoding too. Nothing runs here: the test
    looks at the program that is made for a GPU.
    """
    gpu = SimpleNamespace(platform="gpu", compute_capability="8.0")
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
    model = Qwen3(preset("tiny"), dtype=dtype, remat="none", kernel=kernel)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    *_, cache, _, position = a_cache(dtype, heads=2, kv_heads=1)

    def decode(params):
        return model.apply({"params": params}, position[:, None] * 0, position[:, None], cache=cache)

    assert ("name=softmax_of_pages" in str(jax.make_jaxpr(decode)(params))) == (kernel == "auto")
