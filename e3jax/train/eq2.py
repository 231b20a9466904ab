"""The budget rule: how many tokens to train a stage at (e3 §6.1, Eq. 2).

    B_tr = argmin_{B >= B0} B   subject to   J(2B) <= κ · J(B),    κ > 1

In words: the shortest budget at which the incoming model gains little from twice as many tokens,
so that most chains that would succeed fit, and no more than that has to be optimised over. e3
takes κ = 1.2, budgets 4k/8k/16k and B0 near the mean response length; in its countdown study
(App. H) κ above 1.3 picks too short and below 1.05 too long. The paper is silent on J(B) = 0, on a
rule that no budget satisfies, and on the noise of J: `remarks` says each in a sentence.

Usage: `budget, table = choose_budget({4096: 0.3, 8192: 0.4, 16384: 0.42}, budgets=[4096, 8192],
minimum=1500, kappa=1.2)`; `print(*remarks(table, minimum=1500, kappa=1.2))`.
"""

from dataclasses import dataclass

import numpy as np

from e3jax.errors import need, need_at_least_one, need_counts

LEVEL = 0.95  # of the ratios' intervals


@dataclass(frozen=True)
class BudgetRule:
    """How Eq. 2 is measured: config.budget_rule."""

    budgets: tuple[int, ...]  # candidates, tokens
    kappa: float
    problems: int
    samples: int  # responses a problem

    def __post_init__(self):
        need_counts("budgets", self.budgets)
        need(self.kappa > 1, "kappa", self.kappa, "Eq. 2 needs kappa > 1")
        need_at_least_one(self, "problems", "samples")


def choose_budget(accuracy, *, budgets, minimum, kappa, draws=None):
    """Return Eq. 2's budget and the table it was read from: (int, a list with one dict per budget).

    `accuracy` maps tokens to J and must hold B and 2B for every B in `budgets` (one generation at
    twice the largest serves all: `metrics/extrapolation.py`). Candidates have B >= `minimum`. When
    none satisfies the rule the largest budget is returned and its row says `satisfied: False`.
    `draws` maps the same tokens to J's of R resamples, arrays [R], paired between tokens.

    A row has `budget`, `accuracy` J(B), `accuracy_doubled` J(2B), `ratio` J(2B)/J(B), `satisfied`
    (B >= minimum and J(2B) <= κ J(B)), `unsolved`, `chosen`; with `draws`, `interval` of the ratio
    (95 %). J(B) = 0 < J(2B) has ratio inf and fails. J(B) = J(2B) = 0 satisfies Eq. 2 with nothing
    learnt from it (ratio nan): it may be chosen and is flagged `unsolved`, for the data are too
    hard for this model at that budget.

    Raises ValueError for κ <= 1, no budgets, or a J that is missing or outside [0, 1].

    >>> choose_budget({1: 0.2, 2: 0.5, 4: 0.5}, budgets=[1, 2], minimum=0, kappa=1.2)[0]
    2
    """
    if kappa <= 1:
        raise ValueError(f"kappa must be > 1 (Eq. 2), got {kappa}")
    if len(budgets) == 0:
        raise ValueError("no budgets to choose from")
    needed = {multiple * budget for budget in budgets for multiple in (1, 2)}
    if missing := sorted(needed - set(accuracy)):
        raise ValueError(f"accuracy lacks {missing} tokens: Eq. 2 compares every B with 2B")
    for tokens in sorted(needed):
        if not 0 <= accuracy[tokens] <= 1:
            raise ValueError(f"accuracy at {tokens} tokens is {accuracy[tokens]}, not in [0, 1]")
    table = [_row(accuracy, budget, minimum, kappa) for budget in sorted(set(budgets))]
    if draws is not None:
        for row in table:
            row["interval"] = ratio_interval(draws[row["budget"]], draws[2 * row["budget"]])
    chosen = next((row for row in table if row["satisfied"]), table[-1])
    chosen["chosen"] = True
    return chosen["budget"], table


def _row(accuracy, budget, minimum, kappa):
    now, doubled = float(accuracy[budget]), float(accuracy[2 * budget])
    if now > 0:
        ratio = doubled / now
    else:
        ratio = float("inf") if doubled > 0 else float("nan")
    return {
        "budget": budget,
        "accuracy": now,
        "accuracy_doubled": doubled,
        "ratio": ratio,
        "satisfied": budget >= minimum and doubled <= kappa * now,
        "unsolved": now == 0 and doubled == 0,
        "chosen": False,
    }


def ratio_interval(now, doubled):
    """Return [low, high] of J(2B)/J(B) over resamples [R] of both; inf where only J(2B) is above 0.

    Quantiles are values of the resamples, not between two, so that an infinite one stays what it is. Resamples without
    any right answer say nothing and are left out; [nan, nan] when all are.

    >>> ratio_interval(np.array([0.2, 0.0, 0.0]), np.array([0.2, 0.1, 0.0]))
    [1.0, inf]
    """
    now, doubled = np.asarray(now, float), np.asarray(doubled, float)
    ratios = np.full(now.shape, np.inf)
    np.divide(doubled, now, out=ratios, where=now > 0)
    ratios = ratios[(now > 0) | (doubled > 0)]
    if not ratios.size:
        return [float("nan")] * 2
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return [float(x) for x in np.quantile(ratios, ends, method="inverted_cdf")]


def could_have_been(table, *, minimum, kappa):
    """Return the budgets that Eq. 2 could as well have chosen: a ratio that decided against one has κ in its interval.

    Shorter budgets whose interval reaches down to κ, and the next longer one where the chosen budget's reaches above.
    `table` is `choose_budget`'s with `draws`; without them there are no intervals and the answer is [].
    """
    if "interval" not in table[0]:
        return []
    at = next(i for i, row in enumerate(table) if row["chosen"])
    others = [row["budget"] for row in table[:at] if row["budget"] >= minimum and row["interval"][0] <= kappa]
    if table[at]["satisfied"] and table[at]["interval"][1] > kappa:
        others += [row["budget"] for row in table[at + 1 : at + 2]]
    return others


def remarks(table, *, minimum, kappa):
    """Return what a person has to know of a choice, as sentences; [] when Eq. 2 was satisfied beyond doubt."""
    chosen = next(row for row in table if row["chosen"])
    budget, largest = chosen["budget"], table[-1]["budget"]
    if all(row["unsolved"] for row in table):
        return [
            f"No problem was solved at any budget up to {2 * largest} tokens (0/0), so Eq. 2 decides nothing and "
            f"{budget} is arbitrary: take easier problems, longer budgets or a better model, and see whether its "
            "answers are read (the reasons in samples.jsonl)."
        ]
    said = []
    if chosen["unsolved"]:
        said.append(
            f"No problem was solved at {budget} or {2 * budget} tokens, which satisfies Eq. 2 with 0/0: longer "
            "budgets solve some, so leave this one out of config.budget_rule.budgets."
        )
    elif not chosen["satisfied"] and largest < minimum:
        said.append(
            f"Every budget is below B0 = {minimum:.0f} tokens, the model's mean response length, so the largest, "
            f"{budget}, was taken: add longer ones to config.budget_rule.budgets."
        )
    elif not chosen["satisfied"]:
        said.append(
            f"No budget satisfies Eq. 2 (J(2B) <= {kappa:g} J(B)), so the largest, {budget}, was taken: add longer "
            "ones to config.budget_rule.budgets, unless memory forbids it."
        )
    if others := could_have_been(table, minimum=minimum, kappa=kappa):
        said.append(
            f"The choice could as well have been {' or '.join(map(str, others))}: κ = {kappa:g} lies inside the 95 % "
            "interval of a ratio that decided it. Raise config.budget_rule.problems or samples."
        )
    return said
