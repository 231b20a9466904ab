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

from collections.abc import Iterator

from ml_collections import ConfigDict

from e3jax.errors import all_errors, need
from e3jax.eval import tables
from e3jax.eval.forcing import Trace, continued, force, reopened, thought
from e3jax.eval.scoring import by_problem, count, record, score_traces, summary
from e3jax.flags import keep_programs, run_command
from e3jax.log import RunLog
from e3jax.report.files import extrapolation_file
from e3jax.rewards.workers import GraderPool
from e3jax.rollout.bench import Bench, ask_all, check_models_and_sets, check_sampling, each_bench, load_sets, rising
from e3jax.rollout.digests import what_was_scored
from e3jax.rollout.responses import Asked
from e3jax.runtime import barrier, unless_stopped
from e3jax.tasks.grade import nothing_read
from e3jax.tasks.sets import chosen_sets


def go_on(
    bench: Bench, part: str, traces: dict[tuple[int, int], Trace], *, budget: int, longest: int, close, stop
) -> dict[tuple[int, int], Trace]:
    """Every trace that is not done, continued by up to `budget` tokens, `longest` in all, and the model's length."""
    most = {p: min(longest, bench.pretrained.model.config.max_length - len(x)) for p, x in enumerate(bench.prompts)}
    room = {k: min(budget, most[k[0]] - len(t.tokens)) for k, t in traces.items() if not t.done}
    asked = [Asked(p, (g,), [*bench.prompts[p], *traces[p, g].tokens], n) for (p, g), n in room.items() if n > 0]
    bench.draw(part, asked, stop)
    drawn = {(a.problem, g): bench.responses.known[part, a.problem, g] for a in asked for g in a.samples}
    ends = bench.pretrained.tokenizer.stop
    return {k: continued(t, drawn[k], close=close, stop=ends) if k in drawn else t for k, t in traces.items()}


def forced(
    bench: Bench,
    *,
    longest: int,
    samples: int,
    close: str,
    early_stop,
    sentence: str,
    answer: int,
    wait,
    phrases,
    thinking: int,
    extension: int,
) -> Iterator[tuple[str, dict[tuple[int, int], Trace]]]:
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
) -> None:
    """Draw, grade, and write this model's and set's lines; `about` is what else the line in eval.jsonl says."""
    longest = max(budgets)
    ask_all(bench, samples=samples, longest=longest)
    decode, known = bench.pretrained.tokenizer.decode, bench.responses.known
    where = f"{bench.label}, {bench.name}"
    with bench.log.phase(f"{where}: grading", total=len(bench.problems) * samples) as phase:
        counts = count(
            bench.problems,
            by_problem(known, "response", len(bench.problems), range(samples)),
            decode=decode,
            grade=grader.submit,
            budgets=budgets,
            on_graded=unless_stopped(phase.advance, f"{where}, grading"),
        )
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
    need(
        1 <= f.samples <= least or not (f.early_stop or f.wait),
        "forcing.samples",
        f.samples,
        f"1 to {least}, the fewest of a set",
    )
    for field in ("early_stop", "wait"):
        need(all(n >= 1 for n in f[field]), f"forcing.{field}", tuple(f[field]), "1 or more each; () is off")
    need(
        all(n <= max(c.budgets) for n in f.early_stop),
        "forcing.early_stop",
        tuple(f.early_stop),
        f"within the longest of budgets, {max(c.budgets)}",
    )
    need(len(f.phrases) > 0, "forcing.phrases", f.phrases, "name at least one")
    for name in ("answer", "thinking", "extension"):
        need(f[name] >= 1, f"forcing.{name}", f[name], "use 1 or more")
    need(c.chat in ("template", "plain"), "chat", c.chat, "use 'template' or 'plain'")
    choices = ", ".join(map(repr, tables.PASS_AT_K))
    need(c.pass_at_k in tables.PASS_AT_K, "pass_at_k", c.pass_at_k, f"use one of {choices}")


def show(log: RunLog, lines: list[dict], order: list[str], train_budget: int, pass_at_k: str) -> None:
    """Tables on the terminal and as files, and an extrapolation figure per set (Fig. 8)."""
    measure = tables.PASS_AT_K[pass_at_k]
    lines = sorted((x for x in lines if x["stage"] in order), key=lambda x: order.index(x["stage"]))
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
                bench,
                grader,
                checkpoint=checkpoint,
                samples=samples,
                budgets=tuple(config.budgets),
                pass_ks=[k for k in config.pass_ks if k <= samples],
                forcing=forcing,
                about=limits | {"scored": what_was_scored(problems[bench.name], samples)},
            )
    show(log, log.read("eval.jsonl"), list(dict(config.models)), config.train_budget, config.pass_at_k)
    log.done()
    log.close()
    barrier("end")


if __name__ == "__main__":
    run_command(main)
