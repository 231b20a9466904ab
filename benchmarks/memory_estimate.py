"""Compare the memory that train/fit.py estimates with what the TPU compiler plans, for one v5e chip's programs.

    python benchmarks/memory_estimate.py [--json=FILE]

For each model and each `remat`: a gradient of so many packed rows (temporaries and results, logits included), and a
block of decoding (its cache). An estimate below the plan would run out of memory; one far above it wastes some. Needs
`pip install -e '.[aot]'`; nothing is run. A v5e chip has 16 GiB: rows are chosen so that the programs are below that.
"""

import argparse
import json
from dataclasses import replace

import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from configs import countdown_lm
from e3jax.models.presets import num_params
from e3jax.tools.aot import measure, quiet_compiler
from e3jax.tools.chips import find_devices
from e3jax.tools.programs import Training, rl_gradient
from e3jax.tools.rl_programs import Decoding
from e3jax.train.fit import GIB, REMATS, Device, longest_row, row_bytes, slot_bytes, update_bytes
from e3jax.train.settings import resolve

ROOM, BUDGET = 145, 512
MODELS = {"smollm2-135m": 16, "qwen3-0.6b": 8}  # rows of 664 tokens


def gradient(s, devices, chip, remat: str, rows: int) -> tuple[int, int]:
    """Return bytes of a gradient: the estimate, the compiler's plan."""
    s = replace(s, model=replace(s.model, remat=remat))
    stage = s.stage("easy")
    t = Training(s, stage, devices, rows, longest_row(s, stage, ROOM))
    m = measure(rl_gradient(t), chip)
    shape, device = t.model.config, Device("tpu", int(chip.memory * GIB), 1)
    sums = 4 * num_params(shape)  # the other gradient of `update_bytes` is no part of this program
    estimate = update_bytes(s, shape, device) - sums + rows * row_bytes(s, shape, remat, t.width, device)
    return int(estimate), (m.temporaries or 0) + (m.results or 0)


def decoding(s, devices, chip, slots: int) -> tuple[int, int]:
    """Return bytes of decoding beside the weights: the estimate, the compiler's plan."""
    s = replace(s, model=replace(s.model, remat="full"))
    stage = s.stage("easy")
    t = Training(s, stage, devices, 8, longest_row(s, stage, ROOM))
    d = Decoding(t, replace(s.sampling, temperature=1.0, slots=slots, prefill_rows=8), ROOM, BUDGET)
    m = measure(d.decode(), chip)
    weights = num_params(t.model.config) * jnp.dtype(s.model.dtype).itemsize
    return slots * slot_bytes(s, t.model.config, ROOM + BUDGET), m.arguments + m.temporaries + m.results - weights


def main() -> None:
    """Compile, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="")
    asked = parser.parse_args()
    quiet_compiler()
    chip, devices = find_devices("v5e:1x1")
    found = []

    def note(model: str, what: str, measured: tuple[int, int]) -> None:
        print(f"{model}: {what}", flush=True)
        found.append(dict(model=model, what=what, estimate=measured[0], planned=measured[1]))

    for name, rows in MODELS.items():
        config = countdown_lm.get_config(f"model={name}")
        config.model.dtype = "bfloat16"  # as on the chip
        s = resolve(config)
        for remat in REMATS:
            note(name, f"gradient, {rows} rows, {remat}", gradient(s, devices, chip, remat, rows))
        note(name, f"decoding, {4 * rows} slots", decoding(s, devices, chip, 4 * rows))
    table = Table("model", "program", "estimate, GiB", "compiler, GiB", "ratio")
    for x in found:
        ratio = x["estimate"] / x["planned"]
        table.add_row(x["model"], x["what"], f"{x['estimate'] / GIB:.2f}", f"{x['planned'] / GIB:.2f}", f"{ratio:.2f}")
    Console().print(table)
    if asked.json:
        with open(asked.json, "w") as file:
            json.dump(found, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
