"""Attention over pages on an NVIDIA GPU: the two loops of models/pages.py as two kernels (Pallas, by way of Triton).

XLA runs those loops as one small kernel after the other and asks the host before every round. Here the first kernel has
a program for every key head of every page, whatever piece the page lies in, and all of them run at once; the second has
a program for every key head of every slot, which merges its pages. A page that several slots own is read with as many
of their queries as fill the rows of a matrix product. Every key and value is read from where it lies: a decode step
takes 1.3 to 1.5 times as long as its bytes need on an H200 (benchmarks/README.md).

JAX 0.11 calls its Triton backend deprecated in favour of Mosaic, which runs on Hopper and later only and on no CPU.
`available` says whether this JAX and this device have it. The loops of models/pages.py run everywhere, on a GPU too
with config.model.attention = "xla".

Axes as in models/pages.py; i counts programs.
"""

from functools import partial
from typing import NamedTuple

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
    right = all(part.size <= 2**31 or part.size * part.dtype.itemsize > 2**32 for part in arrays(pieces))
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


class Rows(NamedTuple):
    """The rows i of a program's matrix product: whose query each is, and where the results go."""

    slot_i: jax.Array
    query_i: jax.Array  # of R
    there_i: jax.Array  # bool: a row without a slot writes nothing
    first: jax.Array  # where row 0's result goes, of (X + Y·W)·R; the others follow


def attend(q_ref, piece_refs, out_refs, here, last, rows: Rows) -> None:
    """Write m, l and o of page `here` (layer, page of the piece, head) up to position `last`, by the rows' queries."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    k_ref, v_ref, k_scale_ref, v_scale_ref = [*piece_refs, None, None][:4]
    m_ref, l_ref, o_ref = out_refs
    head = here[2]
    q = q_ref[rows.slot_i, head, rows.query_i, :]
    k_hs, v_sh = k_ref[*here, :, :], v_ref[*here, :, :]  # load both before anything waits
    exact = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    z = triton.dot(q, k_hs.astype(q.dtype), precision=exact).astype(jnp.float32)
    if k_scale_ref is not None:
        z *= k_scale_ref[*here, :][None]
    z = jnp.where((jnp.arange(z.shape[1]) <= last)[None], z, MASKED)
    m = jnp.max(z, axis=1)
    p = jnp.exp(z - m[:, None])
    weight = jnp.sum(p, axis=1)
    if v_scale_ref is not None:
        p *= v_scale_ref[*here, :][None]
    o = triton.dot(p.astype(q.dtype), v_sh.astype(q.dtype), precision=exact)
    out = pl.ds(rows.first, len(m))
    triton.store(m_ref.at[head, out], m, mask=rows.there_i)
    triton.store(l_ref.at[head, out], weight, mask=rows.there_i)
    whole = jnp.broadcast_to(rows.there_i[:, None], o.shape)
    triton.store(o_ref.at[head, out, :], o.astype(jnp.float32), mask=whole)


def softmaxes(q_jkrh, pieces, shared, layer, owners, *, interpret: bool = False):
    """Return m, l [K, X + Y·W, R] and o [K, X + Y·W, R, H] of every page by the queries of every slot that owns it.

    `owners` are owner_x and last_x (the last visible position) of the pages of `pieces`, and owner_yw of those of
    `shared`, which are full. R is a power of two (`rows_of`). Float32; where no slot owns a page they mean nothing.
    """
    from jax.experimental import pallas as pl

    (_, heads, queries, h), size = q_jkrh.shape, pieces[0].k.shape[4]
    owner_x, last_x, owner_yw = owners
    private, (pages, columns), rows = len(owner_x), owner_yw.shape, max(queries, ROWS)
    each = rows // queries  # owners of a shared page that a program serves
    programs = -(-columns // each)  # of a shared page and head
    arrays_each = len(arrays(pieces[:1]))

    def kernel(layer_ref, owner_ref, last_ref, owners_ref, q_ref, *refs):
        i, row_i = pl.program_id(0), jnp.arange(rows)
        page, head = i // heads, i % heads
        parts = [refs[n : n + arrays_each] for n in range(0, len(refs) - 3, arrays_each)]

        def read(part, at):
            query_i = jnp.minimum(row_i, queries - 1)
            whose = Rows(jnp.full(rows, owner_ref[page]), query_i, row_i < queries, page * queries)
            attend(q_ref, part, refs[-3:], (layer_ref[0], at, head), last_ref[page], whose)

        def read_shared(part, at, y):
            w = (page - private) % programs * each  # first of the owners that this program serves
            w_i = w + row_i // queries
            slot_i = owners_ref[y, jnp.minimum(w_i, columns - 1)]
            first, there_i = (private + y * columns + w) * queries, (w_i < columns) & (slot_i >= 0)
            whose = Rows(jnp.maximum(slot_i, 0), row_i % queries, there_i, first)
            attend(q_ref, part, refs[-3:], (layer_ref[0], at, head), size - 1, whose)

        start, live = 0, last_ref[jnp.minimum(page, private - 1)] >= 0
        for piece, part in zip(pieces, parts):
            mine = (page >= start) & (page < start + piece.k.shape[1]) & live
            pl.when(mine)(partial(read, part, page - start))
            start += piece.k.shape[1]
        y, start = (page - private) // programs, 0
        for piece, part in zip(shared, parts[len(pieces) :]):
            mine = (page >= private) & (y >= start) & (y < start + piece.k.shape[1])
            pl.when(mine)(partial(read_shared, part, y - start, y))
            start += piece.k.shape[1]

    total = private + pages * columns
    owner_yw = owner_yw if shared else jnp.full((1, 1), -1, jnp.int32)  # no array of a kernel may be empty
    results = pallas_call(
        kernel,
        interpret=interpret,
        grid=((private + pages * programs) * heads,),
        out_shape=[jax.ShapeDtypeStruct((heads, total * queries, *more), jnp.float32) for more in ((), (), (h,))],
        name="softmax_of_pages",
    )(jnp.reshape(layer, (1,)), owner_x, last_x, owner_yw, q_jkrh, *arrays([*pieces, *shared]))
    return [x.reshape(heads, total, queries, *x.shape[2:]) for x in results]


def arrays(pieces) -> list[jax.Array]:
    """Return the arrays of all pieces, in order."""
    return [part for piece in pieces for part in piece if part is not None]


def together(m_kxr, l_kxr, o_kxrh, table_jn, position_j, *, size: int, merged: int, interpret: bool = False):
    """Merge every slot's pages of `size` positions up to its own position, in order, `merged` at once: [J, K, R, H]."""
    from jax.experimental import pallas as pl

    (heads, pages, queries, h), slots = o_kxrh.shape, len(position_j)

    def kernel(m_ref, l_ref, o_ref, table_ref, position_ref, out_ref):
        i = pl.program_id(0)
        j, head = i // heads, i % heads
        position = position_ref[j]

        def merge(n, carry):
            m, total, o = carry
            page = table_ref[j, pl.ds(n * merged, merged)]
            there = ((n * merged + jnp.arange(merged)) * size <= position) & (page < pages)  # a free slot has none
            page = jnp.where(there, page, 0)
            m_nr = jnp.where(there[:, None], m_ref[head, page, :], MASKED)
            most = jnp.maximum(m, jnp.max(m_nr, axis=0))
            old, weight = jnp.exp(m - most), jnp.where(there[:, None], jnp.exp(m_nr - most[None]), 0.0)
            total = total * old + jnp.sum(weight * jnp.where(there[:, None], l_ref[head, page, :], 0.0), axis=0)
            o_nrh = jnp.where(there[:, None, None], o_ref[head, page, :, :], 0.0)  # page 0 may never have been written
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
    )(m_kxr, l_kxr, o_kxrh, table_jn, position_j)
