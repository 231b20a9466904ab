"""Sampling G responses for each of P prompts through J slots that are refilled the moment they finish.

Sample (prompt p, g) draws from fold_in(fold_in(key, id_p), g) alone: which slot it sat in, who sat beside it and how
many slots there were change nothing (tests/test_sampler.py).

    rollouts = sample(model, params, prompts, ids=range(len(prompts)), key=key, samples=8, budget=96, stop=(1,),
                      pad=0, slots=128, block=16, prefill_rows=16, temperature=1.0, top_k=0, top_p=1.0)
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.models.qwen3 import Qwen3, cast_matrices
from e3jax.runtime import fetch, put
from e3jax.sampler.decode import admit, decode_block, empty_slots, prefill
from e3jax.sharding import AXES
from e3jax.types import Rollouts


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


def unsampled(prompt_bt: np.ndarray, prompt_len_b: np.ndarray, *, budget: int, pad: int) -> Rollouts:
    """Rollouts with room for `budget` tokens after the longest prompt, and nothing sampled yet."""
    shape = (len(prompt_bt), prompt_bt.shape[1] + budget)
    return Rollouts(
        tokens=np.pad(prompt_bt, ((0, 0), (0, budget)), constant_values=pad),
        prompt_len=prompt_len_b,
        length=prompt_len_b.copy(),
        logp=np.zeros(shape, np.float32),
        entropy=np.zeros(shape, np.float32),
        sampled=np.zeros(shape, bool),
        done=np.zeros(len(prompt_bt), bool),
    )


def sample(
    model: Qwen3,
    params,
    prompts: Sequence[Sequence[int]],
    *,
    ids: Sequence[int],
    key: jax.Array,
    samples: int,
    budget: int,
    stop: tuple[int, ...],
    pad: int,
    slots: int,
    block: int,
    prefill_rows: int,
    temperature: float,
    top_k: int,
    top_p: float,
    on_finished: Callable[[int], None] | None = None,
    on_tokens: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
) -> Rollouts:
    """Rollouts of `samples` responses per prompt, prompt-major; `budget` counts response tokens, the ending one too.

    A response is done when it draws a token of `stop` (EOS). `ids[p]` names prompt p in its samples' keys.
    `on_finished(n)` hears of the responses finished since last time, `on_tokens(b, tokens, logps)` of what row b of
    the rollouts drew since last time, the ending token included.
    Raises when a prompt is empty or prompt + budget exceeds the model's length.
    """
    prompt_len = np.array([len(p) for p in prompts], np.int32)
    longest = int(prompt_len.max())
    if prompt_len.min() < 1:
        raise ValueError(f"prompt {int(prompt_len.argmin())} is empty: give it at least a begin token")
    if longest + budget > model.config.max_length:
        raise ValueError(
            f"prompt of {longest} + budget of {budget} tokens exceeds the model's {model.config.max_length}"
        )
    total = len(prompts) * samples
    owner = np.repeat(np.arange(len(prompts)), samples)  # request -> prompt
    keys = jax.vmap(lambda i, g: jax.random.fold_in(jax.random.fold_in(key, i), g))(
        jnp.asarray(ids, jnp.uint32)[owner], jnp.tile(jnp.arange(samples), len(prompts))
    )
    prompt_pt = padded(prompts, size_bucket(longest), pad)
    out = unsampled(prompt_pt[owner, :longest], prompt_len[owner], budget=budget, pad=pad)

    size = cache_size(longest + budget, model.config.max_length)
    params = cast_matrices(params, model.dtype)  # once, not at every token
    mesh = jax.sharding.get_mesh()
    shards = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in AXES["J"])
    slots = min(slots, -(-size_bucket(total) // shards) * shards)
    state = empty_slots(model, slots, size)
    request_j = np.full(slots, -1)  # request in each slot
    length_j = np.zeros(slots, np.int32)  # the device's, known here without asking it
    waiting = 0  # next request
    chunk, first = None, 0  # the prefilled prompts, from `first` to first + prefill_rows - 1

    while True:
        # Refill every free slot, prefilling the next prompts when their turn comes.
        while waiting < total and (request_j < 0).any():
            if chunk is None or owner[waiting] >= first + prefill_rows:
                first = int(owner[waiting])
                rows = prompt_pt[first : first + prefill_rows]
                rows = np.pad(rows, ((0, prefill_rows - len(rows)), (0, 0)), constant_values=pad)
                chunk = prefill(model, params, put(rows, ""))
            ready = np.searchsorted(owner, first + prefill_rows)  # requests whose prompt is in the chunk
            free = np.flatnonzero(request_j < 0)[: ready - waiting]
            request_j[free] = np.arange(waiting, waiting + len(free))
            waiting += len(free)
            source = np.full(slots, -1, np.int32)
            source[free] = owner[request_j[free]] - first
            request = np.maximum(request_j, 0)  # free slots read request 0 and ignore it
            length = prompt_len[owner[request]]
            length_j[free] = length[free]
            last = out.tokens[request, length - 1]
            placed = [put(x, "") for x in (source, last, length, length + budget)]
            state = admit(state, chunk, *placed, keys[request])
        busy = request_j >= 0
        if not busy.any():
            return out

        # A block of steps; host and device then agree on who finished.
        before = length_j
        window = min(size, size_bucket(int(before[busy].max()) + block))
        state, drawn = decode_block(
            model, params, state, steps=block, window=window, stop=stop,
            temperature=temperature, top_k=top_k, top_p=top_p,
        )  # fmt: skip
        length_j, live, drawn = fetch((state.length_j, state.live_j, drawn))
        length_j = length_j.copy()  # the device may own it
        i, j = np.nonzero(np.arange(block)[:, None] < np.where(busy, length_j - before, 0)[None])
        request, position = request_j[j], before[j] + i
        out.tokens[request, position] = drawn.token_ij[i, j]
        out.logp[request, position] = drawn.logp_ij[i, j]
        out.entropy[request, position] = drawn.entropy_ij[i, j]
        out.sampled[request, position] = True
        if on_tokens:
            for j in np.flatnonzero(busy):
                new = request_j[j], slice(before[j], length_j[j])
                on_tokens(int(request_j[j]), out.tokens[new], out.logp[new])
        finished = np.flatnonzero(busy & ~live)
        request = request_j[finished]
        out.length[request] = length_j[finished]
        out.done[request] = np.isin(out.tokens[request, length_j[finished] - 1], stop)
        request_j[finished] = -1
        if on_finished and len(finished):
            on_finished(len(finished))
