"""The command: OXA in small. A seed has a base model, its sets, arms of tuning, the same RL on each; a verdict.

    python -m e3jax.experiments.oxa --config=configs/oxa_countdown.py --workdir=runs/oxa --seeds=0,1,2,3,4

Killed anywhere, the same command goes on; more seeds may be asked for later. DIR/seed-N/ holds the runs base, data and
one an arm; results.json every number, arms.svg the entropy during RL and pass@k.

The rule, written before the first run. Each question is a difference, full − sft of the same seed, averaged over seeds:
"yes" when its 95 % t-interval lies above 0, "no" when below, else "undecided"; a single seed decides nothing.
    entropy     of the policy that enters RL, nats per token, in RL's first step (before any update)
    pass@k      at the largest k, both sets' mean, after tuning: is the start more diverse?
    lasting     the same after RL; and pass@1 after RL
"""

import json
import runpy
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from scipy.stats import t as student

from e3jax.curation import pools
from e3jax.errors import UserError
from e3jax.flags import run_tool
from e3jax.log import finite
from e3jax.report.bars import arms_file
from e3jax.train import curriculum

ARMS = ("sft", "sft_low_ppl", "promote", "full", "full_strong")


def run_seed(config: str, data: str, workdir: str, seed: int, arms) -> None:
    """What is missing of one seed's runs."""
    there = epath.Path(workdir) / f"seed-{seed}"
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


def records(path: epath.Path) -> list[dict]:
    """Lines of a record of a finished run."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_run(run: epath.Path, *, arm: str, seed: int) -> dict[str, Any]:
    """One finished run's numbers: pass@k after every stage (means over sets, and each), and RL step by step."""
    found: dict[str, Any] = {"arm": arm, "seed": seed, "pass_at_k": {}, "sets": {}}
    for line in records(run / "eval.jsonl"):
        found["sets"].setdefault(line["stage"], {})[line["set"]] = {k: v[0] for k, v in line["pass_at_k"].items()}
    for stage, sets in found["sets"].items():
        found["pass_at_k"][stage] = {
            k: float(np.mean([s[k] for s in sets.values()])) for k in next(iter(sets.values()))
        }
    metrics = records(run / "metrics.jsonl")
    tuned, rl = ([x for x in metrics if x["kind"] == kind] for kind in ("oxa", "grpo"))
    found["entropy"], found["reward"] = [x["entropy/mean"] for x in rl], [x["reward/mean"] for x in rl]
    found["length"] = [x["length/mean"] for x in rl]
    found["tuning"] = {k: v for k, v in tuned[-1].items() if k.startswith("loss/")} if tuned else {}
    return found


def paired(of: dict[tuple[str, int], float], seeds) -> dict[str, Any]:
    """full − sft over seeds: mean, 95 % t-interval, and what the rule says."""
    d = np.array([of["full", s] - of["sft", s] for s in seeds])
    half = student.ppf(0.975, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5 if len(d) > 1 else np.inf
    low, high = d.mean() - half, d.mean() + half
    verdict = "yes" if low > 0 else "no" if high < 0 else "undecided"
    return {"mean": float(d.mean()), "low": float(low), "high": float(high), "verdict": verdict}


def judge(runs: list[dict], seeds) -> dict[str, Any]:
    """The rule's answers."""
    k = max(runs[0]["pass_at_k"]["rl"], key=int)

    def by(value):
        return {(r["arm"], r["seed"]): value(r) for r in runs}

    return {
        "entropy before RL": paired(by(lambda r: r["entropy"][0]), seeds),
        f"pass@{k} before RL": paired(by(lambda r: r["pass_at_k"]["tune"][k]), seeds),
        f"pass@{k} after RL": paired(by(lambda r: r["pass_at_k"]["rl"][k]), seeds),
        "pass@1 after RL": paired(by(lambda r: r["pass_at_k"]["rl"]["1"]), seeds),
    }


def main() -> None:
    """All seeds, then the numbers of those that are complete."""
    f = flags.FLAGS
    seeds = [int(s) for s in f.seeds if s.isdigit()]
    if len(seeds) != len(f.seeds) or not seeds:
        raise UserError(f"--seeds={','.join(f.seeds)}: numbers, with commas between")
    for seed in seeds:
        run_seed(f.config, f.data, f.workdir, seed, ARMS)
    there = epath.Path(f.workdir)
    runs = [read_run(there / f"seed-{s}" / arm, arm=arm, seed=s) for s in seeds for arm in ARMS]
    base = {s: read_run(there / f"seed-{s}" / "base", arm="base", seed=s)["pass_at_k"]["base"] for s in seeds}
    verdict = judge(runs, seeds)
    results = {"seeds": seeds, "arms": ARMS, "rule": __doc__.split("The rule, ")[1], "verdict": verdict,
               "base": base, "runs": runs}  # fmt: skip
    (there / "results.json").write_text(json.dumps(finite(results), indent=1) + "\n")
    title = f"OXA on Countdown, seeds {', '.join(map(str, seeds))}"
    (there / "arms.svg").write_text(arms_file(runs, arms=ARMS, title=title))
    for name, v in verdict.items():
        print(f"{name}: full − sft = {v['mean']:+.4f} [{v['low']:+.4f}, {v['high']:+.4f}]: {v['verdict']}")
    print(f"numbers and figure: {there}")


if __name__ == "__main__":
    flags.DEFINE_string("config", None, "configs/oxa_countdown.py", required=True)
    flags.DEFINE_string("data", "configs/oxa_data.py", "config of the sets")
    flags.DEFINE_string("workdir", None, "directory of the experiment", required=True)
    flags.DEFINE_list("seeds", ["0"], "numbers, with commas between")
    run_tool(main)
