"""Advantages beside GRPO's: from the rewards of a prompt's group to one number a response (docs/algorithms.md, Rivals).

With R the rewards of a group of G responses, m their mean, s their standard deviation, and "right" a reward above 1/2:

    "group"              (R − m) / (s + ε), or R − m         losses/grpo.py group_advantages
    "batch_std"          (R − m) / (std of all rewards + ε)  ScaleRL, 2510.13786; TRL's scale_rewards="batch"
    "rloo"               (R − m) · G / (G − 1)               2402.14740
    "maxrl"              (R − m) / (m + ε)                   2602.02710
    "opo"                R − Σ length · R / Σ length         2505.23585
    "w_reinforce"        right +1, wrong −1                  2506.01347
    "pass_at_k"          `pass_at_k`                         2508.10751
    "best_minus_second"  best − second best, of the best     2503.19595; verl's grpo_passk
    "reinforce_pp"       R − m, whitened over all tokens     verl's reinforce_plus_plus_baseline
    "brpo"               one a piece of a response           2505.13438, losses/brpo.py

Where a group's rewards are all equal, all of these but the last two and "w_reinforce" are exactly 0.

    advantage_pg = response_advantages(reward_pg, length_pg, done_pg, settings)
"""

from dataclasses import dataclass
from math import comb

import numpy as np

from e3jax.errors import need, need_choice
from e3jax.losses.brpo import PRIORS
from e3jax.losses.grpo import TRUNCATED, group_advantages

RIGHT = 0.5  # a reward above it is a right response, where only right and wrong are read
KEEP_BY = ("shortest", "reward_per_token")  # GFPO's two metrics
BINARY = ("maxrl", "w_reinforce", "pass_at_k", "brpo")  # kinds for rewards of 0 and 1
BRPO = "brpo"  # the kind that reads scores of beginnings, and gives an advantage a token: train/credit.py
WHITENING = 1e-8  # verl's masked_whiten adds it to the variance


@dataclass(frozen=True)
class Advantage:
    """How a response is compared with its group: config.grpo.advantage."""

    normalize_std: bool  # "group" and "best_minus_second": divide by the group's standard deviation
    ddof: int  # of every standard deviation
    epsilon: float
    kind: str  # a name of KINDS, or BRPO
    k: int  # of "pass_at_k"
    positive: float  # factor of A > 0
    negative: float  # factor of A < 0
    truncated: str  # "mask": responses that the budget cut are in no baseline
    keep: int  # GFPO: responses of a group that count; 0: all
    keep_by: str
    pieces: int = 4  # of "brpo": how many budgets a response is graded at
    prior: str = "linear"  # of "brpo": what they are worth, losses/brpo.py

    def __post_init__(self):
        need_choice(self, "kind", (*KINDS, BRPO))
        need_choice(self, "prior", PRIORS)
        need(self.pieces >= 1, "pieces", self.pieces, "use 1 or more")
        whole = "'brpo' compares whole groups: use 'train' and keep=0"
        need(self.kind != BRPO or (self.truncated == "train" and not self.keep), "kind", self.kind, whole)
        need_choice(self, "truncated", TRUNCATED)
        need_choice(self, "keep_by", KEEP_BY)
        need(self.k >= 1, "k", self.k, "use 1 or more")
        need(self.keep == 0 or self.keep >= 2, "keep", self.keep, "use 0 (all) or 2 and more: one has no baseline")
        enough = self.kind != "pass_at_k" or not self.keep or self.keep >= self.k
        need(enough, "keep", self.keep, f"pass@{self.k} needs groups of {self.k} responses that count")
        for name in ("positive", "negative"):
            need(getattr(self, name) >= 0, name, getattr(self, name), "use 0 or more: below 0 it would turn the sign")

    @property
    def least(self) -> int:
        """Return how many responses a group must have; one with fewer has no advantage."""
        return 1 if self.kind == "w_reinforce" else max(2, self.k if self.kind == "pass_at_k" else 2)


def centred(reward_pg: np.ndarray) -> np.ndarray:
    """Return R − m within each row, exactly 0 where a row's rewards are equal; ValueError for groups of one."""
    return group_advantages(reward_pg, normalize_std=False, ddof=0, epsilon=0.0)


def rloo(reward_pg: np.ndarray) -> np.ndarray:
    """Return R − the mean of the group's other rewards, which is (R − m) · G / (G − 1).

    >>> rloo(np.array([[1.0, 0.0, 0.0]]))
    array([[ 1. , -0.5, -0.5]])
    """
    size = reward_pg.shape[1]
    return centred(reward_pg) * size / (size - 1)


def maxrl(reward_pg: np.ndarray, *, epsilon: float) -> np.ndarray:
    """Return (R − m) / (m + ε) of rewards >= 0: the rarer success is, the more it counts.

    >>> maxrl(np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]), epsilon=0.25)
    array([[ 1.5, -0.5, -0.5, -0.5],
           [ 0. ,  0. ,  0. ,  0. ]])
    """
    return centred(reward_pg) / (reward_pg.mean(axis=1, keepdims=True) + epsilon)


def opo(reward_pg: np.ndarray, length_pg: np.ndarray) -> np.ndarray:
    """Return R − Σ length · R / Σ length: the baseline of least variance where a gradient's norm grows with length.

    >>> opo(np.array([[1.0, 0.0]]), np.array([[1, 3]]))
    array([[ 0.75, -0.25]])
    """
    spread = centred(reward_pg).any(axis=1, keepdims=True)
    total = length_pg.sum(axis=1, keepdims=True)
    return (reward_pg - (length_pg * reward_pg).sum(axis=1, keepdims=True) / total) * spread


def w_reinforce(reward_pg: np.ndarray) -> np.ndarray:
    """Return +1 for right and −1 for wrong responses; with a factor λ on +1, λ = .1 is W-REINFORCE and 0 is NSR."""
    return np.where(reward_pg > RIGHT, 1.0, -1.0)


def pass_at_k(reward_pg: np.ndarray, *, k: int) -> np.ndarray:
    """Return the advantages of pass@k as the reward, exact over all subsets of k of the group's G responses.

    With c right ones, a subset is right with probability ρ = 1 − C(G−c, k) / C(G, k), and σ = √(ρ(1−ρ)):

        right    (1 − ρ) / σ
        wrong    (1 − ρ − C(G−c−1, k−1) / C(G−1, k−1)) / σ

    0 where all subsets are right, or none. ValueError for k > G.

    >>> pass_at_k(np.array([[1.0, 0.0, 0.0, 0.0]]), k=2).round(3)
    array([[ 1.   , -0.333, -0.333, -0.333]])
    """
    size = reward_pg.shape[1]
    if not 1 <= k <= size:
        raise ValueError(f"pass@{k} needs groups of {k} or more responses, got {reward_pg.shape}")
    right_pg = reward_pg > RIGHT
    pairs = np.array([_right_and_wrong(size, c, k) for c in range(size + 1)])  # [G + 1, 2]
    for_right, for_wrong = pairs[right_pg.sum(axis=1)].T
    return np.where(right_pg, for_right[:, None], for_wrong[:, None])


def _right_and_wrong(size: int, right: int, k: int) -> tuple[float, float]:
    """Return `pass_at_k` of a right and of a wrong response."""
    wrong = size - right
    if right == 0 or wrong < k:
        return 0.0, 0.0
    failing = comb(wrong, k) / comb(size, k)  # 1 − ρ
    sigma = (failing * (1 - failing)) ** 0.5
    return failing / sigma, (failing - comb(wrong - 1, k - 1) / comb(size - 1, k - 1)) / sigma


def best_minus_second(reward_pg: np.ndarray, *, normalize_std: bool, ddof: int, epsilon: float) -> np.ndarray:
    """Return for the best response its reward minus the second best's (over std + ε), for all others 0.

    >>> best_minus_second(np.array([[0.25, 1.0, 0.5]]), normalize_std=False, ddof=1, epsilon=0.0)
    array([[0. , 0.5, 0. ]])
    """
    if reward_pg.shape[1] < 2:
        raise ValueError(f"a group of one has no second best, got {reward_pg.shape}")
    best_pg = np.arange(reward_pg.shape[1]) == reward_pg.argmax(axis=1)[:, None]
    ordered = np.sort(reward_pg, axis=1)
    advantage_pg = best_pg * (ordered[:, -1:] - ordered[:, -2:-1])
    return advantage_pg / (reward_pg.std(axis=1, ddof=ddof, keepdims=True) + epsilon) if normalize_std else advantage_pg


def whitened(advantage: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return advantages minus their mean over all tokens, over their standard deviation there; all of one shape."""
    tokens = length.sum()
    mean = (length * advantage).sum() / tokens
    variance = (length * (advantage - mean) ** 2).sum() / max(tokens - 1, 1)
    return (advantage - mean) / np.sqrt(variance + WHITENING)


def scale_of(s: Advantage) -> dict[str, float]:
    """Return how a group's own standard deviation divides its advantages."""
    return dict(normalize_std=s.normalize_std, ddof=s.ddof, epsilon=s.epsilon)


KINDS = {  # name -> advantages of groups, from (rewards, lengths, settings)
    "group": lambda reward_pg, _, s: group_advantages(reward_pg, **scale_of(s)),
    "batch_std": lambda reward_pg, _, s: centred(reward_pg),  # scaled in `response_advantages`
    "rloo": lambda reward_pg, _, s: rloo(reward_pg),
    "maxrl": lambda reward_pg, _, s: maxrl(reward_pg, epsilon=s.epsilon),
    "opo": lambda reward_pg, length_pg, s: opo(reward_pg, length_pg),
    "w_reinforce": lambda reward_pg, _, s: w_reinforce(reward_pg),
    "pass_at_k": lambda reward_pg, _, s: pass_at_k(reward_pg, k=s.k),
    "best_minus_second": lambda reward_pg, _, s: best_minus_second(reward_pg, **scale_of(s)),
    "reinforce_pp": lambda reward_pg, _, s: centred(reward_pg),  # whitened in `response_advantages`
}


def gfpo_kept(reward_pg, length_pg, candidate_pg, *, keep: int, by: str) -> np.ndarray:
    """Return which `keep` candidates of every group count, bool [P, G]: the shortest, or the best reward per token.

    GFPO (2508.09726): samples more and learns from few. Of equal ones the first; all candidates where they are fewer.

    >>> ones = np.ones((1, 3))
    >>> gfpo_kept(ones, np.array([[30, 10, 20]]), ones > 0, keep=2, by="shortest")
    array([[False,  True,  True]])
    """
    cost_pg = length_pg * 1.0 if by == "shortest" else -reward_pg / np.maximum(length_pg, 1)
    order_pg = np.argsort(np.where(candidate_pg, cost_pg, np.inf), axis=1, kind="stable")
    return candidate_pg & (np.argsort(order_pg, axis=1) < keep)


def response_advantages(reward_pg, length_pg, done_pg, settings: Advantage) -> np.ndarray:
    """Return every response's advantage [P, G], float64, of host arrays [P, G]: rewards, lengths in tokens, and
    whether a response ended before its budget.

    A response that is in no baseline (truncated="mask", or not among GFPO's `keep`) has advantage 0, and a group with
    too few that are has none. A batch's statistics are over the responses that count. `positive` and `negative` scale
    the result by its sign.
    """
    counted_pg = np.ones(reward_pg.shape, bool) if settings.truncated == "train" else np.array(done_pg, bool)
    if settings.keep:
        counted_pg = gfpo_kept(reward_pg, length_pg, counted_pg, keep=settings.keep, by=settings.keep_by)
    of_groups = KINDS[settings.kind]
    if counted_pg.all():
        advantage_pg = of_groups(reward_pg, length_pg, settings)
    else:
        advantage_pg = np.zeros(reward_pg.shape)
        counted_pg &= counted_pg.sum(axis=1, keepdims=True) >= settings.least
        for p in np.flatnonzero(counted_pg.any(axis=1)):
            one = np.ix_([p], counted_pg[p])
            advantage_pg[one] = of_groups(reward_pg[one], length_pg[one], settings)
    if settings.kind == "batch_std" and counted_pg.sum() > settings.ddof:
        advantage_pg = advantage_pg / (reward_pg[counted_pg].std(ddof=settings.ddof) + settings.epsilon)
    if settings.kind == "reinforce_pp" and counted_pg.any():
        advantage_pg[counted_pg] = whitened(advantage_pg[counted_pg], length_pg[counted_pg])
    return by_sign(advantage_pg, settings)


def by_sign(advantage: np.ndarray, settings: Advantage) -> np.ndarray:
    """Return advantages times `positive` or `negative`, by their sign."""
    return np.where(advantage > 0, settings.positive * advantage, settings.negative * advantage)


def counted_responses(advantage_b, done_b, *, group_size: int, truncated: str, no_spread: str) -> np.ndarray | None:
    """Return which responses the loss counts, bool [B], prompt-major; None where it counts all.

    truncated="mask" leaves out those that the budget cut (DAPO's overlong filtering; TRL's mask_truncated_completions);
    no_spread="drop" leaves out groups in which no response has an advantage.

    >>> both = dict(group_size=2, truncated="mask", no_spread="drop")
    >>> counted_responses(np.array([1.0, -1.0, 0.0, 0.0]), np.array([True, False, True, True]), **both)
    array([ True, False, False, False])
    """
    if truncated == "train" and no_spread == "keep":
        return None
    keep_b = np.array(done_b, bool) if truncated == "mask" else np.ones(len(advantage_b), bool)
    if no_spread == "drop":
        keep_b &= np.repeat((advantage_b.reshape(-1, group_size) != 0).any(axis=1), group_size)
    return keep_b
