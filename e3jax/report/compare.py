"""The comparison of several runs: curves with seeds as bands, extrapolation with intervals, tables to copy.

Runs whose configs differ only in `seed` (and in fields of layout, `LAYOUT` in e3jax/log.py) form one group. Its line is
the mean over seeds and its band reaches from the lowest seed to the highest; the band of a single run is its 95 %
interval over problems. The tables lie beside report.html as CSV (a row per number) and as LaTeX (booktabs).

    python -m e3jax.report runs/seed0 runs/seed1 runs/mask --to=runs/comparison
"""

import csv
import io
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from e3jax.log import LAYOUT, flatten
from e3jax.printable import printable
from e3jax.report import figures
from e3jax.report.figures import Line, draw_bands, read_interval, read_number, seed_band
from e3jax.report.page import escaped, figure_html, page, table_html
from e3jax.report.panels import shown_panels
from e3jax.report.read_run import RunRecords, load_run
from e3jax.storage import patiently, place

LONGEST = 48  # characters of a label made of config fields; instead of a longer one stands a directory's name
MEASURES = {"accuracy": ("test budget (tokens)", "Accuracy"), "pass_at_k": ("k (samples)", "pass@k")}
BAND = "Lines: means over seeds; bands: from the lowest seed to the highest; of one run: its 95 % interval."
COPY = """<script>
document.querySelectorAll("button[data-copy]").forEach(button => { button.onclick = async () => {
  const pre = document.getElementById(button.dataset.copy);
  try { await navigator.clipboard.writeText(pre.textContent); }
  catch { getSelection().selectAllChildren(pre); document.execCommand("copy"); getSelection().removeAllRanges(); }
  button.textContent = "copied";
}; });
</script>"""


class Group(NamedTuple):
    """Runs that differ in nothing but their seed."""

    label: str
    names: list[str]  # of their directories
    runs: list[RunRecords]


class Cell(NamedTuple):
    """One number of a table: of one group after one stage, at one budget or k."""

    set: str
    group: str
    stage: str
    seeds: int
    at: int  # the budget or k
    mean: float
    low: float
    high: float


def group_runs(named: Sequence[tuple[str, RunRecords]]) -> list[Group]:
    """Return groups in the order of their first run, labelled with the config fields that distinguish them."""
    groups: dict[Any, list[tuple[str, RunRecords]]] = {}
    for name, run in named:
        fields = settings(run.config if isinstance(run.config, dict) else {"": name})
        groups.setdefault(tuple(sorted(fields.items())), []).append((name, run))
    not_shared = set.union(*map(set, groups)) - set.intersection(*map(set, groups))
    labels = []
    for fields, members in groups.items():
        label = ", ".join(f"{key}={value}" for key, value in fields if (key, value) in not_shared)
        label = label if 0 < len(label) <= LONGEST else members[0][0]
        labels.append(label if label not in labels else f"{label} ({members[0][0]})")
    return [Group(label, [n for n, _ in m], [r for _, r in m]) for label, m in zip(labels, groups.values())]


def without_copies(named: Sequence[tuple[str, RunRecords]]) -> tuple[list[tuple[str, RunRecords]], list[str]]:
    """Return every run once, and a sentence on each one that is left out as a copy.

    Two directories with the same config and seed hold one run; the one that got further stays, else the first. Two
    seeds with identical records hold one run too, because records contain times.
    """
    kept, notes = [], []
    for name, run in named:
        twin = next((i for i, (_, other) in enumerate(kept) if same_run(run, other)), None)
        if twin is None:
            kept.append((name, run))
            continue
        other, before = kept[twin]
        further = len(run.metrics) + len(run.evals) > len(before.metrics) + len(before.evals)
        kept[twin] = (name, run) if further else (other, before)
        notes.append(f"{other if further else name} is left out: it is the same run as {name if further else other}.")
    return kept, notes


def same_run(run: RunRecords, other: RunRecords) -> bool:
    """Return whether two directories of one config hold one run: their seeds are equal, or their records are."""
    if not all(isinstance(r.config, dict) and "seed" in r.config for r in (run, other)):
        return False
    if settings(run.config) != settings(other.config):
        return False
    copied = bool(run.metrics) and run.metrics == other.metrics and run.evals == other.evals
    return copied or run.config["seed"] == other.config["seed"]


def settings(config: dict) -> dict[str, str]:
    """Return the fields of a config in which seeds of one group agree: all but `seed` and layout."""
    return {k: repr(v) for k, v in flatten(config).items() if k != "seed" and not k.startswith(LAYOUT)}


def table_cells(groups: Sequence[Group], measure: str) -> list[Cell]:
    """Return every number of `measure` ("accuracy" or "pass_at_k"), by set, group and stage."""
    cells = []
    for group in groups:
        latest = [{(row["set"], row["stage"]): row for row in run.evals if measure in row} for run in group.runs]
        for name, stage in dict.fromkeys(key for of in latest for key in of):
            rows = [of[name, stage] for of in latest if (name, stage) in of]
            for at in sorted({int(x) for row in rows for x in row[measure]}):
                values = np.array([read_interval(row[measure], at) for row in rows])
                values = values[np.isfinite(values[:, 0])]
                if len(values) == 1:
                    mean, low, high = values[0]
                elif len(values):
                    mean, low, high = values[:, 0].mean(), values[:, 0].min(), values[:, 0].max()
                else:
                    continue
                cells.append(Cell(name, group.label, stage, len(values), at, float(mean), float(low), float(high)))
    return sorted(cells, key=lambda c: c.set)  # stable


def as_csv(cells: Sequence[Cell]) -> str:
    """Return a CSV table of fractions, a row per number.

    An apostrophe begins each cell that a spreadsheet would take for a formula.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*Cell._fields, "interval"])
    for c in cells:
        texts = [printable(x, lines=False) if isinstance(x, str) else x for x in c]
        row = [f"'{x}" if isinstance(x, str) and x[:1] in "=+-@" and x else x for x in texts]
        writer.writerow([*row, "range of seeds" if c.seeds > 1 else "95 % over problems"])
    return out.getvalue()


def as_latex(cells: Sequence[Cell], *, caption: str) -> str:
    """Return a booktabs table in %: a row per set, group and stage, a column per budget or k, intervals in brackets."""
    columns = sorted({c.at for c in cells})
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{lll{'r' * len(columns)}}}",
        "\\toprule",
        f"set & run & after & {' & '.join(map(str, columns))} \\\\",
    ]
    last = None
    for key in dict.fromkeys(c[:3] for c in cells):
        of = {c.at: c for c in cells if c[:3] == key}
        lines += ["\\midrule"] if key[0] != last else []
        last = key[0]
        shown = [
            f"{100 * of[x].mean:.1f} {{\\scriptsize [{_hundred(of[x].low)}, {_hundred(of[x].high)}]}}"
            if x in of
            else "--"
            for x in columns
        ]
        lines.append(f"{' & '.join([*map(tex, key), *shown])} \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", f"% {caption}", ""])


def tex(text: str) -> str:
    """Return text for LaTeX, with its special characters escaped.

    >>> tex("a_b 50%")
    'a\\\\_b 50\\\\%'
    """
    special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    special |= {c: f"\\{c}" for c in "&%$#_{}"}
    return " ".join("".join(special[c] if c in special else c for c in printable(text, lines=False)).split())


def comparison(run_dirs: Sequence[epath.PathLike]) -> dict[str, str]:
    """Return {file name: text} of a comparison. Raises FileNotFoundError if one of them is no run directory."""
    places = [place(run_dir) for run_dir in run_dirs]
    above = os.path.commonpath([os.fspath(p.parent) for p in places])
    names = [os.path.relpath(os.fspath(p), above) for p in places]
    named, copies = without_copies(list(zip(names, map(load_run, places))))
    groups = group_runs(named)
    colours = {group.label: (1 + i) % len(figures.COLOURS) for i, group in enumerate(groups)}
    files, sections = {}, {}
    for measure, (_, title) in MEASURES.items():
        cells = table_cells(groups, measure)
        if cells:
            files |= {f"{measure}.csv": as_csv(cells), f"{measure}.tex": as_latex(cells, caption=BAND)}
            tables = "".join(_copied(f"{measure}-{end}", files[f"{measure}.{end}"], end) for end in ("csv", "tex"))
            drawn = _extrapolation(groups, cells, measure, colours)
            sections[title] = f"<p class='key'>{BAND}</p><div class='grid'>{drawn}</div>{_set_tables(cells)}{tables}"
    for kind, title in (("grpo", "Training with RL"), ("sft", "Supervised training"), ("oxa", "OXA's fine-tuning")):
        sections[title] = _training(groups, kind, colours)
    sections["Where the configs differ"] = _config_table(groups, colours)
    head = ["runs", "seeds", "directories"]
    listed = [
        [_key(g.label, colours), escaped(", ".join(_seed(run) for run in g.runs)), escaped(", ".join(g.names))]
        for g in groups
    ]
    remarks = [*copies, *(f"{name}: {note}" for name, run in named for note in run.notes)]
    notes = "".join(f"<p class='note'>{escaped(text)}</p>" for text in remarks)
    body = table_html(head, listed) + "".join(
        f"<section><h2>{escaped(key)}</h2>{text}</section>" for key, text in sections.items() if text
    )
    header = f"<h1>{len(named)} runs compared</h1>{notes}"
    return {"report.html": page("comparison", header, body, COPY)} | files


def write_comparison(run_dirs: Sequence[epath.PathLike], *, to: epath.PathLike | None = None) -> epath.Path:
    """Write the comparison's files into `to`, by default comparison/ beside the first run; return the page's path."""
    files = comparison(run_dirs)
    directory = place(run_dirs[0]).parent / "comparison" if to is None else place(to)
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = directory / name
        patiently(f"write {path}", lambda path=path, text=text: path.write_bytes(text.encode(errors="replace")))
    return directory / "report.html"


def _seed(run: RunRecords) -> str:
    """Return a run's seed, "?" if its config does not tell."""
    return str(run.config["seed"]) if isinstance(run.config, dict) and "seed" in run.config else "?"


def _hundred(fraction: float) -> str:
    """Return a fraction in %, "?" for NaN."""
    return "?" if math.isnan(fraction) else f"{100 * fraction:.1f}"


def _key(label: str, colours: dict[str, int]) -> str:
    """Return a group's label behind a swatch of its colour."""
    return f"<i class='swatch' style='--c:var(--s{colours[label]})'></i>{escaped(label)}"


def _config_table(groups: list[Group], colours: dict[str, int]) -> str:
    """Return a table of the fields in which groups' configs differ, with every group's value; "" for none."""
    configs = [group.runs[0].config for group in groups]
    fields = [settings(config) if isinstance(config, dict) else {} for config in configs]
    names = sorted(set().union(*fields))
    differ = [name for name in names if len({of[name] if name in of else None for of in fields}) > 1]
    rows = [
        [escaped(name).replace(".", ".<wbr>"), *(escaped(of[name]) if name in of else "–" for of in fields)]
        for name in differ
    ]
    head = ["field", *(_key(group.label, colours) for group in groups)]
    return f"<div class='values'>{table_html(head, rows)}</div>" if rows else ""


def _copied(name: str, text: str, end: str) -> str:
    """Return a file's text, folded, with a button that copies it; `end` is "csv" or "tex"."""
    what = {"csv": "CSV", "tex": "LaTeX"}[end]
    button = f"<button type='button' data-copy='{name}'>copy as {what}</button>"
    inner = f"<summary>{name.replace('-', '.')}</summary><pre id='{name}'>{escaped(text)}</pre>"
    return f"{button}<details>{inner}</details>"


def _set_tables(cells: list[Cell]) -> str:
    """Return a table per set."""
    out = ""
    for name in dict.fromkeys(c.set for c in cells):
        of_set = [c for c in cells if c.set == name]
        columns, rows = sorted({c.at for c in of_set}), []
        for group, stage in dict.fromkeys((c.group, c.stage) for c in of_set):
            of = {c.at: c for c in of_set if (c.group, c.stage) == (group, stage)}
            seeds = max(c.seeds for c in of.values())
            shown = [
                f"{_hundred(of[x].mean)}<small>{_hundred(of[x].low)}, {_hundred(of[x].high)}</small>"
                if x in of
                else "–"
                for x in columns
            ]
            rows.append([escaped(group), escaped(stage), str(seeds), *shown])
        out += f"<h3>{escaped(name)}</h3>{table_html(['runs', 'after', 'seeds', *map(str, columns)], rows)}"
    return out


def _extrapolation(groups: list[Group], cells: list[Cell], measure: str, colours: dict[str, int]) -> str:
    """Return a figure per set and stage, with a line per group."""
    drawn = ""
    for i, (name, stage) in enumerate(dict.fromkeys((c.set, c.stage) for c in cells)):
        lines = []
        for group in groups:
            points = [c for c in cells if (c.set, c.stage, c.group) == (name, stage, group.label)]
            if points:
                x, mean, low, high = (np.array([c[k] for c in points], float) for k in (4, 5, 6, 7))
                trained = {
                    read_number(row, "train_budget")
                    for run in group.runs
                    for row in run.evals
                    if row["stage"] == stage and measure == "accuracy"
                }
                one = trained.pop() if len(trained) == 1 else math.nan  # seeds may have chosen different budgets
                lines.append(Line(group.label, colours[group.label], x, mean, low, high, one))
        common = {line.train_budget for line in lines}
        svg = figures.draw_intervals(
            lines,
            figure_id=f"{measure}{i}",
            title=f"{name}, {stage}",
            xlabel=MEASURES[measure][0],
            train_budget=common.pop() if len(common) == 1 else math.nan,
        )
        drawn += figure_html(f"{name}, after {stage}", [(x.label, x.colour, False) for x in lines], svg)
    return drawn


def _training(groups: list[Group], kind: str, colours: dict[str, int]) -> str:
    """Return a panel per logged quantity of the stages of one kind."""
    seeds = {}
    for group in groups:
        by_run = [[row for row in run.metrics if row["kind"] == kind] for run in group.runs]
        seeds[group.label] = [figures.collect_stages(rows) for rows in by_run if rows]
    curves = [stages for of in seeds.values() for stages in of]
    if not curves:
        return ""
    starts = [{stage.name: stage.step[0] - 0.5 for stage in stages} for stages in curves]
    drawn_at = {"starts": starts[0] if all(of == starts[0] for of in starts) else {}}  # where all begin alike
    drawn_at["end"] = max(stages[-1].step[-1] for stages in curves) + 0.5
    window = 2 * int(max(sum(len(stage.step) for stage in stages) for stages in curves) // 50) + 1
    drawn = ""
    for title, labels in shown_panels(kind, [stage.columns for stages in curves for stage in stages]).items():
        for i, (key, label) in enumerate(labels.items()):
            made = [seed_band(s, key, label=n, colour=colours[n], window=window) for n, s in seeds.items() if s]
            bands = [band for band in made if band]
            if bands:
                whole = f"{title}: {label}" if len(labels) > 1 else title
                svg = draw_bands(bands, figure_id=f"{kind}-{key.replace('/', '-')}-{i}", title=whole, **drawn_at)
                drawn += figure_html(whole, [(b.label, b.colour, False) for b in bands], svg)
    text = f"Running means over {window} steps inside a stage; bands: from the lowest seed to the highest."
    return f"<p class='key'>{text}</p><div class='grid'>{drawn}</div>"
