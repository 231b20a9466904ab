"""The command: sample from a model, grade, perplexities, select: OXA's sets and its baselines', as files to train on.

    python -m e3jax.curation.oxa_sets --config=configs/oxa_data.py:model=1.5b --workdir=gs://BUCKET/oxa-data
    python -m e3jax.curation.oxa_sets --workdir=runs/oxa-data \
        --config=configs/oxa_data.py:countdown,model=runs/quickstart/checkpoints/base/280

Two pools: the teacher's responses, of which the right ones count, and the model's own (or a relative's) to the same
queries, of which the wrong ones do. RUN then holds responses/ (the drawn ones), pool.jsonl (a line a response: grade,
length, perplexity), sets/{promote,suppress,random,low_ppl}.jsonl for train/oxa.py, selection.json and selection.svg.
Killed anywhere, the same command goes on; other values of `promote`, `suppress` and `baselines` select anew in seconds.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from e3jax.checkpoint.pretrained import Pretrained, load_pretrained, load_tokenizer
from e3jax.checkpoint.pretrained import model_config as config_of
from e3jax.curation import oxa
from e3jax.curation.perplexity import perplexities
from e3jax.errors import UserError, all_errors, need
from e3jax.flags import keep_programs, run_command
from e3jax.log import RunLog
from e3jax.report.files import perplexity_file
from e3jax.rewards.extract import WHERE
from e3jax.rewards.workers import GraderPool
from e3jax.rollout.bench import Bench, check_responses, check_sampling, in_chat
from e3jax.rollout.digests import digest, graded_by
from e3jax.rollout.responses import Asked, Responses
from e3jax.runtime import barrier, is_main, unless_stopped
from e3jax.sampler.layout import sampling_layout
from e3jax.sampler.plan import Sampling
from e3jax.sharding import make_mesh
from e3jax.storage import patiently
from e3jax.tasks.problem import Problem
from e3jax.tasks.prompts import qwen3_chat
from e3jax.tasks.sets import read_row, read_rows, short_name, to_problem
from e3jax.tasks.stream import Wording
from e3jax.tasks.table import TASKS, need_form, reads_set

TEACHER, OWN = "teacher", "own"
UNFAIR = ("truncated", "timeout")  # reasons that say nothing of a response's answer


class Item(NamedTuple):
    """One response of a pool; the problem's question is without a chat template."""

    problem: Problem
    response: str
    done: bool


def query_of(problem: Problem) -> str:
    """A problem's name by its words: rows of a file repeat it."""
    return hashlib.sha256(problem.question.encode()).hexdigest()[:16]


# ---- the two pools


def teacher_items(
    *, form: str, source, prompt: str, where: str, problems: int, seed: int, responses: dict
) -> Iterator[Item]:
    """A teacher's responses: of a file or set, whose rows have problem, answer and response; or a solver's traces.

    Countdown's traces are guided by the exact solver (tasks/countdown_traces.py): `samples` for each of `habits`.
    """
    task = TASKS[form]
    if not task.endless:
        for row in read_rows(source, split="", limit=0):
            if not row.wrong and isinstance(row.value.get(responses["column"]), str):
                fields = read_row(row, source=short_name(source), seed=seed)
                asked = to_problem(fields, short_name(source), row.index, prompt, str, where)
                yield Item(asked, row.value[responses["column"]], True)
        return
    draw = task.open(source, seed=seed, split="train", wording=Wording(prompt, chat=str, where=where))
    for i, problem in enumerate(draw(responses["first"], problems)):
        rng = np.random.default_rng([seed, i])
        for habits in responses["habits"]:
            for _ in range(responses["samples"]):
                yield Item(problem, task.trace(problem, rng, task.habits(**habits)), True)


def queries(items: Iterable[Item], most: int) -> list[Problem]:
    """The first `most` (0: all) different problems of a pool, in its order."""
    found: dict[str, Problem] = {}
    for item in items:
        found.setdefault(query_of(item.problem), item.problem)
        if most and len(found) == most:
            break
    return list(found.values())


def own_blocks(log: RunLog, problems: list[Problem], at_once: int) -> Iterator[tuple[range, Responses]]:
    """Which problems a directory of drawn responses answers: few enough that their tokens fit in memory."""
    for first in range(0, len(problems), at_once):
        here = range(first, min(first + at_once, len(problems)))
        yield here, Responses(log.workdir / "responses" / f"{first:07d}")


def draw_own(
    log: RunLog,
    mesh,
    problems: list[Problem],
    *,
    model: str,
    dtype: str,
    thinking: bool,
    samples: int,
    budget: int,
    at_once: int,
    seed: int,
    sampling: Sampling,
) -> None:
    """Draw the responses of `model` that are not there yet."""
    numbers = tuple(range(samples))
    tokenizer = load_tokenizer(model, config_of(model))
    asked = [in_chat(p, tokenizer, thinking=thinking) for p in problems]
    prompts, left = [tokenizer.encode(p.question) for p in asked], []
    for here, responses in own_blocks(log, problems, at_once):
        check_responses(responses, asked, prompts, log)
        if responses.missing("response", [Asked(p, numbers, prompts[p], budget) for p in here]):
            left.append(here)
    if not left:
        return
    log.say(f"loading {model}")
    net, params, tokenizer = load_pretrained(model, dtype=dtype, mesh=mesh)
    longest = max(map(len, prompts))
    need(
        longest + budget <= net.config.max_length,
        "own.budget",
        budget,
        f"{net.config.max_length - longest} or less: the longest prompt has {longest} tokens",
    )
    key = jax.random.fold_in(jax.random.key(seed), 0)
    with sampling_layout(params, tensor=sampling.tensor, dtype=net.dtype) as params:
        for here, responses in own_blocks(log, problems, at_once):
            if here not in left:
                continue
            responses.check([p.id for p in problems], prompts)
            barrier(f"read problems from {here.start}")  # before process 0 writes more
            name = f"problems {here.start} to {here.stop - 1} of {len(problems)}"
            bench = Bench(
                "own responses", name, Pretrained(net, params, tokenizer), asked, prompts, responses, key, sampling, log
            )
            bench.draw("response", [Asked(p, numbers, prompts[p], budget) for p in here], tokenizer.stop)


def own_items(
    log: RunLog, problems: list[Problem], tokenizer, *, samples: int, at_once: int, prefix: str
) -> Iterator[Item]:
    """What `draw_own` drew, in order; `prefix` is what the model's prompt held already and its text lacks."""
    for here, responses in own_blocks(log, problems, at_once):
        for p in here:
            for g in range(samples):
                r = responses.known["response", p, g]
                yield Item(problems[p], prefix + tokenizer.decode(r.tokens), r.done)


# ---- grades and perplexities


def measure(
    log: RunLog,
    name: str,
    items: Iterable[Item],
    base: Pretrained,
    grader: GraderPool,
    *,
    right: bool,
    given_prompt: bool,
    chat: bool,
    most_tokens: int,
    score_tokens: int,
    at_once: int,
) -> None:
    """Lines of pool.jsonl that are missing. Perplexities only of what counts: `right` ones, or fairly wrong ones."""
    known = {line["index"]: line for line in log.read("pool.jsonl") if line["pool"] == name}
    encode = base.tokenizer.encode
    numbered = enumerate(items)
    while todo := list(islice(numbered, at_once)):
        for i, item in todo:
            if i in known and known[i]["query"] != query_of(item.problem):
                raise UserError(f"{log.workdir}: {name} response {i} was to another query: take another --workdir")
        graded = [digest([item.response, *graded_by(item.problem)]) for _, item in todo]
        old = [i for (i, _), now in zip(todo, graded) if i in known and known[i].get("graded", now) != now]
        if old:
            log.say(f"pool.jsonl: {len(old)} of {name}'s answers or responses have changed: they are graded again")
        elif all(i in known for i, _ in todo):
            continue
        # a block is scored whole, so that its rows, and with them the last digits, are those of a run without a kill
        where = f"{name} responses {todo[0][0]} to {todo[-1][0]}"
        with log.phase(f"{where}: grades, perplexities", total=len(todo)) as phase:
            heard = unless_stopped(phase.advance, where)
            grades = grader.submit(*(list(x) for x in zip(*(item for _, item in todo)))).result()
            tokens = [encode(item.response) for _, item in todo]
            counts = [k for k, g in enumerate(grades) if (g.score > 0) == right and (right or g.reason not in UNFAIR)]
            ppl = np.full(len(todo), np.nan)
            phase.advance(len(todo) - len(counts))
            prompts = [encode(prompt_of(todo[k][1].problem, chat)) for k in counts] if given_prompt else None
            ppl[counts] = perplexities(
                base.model,
                base.params,
                [tokens[k] for k in counts],
                prompts=prompts,
                most=most_tokens,
                tokens=score_tokens,
                pad=base.tokenizer.pad,
                on_scored=heard,
            )
        first, last = todo[0][0], todo[-1][0]
        if any(i in known for i, _ in todo):
            log.keep("pool.jsonl", lambda x, a=first, b=last: x["pool"] != name or not a <= x["index"] <= b)
        for (i, item), now, grade, said, value in zip(todo, graded, grades, tokens, ppl):
            log.append(
                "pool.jsonl",
                {
                    "pool": name,
                    "index": i,
                    "query": query_of(item.problem),
                    "graded": now,
                    "correct": grade.score > 0,
                    "reason": grade.reason,
                    "length": len(said),
                    "ppl": float(value),
                },
            )
        log.flush()
        barrier(where)


def prompt_of(problem: Problem, chat: bool) -> str:
    """What the trained model reads: one user turn without a system prompt (C.5), or the bare question."""
    return qwen3_chat(problem.question) if chat else problem.question


# ---- selection


def columns(lines: list[dict], numbers: dict[str, int]) -> dict[str, np.ndarray]:
    """A pool's lines as arrays, rising in index; queries as integers (`numbers` grows)."""
    lines = sorted(lines, key=lambda line: line["index"])
    return {
        "index": np.array([line["index"] for line in lines], int),
        "query": np.array([numbers.setdefault(line["query"], len(numbers)) for line in lines], int),
        "length": np.array([line["length"] for line in lines], int),
        "ppl": np.array([np.nan if line["ppl"] is None else line["ppl"] for line in lines], float),
    }


def select(
    lines: list[dict], *, seed: int, promote: dict, suppress: dict, baselines: int, most_tokens: int
) -> tuple[dict[str, dict[str, np.ndarray]], oxa.Bins, dict[str, Any]]:
    """{set: the chosen rows' columns}, the promoted set's bins, and the report of selection.json.

    The right responses longer than `most_tokens` are in no set (C.5: dropped in training).
    """
    numbers: dict[str, int] = {}
    pools = {name: columns([x for x in lines if x["pool"] == name], numbers) for name in (TEACHER, OWN)}
    right, wrong = pools[TEACHER], pools[OWN]
    right_ppl = np.where(right["length"] <= most_tokens, right["ppl"], np.nan)
    wrong_ppl = np.where(wrong["length"] <= suppress["most_tokens"], wrong["ppl"], np.nan)
    promote = dict(promote)
    quantile, inside = promote.pop("mu_quantile"), (right_ppl >= promote["low"]) & (right_ppl <= promote["high"])
    if not inside.any():
        raise UserError(
            f"config.promote.low={promote['low']}, high={promote['high']}: no right response of the teacher has a "
            f"perplexity in between; of {np.isfinite(right_ppl).sum()} the mean is {np.nanmean(right_ppl):.3g}"
        )
    if quantile is not None:
        promote["mu"] = oxa.mu_of(right_ppl, low=promote["low"], high=promote["high"], quantile=quantile)
    chosen, bins = oxa.promote_set(right_ppl, right["length"], right["query"], seed=seed, **promote)
    picks = {
        "promote": (right, chosen),
        "random": (right, oxa.random_set(right_ppl, total=baselines, seed=seed)),
        "low_ppl": (right, oxa.least_per_query(right_ppl, right["query"], total=baselines)),
        "suppress": (
            wrong,
            oxa.least_per_query(wrong_ppl, wrong["query"], total=suppress["total"], least_ppl=suppress["least_ppl"]),
        ),
    }
    sets = {name: {k: v[which] for k, v in pool.items()} for name, (pool, which) in picks.items()}
    report = {
        "mu": promote["mu"],
        "sigma": promote["sigma"],
        "short": int(bins.short.sum()),
        "missing": promote["total"] - len(chosen),
        "bins": [
            dict(low=lo, target=t, available=a, taken=n)
            for lo, t, a, n in zip(
                bins.edges.tolist(), bins.target.tolist(), bins.available.tolist(), bins.taken.tolist()
            )
            if t or a
        ],
        "pools": {name: dict(Counter(x["reason"] for x in lines if x["pool"] == name)) for name in pools},
        "sets": {
            name: {
                "rows": len(s["ppl"]),
                "queries": len(set(s["query"].tolist())),
                **({"ppl": float(s["ppl"].mean()), "length": float(s["length"].mean())} if len(s["ppl"]) else {}),
            }
            for name, s in sets.items()
        },
    }
    return sets, bins, report


def write_sets(log: RunLog, sets: dict, pools: dict[str, Iterable[Item]], *, chat: bool) -> None:
    """sets/NAME.jsonl in the order of the pools; a set without rows has no file."""
    if not is_main():
        return
    directory = log.workdir / "sets"
    patiently(f"make {directory}", lambda: directory.mkdir(parents=True, exist_ok=True))
    for pool, items in pools.items():
        names = [n for n, s in sets.items() if (n == "suppress") == (pool == OWN) and len(s["ppl"])]
        files = {n: (directory / f"{n}.jsonl.new").open("w") for n in names}
        place = {n: {int(i): k for k, i in enumerate(sets[n]["index"])} for n in names}
        for i, item in enumerate(items):
            for n in (n for n in names if i in place[n]):
                k = place[n][i]
                row = {
                    "query": query_of(item.problem),
                    "prompt": prompt_of(item.problem, chat),
                    "response": item.response,
                    "answer": item.problem.answer,
                    "ppl": float(sets[n]["ppl"][k]),
                    "length": int(sets[n]["length"][k]),
                }
                files[n].write(json.dumps(row, ensure_ascii=False) + "\n")
        for n, file in files.items():
            file.close()
            (directory / f"{n}.jsonl.new").replace(directory / f"{n}.jsonl")


def tell(log: RunLog, report: dict) -> None:
    """The sets' sizes on the terminal."""
    for name, s in report["sets"].items():
        told = f"{s['rows']} responses to {s['queries']} queries"
        log.say(f"{name}: {told}" + (f", perplexity {s['ppl']:.3f}, {s['length']:.0f} tokens" if s["rows"] else ""))
    if report["short"]:
        log.say(
            f"promote: bins lacked {report['short']} responses of their targets, {report['missing']} are missing after "
            "config.promote.refill" + (f" (mu {report['mu']:.3f})")
        )


# ---- the command


@all_errors()
def check(c: ConfigDict) -> None:
    """Refuse impossible values, naming the fields, before anything is loaded."""
    need_form("set.form", c.set.form)
    need(c.set.where in WHERE, "set.where", c.set.where, f"use one of {', '.join(WHERE)}")
    need(c.set.problems >= (not reads_set(c.set.form)), "set.problems", c.set.problems, "how many; 0 (all) of a file")
    for field in ("at_once", "most_tokens", "score_tokens", "baselines"):
        need(c[field] >= 1, field, c[field], "use 1 or more")
    for field in ("samples", "budget"):
        need(c.own[field] >= 1, f"own.{field}", c.own[field], "use 1 or more")
    p = c.promote
    try:
        oxa.bin_edges(p.low, p.high, p.width)
    except ValueError as error:
        need(False, "promote.width", p.width, str(error))
    need(p.sigma > 0, "promote.sigma", p.sigma, "must be above 0")
    need(p.mu_quantile is None or 0 <= p.mu_quantile <= 1, "promote.mu_quantile", p.mu_quantile, "0 to 1, None for mu")
    for field in ("total", "per_query"):
        need(p[field] >= 1, f"promote.{field}", p[field], "use 1 or more")
    check_sampling(c)


def main(config: ConfigDict, workdir: str) -> None:
    """Draw, measure, select."""
    check(config)
    keep_programs()
    log = RunLog(workdir, config.to_dict(), tensorboard=False, wandb="")
    common = dict(**config.set.to_dict(), seed=config.seed)
    own, chat = config.own.to_dict(), TASKS[config.set.form].chat
    prefix = own.pop("prefix")
    at_once, dtype = config.at_once, config.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    mesh = make_mesh(data=1, fsdp=-1, tensor=1)

    def teacher():
        return teacher_items(**common, responses=config.teacher.to_dict())

    problems = queries(teacher(), config.set.problems)
    if not problems:
        raise UserError(f"config.set.source={config.set.source!r} has no row with config.teacher.column")

    def mine():
        tokenizer = load_tokenizer(own["model"], config_of(own["model"]))
        return own_items(log, problems, tokenizer, samples=own["samples"], at_once=at_once, prefix=prefix)

    with jax.set_mesh(mesh):
        sampling = Sampling(**config.sampler)
        draw_own(log, mesh, problems, **own, dtype=dtype, at_once=at_once, seed=config.seed, sampling=sampling)
        with GraderPool(**config.grader.to_dict()) as grader:
            log.say(f"loading {config.base}")
            base = load_pretrained(config.base, dtype=dtype, mesh=mesh)
            for name, items in ((TEACHER, teacher()), (OWN, mine())):
                measure(
                    log,
                    name,
                    items,
                    base,
                    grader,
                    right=name == TEACHER,
                    given_prompt=config.given_prompt,
                    chat=chat,
                    most_tokens=config.most_tokens,
                    score_tokens=config.score_tokens,
                    at_once=at_once,
                )
    lines = log.read("pool.jsonl")
    sets, bins, report = select(
        lines,
        seed=config.seed,
        promote=config.promote.to_dict(),
        suppress=config.suppress.to_dict(),
        baselines=config.baselines,
        most_tokens=config.most_tokens,
    )
    write_sets(log, sets, {TEACHER: teacher(), OWN: mine()}, chat=chat)
    drawn = perplexity_file(
        {name: s["ppl"] for name, s in sets.items()},
        bins.edges,
        bins.target,
        title=config.base[-48:],
        pool=np.array([x["ppl"] for x in lines if x["pool"] == TEACHER and x["ppl"] is not None]),
    )
    log.write({"selection.json": json.dumps(report, indent=1) + "\n", "selection.svg": drawn})
    tell(log, report)
    log.done()
    log.close()
    barrier("end")


if __name__ == "__main__":
    run_command(main)
