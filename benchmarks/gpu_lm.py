"""An RL step of a small language model on one NVIDIA GPU: parts of gpu.py that a table of steps is made of.

    python benchmarks/gpu.py --parts=limits,lm_rollout,lm_update,lm_peers,lm_step,quickstart --out=OUT
    python benchmarks/gpu.py --quick --parts=lm_rollout,lm_update --out=/tmp/gpu       # on any machine

Shapes of SmolLM2-135M and Qwen3-0.6B (--quick: "small") with random weights; 64 prompts of 140 tokens, 8 responses
each, whose recorded skewed lengths are scaled to a mean of 238 of at most 512, as in the run of 2026-11-29 that was
profiled (docs/recipes/countdown.md).

    lm_rollout   512 slots. The floor reads the weights at every step, and every live key and value once
    lm_update    the update of those responses: 4 minibatches, old log-probs by the trainer, KL. The floor counts the
                 FLOPs of 5 forward passes of real tokens
    lm_peers     transformers on the same prompts and lengths: generate, and continuous batching (generate_batch)
    lm_step      RL steps of configs/countdown_lm.py, with the model directory --lm_model
    quickstart   configs/quickstart.py from its first line to its report
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from lengths import FILE

MODELS = ("smollm2-135m", "qwen3-0.6b")
PROMPT, SAMPLES, LIMIT, MEAN = 140, 8, 512, 238
ROOT = Path(__file__).parent.parent


def models(asked) -> tuple[str, ...]:
    """Return the presets."""
    return ("small",) if asked.quick else MODELS


def lm_workload(prompts: int, vocabulary: int, limit: int = LIMIT) -> tuple[list[list[int]], np.ndarray]:
    """Return prompts of random tokens, and response lengths [P, 8] whose mean is MEAN / LIMIT of the limit, about."""
    share = np.array(json.loads(FILE.read_text())["share"])
    low, high = 1.0, 8.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(middle * share, 1).mean() < MEAN / LIMIT else (low, middle)
    length = np.maximum(np.rint(np.minimum(low * share, 1) * limit), 1).astype(np.int32)
    length_pg = np.resize(length, (prompts, SAMPLES))  # the record again from its start, where it is too short
    rng = np.random.default_rng(7)
    return [rng.integers(2, vocabulary, PROMPT).tolist() for _ in range(prompts)], length_pg


def decode_bytes(c, length_pg: np.ndarray, waves_steps: int) -> float:
    """Return the bytes that decoding has to read at least: weights every step, and keys and values of live tokens."""
    from e3jax.models.presets import num_params

    n = length_pg.reshape(-1).astype(float)
    token = 2 * c.layers * c.kv_heads * c.head_width * 2
    return waves_steps * num_params(c) * 2 + float((PROMPT * n + n * (n + 1) / 2).sum()) * token


def lm_rollout(asked) -> dict:
    """Seconds of a rollout, its first token, its floor, kernels a layer and step."""
    import ours
    from gpu import random_model, traced

    found, prompts_n = {}, 2 if asked.quick else 64
    for name in models(asked):
        side = random_model(name, remat="none", params_dtype="bfloat16")
        c = side.model.config
        prompts, length_pg = lm_workload(prompts_n, c.vocab_size, 32 if asked.quick else LIMIT)
        how = dict(slots=prompts_n * SAMPLES, block=asked.block, prefill_rows=prompts_n)
        times, stats = [], {}
        for seed in range(1 + asked.repeats):
            start = time.perf_counter()
            _, stats = ours.roll(side, prompts, length_pg, key=seed, **how)
            times.append(time.perf_counter() - start)
            print(f"  {name} rollout {seed}: {times[-1]:.2f} s, first {stats['first_token_s']:.3f} s", flush=True)
        kernels = {}
        if asked.out:
            with traced(asked.out / f"lm_rollout_{name}_kernels.json", int(length_pg.max())):
                ours.roll(side, prompts, length_pg, key=9, **how)
            kernels = counted(asked.out / f"lm_rollout_{name}_kernels.json", c.layers)
        found[name] = {
            "seconds": times[1:],
            "first_s": times[0],
            "first_token_s": stats["first_token_s"],
            "tokens": int(length_pg.sum()),
            "mean": float(length_pg.mean()),
            "longest": int(length_pg.max()),
            "tokens_per_s": float(length_pg.sum() / statistics.median(times[1:])),
            "floor_bytes": decode_bytes(c, length_pg, int(length_pg.max())),
            **kernels,
        }
        side = None
    return found


def counted(file: Path, layers: int) -> dict:
    """Return kernels a layer and step of a profile, and the share of time that they ran; {} without a GPU."""
    profile = json.loads(file.read_text())
    streams = [kernels for line, kernels in profile["lines"].items() if "Stream" in line]
    if not streams:
        return {}
    count = sum(times for kernels in streams for times, _ in kernels.values())
    busy = sum(us for kernels in streams for _, us in kernels.values()) / 1e6
    each = count / profile["steps"] / layers
    return {"kernels": count, "kernels_per_layer_and_step": each, "busy_share": busy / profile["wall_s"]}


def lm_update(asked) -> dict:
    """Seconds of the update of those responses, and its floor in FLOPs."""
    from dataclasses import replace

    import jax
    import jax.numpy as jnp
    from gpu import random_model
    from training import LOSS, OurTrainer, make_work

    from e3jax.models.presets import flops_per_token

    found, prompts_n, limit = {}, 4 if asked.quick else 64, 32 if asked.quick else LIMIT
    for name in models(asked):
        side = random_model(name, remat=asked.remat, params_dtype="float32")
        c = side.model.config
        prompts, length_pg = lm_workload(prompts_n, c.vocab_size, limit)
        work = make_work(prompts, length_pg, c.vocab_size, seed=1)
        trainer = OurTrainer(side, chunk=asked.chunk, room=PROMPT)
        reference = jax.tree.map(jnp.copy, side.params)
        how = dict(rows=4 if asked.quick else 98, budget=limit, old_logp="trainer", minibatches=4)
        how |= dict(ref_params=reference, loss=replace(LOSS, kl_coef=0.001))
        times = []
        for i in range(1 + asked.repeats):
            start = time.perf_counter()
            values = trainer.update(work, **how)
            times.append(time.perf_counter() - start)
            print(f"  {name} update {i}: {times[-1]:.2f} s, padding {values['pack/padding']:.3f}", flush=True)
        flops = sum(5 * int(n) * flops_per_token(c, (int(n) + 1) / 2) for n in work.length)
        found[name] = {
            "seconds": times[1:],
            "first_s": times[0],
            "tokens": int(work.length.sum()),
            "floor_flops": flops,
            "flops_per_s": flops / statistics.median(times[1:]),
            "padding": values["pack/padding"],
            "remat": asked.remat,
        }
        side = trainer = reference = None
    return found


def lm_peers(asked) -> dict:
    """transformers' generate and continuous batching for SmolLM2's shape; lengths enforced by a budget each."""
    import torch
    import transformers
    from transformers_side import torch_roll

    from e3jax.checkpoint.hf_config import to_hub
    from e3jax.models.presets import preset

    c, device = preset(models(asked)[0]), "cuda" if torch.cuda.is_available() else "cpu"
    config = transformers.AutoConfig.for_model(**to_hub(c, dtype="bfloat16", bos=None, eos=1, pad=0))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(device=device, dtype=torch.bfloat16).eval()
    prompts, length_pg = lm_workload(1 if asked.quick else 64, c.vocab_size, 16 if asked.quick else LIMIT)
    repeated, length_b = [p for p in prompts for _ in range(SAMPLES)], length_pg.reshape(-1)
    found = {"torch": torch.__version__, "transformers": transformers.__version__, "tokens": int(length_b.sum())}

    start = time.perf_counter()
    torch_roll(model, repeated, length_b, batch=len(repeated))
    found["generate_s"] = time.perf_counter() - start
    print(f"  generate: {found['generate_s']:.1f} s", flush=True)
    try:
        how = transformers.GenerationConfig(do_sample=True, eos_token_id=-1, pad_token_id=0, max_new_tokens=LIMIT)
        manager = model.init_continuous_batching(generation_config=how)
        start = time.perf_counter()
        manager.start()
        for tokens, length in zip(repeated, length_b.tolist()):
            manager.add_request(tokens, max_new_tokens=int(length))
        for done in range(len(repeated)):
            left = asked.limit_s / 2 - (time.perf_counter() - start)
            if left < 0 or manager.get_result(timeout=left) is None:
                raise TimeoutError(f"{done} of {len(repeated)} requests after {asked.limit_s / 2:.0f} s")
        found["generate_batch_s"] = time.perf_counter() - start
        manager.stop(block=True)
        print(f"  generate_batch: {found['generate_batch_s']:.1f} s", flush=True)
    except Exception as error:  # its interface changes between releases: what it said is the result
        found["generate_batch_error"] = f"{type(error).__name__}: {error}"
    return found


def lm_step(asked) -> dict:
    """Seconds of RL steps of the recipe, by its own metrics; the first steps, which compile, are left out."""
    if not asked.lm_model:
        raise SystemExit("lm_step needs --lm_model=DIRECTORY (docs/checkpoints.md, A model without a hub)")
    size, steps = ("smoke", 3) if asked.quick else ("full", 8)
    with tempfile.TemporaryDirectory() as workdir:
        command = ["-m", "e3jax.train.curriculum", f"--workdir={workdir}"]
        command += [f"--config=configs/countdown_lm.py:model={asked.lm_model},size={size}", "--config.order=('easy',)"]
        command += [f"--config.stages.easy.steps={steps}", "--config.stages.easy.evaluated=False"]
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
        lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
        kept = ("time/step_s", "time/rollout_s", "time/update_s", "time/first_token_s", "pack/padding", "length/mean")
        found = {name: statistics.median(line[name] for line in lines[2:]) for name in kept}
        return found | {"steps": [line["time/step_s"] for line in lines], "whole_s": time.perf_counter() - start}


def quickstart(asked) -> dict:
    """Seconds of the whole quickstart, and of its phases by its own lines."""
    config = "configs/smoke.py" if asked.quick else "configs/quickstart.py"
    with tempfile.TemporaryDirectory() as workdir:
        start = time.perf_counter()
        command = [sys.executable, "-m", "e3jax.train.curriculum", f"--config={config}", f"--workdir={workdir}"]
        done = subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.PIPE, text=True)
        phases = [line.strip() for line in done.stderr.splitlines() if " done in " in line]
        return {"seconds": time.perf_counter() - start, "phases": phases}


LM_RUN = {
    "lm_rollout": lm_rollout,
    "lm_update": lm_update,
    "lm_peers": lm_peers,
    "lm_step": lm_step,
    "quickstart": quickstart,
}
