"""Write one page of all experiments: the paper's claim, our figures, numbers over seeds, the verdict by the rule.

    python -m e3jax.experiments.paper runs/experiments/* --to=paper.html

It reads results.json (experiments/results.py) of every directory given and skips those without one. The page is one
file, loads nothing, and escapes every text. A table of paper, command, verdict and numbers is printed as markdown.
"""

import argparse
import math
import sys

import numpy as np
from etils import epath

from e3jax.errors import UserError
from e3jax.experiments.results import FILE, read
from e3jax.printable import printable
from e3jax.report import figures
from e3jax.report.files import Entry, panels_file
from e3jax.report.page import escaped, figure_html, page, table_html
from e3jax.storage import place

SIGN = {"reproduced": "✓", "mixed": "±", "not reproduced": "✗", "not decided": "?"}
COLOUR = {"reproduced": 3, "mixed": 5, "not reproduced": 2, "not decided": 0}  # figures.COLOURS
HOLDS = {"yes": 3, "no": 2, "open": 0}  # figures.COLOURS
OUTCOME = {"yes": "holds", "no": "the opposite holds", "open": "not shown"}
STYLE = """
.verdict{font-weight:600;border-left:5px solid var(--c);padding:.2rem .7rem;background:var(--card)}
tbody th{white-space:normal;min-width:11em;max-width:22em} td{white-space:normal} td:nth-child(2){min-width:6em}
.claim{font-size:1.05rem;max-width:50em}
"""


def shown(value: float | None, *, percent: bool) -> str:
    """Return a number as text, "–" where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f}" if percent else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def statement_cells(row: dict, results: dict) -> list[str]:
    """Return what one statement says, its difference, limit, mean, interval, values per seed, and outcome."""
    percent = results["measures"][row["measure"]]["percent"]
    mean, low, high = [shown(row[key], percent=percent) for key in ("mean", "low", "high")]
    seeds = ", ".join(shown(x, percent=percent) for x in row["values"].values())
    limit = shown(row["margin"], percent=percent)
    wanted = f"> {limit}" if row["kind"] == "above" else f"within ±{limit}"
    difference = f"{' + '.join(row['plus'])}{''.join(f' − {arm}' for arm in row['minus'])}"
    of = f"{row['measure']}{' (points)' if percent else ''}: {difference}"
    says = f"{row['says']} ({row['why']})" if "why" in row else row["says"]
    return [says, of, wanted, mean, f"{low} … {high}", seeds, OUTCOME[row["outcome"]]]


def interval_svg(row: dict, reach: float) -> str:
    """Return a small picture of a statement's mean and interval around 0, `reach` to either side.

    A statement of kind "within" has a band from −margin to margin.
    """
    if reach <= 0 or any(row[key] is None for key in ("low", "mean", "high")):
        return ""
    low, mean, high, limit = (90 + 85 * row[key] / reach for key in ("low", "mean", "high", "margin"))
    band = f"<rect x='{180 - limit:.1f}' width='{2 * limit - 180:.1f}' height='18' fill='var(--rule)'/>"
    return (
        f"<svg viewBox='0 0 180 18' style='width:180px;--c:var(--s{HOLDS[row['outcome']]})'>"
        f"{band if row['kind'] == 'within' else ''}<path d='M90 0V18' stroke='var(--soft)'/>"
        f"<path d='M{low:.1f} 9H{high:.1f}' stroke='var(--c)' stroke-width='3'/>"
        f"<circle cx='{mean:.1f}' cy='9' r='5' fill='var(--c)'/></svg>"
    )


def rule_table(results: dict) -> str:
    """Return the rule as a table, a row per statement; pictures of one measure share their scale."""
    reach, rows = {}, []
    for row in results["rule"]:
        ends = [abs(row[key]) for key in ("low", "high", "margin") if row[key] is not None]
        reach[row["measure"]] = max([reach.get(row["measure"], 0.0), *filter(math.isfinite, ends)])
    for row in results["rule"]:
        says, of, wanted, mean, interval, seeds, outcome = map(escaped, statement_cells(row, results))
        picture = interval_svg(row, reach[row["measure"]])
        rows.append(
            [f"{says}<small>{of} {wanted}</small>", outcome, picture, f"{mean}<small>{interval}</small>", seeds]
        )
    heads = ["statement of the rule", "outcome", "", f"mean<small>{100 * results['level']:g} % interval</small>"]
    return table_html([*heads, "per seed"], rows)


def lines_of(figure: dict) -> list[figures.Line]:
    """Return the curves of one figure for report/figures.py; null becomes NaN."""
    out = []
    for i, line in enumerate(figure["lines"]):
        x, *rest = (
            np.array([math.nan if v is None else float(v) for v in line[key]]) for key in ("x", "mean", "low", "high")
        )
        out.append(figures.Line(line["label"], i % len(figures.COLOURS), x, *rest, math.nan))
    return out


def draw(figure: dict, figure_id: str) -> str:
    """Draw one figure as an SVG for a page."""
    mark = math.nan if figure["mark"] is None else float(figure["mark"])
    return figures.draw_intervals(
        lines_of(figure),
        figure_id=figure_id,
        title=figure["title"],
        xlabel=figure["xlabel"],
        train_budget=mark,
        axes=figures.Axes(ylabel=figure["ylabel"], log2=figure["log2"], percent=figure["percent"]),
    )


def figure_file(figure: dict) -> str:
    """Return one figure as an SVG file of its own."""
    legend = [Entry(line.label, line.colour, False) for line in lines_of(figure)]
    return panels_file({"": draw(figure, "figure")}, title=figure["title"], legend=legend)


def values_table(results: dict) -> str:
    """Return a table of every arm's measures: the mean over seeds, and below it each seed's value."""
    rows = []
    for arm, words in results["arms"].items():
        cells = [f"{escaped(arm)}<small>{escaped(words)}</small>"]
        for measure, about in results["measures"].items():
            of = results["values"][measure]
            known = [x for x in (of[arm].values() if arm in of else ()) if x is not None]
            mean = shown(sum(known) / len(known) if known else None, percent=about["percent"])
            cells.append(f"{mean}<small>{', '.join(shown(x, percent=about['percent']) for x in known)}</small>")
        rows.append(cells)
    heads = [f"{escaped(m)}{' %' if about['percent'] else ''}" for m, about in results["measures"].items()]
    return table_html(["arm", *heads], rows)


def section(results: dict, number: int) -> str:
    """Return the section of one experiment."""
    pictures = ""
    for i, figure in enumerate(results["figures"]):
        legend = [(line.label, line.colour, False) for line in lines_of(figure)]
        pictures += figure_html(figure["title"], legend, draw(figure, f"e{number}f{i}"))
    tables = "".join(
        f"<h3>{escaped(t['title'])}</h3>"
        + table_html(list(map(escaped, t["header"])), [list(map(escaped, row)) for row in t["rows"]])
        for t in results["tables"]
    )
    failed = "".join(
        f"<p class='note'>{escaped(f['arm'])}, seed {escaped(f['seed'])}: failed ({escaped(f['why'])})</p>"
        for f in results["failed"]
    )
    about = "".join(f"<li><b>{escaped(m)}</b>: {escaped(a['says'])}</li>" for m, a in results["measures"].items())
    time = "" if results["minutes"] is None else f", {results['minutes']:.0f} minutes of runs"
    facts = f"Seeds: {', '.join(map(str, results['seeds']))}{time}. "
    return (
        f"<section id='e{number}'><h2>{escaped(results['name'])}: {escaped(results['paper'])}</h2>"
        f"<p class='claim'>{escaped(results['claim'])}</p>"
        f"<p class='verdict' style='--c:var(--s{COLOUR[results['verdict']]})'>{SIGN[results['verdict']]} "
        f"{escaped(results['verdict'])}</p>{failed}{rule_table(results)}"
        f"<div class='grid' style='margin-top:1rem'>{pictures}</div>"
        f"<h3>Numbers</h3>{values_table(results)}<ul class='key'>{about}</ul>{tables}"
        f"<p class='key'>{escaped(facts + results['setting'])}</p><pre>{escaped(results['command'])}</pre></section>"
    )


def whole_page(all_results: list[dict]) -> str:
    """Return the whole page."""
    rows = [
        [
            f"<a href='#e{i}'>{escaped(r['name'])}</a>",
            escaped(r["paper"]),
            escaped(r["verdict"]),
            len(r["rule"]),
            *(sum(x["outcome"] == outcome for x in r["rule"]) for outcome in OUTCOME),
        ]
        for i, r in enumerate(all_results)
    ]
    top = table_html(["experiment", "in the paper", "verdict", "statements", *OUTCOME.values()], rows)
    why = (
        "Each experiment states its rule before it is run. Per seed, all arms share base model, problems and noise; "
        "intervals are Student's t over seeds of the paired difference. Reproduced: every statement of the rule "
        "holds; not reproduced: none does; mixed: some do. “Not shown”: the interval does not exclude the opposite."
    )
    body = "".join(section(r, i) for i, r in enumerate(all_results))
    header = f"<style>{STYLE}</style><h1>e3 in miniature</h1><p class='key'>{escaped(why)}</p>{top}"
    return page("e3 in miniature", header, body)


def markdown(all_results: list[dict]) -> str:
    """Return the README's table: paper, command, verdict, and mean and interval of every statement."""
    lines = ["| paper | command | verdict | numbers |", "|---|---|---|---|"]
    for r in all_results:
        cells = [statement_cells(row, r) for row in r["rule"]]
        numbers = "; ".join(f"{c[0]}: {c[3]} ({c[4]}), {c[6]}" for c in cells)
        lines.append(printable(f"| {r['paper']} | `{r['command']}` | {r['verdict']} | {numbers} |", lines=False))
    return "\n".join(lines) + "\n"


def write_page(directories: list[str], to: epath.PathLike) -> epath.Path:
    """Write the page and print the table; return the page's path. UserError if no directory has results.

    A directory without results is skipped, and a line on stderr says so.
    """
    all_results = []
    for name in directories:
        path = place(name)
        if path.is_dir() and not (path / FILE).exists():
            print(printable(f"{path}: no {FILE} yet, skipped", lines=False), file=sys.stderr)
        else:
            all_results.append(read(path))
    if not all_results:
        raise UserError("none of these directories has results: run an experiment first")
    to = place(to)
    to.write_bytes(whole_page(all_results).encode(errors="replace"))
    print(markdown(all_results))
    return to


def main() -> None:
    """The command: write the page of all experiments, and print the README's table."""
    parser = argparse.ArgumentParser(
        prog="python -m e3jax.experiments.paper", description="Write one page of experiments."
    )
    parser.add_argument("results", nargs="+", help="directories (or results.json files) of finished experiments")
    parser.add_argument("--to", default="paper.html", help="the page (default: paper.html)")
    given = parser.parse_args()
    try:
        print(printable(write_page(given.results, given.to), lines=False))
    except (OSError, UserError) as error:
        parser.exit(2, f"error: {printable(error, lines=False)}\n")


if __name__ == "__main__":
    main()
