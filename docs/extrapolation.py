"""docs/extrapolation.svg: accuracy by test budget, from the tables of docs/quickstart.md.

    python docs/extrapolation.py

A line is the mean of the seeds, its band reaches from the least to the greatest of them.
"""

import re
from pathlib import Path

import numpy as np

from e3jax.report.figures import Line, draw_intervals
from e3jax.report.files import Entry, panels_file

HERE = Path(__file__).parent
TRAINED = 96.0  # tokens, of stage 1


def tables(text: str) -> dict[str, tuple[list[int], dict[str, np.ndarray]]]:
    """{"3 numbers": (budgets, {"base model": accuracy [seed, budget] in %})} of a page's tables."""
    found = {}
    for title, body in re.findall(r"^## (\d numbers)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE):
        budgets = [int(x) for x in re.search(r"\| seed \|((?: \d+ \|)+)", body)[1].split("|") if x.strip()]
        rows, after = {}, ""
        for line in body.splitlines():
            cells = [x.strip().strip("*") for x in line.strip("|").split("|")]
            after = cells[0] or after
            if len(cells) > len(budgets) + 1 and cells[1].isdigit():
                rows.setdefault(after, []).append([float(x) for x in cells[2 : 2 + len(budgets)]])
        found[title] = budgets, {name: np.array(values) for name, values in rows.items()}
    return found


def main() -> None:
    """Draw both sets beside each other."""
    panels, legend = {}, []
    for title, (budgets, rows) in tables((HERE / "quickstart.md").read_text()).items():
        lines = [
            Line(name, i, np.array(budgets), values.mean(0) / 100, values.min(0) / 100, values.max(0) / 100, np.nan)
            for i, (name, values) in enumerate(rows.items())
        ]
        panels[title] = draw_intervals(
            lines, figure_id=title.replace(" ", "-"), title=title, xlabel="test budget (tokens)", train_budget=TRAINED
        )
        legend = [Entry(f"after {line.label}" if i else line.label, line.colour, False) for i, line in enumerate(lines)]
    svg = panels_file(
        panels, title="Accuracy by test budget, 3 seeds (dashed: the budget of stage 1, on 3 numbers)", legend=legend
    )
    (HERE / "extrapolation.svg").write_text(svg)


if __name__ == "__main__":
    main()
