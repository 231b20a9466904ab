"""How probable a model finds given continuations, and whether it would have written them itself.

    log p(c | x) = Σ_t log softmax(logits(x c_<t))[c_t]                                                          [nats]

What the model reads is sorted by length and cut into batches of few widths; requests that read the same tokens and are
asked about different last ones (the letters of multiple choice) share one row. Only hidden states that a scored token
is predicted from meet the unembedding, PIECE of them at a time.

    scores = log_likelihoods(model, params, [(context, continuation), …], tokens=8192, most=4096, pad=0)
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.errors import UserError
from e3jax.models.qwen3 import Qwen3, unembedding
from e3jax.runtime import fetch, put
from e3jax.sampler.slots import padded
from e3jax.sharding import AXES, constrain

LEAST = 64  # tokens of a row; narrower ones only cost compiled programs
PIECE = 512  # tokens whose logits exist at once


class Scored(NamedTuple):
    """One continuation."""

    logp: float  # nats, of all its tokens
    greedy: bool  # each of its tokens was the likeliest


def width_for(length: int, most: int) -> int:
    """Smallest of 64, 96, 128, 192, 256, … that holds `length`, or `most`.

    >>> [width_for(n, 1000) for n in (1, 65, 97, 700, 900)]
    [64, 96, 128, 768, 1000]
    """
    width = LEAST
    while width < length:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return min(width, most)


def row_groups() -> int:
    """How many parts the mesh cuts a batch's rows into."""
    mesh = jax.sharding.get_mesh()
    return 1 if mesh.empty else int(np.prod([mesh.shape[axis] for axis in AXES["B"]]))


def batches(lengths: Sequence[int], *, tokens: int, most: int, groups: int) -> Iterator[tuple[int, int, range]]:
    """(rows, width, which) of sorted `lengths`, longest first: about `tokens` tokens a batch, at least a row a group.

    The last batch has as few rows as hold it, a power of two times `groups`: one more program, not much padding.

    >>> list(batches([100, 90, 60, 5, 5], tokens=256, most=512, groups=1))
    [(2, 128, range(0, 2)), (4, 64, range(2, 5))]
    """
    first = 0
    while first < len(lengths):
        width = width_for(lengths[first], most)
        rows = max(tokens // width // groups, 1) * groups
        which = range(first, min(first + rows, len(lengths)))
        rows = min(rows, (1 << (-(-len(which) // groups) - 1).bit_length()) * groups)
        yield rows, width, which
        first = which.stop


@partial(jax.jit, static_argnames="model")
def hidden_states(model: Qwen3, params, token_bt: jax.Array) -> jax.Array:
    """[B, T, D] of right-padded rows: what comes after a token does not reach it."""
    position_bt = jnp.broadcast_to(jnp.arange(token_bt.shape[1]), token_bt.shape)
    return model.apply({"params": params}, token_bt, position_bt)[0]


@jax.jit
def score_piece(hidden_btd, embed_vd, row_m, column_m, target_m) -> tuple[jax.Array, jax.Array]:
    """Log-prob [M] of `target` after the token at (row, column), and whether it is the likeliest one."""
    hidden_md = constrain(hidden_btd[row_m, column_m], "BD")
    logits = jnp.einsum("md,vd->mv", hidden_md, embed_vd.astype(hidden_md.dtype), preferred_element_type=jnp.float32)
    logp = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(logp, target_m[:, None], axis=1)[:, 0], logits.argmax(1) == target_m


def score_rows(hidden, embed, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`score_piece` for places [N, 3] (row, column, target), PIECE of them at a time: one program."""
    logp, likeliest = [], []
    for first in range(0, len(places), PIECE):
        piece = places[first : first + PIECE]
        filled = np.zeros((PIECE, 3), np.int32)
        filled[: len(piece)] = piece
        out = fetch(score_piece(hidden, embed, *(put(x, "") for x in filled.T)))
        logp.append(out[0][: len(piece)])
        likeliest.append(out[1][: len(piece)])
    return np.concatenate(logp), np.concatenate(likeliest)


def log_likelihoods(
    model: Qwen3,
    params,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    tokens: int,
    most: int,
    pad: int,
    on_scored: Callable[[int], None] = lambda n: None,
) -> list[Scored]:
    """Scores of (context, continuation) token pairs, in their order; `on_scored(n)` hears of progress.

    `tokens` go through the model at once, about. A pair of more than `most` + 1 tokens loses the first ones of its
    context (the last token is predicted, never read). UserError for an empty context or continuation, and for a
    continuation that alone is too long.
    """
    asked: dict[tuple[int, ...], list[int]] = {}  # what the model reads -> requests that it answers
    for i, (context, continuation) in enumerate(pairs):
        if not context or not 0 < len(continuation) <= most:
            raise UserError(
                f"request {i}: a context of {len(context)} and a continuation of {len(continuation)} tokens cannot be "
                f"scored: at least one each is needed, and a continuation of {most} or fewer"
            )
        asked.setdefault(tuple([*context, *continuation][-(most + 1) : -1]), []).append(i)
    embed, out = unembedding(params), [None] * len(pairs)
    reads = sorted(asked, key=lambda read: (-len(read), read))
    for rows, width, which in batches(list(map(len, reads)), tokens=tokens, most=most, groups=row_groups()):
        now = [reads[i] for i in which]
        token_bt = padded(now + [(pad,)] * (rows - len(now)), width, pad)
        hidden = hidden_states(model, params, put(token_bt, "BT"))
        requests = [(row, i) for row, read in enumerate(now) for i in asked[read]]
        targets = [np.asarray(pairs[i][1]) for _, i in requests]
        places = np.concatenate(
            [
                np.stack([np.full(len(t), row), len(now[row]) - len(t) + np.arange(len(t)), t], axis=1)
                for (row, _), t in zip(requests, targets)
            ]
        )
        logp, likeliest = score_rows(hidden, embed, places)
        cuts = np.cumsum([len(t) for t in targets])[:-1]
        for (_, i), p, g in zip(requests, np.split(logp, cuts), np.split(likeliest, cuts)):
            out[i] = Scored(float(p.sum(dtype=np.float64)), bool(g.all()))
        on_scored(len(requests))
    return out
