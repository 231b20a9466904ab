"""A weighted vote of answers, and two methods compared at equal cost.

right = vote([("7", 1.0, 2), ("8", 0.0, 1)])       # answer, its score, its weight
"""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np


def vote(ballots: Iterable[tuple[str | None, float, float]]) -> float:
    """Return the expected score of the answer that gets the most weight; ballots are (answer, score, weight).

    Those without an answer do not vote; no vote at all scores 0. Answers that tie share, and so do the ballots of one
    answer where graders see more than the answer (in Countdown an execution that cheats states the target too).

    >>> vote([("7", 1.0, 1), ("8", 0.0, 1), (None, 0.0, 5)])
    0.5
    """
    weights, scores = defaultdict(float), defaultdict(float)
    for answer, score, weight in ballots:
        if answer is not None:
            weights[answer] += weight
            scores[answer] += weight * score
    most = max(weights.values(), default=0.0)
    won = [scores[a] / w for a, w in weights.items() if w == most]
    return float(np.mean(won)) if won else 0.0


def at_cost(cost: float, costs_k: np.ndarray) -> np.ndarray:
    """Return weights [K] over k = 1 … K with which a method of mean costs [K], rising, costs `cost`.

    Linear between neighbours; below the first cost all weight is on the first, above the last on the last.

    >>> at_cost(25.0, np.array([10.0, 20.0, 30.0]))
    array([0. , 0.5, 0.5])
    """
    weights, above = np.zeros(len(costs_k)), int(np.searchsorted(costs_k, cost))
    if above == 0 or above == len(costs_k):
        weights[min(above, len(costs_k) - 1)] = 1.0
        return weights
    share = (cost - costs_k[above - 1]) / (costs_k[above] - costs_k[above - 1])
    weights[above - 1], weights[above] = 1 - share, share
    return weights
