"""Countdown: combine the given numbers, each exactly once, so that they make a target.

There are two families. `paper_problem` is e3's (`generate_countdown_unbiased.ipynb` of its code; docs/algorithms.md,
"Countdown problems"): random expressions over 0..99, kept if their value is an integer in 0..999. `calculator_problem`
is ours, for models of 0.2M parameters: numbers 1..10, read strictly left to right as on a pocket calculator, so that
one attempt is k - 1 small sums, easy to check and hard to guess. In either family train and test share no instance
(`instance_split`). Answers are graded in rewards/countdown.py; the exact solver is here.

    problem = calculator_problem(0, 7, numbers=3, split="train")  # "7 5 2 ?24"
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache, lru_cache
from itertools import combinations, permutations, product

from e3jax.errors import need
from e3jax.tasks.problem import Problem, draws_of, split_of
from e3jax.tasks.stream import DEFAULT_WORDING, Stream, Wording, endless

PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant "
    "solves it. The assistant first thinks about the reasoning process in the mind and then "
    "provides the user with the answer.\n"
    "User: Using the numbers {numbers}, create an equation that equals {target}. You can use "
    "basic arithmetic operations (+, -, *, /) and each number can only be used once. Show your "
    "work in <think> </think> tags. And return the final answer in <answer> </answer> tags, for "
    "example <answer> (1 + 2) / 3 </answer>.\n"
    "Assistant: Let me solve this step by step.\n"
)  # e3's, raw: its Countdown runs use no chat template

OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,  # exact: it only ever sees Fractions
}
CALCULATOR_OPS = "+-*"
CALCULATOR_MOST = 100  # every intermediate lies in 0..100
TABLE_SIZE = 4  # the solver tabulates up to this many numbers, and searches above

Numbers = tuple[int, ...]
Solution = tuple[Numbers, tuple[str, ...]]  # numbers in the order of use, operations between them


def prompt(numbers: Numbers, target: int) -> str:
    """Return the paper's raw prompt (PROMPT), with the numbers as a list: "[3, 5, 7]"."""
    return PROMPT.format(numbers=list(numbers), target=target)


def paper_problem(seed: int, index: int, *, numbers: int, split: str = "train") -> Problem:
    """Return problem `index` of e3's Countdown with n = `numbers` numbers, of one split.

    Operands uniform in 0..99 and operations uniform in + - * /; for n >= 3, with probability 1/2,
    parentheses around two adjacent operands; drawn again until the value is an integer in 0..999
    and the instance belongs to `split` (`instance_split`). The numbers are shown in the order of
    that expression, as in e3's code: no permutation is ever needed to solve it. On one core a
    problem of 3, 6, 12 numbers takes .5, 1.5, 45 ms in "train" and 2.5, 7, 290 ms in "test".
    Raises ValueError for n < 2 and for another split or seed.
    """
    if numbers < 2:
        raise ValueError(f"numbers={numbers}: Countdown needs at least 2")
    rng = draws_of(seed, numbers, index, split=split)
    while True:
        operands = rng.integers(0, 100, size=numbers).tolist()
        ops = ["+-*/"[i] for i in rng.integers(4, size=numbers - 1)]
        pair = None
        if numbers >= 3 and rng.random() < 0.5:
            pair = int(rng.integers(numbers - 1))  # the operation inside the parentheses
        value = _value(operands, ops, pair)
        if value is None or value.denominator != 1 or not 0 <= value <= 999:
            continue
        given, target = tuple(operands), int(value)
        if instance_split(given, target) == split:
            break
    return Problem(
        id=f"countdown-paper-{split}-{numbers}-{seed}-{index}",
        task="countdown",
        question=prompt(given, target),
        answer=str(target),
        difficulty=f"{numbers} numbers",
        meta={"form": "paper", "numbers": given, "target": target},
    )


def instance_split(numbers: Numbers, target: int) -> str:
    """Return the split of an instance of either form: its numbers, in whatever order, and its target.

    The same numbers with another target are another instance and may be in the other split (docs/recipes/countdown.md
    says how often they are).
    """
    return split_of(*sorted(numbers), target)


def _value(operands: list[int], ops: list[str], pair: int | None) -> Fraction | None:
    """Return the value by the usual precedence, operation `pair` before all others; None on a division by zero."""
    values, ops = [Fraction(x) for x in operands], list(ops)
    try:
        if pair is not None:
            _collapse(values, ops, pair)
        for level in ("*/", "+-"):
            i = 0
            while i < len(ops):
                if ops[i] in level:
                    _collapse(values, ops, i)
                else:
                    i += 1
    except ZeroDivisionError:
        return None
    return values[0]


def _collapse(values: list[Fraction], ops: list[str], i: int) -> None:
    """Carry out operation i in place: one value and one operation fewer."""
    values[i : i + 2] = [OPERATIONS[ops.pop(i)](values[i], values[i + 1])]


# ---- streams


def open_countdown(
    make: Callable[..., Problem], numbers: Sequence[int], *, seed: int, split: str, wording: Wording = DEFAULT_WORDING
) -> Stream:
    """Return the stream of problems of `make`; problem i has numbers[i % len(numbers)] numbers."""
    return endless(lambda i: make(seed, i, numbers=numbers[i % len(numbers)], split=split))


def need_numbers(field: str, numbers, *, most: int) -> None:
    """Refuse config.`field` unless it lists how many numbers a problem has, each 2 to `most`."""
    several = isinstance(numbers, tuple | list)
    need(
        several and len(numbers) > 0 and all(isinstance(n, int) and 2 <= n <= most for n in numbers),
        field,
        tuple(numbers) if several else numbers,
        f"2 to {most} each",
    )


# ---- the exact solver


def reachable(numbers: Numbers) -> dict[Fraction, str]:
    """Map every value of an expression that uses each number exactly once to one such expression.

    There are at most 6, 68, 1170, 27142 values for 2..5 numbers (OEIS A140606). One number more costs some 30 times as
    much: use `solve` above 5.

    >>> sorted(int(v) for v in reachable((2, 3)) if v.denominator == 1)
    [-1, 1, 5, 6]
    """
    return _reachable(tuple(sorted(numbers)), {})


def solve(numbers: Numbers, target: int | Fraction) -> str | None:
    """Return an expression over + - * / and parentheses with every number exactly once; None if none exists.

    Exact, by dynamic programming over subsets in Fractions: value sets of up to four numbers are tabulated. Above, the
    numbers are split into two groups in every way; for every value b of the smaller group, the other group is searched
    for the at most six values that would give the target with b. The worst case is no solution: on one CPU core some
    0.05 s for 5 numbers, 0.3 s for 6, several seconds for 7.

    >>> solve((3, 3, 8, 8), 24)
    '(8/(3-(8/3)))'
    """
    if not numbers:
        raise ValueError("numbers is empty: there is no expression to look for")
    return _solve(tuple(sorted(numbers)), Fraction(target), {})


def _splits(numbers: Numbers) -> set[tuple[Numbers, Numbers]]:
    """Return the ways to part sorted numbers into two non-empty groups, the smaller group first."""
    places, groups = range(len(numbers)), set()
    for size in range(1, len(numbers) // 2 + 1):
        for chosen in combinations(places, size):
            few = tuple(numbers[i] for i in chosen)
            groups.add((few, tuple(numbers[i] for i in places if i not in chosen)))
    return groups


def _reachable(numbers: Numbers, tables: dict) -> dict[Fraction, str]:
    if len(numbers) == 1:
        return {Fraction(numbers[0]): str(numbers[0])}
    if numbers not in tables:
        values: dict[Fraction, str] = {}
        for few, many in _splits(numbers):
            left, right = _reachable(few, tables), _reachable(many, tables)
            for (a, a_text), (b, b_text) in product(left.items(), right.items()):
                made = [(a + b, f"({a_text}+{b_text})"), (a * b, f"({a_text}*{b_text})")]
                made += [(a - b, f"({a_text}-{b_text})"), (b - a, f"({b_text}-{a_text})")]
                if b:
                    made.append((a / b, f"({a_text}/{b_text})"))
                if a:
                    made.append((b / a, f"({b_text}/{a_text})"))
                for value, text in made:
                    values.setdefault(value, text)
        tables[numbers] = values
    return tables[numbers]


def _partners(target: Fraction, b: Fraction) -> Iterator[tuple[Fraction, str]]:
    """Yield each a for which one operation on a and b gives the target, and that operation's text.

    Where b = target = 0 every a would do, and none is listed: another split finds those solutions, with a number of
    the expression for a as its b, and 0 made out of the rest.
    """
    yield target - b, "({a}+{b})"
    yield target + b, "({a}-{b})"
    yield b - target, "({b}-{a})"
    if b:
        yield target / b, "({a}*{b})"
        yield target * b, "({a}/{b})"
    if b and target:
        yield b / target, "({b}/{a})"


def _solve(numbers: Numbers, target: Fraction, tables: dict) -> str | None:
    if len(numbers) <= TABLE_SIZE:
        table = _reachable(numbers, tables)
        return table[target] if target in table else None
    for few, many in sorted(_splits(numbers)):
        for b, b_text in _reachable(few, tables).items():
            for a, form in _partners(target, b):
                a_text = _solve(many, a, tables)
                if a_text is not None:
                    return form.format(a=a_text, b=b_text)
    return None


# ---- calculator Countdown


def calculator_problem(seed: int, index: int, *, numbers: int, split: str) -> Problem:
    """Return problem `index` of calculator Countdown with k = `numbers` numbers, of one split.

    k numbers are uniform in 1..10, then a target is uniform over those that `calculator_reachable` lists; both are
    drawn again until the instance belongs to `split` (`instance_split`). The question is "7 5 2 ?24".
    Raises ValueError for k outside 2..6 and for another split or seed.
    """
    if not 2 <= numbers <= 6:
        raise ValueError(f"numbers={numbers}: calculator Countdown is made for 2..6")
    rng = draws_of(seed, numbers, index, split=split)
    while True:
        given = tuple(rng.integers(1, 11, size=numbers).tolist())
        targets = _calculator_targets(tuple(sorted(given)))
        if not targets:
            continue
        target, its_split = targets[rng.integers(len(targets))]
        if its_split == split:
            break
    return Problem(
        id=f"countdown-calculator-{split}-{numbers}-{seed}-{index}",
        task="countdown",
        question=f"{' '.join(map(str, given))} ?{target}",
        answer=str(target),
        difficulty=f"{numbers} numbers",
        meta={"form": "calculator", "numbers": given, "target": target},
    )


def calculator_value(numbers_in_order: Numbers, ops: tuple[str, ...]) -> int | None:
    """Return the display after the last key, strictly left to right; None if it ever leaves 0..100.

    >>> calculator_value((7, 5, 2), ("+", "*"))
    24
    """
    if len(ops) != len(numbers_in_order) - 1 or not set(ops) <= set(CALCULATOR_OPS):
        raise ValueError(
            f"{numbers_in_order} needs {len(numbers_in_order) - 1} operations out of {CALCULATOR_OPS!r}, got {ops}"
        )
    value = numbers_in_order[0]
    for op, number in zip(ops, numbers_in_order[1:]):
        value = OPERATIONS[op](value, number)
        if not 0 <= value <= CALCULATOR_MOST:
            return None
    return value if 0 <= value <= CALCULATOR_MOST else None


def calculator_text(numbers_in_order: Numbers, ops: tuple[str, ...]) -> str:
    """Return a solution as the answer is written: "7 + 5 * 2", which a calculator reads as 24."""
    pairs = zip(ops, numbers_in_order[1:])
    return " ".join([str(numbers_in_order[0]), *(f"{op} {number}" for op, number in pairs)])


@lru_cache(maxsize=1024)  # all of k = 3 and 4 (220 + 715 multisets)
def calculator_reachable(sorted_numbers: Numbers) -> dict[int, tuple[Solution, ...]]:
    """Map targets 1..99 to every solution (numbers in order, operations). The result is cached: do not modify it.

    Tries k! orders times 3^(k-1) chains of operations: 54, 648, 9,720, 174,960 for k = 3..6.
    Raises ValueError for numbers that are not sorted, which the cache would hold twice.

    >>> calculator_reachable((2, 9))[7]
    (((9, 2), ('-',)),)
    """
    if list(sorted_numbers) != sorted(sorted_numbers):
        raise ValueError(f"{sorted_numbers} must be sorted")
    solutions: dict[int, list[Solution]] = {}
    for order in sorted(set(permutations(sorted_numbers))):
        for ops in product(CALCULATOR_OPS, repeat=len(order) - 1):
            value = calculator_value(order, ops)
            if value is not None and 1 <= value <= 99:
                solutions.setdefault(value, []).append((order, ops))
    return {target: tuple(solutions[target]) for target in sorted(solutions)}


@cache  # holds at most 99 pairs for each of the 7,997 multisets of 2 to 6 numbers
def _calculator_targets(sorted_numbers: Numbers) -> tuple[tuple[int, str], ...]:
    """Return the reachable targets, each with the split that its instance belongs to."""
    return tuple((target, instance_split(sorted_numbers, target)) for target in calculator_reachable(sorted_numbers))
