"""tasks/countdown.py against enumerations written here and a known integer sequence."""

import doctest
import json
import math
import os
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from itertools import combinations_with_replacement, permutations, product

import numpy as np
import pytest

from e3jax.errors import UserError
from e3jax.tasks import countdown
from e3jax.tasks.countdown import (
    calculator_problem,
    calculator_reachable,
    calculator_text,
    calculator_value,
    paper_problem,
    prompt,
    reachable,
    solve,
)
from e3jax.tasks.table import TASKS


def exact(text):
    """Evaluate with Python's grammar over Fractions: the independent reference for values."""
    return eval("".join(f"Fraction({c})" if c.isdigit() else c for c in split_digits(text)))


def split_digits(text):
    parts = [""]
    for c in text:
        joins = c.isdigit() and parts[-1].isdigit()
        parts = [*parts[:-1], parts[-1] + c] if joins else [*parts, c]
    return parts[1:]


def uses(text):
    return sorted(int(part) for part in split_digits(text) if part.isdigit())


def brute(numbers, *, signed=False):
    """Return all values: replace any two entries by any operation on them until one entry is left."""
    entries = {tuple(sorted(map(Fraction, numbers)))}
    while len(next(iter(entries))) > 1:
        shorter = set()
        for row in entries:
            for i, j in permutations(range(len(row)), 2):
                a, b = row[i], row[j]
                rest = [row[k] for k in range(len(row)) if k not in (i, j)]
                values = [a + b, a - b, a * b] + ([a / b] if b else [])
                values += [-v for v in values] if signed else []
                shorter |= {tuple(sorted([*rest, v])) for v in values}
        entries = shorter
    return {row[0] for row in entries}


THREES = [(1, 2, 3), (3, 3, 3), (0, 0, 5), (0, 1, 1), (99, 98, 7), (2, 4, 8), (10, 10, 1)]
FOURS = [(3, 3, 8, 8), (0, 0, 0, 0), (1, 5, 5, 5), (25, 7, 0, 99)]


@pytest.mark.parametrize("numbers", THREES + FOURS)
def test_reachable_is_every_value(numbers):
    """A missing bracketing, order or negative intermediate would lose values; a reused number would add some."""
    expressions = reachable(numbers)
    assert set(expressions) == brute(numbers)
    for value, text in expressions.items():
        assert exact(text) == value and uses(text) == sorted(numbers)


def test_reachable_counts_generic_numbers():
    """OEIS A140606: 1, 6, 68, 1170 different values with n operands in general position."""
    generic = (1000003, 10007919, 3000000019, 77777777777)  # no accidental equalities
    assert [len(reachable(generic[:n])) for n in range(1, 5)] == [1, 6, 68, 1170]


@pytest.mark.parametrize("numbers", [(7, 5, 2), (0, 0, 6), (3, 3, 8, 8), (1, 1, 1, 1)])
def test_solve_finds_a_solution_exactly_when_there_is_one(numbers):
    """Above and below the table, it misses no target and invents none."""
    possible = brute(numbers)
    for target in range(-10, 60):
        text = solve(numbers, target)
        assert (text is not None) == (target in possible)
        assert text is None or (exact(text) == target and uses(text) == sorted(numbers))


@pytest.mark.parametrize("numbers", [(1, 2, 4, 4, 9), (0, 0, 3, 3, 7)])
def test_search_above_the_table_agrees_with_brute_force(numbers):
    """Five numbers take the search; zeros take the branch where any a times 0 is the target."""
    possible = brute(numbers)
    rng = np.random.default_rng(0)
    for target in [0, *rng.integers(-50, 900, size=14).tolist()]:
        text = solve(numbers, target)
        assert (text is not None) == (target in possible)
        assert text is None or (exact(text) == target and uses(text) == sorted(numbers))


def test_search_finds_values_that_only_one_expression_has():
    """Each operation in each order: small numbers have so many solutions that a lost one would not show."""
    rng = np.random.default_rng(2)
    numbers = (1000003, 10007919, 3000000019, 77777777777, 500009, 12)
    for n in [5] * 24 + [6] * 2:
        row = [(Fraction(x), str(x)) for x in numbers[:n]]
        while len(row) > 1:
            (a, a_text), (b, b_text) = (row.pop(int(rng.integers(len(row)))) for _ in range(2))
            op = "+-*/"[rng.integers(4)]
            value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else a}[op]
            row.append((value, f"({a_text}{op}{b_text})"))
        text = solve(numbers[:n], row[0][0])
        assert text is not None, row[0][1]
        assert exact(text) == row[0][0] and uses(text) == sorted(numbers[:n])


def test_solve_six_numbers_and_bad_input():
    """Six numbers search twice, and again with zeros; no numbers are an error, not None."""
    possible = brute((5,) * 6)
    assert 36 in possible and 37 not in possible
    for numbers, target in [((0, 0, 1, 1, 1, 1), 0), ((5,) * 6, 36), ((5,) * 6, 56)]:
        text = solve(numbers, target)
        assert exact(text) == target and uses(text) == sorted(numbers)
    assert solve((5,) * 6, 37) is None
    with pytest.raises(ValueError, match="empty"):
        solve((), 3)


@pytest.mark.parametrize("numbers", [(3, 5, 7), (0, 2, 9), (4, 4, 6)])
def test_unary_minus_reaches_no_new_positive_target(numbers):
    """rewards/countdown.py allows a sign for this reason: else it would make the task easier."""
    signed = set()
    for signs in product((1, -1), repeat=3):
        signed |= brute([s * x for s, x in zip(signs, numbers)], signed=True)
    assert {v for v in signed if v > 0} == {v for v in brute(numbers) if v > 0}


def test_generated_value_has_the_usual_precedence():
    """5 - 3 - 1 is 1, 8 / 4 / 2 is 1, and the parentheses enclose the chosen operation."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        n = int(rng.integers(2, 7))
        operands = rng.integers(0, 10, size=n).tolist()
        ops = ["+-*/"[i] for i in rng.integers(4, size=n - 1)]
        pair = int(rng.integers(n - 1)) if rng.random() < 0.5 else None
        parts = list(map(str, operands))
        if pair is not None:
            parts[pair], parts[pair + 1] = f"({parts[pair]}", f"{parts[pair + 1]})"
        text = parts[0] + "".join(op + part for op, part in zip(ops, parts[1:]))
        try:
            expected = exact(text)
        except ZeroDivisionError:
            expected = None
        assert countdown._value(operands, ops, pair) == expected, text


@pytest.mark.parametrize(("numbers", "count"), [(3, 60), (4, 40), (5, 15)])
def test_paper_problems_are_solvable_and_consistent(numbers, count):
    """Guards against a target rounded from a fraction, and numbers that are not those of the expression."""
    for i in range(count):
        problem = paper_problem(11, i, numbers=numbers)
        given, target = problem.meta["numbers"], problem.meta["target"]
        assert len(given) == numbers and all(0 <= x <= 99 for x in given) and 0 <= target <= 999
        assert all(type(x) is int for x in (*given, target)) and problem.answer == str(target)
        assert problem.question == prompt(given, target) and problem.meta["form"] == "paper"
        assert solve(given, target) is not None


def test_paper_two_numbers_have_the_rejection_distribution():
    """Redrawing only the operation, or only the operands, would bias the kept set; exact for n = 2."""
    kept = Counter()
    for a, b in product(range(100), repeat=2):
        for value in (a + b, a - b, a * b, Fraction(a, b) if b else None):
            if value is not None and value == int(value) and 0 <= value <= 999:
                kept[int(value) > 198, a < b] += 1
    draws = 3000
    problems = [paper_problem(5, i, numbers=2).meta for i in range(draws)]
    seen = Counter((m["target"] > 198, m["numbers"][0] < m["numbers"][1]) for m in problems)
    for cell in kept:
        share = kept[cell] / kept.total()
        sigma = math.sqrt(share * (1 - share) / draws)
        assert abs(seen[cell] / draws - share) < 4 * sigma, (cell, share)


@pytest.mark.parametrize("numbers", [7, 12])
def test_paper_problem_with_many_numbers(numbers):
    """Twelve numbers are the paper's largest: rejection must still end, in range."""
    problem = paper_problem(0, 3, numbers=numbers)
    assert len(problem.meta["numbers"]) == numbers and 0 <= problem.meta["target"] <= 999
    assert problem.difficulty == f"{numbers} numbers"


def test_prompt_is_the_papers():
    """One changed word is another experiment: the template of e3's code, joined by hand."""
    text = prompt((19, 36, 5), 98)
    assert text.startswith("A conversation between User and Assistant. The user asks a question, ")
    assert "provides the user with the answer.\nUser: Using the numbers [19, 36, 5], create" in text
    assert "an equation that equals 98. You can use basic arithmetic operations (+, -, *, /)" in text
    assert "for example <answer> (1 + 2) / 3 </answer>.\nAssistant: Let me solve this" in text
    assert text.endswith("solve this step by step.\n") and text.count("\n") == 3


FRESH = """
import json
from e3jax.tasks.countdown import calculator_problem, paper_problem
made = [paper_problem(3, i, numbers=n) for n in (3, 5) for i in (4, 0)]
made += [calculator_problem(3, i, numbers=3, split=s) for s in ("train", "test") for i in (4, 0)]
print(json.dumps([[p.id, p.question, p.answer] for p in made]))
"""


def test_problem_i_is_problem_i():
    """Global random state, Python's hash() or the order of calls would change data on resume."""
    made = {}
    for i in (0, 4):  # another order than in the fresh process
        for s in ("test", "train"):
            p = calculator_problem(3, i, numbers=3, split=s)
            made[p.id] = [p.id, p.question, p.answer]
        for n in (5, 3):
            p = paper_problem(3, i, numbers=n)
            made[p.id] = [p.id, p.question, p.answer]
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    fresh = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True, env=environment)
    rows = json.loads(fresh.stdout)
    assert len(rows) == len(made) == 8
    assert {row[0]: row for row in rows} == made
    assert paper_problem(0, 0, numbers=3).meta["numbers"] == (9, 54, 71)  # pinned: runs depend on it
    assert calculator_problem(1, 0, numbers=3, split="train").question == "5 1 9 ?4"


def test_calculator_value_by_hand():
    """Guards against precedence instead of left to right, and an intermediate (not only the result) out of 0..100."""
    assert calculator_value((7, 5, 2), ("+", "*")) == 24
    assert calculator_value((2, 5, 7), ("-", "+")) is None  # -3 on the way to 4
    assert calculator_value((10, 10, 1), ("*", "+")) is None  # 101
    assert calculator_value((10, 10, 5, 9), ("*", "+", "-")) is None  # 105 on the way to 96
    assert calculator_value((10, 10, 1), ("*", "-")) == 99  # 100 itself is allowed
    assert calculator_value((5, 5, 3), ("-", "*")) == 0
    assert calculator_text((7, 5, 2), ("+", "*")) == "7 + 5 * 2"
    with pytest.raises(ValueError, match="needs 2 operations"):
        calculator_value((1, 2, 3), ("+",))
    with pytest.raises(ValueError, match="out of"):
        calculator_value((1, 2), ("/",))


def chains(numbers):
    """Return {target: number of solutions}, by the rule as one reads it."""
    counts = Counter()
    for order in set(permutations(numbers)):
        for ops in product("+-*", repeat=len(numbers) - 1):
            display, good = order[0], True
            for op, x in zip(ops, order[1:]):
                display = {"+": display + x, "-": display - x, "*": display * x}[op]
                good = good and 0 <= display <= 100
            if good and 1 <= display <= 99:
                counts[display] += 1
    return counts


@pytest.mark.parametrize("numbers", [(1, 1), (2, 5, 7), (4, 4, 9), (10, 10, 10, 10), (1, 3, 6, 8)])
def test_calculator_reachable_is_complete(numbers):
    """Guards against equal numbers counted twice, and a solution that does not make its target."""
    table = calculator_reachable(numbers)
    assert {target: len(solutions) for target, solutions in table.items()} == chains(numbers)
    for target, solutions in table.items():
        assert len(set(solutions)) == len(solutions)
        for order, ops in solutions:
            assert calculator_value(order, ops) == target and sorted(order) == list(numbers)


def test_calculator_two_numbers_are_uniform_within_the_split():
    """Targets are uniform over reachable ones, and instances of the other split are drawn again: chi-square."""
    weight = Counter()
    for given in product(range(1, 11), repeat=2):
        targets = chains(given)
        for target in targets:
            weight[tuple(sorted(given)), target] += 1 / len(targets)
    draws, seen = 4000, {}
    for split in ("train", "test"):
        metas = [calculator_problem(2, i, numbers=2, split=split).meta for i in range(draws)]
        seen[split] = Counter((tuple(sorted(m["numbers"])), m["target"]) for m in metas)
        total = sum(weight[instance] for instance in seen[split])
        expected = {instance: draws * weight[instance] / total for instance in seen[split]}
        chi = sum((seen[split][x] - expected[x]) ** 2 / expected[x] for x in expected)
        freedom = len(expected) - 1
        assert chi < freedom + 4 * math.sqrt(2 * freedom)
    assert set(seen["train"]).isdisjoint(seen["test"])
    assert set(seen["train"]) | set(seen["test"]) == set(weight)


def test_calculator_splits_are_disjoint_for_every_seed_and_seven_to_one():
    """A split by index or by the shown order leaks test instances into training."""
    seen = {"train": set(), "test": set()}
    for split, instances in seen.items():
        for seed in range(3):
            for i in range(500):
                meta = calculator_problem(seed, i, numbers=3, split=split).meta
                instances.add((tuple(sorted(meta["numbers"])), meta["target"]))
    assert seen["train"].isdisjoint(seen["test"])
    multisets = combinations_with_replacement(range(1, 11), 3)
    splits = [split for x in multisets for _, split in countdown._calculator_targets(x)]
    sigma = math.sqrt(1 / 8 * 7 / 8 / len(splits))
    assert abs(splits.count("test") / len(splits) - 1 / 8) < 4 * sigma


def test_paper_splits_are_disjoint_for_every_seed_and_seven_to_one():
    """The paper's form was split by seed alone: 23 of 512 test problems of 3 numbers were among 40,000 of training. 2
    numbers have few instances: with seeds alone some 20 of these 150 would coincide.
    """
    seen = {"train": set(), "test": set()}
    for split, count in (("train", 900), ("test", 75)):
        for seed in (0, 1):
            for problem in TASKS["paper"].open((2,), seed=seed, split=split)(0, count):
                numbers, target = problem.meta["numbers"], problem.meta["target"]
                assert countdown.instance_split(numbers[::-1], target) == split and f"-{split}-" in problem.id
                seen[split].add((tuple(sorted(numbers)), target))
    assert seen["train"].isdisjoint(seen["test"])
    splits = [countdown.instance_split((a, b), a + b) for a in range(100) for b in range(a, 100)]
    assert abs(splits.count("test") / len(splits) - 1 / 8) < 4 * math.sqrt(7 / 64 / len(splits))


@pytest.mark.parametrize("make", [paper_problem, calculator_problem])
@pytest.mark.parametrize("seed", [-1, 1 << 31, 0.5, True])
def test_seeds_have_31_bits(make, seed):
    """Seeds of 2^31 and more put test problems of the paper's form into training; JAX takes 2^32 + 5 for 5."""
    with pytest.raises(UserError, match=f"config.seed={seed!r}: use a whole number from 0 to 2147483647"):
        make(seed, 0, numbers=3, split="train")


def test_calculator_problem_fields():
    """The tiny tokenizer and the grader rely on these fields; `split` is not free text."""
    problem = calculator_problem(0, 7, numbers=4, split="test")
    numbers, target = problem.meta["numbers"], problem.meta["target"]
    assert problem.question == f"{' '.join(map(str, numbers))} ?{target}"
    assert problem.task == "countdown" and problem.difficulty == "4 numbers"
    assert problem.meta["form"] == "calculator" and problem.answer == str(target)
    shown = [calculator_problem(0, i, numbers=4, split="train").meta["numbers"] for i in range(20)]
    assert any(list(x) != sorted(x) for x in shown)  # shown as drawn, not sorted
    for make in (calculator_problem, paper_problem):
        with pytest.raises(ValueError, match="dev"):
            make(0, 0, numbers=3, split="dev")
    with pytest.raises(ValueError, match="numbers=1"):
        calculator_problem(0, 0, numbers=1, split="train")
    with pytest.raises(ValueError, match="numbers=1"):
        paper_problem(0, 0, numbers=1)
    with pytest.raises(ValueError, match="sorted"):
        calculator_reachable((3, 1, 2))


def test_docstring_examples():
    """An example that is wrong misleads more than none."""
    result = doctest.testmod(countdown)
    assert result.attempted >= 4 and result.failed == 0
