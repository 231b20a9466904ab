"""Tables of records, for the terminal and as CSV and markdown.

Of eval.jsonl e3's Table 1 (pass@k by set) and Table 3 (accuracy by budget); of scaling.jsonl accuracy against tokens;
of probes.jsonl every probe, and the numbers of e3's Fig. 12.

grid = table_1(lines)          # rows of cells, the first is the header
(workdir / "table1.md").write_text(markdown(grid))
"""

import csv
import io
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from e3jax.printable import printable

Grid = list[list[str]]
PASS_AT_K = {"unbiased": "pass_at_k", "bootstrap": "pass_at_k_bootstrap"}  # config.pass_at_k -> key of eval.jsonl


def percent(interval: Sequence[float]) -> str:
    """Return the mean of [mean, low, high] in %, as the paper's tables have it.

    >>> percent([0.4375, 0.3, 0.6])
    '43.8'
    """
    return f"{100 * interval[0]:.1f}"


def by_model(lines: Sequence[dict]) -> dict[str, dict[str, dict]]:
    """Return {model: {set: line}}, in the order of the lines."""
    out: dict[str, dict[str, dict]] = {}
    for line in lines:
        out.setdefault(line["stage"], {})[line["set"]] = line
    return out


def table_1(lines: Sequence[dict], measure: str = "pass_at_k") -> Grid:
    """Return e3's Table 1: a row a model, a column a set and k.

    `measure` "pass_at_k_bootstrap" is pass@k as e3 estimates it, "maj_at_k" are majority votes. Lines of older
    evaluations that lack the measure are left out.
    """
    lines = [line for line in lines if measure in line]
    columns = sorted({(line["set"], int(k)) for line in lines for k in line[measure]})
    word = {"pass_at_k": "pass", "pass_at_k_bootstrap": "bootstrapped pass", "maj_at_k": "maj"}[measure]
    grid = [["model", *(f"{name} {word}@{k}" for name, k in columns)]]
    for model, sets in by_model(lines).items():
        cells = (sets[s][measure].get(str(k)) if s in sets else None for s, k in columns)
        grid.append([model, *("" if c is None else percent(c) for c in cells)])
    return grid


def table_3(lines: Sequence[dict]) -> Grid:
    """Return e3's Table 3: a row a model and set, two columns a budget.

    "finished" counts what is correct within the budget; "cut" cuts responses to it and grades them then.
    """
    budgets = sorted({b for line in lines for b in line["budgets"]})
    grid = [["model", "set", *(f"{b} {column}" for b in budgets for column in ("finished", "cut"))]]
    for line in sorted(lines, key=lambda line: line["set"]):
        cells = [line[c].get(str(b)) for b in budgets for c in ("accuracy", "accuracy_cut")]
        grid.append([line["stage"], line["set"], *("" if c is None else percent(c) for c in cells)])
    return grid


def table_forced(lines: Sequence[dict]) -> Grid:
    """Return a row a model, set and way of forcing; only the header where nothing was forced."""
    grid = [["model", "set", "forcing", "accuracy", "tokens", "forced", "dropped", "touched"]]
    for line in lines:
        for how, r in line["forcing"].items():
            numbers = [f"{r[name]:.1f}" for name in ("length", "forced", "dropped")]
            grid.append([line["stage"], line["set"], how, percent(r["accuracy"]), *numbers, f"{r['touched']:.2f}"])
    return grid


def table_scaling(lines: Sequence[dict]) -> Grid:
    """Return a row a model, method and K of scaling.jsonl: accuracy in % with its interval, and tokens per problem.

    The "sc" columns have self-consistency at the method's cost, and how far the method is ahead of it. "…" marks a
    method that costs less than one response or more than all of them: it is compared with the nearest K.
    """
    grid = [
        [
            "model",
            "method",
            "judge",
            "K",
            "accuracy [95 %]",
            "thousand tokens",
            "forced",
            "prompt",
            "sc at its cost",
            "difference [95 %]",
        ]
    ]
    for line in lines:
        for c in line["cells"]:
            mean, low, high = (100 * x for x in c["accuracy"])
            row = [
                line["stage"],
                c["method"],
                c["judge"],
                str(c["k"]),
                f"{mean:.1f} [{low:.1f}, {high:.1f}]",
                f"{c['tokens'] / 1000:.3f}",
                f"{c['forced'] / 1000:.3f}",
                f"{c['prompt'] / 1000:.3f}",
            ]
            if c["sc"]:
                off = "" if abs(c["sc"]["tokens"] - c["tokens"]) < 1e-6 * c["tokens"] + 1e-9 else " …"
                mean, low, high = (100 * x for x in c["sc"]["difference"])
                row += [
                    f"{percent(c['sc']['accuracy'])} (K={c['sc']['k']:.1f}){off}",
                    f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]",
                ]
            grid.append(row + [""] * (len(grid[0]) - len(row)))
    return grid


def table_seeds(lines: Sequence[dict]) -> Grid:
    """Return a row a label, method and K: means over the seeds of models called LABEL@SEED, with least and greatest."""
    grid = [["model", "seeds", "method", "K", "accuracy [least, most]", "thousand tokens", "against sc at its cost"]]
    cells: dict[tuple, list[dict]] = {}
    for line in lines:
        label, at, _ = line["stage"].rpartition("@")
        for c in line["cells"] if at else ():
            cells.setdefault((label, c["method"], c["k"]), []).append(c)
    for (label, method, k), seeds in cells.items():
        accuracy = [100 * c["accuracy"][0] for c in seeds]
        ahead = [100 * c["sc"]["difference"][0] for c in seeds if c["sc"]]
        n = len(seeds)
        grid.append(
            [
                label,
                str(n),
                method,
                str(k),
                f"{sum(accuracy) / n:.1f} [{min(accuracy):.1f}, {max(accuracy):.1f}]",
                f"{sum(c['tokens'] for c in seeds) / n / 1000:.3f}",
                f"{sum(ahead) / n:+.1f} [{min(ahead):+.1f}, {max(ahead):+.1f}]" if ahead else "",
            ]
        )
    return grid


def three(values: Sequence[float | None]) -> str:
    """Return [mean, low, high] as one cell, "" for null.

    >>> three([0.25, 0.1, 0.4])
    '0.250 [0.100, 0.400]'
    """
    return "" if values[0] is None else "{:.3f} [{:.3f}, {:.3f}]".format(*values)


def table_probes(rows: Sequence[dict], unique: Sequence[float], problems: int) -> Grid:
    """Return a table of one set's lines of probes.jsonl, a column a model: Def. 4.1, App. G.1, per token, counts.

    `unique` are distinct wrong attempts per problem up to each model, on `problems` problems (e3 Fig. 6).
    """
    grid = [["", *(row["stage"] for row in rows)], ["success", *(three(row["success"]) for row in rows)]]
    sides = {
        "chained": "E[r | verified]",
        "any": "E[r | generated]",
        "difference": "difference",
        "without": "E[r | never verified]",
        "chained_minus_without": "verified − never",
    }
    for key, name in sides.items():
        counts = [row["asymmetry"]["responses"].get(key) for row in rows]
        cells = (three(row["asymmetry"][key]) for row in rows)
        grid.append([f"Def. 4.1 {name}", *(c if n is None else f"{c} n={n}" for c, n in zip(cells, counts))])
    for section in ("gap", "conditional", "tokens"):
        keys = dict.fromkeys(k for row in rows for k, v in row[section].items() if isinstance(v, list))
        grid += [
            [f"{section} {k}", *(three(row[section][k]) if k in row[section] else "" for row in rows)] for k in keys
        ]
    for key in rows[0]["explore"]:
        values = [row["explore"][key] for row in rows]
        grid.append([key, *("" if v is None else f"{v:.3f}" for v in values)])
    return [*grid, [f"unique wrong attempts, {problems} problems", *(f"{v:.1f}" for v in unique)]]


def table_chains(rows: Sequence[dict]) -> Grid:
    """Return a table of one set's chains: a row a model and number of attempts, pass@k in % and tokens (e3 Fig. 12)."""
    ks = sorted({int(k) for row in rows for cell in row["chains"].values() for k in cell["pass_at_k"]})
    tokens = ("reached", "kept", "forced", "dropped", "drawn")
    grid = [["model", "attempts", *(f"pass@{k}" for k in ks), *tokens]]
    for row in rows:
        for attempts, cell in row["chains"].items():
            values = [percent(cell["pass_at_k"][str(k)]) for k in ks]
            grid.append([row["stage"], attempts, *values, *(f"{cell[name]:.2f}" for name in tokens)])
    return grid


def markdown(grid: Grid) -> str:
    """Return the grid as a table in markdown.

    >>> print(markdown([["model", "4096"], ["a|b", "1.0"]]))
    | model | 4096 |
    |---|---:|
    | a\\|b | 1.0 |
    <BLANKLINE>
    """
    header, *rows = [[printable(cell, lines=False).replace("|", "\\|") for cell in row] for row in grid]
    rule = "|".join(["---", *["---:"] * (len(header) - 1)])
    return "\n".join(["| " + " | ".join(header) + " |", f"|{rule}|", *("| " + " | ".join(r) + " |" for r in rows), ""])


def comma_separated(grid: Grid) -> str:
    """Return the grid as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(grid)
    return out.getvalue()


def terminal(grid: Grid, title: str) -> Table:
    """Return the grid as a table for a terminal; brackets in a label are no markup."""
    table = Table(title=Text(printable(title, lines=False)))
    for i, name in enumerate(grid[0]):
        table.add_column(Text(printable(name, lines=False)), justify="left" if i == 0 else "right", no_wrap=True)
    for row in grid[1:]:
        table.add_row(*(Text(printable(cell, lines=False)) for cell in row))
    return table
