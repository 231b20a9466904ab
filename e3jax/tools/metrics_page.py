"""Write docs/metrics.md, which says what every logged number means, from e3jax/metrics/names.py.

    python -m e3jax.tools.metrics_page --to=docs/metrics.md

tests/test_docs.py fails when the page in the repository differs from the one that this writes.
"""

from absl import flags
from etils import epath

from e3jax.flags import run_tool
from e3jax.metrics.names import ANY, KINDS, REASONS, RECORDS

HEAD = f"""# Metrics

This page is made by `python -m e3jax.tools.metrics_page --to=docs/metrics.md` from
[e3jax/metrics/names.py](../e3jax/metrics/names.py). Change a definition there. Tests hold the records of real runs to
it: a run that logs a name without a definition fails them.

TensorBoard (`RUN/tb`) and wandb get the numbers of `metrics.jsonl` under the same names. `null` stands for what has no
value: the mean of an empty class, say the length of correct responses where none is correct. "App." and "Fig." are
those of e3's paper. "{ANY}" in a name stands for a number or a word, such as a budget in tokens.
"""
TITLES = {
    "grpo": "RL: lines of kind `grpo` in metrics.jsonl, one per step",
    "sft": "Supervised stages: kind `sft`, a line every ten steps and for the last",
    "oxa": "OXA's fine-tuning: kind `oxa`, a line every ten steps and for the last",
    "pk": "The didactic model: kind `pk`, one number per seed",
    "eval.jsonl": "Evaluations: eval.jsonl",
    "budget.jsonl": "Eq. 2: budget.jsonl",
    "probes.jsonl": "Probes of checkpoints: probes.jsonl",
    "cells of scaling.jsonl": "Test-time scaling: the cells of scaling.jsonl",
    "rates.jsonl": "Pass rates: rates.jsonl",
    "pool.jsonl": "OXA's pools: pool.jsonl",
}
BEFORE = {
    "grpo": "Means are over the responses of a step unless the line says otherwise. Only values under `time/` and\n"
    "`memory/` differ between a run and its resumed twin.\n\n",
    "eval.jsonl": "A measured number is [mean, low, high], with a 95 % bootstrap interval over problems, in\n"
    "`e3jax.eval.run` over problems and samples. `explore.NAME` is `explore/NAME` above, over all responses; phases,\n"
    "reasons and `format/well_formed` are there too.\n\n",
    "probes.jsonl": "Means with 95 % intervals over problems, written by `e3jax.eval.probes`. `explore` is as in "
    "eval.jsonl.\n\n",
}


def table(rows: dict[str, str], first: str) -> str:
    """Return a table in markdown, a line per name; bars and "<" in the text are escaped."""
    shown = {name: text.replace("|", "\\|").replace("<", "&lt;") for name, text in rows.items()}
    lines = [f"| {first} | meaning |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in shown.items())]
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for name, rows in (KINDS | RECORDS).items():
        parts.append(f"## {TITLES[name]}\n\n{BEFORE.get(name, '')}{table(rows, 'name')}")
        if name == "grpo":
            parts.append("### Reasons\n\n`reason/CODE` is the share of responses with this verdict of the grader.\n\n")
            parts[-1] += table(REASONS, "code")
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    epath.Path(flags.FLAGS.to).write_text(page())


if __name__ == "__main__":
    flags.DEFINE_string("to", "docs/metrics.md", "file to write")
    run_tool(main)
