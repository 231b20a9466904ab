"""Memory of a GRPO gradient as a function of length, as the TPU compiler plans it: one packed row per chip.

    python benchmarks/memory_by_length.py --topology=v5e:8x16 --out=benchmarks/aot/memory_by_length

Runs `e3jax.tools.aot` once per length (Qwen3-1.7B, full remat, 512 tokens' logits per chip), writes OUT.json and
OUT.png, and prints the table. Linear growth is what chunked log-probs and splash attention are for: scores alone would
be T² · 64 B, 64 GiB at 32k.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

LENGTHS = (2048, 4096, 8192, 16_384, 32_768)
GIB = 2**30


def measure(topology: str, chips: int, length: int, remat: str) -> dict:
    """One line of the tool's JSON: the gradient's bytes per chip."""
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as file:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "e3jax.tools.aot",
                f"--config=configs/e3_math.py:stage=2,chips={chips}",
                f"--topology={topology}",
                "--programs=gradient",
                "--nosuggest",
                f"--json={file.name}",
                "--limit=1000",
                f"--config.stages.math.budget={length - 1024}",
                f"--config.model.remat={remat}",
            ],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        program = json.loads(file.read())["programs"][0]
    own = program["arguments"] + program["temporaries"] + program["results"]
    return {
        "length": length,
        "gib": own / GIB,
        "temporaries_gib": program["temporaries"] / GIB,
        "compile_seconds": program["compile_seconds"],
    }


def draw(rows: list[dict], title: str, path: Path) -> None:
    """Measured points, and the straight line through the first and the last."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    x, y = np.array([r["length"] for r in rows]), np.array([r["gib"] for r in rows])
    slope = (y[-1] - y[0]) / (x[-1] - x[0])
    axes.plot(
        x,
        y[0] + slope * (x - x[0]),
        color="#6b7280",
        linewidth=1,
        label=f"line: {1024 * slope:.3f} GiB per 1,024 tokens",
    )
    axes.plot(x, y, "o", color="#0072b2", label="compiler's plan")
    axes.axhline(14, color="#d55e00", linewidth=1, linestyle="--", label="limit of a v5e chip: 14 GiB")
    axes.set(xlabel="tokens per chip", ylabel="GiB per chip", title=title, ylim=(0, 15), xticks=x)
    axes.set_xticklabels([f"{n // 1024}k" for n in x])
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--topology", default="v5e:8x16")
    parser.add_argument("--chips", type=int, default=128)
    parser.add_argument("--remat", default="full")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/aot/memory_by_length"))
    asked = parser.parse_args()
    rows = []
    print("| tokens per chip | GiB per chip | of it temporaries | compiled in s |\n|---|---|---|---|", flush=True)
    for length in LENGTHS:
        rows.append(measure(asked.topology, asked.chips, length, asked.remat))
        row = rows[-1]
        print(
            f"| {length:,} | {row['gib']:.2f} | {row['temporaries_gib']:.2f} | {row['compile_seconds']:.0f} |",
            flush=True,
        )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.with_suffix(".json").write_text(
        json.dumps({"topology": asked.topology, "remat": asked.remat, "rows": rows}) + "\n"
    )
    draw(rows, f"GRPO gradient of Qwen3-1.7B on {asked.topology}", asked.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
