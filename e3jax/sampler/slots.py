"""Sampling G responses for each of P prompts through J slots that are refilled the moment they finish.

Sample (prompt p, g) draws from fold_in(fold_in(key, id_p), g) alone: which slot it sat in, who sat beside it and how
many slots there were change nothing (tests/test_sampler.py).

    rollouts = sample(model, params, prompts, ids=range(len(prompts)), key=key, samples=8, budget=96, eos=1, pad=0,
                      slots=128, block=16, prefill_rows=16, temperature=1.0, top_k=0, top_p=1.0)
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.models.qwen3 import Qwen3, cast_matrices
from e3jax.sampler.decode import admit, decode_block, empty_slots, prefill
from e3jax.types import Rollouts


def size_bucket(n: int, most: int = 1 << 30) -> int:
    """Smallest of 16, 32, 64, 128, … that holds n, or `most`: the few shapes the sampler compiles."""
    return min(max(16, 1 << (n - 1).bit_length()), most)


def sample(
    model: Qwen3,
    params,
    prompts: Sequence[Sequence[int]],
    *,
    ids: Sequence[int],
    key: jax.Array,
    samples: int,
    budget: int,
    eos: int,
    pad: int,
    slots: int,
    block: int,
    prefill_rows: int,
    temperature: float,
    top_k: int,
    top_p: float,
    on_finished: Callable[[int], None] | None = None,
) -> Rollouts:
    """Rollouts of `samples` responses per prompt, prompt-major; `budget` counts response tokens, EOS included.

    `ids[p]` names prompt p in its samples' keys; `on_finished(n)` hears of the responses finished since last time.
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
    out = Rollouts(
        tokens=np.full((total, longest + budget), pad, np.int32),
        prompt_len=prompt_len[owner],
        length=prompt_len[owner].copy(),
        logp=np.zeros((total, longest + budget), np.float32),
        entropy=np.zeros((total, longest + budget), np.float32),
        sampled=np.zeros((total, longest + budget), bool),
        done=np.zeros(total, bool),
    )
    for request, p in enumerate(owner):
        out.tokens[request, : prompt_len[p]] = prompts[p]

    width = size_bucket(longest)  # of a prefilled prompt
    size = size_bucket(longest + budget, model.config.max_length)
    params = cast_matrices(params, model.dtype)  # once, not at every token
    slots = min(slots, size_bucket(total))
    state = empty_slots(model, slots, size)
    request_j = np.full(slots, -1)  # request in each slot
    waiting = 0  # next request
    chunk, first = None, 0  # the prefilled prompts, from `first` to first + prefill_rows - 1

    while True:
        # Refill every free slot, prefilling the next prompts when their turn comes.
        while waiting < total and (request_j < 0).any():
            if chunk is None or owner[waiting] >= first + prefill_rows:
                first = int(owner[waiting])
                rows = np.full((prefill_rows, width), pad, np.int32)
                for row, prompt in enumerate(prompts[first : first + prefill_rows]):
                    rows[row, : len(prompt)] = prompt
                chunk = prefill(model, params, rows)
            ready = np.searchsorted(owner, first + prefill_rows)  # requests whose prompt is in the chunk
            free = np.flatnonzero(request_j < 0)[: ready - waiting]
            request_j[free] = np.arange(waiting, waiting + len(free))
            waiting += len(free)
            source = np.full(slots, -1, np.int32)
            source[free] = owner[request_j[free]] - first
            request = np.maximum(request_j, 0)  # free slots read request 0 and ignore it
            length = prompt_len[owner[request]]
            last = out.tokens[request, length - 1]
            state = admit(state, chunk, source, last, length, length + budget, keys[request])
        busy = request_j >= 0
        if not busy.any():
            return out

        # A block of steps; host and device then agree on who finished.
        before = np.asarray(state.length_j)
        window = min(size, size_bucket(int(before[busy].max()) + block))
        state, drawn = decode_block(
            model, params, state, steps=block, window=window, eos=eos,
            temperature=temperature, top_k=top_k, top_p=top_p,
        )  # fmt: skip
        after, live = np.asarray(state.length_j), np.asarray(state.live_j)
        i, j = np.nonzero(np.arange(block)[:, None] < np.where(busy, after - before, 0)[None])
        request, position = request_j[j], before[j] + i
        out.tokens[request, position] = np.asarray(drawn.token_ij)[i, j]
        out.logp[request, position] = np.asarray(drawn.logp_ij)[i, j]
        out.entropy[request, position] = np.asarray(drawn.entropy_ij)[i, j]
        out.sampled[request, position] = True
        finished = np.flatnonzero(busy & ~live)
        request = request_j[finished]
        out.length[request] = after[finished]
        out.done[request] = out.tokens[request, after[finished] - 1] == eos
        request_j[finished] = -1
        if on_finished and len(finished):
            on_finished(len(finished))
