"""How often Eq. 2 makes the right choice, by the problems and responses a problem that J is measured with.

    python benchmarks/budget_rule.py

A simulation, no model: each problem has its chance of being solved within twice the largest budget, drawn from a Beta
distribution that makes most problems hard or easy (as AIME's are); what is solved ends within B, 2B, … in the shares of
the curve. Right is what Eq. 2 chooses from the true accuracies. Its table is in README.md beside this file, and the
defaults of config.budget_rule come from it.
"""

import numpy as np

from e3jax.train.eq2 import choose_budget

BUDGETS = (1, 2, 4)  # in units of the smallest; J is measured at 8 too
CURVES = {  # true J at 1, 2, 4, 8
    "flat (1.13, 1.06, 1.03)": (0.15, 0.17, 0.18, 0.185),
    "grows, then flat (1.5, 1.08, 1.02)": (0.12, 0.18, 0.195, 0.199),
    "grows throughout (1.4, 1.4, 1.3)": (0.08, 0.112, 0.157, 0.204),
}
PROBLEMS, SAMPLES = (64, 128, 256, 512, 1024), (1, 2, 4, 8)
SPREAD = 0.4  # a + b of the Beta distribution: the smaller, the more problems are always or never solved


def measured(curve, *, problems: int, samples: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return what `draws` measurements find for J at 1, 2, 4, 8: [draws, 4]."""
    most = curve[-1]
    chance = rng.beta(SPREAD * most, SPREAD * (1 - most), size=(draws, problems))
    solved = rng.binomial(samples, chance).sum(1)
    ends = rng.multinomial(solved, np.diff(curve, prepend=0) / most)  # within which budget each ends first
    return ends.cumsum(1) / (problems * samples)


def share_right(curve, *, problems: int, samples: int, kappa: float = 1.2, draws: int = 4000) -> float:
    """Return how often Eq. 2 chooses from a measurement what it chooses from the truth."""

    def choice(accuracy) -> int:
        return choose_budget(dict(zip((1, 2, 4, 8), accuracy)), budgets=BUDGETS, minimum=0, kappa=kappa)[0]

    found = measured(curve, problems=problems, samples=samples, draws=draws, rng=np.random.default_rng(0))
    return float(np.mean([choice(row) == choice(curve) for row in found]))


def main() -> None:
    """Print the table of README.md."""
    print("| true J(2B) / J(B) | problems | " + " | ".join(f"{s} a problem" for s in SAMPLES) + " |")
    print("|---|---|" + "---|" * len(SAMPLES))
    for name, curve in CURVES.items():
        for problems in PROBLEMS:
            shares = [share_right(curve, problems=problems, samples=samples) for samples in SAMPLES]
            print(f"| {name} | {problems} | " + " | ".join(f"{100 * x:.0f}" for x in shares) + " |", flush=True)


if __name__ == "__main__":
    main()
