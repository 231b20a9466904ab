"""A model's exact next-token distributions along given responses, and how far they are from another model's.

Of every response token y_t, with p_t = softmax(logits(x y_<t) / temperature) of the model and q_t of the base:

    logp_t = log p_t[y_t]    entropy_t = −Σ_v p_t[v] log p_t[v]    kl_t = Σ_v p_t[v] (log p_t[v] − log q_t[v])   [nats]

`kl` is a sum over the vocabulary; k1 and k3 (losses/grpo.py) estimate it from `logp` and `base_logp` of the token that
was drawn, which is what training logs. `watched_t` are the probabilities of chosen tokens: of those that end a
response, say.
Each model makes one forward pass; logits exist for likelihood.PIECE tokens at a time.

    along = distributions(model, params, [(prompt, response)], Batching(tokens=8192, most=4096, pad=0),
                          base=(base_model, base_params), temperature=1.0, watched=(eos,))
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.errors import UserError
from e3jax.models.qwen3 import Qwen3, unembedding
from e3jax.rollout.likelihood import PIECE, Batching, batches, hidden_states, row_groups
from e3jax.runtime import fetch, put
from e3jax.sampler.slots import padded
from e3jax.sharding import constrain


class Along(NamedTuple):
    """What two models say of one response's tokens: arrays [T], `watched` [T, W]."""

    logp: np.ndarray
    entropy: np.ndarray
    base_logp: np.ndarray
    kl: np.ndarray
    watched: np.ndarray


@jax.jit
def compare_piece(hidden, embeds, places, watched_w, temperature):
    """Return (logp, entropy, base_logp, kl) [M] and watched probabilities [M, W] after the tokens at (row, column).

    `hidden` (two [B, T, D]) and `embeds` (two [V, D]) are the model's and the base's; `places` are row, column and
    target, each [M].
    """
    row_m, column_m, target_m = places

    def log_softmax(hidden, embed):
        hidden_md = constrain(hidden[row_m, column_m], "BD")
        logits = jnp.einsum("md,vd->mv", hidden_md, embed.astype(hidden.dtype), preferred_element_type=jnp.float32)
        return jax.nn.log_softmax(logits / temperature)

    ours, base = map(log_softmax, hidden, embeds)
    p = jnp.exp(ours)
    logp, base_logp = (jnp.take_along_axis(x, target_m[:, None], axis=1)[:, 0] for x in (ours, base))
    return logp, -(p * ours).sum(1), base_logp, (p * (ours - base)).sum(1), p[:, watched_w]


def distributions(
    model: Qwen3,
    params,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    batching: Batching,
    *,
    base: tuple[Qwen3, Any],
    temperature: float,
    watched: Sequence[int],
    on_scored: Callable[[int], None] = lambda n: None,
) -> list[Along]:
    """Return what the models say along every (prompt, response) in token ids, in their order.

    `base` is a (model, params) with the same vocabulary; the model itself gives kl = 0. Raise UserError for another
    vocabulary, an empty prompt or response, and a pair of more than `most` + 1 tokens.
    """
    (base_model, base_params), (tokens, most, pad) = base, batching
    if base_model.config.vocab_size != model.config.vocab_size:
        raise UserError(
            f"the base model has {base_model.config.vocab_size} tokens, the model {model.config.vocab_size}: "
            "distributions over different tokens have no divergence"
        )
    for i, (prompt, response) in enumerate(pairs):
        if not prompt or not response or len(prompt) + len(response) > most + 1:
            raise UserError(
                f"response {i}: a prompt of {len(prompt)} and a response of {len(response)} tokens; there must be at "
                f"least one each, and {most + 1} together at most"
            )
    out: list[Along | None] = [None] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    reads = [[*pairs[i][0], *pairs[i][1]][:-1] for i in order]
    embeds = unembedding(params), unembedding(base_params)
    for rows, width, which in batches(list(map(len, reads)), tokens=tokens, most=most, groups=row_groups()):
        now = [reads[j] for j in which]
        token_bt = put(padded(now + [(pad,)] * (rows - len(now)), width, pad), "BT")
        hidden = [hidden_states(m, w, token_bt) for m, w in ((model, params), (base_model, base_params))]
        places = np.concatenate(
            [
                np.stack([np.full(len(r), row), len(p) - 1 + np.arange(len(r)), np.asarray(r)], axis=1)
                for row, (p, r) in enumerate(pairs[order[j]] for j in which)
            ]
        )
        scored = compare(hidden, embeds, places, watched=watched, temperature=temperature)
        cuts = np.cumsum([len(pairs[order[j]][1]) for j in which])[:-1]
        for j, *columns in zip(which, *(np.split(x, cuts) for x in scored)):
            out[order[j]] = Along(*columns)
        on_scored(len(now))
    return out


def compare(hidden, embeds, places: np.ndarray, *, watched: Sequence[int], temperature: float) -> list[np.ndarray]:
    """Return `compare_piece` of places [N, 3] (row, column, target), taken PIECE at a time: one program."""
    pieces, ids = [], np.asarray(watched, np.int32)
    for first in range(0, len(places), PIECE):
        piece = places[first : first + PIECE]
        filled = np.zeros((PIECE, 3), np.int32)
        filled[: len(piece)] = piece
        columns = tuple(put(x, "") for x in filled.T)
        scored = compare_piece(tuple(hidden), embeds, columns, put(ids, ""), np.float32(temperature))
        pieces.append([x[: len(piece)] for x in fetch(scored)])
    return [np.concatenate(column) for column in zip(*pieces)]
