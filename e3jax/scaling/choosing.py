"""Which of K plans to execute: a judge's choice, and clusters' centres (ALGORITHMS B.6).

    picks = judge(study, pool, 8, how="words", budget=512)       # {problem: (index, calls)}
    vectors = embed(study, pool, encoder="policy")               # {problem: [K, D]}
    clusters(vectors[0], 3, seed=42)                             # [(index of the central plan, size), …]

Judges: "words", the model itself reads all plans and writes the best one out (B.6). Ours, for models without language:
"likelihood", the mean log-prob of a plan's tokens after the question; "prompted", after the judge's prompt.
An encoder is "policy", the mean of the model's own last hidden states over a plan's tokens (ours: the paper's GTE and
mpnet are other models), or "MODULE:FUNCTION", a function from a list of texts to vectors [N, D].
"""

import importlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.errors import UserError
from e3jax.rewards.plan import common
from e3jax.rollout.likelihood import batches, hidden_states, log_likelihoods, row_groups
from e3jax.runtime import fetch, put
from e3jax.sampler.slots import padded
from e3jax.scaling.calls import Call, Request, ask
from e3jax.scaling.planning import Plan, Study, bare
from e3jax.tasks.plan_prompts import fill, numbered

JUDGES = ("words", "likelihood", "prompted")
MOST_COMPARED = 10_000  # characters of two texts whose common subsequence is looked for: quadratic
Pool = dict[int, list[Plan]]


def judge(study: Study, pool: Pool, k: int, *, how: str, budget: int) -> dict[int, tuple[int, tuple[Call, ...]]]:
    """{problem: (the best of its first k plans, what judging cost)}; one plan needs no judge."""
    if k == 1:
        return {p: (0, ()) for p in pool}
    prompts = {}
    if how != "likelihood":
        for p, plans in pool.items():
            listed = numbered([plan.text for plan in plans[:k]])
            prompts[p] = study.said(fill("judge", problem=bare(study.bench.problems[p]), plans=listed))
    if how == "words":
        asked = [Request(p, (0,), prompt, 0, budget) for p, prompt in prompts.items()]
        drawn = ask(study.bench, f"judge-{k}", asked, stop=study.tokenizer.stop, temperature=0.0, top_p=1.0)
        said = {p: (study.tokenizer.decode(response.tokens), call) for (p, _), (response, call) in drawn.items()}
        return {p: (nearest(text, [x.text for x in pool[p][:k]]), (call,)) for p, (text, call) in said.items()}
    tag = study.tags[:1] if how == "prompted" else ()
    pairs = [
        ((*prompts[p], *tag) if prompts else study.begun(p), (*plan.tokens, study.tags[1]))
        for p, plans in pool.items()
        for plan in plans[:k]
    ]
    model, params, tokenizer = study.bench.pretrained
    scored = log_likelihoods(model, params, pairs, tokens=study.tokens, most=model.config.max_length, pad=tokenizer.pad)
    mean = np.array([s.logp / len(plan) for s, (_, plan) in zip(scored, pairs)]).reshape(-1, k)
    cost = np.array([len(a) + len(b) for a, b in pairs]).reshape(-1, k)
    return {
        p: (int(mean[i].argmax()), tuple(Call(f"judge-{k}", g, 0, 0, int(cost[i, g])) for g in range(k)))
        for i, p in enumerate(pool)
    }


def nearest(text: str, plans: Sequence[str]) -> int:
    """The plan with the longest common subsequence of characters with `text`, of both their lengths; ties: the first.

    Of longer texts the first MOST_COMPARED characters count.

    >>> nearest("Best: 1. Add", ["1. Halve", "1. Add"])
    1
    """
    text, *plans = (x[:MOST_COMPARED] for x in (text, *plans))
    return int(np.argmax([common(text, plan) / max(len(text) + len(plan), 1) for plan in plans]))


@jax.jit
def mean_state(hidden_btd, first_b, behind_b):
    """[B, D] float32: mean over positions first … behind - 1."""
    at = jnp.arange(hidden_btd.shape[1])[None]
    inside_bt = ((at >= first_b[:, None]) & (at < behind_b[:, None])).astype(jnp.float32)
    total_bd = jnp.einsum("btd,bt->bd", hidden_btd, inside_bt, preferred_element_type=jnp.float32)
    return total_bd / jnp.maximum(inside_bt.sum(1, keepdims=True), 1)


def mean_hidden(model, params, pairs, *, tokens: int, most: int, pad: int) -> np.ndarray:
    """[N, D]: of (context, part) token pairs the mean last hidden state over the part; an empty part: 0."""
    out = np.zeros((len(pairs), model.config.width), np.float32)
    order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
    lengths = [sum(map(len, pairs[i])) for i in order]
    for rows, width, which in batches(lengths, tokens=tokens, most=most, groups=row_groups()):
        now = [pairs[order[i]] for i in which]
        token_bt = padded([(*a, *b) for a, b in now] + [(pad,)] * (rows - len(now)), width, pad)
        first, behind = (np.zeros(rows, np.int32) for _ in range(2))
        first[: len(now)], behind[: len(now)] = [len(a) for a, _ in now], [len(a) + len(b) for a, b in now]
        hidden = hidden_states(model, params, put(token_bt, "BT"))
        found = fetch(mean_state(hidden, put(first, "B"), put(behind, "B")))
        out[[order[i] for i in which]] = found[: len(now)]
    return out


def embed(study: Study, pool: Pool, *, encoder: str) -> dict[int, np.ndarray]:
    """{problem: vectors [K, D] of its plans}."""
    counts = np.cumsum([len(plans) for plans in pool.values()])[:-1]
    if encoder == "policy":
        model, params, tokenizer = study.bench.pretrained
        pairs = [(study.begun(p), plan.tokens) for p, plans in pool.items() for plan in plans]
        vectors = mean_hidden(
            model, params, pairs, tokens=study.tokens, most=model.config.max_length, pad=tokenizer.pad
        )
    else:
        vectors = np.asarray(load_encoder(encoder)([plan.text for plans in pool.values() for plan in plans]))
    return dict(zip(pool, np.split(vectors, counts)))


def embedding_calls(study: Study, p: int, plans: Sequence[Plan], *, encoder: str) -> tuple[Call, ...]:
    """What our own model reads to embed plans; another encoder's tokens are not its tokens."""
    if encoder != "policy":
        return ()
    return tuple(Call("embed", g, 0, 0, len(study.begun(p)) + len(plan.tokens)) for g, plan in enumerate(plans))


def load_encoder(name: str):
    """The function of "MODULE:FUNCTION"; UserError when there is none."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"config.cluster.encoder={name!r} is neither 'policy' nor a MODULE:FUNCTION that can be imported ({error})"
        ) from error


def clusters(vectors: np.ndarray, most: int, *, seed: int) -> list[tuple[int, int]]:
    """(index of the plan nearest to the centre, size) of up to `most` clusters: L2 norm, k-means, n_init 10 (B.6).

    As many clusters as there are different vectors, if these are fewer. By size, larger ones first.
    """
    try:
        from sklearn.cluster import KMeans  # needed for nothing else
    except ImportError as error:
        raise UserError(f"clusters of plans need scikit-learn ({error}): pip install 'e3jax[scaling]'") from error
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = (vectors / np.where(norms > 0, norms, 1)).astype(np.float64)
    different = len(np.unique(unit.round(6), axis=0))
    means = KMeans(min(most, different), n_init=10, random_state=seed).fit(unit)
    found = []
    for c, centre in enumerate(means.cluster_centers_):
        own = np.flatnonzero(means.labels_ == c)
        found.append((int(own[np.linalg.norm(unit[own] - centre, axis=1).argmin()]), len(own)))
    return sorted(found, key=lambda x: (-x[1], x[0]))
