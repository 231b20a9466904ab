"""The three compiled programs of the sampler: prefill prompts, put a prompt into slots, decode a block of steps.

A slot is one row of the cache. A decode step feeds the slot's last token (the prompt's own last token at first,
so the prefill needs no logits and there is one place that samples), writes its key and value, samples the next.

On a mesh the cache's rows lie over data x fsdp; a slot's small values and what is drawn come out replicated, so that
every process reads them.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from e3jax.models.cache import KVCache, clone_rows, empty_cache
from e3jax.models.qwen3 import Qwen3, unembedding
from e3jax.sampler.choose import choose
from e3jax.sharding import constrain


class Slots(NamedTuple):
    """The sampler's device state; rows that are not live change nothing."""

    cache: KVCache  # [L, J, K, S, H]
    token_j: jax.Array  # last token of each slot, not yet in the cache
    length_j: jax.Array  # tokens so far, that one included
    limit_j: jax.Array  # length at which the budget ends the sample
    live_j: jax.Array
    key_j: jax.Array  # one key per sample; the draw at position t uses fold_in(key, t)


class Drawn(NamedTuple):
    """What a block of decode steps drew; row i of a slot is valid for i < new length - old length."""

    token_ij: jax.Array
    logp_ij: jax.Array
    entropy_ij: jax.Array


def replicated(tree):
    """Pin every array of a tree whole on every device; without a mesh the identity."""
    return jax.tree.map(lambda x: constrain(x, ""), tree)


@partial(jax.jit, static_argnames=("model", "slots", "size"))
def empty_slots(model: Qwen3, slots: int, size: int) -> Slots:
    """No live row; the cache holds `size` positions."""

    def zeros(dtype=jnp.int32):
        return jnp.zeros(slots, dtype)  # a buffer each: they are donated

    keys = jax.random.split(jax.random.key(0), slots)  # replaced before a row goes live
    cache = empty_cache(model.config, slots, size, model.dtype)
    return Slots(cache, *replicated((zeros(), zeros(), zeros(), zeros(bool), keys)))


@partial(jax.jit, static_argnames="model")
def prefill(model: Qwen3, params, token_pt: jax.Array) -> KVCache:
    """Keys and values [L, P, K, T, H] of right-padded prompts; what padding wrote is overwritten before it is read."""
    token_pt = constrain(token_pt, "BT")
    p, t = token_pt.shape
    position = jnp.broadcast_to(jnp.arange(t), (p, t))
    cache = empty_cache(model.config, p, t, model.dtype)
    _, cache = model.apply({"params": params}, token_pt, position, cache=cache, window=t)
    return cache


@partial(jax.jit, donate_argnames="slots")
def admit(slots: Slots, prompts: KVCache, source_j, token_j, length_j, limit_j, key_j) -> Slots:
    """Start a sample in every slot j with source_j[j] >= 0, from that row of the prefilled prompts."""
    new = source_j >= 0
    rest = (
        jnp.where(new, token_j, slots.token_j),
        jnp.where(new, length_j, slots.length_j),
        jnp.where(new, limit_j, slots.limit_j),
        slots.live_j | new,
        jnp.where(new, key_j, slots.key_j),
    )
    return Slots(clone_rows(slots.cache, prompts, source_j), *replicated(rest))


@partial(
    jax.jit,
    static_argnames=("model", "steps", "window", "stop", "temperature", "top_k", "top_p"),
    donate_argnames="slots",
)
def decode_block(
    model: Qwen3, params, slots: Slots, *, steps: int, window: int, stop: tuple[int, ...],
    temperature: float, top_k: int, top_p: float,
) -> tuple[Slots, Drawn]:  # fmt: skip
    """Up to `steps` tokens for every live slot; any of `stop` ends a sample. Stops early when none lives.

    `window` (static) bounds the cache positions that attention reads: max live length + steps, rounded up.
    """
    j = slots.token_j.shape[0]
    size = slots.cache.k.shape[3]
    weights_vd = unembedding(params).astype(model.dtype)
    drawn = Drawn(jnp.zeros((steps, j), jnp.int32), jnp.zeros((steps, j)), jnp.zeros((steps, j)))

    def step(carry):
        i, s, drawn = carry
        position = jnp.where(s.live_j, s.length_j - 1, size)  # a dead row writes out of range: dropped
        hidden, cache = model.apply(
            {"params": params}, s.token_j[:, None], position[:, None], cache=s.cache, window=window
        )
        logits = jnp.einsum("jd,vd->jv", hidden[:, 0], weights_vd, preferred_element_type=jnp.float32)
        uniform = jax.vmap(lambda k, t: jax.random.uniform(jax.random.fold_in(k, t)))(s.key_j, s.length_j)
        token, logp, entropy = choose(logits, uniform, temperature=temperature, top_k=top_k, top_p=top_p)
        drawn = Drawn(
            drawn.token_ij.at[i].set(token),
            drawn.logp_ij.at[i].set(logp),
            drawn.entropy_ij.at[i].set(entropy),
        )
        length = jnp.where(s.live_j, s.length_j + 1, s.length_j)
        live = s.live_j & (length < s.limit_j)
        for end in stop:
            live &= token != end
        return i + 1, s._replace(cache=cache, token_j=token, length_j=length, live_j=live), drawn

    _, slots, drawn = jax.lax.while_loop(
        lambda carry: (carry[0] < steps) & jnp.any(carry[1].live_j), step, (0, slots, drawn)
    )
    return Slots(slots.cache, *replicated(slots[1:])), replicated(drawn)
