"""The command: OXA in small. A seed has a base model, its sets, arms of tuning, the same RL on each; a verdict.

    python -m e3jax.experiments.oxa --config=configs/oxa_countdown.py --workdir=runs/oxa --seeds=0,1,2,3,4

Killed anywhere, the same command goes on; more seeds may be asked for later. DIR/seed-N/ holds the runs base, data and
one an arm; results.json every number, arms.svg the entropy during RL and pass@k.

The rule, written before the first run. Each question is a difference, full − sft of the same seed, averaged over seeds:
"yes" when its 95 % t-interval lies above 0, "no" when below, else "open"; a single seed decides nothing.
    entropy     of the policy that enters RL, nats per token, in RL's first step (before any update)
    pass@k      at the largest k, both sets' mean, after tuning: is the start more diverse?
    lasting     the same after RL; and pass@1 after RL
"""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from e3jax.curation import oxa_sets as pools
from e3jax.errors import UserError, need_seed
from e3jax.flags import run_tool
from e3jax.metrics.seeds import judge
from e3jax.records import finite, read_lines
from e3jax.report.figures import read_number
from e3jax.report.files import arms_file
from e3jax.report.read_run import INTERVALS, RECORDS
from e3jax.storage import place, write_whole
from e3jax.train import curriculum

ARMS = ("sft", "sft_low_ppl", "promote", "full", "full_strong")


def run_seed(config: str, data: str, workdir: str, seed: int, arms) -> None:
    """What is missing of one seed's runs."""
    there = place(workdir) / f"seed-{seed}"
    make, make_data = (runpy.run_path(path)["get_config"] for path in (config, data))

    def train(arm: str):
        if not (there / arm / "DONE").exists():
            curriculum.main(make(f"arm={arm},seed={seed},in={workdir}"), str(there / arm))

    train("base")
    c = make("arm=base")
    base = there / "base/checkpoints/base" / str(c.stages.base.steps)
    if not (there / "data/DONE").exists():
        d = make_data(f"countdown,model={base}")
        d.seed = seed
        pools.main(d, str(there / "data"))
    for arm in arms:
        train(arm)


def read_run(run: epath.Path, *, arm: str, seed: int) -> dict[str, Any]:
    """One finished run's numbers: pass@k after every stage (means over sets, and each), and RL step by step."""
    found: dict[str, Any] = {"arm": arm, "seed": seed, "pass_at_k": {}, "sets": {}}
    for line in read_lines(run / "eval.jsonl", RECORDS["eval.jsonl"] | {"pass_at_k": INTERVALS}):
        found["sets"].setdefault(line["stage"], {})[line["set"]] = {k: v[0] for k, v in line["pass_at_k"].items()}
    for stage, sets in found["sets"].items():
        found["pass_at_k"][stage] = {
            k: float(np.mean([s[k] for s in sets.values()])) for k in next(iter(sets.values()))
        }
    metrics = read_lines(run / "metrics.jsonl", RECORDS["metrics.jsonl"])
    tuned, rl = ([x for x in metrics if x["kind"] == kind] for kind in ("oxa", "grpo"))
    for name in ("entropy", "reward", "length"):
        found[name] = [read_number(x, f"{name}/mean") for x in rl]
    found["tuning"] = {k: v for k, v in tuned[-1].items() if k.startswith("loss/")} if tuned else {}
    return found


def questions(runs: list[dict], seeds) -> list[dict[str, Any]]:
    """The rule's answers (metrics/seeds.py): each question with its values per seed, mean, interval and outcome."""
    k = max(runs[0]["pass_at_k"]["rl"], key=int)
    numbers = {
        "entropy before RL": lambda r: r["entropy"][0],
        f"pass@{k} before RL": lambda r: r["pass_at_k"]["tune"][k],
        f"pass@{k} after RL": lambda r: r["pass_at_k"]["rl"][k],
        "pass@1 after RL": lambda r: r["pass_at_k"]["rl"]["1"],
    }
    values = {
        name: {arm: {r["seed"]: number(r) for r in runs if r["arm"] == arm} for arm in ("full", "sft")}
        for name, number in numbers.items()
    }
    asked = dict(plus=("full",), minus=("sft",), kind="above", margin=0.0)
    return [judge({"measure": name, **asked}, values, seeds=seeds, level=0.95) for name in numbers]


def main() -> None:
    """All seeds, then the numbers of those that are complete."""
    f = flags.FLAGS
    seeds = [int(s) for s in f.seeds if s.isdigit()]
    if len(seeds) != len(f.seeds) or not seeds or len(set(seeds)) != len(seeds):
        raise UserError(f"--seeds={','.join(f.seeds)}: numbers, with commas between, each once")
    for seed in seeds:
        need_seed(seed, "seeds")
    for seed in seeds:
        run_seed(f.config, f.data or str(Path(f.config).with_name("oxa_data.py")), f.workdir, seed, ARMS)
    there = place(f.workdir)
    runs = [read_run(there / f"seed-{s}" / arm, arm=arm, seed=s) for s in seeds for arm in ARMS]
    base = {s: read_run(there / f"seed-{s}" / "base", arm="base", seed=s)["pass_at_k"]["base"] for s in seeds}
    answers = questions(runs, seeds)
    results = {
        "seeds": seeds,
        "arms": ARMS,
        "rule": __doc__.split("The rule, ")[1],
        "answers": answers,
        "base": base,
        "runs": runs,
    }
    write_whole(there / "results.json", json.dumps(finite(results), indent=1) + "\n")
    title = f"OXA on Countdown, seeds {', '.join(map(str, seeds))}"
    write_whole(there / "arms.svg", arms_file(runs, arms=ARMS, title=title))
    for a in answers:
        print(f"{a['measure']}: full − sft = {a['mean']:+.4f} [{a['low']:+.4f}, {a['high']:+.4f}]: {a['outcome']}")
    print(f"numbers and figure: {there}")


if __name__ == "__main__":
    flags.DEFINE_string("config", None, "configs/oxa_countdown.py", required=True)
    flags.DEFINE_string("data", "", "config of the sets; without it oxa_data.py beside --config")
    flags.DEFINE_string("workdir", None, "directory of the experiment", required=True)
    flags.DEFINE_list("seeds", ["0"], "numbers, with commas between")
    run_tool(main)
