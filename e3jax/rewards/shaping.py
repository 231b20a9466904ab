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

    def __post_init__(self):
        need_choice(self, "unfinished", UNFINISHED)
        need_choice(self, "following", FOLLOWING)
        need(self.overlong_buffer >= 0, "overlong_buffer", self.overlong_buffer, "use 0 (off) or more")


def overlong(length_b, *, budget: int, buffer: int, factor: float) -> np.ndarray:
    """Return DAPO's soft penalty: factor · min(−(len − (budget − buffer)) / buffer, 0), which is −factor at the budget.

    >>> overlong(np.array([10, 15, 20]), budget=20, buffer=10, factor=1.0)
    array([ 0. , -0.5, -1. ])
    """
    return factor * np.minimum(-(np.asarray(length_b) - (budget - buffer)) / buffer, 0.0) + 0.0


def shaped(
    share_b: Sequence[float], score_b, length_b, settings: RewardSettings, *, budget: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Return the reward [B] and its metrics: score · share of the plan that is followed + overlong penalty.

    Scores and lengths (tokens) [B] are those of correctness; shares [B] are rewards/plan.py `plan_share`, which
    metrics/reading.py works out beside the grade, of right responses alone. Wrong answers have no following to pay for,
    but they too can be too long.
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
    if values:
        values["reward/shaped"] = float(reward_b.mean())
    return reward_b, values
