"""The numbers of one RL step: reward, length, truncation, entropy, exploration (names: metrics/names.py).

values = rollout_metrics(score_b=…, response_len_b=…, done_b=…, entropy_bt=…, sampled_bt=…, reasons=…, advantage_b=…,
                         group_size=8)
"""

import numpy as np

from e3jax.phases import phase_masks
from e3jax.types import Rollouts


def mean_or_nan(x: np.ndarray) -> float:
    """Return the mean, or NaN (null in the records) of nothing."""
    return float(x.mean()) if len(x) else float("nan")


def rollout_metrics(
    *, score_b, response_len_b, done_b, entropy_bt, sampled_bt, reasons, advantage_b, group_size: int
) -> dict[str, float]:
    """Return the metrics of B graded responses; rewards, lengths and entropies split by outcome and by advantage sign.

    Entropy is per sampled token (EOS included), nats, averaged over the tokens of a class, not over padding.
    `truncated` is the share that the budget ended; `reason/…` are shares of the grader's codes.
    """
    group_pg = score_b.reshape(-1, group_size)
    right, wrong = score_b > 0, score_b <= 0

    def entropy(rows):
        return mean_or_nan(entropy_bt[rows][sampled_bt[rows]])

    values = {
        "reward/mean": float(score_b.mean()),
        "reward/std": float(score_b.std()),
        "reward/all_zero": float((group_pg.max(1) == 0).mean()),
        "reward/all_one": float((group_pg.min(1) == 1).mean()),
        "length/mean": float(response_len_b.mean()),
        "length/correct": mean_or_nan(response_len_b[right]),
        "length/incorrect": mean_or_nan(response_len_b[wrong]),
        "length/positive": mean_or_nan(response_len_b[advantage_b > 0]),
        "length/negative": mean_or_nan(response_len_b[advantage_b < 0]),
        "length/p10": float(np.percentile(response_len_b, 10)),
        "length/p50": float(np.percentile(response_len_b, 50)),
        "length/p90": float(np.percentile(response_len_b, 90)),
        "length/max": float(response_len_b.max()),
        "truncated": float(1 - done_b.mean()),
        "entropy/mean": entropy(slice(None)),
        "entropy/correct": entropy(right),
        "entropy/incorrect": entropy(wrong),
        "entropy/positive": entropy(advantage_b > 0),
        "entropy/negative": entropy(advantage_b < 0),
    }
    for reason in sorted(set(reasons)):
        values[f"reason/{reason}"] = reasons.count(reason) / len(reasons)
    return values


def turn_metrics(r: Rollouts) -> dict[str, float]:
    """Return means over episodes: turns of the model, tokens that it sampled, tokens that the environment put there.

    >>> sampled = np.array([[False, True, False, False, True], [False, True, True, False, False]])
    >>> turn_metrics(Rollouts(None, np.array([1, 1]), np.array([5, 3]), None, None, sampled, None))
    {'turns/mean': 1.5, 'turns/sampled': 2.0, 'turns/forced': 1.0}
    """
    begins_bt = r.sampled & ~np.pad(r.sampled, ((0, 0), (1, 0)))[:, :-1]
    sampled_b = r.sampled.sum(1)
    values = {"turns/mean": begins_bt.sum(1), "turns/sampled": sampled_b}
    values |= {"turns/forced": r.length - r.prompt_len - sampled_b}
    return {name: float(value_b.mean()) for name, value_b in values.items()}


def phase_metrics(r: Rollouts, tags) -> dict[str, float]:
    """Return each phase's entropy per sampled token (nats) and tokens per response, and the share well formed.

    `tags` of the tokenizer (phases.tag_ids); without them there are no phases: {}. Tags belong to no phase.
    """
    if not tags:
        return {}
    *masks, phases = phase_masks(r.tokens, r.prompt_len, r.length, tags=tags)
    values = {"format/well_formed": float(np.mean([not p.fault for p in phases]))}
    for name, mask_bt in zip(("exploration", "execution"), masks):
        mask_bt &= r.sampled
        values[f"entropy/{name}"] = mean_or_nan(r.entropy[mask_bt])
        values[f"length/{name}"] = float(mask_bt.sum(1).mean())
    return values
