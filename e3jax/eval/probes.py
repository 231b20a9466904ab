"""The command: what a checkpoint explores. Def. 4.1, pass@k by chained attempts, App. G.1's probes, KL to the base.

    python -m e3jax.eval.probes --workdir=runs/probes --config=configs/probes.py:base=CHECKPOINT,e3=CHECKPOINT

Responses and completions are kept as they finish (eval/run.py): killed anywhere, the same command goes on and ends with
the same numbers. Sets may change as eval/run.py says. probes.jsonl has a line per model and set (intervals: [mean, low,
high], 95 %, over problems), attempts.jsonl a line per problem; probes-SET.*, chains-SET.*, conditional-SET.svg and
tokens-SET.svg are tables and figures of them. Models are checkpoints in the order of training: distinct attempts are
counted on from one to the next (Fig. 6). A model may be added later, at the end.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from e3jax.checkpoint.pretrained import Pretrained, load_pretrained
from e3jax.errors import all_errors, need
from e3jax.eval import tables
from e3jax.eval.attempts import chain, conditional, requests, token_spans
from e3jax.eval.attempts import probes as probes_of
from e3jax.eval.forcing import Trace
from e3jax.eval.scoring import TOGETHER
from e3jax.flags import keep_programs, run_command
from e3jax.log import RunLog
from e3jax.losses.grpo import kl_penalty
from e3jax.metrics.asymmetry import chained_asymmetry, verification_gap
from e3jax.metrics.bootstrap import interval, ratio
from e3jax.metrics.exploration import Span, attempt_keys, cumulative_unique, detect, explore
from e3jax.metrics.pass_at_k import pass_at_k
from e3jax.report.files import chains_file, conditional_file, tokens_file
from e3jax.rewards.workers import GraderPool
from e3jax.rollout.bench import (
    Bench,
    ask_all,
    check_models_and_sets,
    check_sampling,
    dtype_of,
    each_bench,
    load_sets,
    rising,
)
from e3jax.rollout.digests import what_was_scored
from e3jax.rollout.distributions import Along, distributions
from e3jax.rollout.likelihood import log_likelihoods
from e3jax.rollout.responses import Asked, Response
from e3jax.rollout.rollouts import feature_means
from e3jax.runtime import barrier, unless_stopped
from e3jax.tasks.sets import chosen_sets

CONDITIONAL = {
    "dependence": "dependence on the attempt before (nats)", "sharpening": "sharpening (nats)",
    "reattempt": "log p of the same attempt again", "reattempt_change": "… against its first time (nats)",
}  # fmt: skip
PER_TOKEN = {
    "KL to the base (nats per token)": {"kl": "exact", "k1": "k1", "k3": "k3"},
    "entropy (nats per token)": {"entropy": "all tokens", "entropy_choice": "tokens that choose an attempt"},
    "p(end) after an attempt": {"end_after_attempt": "any", "end_after_wrong": "a wrong one"},
}


class Read(NamedTuple):
    """One response of a bench, read."""

    problem: int
    sample: int
    response: Response
    text: str
    right: bool
    spans: list[Span]  # its attempts, in tokens


def graded(
    bench: Bench, grader: GraderPool, what: str, owners: Sequence[int], texts: Sequence[str], done
) -> list[bool]:
    """Whether each text answers its problem, in order, with progress."""
    right, where = [], f"{bench.label}, {bench.name}: grading {what}"
    with bench.log.phase(where, total=len(texts)) as phase:
        advance = unless_stopped(phase.advance, where)
        for first in range(0, len(texts), TOGETHER):
            part = slice(first, first + TOGETHER)
            asked = [bench.problems[p] for p in owners[part]]
            verdicts = grader.submit(asked, texts[part], done[part]).result()
            right += [v.score > 0 for v in verdicts]
            advance(len(asked))
    return right


def read(bench: Bench, grader: GraderPool, *, samples: int, close: str) -> list[Read]:
    """All responses, graded and taken apart, problem by problem."""
    decode, known = bench.pretrained.tokenizer.decode, bench.responses.known
    keys = [(p, g) for p in range(len(bench.problems)) for g in range(samples)]
    drawn = [known["response", p, g] for p, g in keys]
    texts = [decode(r.tokens) for r in drawn]
    right = graded(bench, grader, "responses", [p for p, _ in keys], texts, [r.done for r in drawn])
    spans = [token_spans(bench.problems[p], r.tokens, decode, close=close) for (p, _), r in zip(keys, drawn)]
    return [Read(*key, r, t, ok, s) for key, r, t, ok, s in zip(keys, drawn, texts, right, spans)]


def chains(
    bench: Bench,
    grader: GraderPool,
    reads: Sequence[Read],
    *,
    close: str,
    attempts: Sequence[int],
    rollouts: int,
    completions: int,
    closing: str,
    end: str,
    answer: int,
    pass_ks: Sequence[int],
) -> dict[str, dict[str, Any]]:
    """Figs 3 and 12: pass@k when the thinking is cut after so many attempts and the model answers from there.

    `completions` of each of `rollouts` responses; an answer that is finished within `answer` tokens counts, as in the
    paper, whether or not the model ended there. Completions of responses that are shorter than the cut are those of the
    cut before: same prompt, same noise. Intervals resample problems (completions of a rollout are alike).
    """
    tokenizer, first = bench.pretrained.tokenizer, max(r.sample for r in reads) + 1  # noise of their own
    encode, used = tokenizer.encode, [r for r in reads if r.sample < rollouts]
    numbers = [tuple(first + r.sample * completions + c for c in range(completions)) for r in used]
    stop, out, before, drawn = (tuple(encode(end)), *tokenizer.stop), {}, [None] * len(used), [None] * len(used)
    for most in attempts:
        part = f"chains-{most}-of-{first}"  # with more samples a completion of the same number has another prompt
        cut = [
            chain(r.response, r.spans, most, close=encode(close), stop=tokenizer.stop, closing=encode(closing))
            for r in used
        ]
        new = [i for i, trace in enumerate(cut) if before[i] is None or trace.tokens != before[i].tokens]
        asked = {
            i: Asked(used[i].problem, numbers[i], [*bench.prompts[used[i].problem], *cut[i].tokens], answer)
            for i in new
        }
        bench.draw(part, list(asked.values()), stop)
        for i in new:
            drawn[i] = [bench.responses.known[part, used[i].problem, n] for n in numbers[i]]
        before = cut
        owners = [r.problem for r in used for _ in range(completions)]
        texts = [tokenizer.decode([*t.tokens, *d.tokens]) for t, ds in zip(cut, drawn) for d in ds]
        right = graded(bench, grader, f"{most} attempts", owners, texts, [True] * len(texts))
        reached = [len(r.spans) >= most for r in used]
        out[str(most)] = chain_cell(cut, drawn, right, reached, problems=len(bench.problems), pass_ks=pass_ks)
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
    """pass@k [mean, low, high] of one number of attempts, and its tokens: kept, forced, dropped, drawn (means)."""
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


def ask_conditional(bench: Bench, reads: Sequence[Read], *, rollouts: int, attempts: int, tokens: int) -> dict:
    """App. G.1 of the first `rollouts` responses of every problem, up to `attempts` attempts of each, temperature 1."""
    model, params, tokenizer = bench.pretrained
    used = [r for r in reads if r.sample < rollouts and len(r.spans) > 1]
    asked = [requests(bench.prompts[r.problem], r.response.tokens, r.spans[:attempts]) for r in used]
    pairs = [pair for one in asked for part in one for pair in part]
    where = f"{bench.label}, {bench.name}: App. G.1"
    with bench.log.phase(where, total=len(pairs)) as phase:
        scored = log_likelihoods(
            model,
            params,
            pairs,
            tokens=tokens,
            most=model.config.max_length,
            pad=tokenizer.pad,
            on_scored=unless_stopped(phase.advance, where),
        )
    logp, at, numbers = np.array([s.logp for s in scored]), 0, []
    for one in asked:
        parts = []
        for part in one:
            parts.append(logp[at : at + len(part)])
            at += len(part)
        numbers.append(probes_of(*parts))
    return conditional(numbers, [r.problem for r in used], len(bench.problems))


def per_token(
    bench: Bench, reads: Sequence[Read], base: Pretrained, *, close: str, temperature: float, tokens: int
) -> dict[str, Any]:
    """Entropy, KL to the base and the chance of ending after an attempt, along all responses; nats, per token.

    `end…` is the probability, right after an attempt, of a token that ends the response or begins `close`; "wrong": of
    an attempt that is no solution, where that is not known an attempt of an incorrect response.
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
            base=(base.model, base.params),
            temperature=temperature,
            watched=watched,
            tokens=tokens,
            most=model.config.max_length,
            pad=tokenizer.pad,
            on_scored=unless_stopped(phase.advance, where),
        )
    sums = {name: np.zeros((len(bench.problems), 2)) for name in token_sums(reads[0], along[0])}
    for r, a in zip(reads, along):
        for name, values in token_sums(r, a).items():
            sums[name][r.problem] += (values.sum(dtype=np.float64), len(values))
    return {name: interval(x, ratio) for name, x in sums.items()} | {"tokens": int(sums["entropy"][:, 1].sum())}


def token_sums(r: Read, a: Along) -> dict[str, np.ndarray]:
    """What of one response goes into which mean."""
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


def probe(bench: Bench, grader: GraderPool, c: ConfigDict, *, checkpoint: str, samples: int, scored: dict) -> None:
    """Draw, measure, and write this model's and set's lines; `scored` is what_was_scored's."""
    ask_all(bench, samples=samples, longest=c.budget)
    reads = read(bench, grader, samples=samples, close=c.close)

    def grid(values):
        return np.array(values).reshape(-1, samples)

    calls = [detect(bench.problems[r.problem], r.text, close=c.close) for r in reads]
    right_pg = grid([r.right for r in reads])
    spans_pg = [[r.spans for r in reads[p * samples : (p + 1) * samples]] for p in range(len(bench.problems))]
    features = [explore(bench.problems[r.problem], r.text, done=r.response.done, correct=r.right) for r in reads]
    base = bench.pretrained
    if bench.label != c.base:
        base = load_pretrained(dict(c.models)[c.base], dtype=dtype_of(c), mesh=jax.sharding.get_mesh())
    line = {
        "problems": len(bench.problems),
        "samples": samples,
        "budget": c.budget,
        "success": interval(np.stack([right_pg.sum(1), np.full(len(right_pg), samples)], axis=1), ratio),
        "asymmetry": chained_asymmetry(right_pg, grid([p for p, _ in calls]), grid([qp for _, qp in calls])),
        "gap": verification_gap(spans_pg),
        "chains": chains(bench, grader, reads, close=c.close, **c.chains.to_dict()),
        "conditional": ask_conditional(bench, reads, tokens=c.tokens, **c.conditional.to_dict()),
        "tokens": per_token(bench, reads, base, close=c.close, temperature=c.sampler.temperature, tokens=c.tokens),
        "explore": {name.removeprefix("explore/"): value for name, value in feature_means(features).items()}
        | {
            "length": float(np.mean([len(r.response.tokens) for r in reads])),
            "truncated": float(np.mean([not r.response.done for r in reads])),
        },
    }
    of = {"stage": bench.label, "set": bench.name}
    bench.log.keep("attempts.jsonl", lambda old: (old["stage"], old["set"]) != (bench.label, bench.name))
    for p, problem in enumerate(bench.problems):
        tried = [[r.right, attempt_keys(problem, r.text.partition(c.close)[0])] for r in reads if r.problem == p]
        bench.log.append("attempts.jsonl", of | {"problem": problem.id, "rollouts": tried})
    limits = {name: c.sampler[name] for name in ("temperature", "top_k", "top_p")}
    about = {"checkpoint": checkpoint, "base": c.base, "scored": scored}
    bench.log.append("probes.jsonl", of | about | limits | line)
    bench.log.flush()


@all_errors()
def check(c: ConfigDict) -> None:
    """Refuse impossible values, naming the fields, before anything is loaded."""
    check_models_and_sets(c)
    check_sampling(c)
    labels = [str(m[0]) for m in c.models if m]
    need(c.base in labels, "base", c.base, f"use one of {', '.join(labels)}")
    need(c.sampler.temperature > 0, "sampler.temperature", c.sampler.temperature, "above 0: distributions are compared")
    rising(c.chains, "pass_ks")
    chained = list(c.chains.attempts)
    need(
        chained == sorted(set(chained)) and min(chained, default=-1) >= 0,
        "chains.attempts",
        chained,
        "numbers of attempts that rise, 0 or more",
    )
    least = min((one.samples for one in chosen_sets(c.sets, c.only).values()), default=1)
    for section in ("chains", "conditional"):
        need(
            1 <= c[section].rollouts <= least,
            f"{section}.rollouts",
            c[section].rollouts,
            f"1 to {least}, the fewest samples of a set",
        )
    for field in ("budget", "tokens"):
        need(c[field] >= 1, field, c[field], "use 1 or more")
    for field in ("completions", "answer"):
        need(c.chains[field] >= 1, f"chains.{field}", c.chains[field], "use 1 or more")
    need(c.conditional.attempts >= 2, "conditional.attempts", c.conditional.attempts, "2 or more: pairs are compared")
    most = c.chains.rollouts * c.chains.completions
    ks = tuple(c.chains.pass_ks)
    need(max(ks, default=1) <= most, "chains.pass_ks", ks, f"{most} completions at most")
    need(0 <= c.unique.most_success <= 1, "unique.most_success", c.unique.most_success, "between 0 and 1")


def unique_attempts(lines: Sequence[dict], order: Sequence[str], *, most_success: float) -> tuple[list[float], int]:
    """Fig. 6 of one set: distinct wrong attempts per problem up to each model in `order`; how many problems count."""
    found = [{x["problem"]: x["rollouts"] for x in lines if x["stage"] == stage} for stage in order]
    sizes = cumulative_unique(found, most_success=most_success)
    return [float(row.mean()) if row.size else float("nan") for row in sizes], sizes.shape[1]


def show(log: RunLog, order: Sequence[str], *, most_success: float) -> None:
    """Tables on the terminal and as files, and the figures."""
    rows, tried, files = log.read("probes.jsonl"), log.read("attempts.jsonl"), {}
    for name in sorted({row["set"] for row in rows}):
        own = sorted(
            (r for r in rows if r["set"] == name and r["stage"] in order), key=lambda r: order.index(r["stage"])
        )
        stages = [r["stage"] for r in own]
        unique = unique_attempts([x for x in tried if x["set"] == name], stages, most_success=most_success)
        for kind, grid in (("probes", tables.table_probes(own, *unique)), ("chains", tables.table_chains(own))):
            files |= {f"{kind}-{name}.md": tables.markdown(grid), f"{kind}-{name}.csv": tables.comma_separated(grid)}
            log.console.print(tables.terminal(grid, f"{name}: {kind}"))
        files[f"chains-{name}.svg"] = chains_file(own, title=name)
        files[f"conditional-{name}.svg"] = conditional_file(own, order=order, title=name, probes=CONDITIONAL)
        files[f"tokens-{name}.svg"] = tokens_file(own, title=name, panels=PER_TOKEN)
    log.write({name: text for name, text in files.items() if text})  # "": no response had two attempts
    log.say(f"numbers, tables and figures: {log.workdir}")


def main(config: ConfigDict, workdir: str) -> None:
    """All models of the config on all its sets; what probes.jsonl already has is left out."""
    check(config)
    keep_programs()
    problems = load_sets(config)
    log = RunLog(workdir, config.to_dict(), tensorboard=False, wandb="")
    with GraderPool(**config.grader.to_dict()) as grader:
        longest = config.budget + len(config.chains.closing) + config.chains.answer  # a word has at least a character
        for bench, checkpoint, samples in each_bench(config, log, "probes.jsonl", problems, longest=longest):
            scored = what_was_scored(problems[bench.name], samples)
            probe(bench, grader, config, checkpoint=checkpoint, samples=samples, scored=scored)
    show(log, list(dict(config.models)), most_success=config.unique.most_success)
    log.done()
    log.close()
    barrier("end")


if __name__ == "__main__":
    run_command(main)
