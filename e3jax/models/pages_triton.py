"""Attention over pages on an NVIDIA GPU: the two loops of models/pages.py as two kernels (Pallas, by way of Triton).

XLA runs those loops as one small kernel after the other and asks the host before every round. Here the first kernel has
a program for every key head of every page, whatever piece the page lies in, and all of them run at once; the second has
a program for every key head of every slot, which merges its pages. Every key and value is read once, from where it
lies: a decode step takes 1.3 to 1.5 times as long as its bytes need on an H200 (benchmarks/README.md).

JAX 0.11 calls its Triton backend deprecated in favour of Mosaic, which runs on Hopper and later only and on no CPU.
`available` says whether this JAX and this device have it. The loops of models/pages.py run everywhere, on a GPU too
with config.model.attention = "xla".

Axes as in models/pages.py; i counts programs.
"""

from functools import partial

import jax
import jax.numpy as jnp

from e3jax.models.attention import MASKED, nvidia_capability

ROWS = 16  # fewest rows of a matrix product in Triton: R query heads are padded to it
WARPS = 4  # of every program; a step of 12.45 ms takes 12.72 ms with 2 of them on an H200 (LOG.md, 2026-11-27)


def available() -> bool:
    """Return whether JAX has its Triton backend and the default device is an NVIDIA GPU from Ampere on (bfloat16)."""
    try:
        from jax.experimental.pallas import triton  # noqa: F401
    except ImportError:
        return False
    return nvidia_capability() >= 8


def fits(head_width: int, dtype, pieces) -> bool:
    """Return whether these kernels can read these pages.

    A head's width must be a power of two and at most 512 bytes in the queries' dtype: a page's keys and values then
    take 64 KiB of an SM's 99 or more. Offsets must be ones that Triton gets right: Pallas counts entries, but goes from
    31 to 64 bits only where an array has more than 2³² bytes, which is too late for an array of int8.
    """
    parts = [part for piece in pieces for part in piece if part is not None]
    right = all(part.size <= 2**31 or part.size * part.dtype.itemsize > 2**32 for part in parts)
    small = head_width * jnp.dtype(dtype).itemsize <= 512
    return right and small and head_width >= ROWS and head_width & (head_width - 1) == 0


def rows_of(queries: int) -> int:
    """Return R rounded up to a power of two."""
    return 1 << (queries - 1).bit_length()


def pallas_call(kernel, *, interpret: bool, **shapes):
    """Return the callable of a kernel with its number of warps, which the interpreter on CPU does not take."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    params = {} if interpret else {"compiler_params": triton.CompilerParams(num_warps=WARPS)}
    return pl.pallas_call(kernel, interpret=interpret, **shapes, **params)


def softmaxes(q_jkrh, pieces, layer, owner_x, last_x, *, interpret: bool = False):
    """Return m, l [X, K, R] and o [X, K, R, H] of every page that a slot owns, up to position last_x; float32.

    R is a power of two (`rows_of`). The results of pages with last_x < 0 mean nothing.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (_, heads, queries, h), size = q_jkrh.shape, pieces[0].k.shape[4]
    rows = max(queries, ROWS)
    q = jnp.pad(q_jkrh, ((0, 0), (0, 0), (0, rows - queries), (0, 0)))
    parts = [part for piece in pieces for part in piece if part is not None]
    each = len(parts) // len(pieces)
    exact = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None

    def kernel(layer_ref, owner_ref, last_ref, q_ref, *refs):
        m_ref, l_ref, o_ref = refs[-3:]
        i = pl.program_id(0)
        x, head = i // heads, i % heads
        last = last_ref[x]

        def attend(at, k_ref, v_ref, k_scale_ref=None, v_scale_ref=None):
            here = layer_ref[0], at, head
            q = q_ref[owner_ref[x], head, :, :]
            k_hs, v_sh = k_ref[*here, :, :], v_ref[*here, :, :]  # load both before anything waits
            z = triton.dot(q, k_hs.astype(q.dtype), precision=exact).astype(jnp.float32)
            if k_scale_ref is not None:
                z *= k_scale_ref[*here, :][None]
            z = jnp.where((jnp.arange(size) <= last)[None], z, MASKED)
            m = jnp.max(z, axis=1)
            p = jnp.exp(z - m[:, None])
            weight = jnp.sum(p, axis=1)
            if v_scale_ref is not None:
                p *= v_scale_ref[*here, :][None]
            o = triton.dot(p.astype(q.dtype), v_sh.astype(q.dtype), precision=exact)
            there = jnp.arange(rows) < queries
            triton.store(m_ref, m, mask=there)
            triton.store(l_ref, weight, mask=there)
            triton.store(o_ref, o.astype(jnp.float32), mask=jnp.broadcast_to(there[:, None], o.shape))

        start = 0
        for n, piece in enumerate(pieces):
            pages = piece.k.shape[1]
            mine = (last >= 0) & (x >= start) & (x < start + pages)
            pl.when(mine)(partial(attend, x - start, *refs[n * each : (n + 1) * each]))
            start += pages

    total = sum(piece.k.shape[1] for piece in pieces)
    sums = pl.BlockSpec((None, None, rows), lambda i: (i // heads, i % heads, 0))
    out = pl.BlockSpec((None, None, rows, h), lambda i: (i // heads, i % heads, 0, 0))
    return pallas_call(
        kernel,
        interpret=interpret,
        grid=(total * heads,),
        out_specs=(sums, sums, out),
        out_shape=[jax.ShapeDtypeStruct((total, heads, queries, *more), jnp.float32) for more in ((), (), (h,))],
        name="softmax_of_pages",
    )(jnp.reshape(layer, (1,)), owner_x, last_x, q, *parts)


def together(m_xkr, l_xkr, o_xkrh, table_jn, position_j, *, size: int, merged: int, interpret: bool = False):
    """Merge every slot's pages of `size` positions up to its own position, in order, `merged` at once: [J, K, R, H]."""
    from jax.experimental import pallas as pl

    (pages, heads, queries, h), slots = o_xkrh.shape, len(position_j)

    def kernel(m_ref, l_ref, o_ref, table_ref, position_ref, out_ref):
        i = pl.program_id(0)
        j, head = i // heads, i % heads
        position = position_ref[j]

        def merge(n, carry):
            m, total, o = carry
            page = table_ref[j, pl.ds(n * merged, merged)]
            there = ((n * merged + jnp.arange(merged)) * size <= position) & (page < pages)  # a free slot has none
            page = jnp.where(there, page, 0)
            m_nr = jnp.where(there[:, None], m_ref[page, head, :], MASKED)
            most = jnp.maximum(m, jnp.max(m_nr, axis=0))
            old, weight = jnp.exp(m - most), jnp.where(there[:, None], jnp.exp(m_nr - most[None]), 0.0)
            total = total * old + jnp.sum(weight * jnp.where(there[:, None], l_ref[page, head, :], 0.0), axis=0)
            o_nrh = jnp.where(there[:, None, None], o_ref[page, head, :, :], 0.0)  # page 0 may never have been written
            return most, total, o * old[:, None] + jnp.sum(weight[:, :, None] * o_nrh, axis=0)

        empty = jnp.full(queries, MASKED), jnp.zeros(queries), jnp.zeros((queries, h))
        _, total, o = jax.lax.fori_loop(0, position // (size * merged) + 1, merge, empty)
        out_ref[...] = o / jnp.maximum(total, 1.0)[:, None]  # at least 1 wherever there is a page

    return pallas_call(
        kernel,
        interpret=interpret,
        grid=(slots * heads,),
        out_specs=pl.BlockSpec((None, None, queries, h), lambda i: (i // heads, i % heads, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((slots, heads, queries, h), jnp.float32),
        name="pages_together",
    )(m_xkr, l_xkr, o_xkrh, table_jn, position_j)
