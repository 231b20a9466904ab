"""Attention over pages: the GPU's kernels, interpreted on this CPU, against the loops in plain XLA."""

from collections import Counter
from dataclasses import replace
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
from e3jax.sampler.layout import few_kernels
from e3jax.sampler.page_table import PageTable
from e3jax.sampler.shared_pages import SharedPages, shared_pages_of
from e3jax.sharding import make_mesh

SLOTS, SIZE, NOWHERE = 6, 16, 1 << 30
DEAD = 2  # this slot has no sample


def a_cache(
    dtype,
    *,
    heads: int,
    kv_heads: int,
    head_width: int = 32,
    cache: str = "compute",
    shards: int = 1,
    prompt_j=(1,) * SLOTS,
):
    """Return arguments of attend_pages: slots of up to 200 tokens in a pool that grew several times, one slot dead.

    Slots of equal `prompt_j`, tokens of a prompt, share its pages.
    """
    rng, prompt_j = np.random.default_rng(0), np.array(prompt_j)
    length_j = prompt_j + rng.integers(0, 200 - prompt_j.max(), SLOTS)
    table = PageTable.empty(shards, SLOTS, page=SIZE, columns=16, longest=16)
    table.shared_j[:] = shared_pages_of(prompt_j, SIZE)
    grown = [x for share in (0.1, 0.5, 1.0) for x in table.reserve(np.maximum(length_j * share, prompt_j).astype(int))]
    shared = SharedPages.empty(shards, SLOTS, page=SIZE, longest=16)
    both = np.split(np.arange(SLOTS), 2)  # in turn, so that this pool grows as well
    more = [x for slots in both for x in shared.begin(slots, prompt_j[slots], prompt_j[slots])[0]]
    table.request_j[:] = np.arange(SLOTS)
    table.release(np.array([DEAD])), shared.release(np.array([DEAD]))
    assert len(grown) > 1

    def random(*shape):
        x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
        return (x * 30).astype(jnp.int8) if cache == "int8" and len(shape) == 5 else x.astype(dtype)

    def scales(*shape):  # of every entry its own: a wrong page, head or layer shows
        return jnp.asarray(rng.uniform(0.01, 0.06, shape), jnp.float32) if cache == "int8" else None

    def piece(x):
        k, v = random(2, x, kv_heads, head_width, SIZE), random(2, x, kv_heads, SIZE, head_width)
        return Piece(k, v, scales(2, x, kv_heads, SIZE), scales(2, x, kv_heads, SIZE))

    pools = (tuple(map(piece, grown)),), (tuple(map(piece, more)),)
    q, k, v = (random(SLOTS, n, head_width) for n in (heads, kv_heads, kv_heads))
    position = jnp.where(jnp.arange(SLOTS) == DEAD, NOWHERE, jnp.asarray(length_j - 1, jnp.int32))
    entries = shared.entries(table.table_jn, table.owner_dx.shape[1])
    return q, k, v, Pages(*pools, entries, *table.owners(), shared.owners()), jnp.int32(1), position


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


@pytest.mark.parametrize(
    "heads, kv_heads, cache, prompt_j",
    [
        (4, 2, "compute", (40, 40, 40, 90, 90, 33)),
        (6, 2, "int8", (40, 40, 40, 90, 90, 3)),
        (16, 1, "compute", (40,) * 6),
    ],
)
def test_shared_pages_are_read_as_copies_are(heads, kv_heads, cache, prompt_j):
    """Kernels and loops agree where slots share pages, and the loops give what a copy for each slot gives.

    One program serves 8 owners with 2 queries each, 4 with 3 (padded to 4), and 1 with 16.
    """
    arguments = a_cache(jnp.float32, heads=heads, kv_heads=kv_heads, cache=cache, prompt_j=prompt_j)
    compare(arguments, 1e-6)
    attend = jax.jit(partial(attend_pages, kernel="xla"))
    out, alone = (attend(*arguments[:3], c, *arguments[4:])[0] for c in (arguments[3], copied(arguments[3])))
    np.testing.assert_allclose(np.delete(out, DEAD, 0), np.delete(alone, DEAD, 0), atol=1e-6)


def copied(cache: Pages) -> Pages:
    """Return the same cache with a page of its own for every owner of a shared page."""
    (pieces,), (shared,), table_jn, owner_x, order_x, owner_yw = cache
    columns, j_w = owner_yw.shape[1], owner_yw.reshape(-1)
    together = (jnp.concatenate(x, axis=1) for x in zip(*shared) if x[0] is not None)
    more = Piece(*(jnp.repeat(x, columns, axis=1) for x in together))
    order_w = np.zeros(len(j_w), np.int32)
    j, n = np.nonzero((table_jn >= len(owner_x)) & (table_jn < len(owner_x) + len(j_w)))
    order_w[table_jn[j, n] - len(owner_x)] = n
    nobody = np.full((0, 1), -1, np.int32)
    return Pages(((*pieces, more),), ((),), table_jn, np.append(owner_x, j_w), np.append(order_x, order_w), nobody)


def test_kernels_equal_the_loops_on_a_mesh():
    """Every device has its own slots, pages and heads, and its own copy of a prompt's pages."""
    with jax.set_mesh(make_mesh(data=2, fsdp=1, tensor=2, devices=jax.devices()[:4])):
        arguments = a_cache(jnp.float32, heads=4, kv_heads=2, shards=2, prompt_j=(40, 40, 40, 90, 40, 90))
        q, k, v, cache, layer, position = arguments

        def placed(pool):
            return tuple(
                Piece(*(put(np.asarray(x), axes) for x, axes in zip(piece, axes_of(piece)) if x is not None))
                for piece in pool
            )

        small = [put(np.asarray(x), axes) for x, axes in zip(cache[2:], ("JT", "X", "X", "XT"))]
        pools = ((placed(cache.pools[0]),), (placed(cache.shared[0]),))
        compare((q, k, v, Pages(*pools, *small), layer, position), 1e-6)


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="JAX 0.11 lowers Triton kernels only beside a GPU")
@pytest.mark.parametrize("cache", ["compute", "int8"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_kernels_lower_for_a_gpu(dtype, cache):
    """Triton accepts shapes and types: the program for a GPU's compiler is made without a GPU."""
    arguments = a_cache(dtype, heads=6, kv_heads=2, head_width=64, cache=cache, prompt_j=(40, 40, 40, 90, 90, 33))
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


def test_a_layer_of_a_decode_step_has_few_operations(monkeypatch):
    """Count what XLA cannot fuse with its neighbours in one layer of the program for a GPU: what three layers have more
    than two. At c6dbee4 it was 35 for this model and this pool of four pieces: 11 slices of stacked weights, 7
    products, 8 scatters, 4 sums, 2 gathers, a pad, 2 kernels.
    """
    monkeypatch.setattr(pages_triton, "nvidia_capability", lambda: 9.0)
    more = operations(3) - operations(2)
    # sums of two norms and of QK-norm; the gather is of every slot's position, which XLA makes once for all layers
    assert more == Counter(dot_general=4, pallas_call=2, reduce_sum=3, gather=1)


def operations(layers: int) -> Counter:
    """Count the operations of one step of a model of so many layers, in the layout that GPUs decode with."""
    config = replace(preset("tiny"), layers=layers)
    model = Qwen3(config, dtype=jnp.bfloat16, remat="none", kernel="auto")
    params = jax.eval_shape(lambda: few_kernels(init_params(model, jax.random.key(0)), "bfloat16"))
    *_, cache, _, position = a_cache(jnp.bfloat16, heads=2, kv_heads=1)
    one = [tuple(jax.tree.map(lambda x: x[:1], piece) for piece in pools[0]) for pools in cache[:2]]
    cache = cache._replace(pools=(one[0],) * layers, shared=(one[1],) * layers)

    def decode(params):
        return model.apply({"params": params}, position[:, None] * 0, position[:, None], cache=cache)

    return Counter(anchors(jax.make_jaxpr(decode)(params).jaxpr))


def anchors(jaxpr):
    """Yield the operations that become a kernel each, those of inner programs too; others are fused into these."""
    kernels = ("dot_general", "pallas_call", "reduce_", "scatter", "gather", "dynamic_", "sort", "pad", "while", "scan")
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name.startswith(kernels):
            yield name
        inner = [x for x in equation.params.values() if hasattr(x, "eqns") or hasattr(x, "jaxpr")]
        if name != "pallas_call":
            for one in inner:
                yield from anchors(getattr(one, "jaxpr", one))


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
