"""Sampling G responses for each of P prompts through J slots that are refilled the moment they finish.

Sample (prompt p, g) draws from fold_in(fold_in(key, id_p), g) alone: which slot it sat in, who sat beside it, how many
slots there were and how the cache grew change nothing (tests/test_sampler.py).

    rollouts = sample(model, params, prompts, ids=range(len(prompts)), key=key, samples=8, budget=96, stop=(1,),
                      pad=0, slots=128, block=16, prefill_rows=16, temperature=1.0, top_k=0, top_p=1.0)
"""

import math
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.errors import UserError
from e3jax.models.pages import MERGED, PAGE, Pages
from e3jax.models.qwen3 import Qwen3, cast_matrices, unstack
from e3jax.runtime import fetch, put
from e3jax.sampler.decode import Drawn, admit, decode_block, empty_slots, fewer, new_piece, prefill
from e3jax.sampler.page_table import Book, pages_of
from e3jax.sharding import AXES
from e3jax.types import Rollouts

FEWEST = 8  # slots of the smallest program that a draining queue is moved to


def size_bucket(n: int, most: int = 1 << 30) -> int:
    """Smallest of 16, 32, 64, 128, … that holds n, or `most`: the few shapes the sampler compiles."""
    return min(max(16, 1 << (n - 1).bit_length()), most)


def cache_size(tokens: int, most: int) -> int:
    """Positions of a cache for `tokens`: powers of two for short ones, multiples of 1,024 for long ones."""
    return size_bucket(tokens, most) if tokens <= 1024 else min(-(-tokens // 1024) * 1024, most)


def padded(prompts: Sequence[Sequence[int]], width: int, pad: int) -> np.ndarray:
    """Right-padded [P, width] int32."""
    rows = np.full((len(prompts), width), pad, np.int32)
    for row, prompt in zip(rows, prompts):
        row[: len(prompt)] = prompt
    return rows


def unsampled(prompts: Sequence[Sequence[int]], samples: int | Sequence[int], *, pad: int) -> Rollouts:
    """Rollouts with nothing sampled yet, as wide as the longest prompt; `samples` a prompt, one number or many."""
    prompt_len = np.repeat([len(p) for p in prompts], samples).astype(np.int32)
    tokens = np.repeat(padded(prompts, int(prompt_len.max()), pad), samples, axis=0)
    return Rollouts(
        tokens=tokens,
        prompt_len=prompt_len,
        length=prompt_len.copy(),
        logp=np.zeros(tokens.shape, np.float32),
        entropy=np.zeros(tokens.shape, np.float32),
        sampled=np.zeros(tokens.shape, bool),
        done=np.zeros(len(tokens), bool),
    )


def widened(r: Rollouts, width: int, pad: int) -> Rollouts:
    """The same with room for `width` tokens a row; narrower than before, what is cut has to be empty."""
    more = max(width - r.tokens.shape[1], 0)

    def wide(array, fill):
        return np.pad(array[:, :width], ((0, 0), (0, more)), constant_values=fill)

    return r._replace(
        tokens=wide(r.tokens, pad), logp=wide(r.logp, 0), entropy=wide(r.entropy, 0), sampled=wide(r.sampled, False)
    )


def limits(r: Rollouts, budget, owner: np.ndarray, *, most: int) -> np.ndarray:
    """Length at which its budget ends each response [B].

    ValueError for an empty prompt, a budget below 1 (a token would be drawn all the same) or more than `most` tokens.
    """
    budget_b = np.broadcast_to(budget, len(owner)).astype(np.int32)
    limit = r.prompt_len + budget_b
    if budget_b.min() < 1:
        at = int(budget_b.argmin())
        raise UserError(f"prompt {owner[at]} has a budget of {budget_b[at]} tokens: give each response 1 or more")
    if r.prompt_len.min() < 1:
        raise ValueError(f"prompt {owner[r.prompt_len.argmin()]} is empty: give it at least a begin token")
    if limit.max() > most:
        at = int(limit.argmax())
        raise ValueError(
            f"prompt of {r.prompt_len[at]} + budget of {limit[at] - r.prompt_len[at]} tokens exceeds the model's {most}"
        )
    return limit


def record(out: Rollouts, drawn: Drawn, steps: np.ndarray, *, requests: np.ndarray, first: np.ndarray) -> None:
    """What a block drew into the rows of its requests [J], steps[j] tokens of slot j from position first[j] on."""
    i, j = np.nonzero(np.arange(len(drawn.token_ij))[:, None] < steps[None])
    row, position = requests[j], first[j] + i
    out.tokens[row, position] = drawn.token_ij[i, j]
    out.logp[row, position] = drawn.logp_ij[i, j]
    out.entropy[row, position] = drawn.entropy_ij[i, j]
    out.sampled[row, position] = True


def sample(
    model: Qwen3,
    params,
    prompts: Sequence[Sequence[int]],
    *,
    ids: Sequence[int],
    key: jax.Array,
    samples: int | Sequence[Sequence[int]],
    budget: int | Sequence[int],
    stop: Sequence[int | Sequence[int]],
    pad: int,
    slots: int,
    block: int,
    prefill_rows: int,
    temperature: float,
    top_k: int,
    top_p: float,
    cache: str = "compute",
    on_finished: Callable[[np.ndarray, Rollouts], None] | None = None,
    on_tokens: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
    stats: dict[str, float] | None = None,
) -> Rollouts:
    """Rollouts of `samples` responses per prompt, prompt-major, as wide as the longest.

    `budget` counts response tokens, the ending one too; one number, or one per response. A response is done when it
    draws a token of `stop` (EOS), or the last token of a sequence of tokens in it. `ids[p]` names prompt p in its
    samples' keys. `samples` is how many (0, 1, … are drawn), or the numbers of those that each prompt gets: what is
    missing of a set can be drawn alone. `cache="int8"` keeps keys and values in 8 bits, "compute" in the model's dtype.

    `on_finished(rows, rollouts)` hears of the rows that finished since last time, which are final by then;
    `on_tokens(b, tokens, logps)` of what row b drew since last time, the ending token included. `stats` gets
    first_token_s (seconds), occupancy (share of slots at work until no request waits, NaN when none ever waited) and
    prefilled (prompt tokens).
    Of `slots` and `prefill_rows` no more are used than there are responses and prompts; on every device alike many.
    Raises when a prompt is empty, a budget below 1, or prompt + budget exceeds the model's length.
    """
    start = time.monotonic()
    stop = tuple((s,) if isinstance(s, int | np.integer) else tuple(s) for s in stop)
    each = [range(samples)] * len(prompts) if isinstance(samples, int | np.integer) else samples
    number = np.concatenate([np.asarray(g, np.int32) for g in each])  # request -> number of its sample
    owner = np.repeat(np.arange(len(prompts)), [len(g) for g in each])  # request -> prompt
    total = len(owner)
    out = unsampled(prompts, [len(g) for g in each], pad=pad)
    limit = limits(out, budget, owner, most=model.config.max_length)
    keys = jax.vmap(lambda i, g: jax.random.fold_in(jax.random.fold_in(key, i), g))(
        jnp.asarray(ids, jnp.uint32)[owner], jnp.asarray(number)
    )

    params = cast_matrices(params, model.dtype)  # once, not at every token
    mesh = jax.sharding.get_mesh()
    shards = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in AXES["J"])
    slots = -(-min(slots, total) // shards) * shards  # no more than there is to do, on every device alike
    prefill_rows = -(-min(prefill_rows, len(prompts)) // shards) * shards
    dtype = {"compute": model.dtype, "int8": jnp.dtype("int8")}[cache]
    most = model.config.max_length
    longest = pages_of(int(limit.max()), PAGE)
    book = Book.empty(shards, slots, page=PAGE, rows=size_bucket(-(-longest // MERGED) * MERGED), longest=longest)
    one_by_one = jax.default_backend() == "cpu"  # layers, each with arrays of its own (models/pages.py)
    decoding = unstack(params) if one_by_one else params
    pools = ((),) * (model.config.layers if one_by_one else 1)
    state = empty_slots(slots, max(map(len, stop), default=1))
    waiting = 0  # next request
    chunk, first = None, 0  # the prefilled prompts, from `first` to first + prefill_rows - 1
    prefilled = busy_steps = slot_steps = 0

    def reserve(tokens_j):
        """Pages for so many positions of every slot, growing the pool where they are too few."""
        nonlocal pools
        for more in book.reserve(tokens_j):
            pieces = new_piece(model, more, PAGE, dtype, len(pools))
            pools = tuple((*pool, piece) for pool, piece in zip(pools, pieces))

    while True:
        # ---- refill every free slot, prefilling the next prompts when their turn comes
        while waiting < total and book.free().any():
            if chunk is None or owner[waiting] >= first + prefill_rows:
                first = int(owner[waiting])
                group = list(prompts[first : first + prefill_rows])
                prefilled += sum(map(len, group))
                width = -(-cache_size(max(map(len, group)), most) // PAGE) * PAGE
                rows = padded(group + [[pad]] * (prefill_rows - len(group)), width, pad)
                chunk = prefill(model, params, put(rows, ""), dtype)
            ready = np.searchsorted(owner, first + prefill_rows)  # requests whose prompt is in the chunk
            new = np.flatnonzero(book.free())[: ready - waiting]
            book.request_j[new] = np.arange(waiting, waiting + len(new))
            waiting += len(new)
            request = np.maximum(book.request_j, 0)  # any, in slots that stay as they are
            begun = out.prompt_len[request]
            book.length_j[new] = begun[new]
            reserve(np.where(book.free(), 0, book.length_j))
            copies, count = book.copies(new, owner[request[new]] - first, width)
            last = out.tokens[request, begun - 1]
            is_new = np.isin(np.arange(slots), new)
            placed = [put(x, "") for x in (is_new, last, begun, limit[request])]
            pools, state = admit(pools, state, chunk, put(copies, "JT"), put(count, "J"), *placed, keys[request])
        busy = ~book.free()
        if not busy.any():
            if stats is not None:
                stats |= {"occupancy": busy_steps / slot_steps if slot_steps else math.nan, "prefilled": prefilled}
            return widened(out, int(out.length.max()), pad)

        # ---- the queue is empty: fewer slots will do as soon as the others have finished
        while waiting == total and (left := book.fewer(FEWEST)):
            slot_j, page_x, book = left
            pools, state = fewer(pools, state, put(page_x, "X"), put(slot_j, ""))
            slots, busy = len(slot_j), ~book.free()

        # ---- a block of steps; host and device then agree on who finished
        before = book.length_j
        reserve(np.where(busy, np.minimum(before + block, limit[np.maximum(book.request_j, 0)]), 0))
        window = int(before[busy].max()) + block
        if out.tokens.shape[1] < window:
            out = widened(out, size_bucket(window), pad)
        pages = Pages(pools, *(put(x, a) for x, a in ((book.table_jn, "JT"), *((x, "X") for x in book.owners()))))
        enough = np.int32(max(slots // 8, 1) if waiting < total else slots + 1)
        pages, state, drawn = decode_block(
            model,
            decoding,
            pages,
            state,
            enough,
            steps=block,
            stop=stop,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        pools = pages.pools
        length_j, live, stopped, drawn = fetch((state.length_j, state.live_j, state.stopped_j, drawn))
        book.length_j = length_j.copy()  # the device may own it
        steps = np.where(busy, length_j - before, 0)
        if stats is not None:
            stats.setdefault("first_token_s", time.monotonic() - start)
            if waiting < total:
                busy_steps, slot_steps = busy_steps + steps.sum(), slot_steps + slots * steps.max()
        record(out, drawn, steps, requests=book.request_j, first=before)
        if on_tokens:
            for j in np.flatnonzero(busy):
                new = book.request_j[j], slice(before[j], length_j[j])
                on_tokens(int(book.request_j[j]), out.tokens[new], out.logp[new])
        finished = np.flatnonzero(busy & ~live)
        request = book.request_j[finished]
        out.length[request] = length_j[finished]
        out.done[request] = stopped[finished]
        book.release(finished)
        if on_finished and len(finished):
            on_finished(request, out)
