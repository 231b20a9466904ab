"""Evaluation of one checkpoint on one problem set: accuracy at every budget from one long generation, and pass@k.

line, graded = evaluate(model, params, tokenizer, problems, key=key, samples=2, budgets=(96, 192, 384), …)
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from e3jax.metrics.exploration import cumulative_unique
from e3jax.metrics.extrapolation import accuracy_at_budgets
from e3jax.metrics.pass_at_k import bootstrap_interval, pass_at_k
from e3jax.metrics.reading import Parts
from e3jax.metrics.training import phase_metrics
from e3jax.models.qwen3 import Qwen3
from e3jax.phases import tag_ids
from e3jax.rollout.rollouts import Graded, Grader, feature_means, rollout
from e3jax.tasks.problem import Problem
from e3jax.tasks.table import task_of

RESAMPLES = 1000


def with_interval(values_p: np.ndarray) -> list[float]:
    """[mean, low, high]: 95 % bootstrap interval over problems; the resampling seed is fixed."""
    low, high = bootstrap_interval(values_p, level=0.95, resamples=RESAMPLES, rng=np.random.default_rng(0))
    return [float(values_p.mean()), float(low), float(high)]


def evaluate(
    model: Qwen3,
    params,
    tokenizer,
    problems: Sequence[Problem],
    *,
    key: jax.Array,
    samples: int,
    budgets: Sequence[int],
    temperature: float,
    sampler: dict,
    read: Grader,
    on_finished: Callable[[int], None] | None = None,
) -> tuple[dict, Graded]:
    """-> what eval.jsonl records, and the rollouts. `accuracy` is pass@1 at each budget, mean over `samples`.

    `read` as for `rollout`, with apart=True where `distinct` and `sample_line` come after it.
    """
    graded = rollout(
        model,
        params,
        tokenizer,
        problems,
        key=key,
        first_id=0,
        samples=samples,
        budget=max(budgets),
        temperature=temperature,
        sampler=sampler,
        read=read,
        on_finished=on_finished,
    )

    def per_problem(x):
        return x.reshape(len(problems), samples)

    score_pg, length_pg = per_problem(graded.score_b), per_problem(graded.response_len_b)
    done_pg = per_problem(graded.rollouts.done)
    accuracy = accuracy_at_budgets(score_pg, length_pg, done_pg, budgets)
    explored = {name.removeprefix("explore/"): value for name, value in feature_means(graded.features).items()}
    line = {
        "problems": len(problems),
        "samples": samples,
        "temperature": temperature,
        "budgets": list(budgets),
        "accuracy": {str(b): with_interval(accuracy[:, i]) for i, b in enumerate(budgets)},
        "explore": explored
        | {"length": float(length_pg.mean()), "truncated": float(1 - done_pg.mean())}
        | phase_metrics(graded.rollouts, tag_ids(tokenizer))
        | {f"reason/{r}": graded.reasons.count(r) / len(graded.reasons) for r in sorted(set(graded.reasons))},
    }
    return line, graded


def distinct(graded: Graded, samples: int) -> float:
    """e3 Fig. 6 (left) at one checkpoint: `cumulative_unique`, mean over problems solved at most half the time.

    NaN for free text, whose attempts cannot be taken apart exactly, and where all problems are solved more often.
    """
    if task_of(graded.problems[0]).parse is None:
        return float("nan")
    tried = [(s > 0, [a.proposal for a in x.attempts] if x else []) for x, s in zip(graded.parts, graded.score_b)]
    rollouts = {i: tried[i : i + samples] for i in range(0, len(tried), samples)}
    (sizes,) = cumulative_unique([rollouts], most_success=0.5)
    return float(sizes.mean()) if len(sizes) else float("nan")


def pass_at_ks(graded: Graded, samples: int, ks: Sequence[int]) -> dict[str, list[float]]:
    """Unbiased pass@k with 95 % intervals over problems, for every k."""
    correct_p = (graded.score_b.reshape(-1, samples) > 0).sum(1)
    return {str(k): with_interval(pass_at_k(np.full_like(correct_p, samples), correct_p, k)) for k in ks}


def sample_line(graded: Graded, i: int) -> dict:
    """Response i as a line of eval_samples.jsonl, attempts taken apart."""
    problem, text = graded.problems[i], graded.texts[i]
    attempts, rest, answer = graded.parts[i] or Parts([], text, "")
    verdict = {True: "yes", False: "no", None: None}
    return {
        "prompt": problem.question,
        "target": problem.answer,
        "reward": float(graded.score_b[i]),
        "reason": graded.reasons[i],
        "length": int(graded.response_len_b[i]),
        "done": bool(graded.rollouts.done[i]),
        "answer": answer,
        "attempts": [{"text": a.text, "verdict": verdict[a.verdict], "truth": a.truth} for a in attempts],
        "tail": rest,
        "response": text,
    }
