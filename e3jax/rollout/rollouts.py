"""Problems to prompts, rollouts, texts and grades: the half of an RL step that evaluations share.

graded = rollout(Pretrained(model, params, tokenizer), problems, Sampling(temperature=1.0), key=key, samples=8,
                 budget=96, read=pool.submit)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from e3jax.checkpoint.pretrained import Pretrained
from e3jax.metrics.reading import Parts
from e3jax.rewards.workers import Later
from e3jax.rollout.episodes import sample_episodes
from e3jax.rollout.turns import forced_spans, model_text
from e3jax.runtime import gather, out_of_memory
from e3jax.sampler.layout import sampling_layout
from e3jax.sampler.plan import Sampling
from e3jax.sampler.slots import Events, Requests, sample
from e3jax.tasks.problem import Problem
from e3jax.types import Rollouts

Grader = Callable[[Sequence[Problem], Sequence[str], Sequence[bool]], Later]  # of grades, or of readings


class Graded(NamedTuple):
    """Rollouts with their texts and grades; rows are prompt-major, B = P · G."""

    problems: list[Problem]  # [B], each repeated G times
    rollouts: Rollouts
    texts: list[str]  # [B] responses as graders read them: without what an environment put there
    score_b: np.ndarray  # [B] float64 in [0, 1]
    reasons: list[str]  # [B]
    response_len_b: np.ndarray  # [B], EOS included
    features: list[dict[str, float] | None]  # [B], metrics/exploration.py; None: not read in time
    share_b: np.ndarray  # [B] share of its plan that a right response follows; 0 where `read` does not tell
    parts: list[Parts | None]  # [B]; None where `read` does not tell, or the response was not read in time
    # [B] values of the parts of the user's own reward; None without one, or lost
    rewards: list[dict[str, float] | None]
    stats: dict[str, float]  # of the sampler: first_token_s, occupancy, prefilled, shared_pages


def rollout(
    pretrained: Pretrained,
    problems: Sequence[Problem],
    sampling: Sampling,
    *,
    key: jax.Array,
    samples: int,
    budget: int,
    read: Grader,
    on_finished: Callable[[int], None] | None = None,
) -> Graded:
    """Sample and grade `samples` responses to each problem; problem p's noise is that of (key, p).

    `read` is the `submit` of a GraderPool (rewards/workers.py) with metrics/reading.py's function. It gets responses
    while others are still being sampled, and reads them in other processes. With `sampling.environment` a response is
    an episode of turns.
    """
    model, params, tokenizer = pretrained
    requests = Requests([tokenizer.encode(p.question) for p in problems], range(len(problems)), samples, budget)
    bits = np.asarray(jax.random.key_data(key))  # a key belongs to the mesh it was made on
    repeated = [p for p in problems for _ in range(samples)]
    n, me, stats = jax.process_count(), jax.process_index(), {}
    read_here = {}  # response -> text, readings, which of these; process p has responses p, p + n, …

    def finished(rows: np.ndarray, r: Rollouts) -> None:
        rows_here = [int(i) for i in rows if i % n == me]
        texts = [text_of(tokenizer.decode, r, i, turns=sampling.environment is not None) for i in rows_here]
        done = [bool(r.done[i]) for i in rows_here]
        readings = read([repeated[i] for i in rows_here], texts, done)  # while the others are sampled
        read_here.update({i: (text, readings, k) for k, (i, text) in enumerate(zip(rows_here, texts))})
        if on_finished:
            on_finished(len(rows))

    layout = sampling_layout(params, tensor=sampling.tensor, dtype=model.dtype, lora=model.lora)
    with out_of_memory(sampling.less_memory), layout as params:
        how = dict(key=jax.random.wrap_key_data(bits), events=Events(on_finished=finished, stats=stats))
        if sampling.environment is None:
            rollouts = sample(model, params, requests, sampling, stop=tokenizer.stop, pad=tokenizer.pad, **how)
        else:
            rollouts = sample_episodes(Pretrained(model, params, tokenizer), problems, requests, sampling, **how)
    return graded_of(repeated, rollouts, read_here, stats)


def graded_of(problems: list[Problem], rollouts: Rollouts, read_here: dict, stats: dict[str, float]) -> Graded:
    """Return rollouts with what was read of them; process p of n read responses p, p + n, … and all get everything.

    `read_here`: response -> its text, the readings under way that it is among, and which of them.
    """
    n, me, total, mine = jax.process_count(), jax.process_index(), len(problems), []
    for i in range(me, total, n):
        text, readings, k = read_here[i]
        mine.append((text, readings.result()[k]))
    all_of = gather(mine)
    texts, readings = zip(*(all_of[i % n][i // n] for i in range(total)))
    return Graded(
        problems=problems,
        rollouts=rollouts,
        texts=list(texts),
        score_b=np.array([x.grade.score for x in readings]),
        reasons=[x.grade.reason for x in readings],
        response_len_b=rollouts.length - rollouts.prompt_len,
        features=[x.features for x in readings],
        share_b=np.array([x.share for x in readings]),
        parts=[x.parts for x in readings],
        rewards=[x.rewards for x in readings],
        stats=stats,
    )


def text_of(decode: Callable, r: Rollouts, i: int, *, turns: bool) -> str:
    """Return what a grader reads of response i; `turns`: an environment may have put tokens into it."""
    tokens = r.tokens[i, r.prompt_len[i] : r.length[i]].tolist()
    return model_text(decode, tokens, forced_spans(r, i) if turns else ())


def quotient(part: float, whole: float) -> float:
    """Return part / whole; NaN (null in the records) where the whole is 0."""
    return part / whole if whole else float("nan")


def feature_means(features: Sequence[dict[str, float] | None]) -> dict[str, float]:
    """Return means over responses, as `explore/…`; verdict accuracy and false "yes" are quotients of sums.

    Responses that were not read in time (None) are left out: `reason/timeout` says how many. NaN where none was read.
    """
    features = [f for f in features if f is not None]
    n, names = len(features), features[0] if features else ()

    def total(name):
        return float(sum(f[name] for f in features))

    out = {
        "explore/attempts": quotient(total("attempts"), n),
        "explore/unique_attempts": quotient(total("unique"), n),
        "explore/equations_per_attempt": quotient(total("equations"), total("attempts")),
        "explore/verifications": quotient(total("verifications"), n),
        "explore/give_up": quotient(total("gave_up"), n),
        "explore/repetition": quotient(total("repetition"), n),
    }
    if "verdicts" in names:
        out["explore/verdict_accuracy"] = quotient(total("right_verdicts"), total("verdicts"))
        out["explore/false_yes"] = quotient(total("false_yes"), total("yes"))
    if "verifications_code" in names:
        out["explore/verifications_code"] = total("verifications_code") / n
        out["explore/false_equations"] = quotient(total("false_equations"), total("read_equations"))
    return out
