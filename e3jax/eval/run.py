"""The command: checkpoints on problem sets, one long generation each, scored at every budget.

    python -m e3jax.eval.run --config=configs/eval_math.py --workdir=runs/eval
    python -m e3jax.eval.run --config=configs/eval_countdown.py:runs/quickstart/checkpoints/hard/40 --workdir=runs/eval

Killed anywhere, the same command draws the responses that are missing and ends with the same numbers: a response's
noise is a function of (seed, set, problem, sample) alone. So `problems` and `samples` of a set may change from call to
call: what is there is kept, and the numbers are those of one call. Of a set that was edited, changed answers are graded
again, and changed questions are refused. RUN then holds responses/MODEL/SET/ (every response),
problems.jsonl, forced.jsonl, eval.jsonl (`stage` is the model's label: report/html.py reads it as a run's), table1.*,
table3.*, extrapolation-SET.svg. A model may be added to `config.models` later, a set to `config.only`.
"""

import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from e3jax.checkpoint.pretrained import Pretrained, load_pretrained
from e3jax.errors import Stopped, UserError, all_errors, need, need_seed
from e3jax.eval import tables
from e3jax.eval.budgets import Trace, continued, force, reopened, thought
from e3jax.eval.digests import is_scored, what_was_scored
from e3jax.eval.responses import Asked, Responses, fill
from e3jax.eval.scoring import by_problem, count, record, score_traces, summary
from e3jax.flags import keep_programs, run_command
from e3jax.log import RunLog
from e3jax.report.files import extrapolation_file
from e3jax.rewards.extract import WHERE
from e3jax.rewards.grade import nothing_read
from e3jax.rewards.pool import GraderPool
from e3jax.runtime import barrier, stop_asked, unless_stopped
from e3jax.sampler.layout import sampling
from e3jax.sharding import make_mesh
from e3jax.tasks.problem import Problem
from e3jax.tasks.prompts import qwen3_chat
from e3jax.tasks.sets import chosen_sets
from e3jax.tasks.stream import FIELDS, open_stream


class Bench(NamedTuple):
    """One model on one set, ready to be asked."""

    label: str
    name: str  # of the set
    pretrained: Pretrained
    problems: list[Problem]
    prompts: list[list[int]]
    responses: Responses
    key: jax.Array
    sampler: dict[str, Any]
    log: RunLog

    def draw(self, part: str, asked: list[Asked], stop) -> None:
        """What is missing of one part, with progress; Stopped after SIGTERM."""
        total = sum(len(a.samples) for a in asked)
        left = sum(len(a.samples) for a in self.responses.missing(part, asked))
        where = f"{self.label}, {self.name}: {part}"
        if not left:
            return
        with self.log.phase(where, total=total) as phase:
            phase.advance(total - left, f"{total - left} were there" if left < total else None)
            tokens = 0

            def heard(finished: int, drawn: int) -> None:
                nonlocal tokens
                tokens += drawn
                phase.advance(finished, f"{tokens:,} tokens drawn")
                if stop_asked():
                    raise Stopped(f"{where}, {phase.done} of {total} responses are kept")

            fill(
                self.responses, part, asked, *self.pretrained, ids=[p.id for p in self.problems], key=self.key,
                stop=stop, on_finished=heard, **self.sampler,
            )  # fmt: skip


def load_problems(*, form: str, source, prompt: str, problems: int, where: str, seed: int) -> list[Problem]:
    """The first problems (0: all of a set) of one of config.sets; without a chat template, which is the model's.

    `where` says where the grader looks for a boxed answer (rewards/extract.py); Countdown has none.
    """
    draw = open_stream(form, source, seed=seed, split="test", prompt=prompt, chat=str, where=where)
    return draw(0, problems or sys.maxsize)


def in_chat(problem: Problem, tokenizer, *, thinking: bool, chat: str = "template") -> Problem:
    """The problem as a user's turn (`user_turn`); raw for Countdown (A.3)."""
    if problem.task.startswith("countdown"):
        return problem
    return replace(problem, question=user_turn(problem.question, tokenizer, thinking=thinking, chat=chat))


def user_turn(words: str, tokenizer, *, thinking: bool, chat: str) -> str:
    """Words in the model's chat template; as they are where there is none.

    `chat` "plain" is Qwen's form without a system prompt, whatever the template says (OXA's models).
    """
    if chat == "plain":
        return qwen3_chat(words)
    return tokenizer.chat_text(words, thinking=thinking) if tokenizer.has_chat else words


def make_bench(label: str, name: str, pretrained: Pretrained, problems: list[Problem], *, longest: int, seed: int,
               sampler: dict, log: RunLog) -> Bench:  # fmt: skip
    """Prompts, and the responses that are there already; UserError when prompt and budget do not fit the model."""
    prompts = [pretrained.tokenizer.encode(p.question) for p in problems]
    most = max(range(len(prompts)), key=lambda p: len(prompts[p]))
    room = pretrained.model.config.max_length - len(prompts[most])
    if longest > room:
        raise UserError(
            f"{label}, {name}: problem {problems[most].id} has a prompt of {len(prompts[most])} tokens, which leaves "
            f"{room} of the model's length: {longest} are asked for, by config.budgets or config.budget with an answer"
        )
    responses = Responses(log.workdir / "responses" / label / name)
    check_responses(responses, problems, prompts, log)
    barrier(f"read {label} {name}")  # before process 0 writes more
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return Bench(label, name, pretrained, problems, prompts, responses, key, sampler, log)


def check_responses(responses: Responses, problems: list[Problem], prompts: list[list[int]], log: RunLog) -> None:
    """Raise UserError for responses to other questions than these; say it where that cannot be known."""
    undated = responses.check([p.id for p in problems], prompts)
    if undated:
        log.say(
            f"{responses.directory}: responses to {undated} problems were kept before digests of the questions were: "
            "they are taken for answers to the questions as they are now"
        )


def ask_all(bench: Bench, *, samples: int, longest: int) -> None:
    """The one long generation: `samples` responses per problem."""
    numbers = tuple(range(samples))
    asked = [Asked(p, numbers, prompt, longest) for p, prompt in enumerate(bench.prompts)]
    bench.draw("response", asked, bench.pretrained.tokenizer.stop)


def go_on(
    bench: Bench, part: str, traces: dict[tuple[int, int], Trace], *, budget: int, longest: int, close, stop
) -> dict[tuple[int, int], Trace]:  # fmt: skip
    """Every trace that is not done, continued by up to `budget` tokens, `longest` in all, and the model's length."""
    most = {p: min(longest, bench.pretrained.model.config.max_length - len(x)) for p, x in enumerate(bench.prompts)}
    room = {k: min(budget, most[k[0]] - len(t.tokens)) for k, t in traces.items() if not t.done}
    asked = [Asked(p, (g,), [*bench.prompts[p], *traces[p, g].tokens], n) for (p, g), n in room.items() if n > 0]
    bench.draw(part, asked, stop)
    drawn = {(a.problem, g): bench.responses.known[part, a.problem, g] for a in asked for g in a.samples}
    ends = bench.pretrained.tokenizer.stop
    return {k: continued(t, drawn[k], close=close, stop=ends) if k in drawn else t for k, t in traces.items()}


def forced(
    bench: Bench, *, longest: int, samples: int, close: str, early_stop, sentence: str, answer: int, wait, phrases,
    thinking: int, extension: int,
) -> Iterator[tuple[str, dict[tuple[int, int], Trace]]]:  # fmt: skip
    """(name, traces of the first `samples` samples of each problem) for every way of forcing that the config asks for.

    "stop-T": thinking that has not ended after T tokens gets `sentence` (which closes it) and `answer` tokens more.
    "wait-N": N times, at the end of its thinking or after `extension` tokens, a response gets the next of `phrases`
    instead; the first thinking has `thinking` tokens. Then it may finish. Nothing gets longer than `longest` tokens.
    """
    if not early_stop and not wait:
        return
    tokenizer = bench.pretrained.tokenizer
    close = tuple(tokenizer.encode(close))
    known = {(p, g): bench.responses.known["response", p, g] for p in range(len(bench.prompts)) for g in range(samples)}
    common = dict(close=close, longest=longest)
    for most in early_stop:
        traces = {k: thought(r, close=close, budget=most) for k, r in known.items()}
        opened = {k: force(t, tokenizer.encode(sentence)) for k, t in traces.items() if not t.closed}
        name = f"stop-{most}"
        answered = go_on(
            bench, name, opened, budget=answer, stop=tokenizer.stop, **common | {"longest": longest + answer}
        )
        whole = {k: Trace(r.tokens, 0, 0, r.done, True) for k, r in known.items()}
        yield name, whole | answered
    traces = {k: thought(r, close=close, budget=thinking) for k, r in known.items()}
    for n in range(1, max(wait, default=0) + 1):
        words = tokenizer.encode(phrases[(n - 1) % len(phrases)])
        again = {k: force(reopened(t, close=close, stop=tokenizer.stop), words) for k, t in traces.items()}
        again = {k: t if len(t.tokens) < longest else traces[k] for k, t in again.items()}  # no room to say more
        traces = go_on(bench, f"wait-{n}", again, budget=extension, stop=(close, *tokenizer.stop), **common)
        if n in wait:
            yield f"wait-{n}", go_on(bench, f"wait-{n}-end", traces, budget=longest, stop=tokenizer.stop, **common)


def evaluate(
    bench: Bench, grader: GraderPool, *, checkpoint: str, samples: int, budgets, pass_ks, forcing: dict, about: dict
) -> None:  # fmt: skip
    """Draw, grade, and write this model's and set's lines; `about` is what else the line in eval.jsonl says."""
    longest = max(budgets)
    ask_all(bench, samples=samples, longest=longest)
    decode, known = bench.pretrained.tokenizer.decode, bench.responses.known
    where = f"{bench.label}, {bench.name}"
    with bench.log.phase(f"{where}: grading", total=len(bench.problems) * samples) as phase:
        counts = count(
            bench.problems, by_problem(known, "response", len(bench.problems), range(samples)), decode=decode,
            grade=grader.submit, budgets=budgets, on_graded=unless_stopped(phase.advance, f"{where}, grading"),
        )  # fmt: skip
    fields = {f"{field}_field": f"config.sets.{bench.name}.{field}" for field in ("where", "prompt")}
    if unread := nothing_read([reason for c in counts for reason in c.reasons], bench.problems, **fields):
        bench.log.say(f"{where}: {unread}")
    forcing_lines, traces_of = {}, []
    for how, traces in forced(bench, longest=longest, **forcing):
        forcing_lines[how], lines = score_traces(bench.problems, traces, decode=decode, grade=grader.submit)
        traces_of += [{"how": how, **line} for line in lines]
    of = {"stage": bench.label, "set": bench.name}
    for name, lines in (("problems.jsonl", [record(c, budgets) for c in counts]), ("forced.jsonl", traces_of)):
        bench.log.keep(name, lambda old: (old["stage"], old["set"]) != (bench.label, bench.name))
        for line in lines:
            bench.log.append(name, of | line)
    line = summary(counts, budgets=budgets, pass_ks=pass_ks) | {"forcing": forcing_lines}
    bench.log.append("eval.jsonl", of | {"checkpoint": checkpoint, "train_budget": None} | about | line)
    bench.log.flush()


@all_errors()
def check(c: ConfigDict) -> None:
    """Refuse impossible values, naming the fields, before anything is loaded."""
    check_models_and_sets(c)
    check_sampling(c)
    rising(c, "budgets")
    rising(c, "pass_ks")
    sets = chosen_sets(c.sets, c.only)
    for name, one in sets.items():
        fewest = min(c.pass_ks, default=1)
        need(one.samples >= fewest, f"sets[{name!r}].samples", one.samples, f"{fewest} or more")
    f = c.forcing
    least = min((one.samples for one in sets.values()), default=1)
    need(1 <= f.samples <= least or not (f.early_stop or f.wait), "forcing.samples", f.samples,
         f"1 to {least}, the fewest of a set")  # fmt: skip
    for field in ("early_stop", "wait"):
        need(all(n >= 1 for n in f[field]), f"forcing.{field}", tuple(f[field]), "1 or more each; () is off")
    need(all(n <= max(c.budgets) for n in f.early_stop), "forcing.early_stop", tuple(f.early_stop),
         f"within the longest of budgets, {max(c.budgets)}")  # fmt: skip
    need(len(f.phrases) > 0, "forcing.phrases", f.phrases, "name at least one")
    for name in ("answer", "thinking", "extension"):
        need(f[name] >= 1, f"forcing.{name}", f[name], "use 1 or more")
    need(c.chat in ("template", "plain"), "chat", c.chat, "use 'template' or 'plain'")
    choices = ", ".join(map(repr, tables.PASS_AT_K))
    need(c.pass_at_k in tables.PASS_AT_K, "pass_at_k", c.pass_at_k, f"use one of {choices}")


@all_errors()
def check_models_and_sets(c: ConfigDict) -> None:
    """`models` and `sets`: labels that can be directories, fields with a meaning."""
    models = list(c.models)
    right = all(
        isinstance(m, tuple | list) and len(m) == 2 and all(isinstance(x, str) and x for x in m) for m in models
    )
    right = need(len(models) > 0 and right, "models", c.models, "name at least one (label, checkpoint)")
    for field, labels in (("models", [label for label, _ in models] if right else ["-"]), ("sets", list(c.sets))):
        need(len(labels) > 0 and len(set(labels)) == len(labels), field, labels, "name at least one, each once")
        for label in labels:
            need("/" not in label and not label.startswith("."), field, label, "a label is a directory's name too")
    for name, one in chosen_sets(c.sets, c.only).items():
        need(one.form in FIELDS, f"sets[{name!r}].form", one.form, f"use one of {', '.join(map(repr, FIELDS))}")
        need(one.where in WHERE, f"sets[{name!r}].where", one.where, f"use one of {', '.join(map(repr, WHERE))}")
        least = int(one.form in FIELDS and one.form != "math")
        need(one.problems >= least, f"sets[{name!r}].problems", one.problems, "how many; 0 (all) of a set with an end")
        need(one.samples >= 1, f"sets[{name!r}].samples", one.samples, "use 1 or more; config.only names some sets")


@all_errors()
def rising(c: ConfigDict, field: str) -> None:
    """A tuple of numbers, 1 or more, that rise."""
    values = list(c[field])
    right = len(values) > 0 and all(isinstance(n, int) and n >= 1 for n in values)
    need(right, field, values, "name at least one, each 1 or more")
    need(not right or values == sorted(set(values)), field, values, "must rise")


@all_errors()
def check_sampling(c: ConfigDict) -> None:
    """`sampler` and `grader` of a command that draws responses."""
    s, devices = c.sampler, len(jax.devices())
    need_seed(c.seed)
    need(s.temperature >= 0, "sampler.temperature", s.temperature, "0 (the likeliest token) or more")
    need(0 < s.top_p <= 1, "sampler.top_p", s.top_p, "above 0, 1 is off")
    need(s.top_k >= 0, "sampler.top_k", s.top_k, "0 (off) or more")
    divides = s.tensor >= 1 and devices % s.tensor == 0
    need(divides, "sampler.tensor", s.tensor, f"must divide {devices} devices")
    groups = devices // s.tensor if divides else 1
    for name in ("slots", "prefill_rows"):
        need(s[name] >= 1 and s[name] % groups == 0, f"sampler.{name}", s[name], f"a multiple of {groups}")
    need(s.block >= 1, "sampler.block", s.block, "use 1 or more")
    need(c.grader.workers >= 1, "grader.workers", c.grader.workers, "use 1 or more")


def show(log: RunLog, lines: list[dict], order: list[str], train_budget: int, pass_at_k: str) -> None:
    """Tables on the terminal and as files, and an extrapolation figure per set (Fig. 8)."""
    measure = tables.PASS_AT_K[pass_at_k]
    lines = sorted((x for x in lines if x["stage"] in order), key=lambda x: order.index(x["stage"]))
    grids = {
        "table1": tables.table_1(lines, measure), "majority": tables.table_1(lines, "maj_at_k"),
        "table3": tables.table_3(lines), "forced": tables.table_forced(lines),
    }  # fmt: skip
    files = {}
    for name, grid in grids.items():
        if len(grid) > 1:
            files |= {f"{name}.md": tables.markdown(grid), f"{name}.csv": tables.comma_separated(grid)}
    for name in sorted({line["set"] for line in lines}):
        own = [line for line in lines if line["set"] == name]
        for of in (measure, "maj_at_k"):  # sets side by side would be too wide
            header, *rows = tables.table_1(own, of)
            grid = [[column.removeprefix(f"{name} ") for column in header], *rows]
            log.console.print(tables.terminal(grid, f"{name}: {of.replace('_at_', '@', 1)} [%] at the longest budget"))
        files[f"extrapolation-{name}.svg"] = extrapolation_file(own, order=order, title=name, train_budget=train_budget)
    log.console.print(tables.terminal(grids["table3"], "accuracy [%] by test budget [tokens] (Table 3)"))
    if len(grids["forced"]) > 1:
        log.console.print(tables.terminal(grids["forced"], "budget forcing (App. I)"))
    log.write(files)
    log.say(f"numbers, tables and figures: {log.workdir}")


def load_sets(c: ConfigDict) -> dict[str, list[Problem]]:
    """The problems of the sets that config.only names, all of config.sets for ""."""
    chosen = chosen_sets(c.sets.to_dict(), c.only)
    sets = {name: {k: v for k, v in one.items() if k != "samples"} for name, one in chosen.items()}
    return {name: load_problems(**one, seed=c.seed) for name, one in sets.items()}


def each_bench(
    c: ConfigDict, log: RunLog, record: str, problems: dict[str, list[Problem]], *, longest: int
) -> Iterator[tuple[Bench, str, int]]:
    """(bench, checkpoint, samples) of every model and set that `record` has no line of yet; models are loaded in turn.

    A line whose set has changed since (its "scored") is dropped, and the set comes again. The sampling mesh is set
    while a bench is at work. UserError for a label that means another checkpoint in `record`.
    """
    models = dict(c.models)
    sampler = c.sampler.to_dict()
    tensor = sampler.pop("tensor")
    sampler["groups"] = len(jax.devices()) // tensor
    mesh = make_mesh(data=1, fsdp=-1, tensor=1)
    known = {(line["stage"], line["set"]): line for line in log.read(record)}
    for (label, _), line in known.items():
        if label in models and models[label] != line["checkpoint"]:
            raise UserError(
                f"{log.workdir} holds model {label!r} as {line['checkpoint']}, config.models has {models[label]}: give "
                "it another label"
            )
    for label, checkpoint in models.items():
        todo = [name for name in problems if not is_scored(
            log, known, label, name, problems[name], samples=c.sets[name].samples
        )]  # fmt: skip
        if not todo:
            continue
        log.say(f"loading {label}: {checkpoint}")
        with jax.set_mesh(mesh):
            model, params, tokenizer = load_pretrained(checkpoint, dtype=dtype_of(c), mesh=mesh)
            with sampling(params, tensor=tensor, dtype=model.dtype) as params:
                for name in todo:
                    bench = make_bench(
                        label, name, Pretrained(model, params, tokenizer),
                        [in_chat(p, tokenizer, thinking=c.thinking, chat=c.chat) for p in problems[name]],
                        longest=longest, seed=c.seed, sampler=sampler, log=log,
                    )  # fmt: skip
                    log.keep(record, lambda old, n=name, m=label: (old["stage"], old["set"]) != (m, n))
                    yield bench, checkpoint, c.sets[name].samples


def dtype_of(c: ConfigDict) -> str:
    """Of weights and cache, as config.dtype says."""
    return c.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")


def main(config: ConfigDict, workdir: str) -> None:
    """All models of the config on all its sets; what eval.jsonl already has is left out."""
    check(config)
    keep_programs()
    problems = load_sets(config)
    log = RunLog(workdir, config.to_dict(), tensorboard=False, wandb="")
    forcing = config.forcing.to_dict()
    limits = {name: config.sampler[name] for name in ("temperature", "top_k", "top_p")}
    with GraderPool(**config.grader.to_dict()) as grader:
        for bench, checkpoint, samples in each_bench(config, log, "eval.jsonl", problems, longest=max(config.budgets)):
            evaluate(
                bench, grader, checkpoint=checkpoint, samples=samples, budgets=tuple(config.budgets),
                pass_ks=[k for k in config.pass_ks if k <= samples], forcing=forcing,
                about=limits | {"scored": what_was_scored(problems[bench.name], samples)},
            )  # fmt: skip
    show(log, log.read("eval.jsonl"), list(dict(config.models)), config.train_budget, config.pass_at_k)
    log.done()
    log.close()
    barrier("end")


if __name__ == "__main__":
    run_command(main)
