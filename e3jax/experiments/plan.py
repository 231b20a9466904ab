"""Plan an experiment: its config becomes runs, base models, sets and arms, of which each knows what it needs.

nodes = plan(config, place("runs/experiments/mask"))
nodes[1].name, nodes[1].seed, nodes[1].after            # ("grpo", 0, ("countdown",))
nodes[1].run()                                          # trains it
"""

import copy
from typing import NamedTuple

from etils import epath
from ml_collections import ConfigDict

from e3jax.curation import oxa_sets
from e3jax.errors import UserError, all_errors, first_line, need, need_seed
from e3jax.experiments import read
from e3jax.metrics.seeds import KINDS
from e3jax.train import curriculum
from e3jax.train.check import check

SETS = "{sets}"  # in an arm's change: the directory of its sets


class Node(NamedTuple):
    """One run to be made: a base that arms start from, sets that arms train on, or an arm."""

    name: str
    seed: int
    kind: str  # "base", "sets" or "arm"
    config: ConfigDict  # of train/curriculum.py; of curation/oxa_sets.py for "sets"
    directory: epath.Path
    after: tuple[str, ...]  # the nodes of its seed that it needs

    @property
    def checkpoint(self) -> epath.Path:
        """Return the last checkpoint of a base or arm."""
        stage = self.config.order[-1]
        return self.directory / "checkpoints" / stage / str(self.config.stages[stage].steps)

    @property
    def done(self) -> bool:
        """Return whether the run has ended."""
        return (self.directory / "DONE").exists()

    def run(self) -> None:
        """Make the run, or continue it."""
        command = oxa_sets if self.kind == "sets" else curriculum
        command.main(self.config, str(self.directory))


def without_other_stages(config: ConfigDict) -> ConfigDict:
    """Remove stages that do not run, so that experiments with different arms share the directory of a base."""
    with config.unlocked():
        config.stages = {name: config.stages[name] for name in config.order if name in config.stages}
    return config


def plan(c: ConfigDict, workdir: epath.Path) -> list[Node]:
    """Return all runs in order, seed by seed. UserError before anything is trained if a config is impossible."""
    nodes = []
    for seed in c.seeds:
        known = {}
        for name, base in c.bases.items():
            config = without_other_stages(copy.deepcopy(base))
            known[name] = Node(name, seed, "base", config, workdir.parent / "bases" / name / f"seed{seed}", ())
        for name, spec in c.sets.items():
            need(name not in known, f"sets.{name}", name, "this is a base's name")
            need(spec.after in c.bases, f"sets.{name}.after", spec.after, f"use one of {sorted(c.bases)}")
            config = copy.deepcopy(spec.config)
            config.base = config.own.model = str(known[spec.after].checkpoint)
            known[name] = Node(name, seed, "sets", config, workdir / name / f"seed{seed}", (spec.after,))
        for name in c.arms:
            known[name] = arm_node(c, name, known, workdir / name / f"seed{seed}", seed)
        for node in known.values():
            node.config.seed = seed
            try:
                (oxa_sets.check if node.kind == "sets" else check)(node.config)
            except UserError as error:
                raise UserError(f"{node.kind} {node.name}: {error}") from error
        nodes += known.values()
    return nodes


def arm_node(c: ConfigDict, name: str, known: dict[str, Node], directory: epath.Path, seed: int) -> Node:
    """Return the run of one arm; `known` are the runs of its seed that come before it."""
    arm, starts = c.arms[name], sorted(n for n in known if n not in c.sets)
    need(name not in known, f"arms.{name}", name, "this is the name of a base or of sets")
    need(arm.after in starts, f"arms.{name}.after", arm.after, f"use one of {starts}")
    need(not arm.sets or arm.sets in c.sets, f"arms.{name}.sets", arm.sets, f"use '' or one of {sorted(c.sets)}")
    change = arm.change.to_dict()
    if arm.sets:
        change = with_directory(change, str(known[arm.sets].directory))
    config = copy.deepcopy(c.bases[root_of(c, name)])
    config.lock()
    try:
        config.update(change)
    except (KeyError, AttributeError, TypeError) as error:
        raise UserError(f"config.arms.{name}.change: {first_line(error)}") from error
    config.init.init_from = str(known[arm.after].checkpoint)
    needed = (arm.after, arm.sets) if arm.sets else (arm.after,)
    return Node(name, seed, "arm", without_other_stages(config), directory, needed)


def with_directory(change: object, directory: str) -> object:
    """Return an arm's change with `directory` for every SETS.

    >>> with_directory({"stages": {"tune": {"promote": "{sets}/sets/a.jsonl", "rows": 4}}}, "runs/data")
    {'stages': {'tune': {'promote': 'runs/data/sets/a.jsonl', 'rows': 4}}}
    """
    if isinstance(change, dict):
        return {key: with_directory(value, directory) for key, value in change.items()}
    return change.replace(SETS, directory) if isinstance(change, str) else change


def root_of(c: ConfigDict, arm: str) -> str:
    """Return the base that an arm goes back to."""
    after = c.arms[arm].after
    return after if after in c.bases else root_of(c, after)


@all_errors()
def check_experiment(c: ConfigDict) -> None:
    """Refuse impossible seeds, measures and rules before hours are spent on runs."""
    need(
        len(c.seeds) > 0 and len(set(c.seeds)) == len(c.seeds), "seeds", tuple(c.seeds), "name at least one, each once"
    )
    for seed in c.seeds:
        need_seed(seed, "seeds")
    need(len(c.rule) > 0, "rule", c.rule, "make at least one statement")
    arms = {*c.bases, *c.arms, *(("chosen", "half", "double") if c.choice else ())}
    for name, measure in c.measures.items():
        need(measure.read[0] in read.FORMS, f"measures[{name!r}].read", measure.read, f"begin with one of {read.FORMS}")
    for i, statement in enumerate(c.rule):
        unknown = {*statement["plus"], *statement["minus"]} - arms
        need(not unknown, f"rule[{i}]", sorted(unknown), f"use arms out of {sorted(arms)}")
        need(
            statement["measure"] in c.measures,
            f"rule[{i}].measure",
            statement["measure"],
            f"use one of {sorted(c.measures)}",
        )
        need(statement["kind"] in KINDS, f"rule[{i}].kind", statement["kind"], f"use one of {KINDS}")
