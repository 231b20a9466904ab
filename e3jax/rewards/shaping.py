"""The reward of RL: correctness, times the share of the plan that was followed, and terms for length and repetition.

reward_b, metrics = shaped(share_b, score_b, length_b, settings, budget=8192)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from e3jax.errors import need, need_choice
from e3jax.rewards.extract import UNFINISHED
from e3jax.rewards.plan import FOLLOWING

LCPO = ("off", "exact", "max")  # whether a response is paid for the length that its prompt asks for
LCPO_MARGIN = 0.5  # "max": what a right response of exactly the asked length earns; L1
LIE_REPEATS = 10  # a run of ten words that occurs so often is a repetition; LIE's script


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
    lie_repetition: float = 0.0  # a response pays this if it repeats itself (rewards/repetition.py); 0: off
    lcpo: str = "off"  # the length that the prompt asks for: met "exact"ly, or at most
    lcpo_alpha: float = 3e-4  # for a token of difference

    def __post_init__(self):
        need_choice(self, "unfinished", UNFINISHED)
        need_choice(self, "following", FOLLOWING)
        need(self.overlong_buffer >= 0, "overlong_buffer", self.overlong_buffer, "use 0 (off) or more")
        need(self.lie_alpha >= 0, "lie_alpha", self.lie_alpha, "use 0 (off) or more")
        allowed = "set lie_length, the tokens that a wrong response should have"
        need(not self.lie_alpha or self.lie_length > 0, "lie_alpha", self.lie_alpha, allowed)
        for name in ("lie_cap", "lie_repetition"):
            need(getattr(self, name) >= 0, name, getattr(self, name), "use 0 or more")
        need_choice(self, "lcpo", LCPO)
        need(self.lcpo_alpha > 0, "lcpo_alpha", self.lcpo_alpha, "must be above 0")

    @property
    def options(self) -> dict:
        """Return what metrics/reading.py has to read for these terms."""
        return {"following": self.following} | ({"repeats": True} if self.lie_repetition else {})

    @property
    def binary(self) -> bool:
        """Return whether the reward is the score alone, which a grader of right and wrong gives as 1 and 0."""
        terms = self.overlong_buffer, self.lie_alpha, self.lie_repetition
        return self.following == "off" and self.lcpo == "off" and not any(terms)


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


def length_controlled(score_b, length_b, asked_b, *, kind: str, alpha: float) -> np.ndarray:
    """Return LCPO's reward (L1, 2503.04697) of scores, lengths and the lengths that the prompts asked for, all [B]:

        "exact"  score − alpha · |asked − length|
        "max"    score · clip(alpha · (asked − length) + 1/2, 0, 1)

    >>> length_controlled([1.0, 0.0], np.array([6, 6]), np.array([10, 10]), kind="exact", alpha=0.125).tolist()
    [0.5, -0.5]
    >>> length_controlled([1.0, 1.0], np.array([8, 20]), np.array([10, 10]), kind="max", alpha=0.125).tolist()
    [0.75, 0.0]
    """
    room_b = np.asarray(asked_b, float) - np.asarray(length_b)
    if kind == "exact":
        return np.asarray(score_b, float) - alpha * np.abs(room_b)
    return np.asarray(score_b, float) * np.clip(alpha * room_b + LCPO_MARGIN, 0.0, 1.0)


def shaped(
    share_b: Sequence[float], score_b, length_b, settings: RewardSettings, *, budget: int, repeats_b=None, asked_b=None
) -> tuple[np.ndarray, dict[str, float]]:
    """Return the reward [B] and its metrics: score · share of the plan that is followed, its length, and penalties.

    Scores and lengths (tokens) [B] are those of correctness; shares [B] are rewards/plan.py `plan_share`, which
    metrics/reading.py works out beside the grade, of right responses alone. Wrong answers have no following to pay for,
    but they too can be too long, and they alone too short (LIE). `repeats_b` (rewards/repetition.py) is for
    lie_repetition, `asked_b` (tasks/prompts.py) for lcpo.
    """
    reward_b, values = np.array(score_b, float), {}
    if settings.following != "off":
        right = np.flatnonzero(reward_b > 0)
        share = np.array([share_b[b] for b in right])
        reward_b[right] *= share
        values["reward/following"] = float(share.mean()) if len(share) else float("nan")
    if settings.lcpo != "off":
        reward_b = length_controlled(reward_b, length_b, asked_b, kind=settings.lcpo, alpha=settings.lcpo_alpha)
        values["reward/length_error"] = float(np.abs(np.asarray(asked_b) - length_b).mean())
    for name, penalty_b in penalties(score_b, length_b, repeats_b, settings, budget=budget).items():
        reward_b += penalty_b
        values[name] = float(penalty_b.mean())
    if values:
        values["reward/shaped"] = float(reward_b.mean())
    return reward_b, values


def penalties(score_b, length_b, repeats_b, s: RewardSettings, *, budget: int) -> dict[str, np.ndarray]:
    """Return what is taken off the reward [B], by the names of its metrics: 0 or less."""
    out = {}
    if s.overlong_buffer:
        out["reward/overlong"] = overlong(length_b, budget=budget, buffer=s.overlong_buffer, factor=s.overlong_factor)
    if s.lie_alpha:
        short_b = too_short(length_b, alpha=s.lie_alpha, length=s.lie_length, cap=s.lie_cap)
        out["reward/too_short"] = short_b * (np.asarray(score_b) <= 0)
    if s.lie_repetition:
        out["reward/repetition"] = np.where(np.asarray(repeats_b) >= LIE_REPEATS, -s.lie_repetition, 0.0)
    return out
