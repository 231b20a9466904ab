"""The command: e3's Fig. 10 (App. A) in several readings of its text, and the checks of App. J.

    python -m e3jax.didactic.run --config=configs/experiments/pk.py --workdir=runs/pk

Every setting of the config is trained with GRPO and masked, with the same seeds. The run directory then holds
metrics.jsonl (a line per point with the exact values of every seed), fig10.svg, results.json, and DONE. After a kill
the same command repeats only the arm that was interrupted, with the same numbers; a finished run is left as it is.

The rule was written after the search for settings and before their run. A statement must hold in every seed:

    rise        GRPO's expected length, before its reward first exceeds 1/2, exceeds twice its first value
    transition  GRPO's last reward exceeds .9
    failure     when GRPO's reward first exceeds .9 (or at the end, if never), it exceeds the mask's by more than .8

The verdict is "reproduced" if all three hold in the first setting of `config.order`, "mixed" if they do in another one
only, else "not reproduced".
"""

import json
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from e3jax.didactic import checks, learn, theorem
from e3jax.didactic.panels import Row, draw_rows
from e3jax.didactic.verdict import judge_settings, shorten
from e3jax.errors import Stopped, all_errors, need, need_seed
from e3jax.flags import keep_programs, run_command
from e3jax.log import RunLog
from e3jax.records import finite
from e3jax.runtime import stop_asked

ARMS = {"GRPO": False, "mask": True}  # arm -> whether it is masked
PANELS = {"length": "Length (tokens)", "reward": "Reward", "p_stop": "π(stop)", "entropy": "Entropy (nats)"}


@all_errors()
def check(c: ConfigDict) -> None:
    """Refuse impossible values, naming the fields, before anything is computed."""
    need_seed(c.seed)
    for field in ("seeds", "points", "budget"):
        need(c[field] >= 1, field, c[field], "use 1 or more")
    need(c.model.actions >= 2, "model.actions", c.model.actions, "use 2 or more: a* and another one")
    need(c.checks.traces >= 2, "checks.traces", c.checks.traces, "use 2 or more, for a standard error")
    need(len(c.order) > 0 and set(c.order) <= set(c.settings), "order", c.order, f"use some of {', '.join(c.settings)}")
    for name, s in c.settings.items():
        where = f"settings.{name}"
        need(s.gradient in ("sampled", "exact"), f"{where}.gradient", s.gradient, "use 'sampled' or 'exact'")
        need(s.advantage in learn.ADVANTAGES, f"{where}.advantage", s.advantage, f"use one of {learn.ADVANTAGES}")
        need(s.weighting in ("mean", "sum"), f"{where}.weighting", s.weighting, "use 'mean' or 'sum'")
        need(s.group >= 1 + (s.advantage == "group"), f"{where}.group", s.group, "a group of one has no baseline")
        need(
            s.updates >= c.points >= 1 and s.updates % c.points == 0,
            f"{where}.updates",
            s.updates,
            f"a multiple of config.points={c.points}",
        )


def train(
    log: RunLog, arm: str, start: learn.Carry, method: learn.Method, *, updates: int, points: int, budget: int
) -> None:
    """Train one arm and append its `points` + 1 lines to metrics.jsonl, unless they are all there."""
    every = updates // points
    if any(x["stage"] == arm and x["step"] == updates for x in log.read("metrics.jsonl")):
        log.say(f"{arm}: it is there already")
        return
    log.keep("metrics.jsonl", lambda x: x["stage"] != arm)
    carry, seen = start, learn.look(start, budget=budget)
    with log.phase(arm, total=updates) as phase:
        for point in range(points + 1):
            if point:
                carry, seen = learn.some_updates(carry, method, updates=every, budget=budget)
            line = {name: np.asarray(value, np.float64).round(6).tolist() for name, value in seen.items()}
            log.append("metrics.jsonl", {"stage": arm, "kind": "pk", "step": point * every} | line)
            note = f"length {np.mean(line['length']):.1f}, reward {np.mean(line['reward']):.3f}"
            phase.advance(every if point else 0, note)
            if stop_asked():
                raise Stopped(f"{arm} will be repeated")


def method_of(setting: ConfigDict, *, masked: bool) -> learn.Method:
    """Return how a setting of the config is trained."""
    fields = setting.to_dict()
    del fields["updates"]
    return learn.Method(**fields, masked=masked)


def curves(lines: list[dict], arm: str) -> dict[str, np.ndarray]:
    """Return {"step": [N], measure: [N, seeds]} of one arm."""
    rows = [x for x in lines if x["stage"] == arm]
    return {name: np.array([row[name] for row in rows]) for name in ("step", *PANELS, "p_best", "inverse_length")}


def run_checks(c: ConfigDict, log: RunLog) -> dict:
    """Check every statement of e3's App. A and J that is about numbers; takes seconds."""
    key = jax.random.key(c.seed)
    logits = learn.begin(key[None], **c.model.to_dict()).logits[0]
    laws = checks.compare_laws(jax.random.fold_in(key, 1), logits, budget=c.budget, traces=c.checks.traces)
    gradients = checks.compare_gradients(jax.random.fold_in(key, 2), logits, budget=c.budget, traces=c.checks.traces)
    policies = theorem.random_policies(np.random.default_rng(c.seed), count=c.checks.policies, actions=c.model.actions)
    numbers = {
        "laws": laws,
        "gradients": gradients,
        "most_sigmas": max(abs(x["sigmas"]) for rows in [laws.values(), *gradients.values()] for x in rows),
        "theorem": theorem.verify(policies),
        "smallest_constant": theorem.smallest_constant(),
    }
    t = numbers["theorem"]
    log.say(
        f"closed form {laws['length']['closed']:.4f}, recursion {laws['length']['exact']:.4f}, sampled length "
        f"{laws['length']['sampled']:.3f}; all sampled laws and gradients within {numbers['most_sigmas']:.1f} sigma"
    )
    log.say(
        f"Theorem J.3 over {t['policies']:,} policies: entropy rises for {t['rise']:.2%}, with chance >= π(ā) in "
        f"{t['chance']:.2%}; bound in {t['bound']:.2%} of {t['covered']:,}; masked case in {t['masked']:.2%}"
    )
    return numbers


def words(s: ConfigDict) -> str:
    """Return the description of a setting that stands beside its curves."""
    advantage = {
        "sign": "A = 2r − 1",
        "constant": f"A = r − {s.baseline:g}",
        "average": "A = r − running mean",
        "group": f"A = (r − mean) / std of {s.group}",
    }[s.advantage]
    traces = "exact expected gradient" if s.gradient == "exact" else f"{s.group} trace{'s'[: s.group > 1]} an update"
    weight = {"mean": "mean over tokens (1/T)", "sum": "sum over tokens"}[s.weighting]
    return f"{advantage}\n{weight}\n{traces}\nlr {s.lr:g}, {s.updates:,} updates"


def main(config: ConfigDict, workdir: str) -> None:
    """Train all settings, run the checks, and write the verdict and the figure."""
    check(config)
    keep_programs()
    log = RunLog(workdir, config.to_dict(), tensorboard=False, wandb="")
    if (log.workdir / "DONE").exists():
        log.say(f"{log.workdir} is finished, nothing was done: choose another --workdir to run it again")
        return
    began = time.monotonic()
    settings = {name: config.settings[name] for name in config.order}
    keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(config.seed), s))(np.arange(config.seeds))
    start = learn.begin(keys, **config.model.to_dict())
    for name, setting in settings.items():
        for arm, masked in ARMS.items():
            method, size = method_of(setting, masked=masked), {"points": config.points, "budget": config.budget}
            train(log, f"{name}, {arm}", start, method, updates=setting.updates, **size)
    numbers = run_checks(config, log)
    lines = log.read("metrics.jsonl")
    arms = {name: {arm: curves(lines, f"{name}, {arm}") for arm in ARMS} for name in settings}
    results = judge_settings(
        arms,
        {name: words(s).replace("\n", ", ") for name, s in settings.items()},
        panels=PANELS,
        literal=config.order[0],
    )
    results |= {"minutes": (time.monotonic() - began) / 60, "checks": numbers}
    rows = [
        Row("\n".join([name, words(s), *results["outcomes"][name].split(", ")]), arms[name], s.updates)
        for name, s in settings.items()
    ]
    files = {
        "results.json": json.dumps(shorten(finite(results)), indent=1, ensure_ascii=False) + "\n",
        "fig10.svg": draw_rows(rows, PANELS, title="e3 Fig. 10: negative gradients in the p^k model"),
    }
    log.write(files)
    for name, outcome in results["outcomes"].items():
        log.say(f"{name}: {outcome}")
    log.say(f"verdict: {results['verdict']}. {log.workdir / 'results.json'}, {log.workdir / 'fig10.svg'}")
    log.done()
    log.close()


if __name__ == "__main__":
    run_command(main)
