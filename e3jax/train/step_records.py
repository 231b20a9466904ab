"""What is recorded of an RL step: metrics, times, warnings, samples. Nothing here changes a number of the training."""

from collections.abc import Iterator

import numpy as np

from e3jax.losses.grpo import TokenWeights
from e3jax.metrics.training import phase_metrics, rollout_metrics, turn_metrics
from e3jax.rollout.rollouts import Graded, feature_means
from e3jax.rollout.turns import forced_spans, shown, shown_pieces
from e3jax.runtime import memory_used
from e3jax.tasks.grade import nothing_read
from e3jax.train.run import Run

# Tokens of a response in samples.jsonl, about 25 bytes each: in a bucket the whole file is written again every 30 s
TOKENS_LOGGED = 2048


def step_metrics(graded: Graded, advantage_b: np.ndarray, tags, *, group_size: int, turns: bool) -> dict[str, float]:
    """Return what is logged of a step's responses: rewards, lengths, exploration, phases, and turns where there are."""
    r = graded.rollouts
    values = rollout_metrics(
        score_b=graded.score_b,
        response_len_b=graded.response_len_b,
        done_b=r.done,
        entropy_bt=r.entropy,
        sampled_bt=r.sampled,
        reasons=graded.reasons,
        advantage_b=advantage_b,
        group_size=group_size,
    )
    values |= turn_metrics(r) if turns else {}
    return values | feature_means(graded.features) | phase_metrics(r, tags) | reward_means(graded.rewards)


def reward_means(rewards_b: list[dict[str, float] | None]) -> dict[str, float]:
    """Return the mean of each part of the user's own reward, before its weight; without one there are none.

    >>> reward_means([{"short": 1.0}, None, {"short": 0.0}])
    {'reward/own/short': 0.5}
    """
    read = [rewards for rewards in rewards_b if rewards is not None]
    return {
        f"reward/own/{name}": float(np.mean([rewards[name] for rewards in read])) for name in (read[0] if read else ())
    }


def timings(graded: Graded, *, start: float, sampled_at: float, end: float) -> dict[str, float]:
    """Return how long a step took, its parts, how busy the sampler was, and the memory so far."""
    return {
        "time/step_s": end - start,
        "time/rollout_s": sampled_at - start,
        "time/first_token_s": graded.stats["first_token_s"],
        "sampler/occupancy": graded.stats["occupancy"],
        "sampler/prefilled": graded.stats["prefilled"],
        "sampler/shared_pages": graded.stats["shared_pages"],
        "time/update_s": end - sampled_at,
        "time/rollout_tokens_per_s": graded.rollouts.sampled.sum() / (sampled_at - start),
    } | memory_used()


def describe(values: dict[str, float]) -> str:
    """Return a step in one short line for the person watching."""
    return (
        f"reward {values['reward/mean']:.2f}  length {values['length/mean']:.0f}  "
        f"attempts {values['explore/attempts']:.1f}  {values['time/rollout_tokens_per_s']:.0f} tok/s"
    )


def alarms(
    graded: Graded, values: dict, advantage_b: np.ndarray, *, weights: TokenWeights, parity_alarm: float
) -> Iterator[str]:
    """Yield a warning for each problem of this step that does not stop the run."""
    if values["parity/logp_mean"] > parity_alarm:
        yield (
            f"sampler and trainer disagree, mean |Δ log-prob| {values['parity/logp_mean']:.3g} above "
            f"config.grpo.parity_alarm={parity_alarm}"
        )
    unread = nothing_read(
        graded.reasons, graded.problems, where_field="config.task.where", prompt_field="config.task.prompt"
    )
    if unread:
        yield unread
    if weights.gradients == "no-eos" and (advantage_b < 0).any() and not values["grad/masked"]:
        yield (
            f"gradients='no-eos' masked nothing: {weights.closing!r} (config.grpo.weights.closing) is in none of "
            f"the {(advantage_b < 0).sum()} responses of negative advantage"
        )


def per_token(value_t: np.ndarray, sampled_t: np.ndarray) -> list[float | None]:
    """Return values of tokens for a record, rounded; None where a token was not sampled."""
    return [round(x, 3) if sampled else None for x, sampled in zip(value_t.tolist(), sampled_t)]


def log_samples(run: Run, stage: str, step: int, graded: Graded, advantage_b: np.ndarray, count: int) -> None:
    """Append the step's first `count` responses to samples.jsonl; "reward" there is the score of correctness.

    For the first TOKENS_LOGGED tokens also each token's text, entropy and log-prob (nats). "forced": the characters
    that an environment put there.
    """
    r = graded.rollouts
    for i in range(min(count, len(graded.texts))):
        first = slice(r.prompt_len[i], min(r.length[i], r.prompt_len[i] + TOKENS_LOGGED))
        tokens, forced = r.tokens[i, r.prompt_len[i] : r.length[i]].tolist(), forced_spans(r, i)
        text, marks = shown(run.tokenizer.decode, tokens, forced) if forced else (graded.texts[i], [])
        run.log.append(
            "samples.jsonl",
            {
                "stage": stage,
                "step": step,
                "problem": graded.problems[i].id,
                "prompt": graded.problems[i].question,
                "response": text,
                "answer": graded.problems[i].answer,
                "reward": float(graded.score_b[i]),
                "reason": graded.reasons[i],
                "length": int(graded.response_len_b[i]),
                "truncated": not bool(r.done[i]),
                "advantage": float(advantage_b[i]),
                "tokens": shown_pieces(run.tokenizer.decode, tokens[:TOKENS_LOGGED], forced),
                "entropy": per_token(r.entropy[i, first], r.sampled[i, first]),
                "logp": per_token(r.logp[i, first], r.sampled[i, first]),
            }
            | ({"forced": marks} if forced else {}),
        )
