"""Steps an hour with and without waiting for a step's longest response, on a CPU or whatever JAX finds.

    python benchmarks/carry_over.py --init=RUN/checkpoints/base/280 --out=carry_over.json
    python benchmarks/carry_over.py --quick          # random weights, to see that it runs

RUN is a quickstart's. Its stage "easy" is made with a budget of 384 and a slot for each of the 128 responses of a step,
so that the side that waits has one wave; the side that carries over trains on as many groups a step. The two take
turns, each run a process of its own; a run's first steps, which compile, are left out. "Busy" is the share of slots x
decode steps that drew a token: of the side that waits mean length / longest, of the other the sampler's own count.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SIDES = {"waits": (), "carries": ("--config.grpo.carry_over=4",)}
STAGE = (
    "--config=configs/quickstart.py", "--config.order=('easy',)", "--config.stages.easy.evaluated=False",
    "--config.grpo.old_logp=sampler", "--config.log.tensorboard=False", "--config.checkpoint.every=1000",
)  # fmt: skip


def steps_of(side: str, flags: list[str], *, first: int) -> list[dict]:
    """Make a run and return the metrics of its steps from `first` on."""
    with tempfile.TemporaryDirectory() as where:
        command = [sys.executable, "-m", "e3jax.train.curriculum", f"--workdir={where}/run", *STAGE, *flags]
        subprocess.run([*command, *SIDES[side]], cwd=ROOT, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        return [json.loads(line) for line in (Path(where) / "run/metrics.jsonl").read_text().splitlines()][first:]


def busy(side: str, step: dict) -> float:
    """Return the share of slots x decode steps that drew a token."""
    return step["sampler/occupancy"] if side == "carries" else step["length/mean"] / step["length/max"]


def summary(side: str, steps: list[dict]) -> dict:
    """Return medians over the steps of all runs of a side, and the quartiles of a step's seconds."""
    seconds = [step["time/step_s"] for step in steps]
    low, middle, high = statistics.quantiles(seconds, n=4)
    names = ("time/rollout_s", "time/update_s", "length/mean", "length/max", "sampler/prefilled", "reward/mean")
    medians = {name: statistics.median(step[name] for step in steps) for name in names}
    times = {"steps_per_hour": 3600 / middle, "step_s": middle, "quartiles_s": [low, high], "steps": len(steps)}
    return times | {"busy": statistics.median(busy(side, step) for step in steps)} | medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", default="", help="the base model's checkpoint")
    parser.add_argument("--budget", type=int, default=384)
    parser.add_argument("--slots", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="of a run")
    parser.add_argument("--first", type=int, default=6, help="the first step that counts")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.quick:
        asked.budget, asked.steps, asked.first, asked.turns = 48, 4, 2, 1
    elif not asked.init:
        sys.exit("--init=RUN/checkpoints/base/STEP: random weights have no lengths worth a measurement")
    flags = [f"--config.stages.easy.budget={asked.budget}", f"--config.stages.easy.steps={asked.steps}"]
    flags += [f"--config.sampler.slots={asked.slots}", f"--config.sampler.prefill_rows={asked.slots // 4}"]
    flags += [f"--config.init.init_from={asked.init}"] if asked.init else []
    steps = {side: [] for side in SIDES}
    for turn in range(asked.turns):
        for side in SIDES if turn % 2 == 0 else reversed(SIDES):
            steps[side] += steps_of(side, flags, first=asked.first)
            print(f"turn {turn + 1} of {asked.turns}: {side}, {steps[side][-1]['time/step_s']:.2f} s", flush=True)
    of = {side: summary(side, steps[side]) for side in SIDES}
    of["steps_an_hour_ratio"] = of["carries"]["steps_per_hour"] / of["waits"]["steps_per_hour"]
    print(json.dumps(of, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(of, indent=1) + "\n")


if __name__ == "__main__":
    main()
