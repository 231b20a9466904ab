"""Countdown's grader: an exact parser instead of eval, and a reason for every verdict.

e3's code checks digit runs and a character set, then calls eval: `**`, `//` and decimals get through, and `99**88**7`
never returns (tests/test_rewards_countdown.py has the cases). Here the grammar is the task:

    claim   = sum [ "=" ["-"] integer ]       the claim, if made, must be true
    sum     = product { ("+" | "-") product }
    product = signed { ("*" | "/") signed }
    signed  = ["-"] ( integer | "(" sum ")" )

× · − ÷ and LaTeX's \\times \\cdot \\div are other spellings of the operations. One minus sign is allowed, because it
makes no positive target reachable that was not. Values are Fractions, and the three caps bound the work on any text.

    grade_text(problem, "<answer> (1 + 2) * 3 </answer>")  # Grade(score=1.0, reason="correct")
"""

import operator
import re
from collections.abc import Sequence
from fractions import Fraction

from e3jax.rewards.extract import Grade, last_answer

MAX_CHARS, MAX_DEPTH, MAX_DIGITS = 500, 32, 9
SPELLINGS = {"×": "*", "·": "*", "÷": "/", "−": "-", r"\times": "*", r"\cdot": "*", r"\div": "/"}
LEVELS = ({"+": operator.add, "-": operator.sub}, {"*": operator.mul, "/": operator.truediv})


class ExpressionError(ValueError):
    """An expression without a value; `reason` is the code for the log."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def grade_text(problem, text: str, *, last_line_only: bool = False) -> Grade:
    """Grade a response (without its prompt) to a problem of the paper's Countdown. Raises on no text."""
    expression = last_answer(text, last_line_only=last_line_only)
    if expression is None:
        return Grade(0.0, "no_answer")
    return grade_expression(expression, numbers=problem.meta["numbers"], target=problem.meta["target"])


def grade_calculator(problem, text: str) -> Grade:
    """Grade a response to calculator Countdown, whose answer is read strictly left to right: "7 + 5 * 2" is 24.

    That the display stays in 0..100 is a rule of the generator, not of the grader. Raises on no text.
    """
    expression = last_answer(text)
    if expression is None:
        return Grade(0.0, "no_answer")
    try:
        expression = left_to_right(expression)
    except ExpressionError as error:
        return Grade(0.0, error.reason)
    return grade_expression(expression, numbers=problem.meta["numbers"], target=problem.meta["target"])


def grade_expression(expression: str, *, numbers: Sequence[int], target: int) -> Grade:
    """Grade an expression: 1 if it uses every number exactly once and equals the target, else 0.

    Reasons: the first met while reading out of too_long (any of the caps), malformed and
    division_by_zero; then wrong_numbers, wrong_value (also for a false "= 9" at the end), correct.
    """
    try:
        value, used, claimed = _read(expression)
    except ExpressionError as error:
        return Grade(0.0, error.reason)
    if sorted(used) != sorted(numbers):
        return Grade(0.0, "wrong_numbers")
    if value != target or claimed != value:
        return Grade(0.0, "wrong_value")
    return Grade(1.0, "correct")


def evaluate(expression: str, *, most_digits: int = MAX_DIGITS) -> Fraction:
    """Return the exact value; ExpressionError if there is none or the "= integer" at its end is false.

    `most_digits`: of an integer; more of them is "too_long".

    >>> evaluate("(1 + 2) / 3 = 1")
    Fraction(1, 1)
    """
    value, _, claimed = _read(expression, most_digits)
    if claimed != value:
        raise ExpressionError("wrong_value", f"{expression!r} claims {claimed}, but it is {value}")
    return value


def left_to_right(expression: str) -> str:
    """Return a flat chain with the parentheses that a pocket calculator implies.

    ExpressionError("malformed") for parentheses, a sign, or anything that is not numbers with
    operations between them (and "= integer" at the end).

    >>> left_to_right("7 + 5 * 2")
    '((7+5)*2)'
    """
    tokens = _tokens(expression)
    end = tokens.index("=") if "=" in tokens else len(tokens)
    chain, claim = tokens[:end], tokens[end:]
    numbers, ops = chain[::2], chain[1::2]
    if len(numbers) != len(ops) + 1 or not all(map(_is_number, numbers)) or set(ops) - set("+-*/"):
        raise ExpressionError("malformed", f"{expression!r} is not numbers joined by operations")
    text = numbers[0]
    for op, number in zip(ops, numbers[1:]):
        text = f"({text}{op}{number})"
    return text + "".join(claim)


def _tokens(expression: str, most_digits: int = MAX_DIGITS) -> list[str]:
    """Return integers and symbols in reading order, spellings unified; whitespace only separates."""
    if len(expression) > MAX_CHARS:
        raise ExpressionError("too_long", f"{len(expression)} characters, at most {MAX_CHARS}")
    for spelling, symbol in SPELLINGS.items():
        expression = expression.replace(spelling, symbol)
    tokens = re.findall(r"[0-9]+|[^ \t\r\n]", expression)
    for token in tokens:
        if token not in "+-*/()=" and not _is_number(token):
            raise ExpressionError("malformed", f"unexpected {token!r}")
        if len(token) > most_digits:
            raise ExpressionError("too_long", f"an integer of {len(token)} digits")
    return tokens


def _is_number(token: str) -> bool:
    return token[0] in "0123456789"


def _read(expression: str, most_digits: int = MAX_DIGITS) -> tuple[Fraction, list[int], Fraction]:
    """Return the value, the integers used, and the claimed value: the value itself where none is claimed."""
    tokens = _tokens(expression, most_digits)
    claim = []
    if "=" in tokens:
        equals = tokens.index("=")
        tokens, claim = tokens[:equals], tokens[equals + 1 :]
        if not claim or claim[:-1] not in ([], ["-"]) or not _is_number(claim[-1]):
            raise ExpressionError("malformed", f"{' '.join(claim)!r} after '=' is no integer")
    used = [int(token) for token in tokens if _is_number(token)]
    rest = tokens[::-1]  # a stack: the next token is the last
    value = _chain(rest, level=0, depth=0)
    if rest:
        raise ExpressionError("malformed", f"unexpected {rest[-1]!r} after a complete expression")
    return value, used, Fraction(int("".join(claim))) if claim else value


def _chain(rest: list[str], *, level: int, depth: int) -> Fraction:
    """Return the value of operands of the next level, joined from left to right by the operations of this one."""
    if level == len(LEVELS):
        return _signed(rest, depth=depth)
    value = _chain(rest, level=level + 1, depth=depth)
    while rest and rest[-1] in LEVELS[level]:
        operation = LEVELS[level][rest.pop()]
        right = _chain(rest, level=level + 1, depth=depth)
        try:
            value = operation(value, right)
        except ZeroDivisionError as error:
            raise ExpressionError("division_by_zero", f"{value} / 0") from error
    return value


def _signed(rest: list[str], *, depth: int) -> Fraction:
    """Return the value of an integer or a parenthesised sum, with at most one minus sign."""
    if depth > MAX_DEPTH:
        raise ExpressionError("too_long", f"parentheses nested deeper than {MAX_DEPTH}")
    sign = 1
    if rest and rest[-1] == "-":
        rest.pop()
        sign = -1
    token = rest.pop() if rest else "the end"
    if _is_number(token):
        return Fraction(sign * int(token))
    if token != "(":
        raise ExpressionError("malformed", f"expected a number or '(', found {token!r}")
    value = _chain(rest, level=0, depth=depth + 1)
    if not rest or rest.pop() != ")":
        raise ExpressionError("malformed", "a parenthesis is not closed")
    return sign * value
