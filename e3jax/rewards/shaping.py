"""The reward of RL: correctness, times the share of the plan that was followed, plus a penalty for length.

reward_b, metrics = shaped(share_b, score_b, length_b, settings, budget=8192)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from e3jax.errors import need, need_choice
from e3jax.rewards.extract import UNFINISHED
from e3jax.rewards.plan import FOLLOWING


@dataclass(frozen=True)
class RewardSettings:
    """What RL is rewarded with beside correctness: config.grpo.reward."""

    unfinished: str  # a response that the budget cut: "wrong", "graded"
    following: str  # "off", "sound", "original": a right answer is worth the share of its plan that it followed
    overlong_buffer: int  # tokens before the budget in which the soft penalty grows; 0: none
    overlong_factor: float
    lie_alpha: float = 0.0  # a wrong response pays this for every token that it is shorter than lie_length; 0: off
    lie_length: int = 0
    lie_cap: float = 0.3  # … and at most this

    def __post_init__(self):
        need_choice(self, "unfinished", UNFINISHED)
        need_choice(self, "following", FOLLOWING)
        need(self.overlong_buffer >= 0, "overlong_buffer", self.overlong_buffer, "use 0 (off) or more")
        need(self.lie_alpha >= 0, "lie_alpha", self.lie_alpha, "use 0 (off) or more")
        allowed = "set lie_length, the tokens that a wrong response should have"
        need(not self.lie_alpha or self.lie_length > 0, "lie_alpha", self.lie_alpha, allowed)
        need(self.lie_cap >= 0, "lie_cap", self.lie_cap, "use 0 or more")


def overlong(length_b, *, budget: int, buffer: int, factor: float) -> np.ndarray:
    """Return DAPO's soft penalty: factor · min(−(len − (budget − buffer)) / buffer, 0), which is −factor at the budget.

    >>> overlong(np.array([10, 15, 20]), budget=20, buffer=10, factor=1.0)
    array([ 0. , -0.5, -1. ])
    """
    return factor * np.minimum(-(np.asarray(length_b) - (budget - buffer)) / buffer, 0.0) + 0.0


def too_short(length_b, *, alpha: float, length: int, cap: float) -> np.ndarray:
    """Return LIE's penalty for giving up early (2602.11748): −clip(alpha · (length − len), 0, cap).

    >>> too_short(np.array([4, 8, 12]), alpha=0.25, length=10, cap=1.0)
    array([-1. , -0.5,  0. ])
    """
    return -np.clip(alpha * (length - np.asarray(length_b)), 0.0, cap) + 0.0


def shaped(
    share_b: Sequence[float], score_b, length_b, settings: RewardSettings, *, budget: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Return the reward [B] and its metrics: score · share of the plan that is followed + penalties for length.

    Scores and lengths (tokens) [B] are those of correctness; shares [B] are rewards/plan.py `plan_share`, which
    metrics/reading.py works out beside the grade, of right responses alone. Wrong answers have no following to pay for,
    but they too can be too long, and they alone too short (LIE).
    """
    reward_b, values = np.array(score_b, float), {}
    if settings.following != "off":
        right = np.flatnonzero(reward_b > 0)
        share = np.array([share_b[b] for b in right])
        reward_b[right] *= share
        values["reward/following"] = float(share.mean()) if len(share) else float("nan")
    if buffer := settings.overlong_buffer:
        penalty_b = overlong(length_b, budget=budget, buffer=buffer, factor=settings.overlong_factor)
        reward_b += penalty_b
        values["reward/overlong"] = float(penalty_b.mean())
    if settings.lie_alpha:
        how = dict(alpha=settings.lie_alpha, length=settings.lie_length, cap=settings.lie_cap)
        penalty_b = too_short(length_b, **how) * (np.asarray(score_b) <= 0)
        reward_b += penalty_b
        values["reward/too_short"] = float(penalty_b.mean())
    if values:
        values["reward/shaped"] = float(reward_b.mean())
    return reward_b, values
