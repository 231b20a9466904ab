"""Problems -> prompts -> rollouts -> texts -> grades: the half of an RL step that an evaluation shares.

graded = rollout(model, params, tokenizer, problems, key=key, first_id=0, samples=8, budget=96, temperature=1.0,
                 sampler=dict(tensor=1, slots=128, block=16, prefill_rows=16, top_k=0, top_p=1.0))
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from e3jax.metrics.exploration import explore
from e3jax.models.qwen3 import Qwen3
from e3jax.rewards.pool import Later
from e3jax.runtime import gather
from e3jax.sampler.layout import sampling
from e3jax.sampler.slots import sample
from e3jax.tasks.problem import Problem
from e3jax.types import Rollouts

Grader = Callable[[Sequence[Problem], Sequence[str], Sequence[bool]], Later]


class Graded(NamedTuple):
    """Rollouts and what they are worth; rows are prompt-major, B = P · G."""

    problems: list[Problem]  # [B], each repeated G times
    rollouts: Rollouts
    texts: list[str]  # [B] responses
    score_b: np.ndarray  # [B] float64 in [0, 1]
    reasons: list[str]  # [B]
    response_len_b: np.ndarray  # [B], EOS included
    features: list[dict[str, float]]  # [B], metrics/exploration.py
    stats: dict[str, float]  # of the sampler: first_token_s, occupancy, prefilled


def rollout(
    model: Qwen3,
    params,
    tokenizer,
    problems: Sequence[Problem],
    *,
    key: jax.Array,
    first_id: int,
    samples: int,
    budget: int,
    temperature: float,
    sampler: dict,
    grade: Grader,
    on_finished: Callable[[int], None] | None = None,
) -> Graded:
    """Sample and grade `samples` responses per problem; problem p's noise is named by first_id + p.

    `grade` is a `rewards.pool.GraderPool`'s submit: responses are graded while others are still being sampled.
    """
    prompts = [tokenizer.encode(p.question) for p in problems]
    sampler, bits = dict(sampler), np.asarray(jax.random.key_data(key))  # a key belongs to the mesh it was made on
    repeated = [p for p in problems for _ in range(samples)]
    n, me, total, stats = jax.process_count(), jax.process_index(), len(problems) * samples, {}
    judged = {}  # of this process's own responses p, p + n, …: problem, text, done, grade; the others grade theirs

    def finished(rows: np.ndarray, r: Rollouts) -> None:
        own = [int(i) for i in rows if i % n == me]
        asked, done = [repeated[i] for i in own], [bool(r.done[i]) for i in own]
        texts = [tokenizer.decode(r.tokens[i, r.prompt_len[i] : r.length[i]].tolist()) for i in own]
        grades = grade(asked, texts, done)  # graded while the others are sampled
        judged.update({i: (*known, grades, k) for k, (i, *known) in enumerate(zip(own, asked, texts, done))})
        if on_finished:
            on_finished(len(rows))

    with sampling(params, tensor=sampler.pop("tensor"), dtype=model.dtype) as params:
        rollouts = sample(
            model, params, prompts, ids=range(first_id, first_id + len(problems)),
            key=jax.random.wrap_key_data(bits), samples=samples, budget=budget, stop=tokenizer.stop,
            pad=tokenizer.pad, temperature=temperature, on_finished=finished, stats=stats, **sampler,
        )  # fmt: skip
    mine = []
    for i in range(me, total, n):
        problem, text, done, grades, k = judged[i]
        verdict = grades.result()[k]
        mine.append((text, verdict, explore(problem, text, done=done, correct=verdict.score > 0)))
    all_of = gather(mine)
    texts, grades, features = zip(*(all_of[i % n][i // n] for i in range(total)))
    return Graded(
        problems=repeated,
        rollouts=rollouts,
        texts=list(texts),
        score_b=np.array([g.score for g in grades]),
        reasons=[g.reason for g in grades],
        response_len_b=rollouts.length - rollouts.prompt_len,
        features=list(features),
        stats=stats,
    )


def ratio(part: float, whole: float) -> float:
    """part / whole; NaN (null in the records) of nothing."""
    return part / whole if whole else float("nan")


def feature_means(features: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over responses, as `explore/…`; verdict accuracy and false "yes" are ratios of sums."""

    def total(name):
        return float(sum(f[name] for f in features))

    n = len(features)
    out = {
        "explore/attempts": total("attempts") / n,
        "explore/unique_attempts": total("unique") / n,
        "explore/equations_per_attempt": ratio(total("equations"), total("attempts")),
        "explore/verifications": total("verifications") / n,
        "explore/give_up": total("gave_up") / n,
        "explore/repetition": total("repetition") / n,
    }
    if "verdicts" in features[0]:
        out["explore/verdict_accuracy"] = ratio(total("right_verdicts"), total("verdicts"))
        out["explore/false_yes"] = ratio(total("false_yes"), total("yes"))
    if "verifications_code" in features[0]:
        out["explore/verifications_code"] = total("verifications_code") / n
    return out
