"""The budget rule: how many tokens to train a stage at (e3 §6.1, Eq. 2).

    B_tr = argmin_{B >= B0} B   subject to   J(2B) <= κ · J(B),    κ > 1

In words: the shortest budget at which the incoming model gains little from twice as many tokens,
so that most chains that would succeed fit, and no more than that has to be optimised over. e3
takes κ = 1.2, budgets 4k/8k/16k and B0 near the mean response length; in its countdown study
(App. H) κ above 1.3 picks too short and below 1.05 too long. The paper is silent on J(B) = 0.

Usage: `budget, table = choose_budget({4096: 0.3, 8192: 0.4, 16384: 0.42}, budgets=[4096, 8192],
minimum=1500, kappa=1.2)`.
"""


def choose_budget(accuracy, *, budgets, minimum, kappa):
    """Eq. 2's budget and the table it was read from: (int, a list with one dict per budget).

    `accuracy` maps tokens to J and must hold B and 2B for every B in `budgets` (one generation at
    twice the largest serves all: `metrics/extrapolation.py`). Candidates have B >= `minimum`. When
    none satisfies the rule the largest budget is returned and its row says `satisfied: False`.

    A row has `budget`, `accuracy` J(B), `accuracy_doubled` J(2B), `ratio` J(2B)/J(B), `satisfied`
    (B >= minimum and J(2B) <= κ J(B)), `unsolved`, `chosen`. J(B) = 0 < J(2B) has ratio inf and
    fails. J(B) = J(2B) = 0 satisfies Eq. 2 with nothing learnt from it (ratio nan): it may be
    chosen and is flagged `unsolved`, for the data are too hard for this model at that budget.

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
