"""The command: an experiment, arms x seeds of ordinary runs, to results.json, figures and a page.

    python -m e3jax.experiments.run --config=configs/experiments/mask.py --workdir=runs/experiments/mask

Every arm of every seed is a run directory of train/curriculum.py, WORKDIR/ARM/seed0: killed anywhere, the same command
goes on. Base models are trained once per seed in WORKDIR/../bases, for all experiments beside each other. What fails is
left out, told at the end and tried again by the same command. The rule is written to WORKDIR/rule.json before the first
run, and a directory with another rule is refused. WORKDIR/progress.log gets a line a minute.
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
from typing import NamedTuple

from etils import epath
from ml_collections import ConfigDict

from e3jax.errors import Stopped, UserError, all_errors, first_line, need, need_seed
from e3jax.eval import run as eval_run
from e3jax.experiments import paper, read, results
from e3jax.flags import run_command
from e3jax.lock import hold
from e3jax.log import claim, now
from e3jax.metrics.seeds import KINDS, judge, verdict
from e3jax.printable import printable
from e3jax.readers import read_json
from e3jax.records import Records, read_lines
from e3jax.runtime import end_now, from_main
from e3jax.storage import place, read_whole, write_whole
from e3jax.train import curriculum
from e3jax.train.check import check

TICK_S = 60.0
TIMES = {"name": str, "seed": int, "kind": str, "minutes": float}  # lines of times.jsonl


class Node(NamedTuple):
    """One run to be made: an arm, or a base that arms start from."""

    name: str
    seed: int
    kind: str  # "base" or "arm"
    config: ConfigDict
    directory: epath.Path
    after: str  # the node that it starts from; "" for a base

    @property
    def checkpoint(self) -> epath.Path:
        """Its last one."""
        stage = self.config.order[-1]
        return self.directory / "checkpoints" / stage / str(self.config.stages[stage].steps)


def only_own_stages(config: ConfigDict) -> ConfigDict:
    """Without stages that do not run: a base is the same directory for experiments that go on differently."""
    with config.unlocked():
        config.stages = {name: config.stages[name] for name in config.order if name in config.stages}
    return config


def plan(c: ConfigDict, workdir: epath.Path) -> list[Node]:
    """All runs in order, seed by seed; every config checked. UserError before anything is trained."""
    nodes = []
    for seed in c.seeds:
        known = {}
        for name, base in c.bases.items():
            config = only_own_stages(copy.deepcopy(base))
            known[name] = Node(name, seed, "base", config, workdir.parent / "bases" / name / f"seed{seed}", "")
        for name, arm in c.arms.items():
            need(name not in known, f"arms.{name}", name, "this is a base's name")
            need(arm.after in known, f"arms.{name}.after", arm.after, f"use one of {sorted(known)}")
            above, config = known[arm.after], copy.deepcopy(c.bases[root_of(c, name)])
            config.lock()
            try:
                config.update(arm.change)
            except (KeyError, AttributeError, TypeError) as error:
                raise UserError(f"config.arms.{name}.change: {first_line(error)}") from error
            config.init.init_from = str(above.checkpoint)
            config = only_own_stages(config)
            known[name] = Node(name, seed, "arm", config, workdir / name / f"seed{seed}", arm.after)
        for node in known.values():
            node.config.seed = seed
            try:
                check(node.config)
            except UserError as error:
                raise UserError(f"{node.kind} {node.name}: {error}") from error
        nodes += known.values()
    return nodes


def root_of(c: ConfigDict, arm: str) -> str:
    """The base that an arm goes back to."""
    after = c.arms[arm].after
    return after if after in c.bases else root_of(c, after)


@all_errors()
def check_experiment(c: ConfigDict) -> None:
    """Seeds, measures and rule make sense before hours are spent."""
    need(len(c.seeds) > 0 and len(set(c.seeds)) == len(c.seeds), "seeds", tuple(c.seeds), "each once, at least one")
    for seed in c.seeds:
        need_seed(seed, "seeds")
    need(len(c.rule) > 0, "rule", c.rule, "state at least one")
    arms = {*c.bases, *c.arms, *(("chosen", "half", "double") if c.choice else ())}
    for name, measure in c.measures.items():
        need(measure.read[0] in read.FORMS, f"measures[{name!r}].read", measure.read, f"one of {read.FORMS}")
    for i, statement in enumerate(c.rule):
        unknown = {*statement["plus"], *statement["minus"]} - arms
        need(not unknown, f"rule[{i}]", sorted(unknown), f"arms are {sorted(arms)}")
        need(statement["measure"] in c.measures, f"rule[{i}].measure", statement["measure"], "is no measure")
        need(statement["kind"] in KINDS, f"rule[{i}].kind", statement["kind"], f"one of {KINDS}")


def state_rule(workdir: epath.Path, rule, level: float) -> None:
    """WORKDIR/rule.json before the first run; a directory that was begun with another rule is refused."""
    path, stated = workdir / "rule.json", json.loads(json.dumps({"level": level, "rule": list(rule)}))
    there = read_whole(path)
    if not there:
        write_whole(path, json.dumps({"stated": now(), **stated}, indent=1) + "\n")
        return
    before = read_json(path, {"stated": str, **dict.fromkeys(stated, object)}, advice="choose another --workdir")
    if {key: before[key] for key in stated} != stated:
        raise UserError(
            f"{path} states another rule, of {before['stated']}: a rule does not change after its runs have begun; "
            "choose another --workdir"
        )


class Progress:
    """How far the experiment is: lines on stderr at every run's start and end, and a line a minute in progress.log."""

    def __init__(self, workdir: epath.Path, nodes: list[Node], minutes: dict[str, float]):
        self.records, self.nodes, self.expected = Records(workdir), nodes, minutes
        self.now, self.since = None, time.monotonic()

    def times(self) -> list[dict]:
        """What runs took: {"name", "seed", "kind", "minutes"}."""
        return self.records.lines("times.jsonl", TIMES)

    def left(self, index: int) -> float:
        """Minutes from the start of run `index` on: measured means of its kind, before any the config's."""
        known = {kind: [t["minutes"] for t in self.times() if t["kind"] == kind] for kind in self.expected}
        mean = {kind: sum(m) / len(m) if m else self.expected[kind] for kind, m in known.items()}
        return sum(mean[n.kind] for n in self.nodes[index:] if not (n.directory / "DONE").exists())

    def line(self) -> str:
        """Arm, seed, which of how many, its last logged step, time left."""
        index, node = self.now
        last = read.last_line(node.directory / "metrics.jsonl")
        at = f", {last['stage']} step {last['step']}" if last else ""
        minutes = (time.monotonic() - self.since) / 60
        left = max(self.left(index) - minutes, 0)
        return (
            f"{index + 1}/{len(self.nodes)} {node.name}, seed {node.seed}{at}: {minutes:.1f} min; {left:.0f} min left"
        )

    def say(self, text: str) -> None:
        """On stderr and in progress.log."""
        text = printable(text, lines=True)
        print(text, flush=True)
        self.records.add("progress.log", f"{now()} {text}\n")

    @contextmanager
    def running(self, index: int, node: Node) -> Iterator[None]:
        """Around a run: says that it begins, a line a minute, how long it took."""
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
    """Every run of a seed that is not DONE; -> those that failed. Stopped (SIGTERM) and Ctrl-C end it."""
    failed = []
    for index, node in enumerate(nodes):
        if node.seed != seed:
            continue
        if any((f["arm"], f["seed"]) == (node.after, node.seed) for f in failed):
            failed.append({"arm": node.name, "seed": node.seed, "why": f"{node.after} failed before it"})
            continue
        try:
            claim(place(node.directory), node.config.to_dict())  # a finished run of another config is not taken
            if (node.directory / "DONE").exists():
                continue
            with progress.running(index, node):
                curriculum.main(node.config, str(node.directory))
        except Stopped:
            raise
        except Exception as error:  # whatever it is, the other arms are worth having
            progress.say(f"{node.name}, seed {node.seed} FAILED: {told(error)}")
            failed.append({"arm": node.name, "seed": node.seed, "why": first_line(error)})
    return failed


def told(error: Exception) -> str:
    """Return what a person can mend as its sentence, a bug with its traceback."""
    return str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))


def force_all(c: ConfigDict, nodes: list[Node], workdir: epath.Path, seed: int, progress: Progress) -> list[dict]:
    """eval/run.py on a seed's finished models, for config.evaluation (budget forcing); -> that it failed, or []."""
    evaluation = copy.deepcopy(c.evaluation)
    evaluation.seed = seed
    finished = [n for n in nodes if n.seed == seed and (n.directory / "DONE").exists()]
    evaluation.models = tuple((n.name, str(n.checkpoint)) for n in finished)
    try:
        if finished:
            eval_run.main(evaluation, str(workdir / "eval" / f"seed{seed}"))
    except Stopped:
        raise
    except Exception as error:
        progress.say(f"evaluation of seed {seed} FAILED: {told(error)}")
        return [{"arm": "evaluation", "seed": seed, "why": first_line(error)}]
    return []


def collect(c: ConfigDict, nodes: list[Node], workdir: epath.Path) -> dict:
    """{arm: {seed: Records}} of finished runs; UserError for a copy of one under another seed, which is no seed."""
    records, seen = {}, {}
    for n in nodes:
        if (n.directory / "DONE").exists():
            twin = seen.setdefault(read.digest(n.directory), n.directory)
            if twin != n.directory:
                raise UserError(f"{n.directory} is a copy of {twin}, not another seed: remove it and run again")
            found = read.read_run(n.directory, label=n.name, forced=workdir / "eval" / f"seed{n.seed}")
            records.setdefault(n.name, {})[n.seed] = found
    return records


def draw(c: ConfigDict, records: dict, values: dict) -> list[dict]:
    """The figures that the config asks for, as data; those of which no run is there yet are left out."""
    makers = {"curve": read.curve_figure, "budget": read.budget_figure, "forced": read.forced_figure}
    out = []
    for spec in c.figures:
        spec = dict(spec)
        kind = spec.pop("kind")
        figure = read.against_figure(values, **spec) if kind == "against" else makers[kind](records, **spec)
        out += [figure] if figure["lines"] else []
    return out


def conclude(c: ConfigDict, nodes: list[Node], workdir: epath.Path, *, failed: list[dict], command: str) -> dict:
    """results.json, figures and page from whatever is finished."""
    records = collect(c, nodes, workdir)
    names = [*c.bases, *c.arms]
    values = {
        m: {a: {s: read.value(r, spec.read) for s, r in records.get(a, {}).items()} for a in names}
        for m, spec in c.measures.items()
    }
    about = {name: "the base model" for name in c.bases} | {name: arm.says for name, arm in c.arms.items()}
    tables = []
    if c.choice:
        choice = c.choice.to_dict()
        arms, kappa = {int(b): arm for b, arm in choice.pop("arms")}, choice.pop("kappa")
        rows = read.choices(records, **choice)
        read.add_choice(values, {seed: b for seed, k, b, _ in rows if k == kappa}, arms=arms)
        about |= {"chosen": f"Eq. 2's budget with kappa {kappa}", "half": "the budget below", "double": "the one above"}
        tables = [
            {
                "title": "Eq. 2 by kappa",
                "header": ["seed", "kappa", "budget", "J(2B) / J(B)"],
                "rows": [[*map(str, row[:3]), ", ".join(f"{b}: {x:.2f}" for b, x in row[3].items())] for row in rows],
            }
        ]
    rule = [judge(dict(s), values, seeds=c.seeds, level=c.level) for s in c.rule]
    enough = any(len(row["values"]) > 1 for row in rule)
    times = read_lines(workdir / "times.jsonl", TIMES)
    found = {
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
    path = results.write(workdir, found)
    for i, figure in enumerate(found["figures"]):
        write_whole(workdir / f"figure{i}.svg", paper.figure_file(figure))
    return results.read(path)


def main(c: ConfigDict, workdir: str) -> None:
    """All runs, then the results; fails at the end when a run failed."""
    check_experiment(c)
    workdir = place(workdir)
    nodes = plan(c, workdir)
    from_main(lambda: hold(workdir, say=print, lost=end_now) and None)  # its records are beside those of its runs
    state_rule(workdir, c.rule, c.level)
    command = shlex.join(["python", "-m", "e3jax.experiments.run", *sys.argv[1:]])
    progress, failed = Progress(workdir, nodes, c.minutes.to_dict()), []
    progress.say(f"{c.name}: {len(nodes)} runs, about {progress.left(0):.0f} min")
    for seed in c.seeds:  # results after every seed: the first ones are worth a look
        failed += run_all(nodes, seed, progress)
        if c.evaluation:
            failed += force_all(c, nodes, workdir, seed, progress)
        found = conclude(c, nodes, workdir, failed=failed, command=command)
    paper.write_page([str(workdir)], workdir / "page.html")
    progress.say(f"{c.name}: {found['verdict']}; {workdir / 'page.html'}")
    progress.records.flush()
    if failed:
        names = ", ".join(f"{f['arm']} of seed {f['seed']}" for f in failed)
        raise UserError(f"{c.name}: {len(failed)} of {len(nodes)} runs failed ({names}); the same command tries again")


if __name__ == "__main__":
    run_command(main)
