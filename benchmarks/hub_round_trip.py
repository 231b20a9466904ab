"""A full-size random Qwen3-0.6B made by transformers: convert, load, generate, export; seconds and peak memory of each.

    pip install -e '.[parity]'
    python benchmarks/hub_round_trip.py --dir=/tmp/hub --tokenizer=../shared/data/qwen3-tokenizer

Every step is a process of its own, so that a peak is that step's. "allowed" is the limit for loading: the target
itself, the largest stacked parameter and 1 GiB, beside what the process holds before (Python, JAX, libraries).
Results: benchmarks/README.md.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from safetensors import safe_open

from e3jax.checkpoint.hf import inventory

MAKE = """
import sys, torch, transformers
torch.manual_seed(0)
config = transformers.Qwen3Config(
    vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
    num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, rms_norm_eps=1e-6, tie_word_embeddings=True,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6}, eos_token_id=151645, pad_token_id=151643,
    initializer_range=0.05,
)
torch.set_default_dtype(torch.bfloat16)
transformers.Qwen3ForCausalLM(config).save_pretrained(sys.argv[1])
transformers.AutoTokenizer.from_pretrained(sys.argv[2]).save_pretrained(sys.argv[1])
"""
LOAD = """
import json, resource, sys
import jax
from e3jax.checkpoint.pretrained import load_params, model_config
from e3jax.models.qwen3 import Qwen3, abstract_params
from e3jax.sharding import make_mesh

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

source, dtype, shards = sys.argv[1:]
mesh = make_mesh(data=1, fsdp=int(shards), tensor=1)
model = Qwen3(model_config(source), dtype=jax.numpy.float32, remat="none", kernel="xla")
like = abstract_params(model, mesh, dtype=dtype)
jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))
before = peak()
params = jax.block_until_ready(load_params(source, like))
sizes = [x.nbytes / 2**30 for x in jax.tree.leaves(params)]
print(json.dumps(dict(before=before, peak=peak(), target=sum(sizes), largest=max(sizes))))
"""


def step(name: str, *command: str, environment=None) -> dict:
    """Run a process; its seconds, its peak resident memory in GiB, and the JSON of its last line, if any."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"} | (environment or {})
    )
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{name} failed: {command}")
    row = {"step": name, "seconds": time.perf_counter() - start, "peak": usage.ru_maxrss / 2**20}
    last = output.strip().splitlines()[-1] if output.strip() else ""
    row |= {"said": json.loads(last) if last.startswith("{") else last}
    print(json.dumps(row), flush=True)
    return row


def same_tensors(left: Path, right: Path) -> bool:
    """Whether two directories hold the same tensors, bit for bit, however they are cut into files."""
    a, b = inventory(left), inventory(right)

    def bits(stored, name):
        with safe_open(stored[name].file, "np", backend="pread") as opened:
            return opened.get_tensor(name).tobytes()

    return a.keys() == b.keys() and all(bits(a, name) == bits(b, name) for name in a)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--tokenizer", required=True)
    a = parser.parse_args()
    python, hub, ours, back = sys.executable, a.dir / "hub", a.dir / "e3jax", a.dir / "back"
    rows = [step("make with transformers, bfloat16", python, "-c", MAKE, str(hub), a.tokenizer)]
    convert = (python, "-m", "e3jax.tools.convert")
    imports = "import jax, transformers.models.auto.tokenization_auto, e3jax.tools.convert; jax.devices()"
    rows.append(step("start Python with all that convert imports", python, "-c", imports))
    start = rows[-1]["peak"]
    rows.append(step("convert to e3jax", *convert, f"--from={hub}", f"--to={ours}"))
    rows.append(step("convert back", *convert, f"--from={ours}", f"--to={back}"))
    wide, wide_back = a.dir / "e3jax32", a.dir / "back32"
    rows.append(step("convert to e3jax as float32", *convert, f"--from={hub}", f"--to={wide}", "--dtype=float32"))
    rows.append(step("convert that back", *convert, f"--from={wide}", f"--to={wide_back}"))
    for row, size in zip(rows[-4:], (2, 2, 4, 4)):  # bytes a parameter; the embedding is the largest
        row["allowed"] = start + (596_049_920 + 151_936 * 1024) * size / 2**30 + 1
    for dtype in ("bfloat16", "float32"):
        for source, what in ((hub, "safetensors"), (ours, "orbax")):
            rows.append(step(f"load {what} as {dtype}", python, "-c", LOAD, str(source), dtype, "1"))
    eight = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    rows.append(
        step(
            "load safetensors as float32 on 8 devices", python, "-c", LOAD, str(hub), "float32", "8", environment=eight
        )
    )
    asked = ("--prompt=Count from one to ten.", "--budget=64", "--temperature=1", "--seed=1")
    generate = (python, "-m", "e3jax.tools.generate")
    rows.append(step("generate 64 tokens, float32", *generate, f"--model={hub}", *asked))
    rows.append(step("the same from e3jax's format", *generate, f"--model={ours}", *asked))
    rows.append(step("the same from the export", *generate, f"--model={back}", *asked))
    same = same_tensors(hub, back)
    print("\n| step | seconds | peak GiB | allowed GiB |\n|---|---|---|---|")
    for row in rows:
        said = row["said"] if isinstance(row["said"], dict) and "target" in row["said"] else None
        if said:
            row["allowed"] = said["before"] + said["target"] + said["largest"] + 1
        allowed = f"{row['allowed']:.2f}" if "allowed" in row else "–"
        print(f"| {row['step']} | {row['seconds']:.0f} | {row['peak']:.2f} | {allowed} |")
    texts = {row["said"]["response"] for row in rows if isinstance(row["said"], dict) and "response" in row["said"]}
    print(f"\nsafetensors there and back, every tensor bit-equal: {same}; generated texts equal: {len(texts) == 1}")


if __name__ == "__main__":
    main()
