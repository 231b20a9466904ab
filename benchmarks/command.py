"""What the speed benchmarks' command lines share; imports neither torch nor Tunix.

parser = command(__doc__, repeats=3)
parser.add_argument("--rows", type=int, default=4)
asked = parsed(parser)
"""

import argparse
import json
from pathlib import Path


def command(about: str, *, repeats: int) -> argparse.ArgumentParser:
    """Model, workload, repeats, where the checkpoint and the JSON go."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("17m", "tiny"), default="17m")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--quick", action="store_true", help="2 prompts, budget 64, one repeat")
    parser.add_argument("--dir", type=Path, default=Path("/tmp/e3jax-bench"), help="where the checkpoint is kept")
    parser.add_argument("--out", type=Path, help="JSON")
    return parser


def add_sampling(parser: argparse.ArgumentParser, *, torch: str, tunix: str) -> None:
    """Our sampler's settings, and how many responses each peer samples together."""
    parser.add_argument("--slots", type=int, default=32, help="ours")
    parser.add_argument("--block", type=int, default=16, help="ours: decode steps between refills")
    parser.add_argument("--prefill_rows", type=int, default=8, help="ours: prompts prefilled together")
    parser.add_argument("--torch_batch", type=int, default=64, help=torch)
    parser.add_argument("--tunix_batch", type=int, default=64, help=tunix)


def add_training(parser: argparse.ArgumentParser, *, torch_rows: str) -> None:
    """Rows of a micro-batch on every side, and what is kept for the backward pass."""
    parser.add_argument("--rows", type=int, default=4, help="ours: rows of a micro-batch")
    parser.add_argument("--chunk", type=int, default=8192, help="ours: tokens whose logits exist at once")
    parser.add_argument("--remat", choices=("none", "matmuls", "attention", "full"), default="matmuls", help="ours")
    parser.add_argument("--torch_rows", type=int, default=8, help=torch_rows)
    parser.add_argument("--tunix_remat", choices=("NONE", "BLOCK", "DECODER"), default="NONE")


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, made small by --quick."""
    asked = parser.parse_args()
    if asked.quick:
        asked.prompts, asked.repeats = min(asked.prompts, 2), 1
    return asked


def keep(found: dict, out: Path | None) -> None:
    """Write the JSON, if one is asked for."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n")
