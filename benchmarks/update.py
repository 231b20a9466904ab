"""The update's speed: forward, backward and AdamW on the same ragged responses, ours beside torch and Tunix.

    python benchmarks/update.py --out=benchmarks/results/update_17m.json
    python benchmarks/update.py --model=tiny --out=benchmarks/results/update_tiny.json
    python benchmarks/update.py --calibrate         # every side once at every micro-batch size
    python benchmarks/update.py --quick

GRPO's clipped loss without KL, mean over all response tokens, old log-probs given. Prompts and lengths are those of
lengths.py, tokens are random. `ragged` is that workload; `dense` has rows of one full length, so that nobody pads.
Ours runs `train/grpo.py`'s `update`, packing and metrics included. A real token is one of a prompt or a response.
"""

import argparse
import statistics
import sys
import time
from types import SimpleNamespace

import jax
import machine
import numpy as np
import optax
import ours
import peers
import torch
from command import add_training, command, keep, parsed
from lengths import workload
from training import LOSS, OurTrainer, Work, make_work

from e3jax.models.presets import flops_per_token
from e3jax.runtime import put
from e3jax.train.grpo import grpo_gradient
from e3jax.train.packing import pack_micro_batches, row_widths
from e3jax.types import Batch

SIDES = ("ours", "torch naive", "torch sorted", "torch tuned", "tunix")
SIZES = {"ours": (2, 4, 8, 16), "torch": (4, 8, 16), "tunix": (2, 4, 8)}  # rows, tried by --calibrate


def with_old_logp(work: Work, model, *, noise: float) -> Work:
    """Old log-probs: torch's of the first policy, and noise so that ratios are not all 1."""
    rng = np.random.default_rng(5)
    old_logp = work.old_logp.copy()
    for i in range(len(work.length)):
        n = work.length[i]
        row = torch.from_numpy(work.tokens[i, :n]).long()
        with torch.inference_mode():
            logits = model(input_ids=row[None]).logits[0, :-1]
            old_logp[i, 1:n] = -torch.nn.functional.cross_entropy(logits, row[1:], reduction="none").numpy()
        old_logp[i, 1:n] += noise * rng.standard_normal(n - 1)
    return work._replace(old_logp=old_logp * (work.weight != 0))


# ---- ours


def our_loss_and_norm(side: ours.Ours, work: Work, *, chunk: int) -> tuple[float, float]:
    """Value and gradient norm of one packed micro-batch."""
    (m,) = pack_micro_batches(work.length, [(len(work.length), row_widths(int(work.length.max()))[0])])
    advantage = np.broadcast_to(work.advantage_b[:, None], work.tokens.shape).astype(np.float32)
    old_logp = m.take(work.old_logp)
    batch = Batch(
        tokens=m.take(work.tokens, ours.PAD),
        position=m.positions(),
        segment=m.segments(),
        weight=m.take(work.weight),
        advantage=m.take(advantage),
        old_logp=old_logp,
        ref_logp=old_logp,
        rollout_logp=old_logp,
    )
    with jax.set_mesh(side.mesh):
        batch = jax.tree.map(lambda x: put(x, "BT"), batch)
        grads, metrics = grpo_gradient(side.model, side.params, batch, temperature=1.0, chunk=chunk, loss=LOSS)
        return float(metrics["total"]), float(optax.global_norm(grads))


def check_losses(side, torch_model, tunix_model, work: Work, *, chunk: int) -> dict:
    """The three losses (to 1e-4) and gradient norms (to .1 %) of a few responses, with ratios of about e^±.2."""
    few = work.of(np.argsort(work.length)[:4])
    few = with_old_logp(few._replace(advantage_b=np.array([1.0, -0.5, 0.25, -2.0])), torch_model, noise=0.2)
    budget, room = int((few.length - few.prompt_len).max()), int(few.prompt_len.max())
    frozen = SimpleNamespace(zero_grad=lambda **_: torch_model.zero_grad(), step=lambda: None)
    found = {
        "ours": our_loss_and_norm(side, few, chunk=chunk),
        "torch": peers.torch_update(torch_model, frozen, few, batch=4, variant="sorted"),
        "torch tuned": peers.torch_update(torch_model, frozen, few, batch=4, variant="tuned"),
        "tunix": peers.tunix_loss_and_norm(
            tunix_model, peers.tunix_example(few, np.arange(4), room=room, budget=budget)
        ),
    }
    torch_model.zero_grad(set_to_none=True)
    loss, norm = found["ours"]
    for name, (other_loss, other_norm) in found.items():
        if abs(other_loss - loss) > 1e-4 or abs(other_norm - norm) > 1e-3 * norm:
            raise SystemExit(f"not the same loss: ours {loss:.6f}, norm {norm:.6f}; {name} {other_loss}, {other_norm}")
    return found


# ---- the comparison


def runners(asked, side, torch_model, path, works: dict, rooms: dict):
    """name -> function(kind, rows) that makes one update; what ours said last."""
    said = {}
    trainers = {"ours": OurTrainer(side, chunk=asked.chunk, room=rooms["ragged"])}
    optimizer = peers.torch_optimizer(torch_model)

    def own(kind, rows):
        # the same rows fit whatever the split of prompt and response is
        said[kind] = trainers["ours"].update(works[kind], rows=rows, budget=asked.budget)

    def tunix(kind, rows):
        micro = -(-len(works[kind].length) // rows)
        if micro not in trainers:
            trainers[micro] = peers.tunix_trainer(peers.load_tunix(path, remat=asked.tunix_remat), micro=micro)
        peers.tunix_update(trainers[micro], works[kind], batch=rows, room=rooms[kind], budget=asked.budget)

    def with_torch(variant):
        def run(kind, rows):
            peers.torch_update(torch_model, optimizer, works[kind], batch=rows, variant=variant)

        return run

    run = {"ours": own, "tunix": tunix, **{f"torch {v}": with_torch(v) for v in ("naive", "sorted", "tuned")}}
    return run, said


def timed(run, kind: str, rows: int) -> float:
    start = time.perf_counter()
    run(kind, rows)
    return time.perf_counter() - start


def prepare(asked):
    """Model on all sides, checked; the two workloads."""
    path = peers.checkpoint(asked.model, asked.dir)
    asked.budget = 64 if asked.quick else peers.BUDGETS[asked.model]
    vocabulary = peers.SHAPES[asked.model]["vocab_size"]
    side = ours.load(path, remat=asked.remat)
    torch_model = peers.load_torch(path).train()
    tunix_model = peers.load_tunix(path)
    gap = peers.check_logits(side, torch_model, tunix_model)
    prompts, length_pg = workload(
        prompts=asked.prompts, samples=asked.samples, budget=asked.budget, vocabulary=vocabulary
    )
    ragged = make_work(prompts, length_pg, vocabulary, seed=1)
    losses = check_losses(side, torch_model, tunix_model, ragged, chunk=asked.chunk)
    # rows of one length that is a width of ours, about as many tokens
    width = row_widths(int(ragged.prompt_len.max()) + asked.budget)[0]
    count = max(round(ragged.length.sum() / width / 8), 1) * 8
    rng = np.random.default_rng(2)
    full = [rng.integers(2, vocabulary, width - asked.budget).tolist() for _ in range(count // 8)]
    dense = make_work(full, np.full((count // 8, 8), asked.budget, np.int32), vocabulary, seed=3)
    works = {
        kind: with_old_logp(work, torch_model, noise=0.01) for kind, work in (("ragged", ragged), ("dense", dense))
    }
    rooms = {kind: int(work.prompt_len.max()) for kind, work in works.items()}
    return path, side, torch_model, works, rooms, {"logits_agree": gap, "losses": losses}


def floor(c, work: Work, limits: dict) -> float:
    """Seconds of all FLOPs (three times the forward pass, nothing recomputed) at the measured peak."""
    return sum(3 * int(n) * flops_per_token(c, (int(n) + 1) / 2) for n in work.length) / limits["flops_per_s"]


def compare(asked) -> dict:
    """Sides in turn on both workloads; what the table shows."""
    facts = machine.facts()
    machine.say(facts)
    path, side, torch_model, works, rooms, checks = prepare(asked)
    print(f"loss and gradient norm of four responses: {checks['losses']}", flush=True)
    limits = machine.limits()
    run, said = runners(asked, side, torch_model, path, works, rooms)
    rows = {s: {"ours": asked.rows, "tunix": asked.tunix_rows}.get(s, asked.torch_rows) for s in asked.sides}
    seconds = {kind: {s: [] for s in asked.sides} for kind in works}
    for kind, times in seconds.items():
        if kind == "dense":
            times.pop("torch naive", None)  # nothing to sort
        for name in times:
            run[name](kind, rows[name])  # compiles
        for repeat in range(asked.repeats):
            for name in times:
                times[name].append(timed(run[name], kind, rows[name]))
                print(
                    f"  {kind} {repeat + 1}/{asked.repeats} {name}: {times[name][-1]:.2f} s",
                    file=sys.stderr,
                    flush=True,
                )
    tokens = {kind: int(work.length.sum()) for kind, work in works.items()}
    median = {kind: {s: statistics.median(t) for s, t in times.items()} for kind, times in seconds.items()}
    return {
        "benchmark": "update",
        "model": asked.model,
        **facts,
        "load_average_after": machine.facts()["load_average"],
        **checks,
        "limits": limits,
        "tokens": tokens,
        "responses": {k: len(w.length) for k, w in works.items()},
        "rows": rows,
        "remat": asked.remat,
        "chunk": asked.chunk,
        "tunix_remat": asked.tunix_remat,
        "seconds": seconds,
        "median_s": median,
        "tokens_per_s": {kind: {s: tokens[kind] / t for s, t in m.items()} for kind, m in median.items()},
        "floor_s": {kind: floor(side.model.config, work, limits) for kind, work in works.items()},
        "padding": {kind: values["pack/padding"] for kind, values in said.items()},
    }


def table(found: dict) -> None:
    """For benchmarks/README.md."""
    for kind, median in found["median_s"].items():
        print(f"{kind}: {found['responses'][kind]} responses, {found['tokens'][kind]:,} real tokens")
        print("| | rows of a micro-batch | seconds, median (least to most) | real tokens/s | ours is faster by |")
        print("|---|---|---|---|---|")
        for name, s in median.items():
            times = found["seconds"][kind][name]
            faster = f"{s / median['ours']:.2f}" if "ours" in median else "–"
            print(
                f"| {name} | {found['rows'][name]} | {s:.2f} ({min(times):.2f} to {max(times):.2f}) "
                f"| {found['tokens_per_s'][kind][name]:,.0f} | {faster} |"
            )
        floor_s = found["floor_s"][kind]
        if "ours" in median:
            print(
                f"floor {floor_s:.2f} s (FLOPs at {found['limits']['flops_per_s'] / 1e9:.0f} GFLOP/s): ours reaches "
                f"{floor_s / median['ours']:.0%} of it; padding of ours {found['padding'][kind]:.1%}"
            )


def calibrate(asked) -> None:
    """Every side once, ragged, at every micro-batch size."""
    machine.say(machine.facts())
    path, side, torch_model, works, rooms, _ = prepare(asked)
    run, _ = runners(asked, side, torch_model, path, works, rooms)
    for name in asked.sides:
        cells = []
        for rows in SIZES[name.split()[0]]:
            run[name]("ragged", rows)
            cells.append(f"{rows} rows {works['ragged'].length.sum() / timed(run[name], 'ragged', rows):,.0f}")
        print(f"{name}, real tokens/s: " + ", ".join(cells), flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = command(__doc__, repeats=3)
    add_training(parser, torch_rows="rows of a micro-batch")
    parser.add_argument("--sides", type=lambda text: text.split(","), default=list(SIDES))
    parser.add_argument("--tunix_rows", type=int, default=4)
    parser.add_argument("--calibrate", action="store_true")
    return parsed(parser)


def main() -> None:
    asked = arguments()
    if asked.calibrate:
        return calibrate(asked)
    found = compare(asked)
    table(found)
    keep(found, asked.out)


if __name__ == "__main__":
    main()
