"""Evaluation of one checkpoint on one problem set: accuracy at every budget from one long generation, and pass@k.

line, graded = evaluate(Pretrained(model, params, tokenizer), problems, Sampling(temperature=1.0), key=key, samples=2,
                        budgets=(96, 192, 384), read=pool.submit)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from e3jax.checkpoint.pretrained import Pretrained
from e3jax.errors import need, need_at_least_one, need_counts
from e3jax.eval.scoring import mean_interval
from e3jax.metrics.exploration import cumulative_unique
from e3jax.metrics.extrapolation import accuracy_at_budgets
from e3jax.metrics.pass_at_k import pass_at_k
from e3jax.metrics.reading import Parts
from e3jax.metrics.training import phase_metrics, turn_metrics
from e3jax.phases import tag_ids
from e3jax.rollout.rollouts import Graded, Grader, feature_means, rollout
from e3jax.rollout.turns import forced_spans, shown
from e3jax.sampler.plan import Sampling
from e3jax.tasks.problem import Problem
from e3jax.tasks.sets import chosen_sets
from e3jax.tasks.table import task_of


@dataclass(frozen=True)
class Evaluation:
    """What is measured after a stage: config.eval."""

    sets: Mapping[str, Any]  # name -> source of its problems
    only: str  # names of sets with commas between them; "": all
    problems: int  # per set; one that has fewer gives all
    samples: int  # responses per problem
    budgets: tuple[int, ...]
    temperature: float
    pass_ks: tuple[int, ...]
    pass_problems: int  # the first so many problems of a set …
    pass_budget: int  # … at this budget
    shown: int  # responses kept in eval_samples.jsonl

    def __post_init__(self):
        need_at_least_one(self, "problems", "samples", "pass_problems", "pass_budget")
        need_counts("budgets", self.budgets)
        need_counts("pass_ks", self.pass_ks)
        need(self.temperature >= 0, "temperature", self.temperature, "0 (the likeliest token) or more")
        most = f"at most eval.problems={self.problems}"
        need(self.pass_problems <= self.problems, "pass_problems", self.pass_problems, most)
        chosen_sets(self.sets, self.only, field="only")


def evaluate(
    pretrained: Pretrained,
    problems: Sequence[Problem],
    sampling: Sampling,
    *,
    key: jax.Array,
    samples: int,
    budgets: Sequence[int],
    read: Grader,
    on_finished: Callable[[int], None] | None = None,
) -> tuple[dict, Graded]:
    """-> what eval.jsonl records, and the rollouts. `accuracy` is pass@1 at each budget, mean over `samples`.

    `read` as for `rollout`, with apart=True where `distinct` and `sample_line` come after it.
    """
    graded = rollout(
        pretrained,
        problems,
        sampling,
        key=key,
        samples=samples,
        budget=max(budgets),
        read=read,
        on_finished=on_finished,
    )

    def per_problem(x):
        return x.reshape(len(problems), samples)

    score_pg, length_pg = per_problem(graded.score_b), per_problem(graded.response_len_b)
    done_pg = per_problem(graded.rollouts.done)
    accuracy = accuracy_at_budgets(score_pg, length_pg, done_pg, budgets, turns=sampling.environment is not None)
    explored = {name.removeprefix("explore/"): value for name, value in feature_means(graded.features).items()}
    line = {
        "problems": len(problems),
        "samples": samples,
        "temperature": sampling.temperature,
        "budgets": list(budgets),
        "accuracy": {str(b): mean_interval(accuracy[:, i]) for i, b in enumerate(budgets)},
        "explore": explored
        | {"length": float(length_pg.mean()), "truncated": float(1 - done_pg.mean())}
        | phase_metrics(graded.rollouts, tag_ids(pretrained.tokenizer))
        | (turn_metrics(graded.rollouts) if sampling.environment is not None else {})
        | {f"reason/{r}": graded.reasons.count(r) / len(graded.reasons) for r in sorted(set(graded.reasons))},
    }
    return line, graded


def distinct(graded: Graded, samples: int) -> float:
    """e3 Fig. 6 (left) at one checkpoint: `cumulative_unique`, mean over problems solved at most half the time.

    NaN for free text, whose attempts cannot be taken apart exactly, and where all problems are solved more often.
    """
    task = task_of(graded.problems[0])
    if task.parse is None or (task.words is None and not any(x.attempts for x in graded.parts if x)):
        return float("nan")
    tried = [(s > 0, [a.proposal for a in x.attempts] if x else []) for x, s in zip(graded.parts, graded.score_b)]
    rollouts = {i: tried[i : i + samples] for i in range(0, len(tried), samples)}
    (sizes,) = cumulative_unique([rollouts], most_success=0.5)
    return float(sizes.mean()) if len(sizes) else float("nan")


def pass_at_ks(graded: Graded, samples: int, ks: Sequence[int]) -> dict[str, list[float]]:
    """Unbiased pass@k with 95 % intervals over problems, for every k."""
    correct_p = (graded.score_b.reshape(-1, samples) > 0).sum(1)
    return {str(k): mean_interval(pass_at_k(np.full_like(correct_p, samples), correct_p, k)) for k in ks}


def sample_line(graded: Graded, i: int, decode: Callable) -> dict:
    """Response i as a line of eval_samples.jsonl, attempts taken apart.

    "forced": the characters of the response that an environment put there.
    """
    problem, text, r = graded.problems[i], graded.texts[i], graded.rollouts
    forced = forced_spans(r, i)
    whole, marks = shown(decode, r.tokens[i, r.prompt_len[i] : r.length[i]].tolist(), forced) if forced else (text, [])
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
        "response": whole,
    } | ({"forced": marks} if forced else {})
