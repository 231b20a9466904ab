"""docs/recipes/countdown_lm.svg: accuracy by test budget, from the table of the feasibility run in countdown.md.

python docs/recipes/countdown_lm.py
"""

import re
from pathlib import Path

import numpy as np

from e3jax.report.figures import Line, draw_intervals
from e3jax.report.files import Entry, panels_file

HERE = Path(__file__).parent
BUDGETS, TRAINED, PROBLEMS = np.array([512, 1024, 2048]), 512.0, 512


def rows(text: str) -> dict[str, dict[str, np.ndarray]]:
    """Return {problems: {model: accuracy by budget, in %}} of the page's table."""
    found, problems = {}, ""
    body = text.split("| problems | model |")[1].split("\n\n")[0]
    for line in body.splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        problems = cells[0] or problems
        values = [float(re.match(r"[\d.]+", cell)[0]) for cell in cells[2:5]]
        found.setdefault(problems, {})[cells[1].partition(",")[0]] = np.array(values)
    return found


def main() -> None:
    """Draw both sets beside each other; bands are 95 % intervals over 512 problems, by the normal approximation."""
    panels, legend = {}, []
    for title, models in rows((HERE / "countdown.md").read_text()).items():
        lines = []
        for i, (name, values) in enumerate(models.items()):
            p = values / 100
            half = 1.96 * np.sqrt(p * (1 - p) / PROBLEMS)
            lines.append(Line(name, i, BUDGETS, p, p - half, p + half, np.nan))
        panels[title] = draw_intervals(
            lines,
            figure_id=title[:9].replace(" ", "-"),
            title=title,
            xlabel="test budget (tokens)",
            train_budget=TRAINED,
        )
        legend = [Entry(line.label, line.colour, False) for line in lines]
    title = "SmolLM2-135M, accuracy by test budget, one seed (dashed: RL's budget, on 3 numbers)"
    (HERE / "countdown_lm.svg").write_text(panels_file(panels, title=title, legend=legend))


if __name__ == "__main__":
    main()
