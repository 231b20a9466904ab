"""Accuracy at a budget, from one long generation, against fresh generations at each budget."""

import numpy as np
import pytest

from e3jax.metrics.extrapolation import accuracy_at_budgets


def test_hand_example():
    """Guards each condition: row 0 has lengths 3 and 5 (right), 4 (wrong) and 8 (cut); length = B
    counts, and a sample that was cut never does, whatever its score says."""
    score = np.array([[1.0, 1.0, 0.0, 1.0], [0.5, 0.0, 0.0, 0.0]])
    length = np.array([[3, 5, 4, 8], [2, 2, 2, 2]])
    done = np.array([[True, True, True, False], [True, True, True, True]])
    got = accuracy_at_budgets(score, length, done, [1, 2, 3, 4, 5, 8])
    want = [[0, 0, 1 / 4, 1 / 4, 2 / 4, 2 / 4], [0, 1 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 8]]
    np.testing.assert_allclose(got, want, rtol=1e-15)


def generate(draws, budget):
    """A toy sampler: token t ends the response when its draw is below 0.2, and the answer is right
    when the last token's draw is below 0.1. Same draws, another budget: same tokens up to it."""
    ended = np.flatnonzero(draws[:budget] < 0.2)
    if ended.size == 0:
        return 0.0, budget, False
    return float(draws[ended[0]] < 0.1), int(ended[0]) + 1, True


def test_equals_fresh_generations_at_each_budget():
    """Guards the equivalence the docstring claims, with the sampler's own limit as the reference:
    `<` for `<=` would lose every response that ends exactly at B."""
    draws = np.random.default_rng(0).random((6, 50, 16))  # [P, G, tokens]
    budgets = [1, 2, 4, 8, 16]

    def run(budget):
        rows = [[generate(sample, budget) for sample in problem] for problem in draws]
        score, length, done = np.moveaxis(np.array(rows, dtype=float), -1, 0)
        return score, length.astype(int), done.astype(bool)

    got = accuracy_at_budgets(*run(16), budgets)
    want = np.stack([run(budget)[0].mean(axis=1) for budget in budgets], axis=1)
    np.testing.assert_allclose(got, want, rtol=1e-15)
    assert (np.diff(got, axis=1) >= 0).all()


def test_budgets_beyond_the_generation_raise():
    """Guards a flat curve past the end of the data, which reads as 'more thinking does not help'.
    When every response ended by itself, any budget is answered."""
    score, length, done = np.ones((1, 2)), np.array([[4, 8]]), np.array([[True, False]])
    with pytest.raises(ValueError, match="cut at 8"):
        accuracy_at_budgets(score, length, done, [8, 16])
    np.testing.assert_array_equal(accuracy_at_budgets(score, length, np.ones((1, 2), bool), [16]), [[1.0]])


def test_shapes_and_types_are_checked():
    """Guards lengths of another batch, and `done` as 0/1 integers, where ~done is −1 and −2."""
    ones = np.ones((1, 2))
    with pytest.raises(ValueError, match=r"\[P, G\]"):
        accuracy_at_budgets(ones, np.ones((1, 3)), ones.astype(bool), [1])
    with pytest.raises(ValueError, match="boolean"):
        accuracy_at_budgets(ones, ones, ones.astype(int), [1])
