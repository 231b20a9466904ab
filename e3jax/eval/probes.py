"""The command: how a checkpoint explores. e3's Def. 4.1, pass@k by chained attempts, App. G.1, KL to the base model.

    python -m e3jax.eval.probes --workdir=runs/probes --config=configs/probes.py:base=CHECKPOINT,e3=CHECKPOINT

Responses and completions are kept as they finish (eval/run.py): killed anywhere, the same command goes on and ends with
the same numbers. Sets may change as eval/run.py says. probes.jsonl has a line per model and set (intervals: [mean, low,
high], 95 %, over problems), attempts.jsonl a line per problem; probes-SET.*, chains-SET.*, conditional-SET.svg and
tokens-SET.svg are tables and figures of them. Models are checkpoints in the order of training: distinct attempts
accumulate from one to the next (e3 Fig. 6). A model may be added later, at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from e3jax.checkpoint.pretrained import Pretrained, load_pretrained
from e3jax.errors import all_errors, need, need_at_least_one, section
from e3jax.eval import tables
from e3jax.eval.attempts import chain, conditional, pairs_of, token_spans
from e3jax.eval.attempts import probes as probes_of
from e3jax.eval.forcing import Trace
from e3jax.eval.scoring import TOGETHER
from e3jax.flags import run_command
from e3jax.log import RunLog
from e3jax.losses.grpo import kl_penalty
from e3jax.metrics.asymmetry import chained_asymmetry, verification_gap
from e3jax.metrics.bootstrap import interval, ratio
from e3jax.metrics.exploration import Span, attempt_keys, cumulative_unique, detect, explore
from e3jax.metrics.pass_at_k import pass_at_k
from e3jax.report.files import chains_file, conditional_file, tokens_file
from e3jax.rewards.workers import GraderPool
from e3jax.rollout.bench import Bench, Benches, benches_of, dtype_name, evaluation_command, need_rising, sample_all
from e3jax.rollout.distributions import Along, distributions
from e3jax.rollout.likelihood import Batching, log_likelihoods
from e3jax.rollout.responses import Request, Response
from e3jax.rollout.rollouts import feature_means
from e3jax.runtime import unless_stopped

CONDITIONAL = {
    "dependence": "dependence on the attempt before (nats)", "sharpening": "sharpening (nats)",
    "reattempt": "log p of the same attempt again", "reattempt_change": "… against its first time (nats)",
}  # fmt: skip
PER_TOKEN = {
    "KL to the base (nats per token)": {"kl": "exact", "k1": "k1", "k3": "k3"},
    "entropy (nats per token)": {"entropy": "all tokens", "entropy_choice": "tokens that choose an attempt"},
    "p(end) after an attempt": {"end_after_attempt": "any", "end_after_wrong": "a wrong one"},
}


@dataclass(frozen=True)
class Chains:
    """A config's `chains` section: pass@k when the thinking is cut after so many attempts."""

    attempts: tuple[int, ...]  # where it is cut; 0: an answer without any verification
    rollouts: int  # the first so many responses of each problem are cut
    completions: int  # of each of them
    closing: str  # put where the chain is cut
    end: str  # what a completion ends with
    answer: int  # tokens of a completion
    pass_ks: tuple[int, ...]

    def __post_init__(self):
        need_rising(self.pass_ks, "pass_ks")
        attempts, most = list(self.attempts), self.rollouts * self.completions
        rise = attempts == sorted(set(attempts)) and min(attempts, default=-1) >= 0
        need(rise, "attempts", attempts, "numbers of attempts that rise, 0 or more")
        need_at_least_one(self, "completions", "answer")
        need(max(self.pass_ks, default=1) <= most, "pass_ks", tuple(self.pass_ks), f"{most} completions at most")


@dataclass(frozen=True)
class Conditional:
    """A config's `conditional` section: which attempts App. G.1 is measured on."""

    rollouts: int  # the first so many responses of each problem
    attempts: int  # the first so many of a response

    def __post_init__(self):
        need(self.attempts >= 2, "attempts", self.attempts, "2 or more: pairs are compared")


@dataclass(frozen=True)
class Settings:
    """A config of this command."""

    benches: Benches
    base: str  # label of the model that KL is measured to
    budget: int  # tokens of a response
    close: str  # ends the thinking
    tokens: int  # go through the model at once when responses are scored
    chains: Chains
    conditional: Conditional
    most_success: float  # config.unique: problems with so much success, or less, count for distinct attempts

    def __post_init__(self):
        labels = [str(label) for label in self.benches.models]
        need(self.base in labels, "base", self.base, f"use one of {', '.join(labels)}")
        heat = self.benches.sampling.temperature
        need(heat > 0, "sampler.temperature", heat, "above 0: distributions are compared")
        need_at_least_one(self, "budget", "tokens")
        need(0 <= self.most_success <= 1, "unique.most_success", self.most_success, "between 0 and 1")


@all_errors()
def check(c: ConfigDict) -> Settings:
    """Return what the config says; refuse impossible values, naming the fields, before anything is loaded."""
    with section("chains.{}".format):
        chains = Chains(**c.chains)
    with section("conditional.{}".format):
        pairs = Conditional(**c.conditional)
    benches = benches_of(c)
    least = min((one.samples for one in benches.sets.values()), default=1)
    for name, rollouts in (("chains", chains.rollouts), ("conditional", pairs.rollouts)):
        need(1 <= rollouts <= least, f"{name}.rollouts", rollouts, f"1 to {least}, the fewest samples of a set")
    return Settings(benches, c.base, c.budget, c.close, c.tokens, chains, pairs, c.unique.most_success)


class Read(NamedTuple):
    """One response of a bench, graded and taken apart."""

    problem: int
    sample: int
    response: Response
    text: str
    right: bool
    spans: list[Span]  # its attempts, in tokens


def graded(
    bench: Bench, grader: GraderPool, what: str, owners: Sequence[int], texts: Sequence[str], done
) -> list[bool]:
    """Return whether each text answers its problem, in order, and show progress."""
    right, where = [], f"{bench.label}, {bench.name}: grading {what}"
    with bench.log.phase(where, total=len(texts)) as phase:
        advance = unless_stopped(phase.advance, where)
        for first in range(0, len(texts), TOGETHER):
            part = slice(first, first + TOGETHER)
            problems = [bench.problems[p] for p in owners[part]]
            verdicts = grader.submit(problems, texts[part], done[part]).result()
            right += [v.score > 0 for v in verdicts]
            advance(len(problems))
    return right


def read(bench: Bench, grader: GraderPool, *, close: str) -> list[Read]:
    """Return all responses, graded and taken apart, problem by problem."""
    decode, known = bench.pretrained.tokenizer.decode, bench.responses.known
    keys = [(p, g) for p in range(len(bench.problems)) for g in range(bench.samples)]
    drawn = [known["response", p, g] for p, g in keys]
    texts = [decode(r.tokens) for r in drawn]
    right = graded(bench, grader, "responses", [p for p, _ in keys], texts, [r.done for r in drawn])
    spans = [token_spans(bench.problems[p], r.tokens, decode, close=close) for (p, _), r in zip(keys, drawn)]
    return [Read(*key, r, t, ok, s) for key, r, t, ok, s in zip(keys, drawn, texts, right, spans)]


def measure_chains(
    bench: Bench, grader: GraderPool, reads: Sequence[Read], chains: Chains, *, close: str
) -> dict[str, dict[str, Any]]:
    """Return pass@k when the thinking is cut after so many attempts and the model answers from there (e3 Figs 3, 12).

    An answer that is finished within its tokens counts, as in the paper, whether or not the model ended there. Where a
    response is shorter than the cut, its completions are those of the cut before: same prompt, same noise. Intervals
    resample problems, because completions of one response are alike.
    """
    tokenizer, first = bench.pretrained.tokenizer, max(r.sample for r in reads) + 1  # numbers with unused noise
    encode, used = tokenizer.encode, [r for r in reads if r.sample < chains.rollouts]
    each = range(chains.completions)
    numbers = [tuple(first + r.sample * len(each) + c for c in each) for r in used]
    stop, out = (tuple(encode(chains.end)), *tokenizer.stop), {}
    before, drawn = [None] * len(used), [None] * len(used)
    for most in chains.attempts:
        part = f"chains-{most}-of-{first}"  # with more samples a completion of the same number has another prompt
        cut = [
            chain(r.response, r.spans, most, close=encode(close), stop=tokenizer.stop, closing=encode(chains.closing))
            for r in used
        ]
        new = [i for i, trace in enumerate(cut) if before[i] is None or trace.tokens != before[i].tokens]
        prompts = {i: [*bench.prompts[used[i].problem], *cut[i].tokens] for i in new}
        requests = [Request(used[i].problem, numbers[i], prompt, chains.answer) for i, prompt in prompts.items()]
        bench.draw(part, requests, stop)
        for i in new:
            drawn[i] = [bench.responses.known[part, used[i].problem, n] for n in numbers[i]]
        before = cut
        owners = [r.problem for r in used for _ in each]
        texts = [tokenizer.decode([*t.tokens, *d.tokens]) for t, ds in zip(cut, drawn) for d in ds]
        right = graded(bench, grader, f"{most} attempts", owners, texts, [True] * len(texts))
        reached = [len(r.spans) >= most for r in used]
        out[str(most)] = chain_cell(cut, drawn, right, reached, problems=len(bench.problems), pass_ks=chains.pass_ks)
    return out


def chain_cell(
    cut: Sequence[Trace],
    drawn: Sequence[Sequence[Response]],
    right: Sequence[bool],
    reached: Sequence[bool],
    *,
    problems: int,
    pass_ks: Sequence[int],
) -> dict[str, Any]:
    """Return pass@k [mean, low, high] of one number of attempts, and its mean tokens: kept, forced, dropped, drawn."""
    right_p = np.asarray(right).reshape(problems, -1)  # rollouts are problem by problem
    n, correct_p = right_p.shape[1], right_p.sum(1)
    one = np.ones(problems)
    return {
        "pass_at_k": {
            str(k): interval(np.stack([pass_at_k(n, correct_p, k), one], axis=1), ratio) for k in pass_ks if k <= n
        },
        "completions": n,
        "reached": float(np.mean(reached)),  # share of responses with so many attempts; the others keep theirs
        "kept": float(np.mean([len(t.tokens) - t.forced for t in cut])),
        "forced": float(np.mean([t.forced for t in cut])),
        "dropped": float(np.mean([t.dropped for t in cut])),
        "drawn": float(np.mean([len(d.tokens) for ds in drawn for d in ds])),
    }


def measure_conditional(bench: Bench, reads: Sequence[Read], which: Conditional, *, tokens: int) -> dict:
    """Return App. G.1 of the attempts that `which` names, at temperature 1."""
    model, params, tokenizer = bench.pretrained
    used = [r for r in reads if r.sample < which.rollouts and len(r.spans) > 1]
    of_response = [pairs_of(bench.prompts[r.problem], r.response.tokens, r.spans[: which.attempts]) for r in used]
    pairs = [pair for parts in of_response for part in parts for pair in part]
    where = f"{bench.label}, {bench.name}: App. G.1"
    with bench.log.phase(where, total=len(pairs)) as phase:
        scored = log_likelihoods(
            model,
            params,
            pairs,
            Batching(tokens, model.config.max_length, tokenizer.pad),
            on_scored=unless_stopped(phase.advance, where),
        )
    logp, at, numbers = np.array([s.logp for s in scored]), 0, []
    for parts in of_response:
        values = []
        for part in parts:
            values.append(logp[at : at + len(part)])
            at += len(part)
        numbers.append(probes_of(*values))
    return conditional(numbers, [r.problem for r in used], len(bench.problems))


def per_token(bench: Bench, reads: Sequence[Read], base: Pretrained, *, close: str, tokens: int) -> dict[str, Any]:
    """Return entropy, KL to the base and the chance of ending after an attempt, along all responses; nats, per token.

    `end…` is the probability, right after an attempt, of a token that ends the response or begins `close`. A "wrong"
    attempt is no solution; where that is not known, it is one of an incorrect response.
    """
    model, params, tokenizer = bench.pretrained
    closes = tokenizer.encode(close)[0]
    watched = (closes, *(s for s in tokenizer.stop if s != closes))
    pairs = [(bench.prompts[r.problem], r.response.tokens) for r in reads]
    where = f"{bench.label}, {bench.name}: distributions"
    with bench.log.phase(where, total=len(reads)) as phase:
        along = distributions(
            model,
            params,
            pairs,
            Batching(tokens, model.config.max_length, tokenizer.pad),
            base=(base.model, base.params),
            temperature=bench.sampling.temperature,
            watched=watched,
            on_scored=unless_stopped(phase.advance, where),
        )
    sums = {name: np.zeros((len(bench.problems), 2)) for name in token_sums(reads[0], along[0])}
    for r, a in zip(reads, along):
        for name, values in token_sums(r, a).items():
            sums[name][r.problem] += (values.sum(dtype=np.float64), len(values))
    return {name: interval(x, ratio) for name, x in sums.items()} | {"tokens": int(sums["entropy"][:, 1].sum())}


def token_sums(r: Read, a: Along) -> dict[str, np.ndarray]:
    """Return the values of one response that go into each mean."""
    choice = (
        np.concatenate([np.arange(s.start, s.chosen) for s in r.spans]).astype(int) if r.spans else np.zeros(0, int)
    )
    after = [s for s in r.spans if s.end < len(a.logp)]
    wrong = [s for s in after if (s.truth is False) or (s.truth is None and not r.right)]
    end, eos = a.watched.sum(1), a.watched[:, 1:].sum(1)  # the first one watched begins `close`
    return {
        "entropy": a.entropy,
        "entropy_choice": a.entropy[choice],
        "kl": a.kl,
        "k1": np.asarray(kl_penalty(a.logp, a.base_logp, estimator="k1")),
        "k3": np.asarray(kl_penalty(a.logp, a.base_logp, estimator="k3")),
        "end_after_attempt": end[[s.end for s in after]],
        "end_after_wrong": end[[s.end for s in wrong]],
        "eos_after_attempt": eos[[s.end for s in after]],
        "eos_after_wrong": eos[[s.end for s in wrong]],
    }


def probe(bench: Bench, grader: GraderPool, settings: Settings) -> None:
    """Sample, measure, and write this model's and set's lines."""
    close, tokens, samples = settings.close, settings.tokens, bench.samples
    sample_all(bench, longest=settings.budget)
    reads = read(bench, grader, close=close)

    def grid(values):
        return np.array(values).reshape(-1, samples)

    calls = [detect(bench.problems[r.problem], r.text, close=close) for r in reads]
    right_pg = grid([r.right for r in reads])
    spans_pg = [[r.spans for r in reads[p * samples : (p + 1) * samples]] for p in range(len(bench.problems))]
    features = [explore(bench.problems[r.problem], r.text, done=r.response.done, correct=r.right) for r in reads]
    base = bench.pretrained
    if bench.label != settings.base:
        checkpoint, dtype = settings.benches.models[settings.base], dtype_name(settings.benches.dtype)
        base = load_pretrained(checkpoint, dtype=dtype, mesh=jax.sharding.get_mesh())
    line = {
        "problems": len(bench.problems),
        "samples": samples,
        "budget": settings.budget,
        "success": interval(np.stack([right_pg.sum(1), np.full(len(right_pg), samples)], axis=1), ratio),
        "asymmetry": chained_asymmetry(right_pg, grid([p for p, _ in calls]), grid([qp for _, qp in calls])),
        "gap": verification_gap(spans_pg),
        "chains": measure_chains(bench, grader, reads, settings.chains, close=close),
        "conditional": measure_conditional(bench, reads, settings.conditional, tokens=tokens),
        "tokens": per_token(bench, reads, base, close=close, tokens=tokens),
        "explore": {name.removeprefix("explore/"): value for name, value in feature_means(features).items()}
        | {
            "length": float(np.mean([len(r.response.tokens) for r in reads])),
            "truncated": float(np.mean([not r.response.done for r in reads])),
        },
    }
    bench.drop_lines("attempts.jsonl")
    for p, problem in enumerate(bench.problems):
        tried = [[r.right, attempt_keys(problem, r.text.partition(close)[0])] for r in reads if r.problem == p]
        bench.log.append("attempts.jsonl", bench.names | {"problem": problem.id, "rollouts": tried})
    limits = {name: getattr(bench.sampling, name) for name in ("temperature", "top_k", "top_p")}
    about = {"checkpoint": bench.checkpoint, "base": settings.base, "scored": bench.scored}
    bench.log.append("probes.jsonl", bench.names | about | limits | line)
    bench.log.flush()


def unique_attempts(lines: Sequence[dict], order: Sequence[str], *, most_success: float) -> tuple[list[float], int]:
    """Return e3's Fig. 6: distinct wrong attempts per problem up to each model in `order`; how many problems count."""
    rollouts = [{x["problem"]: x["rollouts"] for x in lines if x["stage"] == stage} for stage in order]
    sizes = cumulative_unique(rollouts, most_success=most_success)
    return [float(row.mean()) if row.size else float("nan") for row in sizes], sizes.shape[1]


def show(log: RunLog, order: Sequence[str], *, most_success: float) -> None:
    """Write tables, on the terminal too, and figures."""
    rows, tried, files = log.read("probes.jsonl"), log.read("attempts.jsonl"), {}
    for name in sorted({row["set"] for row in rows}):
        models = sorted(
            (r for r in rows if r["set"] == name and r["stage"] in order), key=lambda r: order.index(r["stage"])
        )
        stages = [r["stage"] for r in models]
        unique = unique_attempts([x for x in tried if x["set"] == name], stages, most_success=most_success)
        for kind, grid in (("probes", tables.table_probes(models, *unique)), ("chains", tables.table_chains(models))):
            files |= {f"{kind}-{name}.md": tables.markdown(grid), f"{kind}-{name}.csv": tables.comma_separated(grid)}
            log.console.print(tables.terminal(grid, f"{name}: {kind}"))
        files[f"chains-{name}.svg"] = chains_file(models, title=name)
        files[f"conditional-{name}.svg"] = conditional_file(models, order=order, title=name, probes=CONDITIONAL)
        files[f"tokens-{name}.svg"] = tokens_file(models, title=name, panels=PER_TOKEN)
    log.write({name: text for name, text in files.items() if text})  # "": no response had two attempts
    log.say(f"numbers, tables and figures: {log.workdir}")


def main(config: ConfigDict, workdir: str) -> None:
    """Probe all models of the config on all its sets; what probes.jsonl already has is left out."""
    settings = check(config)
    chains, order = settings.chains, list(settings.benches.models)
    evaluation_command(
        config,
        workdir,
        settings.benches,
        record="probes.jsonl",
        longest=settings.budget + len(chains.closing) + chains.answer,  # a word has at least a character
        measure=partial(probe, settings=settings),
        show=lambda log, problems: show(log, order, most_success=settings.most_success),
    )


if __name__ == "__main__":
    run_command(main)
