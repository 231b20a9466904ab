"""Accuracy against token budget from one long generation: does thinking longer still help?

e3's main figure. A sample counts at budget B iff it is correct, ended by itself (EOS), and its
response, EOS included, has length <= B:

    acc(B) = mean_g [score · done · (length <= B)]

This is the distribution of a fresh generation at B, not an approximation: token t of an ancestral
sample is drawn from π(· | prompt, tokens < t), which does not know the limit. Run the same draws
with limit B and they give the same tokens up to B; those that had ended by B are unchanged, the
others are cut before EOS, and a cut response scores 0 in e3. The budgets then share samples,
so their differences (J(2B) against J(B) in Eq. 2) are less noisy than with fresh draws.

It does not hold for what looks at the budget: budget forcing, a "you have N tokens" prompt, or a
grader that pays for an answer in a cut response (e3 App. B re-grades the prefix). A limit of B
tokens lets a response of B tokens end, hence <= where e3's `process_eval` has <.

Usage: `accuracy_at_budgets(score, length, done, [1024, 2048, 4096]).mean(axis=0)`.
"""

import numpy as np


def accuracy_at_budgets(score_pg, length_pg, done_pg, budgets, *, turns=False):
    """Return the mean over samples of score · done · (length <= B): float64 [P, num_budgets].

    `score_pg` [P, G] in [0, 1]; `length_pg` [P, G] response tokens with EOS; `done_pg` [P, G] bool,
    False where the budget ended the response.

    Raises ValueError when a response was cut before one of the budgets: what it would have done with the rest is
    unknown, so the result would be too low. Not with `turns`: what cuts an episode early, its number of turns or a
    reply that does not fit, cuts it at every budget up to the generation's.

    >>> accuracy_at_budgets(
    ...     np.array([[1.0, 1.0]]), np.array([[3, 7]]), np.array([[True, True]]), [2, 3, 8]
    ... )
    array([[0. , 0.5, 1. ]])
    """
    score, length, done = (np.asarray(x) for x in (score_pg, length_pg, done_pg))
    if not score.shape == length.shape == done.shape or score.ndim != 2:
        raise ValueError(f"score, length and done must all be [P, G]; got {score.shape}, {length.shape}, {done.shape}")
    if done.dtype != bool:
        raise ValueError(f"done must be boolean, got {done.dtype}")
    budgets = np.asarray(budgets)
    cut = length[~done]
    if cut.size and cut.min() < budgets.max() and not turns:
        raise ValueError(
            f"a response was cut at {cut.min()} tokens: budget {budgets.max()} needs a generation at least as long"
        )
    within = length[:, :, None] <= budgets[None, None, :]
    return ((score * done)[:, :, None] * within).mean(axis=1)
