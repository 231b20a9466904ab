"""Sampling speed: ours beside transformers' generate and Tunix's sampler, and beside what the machine could do.

    python benchmarks/rollout.py --out=benchmarks/results/rollout_17m.json
    python benchmarks/rollout.py --model=tiny --out=benchmarks/results/rollout_tiny.json
    python benchmarks/rollout.py --calibrate                # every peer once at every batch size: which is its best?
    python benchmarks/rollout.py --budgets=1024,32768       # ours only: what a limit costs that nobody reaches
    python benchmarks/rollout.py --quick                    # a minute, to see that it runs

One process, one checkpoint of random weights (logits compared first), the same prompts, the same recorded lengths
(lengths.py), peers in turn, medians. A "real" token is one that a response really has: nothing is counted that was
computed for padding or for rows that had ended. The virtual environment: peers.py.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cores
import numpy as np
import ours
from command import add_sampling, command, keep, parsed
from lengths import workload

from e3jax.models.presets import ModelConfig, flops_per_token, num_params

PEERS = ("ours", "transformers", "tunix")
BATCHES = (16, 32, 64)  # tried by --calibrate
SHORT = 150  # tokens: mean of the responses of --budgets


def floor(c: ModelConfig, prompts, length_pg: np.ndarray, slots: int, limits: dict) -> dict:
    """Seconds that no engine with so many slots can beat: every step reads all weights and the live cache once.

    As many steps as the slots need when none ever idles, or as the longest response has; and all FLOPs at the peak of
    a large matrix product.
    """
    prompt_pg = np.array([[len(p)] for p in prompts]) + np.zeros_like(length_pg)
    tokens = int(length_pg.sum())
    steps = max(math.ceil(tokens / slots), int(length_pg.max()))
    context = float((length_pg * (prompt_pg + (length_pg + 1) / 2)).sum())  # positions read, over all tokens
    read = steps * num_params(c) * 4 + context * c.layers * 2 * c.kv_heads * c.head_width * 4
    flops = tokens * flops_per_token(c, context / tokens)
    flops += sum(n * (flops_per_token(c, (n + 1) / 2) - 2 * c.vocab_size * c.width) for n in map(len, prompts))
    by_bytes, by_flops = read / limits["bytes_per_s"], flops / limits["flops_per_s"]
    return {"seconds": max(by_bytes, by_flops), "by_bytes_s": by_bytes, "by_flops_s": by_flops, "steps": steps}


def runners(asked, path: Path, prompts, length_pg: np.ndarray):
    """name -> function(batch, lengths, seed) -> seconds; and what was found out about ours on the way."""
    import peers  # torch and Tunix: not in the processes of --budgets
    from transformers_side import torch_roll

    budget, room = asked.budget, max(map(len, prompts))
    repeated = [p for p in prompts for _ in range(length_pg.shape[1])]
    side = ours.load(path)
    torch_model = peers.load_torch(path)
    tunix_model = peers.load_tunix(path)
    gap = peers.check_logits(side, torch_model, tunix_model)
    sampler = peers.tunix_side(tunix_model, room=room, budget=budget)
    last = {}

    def own(batch, lengths, seed):
        last["rollouts"], last["stats"] = ours.roll(
            side, prompts, lengths, key=seed, slots=batch, block=asked.block, prefill_rows=asked.prefill_rows
        )

    def transformers(batch, lengths, seed):
        peers.torch.manual_seed(seed)
        torch_roll(torch_model, repeated, lengths.reshape(-1), batch=batch)

    def tunix(batch, lengths, seed):
        peers.tunix_roll(sampler, repeated, lengths.reshape(-1), batch=batch, room=room, budget=budget, seed=seed)

    def timed(run):
        def call(batch, lengths, seed):
            start = time.perf_counter()
            run(batch, lengths, seed)
            return time.perf_counter() - start

        return call

    def parity() -> float:
        """Largest difference between a sampled token's log-prob and torch's, of a few of our responses."""
        r, worst = last["rollouts"], 0.0
        for i in np.linspace(0, len(r.tokens) - 1, 4).astype(int):
            token_t = peers.torch.from_numpy(r.tokens[i, : r.length[i]]).long()
            with peers.torch.inference_mode():
                logp = torch_model(token_t[None]).logits[0, :-1].log_softmax(-1)
            theirs = logp.gather(1, token_t[1:, None])[:, 0].numpy()[r.prompt_len[i] - 1 :]
            worst = max(worst, float(np.abs(theirs - r.logp[i, r.prompt_len[i] : r.length[i]]).max()))
        return worst

    return {"ours": timed(own), "transformers": timed(transformers), "tunix": timed(tunix)}, last, gap, parity


def warm(name: str, run, batch: int, length_pg: np.ndarray) -> None:
    """Compile what a run needs: ours has a program per cache size, the peers' shapes do not depend on lengths."""
    run(batch, length_pg if name == "ours" else np.minimum(length_pg, 3), 0)


def compare(asked, path: Path) -> dict:
    """Peers in turn, `asked.repeats` times each; the table's rows."""
    import machine

    prompts, length_pg = workload(
        prompts=asked.prompts, samples=asked.samples, budget=asked.budget, vocabulary=asked.vocabulary
    )
    facts = machine.facts()
    machine.say(facts)
    run, last, gap, parity = runners(asked, path, prompts, length_pg)
    tokens, total = int(length_pg.sum()), length_pg.size
    print(
        f"{asked.model}: {len(prompts)} prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens, "
        f"{length_pg.shape[1]} responses each, {tokens} response tokens (mean {length_pg.mean():.0f}, longest "
        f"{length_pg.max()}); logits of all agree to {gap:.1e}",
        flush=True,
    )
    limits = machine.limits()
    batch = {"ours": asked.slots, "transformers": asked.torch_batch, "tunix": asked.tunix_batch}
    batch = {name: min(b, total) for name, b in batch.items()}
    seconds, cores_ns = {name: [] for name in asked.peers}, []
    for name in asked.peers:
        warm(name, run[name], batch[name], length_pg)
    for repeat in range(asked.repeats):
        cores_ns.append(cores.distance())
        for name in asked.peers:
            seconds[name].append(run[name](batch[name], length_pg, repeat))
            print(f"  {repeat + 1}/{asked.repeats} {name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    found = {
        "benchmark": "rollout",
        "model": asked.model,
        **facts,
        "load_average_after": machine.facts()["load_average"],
        "prompts": len(prompts),
        "prompt_tokens": sum(map(len, prompts)),
        "responses": total,
        "tokens": tokens,
        "limits": limits,
        "logits_agree": gap,
        "batch": batch,
        "block": asked.block,
        "seconds": seconds,
        "cores_ns": cores_ns,
    }
    if "ours" in asked.peers:
        found["parity"] = parity()
        assert found["parity"] <= 1e-4, f"sampled log-probs differ from torch's by {found['parity']:.2g}"
        found["ours"] = last["stats"]
        found["floor"] = floor(ours.load(path).model.config, prompts, length_pg, batch["ours"], limits)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    found["median_s"] = median
    found["tokens_per_s"] = {name: tokens / s for name, s in median.items()}
    found["ours_faster"] = {name: s / median["ours"] for name, s in median.items() if "ours" in median}
    return found


def table(found: dict) -> None:
    """For benchmarks/README.md."""
    print("| | batch or slots | seconds, median (least to most) | real tokens/s | ours is faster by |")
    print("|---|---|---|---|---|")
    for name, times in found["seconds"].items():
        faster = found["ours_faster"].get(name)
        print(
            f"| {name} | {found['batch'][name]} | {found['median_s'][name]:.2f} ({min(times):.2f} to {max(times):.2f}) "
            f"| {found['tokens_per_s'][name]:,.0f} | {'–' if faster is None else f'{faster:.2f}'} |"
        )
    print(f"core to core before each repeat: {', '.join(f'{ns:.0f}' for ns in found['cores_ns'])} ns (cores.py)")
    if "floor" in found:
        low, stats = found["floor"], found["ours"]
        occupancy = "no request ever waited" if stats["occupancy"] is None else f"{stats['occupancy']:.3f}"
        print(
            f"floor {low['seconds']:.2f} s (bytes {low['by_bytes_s']:.2f} s at "
            f"{found['limits']['bytes_per_s'] / 1e9:.1f} GB/s, FLOPs {low['by_flops_s']:.2f} s at "
            f"{found['limits']['flops_per_s'] / 1e9:.0f} GFLOP/s): ours reaches "
            f"{low['seconds'] / found['median_s']['ours']:.0%} of it; occupancy until the queue is empty {occupancy}; "
            f"{stats['prefilled']} prompt tokens prefilled, {found['prompt_tokens']} in all prompts; first token after "
            f"{stats['first_token_s']:.2f} s; log-probs differ from torch's by {found['parity']:.1e}"
        )


def calibrate(asked, path: Path) -> None:
    """Every peer once, whole workload, at every batch size."""
    import machine

    prompts, length_pg = workload(
        prompts=asked.prompts, samples=asked.samples, budget=asked.budget, vocabulary=asked.vocabulary
    )
    machine.say(machine.facts())
    run, *_ = runners(asked, path, prompts, length_pg)
    print("| | " + " | ".join(f"{b}" for b in BATCHES) + " |\n|---|" + "---|" * len(BATCHES), flush=True)
    for name in asked.peers:
        cells = []
        for batch in (min(b, length_pg.size) for b in BATCHES):
            warm(name, run[name], batch, length_pg)
            cells.append(f"{length_pg.sum() / run[name](batch, length_pg, 1):,.0f}")
        print(f"| {name}, real tokens/s | " + " | ".join(cells) + " |", flush=True)


# ---- what a limit costs that nobody reaches


def one_limit(asked, path: Path) -> None:
    """In a process of its own: the same responses with one limit; times, peak memory and the tokens' file."""
    import jax

    side = ours.load(path)
    c = side.model.config
    prompts, _ = workload(prompts=asked.prompts, samples=1, budget=1, vocabulary=c.vocab_size)
    stop = range(2, 2 + math.ceil(c.vocab_size / (8 if asked.quick else SHORT)))
    jax.block_until_ready(side.params)
    before, seconds = ours.peak_memory(), []
    for _ in range(1 + asked.repeats):  # the first compiles
        start = time.perf_counter()
        rollouts, _ = ours.roll(
            side,
            prompts,
            None,
            key=11,
            slots=asked.slots,
            block=asked.block,
            prefill_rows=asked.prefill_rows,
            samples=asked.samples,
            budget=asked.limit,
            stop=tuple(stop),
        )
        seconds.append(time.perf_counter() - start)
    np.savez(asked.out, tokens=rollouts.tokens, length=rollouts.length, logp=rollouts.logp, done=rollouts.done)
    print(json.dumps({"seconds": seconds, "before": before, "peak": ours.peak_memory()}))


def limits_compared(asked, path: Path) -> dict:
    """Fresh processes in turn, two of each limit; ratios to the smallest limit."""
    import machine

    facts = machine.facts()
    machine.say(facts)
    runs = {limit: [] for limit in asked.budgets}
    with tempfile.TemporaryDirectory() as directory:
        for turn in range(1 if asked.quick else 2):
            for limit in asked.budgets:
                command = [
                    sys.executable,
                    __file__,
                    f"--model={asked.model}",
                    f"--prompts={asked.prompts}",
                    f"--samples={asked.samples}",
                    f"--repeats={asked.repeats}",
                    f"--slots={asked.slots}",
                    f"--block={asked.block}",
                    f"--prefill_rows={asked.prefill_rows}",
                    f"--dir={asked.dir}",
                    f"--limit={limit}",
                    f"--out={directory}/{limit}-{turn}.npz",
                    *(["--quick"] * asked.quick),
                ]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                runs[limit].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"  limit {limit}: {runs[limit][-1]}", file=sys.stderr, flush=True)
        first = np.load(f"{directory}/{asked.budgets[0]}-0.npz")
        assert first["done"].all(), "a response reached the smallest limit: the two would differ"
        for limit in asked.budgets[1:]:
            other = np.load(f"{directory}/{limit}-0.npz")
            for name in ("tokens", "length", "logp"):
                assert np.array_equal(first[name], other[name]), f"limit {limit} changed {name}: not the same work"
        length_b = first["length"]
    rows = {}
    for limit, found in runs.items():
        rows[limit] = {
            "warm_s": statistics.median(s for f in found for s in f["seconds"][1:]),
            "cold_s": statistics.median(f["seconds"][0] for f in found),
            "peak_mib": statistics.median(f["peak"] for f in found) / 2**20,
            "sampling_mib": statistics.median(f["peak"] - f["before"] for f in found) / 2**20,
        }
    print(
        f"{len(length_b)} responses, longest row {length_b.max()} tokens, equal tokens and log-probs with every limit"
    )
    print("| limit | seconds | ratio | first call, compiling | ratio | peak MiB | ratio | of it above start | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    base = rows[asked.budgets[0]]
    for limit, row in rows.items():
        cells = (f"{row[k]:,.2f} | {row[k] / base[k]:.3f}" for k in ("warm_s", "cold_s", "peak_mib", "sampling_mib"))
        print(f"| {limit:,} | {' | '.join(cells)} |")
    return {"benchmark": "limits", "model": asked.model, **facts, "slots": asked.slots, "rows": rows, "runs": runs}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = command(__doc__, repeats=3)
    add_sampling(parser, torch="responses together", tunix="responses together")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(PEERS))
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--budgets", type=lambda text: sorted(map(int, text.split(","))))
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)  # of a process that --budgets starts
    return parsed(parser)


def main() -> None:
    asked = arguments()
    if asked.limit:
        return one_limit(asked, asked.dir / asked.model)
    import peers

    path = peers.checkpoint(asked.model, asked.dir)
    asked.budget = 64 if asked.quick else peers.BUDGETS[asked.model]
    asked.vocabulary = peers.SHAPES[asked.model]["vocab_size"]
    if asked.calibrate:
        return calibrate(asked, path)
    found = limits_compared(asked, path) if asked.budgets else compare(asked, path)
    if not asked.budgets:
        table(found)
    keep(found, asked.out)


if __name__ == "__main__":
    main()
