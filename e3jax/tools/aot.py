"""Measure whether a stage fits on a TPU slice, by compiling it for the slice on a machine without a TPU.

    python -m e3jax.tools.aot --config=configs/e3_math.py:stage=2 --topology=v5e:8x16
    python -m e3jax.tools.aot --config=configs/e3_math.py:stage=1,chips=16 --topology=v5e:4x4 --json=fit.jsonl
    python -m e3jax.tools.aot --config=configs/e3_math.py:stage=1,chips=32 --topology=v5e:4x4 --slices=2 \\
        --config.mesh.data=2

Every program that the stage runs is compiled from shapes for the slice's chips (`tools/programs.py`) and listed with

    GiB per chip   "beside", which lies there without being an argument; arguments; temporaries; results that reuse no
                   argument; and their sum, which has to stay below --limit (7/8 of the chip: 14 GiB of v5e's 16)
    collectives    the bytes that a chip sends, by kind (`tools/hlo.py`: a loop's body counts as often as it runs);
                   of several slices (--slices), what stays inside and what goes over the network to others
    at best        the seconds of the slowest of FLOPs, memory, links and network, each at the chip's peak
                   (`tools/chips.py`, which knows the network of v5e and v5p only)

The lines below the table say how many rows and slots per chip would fit. The exit status is 1 when a program does not
fit, and 2 for bad input. Needs `pip install libtpu`.
"""

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import jax
from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from e3jax.checkpoint.pretrained import model_config
from e3jax.errors import UserError
from e3jax.flags import run_tool
from e3jax.tools.chips import GIB, Chip, find_devices
from e3jax.tools.hlo import Traffic, biggest_arrays, collectives
from e3jax.tools.programs import GROWS_WITH, NAMES, Program, chip_bytes, supervised_programs
from e3jax.tools.rl_programs import stage_programs
from e3jax.train.fit import Device, fit, slots_that_fit
from e3jax.train.grpo import GrpoStage
from e3jax.train.named_model import AUTO
from e3jax.train.packing import enough_rows
from e3jax.train.settings import Settings, resolve


class Slice(NamedTuple):
    """The chips that are compiled for, of one slice or of several, and how much of each a program may need."""

    topology: str  # --topology
    slices: int  # of it, over the network
    devices: Any
    chip: Chip
    limit: float  # GiB per chip

    @property
    def name(self) -> str:
        return f"{self.slices} x {self.topology}" if self.slices > 1 else self.topology

    @property
    def chips(self) -> int | None:
        """Chips of one of several slices."""
        return len(self.devices) // self.slices if self.slices > 1 else None


class Measured(NamedTuple):
    """What the compiler says of one program, in bytes per chip; None where it ran out of memory."""

    name: str
    what: str
    beside: int
    arguments: int
    temporaries: int | None
    results: int | None  # that reuse no argument's buffer
    total: int | None
    traffic: dict[str, Traffic]  # inside slices
    across: dict[str, Traffic]  # slices
    flops: float
    seconds: float
    bound: str  # "flops" | "memory" | "links" | "network"
    compile_seconds: float
    biggest: list[str]
    message: str  # of the compiler, when it ran out of memory


def measure(program: Program, chip: Chip, chips: int | None = None) -> Measured:
    """Compile a program and read its memory, traffic and arrays off the result; `chips` of one of several slices."""
    start = time.perf_counter()
    common = dict(name=program.name, what=program.what, beside=program.resident, flops=program.flops)
    try:
        compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        leaves = jax.tree_util.tree_leaves_with_path(program.arguments)
        largest = sorted(leaves, key=lambda leaf: -chip_bytes(leaf[1]))[:5]
        named = [f"{chip_bytes(x) / GIB:.2f} GiB {jax.tree_util.keystr(p)} {x.dtype}{x.shape}" for p, x in largest]
        message = " ".join(str(error).split("See http")[0].split())
        return Measured(
            **common,
            arguments=chip_bytes(program.arguments),
            temporaries=None,
            results=None,
            total=None,
            traffic={},
            across={},
            seconds=math.nan,
            bound="",
            compile_seconds=time.perf_counter() - start,
            biggest=named,
            message=message,
        )
    took = time.perf_counter() - start
    m, text = compiled.memory_analysis(), compiled.as_text()
    traffic, across = collectives(text, loops=program.loops, chips=chips)
    results = m.output_size_in_bytes - m.alias_size_in_bytes
    floor = {
        "flops": program.flops / chip.flops,
        "memory": program.memory_traffic / chip.bandwidth,
        "links": sum(t.bytes for t in traffic.values()) / chip.links,
        "network": sum(t.bytes for t in across.values()) / chip.network if chip.network else 0.0,
    }
    bound = max(floor, key=floor.__getitem__)
    return Measured(
        **common,
        arguments=m.argument_size_in_bytes,
        temporaries=m.temp_size_in_bytes,
        results=results,
        total=program.resident + m.argument_size_in_bytes + m.temp_size_in_bytes + results,
        traffic=traffic,
        across=across,
        seconds=floor[bound],
        bound=bound,
        compile_seconds=took,
        biggest=biggest_arrays(text),
        message="",
    )


def gib(n: int | None) -> str:
    """Return bytes as GiB; "–" for None."""
    return "–" if n is None else f"{n / GIB:.2f}"


def fit_table(title: str, measured: list[Measured], limit: float) -> Table:
    """Return the table that the terminal shows, a row per program."""
    table = Table(title=title)
    for column in (
        "program",
        "beside",
        "arguments",
        "temporaries",
        "results",
        "GiB per chip",
        "collectives (GB sent)",
        "TFLOP",
        "at best",
        "compiled",
    ):
        table.add_column(column, justify="left" if column[0] in "pc" and column != "compiled" else "right")
    for m in measured:
        over = m.total is None or m.total > limit * GIB
        total = "out of memory" if m.total is None else gib(m.total)
        moves = [f"{kind} {t.bytes / 1e9:.2f} ({t.count})" for kind, t in sorted(m.traffic.items())]
        moves += [f"network: {kind} {t.bytes / 1e9:.6f} ({t.count})" for kind, t in sorted(m.across.items())]
        table.add_row(
            f"{m.name}\n[dim]{m.what}[/dim]",
            gib(m.beside),
            gib(m.arguments),
            gib(m.temporaries),
            gib(m.results),
            f"[red]{total}[/red]" if over else f"[bold]{total}[/bold]",
            "\n".join(moves) or "–",
            f"{m.flops / 1e12:.1f}",
            "–" if m.total is None else f"{m.seconds:.3f} s ({m.bound})",
            f"{m.compile_seconds:.0f} s",
        )
    return table


def most_that_fits(once: Measured, twice: Measured, per_chip: float, limit: float) -> int:
    """Return how many units per chip stay below the limit, when memory is a straight line through `once` and `twice`.

    `per_chip` units gave `once`, twice as many gave `twice`. Where one of these ran out of memory, this is `per_chip`.
    """
    if twice.total is None or once.total is None:
        return int(per_chip)
    slope = max((twice.total - once.total) / per_chip, 1.0)
    return int(per_chip + (limit * GIB - once.total) / slope)


def measure_all(programs: list[Program], at: Slice, say: Callable[[str], None]) -> list[Measured]:
    """Measure one program after the other, and say which."""
    measured = []
    for i, program in enumerate(programs):
        say(f"{program.name} ({i + 1}/{len(programs)})")
        measured.append(measure(program, at.chip, at.chips))
    return measured


def suggestions(settings: Settings, stage: str, at: Slice, measured: list[Measured], say: Callable[[str], None]):
    """Return lines on how many rows of a micro-batch and slots fit, and the numbers {unit: per chip}.

    Compiles the programs again that grow with one of them, at twice the size that is set.
    """
    lines, fits = [], {}
    once = {m.name: m for m in measured}
    for name in ("gradient", "admit", "decode"):
        if name not in once or once[name].total is None:
            continue
        unit = GROWS_WITH[name]
        count = settings.stage(stage).rows if unit == "rows" else settings.sampling.slots
        say(f"{name} at twice the {unit}")
        (program,) = stage_programs(settings, stage, at.devices, names=(name,), times=2)
        most = most_that_fits(once[name], measure(program, at.chip, at.chips), count / len(at.devices), at.limit)
        fits[unit] = min(most, fits.get(unit, most))
    for unit, most in fits.items():
        field, now = {
            "rows": ("grpo.rows", settings.stage(stage).rows),
            "slots": ("sampler.slots", settings.sampling.slots),
        }[unit]
        lines.append(f"{field}: {most} per chip fit, {most * len(at.devices)} in all; {now} are set")
    return lines, fits


def chosen(names: list[str]) -> tuple[str, ...]:
    """Return the programs that --programs names, or all of them; UserError for a name that is none."""
    wrong = [n for n in names if n not in NAMES]
    if wrong:
        raise UserError(f"--programs={','.join(wrong)}: the programs are {', '.join(NAMES)}")
    return tuple(n for n in NAMES if n in names) or NAMES


def fit_slice(s: Settings, chip: Chip, devices) -> tuple[Settings, list[str]]:
    """Return the settings with the sizes that a run on these chips would choose (train/fit.py), and what to say of it.

    The slots are those of the longest training budget; slots and rows are at most what a step has responses for.
    """
    shape, room = model_config(s.model.preset), s.task.prompt_room
    device, n = Device("tpu", int(chip.memory * GIB), len(devices)), len(devices)
    given, (s, remarks) = s, fit(s, shape, device, room=room)
    stages, budgets = [], {}
    for before, stage in zip(given.stages, s.stages):
        if isinstance(stage, GrpoStage):
            budgets[max(s.budget_rule.budgets) if stage.budget == "auto" else stage.budget] = stage.responses
        if stage != before:
            most, groups = stage.responses // stage.minibatches, n // s.mesh.tensor
            stage = replace(stage, rows=enough_rows(stage.rows, most, groups=groups))
        stages.append(stage)
    if budgets and not s.sampling.slots:
        slots = slots_that_fit(s, shape, device, room=room, budget=max(budgets))
        slots = enough_rows(slots, max(budgets.values()), groups=n // s.sampling.tensor)
        s = replace(s, sampling=replace(s.sampling, slots=slots))
    return replace(s, stages=tuple(stages)), remarks


def quiet_compiler() -> None:
    """Set what libtpu and JAX read when they load their backends, which is after this, because an import loads none."""
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",  # do not ask the cloud what machine this is
        "TPU_WORKER_HOSTNAMES": "localhost",  # do not complain that there is no answer
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_LOG_DIR": "disabled",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # leave chips, if there are any, to another process
    }
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # a cached program would not ask the compiler


@contextmanager
def progress(console: Console, stage: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows which program is compiled: a live line on a terminal, else a line for each."""
    with console.status("") as status:

        def say(text: str) -> None:
            line = f"{escape(stage)}: compiling {text}"
            status.update(line)
            if not console.is_terminal:
                console.print(line)

        yield say


def record(s: Settings, stage: str, at: Slice, fits: dict[str, int], measured: list[Measured]) -> str:
    """Return the line of a stage for --json."""
    line = {
        "topology": at.topology,
        "slices": at.slices,
        "devices": len(at.devices),
        "preset": s.model.preset,
        "stage": stage,
        "mesh": asdict(s.mesh),
        "sampling_tensor": s.sampling.tensor,
        "rows": s.stage(stage).rows,
        "remat": s.model.remat,
        "slots": s.sampling.slots,
        "limit_gib": at.limit,
        "fit_per_chip": fits,
        "programs": [
            m._asdict() | {way: {k: t._asdict() for k, t in getattr(m, way).items()} for way in ("traffic", "across")}
            for m in measured
        ],
    }
    return re.sub(r"\bNaN\b", "null", json.dumps(line)) + "\n"


def main() -> None:
    """Compile the programs of every stage, print what they need, and exit with 1 when something does not fit."""
    f = flags.FLAGS
    quiet_compiler()
    try:
        c, names = f.config, chosen(f.programs)
        c.to_dict()
    except OSError as error:  # ml_collections reports a missing file only at the first use
        raise UserError(" ".join(str(error).split())) from error
    if "tensor" not in c.sampler:
        raise UserError("config.sampler has no field 'tensor', the sampling layout: start from configs/e3_math.py")
    chip, devices = find_devices(f.topology, f.slices)
    at = Slice(f.topology, f.slices, devices, chip, f.limit or chip.memory * 7 / 8)
    if c.model.name and c.model.dtype == AUTO:
        c.model.dtype = "bfloat16"  # as on the slice, whatever computes here
    settings, remarks = fit_slice(resolve(c), chip, devices)
    out, err = Console(width=None if os.isatty(1) else 180), Console(stderr=True)
    failed = []
    for remark in remarks:
        out.print(escape(remark))
    for stage in c.order:
        rolls = c.stages[stage].kind == "grpo"
        programs = (stage_programs if rolls else supervised_programs)(settings, stage, devices, names=names)
        with progress(err, stage) as say:
            measured = measure_all(programs, at, say)
            lines, fits = suggestions(settings, stage, at, measured, say) if f.suggest and rolls else ([], {})
        title = f"{escape(settings.model.preset)}, {escape(stage)}, on {at.name} ({len(devices)} devices)"
        out.print(fit_table(title, measured, at.limit))
        for line in lines:
            out.print(line)
        if lines:
            out.print("[dim](a straight line through the programs compiled at the set and at twice the set size)[/dim]")
        if f.json:
            with open(f.json, "a") as file:
                file.write(record(settings, stage, at, fits, measured))
        failed += [(stage, m) for m in measured if m.total is None or m.total > at.limit * GIB]
    for stage, m in failed:
        need = f"needs {gib(m.total)} GiB of {at.limit:g}" if m.total else f"ran out of memory: {m.message}"
        out.print(f"[red]{escape(stage)}: {m.name} {need}[/red]; biggest: {'; '.join(m.biggest[:3])}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "config file, e.g. configs/e3_math.py:stage=2", lock_config=True)
    flags.DEFINE_string("topology", None, "slice to compile for, e.g. v5e:8x16", required=True)
    flags.DEFINE_integer("slices", 1, "so many of that slice, joined by the network", lower_bound=1)
    flags.DEFINE_list("programs", [], f"only these, separated by commas, of {','.join(NAMES)}")
    flags.DEFINE_float("limit", 0.0, "GiB per chip that a program may need; 0: 7/8 of the chip", lower_bound=0.0)
    flags.DEFINE_bool("suggest", True, "measure how many rows and slots fit, which compiles three programs again")
    flags.DEFINE_string("json", "", "append one line per stage to this file")
    flags.mark_flag_as_required("config")
    run_tool(main)
