"""The simulator's seconds of an RL step (tools/simulate.py) beside the measured ones of a stage of the quickstart.

    python benchmarks/simulated_step.py --init=RUN/checkpoints/base/280 --out=simulated_step.json

RUN is a quickstart's; its stage "easy" is made again from there, `--steps` of it. What a step costs is measured apart
from it, on random weights and responses of equal lengths: a decode step is a + b · slots + c · cached tokens, an update
d + e · padded tokens, by least squares. The simulator then gets the quantiles of lengths that the stage recorded, and
nothing of its times. The sampler halves its slots when they suffice for what is left (sampler/slots.py `shrink`), which
counts here, and on an accelerator does not: there a step's time is that of its weights.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import ours  # noqa: E402
from carry_over import steps_of  # noqa: E402
from training import LOSS, OurTrainer, make_work  # noqa: E402

from configs import quickstart  # noqa: E402
from e3jax.models.presets import preset  # noqa: E402
from e3jax.models.qwen3 import Qwen3, init_params  # noqa: E402
from e3jax.sampler.slots import FEWEST  # noqa: E402
from e3jax.sharding import make_mesh  # noqa: E402
from e3jax.tools.simulate import Lengths, Work, schedule, simulate  # noqa: E402
from e3jax.train.packing import micro_batch_shapes, pack_micro_batches  # noqa: E402

PROMPT = 7  # tokens of a prompt, about


def median_seconds(work, repeats: int = 5) -> float:
    """Return the median seconds of `work()`, which ran once before to compile."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def decoding(side, c) -> np.ndarray:
    """Return [prefill of a prompt, a, b, c] of rollouts: seconds of a prompt, a step, a slot's and a cached token's."""
    rows, seconds = [], []
    for slots, tokens in ((128, 24), (128, 88), (64, 88), (16, 88), (16, 24), (8, 56)):
        prompts = [[2] * PROMPT] * (slots // 8)
        how = dict(slots=slots, block=c.sampler.block, prefill_rows=c.sampler.prefill_rows)
        lengths = np.full((len(prompts), 8), tokens)
        seconds.append(median_seconds(lambda p=prompts, n=lengths, how=how: ours.roll(side, p, n, key=0, **how)))
        rows.append([len(prompts), tokens, tokens * slots, tokens * slots * (PROMPT + tokens / 2)])
    return fitted(rows, seconds)


def updating(side, c, room: int, budget: int) -> np.ndarray:
    """Return [d, e] of an update with the stage's passes: seconds of a minibatch and of a padded token."""
    trainer, rows, seconds = OurTrainer(side, chunk=c.model.chunk, room=room), [], []
    for tokens in (8, 24, 48, 88):
        prompts = [[2] * PROMPT] * c.grpo.prompts
        work = make_work(prompts, np.full((len(prompts), c.grpo.group_size), tokens), 32, seed=1)
        how = dict(rows=c.grpo.rows, budget=budget, old_logp=c.grpo.old_logp, minibatches=c.grpo.minibatches)
        how["loss"] = replace(LOSS, kl_coef=c.grpo.loss.kl_coef)  # the reference's log-probs are a pass of their own
        seconds.append(median_seconds(lambda work=work, how=how: trainer.update(work, **how)))
        rows.append([c.grpo.minibatches, padded_tokens(work.length, c, room + budget)])
    return fitted(rows, seconds)


def fitted(rows: list, seconds: list) -> np.ndarray:
    """Return the least squares of relative errors, no coefficient below 0."""
    from scipy.optimize import nnls

    return nnls(np.array(rows) / np.array(seconds)[:, None], np.ones(len(rows)))[0]


def padded_tokens(lengths: np.ndarray, c, width: int) -> int:
    """Return the tokens of a step's micro-batches, padding too."""
    shapes = micro_batch_shapes(width, c.grpo.rows, groups=1)
    parts = np.split(lengths, c.grpo.minibatches)
    return sum(m.rows * m.width for part in parts for m in pack_micro_batches(part, shapes))


def slot_steps(length_b: np.ndarray, slots: int) -> int:
    """Return slots x decode steps of a synchronous step: half as many once those suffice and nothing waits."""
    begin = schedule(length_b, slots)
    end, now, total = begin + length_b, min(slots, len(length_b)), 0
    for tick in range(end.max()):
        while tick > begin.max() and now // 2 >= max(FEWEST, (end > tick).sum()):
            now //= 2
        total += now
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", required=True, help="the base model's checkpoint")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--first", type=int, default=8, help="the first step that counts")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    c = quickstart.get_config()
    budget, room = c.stages.easy.budget, c.task.prompt_room
    model = Qwen3(preset("tiny"), dtype=jnp.float32, remat=c.model.remat, kernel="auto")
    params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    side = ours.Ours(model, params, make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1]))
    a_prompt, a, b, cached = decoding(side, c)
    d, e = updating(side, c, room, budget)
    flags = [f"--config.init.init_from={asked.init}", f"--config.stages.easy.steps={asked.steps}"]
    steps = steps_of("waits", [*flags, "--config.grpo.old_logp=trainer"], first=asked.first)
    took = {
        name: statistics.median(step[name] for step in steps) for name in steps[0] if name.startswith(("time", "len"))
    }
    law = Lengths(*(took[f"length/{q}"] for q in ("p10", "p50", "p90")), budget)
    work = Work(c.grpo.prompts, c.grpo.group_size, c.sampler.slots)
    drawn = law.draw(np.random.default_rng(0), 40 * work.groups * work.group_size)
    s = simulate(drawn, work, "synchronous")
    in_use = np.mean([slot_steps(part, work.slots) for part in drawn.reshape(40, -1)])
    padded = np.mean([padded_tokens(part + PROMPT, c, room + budget) for part in drawn.reshape(40, -1)])
    rollout = a_prompt * work.groups + a * s.ticks + b * in_use + cached * (s.cached + s.tokens * PROMPT)
    update = d * c.grpo.minibatches + e * padded
    of = {
        "simulated": {"rollout_s": rollout, "update_s": update, "step_s": rollout + update, "ticks": s.ticks},
        "measured": {name.split("/")[1]: took[name] for name in took},
        "costs": dict(prompt=a_prompt, step=a, slot=b, cached=cached, minibatch=d, padded=e),
        "off": (rollout + update) / took["time/step_s"] - 1,
    }
    print(json.dumps(of, indent=1, default=float))
    if asked.out:
        asked.out.write_text(json.dumps(of, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
