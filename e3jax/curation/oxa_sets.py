"""The command: sample from a model, grade, score, select: OXA's sets and its baselines', as files to train on.

    python -m e3jax.curation.oxa_sets --config=configs/oxa_data.py:model=1.5b --workdir=gs://BUCKET/oxa-data
    python -m e3jax.curation.oxa_sets --workdir=runs/oxa-data \
        --config=configs/oxa_data.py:countdown,model=runs/quickstart/checkpoints/base/280

There are two pools: a teacher's responses, of which the right ones count, and those of the model itself (or of a
relative) to the same queries, of which the wrong ones count; config.right and config.wrong may name the other pool, or
one pool for both (in a directory of its own: only what counts is scored). RUN then holds responses/ (what the model
said), pool.jsonl (a line a response: grade, length, perplexity), sets/{promote,suppress,random,low_ppl}.jsonl for
train/oxa.py, selection.json and selection.svg. Killed anywhere, the same command goes on; other values of `promote`,
`suppress` and `baselines` select anew in seconds.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from e3jax.checkpoint.pretrained import Pretrained, load_pretrained
from e3jax.curation import oxa
from e3jax.curation.oxa_pools import (
    Item,
    Student,
    Teacher,
    draw_responses,
    prompt_of,
    queries,
    query_of,
    student_items,
    teacher_items,
)
from e3jax.curation.perplexity import perplexities
from e3jax.errors import UserError, all_errors, need, need_at_least_one, need_choice, section
from e3jax.flags import run_command
from e3jax.log import RunLog
from e3jax.report.files import perplexity_file
from e3jax.rewards.extract import WHERE, Grade
from e3jax.rewards.workers import GraderPool, Graders
from e3jax.rollout.bench import ProblemSet, dtype_name, graders_of, run_directory, sampling_of
from e3jax.rollout.digests import digest, graded_by
from e3jax.rollout.likelihood import Batching
from e3jax.runtime import barrier, is_main, unless_stopped
from e3jax.sampler.plan import Sampling
from e3jax.sharding import count_slices, make_mesh
from e3jax.storage import patiently
from e3jax.tasks.table import TASKS, need_form, reads_set

TEACHER, OWN = "teacher", "own"  # the pools, as pool.jsonl names them
UNFAIR = ("truncated", "timeout")  # reasons that say nothing of a response's answer


# ---- settings


@dataclass(frozen=True)
class Suppression:
    """A config's `suppress` section: which wrong responses are suppressed."""

    total: int  # responses
    least_ppl: float  # less is degenerate
    most_tokens: int  # longer ones are left out


@dataclass(frozen=True)
class Scoring:
    """How responses are scored: fields of the config."""

    base: str  # whose perplexities
    dtype: str
    given_prompt: bool  # perplexities given the prompt, or of the response alone
    chat: bool  # whether a prompt is a user's turn
    most_tokens: int  # a response is read so far
    score_tokens: int  # go through the model at once, about
    at_once: int  # responses in memory together

    def __post_init__(self):
        need_at_least_one(self, "at_once", "most_tokens", "score_tokens")


@dataclass(frozen=True)
class Settings:
    """A config of this command."""

    questions: ProblemSet
    teacher: Teacher
    student: Student
    scoring: Scoring
    promotion: oxa.Promotion
    suppression: Suppression
    right: str  # the pool whose right responses count, TEACHER or OWN
    wrong: str  # the pool whose wrong responses count
    baselines: int  # responses of each baseline
    seed: int
    sampling: Sampling
    grader: Graders

    def __post_init__(self):
        need_at_least_one(self, "baselines")
        for field in ("right", "wrong"):
            need_choice(self, field, (TEACHER, OWN))

    @property
    def pools(self) -> list[str]:
        """Return the pools that count."""
        return [name for name in (TEACHER, OWN) if name in (self.right, self.wrong)]

    def counts(self, name: str, grade: Grade) -> bool:
        """Return whether a response of pool `name` may be chosen: a right one, or a wrong one that is not UNFAIR."""
        if grade.score > 0:
            return name == self.right
        return name == self.wrong and grade.reason not in UNFAIR


@all_errors()
def check(c: ConfigDict) -> Settings:
    """Return what the config says; refuse impossible values, naming the fields, before anything is loaded."""
    need_form("set.form", c.set.form)
    need(c.set.where in WHERE, "set.where", c.set.where, f"use one of {', '.join(WHERE)}")
    need(c.set.problems >= (not reads_set(c.set.form)), "set.problems", c.set.problems, "how many; 0 (all) of a file")
    chat = TASKS[c.set.form].chat
    sections = []
    for name, kind in (("own", Student), ("promote", oxa.Promotion), ("suppress", Suppression)):
        with section(f"{name}.{{}}".format):
            sections.append(kind(**c[name]))
    student, promotion, suppression = sections
    return Settings(
        questions=ProblemSet(**c.set),
        teacher=Teacher(**c.teacher.to_dict()),
        student=student,
        scoring=Scoring(c.base, c.dtype, c.given_prompt, chat, c.most_tokens, c.score_tokens, c.at_once),
        promotion=promotion,
        suppression=suppression,
        right=c.right,
        wrong=c.wrong,
        baselines=c.baselines,
        seed=c.seed,
        sampling=sampling_of(c),
        grader=graders_of(c),
    )


# ---- grades and perplexities


def measure(
    log: RunLog, name: str, items: Iterable[Item], base: Pretrained, grader: GraderPool, settings: Settings
) -> None:
    """Append the lines of pool.jsonl that pool `name` lacks. Only what counts gets a perplexity (`Settings.counts`)."""
    scoring = settings.scoring
    known = {line["index"]: line for line in log.read("pool.jsonl") if line["pool"] == name}
    numbered = enumerate(items)
    while block := list(islice(numbered, scoring.at_once)):
        for i, item in block:
            if i in known and known[i]["query"] != query_of(item.problem):
                raise UserError(f"{log.workdir}: {name} response {i} was to another query: take another --workdir")
        digests = [digest([item.response, *graded_by(item.problem)]) for _, item in block]
        changed = [i for (i, _), now in zip(block, digests) if i in known and known[i].get("graded", now) != now]
        if changed:
            log.say(f"pool.jsonl: {len(changed)} of {name}'s answers or responses have changed: they are graded again")
        elif all(i in known for i, _ in block):
            continue
        # a block is scored whole, so that its rows, and with them the last digits, are those of a run without a kill
        first, last = block[0][0], block[-1][0]
        where = f"{name} responses {first} to {last}"
        with log.phase(f"{where}: grades, perplexities", total=len(block)) as phase:
            heard = unless_stopped(phase.advance, where)
            grades = grader.submit(*(list(x) for x in zip(*(item for _, item in block)))).result()
            counts = [k for k, grade in enumerate(grades) if settings.counts(name, grade)]
            phase.advance(len(block) - len(counts))
            tokens, ppl = score([item for _, item in block], counts, base, scoring, on_scored=heard)
        if any(i in known for i, _ in block):
            log.keep("pool.jsonl", lambda x, a=first, b=last: x["pool"] != name or not a <= x["index"] <= b)
        for (i, item), graded, grade, length, value in zip(block, digests, grades, tokens, ppl):
            line = {"pool": name, "index": i, "query": query_of(item.problem), "graded": graded}
            verdict = {"correct": grade.score > 0, "reason": grade.reason}
            log.append("pool.jsonl", line | verdict | {"length": length, "ppl": float(value)})
        log.flush()
        barrier(where)


def score(
    items: list[Item], counts: list[int], base: Pretrained, scoring: Scoring, *, on_scored: Callable[[int], None]
) -> tuple[list[int], np.ndarray]:
    """Return the lengths of responses in tokens, and the perplexities [N] of those that count, NaN of the others."""
    encode, ppl = base.tokenizer.encode, np.full(len(items), np.nan)
    tokens = [encode(item.response) for item in items]
    prompts = [encode(prompt_of(items[k].problem, scoring.chat)) for k in counts] if scoring.given_prompt else None
    batching = Batching(scoring.score_tokens, scoring.most_tokens, base.tokenizer.pad)
    ppl[counts] = perplexities(
        base.model, base.params, [tokens[k] for k in counts], batching, prompts=prompts, on_scored=on_scored
    )
    return list(map(len, tokens)), ppl


# ---- selection


class Pool(NamedTuple):
    """The responses of a pool, or those chosen from it: arrays of one length."""

    index: np.ndarray
    query: np.ndarray  # a number each
    length: np.ndarray  # tokens
    correct: np.ndarray
    ppl: np.ndarray


def pool_of(lines: list[dict], numbers: dict[str, int]) -> Pool:
    """Return a pool's lines as arrays, rising in index; `numbers` maps queries to integers and grows."""
    lines = sorted(lines, key=lambda line: line["index"])
    return Pool(
        index=np.array([line["index"] for line in lines], int),
        query=np.array([numbers.setdefault(line["query"], len(numbers)) for line in lines], int),
        length=np.array([line["length"] for line in lines], int),
        correct=np.array([line["correct"] for line in lines], bool),
        ppl=np.array([np.nan if line["ppl"] is None else line["ppl"] for line in lines], float),
    )


def select(lines: list[dict], settings: Settings) -> tuple[dict[str, Pool], oxa.Bins, dict[str, Any]]:
    """Return {set: the chosen responses}, the promoted set's bins, and the report of selection.json.

    Right responses of more than `most_tokens` tokens are in no set: OXA drops them in training.
    """
    numbers: dict[str, int] = {}
    pools = {name: pool_of([x for x in lines if x["pool"] == name], numbers) for name in (TEACHER, OWN)}
    right, wrong, suppression = pools[settings.right], pools[settings.wrong], settings.suppression
    right_ppl = np.where(right.correct & (right.length <= settings.scoring.most_tokens), right.ppl, np.nan)
    wrong_ppl = np.where(~wrong.correct & (wrong.length <= suppression.most_tokens), wrong.ppl, np.nan)
    promotion = with_mu(settings.promotion, right_ppl)
    chosen, bins = oxa.promote_set(right_ppl, right.length, right.query, promotion, seed=settings.seed)
    suppressed = oxa.least_per_query(wrong_ppl, wrong.query, total=suppression.total, least_ppl=suppression.least_ppl)
    picks = {
        "promote": (right, chosen),
        "random": (right, oxa.random_set(right_ppl, total=settings.baselines, seed=settings.seed)),
        "low_ppl": (right, oxa.least_per_query(right_ppl, right.query, total=settings.baselines)),
        "suppress": (wrong, suppressed),
    }
    sets = {name: Pool(*(column[which] for column in pool)) for name, (pool, which) in picks.items()}
    reasons = {name: dict(Counter(x["reason"] for x in lines if x["pool"] == name)) for name in pools}
    return sets, bins, report_of(promotion, sets, bins, reasons)


def with_mu(promotion: oxa.Promotion, ppl: np.ndarray) -> oxa.Promotion:
    """Return the promotion with mu as a number; raise UserError where no perplexity lies within its range."""
    low, high, quantile = promotion.low, promotion.high, promotion.mu_quantile
    if not ((ppl >= low) & (ppl <= high)).any():
        raise UserError(
            f"config.promote.low={low}, high={high}: no right response has a perplexity in between; of "
            f"{np.isfinite(ppl).sum()} the mean is {np.nanmean(ppl):.3g}"
        )
    if quantile is None:
        return promotion
    return replace(promotion, mu=oxa.mu_of(ppl, low=low, high=high, quantile=quantile))


def report_of(promotion: oxa.Promotion, sets: dict[str, Pool], bins: oxa.Bins, reasons: dict) -> dict[str, Any]:
    """Return what selection.json says of the sets."""
    columns = (bins.edges, bins.target, bins.available, bins.taken)
    return {
        "mu": promotion.mu,
        "sigma": promotion.sigma,
        "short": int(bins.short.sum()),
        "missing": promotion.total - len(sets["promote"].index),
        "bins": [
            dict(low=low, target=target, available=available, taken=taken)
            for low, target, available, taken in zip(*(column.tolist() for column in columns))
            if target or available
        ],
        "pools": reasons,
        "sets": {
            name: {
                "rows": len(s.ppl),
                "queries": len(set(s.query.tolist())),
                **({"ppl": float(s.ppl.mean()), "length": float(s.length.mean())} if len(s.ppl) else {}),
            }
            for name, s in sets.items()
        },
    }


def write_sets(log: RunLog, sets: dict[str, Pool], pools: dict[str, Iterable[Item]], settings: Settings) -> None:
    """Write sets/NAME.jsonl in the order of the pools; a set without rows has no file."""
    if not is_main():
        return
    directory = log.workdir / "sets"
    patiently(f"make {directory}", lambda: directory.mkdir(parents=True, exist_ok=True))
    for pool, items in pools.items():
        chosen = {n: settings.wrong if n == "suppress" else settings.right for n in sets}
        names = [n for n, s in sets.items() if chosen[n] == pool and len(s.ppl)]
        files = {n: (directory / f"{n}.jsonl.new").open("w") for n in names}
        rank = {n: {int(i): k for k, i in enumerate(sets[n].index)} for n in names}
        for i, item in enumerate(items):
            for n in (n for n in names if i in rank[n]):
                k = rank[n][i]
                row = {
                    "query": query_of(item.problem),
                    "prompt": prompt_of(item.problem, settings.scoring.chat),
                    "response": item.response,
                    "answer": item.problem.answer,
                    "ppl": float(sets[n].ppl[k]),
                    "length": int(sets[n].length[k]),
                }
                files[n].write(json.dumps(row, ensure_ascii=False) + "\n")
        for n, file in files.items():
            file.close()
            (directory / f"{n}.jsonl.new").replace(directory / f"{n}.jsonl")


def tell(log: RunLog, report: dict) -> None:
    """Say how large the sets are."""
    for name, s in report["sets"].items():
        told = f"{s['rows']} responses to {s['queries']} queries"
        log.say(f"{name}: {told}" + (f", perplexity {s['ppl']:.3f}, {s['length']:.0f} tokens" if s["rows"] else ""))
    if report["short"]:
        log.say(
            f"promote: bins lacked {report['short']} responses of their targets, {report['missing']} are missing after "
            f"config.promote.refill (mu {report['mu']:.3f})"
        )


# ---- the command


def main(config: ConfigDict, workdir: str) -> None:
    """Sample, measure, select."""
    settings = check(config)
    scoring = settings.scoring
    with run_directory(config, workdir) as log:

        def teacher() -> Iterator[Item]:
            return teacher_items(settings.questions, settings.teacher, seed=settings.seed)

        def student() -> Iterator[Item]:
            return student_items(log, problems, settings.student, at_once=scoring.at_once)

        items = {TEACHER: teacher, OWN: student}
        problems = queries(teacher(), settings.questions.problems)
        if not problems:
            raise UserError(f"config.set.source={config.set.source!r} has no row with config.teacher.column")
        if OWN in settings.pools:
            how = dict(dtype=scoring.dtype, at_once=scoring.at_once, seed=settings.seed)
            draw_responses(log, problems, settings.student, settings.sampling, **how)
        mesh = make_mesh(data=count_slices(), fsdp=-1, tensor=1)
        with jax.set_mesh(mesh), settings.grader.start() as grader:
            log.say(f"loading {scoring.base}")
            base = load_pretrained(scoring.base, dtype=dtype_name(scoring.dtype), mesh=mesh)
            for name in settings.pools:
                measure(log, name, items[name](), base, grader, settings)
        lines = log.read("pool.jsonl")
        sets, bins, report = select(lines, settings)
        write_sets(log, sets, {name: items[name]() for name in settings.pools}, settings)
        right = [x for x in lines if x["pool"] == settings.right and x["correct"]]
        drawn = perplexity_file(
            {name: s.ppl for name, s in sets.items()},
            bins.edges,
            bins.target,
            title=scoring.base[-48:],
            pool=np.array([x["ppl"] for x in right if x["ppl"] is not None]),
        )
        log.write({"selection.json": json.dumps(report, indent=1) + "\n", "selection.svg": drawn})
        tell(log, report)


if __name__ == "__main__":
    run_command(main)
