"""The page of a run that is going on: how fast it is, how long it still takes, and curves to read values off.

report/serve.py serves it as run.html, and its numbers as run.json, which the page asks for again every EVERY_S seconds.
It is live.html beside this file with the numbers in it as JSON. Curves can be drawn against steps, tokens or time.

    page(place("runs/quickstart"))
    seconds_left(rows, config)      # (340.0, ["hard"]): of the steps whose pace is known; stages whose pace is not
"""

import json
import math
from typing import Any

import numpy as np
from etils import epath

from e3jax.readers import fault, is_a
from e3jax.report.figures import Stage, collect_stages, read_number
from e3jax.report.page import filled
from e3jax.report.panels import LOG, SETTINGS, shown_panels
from e3jax.report.read_run import SAMPLES, RunRecords, count, load_run
from e3jax.storage import place

EVERY_S = 5
RECENT = 10  # lines whose median is the pace of a stage
KINDS = {"grpo": "Training with RL", "sft": "Supervised training", "oxa": "OXA's fine-tuning"}
RATE = {"grpo": "time/rollout_tokens_per_s"}  # tokens per second of a kind; of the others time/tokens_per_s


def page(run_dir: epath.Path) -> str:
    """Return the whole page. Raises FileNotFoundError where there is no run."""
    return filled("live.html", title=place(run_dir).name, data=live_data(run_dir), connect="'self'")


def live_json(run_dir: epath.Path) -> str:
    """Return what a page that is open asks for."""
    return json.dumps(live_data(run_dir), separators=(",", ":"))


def live_data(run_dir: epath.Path) -> dict:
    """Return all that the page shows; numbers that are missing are null."""
    run_dir = place(run_dir)
    run = load_run(run_dir)
    metrics = run_dir / "metrics.jsonl"
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in run.metrics)]
    return {
        "done": (run_dir / "DONE").exists(),
        "written": float(metrics.stat().mtime) if metrics.exists() else None,  # seconds since 1970
        "every": EVERY_S,
        "status": status(run),
        "samples": any((run_dir / name).exists() for name in SAMPLES),
        "kinds": [curves(kind, [row for row in run.metrics if row["kind"] == kind]) for kind in kinds],
        "notes": run.notes,
    }


def status(run: RunRecords) -> list[list[str]]:
    """Return [name, value] of what a person wants to know first, from the newest lines."""
    if not run.metrics:
        return []
    last = run.metrics[-1]
    recent = [row for row in run.metrics if row["stage"] == last["stage"]][-RECENT:]
    of = "".join(f" of {steps}" for name, _, steps in planned(run.config) if name == last["stage"])
    rate = RATE[last["kind"]] if last["kind"] in RATE else "time/tokens_per_s"
    memory = [(read_number(last, f"memory/{part}_gib"), part) for part in ("device", "host")]
    shown = {
        "stage": last["stage"],
        "step": f"{last['step']}{of}",
        "seconds per step": short(median(recent, "time/step_s")),
        "tokens per second": short(median(recent, rate)),
        "memory, most so far": ", ".join(f"{gib:.1f} GiB {part}" for gib, part in memory if not math.isnan(gib)),
        "training time left": time_left(run.metrics, run.config),
    }
    return [[name, value] for name, value in shown.items() if value]


def planned(config: Any) -> list[tuple[str, str, int]]:
    """Return (name, kind, steps) of a training config's stages in their order; of another config none."""
    if fault(config, {"order": [str], "stages": dict}):
        return []
    known = [(name, config["stages"][name]) for name in config["order"] if name in config["stages"]]
    return [(name, of["kind"], of["steps"]) for name, of in known if not fault(of, {"kind": str, "steps": count})]


def seconds_left(rows: list[dict], config: Any) -> tuple[float, list[str]]:
    """Return the seconds that the steps still take, and the stages that are left out because their pace is unknown.

    A stage's pace is the median of its newest lines; before it begins, that of the newest stage of its kind.
    Evaluations, Eq. 2 and compilation are not counted.
    """
    total, unknown = 0.0, []
    for name, kind, steps in planned(config):
        own, alike = ([row for row in rows if row[key] == value] for key, value in (("stage", name), ("kind", kind)))
        left = steps - max((row["step"] for row in own), default=0)
        like = own or [row for row in alike if row["stage"] == alike[-1]["stage"]]
        pace = median(like[-RECENT:], "time/step_s")
        if left > 0 and math.isnan(pace):
            unknown.append(name)
        elif left > 0:
            total += left * pace
    return total, unknown


def time_left(rows: list[dict], config: Any) -> str:
    """Return the estimate in words; "" where nothing is left, or nothing is known.

    >>> rows = [{"stage": "a", "kind": "sft", "step": 10, "time/step_s": 3.0}]
    >>> stages = {"a": {"steps": 30, "kind": "sft"}, "b": {"steps": 5, "kind": "grpo"}}
    >>> time_left(rows, {"order": ["a", "b"], "stages": stages})
    'about 1 min, without b'
    """
    seconds, unknown = seconds_left(rows, config)
    known = f"about {in_words(seconds)}" if seconds else "not known yet"
    return ", without ".join([known, ", ".join(unknown)] if unknown else [known] if seconds else [])


def in_words(seconds: float) -> str:
    """Return a time with a unit that suits it.

    >>> in_words(42), in_words(600), in_words(20_000)
    ('42 s', '10 min', '5 h 33 min')
    """
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def short(value: float) -> str:
    """Return a number in three digits, "" for NaN."""
    return "" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def median(rows: list[dict], key: str) -> float:
    """Return the median of a key over lines that have it; NaN if none has."""
    values = [value for row in rows if not math.isnan(value := read_number(row, key))]
    return float(np.median(values)) if values else math.nan


def curves(kind: str, rows: list[dict]) -> dict:
    """Return the panels of all stages of one kind, with what they can be drawn against.

    "stages" is [name, steps before it, lines] of each.
    """
    stages = collect_stages(rows)
    panels = []
    for title, labels in shown_panels(kind, [stage.columns for stage in stages]).items():
        drawn = []
        for colour, (key, label) in enumerate(labels.items(), 1):
            y = np.concatenate([stage.columns[key] for stage in stages])
            if np.isfinite(y).any():
                drawn.append({"label": label, "colour": colour, "dashed": key in SETTINGS, "y": listed(y)})
        if drawn:
            panels.append({"title": title, "log": LOG.issuperset(labels), "lines": drawn})
    before, lines = [0, *(int(stage.step[-1]) for stage in stages[:-1])], [len(stage.step) for stage in stages]
    return {
        "title": KINDS[kind],
        "stages": [[stage.name, *counts] for stage, *counts in zip(stages, before, lines)],
        "x": {name: listed(x) for name, x in axes_of(kind, stages).items()},
        "panels": panels,
    }


def axes_of(kind: str, stages: list[Stage]) -> dict[str, np.ndarray]:
    """Return what curves can be drawn against, [lines]: steps, tokens and hours of training, summed over stages.

    A line stands for the steps since the line before. Tokens and hours are left out where a line does not tell them.
    """
    step = np.concatenate([stage.step for stage in stages]).astype(float)
    since = np.diff(step, prepend=0)
    column = {key: np.concatenate([stage.columns[key] for stage in stages]) for key in stages[0].columns}
    seconds = column["time/step_s"] * since
    if kind == "grpo":
        tokens = column[RATE[kind]] * column["time/rollout_s"] * since
    else:
        tokens = column["time/tokens_per_s"] * seconds
    found = {"steps": step, "tokens": np.cumsum(tokens), "hours": np.cumsum(seconds) / 3600}
    return {name: x for name, x in found.items() if np.isfinite(x).all()}


def listed(values: np.ndarray) -> list[float | None]:
    """Return numbers for JSON, six digits each; null for what is not finite."""
    return [float(f"{x:.6g}") if is_a(x, float) else None for x in values.tolist()]
