r"""Mathematics' grader: exact on numbers, structure and spelling; math-verify only for what is left of one expression.

e3's code wants a </think>, takes the last \boxed and compares normalised strings, then asks sympy.
Here the boxed answer is brought to a normal form (rewards/latex.py) and compared with the problem's answer:

1. the same normal form is correct. Units (rewards/units.py) may be left out or added, but two must be the same; words
   that are on no list stay, so that "5 dozen" is not 5;
2. what an answer says beside its value (rewards/statements.py) is read: "x = 5", "(x,y) = (1,2)", "C. 12"; an
   inequality is its interval; every member of a chain "1/3 = 2/6" must be right;
3. where the problem's answer is a number, only a number in a normal form of its own can be right, compared as a
   Fraction: sums, products and powers left to the grader are not (e3's code is as strict for integers), nor
   fractions that can be reduced (as in e3's code) unless the problem's answer can be;
4. tuples, intervals, matrices and ratios are compared item by item in order, lists and sets in any order;
5. a single expression that is none of these goes to math-verify (rewards/symbolic.py): call this in the processes of
   rewards/workers.py.

    grade_text(problem, r"… </think> The answer is \boxed{\frac{14}{3}}.")  # Grade(score=1.0, reason="correct")

Reasons: correct; no_thinking (no </think>); no_answer (no closed, non-empty box where it is looked for); too_long (more
than MAX_CHARS characters); wrong_value; unreduced (the right number, not in lowest terms); not_a_number (where a number
is asked for: words, or arithmetic not carried out); unevaluated (a sum, product, integral or limit sign that the
problem's answer has not); too_big (powers or factorials that sympy would compute for ever, or nesting: not parsed);
unreadable (no expression at all for math-verify).
"""

import functools
import re
from collections.abc import Sequence
from fractions import Fraction

from e3jax.rewards import units
from e3jax.rewards.extract import Grade, boxed_answer, boxes_together
from e3jax.rewards.latex import MAX_CHARS, Measured, measured, normal, number, parts, split
from e3jax.rewards.statements import RELATION, assigned, exact_and_rounded, in_order, labelled, region, unnamed
from e3jax.rewards.symbolic import near, same_expression

MAX_ITEMS, MAX_LEVELS = 24, 6  # of a list, of lists in lists and names before them


def grade_text(problem, text: str, *, where: str = "response") -> Grade:
    """Grade a response (without its prompt) to a Problem with `answer` in LaTeX; `where`: extract.boxed_answer."""
    answer, why = boxed_answer(text, where=where)
    if answer is None:
        return Grade(0.0, why)
    reason = compare(boxes_together(problem.answer) or problem.answer, answer)
    return Grade(float(reason == "correct"), reason)


def compare(gold: str, answer: str) -> str:
    r"""Return the reason code for `answer` where `gold` is right; both in LaTeX, without the box.

    "3,100" is a number or a list of two numbers: one reading in which both are the same is enough.

    >>> compare(r"\frac{1}{2}", "0.5"), compare("5", "3+2"), compare("(1,2)", r"\{1,2\}"), compare("1,-2", "-2, 1")
    ('correct', 'not_a_number', 'wrong_value', 'correct')
    """
    if len(answer) > MAX_CHARS:
        return "too_long"
    reason = _measured(measured(gold), measured(answer))
    if reason != "correct" and re.search(r"\d,\d{3}", gold + " " + answer):
        lists = _measured(measured(gold, thousands=False), measured(answer, thousands=False))
        return "correct" if lists == "correct" else reason
    return reason


def _measured(gold: Measured, answer: Measured, *, levels: int = MAX_LEVELS) -> str:
    """Compare two answers with their units: one may leave its unit out, but two units must be the same."""
    if not units.compatible(gold.unit, answer.unit):
        return "wrong_value"
    if _squeezed(gold.whole) == _squeezed(answer.whole):
        return "correct"
    reason = _same(gold.value, answer.value, levels=levels)
    return reason if reason == "correct" else _choice(gold.value, answer.value) or reason


def _squeezed(text: str) -> str:
    """Return the text without blanks beside letters: "5 m" and "5m" are one product."""
    return re.sub(r"(?<=[A-Za-z]) | (?=[A-Za-z])", "", text)


def _choice(gold: str, answer: str) -> str | None:
    """Compare lettered choices: by the letter where the gold answer has one, else by what stands behind it.

    Return None for what are none.
    """
    (gold_letter, gold_text), (letter, text) = labelled(gold), labelled(answer)
    if gold_letter and (letter or gold_text):
        return _same(gold_letter, letter, levels=MAX_LEVELS) if letter else _same(gold_text, answer, levels=MAX_LEVELS)
    if letter and text and letter not in gold:
        return _measured(measured(gold), measured(text), levels=MAX_LEVELS)
    return None


def _same(gold: str, answer: str, *, levels: int) -> str:
    """Compare two normal forms: numbers, sets of reals, values of several variables, then named values and lists."""
    if gold == answer:
        return "correct"
    if levels == 0:
        return "too_big"
    if (wanted := number(gold)) and (given := number(answer)):
        return _numbers(wanted, given)
    for compared in (_regions, _assignments):
        if reason := compared(gold, answer, levels=levels - 1):
            return reason
    (kind, items), (given_kind, given) = parts(gold), parts(answer)
    gold_name, gold_value = ("", gold) if kind == "list" else unnamed(gold, sums=False)
    name, value = ("", answer) if given_kind == "list" else unnamed(answer)
    if (gold_name and split(answer, "=")[1:] and name.lower() != gold_name.lower()) or (name and _equation(gold)):
        return "wrong_value" if number(gold_value) and name else same_expression(gold, answer)  # two equations
    if gold_name or name:
        return _same(normal(gold_value), normal(value), levels=levels - 1)
    if kind != given_kind or len(items) != len(given):
        one = kind == given_kind == "" or ({kind, given_kind} <= {"", "list"} and len(items) == len(given) == 1)
        if not one or r"\emptyset" in (gold, answer):
            return "not_a_number" if number(gold) and given_kind == "" else "wrong_value"
    if kind == given_kind == "":
        return _chain(gold, answer)
    if len(items) > MAX_ITEMS:
        return "too_long"
    if kind in ("list", "or"):
        return _any_order(items, given, functools.partial(_pair, levels=levels - 1))
    return _in_order(items, given, levels=levels - 1)


def _equation(text: str) -> bool:
    """Return whether it has an equals sign and is no named value."""
    return unnamed(text, sums=False)[0] == "" and len(split(text, "=")) == 2


def _pair(gold: str, answer: str, *, levels: int) -> str:
    """Compare two items of lists, each with its unit."""
    gold, answer = measured(gold), measured(answer)
    if not units.compatible(gold.unit, answer.unit):
        return "wrong_value"
    return _same(gold.value, answer.value, levels=levels)


def _in_order(items: Sequence[str], given: Sequence[str], *, levels: int) -> str:
    """Compare item by item."""
    reasons = (_pair(item, other, levels=levels) for item, other in zip(items, given))
    return next((reason for reason in reasons if reason != "correct"), "correct")


def _any_order(items: Sequence[str], given: Sequence[str], pair) -> str:
    """Find another item for every one, the cheap comparisons first."""
    left, rest = list(given), []
    for item in items:
        left.remove(item) if item in left else rest.append(item)
    for item in rest:
        match = next((other for other in left if pair(item, other) == "correct"), None)
        if match is None:
            return "wrong_value"
        left.remove(match)
    return "correct"


def _regions(gold: str, answer: str, *, levels: int) -> str | None:
    """Compare sets of real numbers where at least one is an inequality or all reals; None where none is."""
    (gold_name, gold_set), (name, given_set) = region(gold), region(answer)
    unread = (RELATION.search(gold) and not gold_set) or (RELATION.search(answer) and not given_set)
    if unread or not (gold_set or given_set):
        return None
    if not gold_set:
        gold_name, gold_set = unnamed(gold)
    if not given_set:
        name, given_set = unnamed(answer)
    if gold_name and name and gold_name.lower() != name.lower():
        return "wrong_value"
    return _same(gold_set, given_set, levels=levels)


def _assignments(gold: str, answer: str, *, levels: int) -> str | None:
    """Compare values of several variables, by their names or as a tuple; None where neither answer names them."""
    wanted, given = assigned(gold), assigned(answer)
    if wanted and given:
        if set(wanted) != set(given):
            return "wrong_value"
        return _in_order(list(wanted.values()), [given[name] for name in wanted], levels=levels)
    if wanted:
        kind, items = parts(answer)
        if kind in ("()", "list") and len(items) == len(wanted):
            return _in_order(in_order(wanted), items, levels=levels)
    if given:
        kind, items = parts(gold)
        if kind == "()" and len(items) == len(given):
            return _in_order(items, in_order(given), levels=levels)
    return None


def _chain(gold: str, answer: str) -> str:
    r"""Compare single expressions; of a chain 2+3=5 or 1/3\approx0.333 every member must have the value."""
    (gold, gold_rounded), (exact, rounded) = exact_and_rounded(gold), exact_and_rounded(answer)
    if rounded:
        return _rounded(gold, gold_rounded, exact, rounded)
    if gold_rounded and _one(gold_rounded, answer) == "correct":
        return "correct"
    before, last = ([], answer) if "=" in gold else (split(answer, "=")[:-1], split(answer, "=")[-1])
    reason = _one(gold, last)
    if reason == "correct" and not all(_equal(gold, normal(member)) for member in before):
        return "wrong_value"
    return reason


def _rounded(gold: str, gold_rounded: str, exact: str, rounded: str) -> str:
    r"""Compare an answer that is rounded at its end; \approx3.14 alone is right only where a decimal is asked for."""
    if gold_rounded and gold_rounded == rounded and exact in ("", gold):
        return "correct"
    decimal = re.fullmatch(r"-?\d*\.\d+", gold) and _one(gold, rounded) == "correct"
    if exact == "" or unnamed(exact + "=0")[0]:
        return "correct" if decimal else "wrong_value"
    reason = _chain(gold, exact)
    if reason == "correct" or decimal:
        return "correct" if near(exact, rounded) else "wrong_value"
    return reason


def _equal(gold: str, answer: str) -> bool:
    """Return whether an expression has the value, carried out or not."""
    return _one(gold, answer) in ("correct", "unreduced") or same_expression(gold, answer) == "correct"


def _numbers(wanted: tuple[Fraction, bool], given: tuple[Fraction, bool]) -> str:
    """Compare two numbers; a fraction has to be in lowest terms where the gold answer is."""
    if given[0] != wanted[0]:
        return "wrong_value"
    return "correct" if given[1] or not wanted[1] else "unreduced"


def _one(gold: str, answer: str) -> str:
    """Compare two single expressions."""
    if wanted := number(gold):
        return "not_a_number" if (given := number(answer)) is None else _numbers(wanted, given)
    if _words(gold):
        return "correct" if gold.casefold() == answer.casefold() else "wrong_value"
    if re.search(r"\d_\{?\d", gold + " " + answer):  # another base: sympy would drop it
        return "wrong_value"
    return same_expression(gold, answer)


def _words(text: str) -> bool:
    r"""Return whether it is a word or a choice and no expression: "Evelyn", "No", "I"; not "xy", "2n", "\pi"."""
    return bool(re.fullmatch(r"[A-Z]|[A-Z][a-z]+|[A-Za-z' .-]*[A-Za-z]{3,}[A-Za-z' .-]*", text))
