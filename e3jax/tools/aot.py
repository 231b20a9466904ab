"""Does a stage fit on a slice? The TPU compiler's own answer on a machine that has none.

    python -m e3jax.tools.aot --config=configs/e3_math.py:stage=2 --topology=v5e:8x16
    python -m e3jax.tools.aot --config=configs/e3_math.py:stage=1,chips=16 --topology=v5e:4x4 --json=fit.jsonl

Every program that the stage runs is compiled from shapes for the slice's chips (`tools/programs.py`) and listed with

    GiB per chip   beside: what lies there without being an argument; arguments; temporaries; results that reuse no
                   argument; and their sum, which has to stay below --limit (7/8 of the chip: 14 GiB of v5e's 16)
    collectives    what a chip sends, by kind (`tools/hlo.py`: a loop's body counts as often as it runs)
    seconds        at best: the slowest of FLOPs, memory and links, each at the chip's peak (`tools/chips.py`)

and then how many rows and slots per chip would fit. Exit status 1 when a program does not fit, 2 for bad input.
Needs `pip install libtpu`.
"""

import json
import math
import os
import re
import time
from typing import NamedTuple

import jax
from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from e3jax.errors import UserError
from e3jax.flags import run_tool
from e3jax.tools.chips import GIB, Chip, find_devices
from e3jax.tools.hlo import Traffic, biggest_arrays, collectives
from e3jax.tools.programs import GROWS_WITH, NAMES, Program, chip_bytes, supervised_programs
from e3jax.tools.rl_programs import stage_programs
from e3jax.train.settings import Settings, resolve


class Measured(NamedTuple):
    """One program after the compiler; bytes per chip, None where it ran out of memory."""

    name: str
    what: str
    beside: int
    arguments: int
    temporaries: int | None
    results: int | None  # that reuse no argument's buffer
    total: int | None
    traffic: dict[str, Traffic]
    flops: float
    seconds: float
    bound: str  # "flops" | "memory" | "links"
    compile_seconds: float
    biggest: list[str]
    message: str  # of the compiler, when it ran out of memory


def measure(program: Program, chip: Chip) -> Measured:
    """Compile and read off."""
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
            seconds=math.nan,
            bound="",
            compile_seconds=time.perf_counter() - start,
            biggest=named,
            message=message,
        )
    took = time.perf_counter() - start
    m, text = compiled.memory_analysis(), compiled.as_text()
    traffic = collectives(text, loops=program.loops)
    results = m.output_size_in_bytes - m.alias_size_in_bytes
    floor = {
        "flops": program.flops / chip.flops,
        "memory": program.memory_traffic / chip.bandwidth,
        "links": sum(t.bytes for t in traffic.values()) / chip.links,
    }
    bound = max(floor, key=floor.__getitem__)
    return Measured(
        **common,
        arguments=m.argument_size_in_bytes,
        temporaries=m.temp_size_in_bytes,
        results=results,
        total=program.resident + m.argument_size_in_bytes + m.temp_size_in_bytes + results,
        traffic=traffic,
        seconds=floor[bound],
        bound=bound,
        compile_seconds=took,
        biggest=biggest_arrays(text),
        message="",
    )


def gib(n: int | None) -> str:
    """Bytes in GiB; "–" of nothing."""
    return "–" if n is None else f"{n / GIB:.2f}"


def fit_table(title: str, measured: list[Measured], limit: float) -> Table:
    """What the terminal shows."""
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
    """Units per chip below the limit when memory grows from `once` to `twice` by a straight line.

    `per_chip` units gave `once`, twice as many `twice`; where twice as many ran out of memory, `per_chip` it is.
    """
    if twice.total is None or once.total is None:
        return int(per_chip)
    slope = max((twice.total - once.total) / per_chip, 1.0)
    return int(per_chip + (limit * GIB - once.total) / slope)


def suggestions(settings: Settings, stage: str, devices, chip: Chip, measured: dict[str, Measured], limit: float, say):
    """Lines on rows of a micro-batch and slots per chip, from compiling both sizes."""
    lines = []
    fits = {}
    for name in ("gradient", "admit", "decode"):
        if name not in measured or measured[name].total is None:
            continue
        unit = GROWS_WITH[name]
        count = settings.stage(stage).rows if unit == "rows" else settings.sampling.slots
        say(f"{name} at twice the {unit}")
        (program,) = stage_programs(settings, stage, devices, names=(name,), times=2)
        most = most_that_fits(measured[name], measure(program, chip), count / len(devices), limit)
        fits[unit] = min(most, fits.get(unit, most))
    for unit, most in fits.items():
        field, now = {
            "rows": ("grpo.rows", settings.stage(stage).rows),
            "slots": ("sampler.slots", settings.sampling.slots),
        }[unit]
        lines.append(f"{field}: {most} per chip fit, {most * len(devices)} in all; {now} are set")
    return lines, fits


def chosen(names: list[str]) -> tuple[str, ...]:
    """--programs, checked."""
    wrong = [n for n in names if n not in NAMES]
    if wrong:
        raise UserError(f"--programs={','.join(wrong)}: the programs are {', '.join(NAMES)}")
    return tuple(n for n in NAMES if n in names) or NAMES


def quiet_compiler() -> None:
    """Settings that libtpu and JAX read when they load their backends, which is after this; an import loads none."""
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",  # do not ask the cloud what machine this is
        "TPU_WORKER_HOSTNAMES": "localhost",  # nor complain that there is no answer
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_LOG_DIR": "disabled",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # the chips, if there are any, stay another process's
    }
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # what is asked for is the compiler's answer


def main() -> None:
    """Compile, print, and exit with 1 when something does not fit."""
    f = flags.FLAGS
    quiet_compiler()
    try:
        c, names = f.config, chosen(f.programs)
        c.to_dict()
    except OSError as error:  # ml_collections tells of a file that is not there at the first use only
        raise UserError(" ".join(str(error).split())) from error
    if "tensor" not in c.sampler:
        raise UserError("config.sampler has no field 'tensor', the sampling layout: start from configs/e3_math.py")
    chip, devices = find_devices(f.topology)
    limit = f.limit or chip.memory * 7 / 8
    settings = resolve(c)
    out, err = Console(width=None if os.isatty(1) else 180), Console(stderr=True)
    failed = []
    for stage in c.order:
        rolls = c.stages[stage].kind == "grpo"
        programs = (stage_programs if rolls else supervised_programs)(settings, stage, devices, names=names)
        measured = []
        with err.status("") as status:

            def say(text, stage=stage, status=status):
                line = f"{escape(stage)}: compiling {text}"
                status.update(line)
                if not err.is_terminal:
                    err.print(line)

            for i, program in enumerate(programs):
                say(f"{program.name} ({i + 1}/{len(programs)})")
                measured.append(measure(program, chip))
            by_name = {m.name: m for m in measured}
            lines, fits = (
                suggestions(settings, stage, devices, chip, by_name, limit, say) if f.suggest and rolls else ([], {})
            )
        out.print(
            fit_table(
                f"{escape(c.model.preset)}, {escape(stage)}, on {f.topology} ({len(devices)} devices)", measured, limit
            )
        )
        for line in lines:
            out.print(line)
        if lines:
            out.print("[dim](a straight line through the programs compiled at the set and at twice the set size)[/dim]")
        if f.json:
            line = {
                "topology": f.topology,
                "devices": len(devices),
                "preset": c.model.preset,
                "stage": stage,
                "mesh": c.mesh.to_dict(),
                "sampling_tensor": c.sampler.tensor,
                "rows": c.grpo.rows if rolls else c.stages[stage].rows,
                "slots": c.sampler.slots,
                "limit_gib": limit,
                "fit_per_chip": fits,
                "programs": [
                    m._asdict() | {"traffic": {k: t._asdict() for k, t in m.traffic.items()}} for m in measured
                ],
            }
            with open(f.json, "a") as file:
                file.write(re.sub(r"\bNaN\b", "null", json.dumps(line)) + "\n")
        failed += [(stage, m) for m in measured if m.total is None or m.total > limit * GIB]
    for stage, m in failed:
        need = f"needs {gib(m.total)} GiB of {limit:g}" if m.total else f"ran out of memory: {m.message}"
        out.print(f"[red]{escape(stage)}: {m.name} {need}[/red]; biggest: {'; '.join(m.biggest[:3])}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "config file, e.g. configs/e3_math.py:stage=2", lock_config=True)
    flags.DEFINE_string("topology", None, "slice to compile for, e.g. v5e:8x16", required=True)
    flags.DEFINE_list("programs", [], f"only these, with commas between; all: {','.join(NAMES)}")
    flags.DEFINE_float("limit", 0.0, "GiB per chip that a program may need; 0: 7/8 of the chip", lower_bound=0.0)
    flags.DEFINE_bool("suggest", True, "find how many rows and slots fit, which compiles three programs again")
    flags.DEFINE_string("json", "", "append one line per stage to this file")
    flags.mark_flag_as_required("config")
    run_tool(main)
