"""Attention over pages on an NVIDIA GPU: the two loops of models/pages.py as two kernels (Pallas, by way of Triton).

XLA runs those loops as one small kernel after the other and asks the host before every round. Here the first kernel has
a program for every key head of every page, whatever piece the page lies in, and all of them run at once; the second has
a program for every key head of every slot, which merges its pages. A page that several slots own is read with as many
of their queries as fill the rows of a matrix product. Every key and value is read from where it lies: a decode step
takes 1.3 to 1.5 times as long as its bytes need on an H200 (benchmarks/README.md).

The first kernel also writes: the program of the page that a slot's new token falls into puts its key and value there,
in place, and uses them as they are. So a pool of several pieces needs no scatter for each. Queries come as they are, R
of a key head next to that head's new key and value, in one array that one kernel of XLA makes; rows that a matrix
product wants beyond R repeat the last query.

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

ROWS = 16  # fewest rows of a matrix product in Triton: R query heads are repeated up to it
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
    first: jax.Array  # where row 0's result goes, of (X + Y·W)·rows_of(R); the others follow


def attend(q_ref, parts, out_refs, last, rows: Rows, head) -> None:
    """Write m, l and o of a page's `parts` (keys, values, their scales or None) up to position `last` for the rows."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    k_hs, v_sh, k_scale, v_scale = parts
    m_ref, l_ref, o_ref = out_refs
    q = q_ref[rows.slot_i, head, rows.query_i, :]
    exact = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    z = triton.dot(q, k_hs.astype(q.dtype), precision=exact).astype(jnp.float32)
    if k_scale is not None:
        z *= k_scale[None]
    z = jnp.where((jnp.arange(z.shape[1]) <= last)[None], z, MASKED)
    m = jnp.max(z, axis=1)
    p = jnp.exp(z - m[:, None])
    weight = jnp.sum(p, axis=1)
    if v_scale is not None:
        p *= v_scale[None]
    o = triton.dot(p.astype(q.dtype), v_sh.astype(q.dtype), precision=exact)
    out = pl.ds(rows.first, len(m))
    triton.store(m_ref.at[head, out], m, mask=rows.there_i)
    triton.store(l_ref.at[head, out], weight, mask=rows.there_i)
    whole = jnp.broadcast_to(rows.there_i[:, None], o.shape)
    triton.store(o_ref.at[head, out, :], o.astype(jnp.float32), mask=whole)


def read(refs, here):
    """Return keys, values and scales (or None twice) of page `here`: layer, page of the piece, head."""
    return [*(ref[*here, :, :] for ref in refs[:2]), *(ref[*here, :] for ref in refs[2:]), None, None][:4]


def with_token(parts, new, refs, here, at):
    """Write a new token's key, value and scales to position `at` of the page, if it has that; return the page with it.

    The page was read before or after the write: either way the new token's place is filled in here.
    """
    from jax.experimental import pallas as pl

    size, (k_hs, v_sh, *scales) = parts[0].shape[1], parts
    here_s = jnp.arange(size) == at

    @pl.when((at >= 0) & (at < size))
    def _():
        refs[0][*here, :, at] = new[0]
        refs[1][*here, at, :] = new[1]
        for ref, scale in zip(refs[2:], new[2:]):
            ref[*here, at] = scale

    k_hs = jnp.where(here_s[None], new[0][:, None], k_hs)
    v_sh = jnp.where(here_s[:, None], new[1][None], v_sh)
    return [k_hs, v_sh, *(jnp.where(here_s, scale, old) for scale, old in zip(new[2:], scales)), None, None][:4]


def where_it_lies(page, there, pieces, refs, body) -> None:
    """Run body(refs, page of the piece) with those of the piece in which `page` lies, if `there`."""
    from jax.experimental import pallas as pl

    start = 0
    for piece, ref in zip(pieces, refs):
        mine = (page >= start) & (page < start + piece.k.shape[1]) & there
        pl.when(mine)(partial(body, ref, page - start))
        start += piece.k.shape[1]


@partial(jax.jit, static_argnames=("queries", "interpret"))
def softmaxes(heads_jkgh, scaled, pieces, shared, layer, owners, *, queries: int, interpret: bool = False):
    """Write every slot's new key and value, and return m, l [K, X + Y·W, R'] and o [K, X + Y·W, R', H] of every page by
    the queries of every slot that owns it, then the pieces; R' is `rows_of` the R = `queries`.

    `heads_jkgh` has a key head's R queries, its new key and its new value; where the pool is int8, `scaled` are key,
    value [J, K, H] and their scales [J, K] for the pool, else (). `owners` are owner_x and last_x (the last visible
    position) of the pages of `pieces`, and owner_yw of those of `shared`, which are full. A token is written where its
    position lies in a page: last_x below the page's size. Float32; where no slot owns a page they mean nothing.

    Under jit of its own, so that a model whose layers run one after the other lowers one kernel.
    """
    from jax.experimental import pallas as pl

    (_, heads, _, h), size, padded = heads_jkgh.shape, pieces[0].k.shape[4], rows_of(queries)
    owner_x, last_x, owner_yw = owners
    private, (pages, columns), rows = len(owner_x), owner_yw.shape, max(padded, ROWS)
    each = rows // padded  # owners of a shared page that a program serves
    programs = -(-columns // each)  # of a shared page and head
    n, own = len(arrays(pieces[:1])), arrays(pieces)  # arrays of a piece; those of all that are written

    def kernel(layer_ref, owner_ref, last_ref, owners_ref, q_ref, *refs):
        i, row_i = pl.program_id(0), jnp.arange(rows)
        page, head = i // heads, i % heads
        new_refs, refs = refs[: len(scaled)], refs[len(scaled) :]
        parts = [refs[at : at + n] for at in range(0, len(own) + len(arrays(shared)), n)]
        written = [refs[at : at + n] for at in range(len(refs) - 3 - len(own), len(refs) - 3, n)]
        query_i = jnp.minimum(row_i % padded, queries - 1)

        def new_token(slot):
            if scaled:
                return [ref[slot, head, :] for ref in new_refs[:2]] + [ref[slot, head] for ref in new_refs[2:]]
            return [q_ref[slot, head, queries, :], q_ref[slot, head, queries + 1, :]]

        def read_own(both, at):
            (part, to), slot, last, here = both, owner_ref[page], last_ref[page], (layer_ref[0], at, head)
            whose = Rows(jnp.full(rows, slot), query_i, row_i < padded, page * padded)
            attend(q_ref, with_token(read(part, here), new_token(slot), to, here, last), refs[-3:], last, whose, head)

        def read_shared(part, at):
            w = (page - private) % programs * each  # first of the owners that this program serves
            w_i = w + row_i // padded
            slot_i = owners_ref[y, jnp.minimum(w_i, columns - 1)]
            first, there_i = (private + y * columns + w) * padded, (w_i < columns) & (slot_i >= 0)
            whose = Rows(jnp.maximum(slot_i, 0), query_i, there_i, first)
            attend(q_ref, read(part, (layer_ref[0], at, head)), refs[-3:], size - 1, whose, head)

        live, y = last_ref[jnp.minimum(page, private - 1)] >= 0, (page - private) // programs
        where_it_lies(page, live, pieces, zip(parts, written), read_own)
        where_it_lies(y, page >= private, shared, parts[len(pieces) :], read_shared)

    total = private + pages * columns
    owner_yw = owner_yw if shared else jnp.full((1, 1), -1, jnp.int32)  # no array of a kernel may be empty
    small = (jnp.reshape(layer, (1,)), owner_x, last_x, owner_yw, heads_jkgh, *scaled)
    results = [jax.ShapeDtypeStruct((heads, total * padded, *more), jnp.float32) for more in ((), (), (h,))]
    *written, m_kx, l_kx, o_kxh = pallas_call(
        kernel,
        interpret=interpret,
        grid=((private + pages * programs) * heads,),
        out_shape=[*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in own), *results],
        input_output_aliases={len(small) + i: i for i in range(len(own))},
        name="softmax_of_pages",
    )(*small, *own, *arrays(shared))
    parts = [x.reshape(heads, total, padded, *x.shape[2:]) for x in (m_kx, l_kx, o_kxh)]
    return parts, tuple(type(pieces[0])(*written[at : at + n]) for at in range(0, len(own), n))


def arrays(pieces) -> list[jax.Array]:
    """Return the arrays of all pieces, in order."""
    return [part for piece in pieces for part in piece if part is not None]


@partial(jax.jit, static_argnames=("queries", "dtype", "size", "merged", "interpret"))
def together(parts, table_jn, position_j, *, queries: int, dtype, size: int, merged: int, interpret: bool = False):
    """Merge every slot's pages of `size` positions up to its own position, in order, `merged` at once: [J, K, R, H].

    `parts` are m, l and o of `softmaxes`, of whose rows the first R = `queries` count; the result is in `dtype`.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (heads, pages, padded, h), slots = parts[2].shape, len(position_j)

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

        empty = jnp.full(padded, MASKED), jnp.zeros(padded), jnp.zeros((padded, h))
        _, total, o = jax.lax.fori_loop(0, position // (size * merged) + 1, merge, empty)
        out = o / jnp.maximum(total, 1.0)[:, None]  # at least 1 wherever there is a page
        right = jnp.broadcast_to((jnp.arange(padded) < queries)[:, None], out.shape)
        triton.store(out_ref.at[pl.ds(i * queries, padded), :], out.astype(dtype), mask=right)

    out = pallas_call(
        kernel,
        interpret=interpret,
        grid=(slots * heads,),
        out_shape=jax.ShapeDtypeStruct((slots * heads * queries, h), dtype),
        name="pages_together",
    )(*parts, table_jn, position_j)
    return out.reshape(slots, heads, queries, h)
