"""BRPO: an advantage for every piece of a response, from the scores of its beginnings (docs/algorithms.md, BRPO).

AnytimeReasoner (2505.13438) trains a response to be right whenever it is stopped. Budgets b_0 < … < b_{S−1} cut it into
pieces; r_j is the score of its first b_j tokens, and w_j what budget j is worth, Σ w = 1:

    R_s = Σ_{j >= s} w_j r_j                               what piece s and those after it can still earn
    V₁  = Σ_{j >= s} w_j · Σ_{j < s} 2^j r_j / Σ_{j < s} 2^j   its own earlier scores, late ones counting more; s = 0: 0
    V₂  = mean of R_s over the group
    A_s = R_s − (s · V₁ + (S − s) · V₂) / S                of every token of piece s

    ends = piece_ends(96, 4)                               # (24, 48, 72, 96)
    advantage_bt = at_tokens(piece_advantages(score_pgs, prior(ends, "linear")), prompt_len_b, ends, width=128)

S pieces here, not a cache length.
"""

from collections.abc import Sequence

import numpy as np

PRIORS = ("linear", "uniform", "last")  # what the budgets are worth: `prior`


def piece_ends(budget: int, pieces: int) -> tuple[int, ...]:
    """Return the tokens at which the pieces of a response end; they are as long as each other, up to rounding down.

    >>> piece_ends(96, 4)
    (24, 48, 72, 96)
    """
    return tuple(budget * (s + 1) // pieces for s in range(pieces))


def prior(ends: Sequence[int], kind: str) -> np.ndarray:
    """Return w [S] of the budgets: proportional to them ("linear"), equal ("uniform"), or 1 for the "last" alone.

    >>> prior((24, 48, 72, 96), "linear").tolist()
    [0.1, 0.2, 0.3, 0.4]
    """
    if kind not in PRIORS:
        raise ValueError(f"prior {kind!r} is not one of {', '.join(map(repr, PRIORS))}")
    worth = np.array(ends, float) if kind == "linear" else np.ones(len(ends))
    if kind == "last":
        worth[:-1] = 0.0
    return worth / worth.sum()


def piece_advantages(score_pgs: np.ndarray, weight_s: np.ndarray) -> np.ndarray:
    """Return A [P, G, S] of every piece, float64, from the scores of beginnings [P, G, S].

    ValueError for groups of one, which have no baseline.

    >>> piece_advantages(np.array([[[0.0, 1.0], [0.0, 0.0]]]), np.array([0.5, 0.5]))
    array([[[ 0.25 ,  0.375],
            [-0.25 , -0.125]]])
    """
    if score_pgs.ndim != 3 or score_pgs.shape[1] < 2:
        raise ValueError(f"scores must be [P, G, S] with G >= 2, got {score_pgs.shape}: a group of one has no baseline")
    pieces = score_pgs.shape[2]
    still_pgs = np.cumsum((score_pgs * weight_s)[..., ::-1], axis=-1)[..., ::-1]  # R_s
    left_s = np.cumsum(weight_s[::-1])[::-1]
    late_s = 2.0 ** np.arange(pieces)
    before_pgs = np.zeros(score_pgs.shape)
    before_pgs[..., 1:] = np.cumsum(score_pgs * late_s, axis=-1)[..., :-1] / np.cumsum(late_s)[:-1]
    own_pgs, group_p1s, s = left_s * before_pgs, still_pgs.mean(axis=1, keepdims=True), np.arange(pieces)
    return still_pgs - (s * own_pgs + (pieces - s) * group_p1s) / pieces


def at_tokens(advantage_bs: np.ndarray, prompt_len_b: np.ndarray, ends: Sequence[int], *, width: int) -> np.ndarray:
    """Return the advantage of every token [B, width], that of its piece; 0 in the prompt.

    >>> at_tokens(np.array([[3.0, 5.0]]), np.array([1]), (2, 4), width=6).tolist()
    [[0.0, 3.0, 3.0, 5.0, 5.0, 5.0]]
    """
    place_bt = np.arange(width) - np.asarray(prompt_len_b)[:, None]  # from the response's first token on
    piece_bt = np.minimum(np.searchsorted(ends, place_bt, side="right"), len(ends) - 1)
    return np.where(place_bt >= 0, np.take_along_axis(advantage_bs, piece_bt, axis=1), 0.0)
