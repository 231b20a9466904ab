"""The key/value cache of decoding: pages of 64 positions, as many as the live tokens need, and attention over them.

A slot's positions lie in pages anywhere in the pool; the host hands them out (sampler/page_table.py). A decode step
reads every page once, with the query of the slot that owns it, and merges a slot's partial softmaxes in the order of
its positions. So time and memory follow the number of live tokens, not the longest sample times the number of slots,
and a token's logits depend neither on where its pages lie nor on which samples sit beside it.

Samples of one prompt share its full pages: these lie in a pool of their own, which decoding reads and never writes.
Such a page is read once, with the queries of all slots that own it.

A pool is a tuple of pieces along the pages. A larger pool is the same pieces and one more, so growing copies nothing.
One pool serves all layers, which the model loops over. On a CPU every layer has its own pool, because XLA copies there
what it slices, and multiplies a whole array where it lies: a piece is read whole if some slot owns a page of it. On a
mesh every device has its own slots, pages and page numbers. On a GPU both steps of the softmax below are kernels, the
first of which writes the new keys and values too (models/pages_triton.py). Layers have pools of their own there too: a
slice of a stack would be a kernel.

    softmax of a page x             m = max_s z    l = Σ_s e^(z-m)    o = Σ_s e^(z-m) v_s
    merged over a slot's pages      M = max_x m    out = Σ_x e^(m-M) o / Σ_x e^(m-M) l        (flash decoding)

Axes of this file beside those of types.py: n is the n-th page of a slot (in `table_jn`), or N query heads next to H; s
is a position within a page; y is a page in the pool of shared pages, w one of its owners; m in `copies_m3` counts
copies.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.models import pages_triton
from e3jax.models.attention import MASKED
from e3jax.models.cache import KVCache, quantize
from e3jax.models.presets import ModelConfig
from e3jax.sharding import constrain, spec

PAGE = 64  # positions
CHUNK = 64  # pages that are read at once, so that they fit into a processor's cache
MERGED = 8  # pages of a slot that are merged at once
NONE = 1 << 30  # stands for the number of a page where there is none


class Piece(NamedTuple):
    """Keys and values of L layers (all, or one) in X pages of S positions.

    Keys lie as [H, S]: with a few queries, XLA's CPU backend multiplies that 2.4 to 3.6 times as fast as [S, H]
    (LOG.md, 2026-11-24, "Pages, and blocks of queries").
    """

    k: jax.Array  # [L, X, K, H, S], after QK-norm and RoPE
    v: jax.Array  # [L, X, K, S, H]
    k_scale: jax.Array | None = None  # [L, X, K, S] float32 where k is int8: key = k · scale
    v_scale: jax.Array | None = None


AXES = Piece("LXKHS", "LXKSH", "LXKS", "LXKS")
Pool = tuple[Piece, ...]


class Pages(NamedTuple):
    """The pools, and who owns which page. Page numbers count through all pieces of a device, in all pools alike."""

    pools: tuple[Pool, ...]  # one for all layers, or one for each layer
    shared: tuple[Pool, ...]  # as many, of pages that several slots may own
    table_jn: jax.Array  # where a slot's positions n·S … n·S + S - 1 lie: page x, or X + y·W + w, or NONE
    owner_x: jax.Array  # slot (of this device) that a page belongs to, or -1
    order_x: jax.Array  # n, where the page is its owner's n-th
    owner_yw: jax.Array  # slots that a shared page belongs to, or -1


def per_device(function, axes_in, axes_out, *args):
    """Apply `function` to every device's part of the args, whose axes `axes_in` names; without a mesh, to the args."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(*args)

    def specs(axes):
        return jax.tree.map(lambda a: spec(a, mesh), axes)

    mapped = jax.shard_map(function, in_specs=specs(axes_in), out_specs=specs(axes_out), check_vma=False)
    return mapped(*args)


def axes_of(piece: Piece) -> Piece:
    """Return the axis letters of every array of a piece, None where it has no such array."""
    return Piece(*(None if part is None else axes for part, axes in zip(piece, AXES)))


def empty_piece(config: ModelConfig, pages: int, size: int, dtype, *, layers: int) -> Piece:
    """Allocate zeros: `pages` pages of `size` positions of `layers` layers; inside jit on a mesh, laid out over it."""
    rows = (layers, pages, config.kv_heads)
    k = constrain(jnp.zeros((*rows, config.head_width, size), dtype), AXES.k)
    v = constrain(jnp.zeros((*rows, size, config.head_width), dtype), AXES.v)
    if k.dtype != jnp.int8:
        return Piece(k, v)
    return Piece(k, v, *(constrain(jnp.zeros((*rows, size), jnp.float32), AXES.k_scale) for _ in range(2)))


def write(piece: Piece, layer, page_j, at_j, k_jkh, v_jkh) -> Piece:
    """Return the piece with every slot's new key and value at position `at_j` of page `page_j`; drop other pages."""
    index = (layer, page_j[:, None], jnp.arange(k_jkh.shape[1]))
    k_scale = v_scale = None
    if piece.k_scale is not None:
        (k_jkh, k_scale), (v_jkh, v_scale) = quantize(k_jkh), quantize(v_jkh)
        k_scale = piece.k_scale.at[*index, at_j[:, None]].set(k_scale, mode="drop")
        v_scale = piece.v_scale.at[*index, at_j[:, None]].set(v_scale, mode="drop")
    across = (index[0], index[1][:, :, None], index[2][None, :, None], jnp.arange(k_jkh.shape[2]), at_j[:, None, None])
    k = piece.k.at[across].set(k_jkh.astype(piece.k.dtype), mode="drop")
    v = piece.v.at[*index, at_j[:, None]].set(v_jkh.astype(piece.v.dtype), mode="drop")
    return Piece(k, v, k_scale, v_scale)


def attend_pages(q_jnh, k_jkh, v_jkh, cache: Pages, layer, position_j, *, kernel: str = "") -> tuple[jax.Array, Pages]:
    """Write one token per slot at its position and attend to all positions up to it; return [J, N, H] and the cache.

    A slot whose position lies beyond its table writes nothing, and its result means nothing.
    `kernel`: "xla", "triton" (models/pages_triton.py), "triton_interpret" for tests; "" takes the backend's.
    """
    kernel = kernel or ("triton" if pages_triton.available() else "xla")
    pools = list(cache.pools)
    at, layer = (0, layer) if len(pools) == 1 else (layer, 0)
    pool, shared = (tuple(map(axes_of, of[at])) for of in (pools, cache.shared))
    axes = ("JNH", "JKH", "JKH", Pages((pool,), (shared,), "JT", "X", "X", "XT"), "", "J")
    one, layer = cache._replace(pools=(pools[at],), shared=(cache.shared[at],)), jnp.asarray(layer, jnp.int32)
    attend = partial(_attend, kernel=kernel)
    out, pools[at] = per_device(attend, axes, ("JNH", pool), q_jnh, k_jkh, v_jkh, one, layer, position_j)
    return out, cache._replace(pools=tuple(pools))


def _attend(q_jnh, k_jkh, v_jkh, cache: Pages, layer, position_j, *, kernel: str):
    """Do the work of `attend_pages` on one device, with the one pool of this layer."""
    (pieces,), (shared,), table_jn, owner_x, order_x, owner_yw = cache
    (j, n, h), k = q_jnh.shape, k_jkh.shape[1]
    q_jkrh = q_jnh.reshape(j, k, n // k, h) * h**-0.5
    size = pieces[0].k.shape[4]
    live_j = position_j < table_jn.shape[1] * size
    owners = owner_x, jnp.where(owner_x >= 0, position_j[owner_x] - order_x * size, -1), owner_yw  # last positions
    until_j = jnp.where(live_j, position_j, 0)
    if kernel == "xla" or not pages_triton.fits(h, q_jnh.dtype, [*pieces, *shared]):
        written = _write_each(pieces, layer, table_jn, live_j, position_j, k_jkh, v_jkh)
        softmaxes = _softmaxes_of_one_layer if written[0].k.shape[0] == 1 else partial(_softmaxes, layer)
        parts = softmaxes(q_jkrh, written, owner_x[:, None], owners[1])
        if shared:
            more = softmaxes(q_jkrh, shared, owner_yw, jnp.full(len(owner_yw), size - 1))
            parts = tuple(map(jnp.concatenate, zip(parts, more)))
        out = _together(*parts, table_jn, until_j, size=size)
    else:
        how = dict(queries=n // k, interpret=kernel == "triton_interpret")
        heads_jkgh = jnp.concatenate([q_jkrh, k_jkh[:, :, None], v_jkh[:, :, None]], axis=2)
        scaled = ()
        if pieces[0].k_scale is not None:
            (k8_jkh, k_scale_jk), (v8_jkh, v_scale_jk) = quantize(k_jkh), quantize(v_jkh)
            scaled = k8_jkh, v8_jkh, k_scale_jk, v_scale_jk
        parts, written = pages_triton.softmaxes(heads_jkgh, scaled, pieces, shared, layer, owners, **how)
        out = pages_triton.together(parts, table_jn, until_j, dtype=q_jnh.dtype, size=size, merged=MERGED, **how)
    return out.astype(q_jnh.dtype).reshape(j, n, h), tuple(written)


def _write_each(pieces, layer, table_jn, live_j, position_j, k_jkh, v_jkh) -> list[Piece]:
    """Return the pieces with every live slot's new key and value at its position, wherever its page lies."""
    size, start, written = pieces[0].k.shape[4], 0, []
    at_j = jnp.take_along_axis(table_jn, jnp.where(live_j, position_j, 0)[:, None] // size, axis=1)[:, 0]
    at_j = jnp.where(live_j, at_j, NONE)
    for piece in pieces:
        pages = piece.k.shape[1]
        local = jnp.where((at_j >= start) & (at_j < start + pages), at_j - start, pages)  # `write` drops page `pages`
        written.append(write(piece, layer, local, position_j % size, k_jkh, v_jkh))
        start += pages
    return written


def _softmaxes(layer, q_jkrh, pieces, owner_xw, last_x):
    """Return m, l [X·W, K, R] and o [X·W, K, R, H]: every page's softmax by each owner's query, CHUNK at once."""
    k, r, h = q_jkrh.shape[1:]
    total, w = owner_xw.shape
    used = jnp.max(jnp.where(jnp.any(owner_xw >= 0, axis=1), jnp.arange(total) + 1, 0))

    def step_of(piece, start, chunk):
        def step(i, carry):
            here = i * chunk  # in the piece
            parts = [
                None
                if x is None
                else jax.lax.dynamic_slice(x, (layer, here) + (0,) * (x.ndim - 2), (1, chunk, *x.shape[2:]))[0]
                for x in piece
            ]
            owner = jax.lax.dynamic_slice(owner_xw, (start + here, 0), (chunk, w))
            last = jax.lax.dynamic_slice(last_x, (start + here,), (chunk,))
            results = softmaxes_by_owners(q_jkrh, parts, owner, last)
            return tuple(
                jax.lax.dynamic_update_slice(old, new, ((start + here) * w,) + (0,) * (new.ndim - 1))
                for old, new in zip(carry, results)
            )

        return step

    sums = jnp.zeros((total * w, k, r))
    carry, start = (sums + MASKED, sums, jnp.zeros((total * w, k, r, h))), 0
    for piece in pieces:
        pages = piece.k.shape[1]
        chunk = math.gcd(pages, CHUNK)
        steps = jnp.clip(-(-(used - start) // chunk), 0, pages // chunk)
        carry = jax.lax.fori_loop(0, steps, step_of(piece, start, chunk), carry)
        start += pages
    return carry


def _softmaxes_of_one_layer(q_jkrh, pieces, owner_xw, last_x):
    """Return what `_softmaxes` does, in a pool of one layer: pieces are read whole, those without an owner skipped."""

    def of(piece, owner_xw, last_x):
        def read(q_jkrh, piece):
            parts = (None if x is None else x[0] for x in piece)
            return softmaxes_by_owners(q_jkrh, parts, owner_xw, last_x)

        def skip(q_jkrh, piece):
            sums = jnp.zeros((owner_xw.size, *q_jkrh.shape[1:3]))
            return sums + MASKED, sums, jnp.zeros((owner_xw.size, *q_jkrh.shape[1:]))

        return jax.lax.cond(jnp.any(owner_xw >= 0), read, skip, q_jkrh, piece)

    starts = np.cumsum([piece.k.shape[1] for piece in pieces])[:-1]
    parts = map(of, pieces, jnp.split(owner_xw, starts), jnp.split(last_x, starts))
    return tuple(map(jnp.concatenate, zip(*parts)))


def softmaxes_by_owners(q_jkrh, parts, owner_xw, last_x):
    """Return m, l [X·W, K, R] and o [X·W, K, R, H] of pages by each owner's query; of -1 they mean nothing."""
    (x, w), (k, r, h) = owner_xw.shape, q_jkrh.shape[1:]
    q_xkrh = q_jkrh[jnp.maximum(owner_xw, 0)].swapaxes(1, 2).reshape(x, k, w * r, h)
    results = softmax_of_pages(q_xkrh, *parts, last_x)
    apart = (a.reshape(x, k, w, r, *a.shape[3:]).swapaxes(1, 2) for a in results)
    return tuple(a.reshape(x * w, k, r, *a.shape[4:]) for a in apart)


def _together(m_xkr, l_xkr, o_xkrh, table_jn, position_j, *, size: int):
    """Merge every slot's pages in the order of positions: [J, K, R, H]; pages that are not there weigh exactly 0."""
    j, total = len(table_jn), len(m_xkr)

    def merge(i, carry):
        m, total_weight, o = carry
        page_jn = jax.lax.dynamic_slice(table_jn, (0, i * MERGED), (j, MERGED))
        there = (page_jn < total)[:, :, None, None]
        page_jn = jnp.minimum(page_jn, total - 1)
        m_jnkr = jnp.where(there, m_xkr[page_jn], MASKED)
        most = jnp.maximum(m, jnp.max(m_jnkr, axis=1))
        old, weight = jnp.exp(m - most), jnp.exp(m_jnkr - most[:, None])
        total_weight = total_weight * old + jnp.sum(weight * l_xkr[page_jn], axis=1)
        # an einsum: written as a sum over n, this takes XLA's CPU backend forty times as long
        o = o * old[..., None] + jnp.einsum("jnkr,jnkrh->jkrh", weight, o_xkrh[page_jn], precision="highest")
        return most, total_weight, o

    sums = jnp.zeros((j, *m_xkr.shape[1:]))
    empty = sums + MASKED, sums, jnp.zeros((j, *o_xkrh.shape[1:]))
    _, total_weight, o = jax.lax.fori_loop(0, jnp.max(position_j) // (size * MERGED) + 1, merge, empty)
    return o / total_weight[..., None]


def softmax_of_pages(q_xkrh, k_xkhs, v_xksh, k_scale, v_scale, last_x):
    """Return m, l [X, K, R] and o [X, K, R, H] of pages, each attended up to its position last_x; float32 scores."""
    dtype = q_xkrh.dtype
    z = jnp.einsum("xkrh,xkhs->xkrs", q_xkrh, k_xkhs.astype(dtype), preferred_element_type=jnp.float32)
    if k_scale is not None:
        z = z * k_scale[:, :, None]
    visible = jnp.arange(z.shape[3])[None] <= last_x[:, None]
    z = jnp.where(visible[:, None, None], z, MASKED)
    m = jnp.max(z, axis=3)
    p = jnp.exp(z - m[..., None])
    weight = jnp.sum(p, axis=3)
    p = (p if v_scale is None else p * v_scale[:, :, None]).astype(dtype)
    o = jnp.einsum("xkrs,xksh->xkrh", p, v_xksh.astype(dtype), preferred_element_type=jnp.float32)
    return m, weight, o


class Copies(NamedTuple):
    """Pages of prefilled prompts to copy, in rows: prompt, its n-th page, page of the pool (NONE: copy nothing)."""

    own_m3: jax.Array  # a slot's own, as many rows a slot: the page that decoding writes on, perhaps one before it
    shared_m3: jax.Array  # shared ones; every device has as many rows


def copy_prompts(pools, shared, prompts: KVCache, copies: Copies) -> tuple[tuple[Pool, ...], tuple[Pool, ...]]:
    """Copy pages of prefilled prompts [L, P, K, T, H] into the pools of both kinds: a gather and a scatter per layer.

    Prompts are spread over the devices and any slot may want any of them, so they are gathered whole, one layer at a
    time: all layers would not fit.
    """
    whole = jax.tree.map(lambda part: "PKSH"[: part.ndim - 1], prompts)

    def copy(pieces, source, layer, copies_m3):
        size = pieces[0].k.shape[4]
        row_m, n_m, to_m = copies_m3.T

        def pages(x_pkt):  # [P, K, T, …] to [M, K, S, …]
            p, k, t, *more = x_pkt.shape
            return x_pkt.reshape(p, k, t // size, size, *more)[row_m, :, n_m]

        source = jax.tree.map(pages, source)
        source = Piece(source.k.swapaxes(2, 3), *source[1:])
        new, start = [], 0
        for piece in pieces:
            count = piece.k.shape[1]
            at_m = jnp.where((to_m >= start) & (to_m < start + count), to_m - start, count)  # page `count`: dropped
            new.append(jax.tree.map(lambda old, x, at=at_m: old.at[layer, at].set(x, mode="drop"), piece, source))
            start += count
        return tuple(new)

    def both(kinds, source, layer, copies):
        return tuple(
            copy(pieces, source, layer, rows) if pieces and len(rows) else pieces for pieces, rows in zip(kinds, copies)
        )

    def each(first, layer, kinds):
        source = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, first + layer, keepdims=False), prompts)
        axes, layer = tuple(tuple(map(axes_of, pieces)) for pieces in kinds), jnp.asarray(layer, jnp.int32)
        return per_device(both, (axes, whole, "", Copies("JT", "JT")), axes, kinds, source, layer, copies)

    layers = pools[0][0].k.shape[0]
    copied = (
        jax.lax.fori_loop(0, layers, partial(each, n * layers), kinds) for n, kinds in enumerate(zip(pools, shared))
    )
    return tuple(zip(*copied))


def gather_pages(pieces: Pool, page_x: jax.Array) -> Piece:
    """Return the pages `page_x` of a pool as one piece in that order, on every device its own: live pages, packed."""

    def gather(pieces, page_x):
        def layer(parts):
            out, start = 0, 0
            for part in parts:
                at = page_x - start
                here = ((at >= 0) & (at < part.shape[0])).reshape(-1, *(1,) * (part.ndim - 1))
                out += jnp.where(here, part[jnp.clip(at, 0, part.shape[0] - 1)], 0)
                start += part.shape[0]
            return out

        return Piece(*(None if parts[0] is None else jax.lax.map(layer, parts) for parts in zip(*pieces)))

    return per_device(gather, (tuple(map(axes_of, pieces)), "X"), axes_of(pieces[0]), pieces, page_x)
