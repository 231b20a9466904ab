"""Score one set's responses: accuracy at every budget in two ways, pass@k, maj@k, and a record per problem.

A response counts at budget B in two columns (docs/algorithms.md#extrapolation):
  finished   correct, ended by itself, and at most B tokens with its ending: what a generation with limit B scores
             (e3's code has `token_len < B` without the ending token);
  cut        cut to its first B tokens and graded as it then stands (e3 App. B): the last answer before the cut counts,
             inside the thinking too.

    counts = count(problems, responses, decode=tokenizer.decode, grade=pool.submit, budgets=(4096, 8192), on_graded=…)
    line = summary(counts, budgets=(4096, 8192), pass_ks=(1, 2, 4))
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from e3jax.eval.forcing import Trace
from e3jax.metrics.bootstrap import RESAMPLES
from e3jax.metrics.exploration import verifications_code, verifications_paper
from e3jax.metrics.extrapolation import accuracy_at_budgets
from e3jax.metrics.majority import majority_at_k
from e3jax.metrics.pass_at_k import bootstrap_interval, bootstrap_pass_at_k, pass_at_k, two_level_interval
from e3jax.rollout.responses import Response
from e3jax.rollout.rollouts import Grader
from e3jax.rollout.turns import model_text, parts
from e3jax.tasks.problem import Problem
from e3jax.tasks.table import task_of

TOGETHER = 256  # responses that graders get at once, about


class ProblemCounts(NamedTuple):
    """What the grades of one problem's n responses say."""

    problem: Problem
    length_g: np.ndarray  # tokens
    done_g: np.ndarray
    right_g: np.ndarray  # of the whole response, its answer finished
    score_g: np.ndarray  # what the grader gave it
    right_cut_gb: np.ndarray  # of the first B tokens, for every budget
    reasons: list[str]
    answers: list[str | None]  # votes; None for a response without an answer, or that did not end
    verifications: tuple[float, float]  # per response, as the paper counts them and as its code does
    turns: bool = False  # responses are episodes of several turns


def answer_of(problem: Problem, text: str) -> str | None:
    """Return the answer that a response votes for, in the graders' normal form; None where it has none."""
    return task_of(problem).vote(problem, text)


def anywhere(problem: Problem) -> Problem:
    """Return the problem for a grader that takes answers inside the thinking too, as e3's App. B does."""
    return dataclasses.replace(problem, meta=problem.meta | {"where": "anywhere"})


def count(
    problems: Sequence[Problem],
    responses: Sequence[Sequence[Response]],
    *,
    decode: Callable,
    grade: Grader,
    budgets: Sequence[int],
    on_graded: Callable[[int], None],
    turns: bool = False,
) -> list[ProblemCounts]:
    """Grade responses [P][n], whole and cut to every budget; `on_graded(responses)` hears of progress.

    `turns`: responses are episodes, which may be cut before the longest budget.
    """
    out, n = [], len(responses[0])
    step = max(TOGETHER // n, 1)
    for first in range(0, len(problems), step):
        block = problems[first : first + step]
        flat = [(p, r) for p, rs in zip(block, responses[first : first + step]) for r in rs]
        texts = [model_text(decode, r.tokens, r.forced) for _, r in flat]
        whole = grade([p for p, _ in flat], texts, [r.done for _, r in flat])
        shorter = [
            (i, b)
            for i, (_, r) in enumerate(flat)
            for b, most in enumerate(budgets)
            if len(r.tokens) > most or not r.done
        ]
        cut = grade(
            [anywhere(flat[i][0]) for i, _ in shorter],
            [model_text(decode, flat[i][1].tokens[: budgets[b]], flat[i][1].forced) for i, b in shorter],
            [True] * len(shorter),
        )
        whole = whole.result()
        right_cut = np.repeat(np.array([g.score > 0 for g in whole])[:, None], len(budgets), axis=1)
        for (i, b), verdict in zip(shorter, cut.result()):
            right_cut[i, b] = verdict.score > 0
        for k, problem in enumerate(block):
            rows = slice(k * n, (k + 1) * n)
            done = np.array([r.done for _, r in flat[rows]])
            out.append(
                ProblemCounts(
                    problem=problem,
                    length_g=np.array([len(r.tokens) for _, r in flat[rows]]),
                    done_g=done,
                    right_g=np.array([g.score > 0 for g in whole[rows]]) & done,
                    score_g=np.array([g.score for g in whole[rows]]),
                    right_cut_gb=right_cut[rows],
                    reasons=[g.reason for g in whole[rows]],
                    answers=[answer_of(problem, t) if d else None for t, d in zip(texts[rows], done)],
                    verifications=tuple(
                        float(np.mean([f(t) for t in texts[rows]])) for f in (verifications_paper, verifications_code)
                    ),
                    turns=turns,
                )
            )
        on_graded(len(flat))
    return out


def finished_gb(c: ProblemCounts, budgets: Sequence[int]) -> np.ndarray:
    """Return which responses [G, B] count in the column "finished" at which budget."""
    right_g1, length_g1, done_g1 = (x[:, None] for x in (c.right_g.astype(float), c.length_g, c.done_g))
    how = dict(turns=c.turns)
    return (
        accuracy_at_budgets(right_g1, length_g1, done_g1, budgets, **how) > 0
    )  # each response as a problem with one sample


def pass_interval(num_samples: int, correct_p: np.ndarray, k: int, estimator: Callable = pass_at_k) -> list[float]:
    """Return [mean pass@k, low, high]: 95 %, over problems and samples; the resampling seed is fixed."""
    how = {"level": 0.95, "resamples": RESAMPLES, "rng": np.random.default_rng(0)}
    low, high = two_level_interval(num_samples, correct_p, k, estimator=estimator, **how)
    return [float(estimator(num_samples, correct_p, k).mean()), low, high]


def mean_interval(values_p: np.ndarray) -> list[float]:
    """Return [mean, low, high]: 95 %, over problems; the resampling seed is fixed."""
    low, high = bootstrap_interval(values_p, level=0.95, resamples=RESAMPLES, rng=np.random.default_rng(0))
    return [float(values_p.mean()), low, high]


def majorities(c: ProblemCounts, ks: Sequence[int]) -> np.ndarray:
    """Return maj@k of one problem: right answers are one class however written, wrong ones are a class a spelling."""
    wrong = Counter(a for a, right in zip(c.answers, c.right_g) if a is not None and not right)
    right = int(c.right_g.sum())
    without = len(c.answers) - right - wrong.total()
    return majority_at_k(right=right, wrong=list(wrong.values()), without=without, ks=ks)


def summary(counts: Sequence[ProblemCounts], *, budgets: Sequence[int], pass_ks: Sequence[int]) -> dict[str, Any]:
    """Return what eval.jsonl records of one model on one set: tokens, fractions, [mean, low, high] of 95 % intervals.

    Intervals are over problems and samples; those of maj@k are over problems only.
    """
    n, last = len(counts[0].right_g), len(budgets) - 1
    finished_pb = np.array([finished_gb(c, budgets).sum(0) for c in counts])
    cut_pb = np.array([c.right_cut_gb.sum(0) for c in counts])
    majority_pk = np.array([majorities(c, pass_ks) for c in counts])
    reasons = Counter(r for c in counts for r in c.reasons)
    length, done = (np.concatenate([getattr(c, name) for c in counts]) for name in ("length_g", "done_g"))
    paper, code = np.mean([c.verifications for c in counts], axis=0)

    def solved(k: int, estimator: Callable) -> list[float]:
        return pass_interval(n, finished_pb[:, last], k, estimator)

    return {
        "problems": len(counts),
        "samples": n,
        "budgets": list(budgets),
        "accuracy": {str(b): pass_interval(n, finished_pb[:, i], 1) for i, b in enumerate(budgets)},
        "accuracy_cut": {str(b): pass_interval(n, cut_pb[:, i], 1) for i, b in enumerate(budgets)},
        "pass_at_k": {str(k): solved(k, pass_at_k) for k in pass_ks},
        "pass_at_k_bootstrap": {str(k): solved(k, bootstrap_pass_at_k) for k in pass_ks},
        "pass_at_k_budget": budgets[last],
        "maj_at_k": {str(k): mean_interval(majority_pk[:, i]) for i, k in enumerate(pass_ks)},
        "explore": {
            "length": float(length.mean()),
            "truncated": float(1 - done.mean()),
            "verifications": float(paper),
            "verifications_code": float(code),
        }
        | {f"reason/{r}": reasons[r] / reasons.total() for r in sorted(reasons)},
    }


def turn_means(responses: Sequence[Response]) -> dict[str, float]:
    """Return means over episodes, as metrics/training.py turn_metrics: turns, tokens sampled, tokens put there.

    >>> turn_means([Response((5, 6, 7, 8, 1), True, ((1, 3),)), Response((5, 6, 1), True)])
    {'turns/mean': 1.5, 'turns/sampled': 3.0, 'turns/forced': 1.0}
    """
    turns = [sum(not put for *_, put in parts(len(r.tokens), r.forced)) for r in responses]
    forced = [sum(last - first for first, last in r.forced) for r in responses]
    sampled = [len(r.tokens) - n for r, n in zip(responses, forced)]
    values = {"turns/mean": turns, "turns/sampled": sampled, "turns/forced": forced}
    return {name: float(np.mean(value)) for name, value in values.items()}


def record(c: ProblemCounts, budgets: Sequence[int]) -> dict[str, Any]:
    """Return one problem's line of problems.jsonl: how many samples count at every budget, and what they answer."""
    return {
        "problem": c.problem.id,
        "question": c.problem.question,
        "difficulty": c.problem.difficulty,
        "answer": c.problem.answer,
        "samples": len(c.right_g),
        "correct": dict(zip(map(str, budgets), finished_gb(c, budgets).sum(0).tolist())),
        "correct_cut": dict(zip(map(str, budgets), c.right_cut_gb.sum(0).tolist())),
        "answers": dict(Counter("" if a is None else a for a in c.answers).most_common()),
        "right_answers": sorted({a for a, right in zip(c.answers, c.right_g) if right and a is not None}),
        "reasons": dict(Counter(c.reasons).most_common()),
        "reason_of": c.reasons,
        "right_of": c.right_g.astype(int).tolist(),
        "length": float(c.length_g.mean()),
        "truncated": float(1 - c.done_g.mean()),
    }


def score_traces(
    problems: Sequence[Problem], traces: dict[tuple[int, int], Trace], *, decode: Callable, grade: Grader
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return accuracy and mean lengths of forced responses (problem, sample) -> trace, and a record of each.

    `length` counts the tokens behind the prompt in the end: `forced` of them were put there, `sampled` were drawn;
    `dropped` ones were drawn and taken away.
    """
    keys = sorted(traces)
    texts, done = [decode(traces[k].tokens) for k in keys], [traces[k].done for k in keys]
    verdicts = grade([problems[p] for p, _ in keys], texts, done).result()
    lines = [
        {
            "problem": problems[p].id,
            "sample": g,
            "length": len(t.tokens),
            "forced": t.forced,
            "sampled": len(t.tokens) - t.forced,
            "dropped": t.dropped,
            "done": t.done,
            "reward": v.score,
            "reason": v.reason,
        }
        for (p, g), t, v in zip(keys, map(traces.get, keys), verdicts)
    ]
    n = len({g for _, g in keys})
    right_p = np.array([v.score > 0 for v in verdicts]).reshape(-1, n).sum(1)
    means = {name: float(np.mean([x[name] for x in lines])) for name in ("length", "forced", "sampled", "dropped")}
    touched = float(np.mean([t.forced > 0 for t in traces.values()]))
    return {"accuracy": pass_interval(n, right_p, 1), **means, "touched": touched}, lines


def by_problem(known: dict, part: str, problems: int, samples: Iterable[int]) -> list[list[Response]]:
    """Return one part's responses as [P][n]."""
    numbers = list(samples)
    return [[known[part, p, g] for g in numbers] for p in range(problems)]
