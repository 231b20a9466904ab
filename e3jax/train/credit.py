"""What every sampled token counts in an update: reward, advantage, weight, and whether Clip-Cov or KL-Cov chose it.

All of it is decided over whole minibatches, on the host, before they are cut into micro-batches.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from e3jax.eval.scoring import anywhere
from e3jax.losses.advantages import BRPO, by_sign, counted_responses, response_advantages
from e3jax.losses.brpo import at_tokens, piece_advantages, piece_ends, prior
from e3jax.losses.grpo import GrpoLoss, token_weights
from e3jax.losses.surrogates import covariance_tokens
from e3jax.rewards.shaping import shaped
from e3jax.rollout.rollouts import Graded, Grader
from e3jax.runtime import fetch, gather
from e3jax.tasks.prompts import asked_length
from e3jax.train.closing import closing_mask
from e3jax.train.packing import MiniBatch
from e3jax.train.run import Run
from e3jax.types import Rollouts


def rewarded(graded: Graded, stage: "GrpoStage") -> tuple[np.ndarray, dict[str, float]]:  # noqa: F821 (train/grpo.py)
    """Return the reward of every response [B], and metrics of what it holds beside the score (rewards/shaping.py)."""
    s, more = stage.reward, {}
    if s.lie_repetition:  # a response that was not read in time repeats nothing
        more["repeats_b"] = np.array([0 if f is None else f["repeats"] for f in graded.features])
    if s.lcpo != "off":
        more["asked_b"] = np.array([asked_length(problem.question) for problem in graded.problems])
    return shaped(graded.share_b, graded.score_b, graded.response_len_b, s, budget=stage.budget, **more)


def compared(
    graded: Graded,
    reward_b: np.ndarray,
    stage: "GrpoStage",  # noqa: F821 (train/grpo.py)
    *,
    read: Grader,
    decode: Callable[[list[int]], str],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the advantage of every response [B], as records have it, and what an update takes.

    That is the same, but for BRPO, which has an advantage for every token [B, T]; of a response it is their mean.
    """
    a, r, size = stage.advantage, graded.rollouts, stage.group_size
    if a.kind != BRPO:
        grouped = (x.reshape(-1, size) for x in (reward_b, graded.response_len_b, r.done))
        advantage_b = response_advantages(*grouped, a).reshape(-1)
        return advantage_b, advantage_b
    ends = piece_ends(stage.budget, a.pieces)
    score_bs = scores_of_beginnings(graded, ends, read=read, decode=decode)
    advantage_pgs = by_sign(piece_advantages(score_bs.reshape(-1, size, a.pieces), prior(ends, a.prior)), a)
    advantage_bt = at_tokens(advantage_pgs.reshape(score_bs.shape), r.prompt_len, ends, width=r.tokens.shape[1])
    return (advantage_bt * r.sampled).sum(axis=1) / np.maximum(r.sampled.sum(axis=1), 1), advantage_bt


def scores_of_beginnings(
    graded: Graded, ends: Sequence[int], *, read: Grader, decode: Callable[[list[int]], str]
) -> np.ndarray:
    """Return the scores [B, S] of every response's first `ends` tokens, cut and graded as they then stand.

    As in evaluations (eval/scoring.py, "cut"), the last answer before the cut counts, inside the thinking too. A
    response that had ended by then, or had its whole budget, has the score that it has. Each process grades its share.
    """
    r = graded.rollouts
    total, me, n = len(graded.texts), jax.process_index(), jax.process_count()
    cuts = [(i, s) for i in range(me, total, n) for s, end in enumerate(ends[:-1]) if graded.response_len_b[i] > end]
    texts = [decode(r.tokens[i, r.prompt_len[i] : r.prompt_len[i] + ends[s]].tolist()) for i, s in cuts]
    readings = read([anywhere(graded.problems[i]) for i, _ in cuts], texts, [True] * len(cuts)).result()
    score_bs = np.repeat(np.array(graded.score_b, float)[:, None], len(ends), axis=1)
    for share in gather([(i, s, one.grade.score) for (i, s), one in zip(cuts, readings)]):
        for i, s, score in share:
            score_bs[i, s] = score
    return score_bs


def weigh(
    run: Run,
    r: Rollouts,
    minibatches: list[MiniBatch],
    advantage: np.ndarray,
    stage: "GrpoStage",  # noqa: F821 (train/grpo.py, which imports this file)
) -> np.ndarray:
    """Return each token's weight [B, T] in its minibatch's loss: mask / denominator (losses/grpo.py token_weights).

    `advantage` [B]; one a token [B, T] only where no weight depends on its sign (GrpoStage.check_advantage).
    """
    w = stage.weights
    mask = r.sampled.astype(np.float32)  # EOS is sampled: stopping is an action and is trained
    closing_bt = np.zeros(mask.shape, bool)  # none, but for "no-eos"
    if w.gradients == "no-eos":
        closing_bt = closing_mask(run.tokenizer, r, closing=w.closing, match=w.closing_match)
    which = dict(truncated=w.truncated, no_spread=w.no_spread)
    keep_b = counted_responses(advantage, r.done, group_size=stage.group_size, **which)
    weight_bt = np.zeros_like(mask)
    for index, _ in minibatches:
        weight_bt[index] = token_weights(
            mask[index],
            advantage_b=advantage[index],
            closing_bt=closing_bt[index],
            keep_b=None if keep_b is None else keep_b[index],
            max_length=stage.budget,
            aggregation=w.aggregation,
            gradients=w.gradients,
            denominator=w.denominator,
        )
    return weight_bt


def token_advantages(advantage: np.ndarray, lambda_bt: np.ndarray | None, *, shape: tuple[int, int]) -> np.ndarray:
    """Return every token's advantage [B, T] float32, its own or its response's, times λ where there is one."""
    advantage_bt = advantage if advantage.ndim == 2 else advantage[:, None]
    advantage_bt = np.broadcast_to(advantage_bt, shape).astype(np.float32)
    return advantage_bt if lambda_bt is None else advantage_bt * lambda_bt


def choose_tokens(
    minibatch: MiniBatch,
    logp: Sequence[jax.Array | np.ndarray],
    old_logp: Sequence[jax.Array | np.ndarray],
    terms: "Terms",  # noqa: F821 (train/grpo.py)
    loss: GrpoLoss,
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return which tokens [B, T] of a minibatch its surrogate chooses (losses/surrogates.py covariance_tokens).

    `logp` and `old_logp` hold an array [rows, width] for each micro-batch. The choice does not depend on how they are
    cut: tokens are taken in the order of the rollouts.
    """
    shape = terms.weight_bt.shape
    trained_bt = np.isin(np.arange(shape[0]), minibatch.index)[:, None] & (terms.weight_bt != 0)
    unpacked = []
    for packed_arrays in (logp, old_logp):
        out_bt = np.zeros(shape, np.float32)
        for m, array in zip(minibatch.packed, fetch(list(packed_arrays))):
            m.back(array, out_bt)
        unpacked.append(out_bt[trained_bt])
    chosen_bt = np.zeros(shape, bool)
    chosen_bt[trained_bt] = covariance_tokens(*unpacked, terms.advantage_bt[trained_bt], loss, rng=rng)
    return chosen_bt
