"""Turn curves into a verdict by the rule of didactic/run.py, and into results.json (experiments/results.py).

results = judge_settings(arms, words, panels=PANELS, literal="as written")
results["verdict"]                                        # "mixed"
"""

import math

import numpy as np

RISE, WON, FAILED = 2.0, 0.9, 0.8  # the rule's margins
MEASURES = {
    "rise": "longest expected length before the reward exceeds 1/2, over the first one",
    "last reward": "expected reward after the last update",
    "reward then": "expected reward when GRPO's (same seed) first exceeds .9; if it never does, after the last update",
    "transition": "first logged update with reward above 1/2; null: none",
    "peak length": "longest expected length before the reward exceeds 1/2",
}


def first_above(values, limit: float) -> int | None:
    """Return the index of the first value above `limit`, None if there is none.

    >>> first_above(np.array([0.1, 0.6, 0.2]), 0.5)
    1
    """
    above = np.flatnonzero(values > limit)
    return int(above[0]) if len(above) else None


def measure(arms: dict, seed: int) -> dict[str, dict[str, float]]:
    """Return {measure: {arm: value}} of one seed; `arms` is {arm: {"step": [N], "length": [N, seeds], …}}."""
    measures = {name: {} for name in MEASURES}
    then = first_above(arms["GRPO"]["reward"][:, seed], WON)
    for arm, curve in arms.items():
        reward, length = curve["reward"][:, seed], curve["length"][:, seed]
        half = first_above(reward, 0.5)
        peak = length[: half or None].max()
        measures["rise"][arm] = peak / length[0]
        measures["peak length"][arm] = peak
        measures["last reward"][arm] = reward[-1]
        measures["reward then"][arm] = reward[-1 if then is None else then]
        measures["transition"][arm] = math.nan if half is None else float(curve["step"][half])
    return measures


def statements(name: str) -> list[dict]:
    """Return the rule for one setting: Σ plus − Σ minus of a measure must be above the margin."""
    grpo, mask = f"{name}, GRPO", f"{name}, mask"
    parts = (
        ("rise", "rise", [grpo], [], RISE),
        ("transition", "last reward", [grpo], [], WON),
        ("failure of the mask", "reward then", [grpo], [mask], FAILED),
    )
    return [
        {"says": f"{name}: {says}", "measure": of, "plus": plus, "minus": minus, "kind": "above", "margin": margin}
        for says, of, plus, minus, margin in parts
    ]


def judge_every_seed(statement: dict, values: dict) -> dict:
    """Return the statement with its values per seed, and whether it holds in every seed ("yes"), none ("no") or some.

    The outcome for some seeds is "open". There is no interval, unlike in metrics/seeds.py.
    """
    of = values[statement["measure"]]
    seeds = of[statement["plus"][0]]
    each = {s: sum(of[a][s] for a in statement["plus"]) - sum(of[a][s] for a in statement["minus"]) for s in seeds}
    holds = [x > statement["margin"] for x in each.values()]
    outcome = "yes" if all(holds) else "open" if any(holds) else "no"
    mean = float(np.mean(list(each.values())))
    return statement | {"values": each, "mean": mean, "low": None, "high": None, "outcome": outcome}


def judge_settings(settings: dict, words: dict[str, str], *, panels: dict[str, str], literal: str) -> dict:
    """Return results.json for {setting: {"GRPO": curves, "mask": curves}}; `literal` is the paper's own setting.

    `words` describes each setting, `panels` is {measure: label} of what is drawn.
    """
    seeds = settings[literal]["GRPO"]["length"].shape[1]
    values = {name: {} for name in MEASURES}
    for name, arms in settings.items():
        for seed in range(seeds):
            for of, by_arm in measure(arms, seed).items():
                for arm, value in by_arm.items():
                    values[of].setdefault(f"{name}, {arm}", {})[str(seed)] = value
    rule = {name: [judge_every_seed(s, values) for s in statements(name)] for name in settings}
    whole = [name for name, rows in rule.items() if all(r["outcome"] == "yes" for r in rows)]
    verdict = "reproduced" if literal in whole else "mixed" if whole else "not reproduced"
    says = {"yes": "yes", "no": "no", "open": "in some seeds"}
    return {
        "name": "pk",
        "paper": "Fig. 10 (App. A), Theorem J.3 (App. J)",
        "claim": "With negative gradients length and entropy rise and π(stop) falls until a* is found; then reward "
        "rises and length drops (a transition). With the mask neither length nor reward rises.",
        "setting": "The bigram p^k model of App. A.1, which leaves open what the advantage of one trace is and how "
        f"many updates there are: {len(settings)} readings, each with the same seeds for GRPO and mask.",
        "command": "python -m e3jax.didactic.run --config=configs/experiments/pk.py --workdir=runs/pk",
        "seeds": list(range(seeds)),
        "level": 0.95,
        "arms": {f"{name}, {arm}": text for name, text in words.items() for arm in settings[name]},
        "measures": {name: {"says": text, "percent": False} for name, text in MEASURES.items()},
        "values": values,
        "rule": [row for rows in rule.values() for row in rows],
        "outcomes": {
            name: ", ".join(f"{r['says'].removeprefix(f'{name}: ')}: {says[r['outcome']]}" for r in rows)
            for name, rows in rule.items()
        },
        "verdict": verdict,
        "figures": [figure(name, arms, of, label) for name, arms in settings.items() for of, label in panels.items()],
        "tables": [],
        "failed": [],
    }


def figure(name: str, arms: dict, of: str, label: str) -> dict:
    """Return one panel as a figure of results.json: the mean over seeds, with the least and greatest seed."""
    lines = [
        {
            "label": arm,
            "x": c["step"].tolist(),
            "mean": c[of].mean(1).tolist(),
            "low": c[of].min(1).tolist(),
            "high": c[of].max(1).tolist(),
        }
        for arm, c in arms.items()
    ]
    return {
        "title": f"{name}: {label}",
        "xlabel": "updates",
        "ylabel": label,
        "log2": False,
        "percent": False,
        "mark": None,
        "lines": lines,
    }


def shorten(value):
    """Round floats in lists and dicts to 5 significant digits, to keep results.json small.

    >>> shorten({"a": [0.123456789, 3]})
    {'a': [0.12346, 3]}
    """
    if isinstance(value, dict):
        return {k: shorten(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [shorten(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
