"""The smallest v5e slice on which every program of a stage fits, by size of Qwen3: docs/memory.md's table.

    python benchmarks/smallest_slice.py --out=benchmarks/aot/smallest_slice.json

Slices are tried from one chip on, with configs/e3_math.py's values except: one packed row per chip, one slot per group
of chips that samples together, and groups (`sampler.tensor`) as large as the key/value heads allow before the next
slice is tried. Every answer is `e3jax.tools.aot`'s; programs that compile in seconds are asked first, and a slice is
given up at the first that does not fit.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path

from configs.e3_math import SAMPLING_TENSOR
from e3jax.tools.chips import CHIPS, GIB

HEADS = 8  # key/value heads of every dense Qwen3: the most that a group may have
QUICK, SLOW = "add,apply,to_sampling,prefill,admit,decode", "score,gradient"


def ask(size: str, stage: int, shape: str, tensor: int, programs: str, *flags: str) -> dict:
    """The tool's JSON line; that something does not fit is an answer, any other failure is not."""
    chips = prod(map(int, shape.split("x")))
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as file:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "e3jax.tools.aot",
                f"--config=configs/e3_math.py:stage={stage},model={size},chips={chips}",
                f"--topology=v5e:{shape}",
                f"--programs={programs}",
                f"--json={file.name}",
                f"--config.sampler.tensor={tensor}",
                f"--config.sampler.slots={chips // tensor}",
                f"--config.sampler.prefill_rows={chips // tensor}",
                *flags,
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, 1) or not (text := file.read()):
            raise SystemExit(f"{size}, stage {stage}, v5e:{shape}: {done.stderr[-2000:]}")
    return json.loads(text)


def verdict(line: dict) -> str:
    """ "" when all fits, else the programs that do not."""
    totals = {p["name"]: p["total"] for p in line["programs"]}
    out = [f"{name} out of memory" for name, total in totals.items() if total is None]
    return ", ".join(out + [f"{n} {t / GIB:.1f}" for n, t in totals.items() if t and t > line["limit_gib"] * GIB])


def smallest(size: str, stage: int, shapes: tuple[str, ...], say) -> dict:
    """The first slice that holds everything, and what the tries before it lacked."""
    lacked = []
    for shape in shapes:
        chips, tensor = prod(map(int, shape.split("x"))), SAMPLING_TENSOR[size]
        while tensor <= min(chips, HEADS):
            say(f"{size}, stage {stage}, v5e:{shape}, sampling over {tensor}")
            line = ask(size, stage, shape, tensor, QUICK, "--nosuggest")
            failed = verdict(line)
            if not failed:
                slow = ask(size, stage, shape, tensor, SLOW, "--nosuggest")
                failed = verdict(slow)
            if not failed:
                slots = ask(size, stage, shape, tensor, "admit,decode")["fit_per_chip"]["slots"]
                programs = line["programs"] + slow["programs"]
                peak = max(programs, key=lambda p: p["total"])
                return {
                    "model": size,
                    "stage": stage,
                    "slice": f"v5e:{shape}",
                    "tensor": tensor,
                    "slots_per_chip": slots,
                    "gib": peak["total"] / GIB,
                    "program": peak["name"],
                    "lacked": lacked,
                    "programs": {p["name"]: p["total"] / GIB for p in programs},
                }
            lacked.append({"slice": f"v5e:{shape}", "tensor": tensor, "programs": failed})
            say(f"  does not fit: {failed}")
            tensor *= 2
    return {"model": size, "stage": stage, "slice": None, "lacked": lacked}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("benchmarks/aot/smallest_slice.json"))
    parser.add_argument("--models", default="0.6b,1.7b,4b,8b")
    asked = parser.parse_args()
    rows = []
    for size in asked.models.split(","):
        shapes = CHIPS["v5e"].shapes
        for stage in (1, 2):
            rows.append(smallest(size, stage, shapes, lambda text: print(text, file=sys.stderr, flush=True)))
            asked.out.write_text("\n".join(map(json.dumps, rows)) + "\n")
            # longer budgets need no smaller slice: stage 2 starts where stage 1 fitted
            found = rows[-1]["slice"]
            shapes = shapes[shapes.index(found.removeprefix("v5e:")) :] if found else ()
    print("| model | stage 1 | stage 2 |\n|---|---|---|")
    for size in asked.models.split(","):
        cells = [
            f"{r['slice']} ({r['gib']:.1f} GiB, {r['program']})" if r["slice"] else "none"
            for r in rows
            if r["model"] == size
        ]
        print(f"| {size} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
