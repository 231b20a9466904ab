"""Log-likelihoods of given continuations, and whether a model that takes the likeliest token would have written them.

    log p(c | x) = Σ_t log softmax(logits(x c_<t))[c_t]                                                          [nats]

What the model reads is sorted by length and cut into batches of few widths. Pairs that differ in their last token only
(the letters of multiple choice) share one row. Only hidden states that a scored token is predicted from meet the
unembedding, PIECE of them at a time.

    scores = log_likelihoods(model, params, [(context, continuation), …], Batching(tokens=8192, most=4096, pad=0))
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


class Batching(NamedTuple):
    """How texts are cut into batches that a model reads."""

    tokens: int  # of a batch, about
    most: int  # tokens that the model reads of a text
    pad: int


class Scored(NamedTuple):
    """What a model says of one continuation."""

    logp: float  # nats, of all its tokens
    greedy: bool  # each of its tokens was the likeliest


def width_for(length: int, most: int) -> int:
    """Return the smallest of 64, 96, 128, 192, 256, … that holds `length`, or `most`.

    >>> [width_for(n, 1000) for n in (1, 65, 97, 700, 900)]
    [64, 96, 128, 768, 1000]
    """
    width = LEAST
    while width < length:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return min(width, most)


def row_groups() -> int:
    """Return into how many parts the mesh cuts a batch's rows."""
    mesh = jax.sharding.get_mesh()
    return 1 if mesh.empty else int(np.prod([mesh.shape[axis] for axis in AXES["B"]]))


def batches(lengths: Sequence[int], *, tokens: int, most: int, groups: int) -> Iterator[tuple[int, int, range]]:
    """Yield (rows, width, which) for `lengths`, longest first: about `tokens` tokens a batch, at least a row a group.

    The last batch has as few rows as hold it, a power of two times `groups`: that compiles one more program and saves
    padding.

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
    """Return hidden states [B, T, D] of right-padded rows: padding comes after the tokens and does not reach them."""
    position_bt = jnp.broadcast_to(jnp.arange(token_bt.shape[1]), token_bt.shape)
    return model.apply({"params": params}, token_bt, position_bt)[0]


@jax.jit
def score_piece(hidden_btd, embed_vd, row_m, column_m, target_m) -> tuple[jax.Array, jax.Array]:
    """Return the log-probs [M] of `target` after the tokens at (row, column), and whether it is the likeliest token."""
    hidden_md = constrain(hidden_btd[row_m, column_m], "BD")
    logits = jnp.einsum("md,vd->mv", hidden_md, embed_vd.astype(hidden_md.dtype), preferred_element_type=jnp.float32)
    logp = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(logp, target_m[:, None], axis=1)[:, 0], logits.argmax(1) == target_m


def score_rows(hidden, embed, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `score_piece` of places [N, 3] (row, column, target), taken PIECE at a time: one program."""
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
    batching: Batching,
    *,
    on_scored: Callable[[int], None] = lambda n: None,
) -> list[Scored]:
    """Return the scores of (context, continuation) token pairs, in their order; `on_scored(n)` hears of progress.

    A pair of more than `most` + 1 tokens loses the first ones of its context (the last token is predicted, never
    read). Raise UserError for an empty context or continuation, and for a continuation that alone is too long.
    """
    tokens, most, pad = batching
    pairs_of: dict[tuple[int, ...], list[int]] = {}  # what the model reads -> the pairs that it scores
    for i, (context, continuation) in enumerate(pairs):
        if not context or not 0 < len(continuation) <= most:
            raise UserError(
                f"request {i}: a context of {len(context)} and a continuation of {len(continuation)} tokens cannot be "
                f"scored: at least one each is needed, and a continuation of {most} or fewer"
            )
        pairs_of.setdefault(tuple([*context, *continuation][-(most + 1) : -1]), []).append(i)
    embed, out = unembedding(params), [None] * len(pairs)
    reads = sorted(pairs_of, key=lambda read: (-len(read), read))
    for rows, width, which in batches(list(map(len, reads)), tokens=tokens, most=most, groups=row_groups()):
        now = [reads[i] for i in which]
        token_bt = padded(now + [(pad,)] * (rows - len(now)), width, pad)
        hidden = hidden_states(model, params, put(token_bt, "BT"))
        scored = [(row, i) for row, read in enumerate(now) for i in pairs_of[read]]
        targets = [np.asarray(pairs[i][1]) for _, i in scored]
        places = np.concatenate(
            [
                np.stack([np.full(len(t), row), len(now[row]) - len(t) + np.arange(len(t)), t], axis=1)
                for (row, _), t in zip(scored, targets)
            ]
        )
        logp, likeliest = score_rows(hidden, embed, places)
        cuts = np.cumsum([len(t) for t in targets])[:-1]
        for (_, i), p, g in zip(scored, np.split(logp, cuts), np.split(likeliest, cuts)):
            out[i] = Scored(float(p.sum(dtype=np.float64)), bool(g.all()))
        on_scored(len(scored))
    return out
