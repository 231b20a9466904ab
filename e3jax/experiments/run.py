"""The command: run an experiment, arms x seeds of ordinary runs, and write results.json, figures and a page.

    python -m e3jax.experiments.run --config=configs/experiments/mask.py --workdir=runs/experiments/mask

Every arm of every seed is a run directory of train/curriculum.py, WORKDIR/ARM/seed0. Base models are trained once per
seed in WORKDIR/../bases, which all experiments in that directory share. Arms may train on sets that
curation/oxa_sets.py makes with a base, WORKDIR/NAME/seed0. After a kill the same command continues. A run that fails is
left out and named at the end, and the same command tries it again. The rule is written to WORKDIR/rule.json before the
first run, and a directory with another rule is refused. WORKDIR/progress.log gets a line per minute.
"""

import copy
import json
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from etils import epath
from ml_collections import ConfigDict

from e3jax.errors import Stopped, UserError, first_line
from e3jax.eval import run as eval_run
from e3jax.experiments import ceiling, paper, read, results
from e3jax.experiments.plan import Node, check_experiment, plan
from e3jax.flags import run_command
from e3jax.lock import hold
from e3jax.log import claim, now
from e3jax.metrics.seeds import judge, verdict
from e3jax.printable import printable
from e3jax.readers import read_json
from e3jax.records import Records, read_lines
from e3jax.runtime import end_now, from_main
from e3jax.scaling import run as scaling_run
from e3jax.storage import place, read_whole, write_whole

TICK_S = 60.0
PARTS = "parts"  # of an experiment's directory: what calls with `part` keep for themselves
TIMES = {"name": str, "seed": int, "kind": str, "minutes": float}  # lines of times.jsonl
AFTER = {"evaluation": (eval_run, "eval"), "scaling": (scaling_run, "scaling")}  # section: its command, its directory


def state_rule(workdir: epath.Path, rule, level: float) -> None:
    """Write WORKDIR/rule.json before the first run, or refuse a directory that was begun with another rule."""
    path, content = workdir / "rule.json", json.loads(json.dumps({"level": level, "rule": list(rule)}))
    if not read_whole(path):
        write_whole(path, json.dumps({"stated": now(), **content}, indent=1) + "\n")
        return
    before = read_json(path, {"stated": str, **dict.fromkeys(content, object)}, advice="choose another --workdir")
    if {key: before[key] for key in content} != content:
        raise UserError(
            f"{path} states another rule, of {before['stated']}: a rule does not change after its runs have begun; "
            "choose another --workdir"
        )


class Progress:
    """How far the experiment is: a line on stdout when a run starts or fails, and one per minute in progress.log."""

    def __init__(self, workdir: epath.Path, nodes: list[Node], minutes: dict[str, float]):
        self.records, self.nodes, self.expected = Records(workdir), nodes, minutes
        self.now, self.since = None, time.monotonic()

    def times(self) -> list[dict]:
        """Return what the runs took, lines of times.jsonl."""
        return self.records.lines("times.jsonl", TIMES)

    def left(self, index: int) -> float:
        """Return the minutes from the start of run `index` to the end.

        A run is expected to take the mean of its kind so far, or what the config says if there is none yet.
        """
        known = {kind: [t["minutes"] for t in self.times() if t["kind"] == kind] for kind in self.expected}
        mean = {kind: sum(m) / len(m) if m else self.expected[kind] for kind, m in known.items()}
        return sum(mean[n.kind] for n in self.nodes[index:] if not n.done)

    def line(self) -> str:
        """Return the line of progress: which run, its last logged step, minutes so far and left."""
        index, node = self.now
        last = read.last_line(node.directory / "metrics.jsonl")
        at = f", {last['stage']} step {last['step']}" if last else ""
        minutes = (time.monotonic() - self.since) / 60
        left = max(self.left(index) - minutes, 0)
        return (
            f"{index + 1}/{len(self.nodes)} {node.name}, seed {node.seed}{at}: {minutes:.1f} min; {left:.0f} min left"
        )

    def say(self, text: str) -> None:
        """Print a line and add it to progress.log."""
        text = printable(text, lines=True)
        print(text, flush=True)
        self.records.add("progress.log", f"{now()} {text}\n")

    @contextmanager
    def running(self, index: int, node: Node) -> Iterator[None]:
        """Tell that a run begins, add a line per minute while it lasts, and record how long it took."""
        self.now, self.since, over = (index, node), time.monotonic(), threading.Event()

        def tick() -> None:
            while not over.wait(TICK_S):
                self.records.add("progress.log", f"{now()} {self.line()}\n")

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        self.say(f"{self.line()} (begins)")
        try:
            yield
        finally:
            over.set()
            thread.join()
        minutes = (time.monotonic() - self.since) / 60
        line = {"name": node.name, "seed": node.seed, "kind": node.kind, "minutes": minutes}
        self.records.append("times.jsonl", line)
        self.records.flush()


def run_all(nodes: list[Node], seed: int, progress: Progress) -> list[dict]:
    """Make every run of a seed that is not done and return those that failed. Stopped (SIGTERM) and Ctrl-C pass."""
    failed = []
    for index, node in enumerate(nodes):
        if node.seed != seed:
            continue
        broken = [f["arm"] for f in failed if f["arm"] in node.after]
        if broken:
            failed.append({"arm": node.name, "seed": node.seed, "why": f"{broken[0]} failed before it"})
            continue
        try:
            claim(place(node.directory), node.config.to_dict())  # refuses a finished run of another config
            if node.done:
                continue
            with progress.running(index, node):
                node.run()
        except Stopped:
            raise
        except Exception as error:  # whatever it is, the other arms are worth having
            progress.say(f"{node.name}, seed {node.seed} FAILED: {description(error)}")
            failed.append({"arm": node.name, "seed": node.seed, "why": first_line(error)})
    return failed


def description(error: Exception) -> str:
    """Return the message of a UserError, and of any other error, which is a bug, its traceback."""
    return str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))


def measure_all(c: ConfigDict, nodes: list[Node], workdir: epath.Path, seed: int, progress: Progress) -> list[dict]:
    """Run config.evaluation and config.scaling, where there are such, on a seed's finished models; return failures.

    The commands are eval/run.py (budget forcing) and scaling/run.py (E2C's judged plans). Runs without checkpoints were
    made elsewhere, and evaluated there (experiments/collect.py).
    """
    finished, failed = [n for n in nodes if n.seed == seed and n.done and n.kind != "sets"], []
    for section in (name for name in AFTER if c[name]):
        config, (command, directory) = copy.deepcopy(c[section]), AFTER[section]
        config.seed = seed
        config.models = tuple((n.name, str(n.checkpoint)) for n in finished)
        try:
            if finished and all(n.checkpoint.exists() for n in finished):
                command.main(config, str(workdir / directory / f"seed{seed}"))
        except Stopped:
            raise
        except Exception as error:
            progress.say(f"{section} of seed {seed} FAILED: {description(error)}")
            failed.append({"arm": section, "seed": seed, "why": first_line(error)})
    return failed


def collect(c: ConfigDict, nodes: list[Node], workdir: epath.Path) -> dict:
    """Return {arm: {seed: RunLines}} of finished runs. UserError for a copy of a run under another seed."""
    records, seen = {}, {}
    for n in nodes:
        if n.done and n.kind != "sets":
            twin = seen.setdefault(read.digest(n.directory), n.directory)
            if twin != n.directory:
                raise UserError(f"{n.directory} is a copy of {twin}, not another seed: remove it and run again")
            places = {name: workdir / directory / f"seed{n.seed}" for name, (_, directory) in AFTER.items()}
            lines = read.read_run(n.directory, label=n.name, forced=places["evaluation"], scaled=places["scaling"])
            records.setdefault(n.name, {})[n.seed] = lines
    return records


def draw(c: ConfigDict, records: dict, values: dict) -> list[dict]:
    """Return the figures of the config as data, without those that no run has numbers for yet."""
    of_values = {"against": read.against_figure, "pareto": read.pareto_figure}
    makers = {
        "curve": read.curve_figure,
        "budget": read.budget_figure,
        "pass_at_k": read.pass_at_k_figure,
        "forced": read.forced_figure,
        "scaled": read.scaled_figure,
        "tokens": ceiling.tokens_figure,
    }
    out = []
    for spec in c.figures:
        spec = dict(spec)
        kind = spec.pop("kind")
        figure = of_values[kind](values, **spec) if kind in of_values else makers[kind](records, **spec)
        out += [figure] if figure["lines"] else []
    return out


def conclude(c: ConfigDict, nodes: list[Node], workdir: epath.Path, *, failed: list[dict], command: str) -> dict:
    """Write results.json and the figures of whatever is finished, and return the results."""
    records = collect(c, nodes, workdir)
    names = [*c.bases, *c.arms]
    values = {
        m: {a: {s: read.value(r, spec.read) for s, r in records.get(a, {}).items()} for a in names}
        for m, spec in c.measures.items()
    }
    about = {name: "the base model" for name in c.bases} | {name: arm.says for name, arm in c.arms.items()}
    tables = []
    if c.choice:
        tables = [choose_budgets(c, records, values)]
        about |= {
            "chosen": f"Eq. 2's budget with kappa {c.choice.kappa}",
            "half": "the budget below",
            "double": "the one above",
        }
    if c.fit:
        tables.append(ceiling.table(records, **c.fit.to_dict(), level=c.level))
    rule = [judge(dict(s), values, seeds=c.seeds, level=c.level) for s in c.rule]
    enough = any(len(row["values"]) > 1 for row in rule)
    places = [workdir, *sorted((workdir / PARTS).glob("*"))]
    times = [line for place in places for line in read_lines(place / "times.jsonl", TIMES)]
    content = {
        "name": c.name,
        "paper": c.paper,
        "claim": c.claim,
        "command": command,
        "setting": f"{c.setting} Bands in the figures: from the least to the greatest seed.",
        "minutes": sum(t["minutes"] for t in times) if times else None,
        "seeds": list(c.seeds),
        "level": c.level,
        "arms": about,
        "measures": {m: {"says": spec.says, "percent": spec.percent} for m, spec in c.measures.items()},
        "values": values,
        "rule": rule,
        "figures": draw(c, records, values),
        "tables": tables,
        "failed": failed,
        "verdict": verdict([row["outcome"] for row in rule]) if enough else "not decided",
    }
    path = results.write(workdir, content)
    for i, figure in enumerate(content["figures"]):
        write_whole(workdir / f"figure{i}.svg", paper.figure_file(figure))
    return results.read(path)


def choose_budgets(c: ConfigDict, records: dict, values: dict) -> dict:
    """Add Eq. 2's choice and its neighbours to `values` as arms, and return the table of its choices by kappa."""
    choice = c.choice.to_dict()
    arms, kappa = {int(b): arm for b, arm in choice.pop("arms")}, choice.pop("kappa")
    rows = read.choices(records, **choice)
    read.add_choice(values, {seed: b for seed, k, b, _ in rows if k == kappa}, arms=arms)
    return {
        "title": "Eq. 2 by kappa",
        "header": ["seed", "kappa", "budget", "J(2B) / J(B)"],
        "rows": [[*map(str, row[:3]), ", ".join(f"{b}: {x:.2f}" for b, x in row[3].items())] for row in rows],
    }


def main(c: ConfigDict, workdir: str) -> None:
    """Make all runs and write the results. UserError at the end if a run failed."""
    check_experiment(c)
    workdir = place(workdir)
    nodes = plan(c, workdir)
    own = workdir / PARTS / "-".join(map(str, c.seeds)) if c.part else workdir
    from_main(lambda: hold(own, say=print, lost=end_now) and None)  # holds this directory; each run holds its own
    state_rule(workdir, c.rule, c.level)
    command = shlex.join(["python", "-m", "e3jax.experiments.run", *sys.argv[1:]])
    progress, failed = Progress(own, nodes, c.minutes.to_dict()), []
    progress.say(f"{c.name}: {len(nodes)} runs, about {progress.left(0):.0f} min")
    for seed in c.seeds:  # results after every seed, because the first ones are worth a look
        failed += run_all(nodes, seed, progress)
        failed += measure_all(c, nodes, workdir, seed, progress)
        if not c.part:
            outcome = conclude(c, nodes, workdir, failed=failed, command=command)
    if c.part:
        progress.say(f"{c.name}: seeds {', '.join(map(str, c.seeds))} are made; the command without `part` collects")
    else:
        paper.write_page([str(workdir)], workdir / "page.html")
        progress.say(f"{c.name}: {outcome['verdict']}; {workdir / 'page.html'}")
    progress.records.flush()
    if failed:
        names = ", ".join(f"{f['arm']} of seed {f['seed']}" for f in failed)
        raise UserError(f"{c.name}: {len(failed)} of {len(nodes)} runs failed ({names}); the same command tries again")


if __name__ == "__main__":
    run_command(main)
