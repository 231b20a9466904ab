"""Sample G responses for each of P prompts through J slots that are refilled the moment they finish.

Sample (prompt p, g) draws from fold_in(fold_in(key, id_p), g) alone: which slot it sat in, who sat beside it, how many
slots there were and how the cache grew change nothing (tests/test_sampler.py).

    rollouts = sample(model, params, Requests(prompts, ids=range(len(prompts)), samples=8, budget=96),
                      Sampling(temperature=1.0, slots=128), key=key, stop=(1,), pad=0)
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.errors import UserError
from e3jax.models.pages import Copies, Pages, Pool
from e3jax.models.qwen3 import Qwen3
from e3jax.runtime import fetch, put
from e3jax.sampler.decode import Begin, Drawn, admit, decode_block, empty_slots, fewer, new_piece, prefill
from e3jax.sampler.layout import of_prefill_and_decoding
from e3jax.sampler.plan import Sampling, first_pages, plan, prompt_width, size_bucket
from e3jax.sampler.shared_pages import shared_pages_of
from e3jax.sharding import AXES, count_slices, each_slice
from e3jax.types import Rollouts

FEWEST = 8  # never shrink below this many slots
FEWEST_ON_GPU = 64  # where a step of fewer is hardly quicker, and every number of slots is a program to compile


class Requests(NamedTuple):
    """What to sample: prompts, and how many responses each gets, of how many tokens."""

    prompts: Sequence[Sequence[int]]
    ids: Sequence[int]  # number p of a prompt in the PRNG keys of its samples
    samples: int | Sequence[Sequence[int]]  # how many; or, per prompt, the numbers of the samples to draw
    budget: int | Sequence[int]  # response tokens, the ending one too; one number, or one per response
    bits: np.ndarray | None = None  # [B, …] the data of each response's key; None: those of (key, id, number)


class Events(NamedTuple):
    """Optional callbacks during sampling.

    `on_finished(rows, rollouts)` is called with the rows that finished, which no longer change, while the device
    decodes the block after theirs.
    `on_tokens(b, tokens, logps)` is called with what row b drew in the last block, its ending token included.
    `enough(ended)` is asked after a block, with [B] bool of the rows that ended so far; True ends the sampling. Rows
    that had begun keep what they drew, the others nothing.
    `stats` gets first_token_s (seconds until the first block was drawn), occupancy (share of slots busy while responses
    were still waiting; NaN if none had to wait), prefilled (prompt tokens) and shared_pages (pages of prompts that
    responses read where they lay already, instead of a copy).
    """

    on_finished: Callable[[np.ndarray, Rollouts], None] | None = None
    on_tokens: Callable[[int, np.ndarray, np.ndarray], None] | None = None
    stats: dict[str, float] | None = None
    enough: Callable[[np.ndarray], bool] | None = None


def sample(
    model: Qwen3,
    params,
    requests: Requests,
    sampling: Sampling,
    *,
    key: jax.Array,
    stop: Sequence[int | Sequence[int]],
    pad: int,
    events: Events = Events(),  # noqa: B008 (a tuple: it cannot change)
) -> Rollouts:
    """Return a response for each request, prompt-major, as wide as the longest.

    A response is done when it draws a token of `stop` (EOS), or the last token of a sequence of tokens in it. Of
    `sampling.slots` and `prefill_rows` no more are used than there are responses and prompts, rounded up so that
    every device has as many; `sampling.tensor` is the layout's (sampler/layout.py), which `params` have already.

    Raises UserError for a budget below 1, ValueError for an empty prompt or prompt + budget beyond the model's length.
    """
    queue = Queue(model, params, requests, sampling, key=key, stop=stop, pad=pad, events=events)
    while True:
        queue.refill()
        if not queue.busy().any():
            return queue.finish()
        queue.shrink()
        before_j, drawn = queue.decode()
        queue.tell()  # of the block before, while the device works on this one
        queue.collect(before_j, drawn)
        if events.enough and events.enough(queue.ended_b):
            return queue.cut()


class Queue:
    """The mutable state of one `sample` call: responses on their way through the slots, in the order of their prompts.

    Axes as in types.py: b is a response (a row of the rollouts), j a slot.
    """

    def __init__(self, model: Qwen3, params, requests: Requests, sampling: Sampling, *, key, stop, pad, events: Events):
        self.start = time.monotonic()
        self.model, self.sampling, self.events, self.pad = model, sampling, events, pad
        self.stop = tuple((s,) if isinstance(s, int | np.integer) else tuple(s) for s in stop)
        prompts, ids, samples, budget, bits = requests
        self.prompts = prompts
        counted = isinstance(samples, int | np.integer)
        numbers = [range(samples)] * len(prompts) if counted else samples  # [P] numbers of a prompt's samples
        number_b = np.concatenate([np.asarray(g, np.int32) for g in numbers])
        self.prompt_b = np.repeat(np.arange(len(prompts)), [len(g) for g in numbers])
        self.total = len(self.prompt_b)
        self.out = unsampled(prompts, [len(g) for g in numbers], pad=pad)
        self.limit_b = limits(self.out, budget, self.prompt_b, most=model.config.max_length)
        if bits is None:
            bits = key_bits(key, np.asarray(ids)[self.prompt_b], number_b)
        self.bits_b = bits  # on the host, where picking some costs nothing
        platform = jax.default_backend()
        layouts = of_prefill_and_decoding(params, model.dtype, platform=platform)
        self.params, self.decode_params = layouts
        layers_apart = "layers" not in self.decode_params  # each has a pool of its own (models/pages.py)
        self.kv_dtype = sampling.kv_dtype(model.dtype)
        mesh = jax.sharding.get_mesh()
        shards = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in AXES["J"])
        self.slices = 1 if mesh.empty else count_slices(mesh.devices.flat)
        lengths = dict(prompt_b=self.out.prompt_len, limit_b=self.limit_b)
        sizes = plan(sampling, shards=shards, prompts=len(prompts), **lengths)
        sizes = sizes._replace(least=first_pages(model.config, self.kv_dtype, platform=platform))
        self.fewest = FEWEST_ON_GPU if platform == "gpu" else FEWEST
        self.prompt_rows, self.copied = sizes.prompt_rows, sizes.copied
        self.table, self.shared = sizes.empty_table(), sizes.empty_shared()
        self.pools = self.shared_pools = ((),) * (model.config.layers if layers_apart else 1)
        self.state = empty_slots(sizes.slots, max(map(len, self.stop), default=1))
        self.next = 0  # response that starts next; those from here on are waiting
        self.ended = np.zeros(0, int)  # responses that ended in the last block, of which nobody was told yet
        self.ended_b = np.zeros(self.total, bool)  # all that ended
        self.prompt_cache, self.prompt_width = None, 0  # keys and values of prompts first_prompt, first_prompt + 1, …
        self.first_prompt = 0
        self.prompt_tokens = self.shared_pages = self.busy_steps = self.slot_steps = 0

    def busy(self) -> np.ndarray:
        """Return [J] bool: slots with a request."""
        return ~self.table.free()

    def refill(self) -> None:
        """Give every free slot the next response, prefilling prompts when the next one's is not prefilled yet."""
        while self.next < self.total and self.table.free().any():
            if self.prompt_cache is None or self.prompt_b[self.next] >= self.first_prompt + self.prompt_rows:
                self.prefill_next()
            self.admit_next()

    def prefill_next(self) -> None:
        """Prefill the prompts from the next response's on, as many as there are rows."""
        self.first_prompt = int(self.prompt_b[self.next])
        group = list(self.prompts[self.first_prompt : self.first_prompt + self.prompt_rows])
        self.prompt_tokens += sum(map(len, group))
        self.prompt_width = prompt_width(max(map(len, group)), self.model.config.max_length)
        rows = padded(group + [[self.pad]] * (self.prompt_rows - len(group)), self.prompt_width, self.pad)
        mesh = jax.sharding.get_mesh()
        with jax.set_mesh(each_slice(mesh)) if self.slices > 1 else nullcontext():  # any slot may want any prompt
            self.prompt_cache = prefill(self.model, self.params, put(rows, ""), self.kv_dtype)

    def admit_next(self) -> None:
        """Start the next responses to the prefilled prompts in the free slots."""
        table, out = self.table, self.out
        prefilled_end = self.first_prompt + self.prompt_rows
        ready_end = np.searchsorted(self.prompt_b, prefilled_end)  # responses before it have their prompts prefilled
        new = np.flatnonzero(table.free())[: ready_end - self.next]
        table.request_j[new] = np.arange(self.next, self.next + len(new))
        self.next += len(new)
        request_j = np.maximum(table.request_j, 0)  # idle slots get row 0, which new_j masks out
        length_j = out.prompt_len[request_j]
        table.length_j[new], table.shared_j[new] = length_j[new], shared_pages_of(length_j[new], table.page)
        copies = self.begin_pages(new, self.prompt_b[request_j[new]])
        new_j = np.isin(np.arange(len(request_j)), new)
        last_j = out.tokens[request_j, length_j - 1]
        begin = Begin(*(put(x, "") for x in (new_j, last_j, length_j, self.limit_b[request_j], self.bits_b[request_j])))
        self.pools, self.shared_pools, self.state = admit(
            self.pools, self.shared_pools, self.state, self.prompt_cache, copies, begin
        )

    def begin_pages(self, new: np.ndarray, prompts: np.ndarray) -> Copies:
        """Give the slots `new` their pages: shared ones of their prompts, and their own; return what to copy."""
        table = self.table
        grown, shared_m3, already = self.shared.begin(new, prompts, table.length_j[new])
        self.shared_pages += already
        self.shared_pools = self.larger(self.shared_pools, grown)
        self.reserve_block()  # at once, so that the pool grows by one piece
        shared_m3[:, 0] = np.maximum(shared_m3[:, 0] - self.first_prompt, 0)
        own_m3 = table.copies(new, prompts - self.first_prompt, self.copied)
        return Copies(put(own_m3, "JT"), put(shared_m3, "JT"))

    def reserve_block(self) -> None:
        """Allocate the pages that the next block of decode steps may fill; grow the pool where it has too few."""
        table = self.table
        limit_j = self.limit_b[np.maximum(table.request_j, 0)]
        tokens_j = np.where(table.free(), 0, np.minimum(table.length_j + self.sampling.block, limit_j))
        self.pools = self.larger(self.pools, table.reserve(tokens_j))

    def larger(self, pools: tuple[Pool, ...], grown: list[int]) -> tuple[Pool, ...]:
        """Return the pools with new pieces of so many pages over all devices."""
        for pages in grown:
            pieces = new_piece(self.model, pages, self.table.page, self.kv_dtype, len(pools))
            pools = tuple((*pool, piece) for pool, piece in zip(pools, pieces))
        return pools

    def shrink(self) -> None:
        """Go on with half the slots once nothing waits and enough of them are idle: a step then costs less."""
        while self.next == self.total and (smaller := self.table.fewer(self.fewest)):
            slot_j, page_x, self.table = smaller
            page_y, self.shared = self.shared.fewer(slot_j)
            kept = put(page_x, "X"), put(page_y, "X"), put(slot_j, "")
            self.pools, self.shared_pools, self.state = fewer(self.pools, self.shared_pools, self.state, *kept)

    def decode(self) -> tuple[np.ndarray, Drawn]:
        """Start a block of decode steps; return each slot's length before it, and what will be drawn, on the device."""
        table, block, busy_j = self.table, self.sampling.block, self.busy()
        before_j, slots = table.length_j, len(table.length_j)
        self.reserve_block()
        window = int(before_j[busy_j].max()) + block
        if self.out.tokens.shape[1] < window:
            self.out = widened(self.out, size_bucket(window), self.pad)
        table_jn, owner_yw = self.shared.entries(table.table_jn, table.owner_dx.shape[1]), self.shared.owners()
        owner_x, order_x = (put(x, "X") for x in table.owners())
        # stop early once an eighth of the slots can be refilled; never when nothing waits, or on several slices
        enough = np.int32(max(slots // 8, 1) if self.next < self.total else slots + 1) if self.slices == 1 else None
        pages, self.state, drawn = decode_block(
            self.model,
            self.decode_params,
            Pages(self.pools, self.shared_pools, put(table_jn, "JT"), owner_x, order_x, put(owner_yw, "XT")),
            self.state,
            enough,
            steps=block,
            stop=self.stop,
            choice=self.sampling.choice,
        )
        self.pools, self.shared_pools = pages.pools, pages.shared
        return before_j, drawn

    def collect(self, before_j: np.ndarray, drawn: Drawn) -> None:
        """Wait for a block, write what it drew into the rollouts, and free slots and pages of ended samples."""
        table, out, busy_j = self.table, self.out, self.busy()
        length_j, live_j, stopped_j, drawn = fetch(
            (self.state.length_j, self.state.live_j, self.state.stopped_j, drawn)
        )
        table.length_j = length_j.copy()  # what was fetched may belong to the device, and is written to later
        steps_j = np.where(busy_j, table.length_j - before_j, 0)
        if self.events.stats is not None:
            self.events.stats.setdefault("first_token_s", time.monotonic() - self.start)
            if self.next < self.total:
                self.busy_steps += steps_j.sum()
                self.slot_steps += len(steps_j) * steps_j.max()
        record(out, drawn, steps_j, requests=table.request_j, first=before_j)
        if self.events.on_tokens:
            for j in np.flatnonzero(busy_j):
                new = table.request_j[j], slice(before_j[j], table.length_j[j])
                self.events.on_tokens(int(table.request_j[j]), out.tokens[new], out.logp[new])
        ended = np.flatnonzero(busy_j & ~live_j)
        self.ended = table.request_j[ended]
        out.length[self.ended], out.done[self.ended] = table.length_j[ended], stopped_j[ended]
        self.ended_b[self.ended] = True
        table.release(ended)
        self.shared.release(ended)

    def tell(self) -> None:
        """Call `on_finished` with the responses that ended in the last block."""
        if self.events.on_finished and len(self.ended):
            self.events.on_finished(self.ended, self.out)
        self.ended = self.ended[:0]

    def cut(self) -> Rollouts:
        """Return all rollouts as they are now: responses in the slots are as long as they got."""
        busy = np.flatnonzero(self.busy())
        self.out.length[self.table.request_j[busy]] = self.table.length_j[busy]
        return self.finish()

    def finish(self) -> Rollouts:
        """Return all rollouts, cut to the longest, and complete `stats`."""
        self.tell()
        if self.events.stats is not None:
            occupancy = self.busy_steps / self.slot_steps if self.slot_steps else math.nan
            counts = dict(prefilled=self.prompt_tokens, shared_pages=self.shared_pages)
            self.events.stats.update(occupancy=occupancy, **counts)
        return widened(self.out, int(self.out.length.max()), self.pad)


def key_bits(key: jax.Array, id_b: np.ndarray, number_b: np.ndarray) -> np.ndarray:
    """Return the data of fold_in(fold_in(key, id), number) for every response, on the host."""
    fold = jax.vmap(lambda i, g: jax.random.fold_in(jax.random.fold_in(key, i), g))
    return fetch(jax.random.key_data(fold(jnp.asarray(id_b, jnp.uint32), jnp.asarray(number_b))))


def padded(prompts: Sequence[Sequence[int]], width: int, pad: int) -> np.ndarray:
    """Return the prompts right-padded, [P, width] int32."""
    rows = np.full((len(prompts), width), pad, np.int32)
    for row, prompt in zip(rows, prompts):
        row[: len(prompt)] = prompt
    return rows


def unsampled(prompts: Sequence[Sequence[int]], samples: int | Sequence[int], *, pad: int) -> Rollouts:
    """Return rollouts with nothing sampled, as wide as the longest prompt; `samples` per prompt: one number or many."""
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
    """Return the same rollouts with room for `width` tokens a row; columns that are cut off must be padding."""
    more = max(width - r.tokens.shape[1], 0)

    def wide(array, fill):
        return np.pad(array[:, :width], ((0, 0), (0, more)), constant_values=fill)

    return r._replace(
        tokens=wide(r.tokens, pad), logp=wide(r.logp, 0), entropy=wide(r.entropy, 0), sampled=wide(r.sampled, False)
    )


def limits(r: Rollouts, budget, prompt_b: np.ndarray, *, most: int) -> np.ndarray:
    """Return the length [B] at which its budget ends each response, to prompt prompt_b[b].

    Raises UserError for a budget below 1 (decoding always draws at least one token), ValueError for an empty prompt or
    more than `most` tokens.
    """
    budget_b = np.broadcast_to(budget, len(prompt_b)).astype(np.int32)
    limit_b = r.prompt_len + budget_b
    if budget_b.min() < 1:
        at = int(budget_b.argmin())
        raise UserError(f"prompt {prompt_b[at]} has a budget of {budget_b[at]} tokens: give each response 1 or more")
    if r.prompt_len.min() < 1:
        raise ValueError(f"prompt {prompt_b[r.prompt_len.argmin()]} is empty: give it at least a begin token")
    if limit_b.max() > most:
        at = int(limit_b.argmax())
        tokens = f"{r.prompt_len[at]} + budget of {limit_b[at] - r.prompt_len[at]} tokens"
        raise ValueError(f"prompt of {tokens} exceeds the model's {most}")
    return limit_b


def record(out: Rollouts, drawn: Drawn, steps_j: np.ndarray, *, requests: np.ndarray, first: np.ndarray) -> None:
    """Write what a block drew into the rows of its requests [J]: steps_j[j] tokens of slot j from first[j] on."""
    i, j = np.nonzero(np.arange(len(drawn.token_ij))[:, None] < steps_j[None])
    row, position = requests[j], first[j] + i
    out.tokens[row, position] = drawn.token_ij[i, j]
    out.logp[row, position] = drawn.logp_ij[i, j]
    out.entropy[row, position] = drawn.entropy_ij[i, j]
    out.sampled[row, position] = True
