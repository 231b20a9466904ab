r"""Mathematics' grader: exact on numbers, structure and spelling; math-verify only for what is left of one expression.

The reference (ALGORITHMS A.4) wants a </think>, takes the last \boxed and compares normalised strings, then asks sympy.
Here the boxed answer is brought to a normal form (rewards/latex.py) and compared with the problem's answer:

1. the same normal form is correct;
2. where the problem's answer is a number, only a number in a normal form of its own can be right, compared as a
   Fraction: sums, products and powers left to the grader are not (the reference is as strict for integers), nor
   fractions that can be reduced (as in the reference);
3. tuples, intervals, matrices and ratios are compared item by item in order, lists and sets in any order;
4. a single expression that is none of these goes to math-verify, which runs sympy on model text: call this in
   rewards/pool.py's processes, whose timeout is the only one (math-verify's own need a main thread, and are off).

    grade_text(problem, r"… </think> The answer is \boxed{\frac{14}{3}}.")  # Grade(score=1.0, reason="correct")

Reasons: correct; no_thinking (no </think>); no_answer (no closed, non-empty box where it is looked for); too_long (more
than MAX_CHARS characters); wrong_value; unreduced (the right number, not in lowest terms); not_a_number (where a number
is asked for: words, or arithmetic not carried out); unevaluated (a sum, product, integral or limit sign that the
problem's answer has not); too_big (powers or factorials that sympy would compute for ever, or nesting: not parsed);
unreadable (no expression at all for math-verify).
"""

import functools
import itertools
import logging
import re
from collections.abc import Sequence
from fractions import Fraction

from e3jax.errors import UserError
from e3jax.rewards import units
from e3jax.rewards.extract import Grade, boxed_answer, boxes_together
from e3jax.rewards.latex import MAX_CHARS, Measured, measured, normal, number, parts, split
from e3jax.rewards.statements import (
    RELATION,
    assigned,
    exact_and_rounded,
    in_order,
    labelled,
    region,
    unnamed,
)

MAX_PARSED = 300  # characters of an expression for math-verify
MAX_NESTING, MAX_DIGITS, MAX_POWER, MAX_FACTORIAL, MAX_SYMBOLIC = 16, 40, 10_000, 5000, 20  # of sympy's work: too_big
MAX_ITEMS, MAX_LEVELS = 24, 6  # of a list, of lists in lists and names before them
MAX_SYMBOLS = 3  # of two expressions that are compared where they are real
RELATIVE = 1e-12  # numbers further apart are two numbers
UNDONE = re.compile(r"\\(?:sum|prod|i*int|oint|lim|bigcup|bigcap|max|min|sup|inf|gcd|lcm)(?![A-Za-z])")


def grade_text(problem, text: str, *, where: str = "response") -> Grade:
    """A response (without its prompt) to a Problem with `answer` in LaTeX -> Grade; `where`: extract.boxed_answer."""
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
    if _squeezed(gold.whole) == _squeezed(answer.whole):
        return "correct"
    if not units.compatible(gold.unit, answer.unit):
        return "wrong_value"
    reason = _same(gold.value, answer.value, levels=levels)
    return reason if reason == "correct" else _choice(gold.value, answer.value) or reason


def _squeezed(text: str) -> str:
    """Return the text without blanks beside letters: "5 m" and "5m" are one product."""
    return re.sub(r"(?<=[A-Za-z]) | (?=[A-Za-z])", "", text)


def _choice(gold: str, answer: str) -> str:
    """Compare lettered choices: by the letter if the gold answer has one, else by what stands behind it; "" for others."""
    (gold_letter, gold_text), (letter, text) = labelled(gold), labelled(answer)
    if gold_letter and (letter or gold_text):
        return _same(gold_letter, letter, levels=1) if letter else _same(gold_text, answer, levels=1)
    if letter and text and letter not in gold:
        return _measured(measured(gold), measured(text), levels=1)
    return ""


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
        return "wrong_value" if number(gold_value) and name else _parsed(gold, answer)  # two equations
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
    """Whether it has an equals sign and is no named value."""
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


def _regions(gold: str, answer: str, *, levels: int) -> str:
    """Compare sets of real numbers where at least one is an inequality or all reals; "" where none is."""
    (gold_name, gold_set), (name, its_set) = region(gold), region(answer)
    if not (gold_set or its_set) or (RELATION.search(answer) and not its_set) or (RELATION.search(gold) and not gold_set):
        return ""
    if not gold_set:
        gold_name, gold_set = unnamed(gold)
    if not its_set:
        name, its_set = unnamed(answer)
    if gold_name and name and gold_name.lower() != name.lower():
        return "wrong_value"
    return _same(gold_set, its_set, levels=levels)


def _assignments(gold: str, answer: str, *, levels: int) -> str:
    """Compare values of several variables, by their names or as a tuple; "" where neither answer names them."""
    wanted, given = assigned(gold), assigned(answer)
    if wanted and given:
        if set(wanted) != set(given):
            return "wrong_value"
        return _in_order(list(wanted.values()), [given[name] for name in wanted], levels=levels)
    if not wanted and not given:
        return ""
    kind, items = parts(answer if wanted else gold)
    if len(items) != len(wanted or given) or (kind != "()" and not (wanted and kind == "list")):
        return ""
    return _in_order(in_order(wanted), items, levels=levels) if wanted else _in_order(items, in_order(given), levels=levels)


def _chain(gold: str, answer: str) -> str:
    r"""Compare single expressions; of a chain 2+3=5 or 1/3\approx0.333 every member must have the value."""
    (gold, also), (exact, rounded) = exact_and_rounded(gold), exact_and_rounded(answer)
    if rounded:
        if also and exact in ("", gold) and rounded == also:
            return "correct"
        decimal = re.fullmatch(r"-?\d*\.\d+", gold) and _one(gold, rounded) == "correct"
        if exact == "" or unnamed(exact + "=0")[0]:  # only the rounded value is given: right where such a one is asked
            return "correct" if decimal else "wrong_value"
        reason = _chain(gold, exact)
        if reason == "correct" or decimal:
            return "correct" if _near(exact, rounded) else "wrong_value"
        return reason
    if also and _one(also, answer) == "correct":
        return "correct"
    *before, last = split(answer, "=")
    if "=" in gold:
        last, before = answer, []
    reason = _one(gold, last)
    if reason == "correct" and not all(_equal(gold, normal(member)) for member in before):
        return "wrong_value"
    return reason


def _equal(gold: str, answer: str) -> bool:
    """Whether an expression has a value, carried out or not."""
    return _one(gold, answer) in ("correct", "unreduced") or _parsed(gold, answer) == "correct"


def _near(exact: str, rounded: str) -> bool:
    """Whether a decimal is a value rounded or cut to its digits."""
    if (near := number(rounded)) is None:
        return False
    places = len(rounded.partition(".")[2])
    tolerance = Fraction(1, 10**places) if places else Fraction(1, 2)
    if value := number(exact):
        return abs(value[0] - near[0]) <= tolerance
    if len(exact) > MAX_PARSED or too_big(exact) or UNDONE.search(exact) or not (read := _expression(exact)):
        return False
    try:
        return bool(abs(read[0].evalf(30) - near[0]) <= tolerance)
    except Exception:  # no real number, or whatever sympy raises at model text
        return False


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
    return _parsed(gold, answer)


def _words(text: str) -> bool:
    r"""Is it a word or a choice and no expression? "Evelyn", "No", "I"; not "xy", "2n", "\pi"."""
    return bool(re.fullmatch(r"[A-Z]|[A-Z][a-z]+|[A-Za-z' .-]*[A-Za-z]{3,}[A-Za-z' .-]*", text))


def _parsed(gold: str, answer: str) -> str:
    """What math-verify says of one expression, after all that sympy would choke on is turned away."""
    if len(answer) > MAX_PARSED:
        return "too_long"
    if set(UNDONE.findall(answer)) - set(UNDONE.findall(gold)):
        return "unevaluated"
    if "'" in answer and "'" not in gold:  # math-verify drops them: y' would be y
        return "unreadable"
    if too_big(answer):
        return "too_big"
    wanted, given = _expression(gold), _expression(answer)
    if not wanted or not given:
        return "unreadable"
    verifier, _ = _math_verify()
    try:
        same = verifier.verify(wanted, given, timeout_seconds=None) and not _differ(wanted[0], given[0])
        same = same or _same_where_real(wanted[0], given[0])
    except Exception:  # what sympy raises at model text is anybody's guess; a grader that raises would end the run
        return "unreadable"
    return "correct" if same else "wrong_value"


def _differ(wanted, given) -> bool:
    r"""What math-verify overlooks: tiny and huge numbers (10^{-20}\pi and 10^{-20}e), what stands left of an "="."""
    equations = [getattr(one, "rel_op", "") == "==" for one in (wanted, given)]
    if all(equations):  # 3y=6 is y=2, 3y=2 is not: the same curve up to a constant
        ratio = ((wanted.lhs - wanted.rhs) / (given.lhs - given.rhs)).simplify()
        return not ratio.is_number or ratio.is_zero is True
    if any(equations):  # of which math-verify reads the right side
        return True
    if not (getattr(wanted, "is_number", False) and getattr(given, "is_number", False)):
        return False
    wanted, given = wanted.evalf(30), given.evalf(30)
    if wanted.is_zero:
        return not given.is_zero
    gap = abs(given / wanted - 1)
    return bool(gap.is_comparable and gap > RELATIVE)


def _same_where_real(wanted, given) -> bool:
    r"""Whether two expressions are equal for positive variables, and at points wherever one of them is real.

    sympy compares over complex numbers, where \sqrt{1/n} is not 1/\sqrt{n} for negative n: there neither is real.
    """
    symbols = sorted(getattr(wanted, "free_symbols", ()), key=str)
    if not symbols or set(symbols) != given.free_symbols or len(symbols) > MAX_SYMBOLS:
        return False
    if not (hasattr(wanted, "as_base_exp") and hasattr(given, "as_base_exp")):  # equations, sets
        return False
    for signs in itertools.product((1, -1), repeat=len(symbols)):  # all positive first: cheap for what is wrong
        point = {symbol: sign * Fraction(7 + 2 * i, 5) for i, (symbol, sign) in enumerate(zip(symbols, signs))}
        one, other = wanted.subs(point).evalf(30), given.subs(point).evalf(30)
        if (one.is_real or other.is_real) and not abs(one - other) < RELATIVE * abs(one):
            return False
    positive = {symbol: type(symbol)(symbol.name, positive=True) for symbol in symbols}
    return (wanted - given).subs(positive).simplify() == 0


def too_big(text: str) -> bool:
    r"""Whether sympy may not come back: deep nesting, long digit runs, powers of powers, big exponents and factorials.

    >>> too_big("9^9^9^9"), too_big("(10^9)!"), too_big("2^{25}26!"), too_big("x^{n+1}"), too_big(r"\binom{x}{100}")
    (True, True, False, False, True)
    """
    depth = deepest = 0
    for bracket in re.findall(r"[(\[{]|[)\]}]", text):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    powers = [int(power) for power in re.findall(r"(?:\^|\*\*)\{?[+-]?(\d{1,9})", text)]
    if (
        deepest > MAX_NESTING
        or re.search(rf"\d{{{MAX_DIGITS + 1}}}", text)
        or re.search(r"\^ ?(?:\w|\\[A-Za-z]+|\{[^{}]*)\^|\*\*.*\*\*|\)\^\{?-?\d{3,}", text)  # towers, (…)^100
        or max(powers, default=0) > MAX_POWER
        or sum(power >= 100 for power in powers) > 2
    ):
        return True
    if re.search(r"!|\\(?:binom|Gamma|zeta)(?![A-Za-z])", text) is None:
        return False
    integers = [int(n) for n in re.findall(r"\d+", text)]
    return (
        max(integers, default=0) > MAX_FACTORIAL
        or re.search(r"!!|!\^|\^ ?\w!|\^\{[^{}]*!|[)}]! ?[)}]!", text) is not None
        or ("^" in text and re.search(r"[)}]!|\\Gamma|\\zeta", text) is not None)
        or (re.search(r"\\binom\{[^{}]*[A-Za-z]", text) is not None and max(integers, default=0) > MAX_SYMBOLIC)
    )


@functools.lru_cache(maxsize=1024)  # a group's responses share the problem's answer
def _expression(text: str) -> list:
    r"""math-verify's reading, LaTeX only (its plain-text reader is sympy's, which calls eval); [] if there is none.

    Decimals become fractions: with floats it rounds to 6 places and takes 3.141593 for \pi.
    """
    verifier, reader = _math_verify()
    text = re.sub(r"(\d*)\.(\d+)", lambda m: rf"\frac{{{m[1]}{m[2]}}}{{{10 ** len(m[2])}}}", text)  # exact, no floats
    return verifier.parse(f"${text}$", [reader], fallback_mode="no_fallback", parsing_timeout=None)


@functools.cache
def _math_verify() -> tuple:
    """The library and how it reads: units, boxes and equations are normal()'s business."""
    try:
        import math_verify
        from latex2sympy2_extended.math_normalization import NormalizationConfig
    except ImportError as error:
        raise UserError(
            "an answer that is no number is compared by math-verify, which is not installed: pip install 'e3jax[math]'"
        ) from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeouts are off
    nothing_of_ours = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    reader = math_verify.LatexExtractionConfig(boxed_match_priority=0, normalization_config=nothing_of_ours)
    return math_verify, reader
