"""The command: checkpoints on problem sets, one long generation each, scored at every budget.

    python -m e3jax.eval.run --config=configs/eval_math.py --workdir=runs/eval
    python -m e3jax.eval.run --config=configs/eval_countdown.py:runs/quickstart/checkpoints/hard/40 --workdir=runs/eval

Killed anywhere, the same command draws the responses that are missing and ends with the same numbers: a response's
noise is a function of (seed, set, problem, sample) alone. So `problems` and `samples` of a set may change from call to
call: responses on disk are kept, and the numbers are those of one call. Where a set was edited, or a file of
config.reward, what was kept is graded again; changed questions are refused. RUN then holds responses/MODEL/SET/ (every
response), problems.jsonl, forced.jsonl, eval.jsonl (`stage` is the model's label: report/html.py reads it as a run's),
table1.*, table3.*, extrapolation-SET.svg. A model may be added to `config.models` later, a set to `config.only`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from ml_collections import ConfigDict

from e3jax.errors import all_errors, need, need_at_least_one, section
from e3jax.eval import tables
from e3jax.eval.forcing import Trace, continued, force, reopened, thought
from e3jax.eval.scoring import by_problem, count, mean_interval, record, score_traces, summary, turn_means
from e3jax.flags import run_command
from e3jax.log import RunLog
from e3jax.report.files import extrapolation_file
from e3jax.rewards.workers import GraderPool
from e3jax.rollout.bench import Bench, Benches, benches_of, evaluation_command, need_rising, sample_all
from e3jax.rollout.episodes import Turns
from e3jax.rollout.responses import Request
from e3jax.runtime import unless_stopped
from e3jax.tasks.grade import nothing_read

Traces = dict[tuple[int, int], Trace]  # (problem, sample) -> …


@dataclass(frozen=True)
class Forcing:
    """A config's `forcing` section: how responses are made to stop and answer, or to think on."""

    early_stop: tuple[int, ...]  # tokens of thinking after which it is ended; () is off
    sentence: str  # put there: it closes the thinking
    answer: int  # tokens of the answer behind it
    wait: tuple[int, ...]  # how many times the end of the thinking is replaced; () is off
    phrases: tuple[str, ...]  # what replaces it, in turn
    thinking: int  # tokens of the first thinking
    extension: int  # tokens of each further one
    close: str  # ends the thinking
    samples: int  # the first so many of each problem are forced

    def __post_init__(self):
        for field, values in (("early_stop", self.early_stop), ("wait", self.wait)):
            need(all(n >= 1 for n in values), field, tuple(values), "1 or more each; () is off")
        need(len(self.phrases) > 0, "phrases", self.phrases, "name at least one")
        need_at_least_one(self, "answer", "thinking", "extension")


@dataclass(frozen=True)
class Settings:
    """A config of this command."""

    benches: Benches
    budgets: tuple[int, ...]  # the last is generated, the others are cuts of it
    pass_ks: tuple[int, ...]
    pass_at_k: str  # which estimate the tables have: a name of tables.PASS_AT_K
    train_budget: int  # drawn in the figures; 0: none
    forcing: Forcing
    turns: Turns  # config.environment

    def __post_init__(self):
        need_rising(self.budgets, "budgets")
        need_rising(self.pass_ks, "pass_ks")
        choices = ", ".join(map(repr, tables.PASS_AT_K))
        need(self.pass_at_k in tables.PASS_AT_K, "pass_at_k", self.pass_at_k, f"use one of {choices}")


@all_errors()
def check(c: ConfigDict) -> Settings:
    """Return what the config says; refuse impossible values, naming the fields, before anything is loaded."""
    benches = benches_of(c, reward=c.reward)
    with section("forcing.{}".format):
        forcing = Forcing(**c.forcing)
    with section("environment.{}".format):
        turns = Turns(**c.environment)
        forced = bool(forcing.early_stop or forcing.wait)
        allowed = "has no thinking that could be forced: set forcing.early_stop and forcing.wait to ()"
        need(not turns.file or not forced, "file", turns.file, allowed)
    settings = Settings(benches, tuple(c.budgets), tuple(c.pass_ks), c.pass_at_k, c.train_budget, forcing, turns)
    fewest, samples = min(c.pass_ks, default=1), {name: one.samples for name, one in benches.sets.items()}
    for name, n in samples.items():
        need(n >= fewest, f"sets[{name!r}].samples", n, f"{fewest} or more")
    least = min(samples.values(), default=1)
    need(
        1 <= forcing.samples <= least or not (forcing.early_stop or forcing.wait),
        "forcing.samples",
        forcing.samples,
        f"1 to {least}, the fewest of a set",
    )
    need(
        all(n <= max(c.budgets) for n in forcing.early_stop),
        "forcing.early_stop",
        tuple(forcing.early_stop),
        f"within the longest of budgets, {max(c.budgets)}",
    )
    return settings


# ---- forcing


def go_on(
    bench: Bench, part: str, traces: Traces, *, budget: int, longest: int, close: tuple[int, ...], stop: tuple
) -> Traces:
    """Return the traces, each that is not done continued by up to `budget` tokens.

    It gets no longer than `longest` tokens, and than the model's length.
    """
    most = {p: min(longest, bench.pretrained.model.config.max_length - len(x)) for p, x in enumerate(bench.prompts)}
    room = {k: min(budget, most[k[0]] - len(t.tokens)) for k, t in traces.items() if not t.done}
    requests = [Request(p, (g,), [*bench.prompts[p], *traces[p, g].tokens], n) for (p, g), n in room.items() if n > 0]
    bench.draw(part, requests, stop)
    drawn = {(r.problem, g): bench.responses.known[part, r.problem, g] for r in requests for g in r.samples}
    ends = bench.pretrained.tokenizer.stop
    return {k: continued(t, drawn[k], close=close, stop=ends) if k in drawn else t for k, t in traces.items()}


def forced(bench: Bench, forcing: Forcing, *, longest: int) -> Iterator[tuple[str, Traces]]:
    """Yield (name, traces of each problem's first samples) for every way of forcing that the config names.

    "stop-T": thinking that has not ended after T tokens gets `sentence` and an answer of `answer` tokens more.
    "wait-N": N times, at the end of its thinking or after `extension` tokens, a response gets the next of `phrases`
    instead; then it may finish. Nothing but the answer behind `sentence` goes beyond `longest` tokens.
    """
    if not forcing.early_stop and not forcing.wait:
        return
    close = tuple(bench.pretrained.tokenizer.encode(forcing.close))
    numbers, known = range(forcing.samples), bench.responses.known
    responses = {(p, g): known["response", p, g] for p in range(len(bench.prompts)) for g in numbers}
    yield from stopped_early(bench, forcing, responses, longest=longest, close=close)
    yield from made_to_wait(bench, forcing, responses, longest=longest, close=close)


def stopped_early(
    bench: Bench, forcing: Forcing, responses: dict, *, longest: int, close: tuple[int, ...]
) -> Iterator[tuple[str, Traces]]:
    """Yield "stop-T" for every budget of thinking: end the thinking there, and let the model answer."""
    tokenizer = bench.pretrained.tokenizer
    how = dict(budget=forcing.answer, longest=longest + forcing.answer, close=close, stop=tokenizer.stop)
    for most in forcing.early_stop:
        traces = {k: thought(r, close=close, budget=most) for k, r in responses.items()}
        opened = {k: force(t, tokenizer.encode(forcing.sentence)) for k, t in traces.items() if not t.closed}
        answered = go_on(bench, f"stop-{most}", opened, **how)
        whole = {k: Trace(r.tokens, 0, 0, r.done, True) for k, r in responses.items()}
        yield f"stop-{most}", whole | answered


def made_to_wait(
    bench: Bench, forcing: Forcing, responses: dict, *, longest: int, close: tuple[int, ...]
) -> Iterator[tuple[str, Traces]]:
    """Yield "wait-N" for every N: N times put a phrase in the place of the thinking's end, then let it finish."""
    tokenizer, common = bench.pretrained.tokenizer, dict(close=close, longest=longest)
    traces = {k: thought(r, close=close, budget=forcing.thinking) for k, r in responses.items()}
    for n in range(1, max(forcing.wait, default=0) + 1):
        words = tokenizer.encode(forcing.phrases[(n - 1) % len(forcing.phrases)])
        again = {k: force(reopened(t, close=close, stop=tokenizer.stop), words) for k, t in traces.items()}
        again = {k: t if len(t.tokens) < longest else traces[k] for k, t in again.items()}  # no room to say more
        traces = go_on(bench, f"wait-{n}", again, budget=forcing.extension, stop=(close, *tokenizer.stop), **common)
        if n in forcing.wait:
            yield f"wait-{n}", go_on(bench, f"wait-{n}-end", traces, budget=longest, stop=tokenizer.stop, **common)


# ---- the command


def evaluate(bench: Bench, grader: GraderPool, settings: Settings) -> None:
    """Sample, grade, and write this model's and set's lines."""
    budgets, longest = settings.budgets, max(settings.budgets)
    sample_all(bench, longest=longest)
    decode, where = bench.pretrained.tokenizer.decode, f"{bench.label}, {bench.name}"
    responses = by_problem(bench.responses.known, "response", len(bench.problems), range(bench.samples))
    with bench.log.phase(f"{where}: grading", total=len(bench.problems) * bench.samples) as phase:
        counts = count(
            bench.problems,
            responses,
            decode=decode,
            grade=grader.submit,
            budgets=budgets,
            on_graded=unless_stopped(phase.advance, f"{where}, grading"),
            turns=bench.sampling.environment is not None,
        )
    fields = {f"{field}_field": f"config.sets.{bench.name}.{field}" for field in ("where", "prompt")}
    if unread := nothing_read([reason for c in counts for reason in c.reasons], bench.problems, **fields):
        bench.log.say(f"{where}: {unread}")
    forcing_lines, traces_of = {}, []
    for how, traces in forced(bench, settings.forcing, longest=longest):
        forcing_lines[how], lines = score_traces(bench.problems, traces, decode=decode, grade=grader.submit)
        traces_of += [{"how": how, **line} for line in lines]
    for name, lines in (("problems.jsonl", [record(c, budgets) for c in counts]), ("forced.jsonl", traces_of)):
        bench.drop_lines(name)
        for line in lines:
            bench.log.append(name, bench.names | line)
    limits = {name: getattr(bench.sampling, name) for name in ("temperature", "top_k", "top_p")}
    about = {"checkpoint": bench.checkpoint, "train_budget": None} | limits | {"scored": bench.scored}
    pass_ks = [k for k in settings.pass_ks if k <= bench.samples]
    line = summary(counts, budgets=budgets, pass_ks=pass_ks) | {"forcing": forcing_lines}
    if settings.benches.reward:
        line["reward"] = mean_interval(np.array([c.score_g.mean() for c in counts]))
    if bench.sampling.environment is not None:
        line["explore"] |= turn_means(list(chain(*responses)))
    bench.log.append("eval.jsonl", bench.names | about | line)
    bench.log.flush()


def show(log: RunLog, settings: Settings) -> None:
    """Write tables, on the terminal too, and an extrapolation figure per set (e3 Fig. 8)."""
    measure, order = tables.PASS_AT_K[settings.pass_at_k], list(settings.benches.models)
    lines = sorted((x for x in log.read("eval.jsonl") if x["stage"] in order), key=lambda x: order.index(x["stage"]))
    grids = {
        "table1": tables.table_1(lines, measure),
        "majority": tables.table_1(lines, "maj_at_k"),
        "table3": tables.table_3(lines),
        "forced": tables.table_forced(lines),
    }
    files = {}
    for name, grid in grids.items():
        if len(grid) > 1:
            files |= {f"{name}.md": tables.markdown(grid), f"{name}.csv": tables.comma_separated(grid)}
    for name in sorted({line["set"] for line in lines}):
        rows = [line for line in lines if line["set"] == name]
        for of in (measure, "maj_at_k"):  # sets side by side would be too wide
            header, *others = tables.table_1(rows, of)
            grid = [[column.removeprefix(f"{name} ") for column in header], *others]
            log.console.print(tables.terminal(grid, f"{name}: {of.replace('_at_', '@', 1)} [%] at the longest budget"))
        files[f"extrapolation-{name}.svg"] = extrapolation_file(
            rows, order=order, title=name, train_budget=settings.train_budget
        )
    log.console.print(tables.terminal(grids["table3"], "accuracy [%] by test budget [tokens] (Table 3)"))
    if len(grids["forced"]) > 1:
        log.console.print(tables.terminal(grids["forced"], "budget forcing (App. I)"))
    log.write(files)
    log.say(f"numbers, tables and figures: {log.workdir}")


def main(config: ConfigDict, workdir: str) -> None:
    """Evaluate all models of the config on all its sets; what eval.jsonl already has is left out."""
    settings = check(config)
    evaluation_command(
        config,
        workdir,
        settings.benches,
        record="eval.jsonl",
        longest=max(settings.budgets),
        measure=partial(evaluate, settings=settings),
        show=lambda log, problems: show(log, settings),
        turns=settings.turns,
    )


if __name__ == "__main__":
    run_command(main)
