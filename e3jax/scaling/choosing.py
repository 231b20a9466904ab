"""Which of K plans to execute: a judge's choice, or the centres of clusters (docs/algorithms.md#tts).

    picks = best_plans(study, pool, 8, Judge(how="words", budget=512))      # {problem: (index, calls)}
    vectors = embed(study, pool, encoder="policy")                          # {problem: [K, D]}
    clusters(vectors[0], 3, seed=42)                                        # [(index of the central plan, size), …]

Judges: "words" is E2C's, the model itself reads all plans and writes the best one out. Ours, for models without
language: "likelihood", the mean log-prob of a plan's tokens after the question; "prompted", after the judge's prompt.
An encoder is "policy", the mean of the model's last hidden states over a plan's tokens (ours: the paper's GTE and mpnet
are other models), or "MODULE:FUNCTION", a function from a list of texts to vectors [N, D].
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.errors import UserError, need
from e3jax.rewards.plan import common
from e3jax.rollout.likelihood import Batching, batches, hidden_states, log_likelihoods, row_groups
from e3jax.rollout.responses import Request
from e3jax.runtime import fetch, put
from e3jax.sampler.slots import padded
from e3jax.scaling.calls import Call, ask
from e3jax.scaling.planning import Plan, Study, bare
from e3jax.tasks.plan_prompts import fill, numbered

JUDGES = ("words", "likelihood", "prompted")
MOST_COMPARED = 10_000  # characters of two texts whose common subsequence is looked for: quadratic
Pool = dict[int, list[Plan]]


@dataclass(frozen=True)
class Judge:
    """A config's `judge` section: who chooses one of K plans."""

    how: str  # one of JUDGES
    budget: int  # tokens of a judgement in words

    def __post_init__(self):
        need(self.how in JUDGES, "how", self.how, f"use one of {', '.join(JUDGES)}")


@dataclass(frozen=True)
class Clustering:
    """A config's `cluster` section: how plans are grouped."""

    most: int  # clusters
    seed: int
    encoder: str  # "policy" or "MODULE:FUNCTION"

    def __post_init__(self):
        need(self.most >= 1, "most", self.most, "use 1 or more")


def best_plans(study: Study, pool: Pool, k: int, judge: Judge) -> dict[int, tuple[int, tuple[Call, ...]]]:
    """Return {problem: (index of the best of its first k plans, the calls of judging)}; one plan needs no judge."""
    if k == 1:
        return {p: (0, ()) for p in pool}
    prompts = {}
    if judge.how != "likelihood":
        for p, plans in pool.items():
            listed = numbered([plan.text for plan in plans[:k]])
            prompts[p] = study.turn(fill("judge", problem=bare(study.bench.problems[p]), plans=listed))
    if judge.how == "words":
        requests = [Request(p, (0,), prompt, judge.budget) for p, prompt in prompts.items()]
        drawn = ask(study.bench, f"judge-{k}", requests, stop=study.tokenizer.stop, temperature=0.0, top_p=1.0)
        said = {p: (study.tokenizer.decode(response.tokens), call) for (p, _), (response, call) in drawn.items()}
        return {p: (nearest(text, [x.text for x in pool[p][:k]]), (call,)) for p, (text, call) in said.items()}
    tag = study.tags[:1] if judge.how == "prompted" else ()
    pairs = [
        ((*prompts[p], *tag) if prompts else study.begun(p), (*plan.tokens, study.tags[1]))
        for p, plans in pool.items()
        for plan in plans[:k]
    ]
    model, params, _ = study.bench.pretrained
    scored = log_likelihoods(model, params, pairs, batching_of(study))
    mean = np.array([s.logp / len(plan) for s, (_, plan) in zip(scored, pairs)]).reshape(-1, k)
    cost = np.array([len(a) + len(b) for a, b in pairs]).reshape(-1, k)
    return {
        p: (int(mean[i].argmax()), tuple(Call(f"judge-{k}", g, 0, 0, int(cost[i, g])) for g in range(k)))
        for i, p in enumerate(pool)
    }


def batching_of(study: Study) -> Batching:
    """Return how plans are cut into batches that the model reads."""
    model, _, tokenizer = study.bench.pretrained
    return Batching(study.planning.tokens, model.config.max_length, tokenizer.pad)


def nearest(text: str, plans: Sequence[str]) -> int:
    """Return the plan that shares the longest subsequence of characters with `text`, relative to both lengths.

    The first one of equals. Of longer texts the first MOST_COMPARED characters count.

    >>> nearest("Best: 1. Add", ["1. Halve", "1. Add"])
    1
    """
    text, *plans = (x[:MOST_COMPARED] for x in (text, *plans))
    return int(np.argmax([common(text, plan) / max(len(text) + len(plan), 1) for plan in plans]))


@jax.jit
def mean_state(hidden_btd, first_b, behind_b):
    """Return [B, D] float32: the mean over positions first … behind - 1."""
    at = jnp.arange(hidden_btd.shape[1])[None]
    inside_bt = ((at >= first_b[:, None]) & (at < behind_b[:, None])).astype(jnp.float32)
    total_bd = jnp.einsum("btd,bt->bd", hidden_btd, inside_bt, preferred_element_type=jnp.float32)
    return total_bd / jnp.maximum(inside_bt.sum(1, keepdims=True), 1)


def mean_hidden(model, params, pairs, batching: Batching) -> np.ndarray:
    """Return [N, D]: of (context, part) token pairs the mean last hidden state over the part, 0 of an empty part."""
    tokens, most, pad = batching
    out = np.zeros((len(pairs), model.config.width), np.float32)
    order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
    lengths = [sum(map(len, pairs[i])) for i in order]
    for rows, width, which in batches(lengths, tokens=tokens, most=most, groups=row_groups()):
        now = [pairs[order[i]] for i in which]
        token_bt = padded([(*a, *b) for a, b in now] + [(pad,)] * (rows - len(now)), width, pad)
        first, behind = (np.zeros(rows, np.int32) for _ in range(2))
        first[: len(now)], behind[: len(now)] = [len(a) for a, _ in now], [len(a) + len(b) for a, b in now]
        hidden = hidden_states(model, params, put(token_bt, "BT"))
        means = fetch(mean_state(hidden, put(first, "B"), put(behind, "B")))
        out[[order[i] for i in which]] = means[: len(now)]
    return out


def embed(study: Study, pool: Pool, *, encoder: str) -> dict[int, np.ndarray]:
    """Return {problem: vectors [K, D] of its plans}."""
    counts = np.cumsum([len(plans) for plans in pool.values()])[:-1]
    if encoder == "policy":
        model, params, _ = study.bench.pretrained
        pairs = [(study.begun(p), plan.tokens) for p, plans in pool.items() for plan in plans]
        vectors = mean_hidden(model, params, pairs, batching_of(study))
    else:
        vectors = np.asarray(load_encoder(encoder)([plan.text for plans in pool.values() for plan in plans]))
    return dict(zip(pool, np.split(vectors, counts)))


def embedding_calls(study: Study, p: int, plans: Sequence[Plan], *, encoder: str) -> tuple[Call, ...]:
    """Return the calls of embedding plans with the model itself; what another encoder reads is not counted."""
    if encoder != "policy":
        return ()
    return tuple(Call("embed", g, 0, 0, len(study.begun(p)) + len(plan.tokens)) for g, plan in enumerate(plans))


def load_encoder(name: str):
    """Return the function of "MODULE:FUNCTION"; raise UserError where there is none."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"config.cluster.encoder={name!r} is neither 'policy' nor a MODULE:FUNCTION that can be imported ({error})"
        ) from error


def clusters(vectors: np.ndarray, most: int, *, seed: int) -> list[tuple[int, int]]:
    """Return (index of the plan nearest to the centre, size) of up to `most` clusters, larger ones first.

    L2 norm, then k-means with n_init 10, as E2C's code. There are no more clusters than different vectors.
    """
    try:
        from sklearn.cluster import KMeans  # needed for nothing else
    except ImportError as error:
        raise UserError(f"clusters of plans need scikit-learn ({error}): pip install 'e3jax[scaling]'") from error
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = (vectors / np.where(norms > 0, norms, 1)).astype(np.float64)
    different = len(np.unique(unit.round(6), axis=0))
    means = KMeans(min(most, different), n_init=10, random_state=seed).fit(unit)
    central = []
    for c, centre in enumerate(means.cluster_centers_):
        members = np.flatnonzero(means.labels_ == c)
        central.append((int(members[np.linalg.norm(unit[members] - centre, axis=1).argmin()]), len(members)))
    return sorted(central, key=lambda x: (-x[1], x[0]))
