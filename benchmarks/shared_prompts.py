"""Rollouts of this checkout beside an earlier commit's: what it saves that samples share their prompt's pages.

    python benchmarks/shared_prompts.py                     # beside ff4b67c, which copied every prompt to each sample
    python benchmarks/shared_prompts.py --before=HEAD~1 --repeats=9 --out=shared_prompts.json
    python benchmarks/shared_prompts.py --quick                # a minute, to see that it runs

Both sides run at once, each in a process of its own on a core of its own, and swap cores from turn to turn: how far
two cores of a machine are apart changes from process to process and outweighs what is measured here (cores.py). They
compile first: random weights, equal keys, responses of the recorded lengths (lengths.py). Tokens must be equal bit for
bit. "Cache" is every page that was allocated.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from command import keep
from house import checkout
from lengths import workload

HERE = Path(__file__).parent
# preset, prompts, samples, tokens of a prompt (0: as recorded), budget, slots
WORK = {
    "tiny": ("tiny", 8, 8, 0, 384, 64),
    "tiny, prompts of 512": ("tiny", 8, 16, 512, 256, 32),
    "17m": ("17m", 2, 8, 0, 256, 16),
}
# as in peers.py
SHAPE_17M = dict(vocab_size=8192, width=384, layers=8, heads=6, kv_heads=2, head_width=64, mlp_width=1152)


def responses(vocabulary: int, prompts: int, samples: int, tokens: int, budget: int):
    """Return prompts, and response lengths [P, G] in tokens; a prompt of another length repeats the recorded one."""
    recorded, length_pg = workload(prompts=2 * prompts, samples=8, budget=budget, vocabulary=vocabulary)
    rng = np.random.default_rng(8)
    longer = [rng.integers(2, vocabulary, tokens).tolist() for _ in range(prompts)]
    return longer if tokens else recorded[:prompts], length_pg.reshape(-1, samples)[:prompts]


def side(name: str, repeats: int) -> None:
    """Run one side: after a rollout that compiles, say what each of `repeats` more took, as a line of JSON."""
    import jax
    import jax.numpy as jnp

    from e3jax.models.presets import preset
    from e3jax.models.qwen3 import Qwen3, init_params
    from e3jax.sampler import slots
    from e3jax.sampler.plan import Sampling

    model_name, prompts, samples, tokens, budget, at_once = WORK[name]
    shape = replace(preset("small"), **SHAPE_17M) if model_name == "17m" else preset(model_name)
    model = Qwen3(shape, dtype=jnp.float32, remat="none", kernel="auto")
    params = init_params(model, jax.random.key(0))
    texts, length_pg = responses(model.config.vocab_size, prompts, samples, tokens, budget)
    requests = slots.Requests(texts, range(len(texts)), samples, length_pg.reshape(-1).tolist())
    sampling = Sampling(temperature=1.0, slots=at_once, block=16, prefill_rows=8)
    allocated, new_piece = [0], slots.new_piece

    def counted(*args):
        pieces = new_piece(*args)
        allocated[0] += sum(part.nbytes for part in jax.tree.leaves(pieces))
        return pieces

    slots.new_piece = counted
    for repeat in range(1 + repeats):
        allocated[0], stats, start, worked = 0, {}, time.perf_counter(), time.process_time()
        events = slots.Events(stats=stats)
        r = slots.sample(model, params, requests, sampling, key=jax.random.key(repeat), stop=(), pad=0, events=events)
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
        digest = hashlib.sha256(r.tokens.tobytes()).hexdigest()
        line = dict(
            seconds=seconds, processor_s=worked, bytes=allocated[0], tokens=digest, count=int(r.sampled.sum()), **stats
        )
        print(json.dumps(line), flush=True)


class Side:
    """A process on one core that makes rollouts of one checkout, one after the other."""

    def __init__(self, root: Path, name: str, repeats: int, core: int):
        command = [sys.executable, str(HERE / "shared_prompts.py"), f"--side={name}", f"--repeats={repeats}"]
        environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
        pinned = ["taskset", "-c", str(core), *command]  # before XLA counts the cores: sums depend on its threads
        self.process = subprocess.Popen(pinned, env=environment, stdout=subprocess.PIPE, text=True)

    def results(self) -> list[dict]:
        """Wait for its end, and return what it said of each rollout."""
        said, _ = self.process.communicate()
        assert self.process.returncode == 0
        return [json.loads(line) for line in said.splitlines()]


def compare(name: str, before: Path, *, turns: int, repeats: int) -> dict:
    """Run both sides `turns` times beside each other; return every time, and medians."""
    runs, cores = {"before": [], "now": []}, sorted(os.sched_getaffinity(0))[:2]
    for turn in range(turns):
        here = cores[:: -1 if turn % 2 else 1]
        roots = {"before": before, "now": HERE.parent}
        sides = {which: Side(root, name, repeats, core) for (which, root), core in zip(roots.items(), here)}
        for which, process in sides.items():
            runs[which].append(process.results())
    pairs = zip(runs["before"], runs["now"])
    assert all(a["tokens"] == b["tokens"] for x, y in pairs for a, b in zip(x, y)), f"{name}: the tokens differ"
    found = {}
    for what in ("seconds", "processor_s"):
        times = {which: sorted(line[what] for lines in of for line in lines[1:]) for which, of in runs.items()}
        median = {which: statistics.median(t) for which, t in times.items()}
        found |= {what: times, f"{what}_median": median, f"{what}_ratio": median["before"] / median["now"]}
    cache = {which: of[0][-1]["bytes"] for which, of in runs.items()}
    return {
        **found,
        "cache_bytes": cache,
        "smaller": 1 - cache["now"] / cache["before"],
        "compiling_s": {which: statistics.median(lines[0]["seconds"] for lines in of) for which, of in runs.items()},
        "tokens": runs["now"][0][-1]["count"],
        "shared_pages": runs["now"][0][-1]["shared_pages"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="ff4b67c", help="a commit")
    parser.add_argument("--turns", type=int, default=4, help="processes of each side")
    parser.add_argument("--repeats", type=int, default=3, help="rollouts in a process, after the one that compiles")
    parser.add_argument("--only", help="one row of WORK")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # of a process that this script starts
    args = parser.parse_args()
    if args.side:
        return side(args.side, args.repeats)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp())  # a side compiles in its first turn alone
    names, turns = [args.only] if args.only else list(WORK), 1 if args.quick else args.turns
    import machine

    facts = machine.facts()
    machine.say(facts)
    found = {"benchmark": "shared_prompts", "before": args.before, **facts, "rows": {}}
    print(
        "| | seconds, median (least to most): before | now | faster by | by processor time | cache, MiB: before | now |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        before = checkout(args.before, folder)
        for name in names:
            row = found["rows"][name] = compare(name, before, turns=turns, repeats=1 if args.quick else args.repeats)
            times = (f"{row['seconds_median'][w]:.3f} ({t[0]:.3f} to {t[-1]:.3f})" for w, t in row["seconds"].items())
            faster = (f"{row[f'{what}_ratio']:.2f}" for what in ("seconds", "processor_s"))
            mib = (f"{n / 2**20:.1f}" for n in row["cache_bytes"].values())
            print(f"| {name} | {' | '.join((*times, *faster, *mib))} |", flush=True)
    keep(found, args.out)


if __name__ == "__main__":
    main()
