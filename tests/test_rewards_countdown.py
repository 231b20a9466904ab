"""Countdown's grader: hostile text, the false accepts and rejects of e3's code one by one, and hand values."""

import doctest
import time
from fractions import Fraction

import numpy as np
import pytest

from e3jax.rewards import countdown, extract
from e3jax.rewards.countdown import ExpressionError, evaluate, grade_expression, left_to_right
from e3jax.rewards.extract import Grade, last_answer
from e3jax.tasks.countdown import calculator_problem, calculator_reachable, calculator_text, paper_problem, solve
from e3jax.tasks.grade import grade_all
from e3jax.tasks.problem import Problem
from e3jax.tasks.table import task_of

REASONS = {"correct", "wrong_value", "wrong_numbers", "no_answer", "malformed", "too_long", "division_by_zero"}


def problem(*numbers, target, form="paper", task="countdown"):
    meta = {"form": form, "numbers": numbers, "target": target}
    return Problem("id", task, "question", str(target), f"{len(numbers)} numbers", meta)


def grade_text(one, text):
    """Grade by the row of the problem's form."""
    return task_of(one).grade(one, text)


# ---- values


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("7", 7),
        ("5 - 3 - 1", 1),  # left to right, not 5 - (3 - 1)
        ("8 / 4 / 2", 1),
        ("2 + 3 * 4", 14),
        ("(2 + 3) * 4", 20),
        ("1 - 2 * 3 / 4 + 5", Fraction(9, 2)),
        ("8 / (3 - 8 / 3)", 24),  # floats give 23.99…, integers give 8
        ("1 / 3 * 3", 1),
        ("((((7))))", 7),
        ("-3 + 5", 2),
        ("4 * -2", -8),
        ("-(2 + 3) * 2", -10),
        ("7 - -2", 9),
        (" 6\n*\t7 ", 42),
        ("(1+2)*3 = 9", 9),
        ("1 - 4 = -3", -3),
    ],
)
def test_evaluate_by_hand(expression, value):
    """Checks associativity, precedence, exactness and the sign."""
    assert evaluate(expression) == value


def test_evaluate_agrees_with_python_on_random_expressions():
    """Agrees with Python's parser over Fractions on the common grammar: 1,500 trees printed at random."""
    rng = np.random.default_rng(0)

    def tree(depth):
        if depth == 0 or rng.random() < 0.2:
            return str(rng.integers(0, 12))
        text = f"{tree(depth - 1)}{rng.choice([*'+-*/'])}{tree(depth - 1)}"
        return f"({text})" if rng.random() < 0.5 else text

    for _ in range(1500):
        text = tree(int(rng.integers(1, 5)))
        digits = "".join(c if c.isdigit() else f" {c} " for c in text).split()
        source = " ".join(f"Fraction({c})" if c.isdigit() else c for c in digits)
        try:
            expected = eval(source)
        except ZeroDivisionError:
            with pytest.raises(ExpressionError, match="division_by_zero"):
                evaluate(text)
        else:
            assert evaluate(text) == expected, text


def test_evaluate_names_its_reason():
    """The reason is logged, and a false claim, a cap and a bad symbol must be told apart."""
    for expression, reason in [
        ("(1+2)*3 = 10", "wrong_value"),
        ("1 / (2 - 2)", "division_by_zero"),
        ("1 + 1234567890", "too_long"),
        ("(" * 40 + "1" + ")" * 40, "too_long"),
        ("1 +", "malformed"),
    ]:
        with pytest.raises(ExpressionError) as error:
            evaluate(expression)
        assert error.value.reason == reason


# ---- what e3's code accepts and rejects wrongly, line by line


@pytest.mark.parametrize(
    ("answer", "numbers", "target", "reason"),
    [
        # false accepts of the reference
        ("2**3", (2, 3), 8, "malformed"),
        ("2 * * 3", (2, 3), 8, "malformed"),
        ("7//2", (7, 2), 3, "malformed"),
        ("4.5*2", (2, 4, 5), 9, "malformed"),
        ("9.5+.5", (9, 5, 5), 10, "malformed"),
        ("", (1, 2), 3, "malformed"),  # 0.1 for the format alone
        ("I give up", (1, 2), 3, "malformed"),
        ("99**88**7", (7, 88, 99), 1, "malformed"),  # hangs eval
        ("9**9**9", (9, 9, 9), 1, "malformed"),
        # its false rejects
        ("(1+2)*3 = 9", (1, 2, 3), 9, "correct"),
        ("2 × 3", (2, 3), 6, "correct"),
        ("2 · 3", (2, 3), 6, "correct"),
        (r"2 \times 3", (2, 3), 6, "correct"),
        (r"2\times3", (2, 3), 6, "correct"),
        (r"2 \cdot 3", (2, 3), 6, "correct"),
        ("6 ÷ 3", (3, 6), 2, "correct"),
        (r"6 \div 3", (3, 6), 2, "correct"),
        ("6 − 3", (3, 6), 3, "correct"),
        ("1 +\n2", (1, 2), 3, "correct"),
        ("٣ + ٤", (3, 4), 7, "malformed"),  # refused here too, but with a reason
        ("３ + 4", (3, 4), 7, "malformed"),
        ("3² + 4", (3, 4), 13, "malformed"),
        # all numbers, each exactly once, though the prompt reads as at most once
        ("1 + 2", (1, 2, 3), 3, "wrong_numbers"),
        ("3 + 3", (3,), 6, "wrong_numbers"),
        ("3 + 3", (3, 3), 6, "correct"),
        ("12 + 3", (1, 2, 3), 15, "wrong_numbers"),
        # the claim is neither an expression nor a place to hide numbers
        ("(1+2)*3 = 10", (1, 2, 3), 9, "wrong_value"),
        ("(1+2)*3 = 10", (1, 2, 3), 10, "wrong_value"),
        ("1 + 2 = 3", (1, 2, 3), 3, "wrong_numbers"),
        ("9 = (1+2)*3", (1, 2, 3), 9, "malformed"),
        ("1 + 2 = 3 = 3", (1, 2), 3, "malformed"),
        ("1 + 11 = 1 2", (1, 11), 12, "malformed"),
        ("1 + 2 =", (1, 2), 3, "malformed"),
        ("= 3", (1, 2), 3, "malformed"),
        # juxtaposition, and the rest of Python's syntax
        ("2(3)", (2, 3), 6, "malformed"),
        ("(2)(3)", (2, 3), 6, "malformed"),
        ("1 2 + 3", (1, 2, 3), 15, "malformed"),
        ("--1 + 2", (1, 2), 3, "malformed"),
        ("+1 + 2", (1, 2), 3, "malformed"),
        ("1_0 + 2", (10, 2), 12, "malformed"),
        ("1e1 + 2", (1, 1, 2), 12, "malformed"),
        ("(1 + 2", (1, 2), 3, "malformed"),
        ("1 + 2)", (1, 2), 3, "malformed"),
        ("()", (1, 2), 3, "malformed"),
        ("1/0", (0, 1), 1, "division_by_zero"),
        ("2 - 1", (1, 2), 3, "wrong_value"),
        ("1 - 2", (1, 2), 1, "wrong_value"),
        ("2 / 3", (2, 3), 0, "wrong_value"),  # not rounded
    ],
)
def test_facts_4_2(answer, numbers, target, reason):
    """One line for each false accept and false reject of the public graders."""
    grade = grade_text(problem(*numbers, target=target), f"<think>…</think><answer>{answer}</answer>")
    assert grade == Grade(float(reason == "correct"), reason)


def test_almost_equal_is_not_equal():
    """The reference's tolerance of 1e-5 accepts 1000000/999999 for 1."""
    grade = grade_expression("1000000 / 999999", numbers=(999999, 1000000), target=1)
    assert grade.reason == "wrong_value"


# ---- the answer's text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 1 + 2 </answer>", "1 + 2"),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<answer>1</answer> and <answer>2", "1"),  # the last complete one
        ("<answer>1</answer> </answer>", "1"),
        ("<answer>1 <answer>2</answer>", "2"),
        ("<answer>1\n+ 2\n</answer>\nDone.\n", "1\n+ 2"),
        ("<answer></answer>", ""),
        ("</answer><answer>", None),
        ("<answer>1", None),
        ("1</answer>", None),
        ("</answer>", None),
        ("<ANSWER>1</ANSWER>", None),
        ("", None),
    ],
)
def test_last_answer_by_hand(text, answer):
    """Guards against taking the first or an unfinished answer instead of the last complete one."""
    assert last_answer(text) == answer


def test_last_line_only_is_the_references_rule():
    """The reference does not see an answer with a trailing newline, or one that spans lines."""
    for text, answer in [
        ("x\n<answer>1</answer>", "1"),
        ("<answer>1</answer>\n", None),
        ("<answer>1\n</answer>", None),
        ("<answer>1</answer>\n<answer>2</answer>", "2"),
        ("<answer>1</answer>", "1"),
    ]:
        assert last_answer(text, last_line_only=True) == answer
    one = problem(1, target=1)
    assert grade_text(one, "<answer>1</answer>\n").reason == "correct"
    assert countdown.grade_text(one, "<answer>1</answer>\n", last_line_only=True).reason == "no_answer"


# ---- the calculator form


def test_left_to_right_by_hand():
    """Guards against precedence coming back, and against chains that glue "1 2 3" to 123."""
    assert left_to_right("7 + 5 * 2") == "((7+5)*2)"
    assert left_to_right("7") == "7"
    assert left_to_right("8 − 2 × 3 = 18") == "((8-2)*3)=18"
    bad = ["(7 + 5) * 2", "7 (5) 2", "1 2 3", "1 ) 2", "-7 + 5", "7 +", "+ 7", "7 ** 2", "= 7", "a"]
    for expression in ["", *bad]:
        with pytest.raises(ExpressionError, match="malformed"):
            left_to_right(expression)


def test_calculator_form_is_read_left_to_right():
    """With precedence 7 + 5 * 2 is 17: the two forms must not be confused."""
    text = "<answer>7 + 5 * 2</answer>"
    assert grade_text(problem(2, 5, 7, target=24, form="calculator"), text).reason == "correct"
    assert grade_text(problem(2, 5, 7, target=17, form="calculator"), text).reason == "wrong_value"
    assert grade_text(problem(2, 5, 7, target=17), text).reason == "correct"
    bracketed = grade_text(problem(2, 5, 7, target=17, form="calculator"), "<answer>7+(5*2)</answer>")
    assert bracketed.reason == "malformed"
    with pytest.raises(ValueError, match="abacus"):
        grade_text(problem(1, target=1, form="abacus"), text)


def test_calculator_solutions_are_correct_and_others_are_not():
    """Every solution of 20 problems is right; solutions of other targets, or with one number changed, are wrong."""
    for i in range(20):
        task = calculator_problem(0, i, numbers=3, split="test")
        table = calculator_reachable(tuple(sorted(task.meta["numbers"])))
        for target, solutions in table.items():
            right = target == task.meta["target"]
            for order, ops in solutions:
                answer = calculator_text(order, ops)
                reason = grade_text(task, f"<answer>{answer}</answer>").reason
                assert reason == ("correct" if right else "wrong_value")
                other = calculator_text((order[0] + 20, *order[1:]), ops)
                assert grade_text(task, f"<answer>{other}</answer>").reason == "wrong_numbers"


def test_solver_output_is_graded_correct():
    """The two grammars agree: the grader reads what solve() prints."""
    tasks = [paper_problem(4, i, numbers=n) for n in (2, 3, 4, 5) for i in range(5)]
    for task in [*tasks, problem(3, 3, 8, 8, target=24)]:
        text = solve(task.meta["numbers"], task.meta["target"])
        assert grade_text(task, f"<answer>{text}</answer>").reason == "correct"


# ---- grade_all


def test_grade_all_dispatches_and_marks_truncation():
    """A right answer before the cut still scores 0; grades stay in order; wrong calls raise."""
    one, two = problem(1, 2, target=3), problem(2, 5, 7, target=24, form="calculator")
    right, wrong = "<answer>1+2</answer>", "<answer>2-1</answer>"
    texts = [right, right, wrong, "<answer>7 + 5 * 2</answer>", ""]
    grades = grade_all([one, one, one, two, two], texts, np.array([True, False, True, True, True]))
    reasons = ["correct", "truncated", "wrong_value", "correct", "no_answer"]
    assert [grade.reason for grade in grades] == reasons
    assert [grade.score for grade in grades] == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert countdown.grade_text(one, right + "\n", last_line_only=True) == Grade(0.0, "no_answer")
    with pytest.raises(ValueError, match="1 problems, 2 texts"):
        grade_all([one], [right, right], [True])
    with pytest.raises(ValueError, match="chess"):
        grade_all([problem(1, target=1, task="chess")], [right], [True])


# ---- hostile text

HOSTILE = [
    "9**9**9",
    "99**88**7",
    "(" * 100_000,
    "(" * 100_000 + "1" + ")" * 100_000,
    "(" * 1_000_000,
    "-" * 1_000_000,
    "1" + "0" * 5000,
    "1" + "0" * 5000 + "+1",
    "1+" * 500_000 + "1",
    "9*" * 249 + "9",
    "/".join(["999999999"] * 49),
    "+".join(f"1/{999_999_999 - i}" for i in range(41)),
    "(" * 33 + "1" + ")" * 33,
    "-(" * 33 + "1" + ")" * 33,
    "\x00",
    "1\x00+2",
    "\ud800",
    "٣+٤",
    "²",
    "Ⅷ",
    "1\u00a0+\u20282",
    "4.5*2",
    "1//2",
    "",
    "()",
    "1/0",
    "0/0",
    "1/(1-1)",
    "__import__('os')",
    "nan",
    "1=",
    "=" * 400,
    "\\times" * 80,
    " " * 1_000_000,
    "<answer>" * 125_000,
    "</answer>" * 111_111,
    "<answer></answer>" * 60_000,
    "<answer" * 140_000,
]
SYMBOLS = [*"0123456789+-*/()=. \n\t\x00eE_^%", *"×÷·−٣²", r"\times", "<answer>", "</answer>"]
SYMBOLS += ["12", "99", "1000000000", "**", "//", "((", "))", "= 3", "1/0", "(1+2)"]


def hostile_texts():
    for answer in HOSTILE:
        yield answer
        yield f"<answer>{answer}</answer>"
        yield f"{answer}<answer>{answer}</answer>{answer}"
    rng = np.random.default_rng(0)
    for _ in range(10_000):
        body = "".join(SYMBOLS[i] for i in rng.integers(len(SYMBOLS), size=int(rng.integers(60))))
        yield f"<answer>{body}</answer>" if rng.random() < 0.8 else body


def test_hostile_text_neither_raises_nor_stalls():
    """One exception or one slow parse in a batch of 10^5 responses stops a run."""
    tasks = [problem(1, 2, target=3), problem(1, 2, target=3, form="calculator")]
    for task in tasks:
        grade_text(task, "<answer>1+2</answer>")  # warm-up
    seen, slowest = set(), 0.0
    for text in hostile_texts():
        for task in tasks:
            times = []
            while not times or (times[-1] > 0.05 and len(times) < 3):  # forgive a busy machine
                start = time.perf_counter()
                grade = grade_text(task, text)
                times.append(time.perf_counter() - start)
            slowest = max(slowest, min(times))
            assert grade.reason in REASONS and grade.score == float(grade.reason == "correct")
            seen.add(grade.reason)
    assert slowest < 0.05
    assert seen >= REASONS - {"correct"}  # the fuzzer gets past the first check


def test_hostile_expressions_get_the_right_reason():
    """Caps are told from bad syntax, and expressions just below the caps still work."""
    for expression, reason in [
        ("(" * 1_000_000, "too_long"),
        ("-" * 1_000_000, "too_long"),
        ("1" + "0" * 5000, "too_long"),
        ("1" + "0" * 400, "too_long"),
        ("(" * 33 + "1" + ")" * 33, "too_long"),
        ("(" * 32 + "1" + ")" * 32, "correct"),
        ("-" * 400, "malformed"),
        ("1\x00", "malformed"),
        ("1/(1-1)", "division_by_zero"),
    ]:
        assert grade_expression(expression, numbers=(1,), target=1).reason == reason
    widest = r" \times ".join(["(99 - 98)"] * 12)  # longer than any honest 12-number answer
    grade = grade_expression(widest, numbers=(99, 98) * 12, target=1)
    assert grade.reason == "correct"


@pytest.mark.parametrize("module", [countdown, extract])
def test_docstring_examples(module):
    """An example that is wrong misleads more than none."""
    result = doctest.testmod(module)
    assert result.attempted and result.failed == 0
