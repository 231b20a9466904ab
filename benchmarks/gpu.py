"""Qwen3-1.7B (random weights, bfloat16) on one NVIDIA GPU: decoding beside the memory's bandwidth, sampling beside
transformers' generate, the update beside the peak of the matrix units, and where the time goes.

    python benchmarks/gpu.py --out=OUT                        # all parts, each in a process of its own
    python benchmarks/gpu.py --parts=limits,decode --out=OUT
    python benchmarks/gpu.py --quick --model=small --out=/tmp/gpu   # two minutes on any machine, to see that it runs

    limits        bytes/s of a copy, FLOP/s of a bfloat16 product of 8,192²
    transformers  makes the checkpoint; generate as it comes ("eager", dynamic cache) on the recorded lengths
    rollout       our sampler on the same checkpoint, prompts and lengths; log-probs beside torch's and the trainer's
    decode        steps of 128 slots that hold 2k, 2k to 8k and 8k tokens each
    update        train/grpo.py's update of packed rows
    lm_…          an RL step of a small language model, only where --parts names them: gpu_lm.py

OUT/PART.json is what a part found; OUT/decode_kernels.json and OUT/update_kernels.json how long every kernel ran
(benchmarks/gpu_picture.py draws them). Lengths are enforced as rollout.py does. XLA's flags are those that the programs
set themselves; --xla_flags tries others, such as --xla_flags=--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL, which
puts the loop of a block of decode steps into one graph of the device.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from gpu_lm import LM_RUN, counted
from lengths import workload

PARTS = ("limits", "transformers", "rollout", "decode", "update")


def preset_of(name: str):
    """A model's shape."""
    from e3jax.models.presets import preset

    return preset(name)


def limits(asked) -> dict:
    """What this card's memory and matrix units do."""
    import jax
    import jax.numpy as jnp

    def seconds(function, *arguments):
        for _ in range(3):
            jax.block_until_ready(function(*arguments))
        times = []
        for _ in range(10):
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    n, megabytes = (8192, 4096) if not asked.quick else (512, 64)
    a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in range(2))
    x = jax.random.normal(jax.random.key(2), (megabytes * 2**18,), jnp.float32)
    product, copy, total = jax.jit(jnp.matmul), jax.jit(lambda x: -x), jax.jit(jnp.sum)
    return {
        "device": jax.devices()[0].device_kind,
        "flops_per_s": 2 * n**3 / seconds(product, a, b),
        "copy_bytes_per_s": 2 * x.nbytes / seconds(copy, x),
        "read_bytes_per_s": x.nbytes / seconds(total, x),
    }


# ---- transformers


def transformers_part(asked) -> dict:
    """The checkpoint, its logits for a few tokens, and generate on the workload."""
    import torch
    import transformers
    from transformers_side import random_qwen3, torch_roll

    c = preset_of(asked.model)
    assert c.tied, f"{asked.model}: random_qwen3 ties its embeddings"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = random_qwen3(
        theta=c.rope_theta,
        device=device,
        vocab_size=c.vocab_size,
        hidden_size=c.width,
        intermediate_size=c.mlp_width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        head_dim=c.head_width,
    )
    model = model.to(torch.bfloat16).eval()
    model.save_pretrained(asked.dir / "model")
    token_bt = some_tokens(c)
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(token_bt).long().to(device)).logits.float().cpu().numpy()
    np.save(asked.dir / "logits.npy", logits)

    copied = torch.randn((2**30 if device == "cuda" else 2**20,), device=device)
    target, copies = torch.empty_like(copied), []
    for _ in range(10):
        start = time.perf_counter()
        target.copy_(copied)
        if device == "cuda":
            torch.cuda.synchronize()
        copies.append(time.perf_counter() - start)
    bandwidth = 2 * copied.nbytes / statistics.median(copies)
    del copied, target
    prompts, length_pg = the_workload(asked, c)
    repeated, length_b = [p for p in prompts for _ in range(length_pg.shape[1])], length_pg.reshape(-1)
    torch_roll(model, repeated, np.full(len(length_b), 8, np.int32), batch=asked.torch_batch)  # warm
    times = []
    for _ in range(asked.torch_repeats):
        start = time.perf_counter()
        torch_roll(model, repeated, length_b, batch=asked.torch_batch)
        times.append(time.perf_counter() - start)
    return {
        "seconds": times,
        "batch": asked.torch_batch,
        "tokens": int(length_b.sum()),
        "longest": int(length_b.max()),
        "tokens_per_s": float(length_b.sum() / statistics.median(times)),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "attention": model.config._attn_implementation,
        "copy_bytes_per_s": bandwidth,
    }


def some_tokens(c) -> np.ndarray:
    """[4, 64] on which the two models' logits are compared."""
    return np.random.default_rng(3).integers(2, c.vocab_size, (4, 64)).astype(np.int32)


def the_workload(asked, c):
    """Prompts, and response lengths [P, 8]."""
    return workload(prompts=asked.prompts, samples=8, budget=asked.budget, vocabulary=c.vocab_size)


# ---- ours


def rollout(asked) -> dict:
    """The same responses through our slots; first run compiles."""
    import jax
    import jax.numpy as jnp
    import ours

    from e3jax.train.logprobs import score

    side = ours.load(asked.dir / "model", dtype="bfloat16", params_dtype="bfloat16")
    c = side.model.config
    theirs = np.load(asked.dir / "logits.npy")
    gap = np.abs(ours.logits(side, some_tokens(c)).astype(np.float32) - theirs)
    prompts, length_pg = the_workload(asked, c)
    times = []
    for seed in range(1 + asked.repeats):
        start = time.perf_counter()
        r, stats = ours.roll(
            side, prompts, length_pg, key=seed, slots=asked.slots, block=asked.block, prefill_rows=len(prompts)
        )
        times.append(time.perf_counter() - start)
        print(f"  rollout {seed}: {times[-1]:.2f} s, first token {stats['first_token_s']:.2f} s", flush=True)
    few = np.argsort(r.length)[-8:]
    tokens = jnp.asarray(r.tokens[few, : r.length[few].max() // 2 * 2])
    with jax.set_mesh(side.mesh):
        logp = np.asarray(score(side.model, side.params, tokens, temperature=1.0, chunk=4096))
    sampled = r.sampled[few, : logp.shape[1]]
    apart = np.abs(logp - r.logp[few, : logp.shape[1]])[sampled]
    return {
        "seconds": times[1:],
        "first_s": times[0],
        "slots": asked.slots,
        "block": asked.block,
        "tokens": int(length_pg.sum()),
        "tokens_per_s": float(length_pg.sum() / statistics.median(times[1:])),
        "first_token_s": stats["first_token_s"],
        "occupancy": stats["occupancy"],
        "logits_mean_gap": float(gap.mean()),
        "logits_max_gap": float(gap.max()),
        "parity_mean": float(apart.mean()),
        "parity_max": float(apart.max()),
        "jax": jax.__version__,
    }


def random_model(name: str, *, remat: str, params_dtype: str):
    """A preset with random weights, made on the device."""
    import jax
    import jax.numpy as jnp
    import ours

    from e3jax.models.qwen3 import Qwen3, cast_matrices, init_params
    from e3jax.sharding import make_mesh

    mesh = make_mesh(data=1, fsdp=-1, tensor=1)
    model = Qwen3(preset_of(name), dtype=jnp.dtype("bfloat16"), remat=remat, kernel="auto")
    with jax.set_mesh(mesh):
        params = jax.jit(lambda: cast_matrices(init_params(model, jax.random.key(0)), params_dtype))()
    return ours.Ours(model, params, mesh)


def decode(asked) -> dict:
    """Milliseconds of a decode step; the floor reads every matrix and every live key and value once."""
    import jax
    import jax.numpy as jnp

    from e3jax.models.pages import MERGED, PAGE, Pages, Piece
    from e3jax.models.pages_triton import WARPS
    from e3jax.models.presets import num_params
    from e3jax.sampler.choose import Choice
    from e3jax.sampler.decode import Slots, decode_block
    from e3jax.sampler.layout import of_prefill_and_decoding
    from e3jax.sampler.page_table import PageTable, pages_of
    from e3jax.sampler.plan import size_bucket

    side = random_model(asked.model, remat="none", params_dtype="bfloat16")
    model, c, j = side.model, side.model.config, asked.slots
    steps, rounds, weights = asked.block, asked.rounds, num_params(c) * 2
    each = c.layers * 2 * c.kv_heads * c.head_width * 2  # bytes of a position

    def random(key, *shape):
        keys = jax.random.split(key, shape[0])
        return jax.lax.map(lambda k: jax.random.normal(k, shape[1:], jnp.bfloat16), keys)

    make = jax.jit(random, static_argnums=(1, 2, 3, 4, 5))
    found = {}
    with jax.set_mesh(side.mesh):
        params = of_prefill_and_decoding(side.params, model.dtype, platform=jax.default_backend())[1]
        side, pools_n = None, 1 if "layers" in params else c.layers
        for name in asked.contexts:
            least, _, most = name.partition("-")  # the largest pool comes first: freed memory is in pieces
            context_j = np.linspace(int(least), int(most or least), j).astype(int)
            reserved = context_j + steps * (rounds + 3)
            longest = pages_of(int(reserved.max()), PAGE)
            columns = size_bucket(-(-longest // MERGED) * MERGED)
            book = PageTable.empty(1, j, page=PAGE, columns=columns, longest=longest)
            shape = c.layers // pools_n, sum(book.reserve(reserved)), c.kv_heads
            pools = tuple(
                (Piece(make(key, *shape, c.head_width, PAGE), make(key, *shape, PAGE, c.head_width)),)
                for key in jax.random.split(jax.random.key(1), pools_n)
            )

            def int32(x):
                return jnp.asarray(np.broadcast_to(x, j), jnp.int32)

            last = jax.random.randint(jax.random.key(4), (j, 1), 2, c.vocab_size, jnp.int32)
            state = Slots(
                last,
                int32(context_j),
                int32(1 << 29),
                int32(1),
                jnp.ones(j, bool),
                jnp.zeros(j, bool),
                jax.random.split(jax.random.key(3), j),
            )
            times, kernels, context = [], {}, context_j.astype(float)

            def block(pools, state, book=book):
                no_owners = np.full((0, 1), -1, np.int32)
                owned = (jnp.asarray(x) for x in (book.table_jn, *book.owners(), no_owners))
                cache = Pages(pools, ((),) * pools_n, *owned)  # donated
                start = time.perf_counter()
                cache, state, drawn = decode_block(
                    model,
                    params,
                    cache,
                    state,
                    jnp.int32(j + 1),
                    steps=steps,
                    stop=((1,) * 8,),
                    choice=Choice(1.0, 0, 1.0),
                )
                jax.block_until_ready(drawn)
                return cache.pools, state, time.perf_counter() - start, drawn

            pools, state, first, _ = block(pools, state)
            print(f"  decode {name}: first block {first:.1f} s", flush=True)
            for _ in range(rounds):
                pools, state, s, drawn = block(pools, state)
                times.append(s / steps * 1000)
            if asked.out and most:
                with traced(asked.out / "decode_kernels.json", steps):
                    pools, state, *_ = block(pools, state)
                kernels = counted(asked.out / "decode_kernels.json", c.layers)
            live = float((context + steps * (1 + rounds / 2)).sum())
            ms = statistics.median(times)
            found[name] = {
                "ms": ms,
                "least": min(times),
                "most": max(times),
                "first_s": first,
                "live_tokens": live,
                "pages": shape[1],
                "bytes": weights + live * each,
                "bytes_per_s": (weights + live * each) / ms * 1000,
                "finite": bool(np.isfinite(np.asarray(drawn.logp_ij)).all()),
                "tokens_per_s": j / ms * 1000,
                **kernels,
            }
            pools = None  # before the next pool is made
            print(f"  {name}: {ms:.2f} ms a step, {found[name]['bytes_per_s'] / 1e12:.2f} TB/s", flush=True)
    sizes = {"page": PAGE, "warps": WARPS, "rounds": rounds, "weights_bytes": weights, "position_bytes": each}
    return {"slots": j, "steps": steps, **sizes, "contexts": found}


def update(asked) -> dict:
    """Model FLOPs per second of whole updates (three forward passes' FLOPs, real tokens, nothing recomputed)."""
    from training import OurTrainer, make_work

    from e3jax.models.presets import flops_per_token

    side = random_model(asked.model, remat=asked.remat, params_dtype="float32")
    c = side.model.config
    prompts, length_pg = workload(
        prompts=asked.update_prompts, samples=8, budget=asked.update_budget, vocabulary=c.vocab_size
    )
    work = make_work(prompts, length_pg, c.vocab_size, seed=1)
    near = np.where(work.weight != 0, -np.log(c.vocab_size), 0).astype(np.float32)  # of an untrained model, about
    work = work._replace(old_logp=near)
    trainer = OurTrainer(side, chunk=asked.chunk, room=asked.room)
    side = None
    flops = sum(3 * int(n) * flops_per_token(c, (int(n) + 1) / 2) for n in work.length)
    times = []
    for i in range(1 + asked.repeats):
        start = time.perf_counter()
        values = trainer.update(work, rows=asked.rows, budget=asked.update_budget)
        times.append(time.perf_counter() - start)
        print(f"  update {i}: {times[-1]:.2f} s, {flops / times[-1] / 1e12:.0f} TFLOP/s", flush=True)
    if asked.out:
        with traced(asked.out / "update_kernels.json", 1):
            trainer.update(work, rows=asked.rows, budget=asked.update_budget)
    return {
        "seconds": times[1:],
        "first_s": times[0],
        "tokens": int(work.length.sum()),
        "responses": len(work.length),
        "rows": asked.rows,
        "chunk": asked.chunk,
        "remat": asked.remat,
        "budget": asked.update_budget,
        "flops": flops,
        "flops_per_s": flops / statistics.median(times[1:]),
        "padding": values["pack/padding"],
        "grad_norm": float(values["optim/grad_norm"]),
    }


@contextlib.contextmanager
def traced(file: Path, steps: int):
    """Record the kernels that run within: {"lines": {line: {kernel: [times, microseconds]}}, …} of `steps`."""
    import jax

    with tempfile.TemporaryDirectory() as directory:
        jax.profiler.start_trace(directory)
        start = time.perf_counter()
        yield
        wall = time.perf_counter() - start
        jax.profiler.stop_trace()
        lines = {}
        for found in Path(directory).rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(found)).planes:
                if "GPU" in plane.name:
                    for line in plane.lines:
                        kernels = lines.setdefault(f"{plane.name} {line.name}", {})
                        for event in line.events:
                            times, us = kernels.get(event.name, (0, 0.0))
                            kernels[event.name] = times + 1, us + event.duration_ns / 1000
        file.write_text(json.dumps({"steps": steps, "wall_s": wall, "lines": lines}))


RUN = {"limits": limits, "transformers": transformers_part, "rollout": rollout, "decode": decode, "update": update}
RUN |= LM_RUN


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--part", choices=tuple(RUN), help="this one, in this process")
    parser.add_argument("--lm_model", default="", help="lm_step: the model's directory")
    parser.add_argument("--model", default="qwen3-1.7b", help="a preset")
    parser.add_argument("--out", type=Path, help="a folder")
    parser.add_argument("--dir", type=Path, default=Path("/tmp/e3jax-gpu"), help="where the checkpoint is kept")
    parser.add_argument("--xla_flags", default="", help="beside those that the programs set")
    parser.add_argument("--limit_s", type=float, default=240, help="of one part")
    parser.add_argument("--quick", action="store_true", help="smaller everything")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=16, help="rollouts: 8 responses each")
    parser.add_argument("--budget", type=int, default=512, help="rollouts")
    parser.add_argument("--slots", type=int, default=128)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5, help="decode: timed blocks")
    parser.add_argument(
        "--contexts",
        type=lambda text: text.split(","),
        default=["8192", "2048-8192", "2048"],
        help="decode: tokens that the slots hold, all the same or spread evenly; the one with a dash is traced",
    )
    parser.add_argument("--torch_batch", type=int, default=128)
    parser.add_argument("--torch_repeats", type=int, default=1)
    parser.add_argument("--update_prompts", type=int, default=16)
    parser.add_argument("--update_budget", type=int, default=4096)
    parser.add_argument("--room", type=int, default=128, help="update: tokens for a prompt")
    parser.add_argument("--rows", type=int, default=8, help="update: of a micro-batch")
    parser.add_argument("--chunk", type=int, default=8192)
    parser.add_argument("--remat", default="matmuls")
    asked = parser.parse_args()
    if asked.quick:
        asked.prompts, asked.budget, asked.slots, asked.repeats, asked.rounds = 2, 64, 8, 1, 1
        asked.contexts = ["200", "50-100"]
        asked.update_prompts, asked.update_budget, asked.rows, asked.block = 2, 128, 2, 8
    return asked


def main() -> None:
    asked = arguments()
    asked.dir.mkdir(parents=True, exist_ok=True)
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
    if asked.part:
        # before JAX is imported; by default it takes three quarters of the memory, too little for 128 slots of 8k
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {asked.xla_flags}".strip()
        share = os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".95")
        if not Path("/dev/nvidiactl").exists():
            os.environ["JAX_PLATFORMS"] = "cpu"  # where libtpu is installed without a TPU, its profiler crashes
        found = RUN[asked.part](asked) | {"xla_flags": os.environ["XLA_FLAGS"], "memory_share": share}
        print(json.dumps({asked.part: found}), flush=True)
        if asked.out:
            (asked.out / f"{asked.part}.json").write_text(json.dumps(found, indent=1) + "\n")
        return
    failed = []
    for part in asked.parts:  # a process each: neither framework gives memory back
        start = time.perf_counter()
        command = [sys.executable, __file__, *sys.argv[1:], f"--part={part}"]
        try:
            code = subprocess.run(command, timeout=asked.limit_s).returncode
        except subprocess.TimeoutExpired:
            code = "out of time"
        failed += [part] if code else []
        print(f"{part}: {time.perf_counter() - start:.0f} s, {code}", flush=True)
    sys.exit(f"not measured: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
