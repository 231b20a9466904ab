"""The compiled programs of the sampler: prefill prompts, put a prompt into slots, decode a block of steps.

A slot is a sample being drawn; its keys and values lie in pages (models/pages.py). A decode step feeds the slot's last
token, writes its key and value, and samples the next token. It begins with the prompt's last token, so the prefill
needs no logits and only one place samples.

On a mesh slots and pages are spread over data x fsdp. A slot's small values and what is drawn come out replicated, so
that every process can read them.

Axes of this file beside those of types.py: i is a step of a block in `_ij`, and a token of a stop sequence in `_ji`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from e3jax.models.cache import KVCache, empty_cache
from e3jax.models.pages import Copies, Pages, Piece, Pool, copy_prompts, empty_piece, gather_pages
from e3jax.models.qwen3 import Qwen3, angles_of, unembedding
from e3jax.sampler.choose import Choice, choose
from e3jax.sharding import constrain

NOWHERE = 1 << 30  # a position beyond any page, so that a slot without a sample writes nothing
CHUNK = 2048  # tokens of a prompt that are prefilled at once; attention scores are [chunk, prompt]


class Slots(NamedTuple):
    """The sampler's small device state. Slots that are not live do not change."""

    last_ji: jax.Array  # [J, most tokens of a stop sequence]: the newest token last; it is not yet in the cache
    length_j: jax.Array  # tokens so far, the newest included
    limit_j: jax.Array  # length at which the budget ends the sample
    first_j: jax.Array  # tokens of the prompt, into which a stop sequence does not reach
    live_j: jax.Array
    stopped_j: jax.Array  # ended by a stop sequence, not by its budget
    key_j: jax.Array  # one key per sample; the draw at position t uses fold_in(key, t)


class Begin(NamedTuple):
    """Samples that start, one entry per slot; entries of slots where none starts mean nothing."""

    new_j: jax.Array  # bool: a sample starts here
    token_j: jax.Array  # last token of its prompt
    length_j: jax.Array  # tokens of its prompt
    limit_j: jax.Array
    bits_j: jax.Array  # [J, 2] uint32: its key, as `jax.random.key_data` has it


class Drawn(NamedTuple):
    """What a block of decode steps drew; step i of a slot is valid for i < new length - old length."""

    token_ij: jax.Array
    logp_ij: jax.Array
    entropy_ij: jax.Array


def replicated(tree):
    """Pin every array of a tree whole on every device; without a mesh this is the identity."""
    return jax.tree.map(lambda x: constrain(x, ""), tree)


@partial(jax.jit, static_argnames=("slots", "tail"))
def empty_slots(slots: int, tail: int) -> Slots:
    """Allocate slots without samples; `tail` is the number of tokens of the longest stop sequence."""

    def zeros(*shape, dtype=jnp.int32):
        return jnp.zeros((slots, *shape), dtype)  # a buffer for each, because they are donated

    keys = jax.random.split(jax.random.key(0), slots)  # replaced before a slot goes live
    small = Slots(zeros(tail), zeros(), zeros(), zeros(), zeros(dtype=bool), zeros(dtype=bool), keys)
    return replicated(small)


@partial(jax.jit, static_argnames=("model", "pages", "size", "dtype", "pools"))
def new_piece(model: Qwen3, pages: int, size: int, dtype, pools: int) -> tuple[Piece, ...]:
    """Allocate `pages` more pages of `size` positions, over all devices, for each pool: one, or one per layer."""
    layers = model.config.layers // pools
    return tuple(empty_piece(model.config, pages, size, dtype, layers=layers) for _ in range(pools))


@partial(jax.jit, static_argnames=("model", "dtype"))
def prefill(model: Qwen3, params, token_pt: jax.Array, dtype) -> KVCache:
    """Return keys and values [L, P, K, T, H] of right-padded prompts; padding's are overwritten before being read."""
    token_pt = constrain(token_pt, "BT")
    p, t = token_pt.shape
    cache = empty_cache(model.config, p, t, dtype)
    for start in range(0, t, CHUNK):
        end = min(start + CHUNK, t)
        position = jnp.broadcast_to(jnp.arange(start, end), (p, end - start))
        _, cache = model.apply({"params": params}, token_pt[:, start:end], position, cache=cache, window=end)
    return cache


@partial(jax.jit, donate_argnames=("pools", "shared", "slots"))
def admit(
    pools: tuple[Pool, ...], shared: tuple[Pool, ...], slots: Slots, prompts: KVCache, copies: Copies, begin: Begin
) -> tuple[tuple[Pool, ...], tuple[Pool, ...], Slots]:
    """Start a sample in every slot that `begin` names, and copy what it needs of its prompt (`copy_prompts`)."""
    new_j, token_j, length_j, limit_j, bits_j = begin
    key_j = jax.random.wrap_key_data(bits_j, impl=jax.random.key_impl(slots.key_j))
    last_ji = jnp.where(new_j[:, None], jnp.zeros_like(slots.last_ji).at[:, -1].set(token_j), slots.last_ji)
    rest = Slots(
        last_ji,
        jnp.where(new_j, length_j, slots.length_j),
        jnp.where(new_j, limit_j, slots.limit_j),
        jnp.where(new_j, length_j, slots.first_j),
        slots.live_j | new_j,
        slots.stopped_j & ~new_j,
        jnp.where(new_j, key_j, slots.key_j),
    )
    return *copy_prompts(pools, shared, prompts, copies), replicated(rest)


@jax.jit
def fewer(
    pools: tuple[Pool, ...], shared: tuple[Pool, ...], slots: Slots, page_x, page_y, slot_j
) -> tuple[tuple[Pool, ...], tuple[Pool, ...], Slots]:
    """Keep only the slots slot_j, the pages page_x and the shared pages page_y (of each device), in that order."""
    pools = tuple((gather_pages(pool, page_x),) for pool in pools)
    shared = tuple((gather_pages(pool, page_y),) if len(page_y) else () for pool in shared)
    return pools, shared, replicated(jax.tree.map(lambda x: x[slot_j], slots))


@partial(jax.jit, static_argnames=("model", "steps", "stop", "choice"), donate_argnames=("cache", "slots"))
def decode_block(
    model: Qwen3,
    params,
    cache: Pages,
    slots: Slots,
    enough: jax.Array | None,
    *,
    steps: int,
    stop: tuple[tuple[int, ...], ...],
    choice: Choice,
) -> tuple[Pages, Slots, Drawn]:
    """Draw up to `steps` tokens for every live slot; any sequence of `stop` ends a sample.

    The block ends early when no slot is live, or when `enough` slots have finished in it and could take other samples.
    With None it runs to its end: all devices agree on an early one at every token, which crosses the network of slices.
    `cache` must have pages for every position that the block may reach; with a pool per layer, params are `unstack`ed.
    """
    j = slots.length_j.shape[0]
    weights_vd = unembedding(params).astype(model.dtype)
    drawn = Drawn(jnp.zeros((steps, j), jnp.int32), jnp.zeros((steps, j)), jnp.zeros((steps, j)))
    began = jnp.sum(slots.live_j)
    # uniforms and angles depend on the lengths of live slots only, so those of all steps are computed at once
    length_ij = slots.length_j[None] + jnp.arange(steps)[:, None]
    draw = jax.vmap(lambda key, t: jax.random.uniform(jax.random.fold_in(key, t)))
    uniform_ij = jax.vmap(draw, (None, 0))(slots.key_j, length_ij)
    angles = angles_of(model.config, length_ij - 1)

    def step(carry):
        i, cache, s, drawn = carry
        position = jnp.where(s.live_j, s.length_j - 1, NOWHERE)
        here = tuple(x_ijh[i][:, None] for x_ijh in angles)
        hidden, cache = model.apply({"params": params}, s.last_ji[:, -1:], position[:, None], cache=cache, angles=here)
        logits = jnp.einsum("jd,vd->jv", hidden[:, 0], weights_vd, preferred_element_type=jnp.float32)
        token, logp, entropy = choose(logits, uniform_ij[i], **choice._asdict())
        drawn = Drawn(
            drawn.token_ij.at[i].set(token), drawn.logp_ij.at[i].set(logp), drawn.entropy_ij.at[i].set(entropy)
        )
        last_ji = jnp.concatenate([s.last_ji[:, 1:], token[:, None]], axis=1)
        last_ji = jnp.where(s.live_j[:, None], last_ji, s.last_ji)
        length_j = jnp.where(s.live_j, s.length_j + 1, s.length_j)
        stopped = s.stopped_j
        for sequence in stop:
            ends = jnp.all(last_ji[:, -len(sequence) :] == jnp.array(sequence)[None], axis=1)
            stopped |= s.live_j & ends & (length_j - s.first_j >= len(sequence))
        live = s.live_j & (length_j < s.limit_j) & ~stopped
        s = s._replace(last_ji=last_ji, length_j=length_j, live_j=live, stopped_j=stopped)
        return i + 1, cache, s, drawn

    def more(carry):
        i, _, s, _ = carry
        if enough is None:
            return i < steps
        alive = jnp.sum(s.live_j)
        return (i < steps) & (alive > 0) & (began - alive < enough)

    _, cache, slots, drawn = jax.lax.while_loop(more, step, (0, cache, slots, drawn))
    return cache, replicated(slots), replicated(drawn)
