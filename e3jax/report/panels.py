"""Which logged numbers are drawn: panels of training curves by kind of stage, for all pages.

PANELS["grpo"]["Reward"]      # {"reward/mean": "mean", …}: key of metrics.jsonl -> label
"""

from collections.abc import Mapping, Sequence

import numpy as np

MEMORY = {"Memory, most so far (GiB)": {"memory/device_gib": "device", "memory/host_gib": "host"}}
SPEED = {
    "Seconds per step": {"time/step_s": "by the clock"},
    "Tokens per second": {"time/tokens_per_s": "with prompts"},
} | MEMORY
# kind of stage -> title -> {key of metrics.jsonl: label}
PANELS = {
    "grpo": {
        "Reward": {"reward/mean": "mean", "reward/all_zero": "groups all 0", "reward/all_one": "groups all 1"},
        "Response length (tokens)": {
            "length/mean": "mean",
            "length/incorrect": "incorrect",
            "length/correct": "correct",
            "budget": "budget",
        },
        "Entropy (nats per token)": {
            "entropy/mean": "mean",
            "entropy/incorrect": "incorrect",
            "entropy/correct": "correct",
        },
        "Entropy by sign of advantage (nats)": {"entropy/positive": "positive", "entropy/negative": "negative"},
        "Entropy by phase (nats per token)": {"entropy/exploration": "exploration", "entropy/execution": "execution"},
        "Length by phase (tokens)": {"length/exploration": "exploration", "length/execution": "execution"},
        "Attempts per response": {
            "explore/attempts": "all",
            "explore/unique_attempts": "unique",
            "explore/verifications": "verifications",
        },
        "Ways to end without an answer": {"explore/give_up": "gave up", "truncated": "cut by the budget"},
        "Verdict accuracy": {"explore/verdict_accuracy": "verdicts that are right"},
        "Gradient norm": {"optim/grad_norm": "before clipping"},
        "Gradient mass of negative advantages": {"grad/negative_mass": "share"},
        "Clipped tokens (fraction)": {"loss/clip_low": "low", "loss/clip_high": "high", "loss/clip_dual": "dual"},
        "KL": {"loss/ppo_kl": "to the sampling policy", "loss/kl": "loss term"},
        "Sampler against trainer, |Δ log p|": {"parity/logp_mean": "mean", "parity/logp_max": "max"},
        "Seconds per step": {"time/step_s": "whole", "time/rollout_s": "sampling, grading", "time/update_s": "updates"},
        "Tokens per second": {"time/rollout_tokens_per_s": "sampled"},
    }
    | MEMORY,
    "sft": {
        "Loss": {"loss/total": "loss", "loss/held_out": "held out"},
        "Entropy (nats per token)": {"loss/entropy": "of the targets' distributions"},
        "Gradient norm": {"optim/grad_norm": "before clipping"},
    }
    | SPEED,
    "oxa": {
        "Cross-entropy of the promoted (nats)": {"loss/ce": "per token"},
        "Unlikelihood of the suppressed (nats)": {"loss/ul": "per token, before its weight"},
        "Entropy (nats per token)": {"loss/entropy_promoted": "promoted", "loss/entropy_suppressed": "suppressed"},
        "Probability of the targets": {"loss/p_promoted": "promoted", "loss/p_suppressed": "suppressed"},
        "Gradient norm": {"optim/grad_norm": "before clipping"},
    }
    | SPEED,
}
# keys that only E2C's runs log, or traces, stages with data held out, accelerators, newer runs: others do not miss them
OPTIONAL = ("entropy/ex", "length/ex", "loss/held_out", "explore/verdict", "memory/", "time/")
SETTINGS = {"budget"}  # chosen, not measured: drawn as dashed steps
LOG = {"optim/grad_norm", "parity/logp_mean", "parity/logp_max"}  # get a logarithmic y once they span 100x
TRIED = ("explore/verdict_accuracy", "explore/verifications")  # above 0 where attempts were told apart, or checked


def shown_panels(kind: str, columns: Sequence[Mapping[str, np.ndarray]]) -> dict[str, dict[str, str]]:
    """Return the panels for the columns of a kind's stages: all, but attempts only where one was ever judged.

    In a chat model's plain answers every paragraph counts as one (metrics/exploration.py), which says nothing.
    """
    tried = any(np.nansum(of[key]) > 0 for of in columns for key in TRIED if key in of)
    return {title: lines for title, lines in PANELS[kind].items() if tried or "explore/attempts" not in lines}
