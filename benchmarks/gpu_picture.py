"""Where a decode step and an update spend their time on a GPU: a bar each, from what gpu.py recorded.

    python benchmarks/gpu_picture.py --decode=OUT/decode_kernels.json --update=OUT/update_kernels.json --to=gpu.svg

Kernels are told apart by name. A bar is the whole wall time: what no kernel covers is "between kernels".
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

KINDS = {  # the first whose words are in a kernel's name
    "attention": ("softmax_of_pages", "pages_together", "cudnn", "fmha", "sdpa"),
    "logits": ("_tss_", "f32f32", "32x32x8"),  # products with float32 results
    "products of the layers": ("nvjet", "gemm", "xmma", "cutlass"),
    "copies": ("memcpy", "memset", "concatenate"),
    "the rest": ("",),
}
COLORS = ("#31688e", "#90d743", "#35b779", "#e2725b", "#8d8d8d", "#dddddd")


def shares(file: Path) -> tuple[dict[str, float], float]:
    """Milliseconds a step of every kind of kernel, and between them; milliseconds in all."""
    found = json.loads(file.read_text())
    ms = dict.fromkeys(KINDS, 0.0)
    for line, kernels in found["lines"].items():
        if "Stream" in line:
            for name, (_, us) in kernels.items():
                kind = next(kind for kind, words in KINDS.items() if any(w in name.lower() for w in words))
                ms[kind] += us / 1000 / found["steps"]
    wall = found["wall_s"] * 1000 / found["steps"]
    return ms | {"between kernels": max(wall - sum(ms.values()), 0.0)}, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decode", type=Path, required=True)
    parser.add_argument("--update", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    asked = parser.parse_args()
    fig, rows = plt.subplots(2, 1, figsize=(9, 3.6), layout="constrained")
    for ax, (what, file) in zip(rows, (("a decode step", asked.decode), ("an update", asked.update))):
        ms, wall = shares(file)
        left = 0.0
        for (kind, value), color in zip(ms.items(), COLORS):
            ax.barh(0, value, left=left, color=color, label=kind)
            if value > 0.04 * wall:
                says = f"{value:,.1f}\n{value / wall:.0%}"
                ink = "white" if kind == "attention" else "black"
                ax.text(left + value / 2, 0, says, ha="center", va="center", fontsize=9, color=ink)
            left += value
            print(f"{what}: {kind} {value:.2f} ms, {value / wall:.1%}")
        ax.set(xlim=(0, left), yticks=[], xlabel="ms")
        ax.set_title(f"{what}: {wall:,.1f} ms", loc="left", fontsize=10)
        ax.spines[["top", "right", "left"]].set_visible(False)
    fig.legend(*rows[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False, fontsize=9)
    fig.savefig(asked.to)


if __name__ == "__main__":
    main()
