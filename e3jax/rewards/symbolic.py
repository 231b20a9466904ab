r"""Two single expressions -> whether they are the same, by math-verify and sympy; the only place that runs them.

sympy runs on model text here: call this in rewards/workers.py's processes, whose timeout is the only one (math-verify's
own need a main thread, and are off). What sympy would choke on is turned away first.

    same_expression(r"11\sqrt{2}", r"\sqrt{242}")   # "correct"

Reasons: those of rewards/math.py.
"""

import functools
import itertools
import logging
import re
from fractions import Fraction

from e3jax.errors import UserError
from e3jax.rewards.latex import number

MAX_PARSED = 300  # characters of an expression for math-verify
MAX_NESTING, MAX_DIGITS, MAX_POWER, MAX_FACTORIAL, MAX_SYMBOLIC = 16, 40, 10_000, 5000, 20  # of sympy's work: too_big
MAX_SYMBOLS = 3  # of two expressions that are compared where they are real
RELATIVE = 1e-12  # numbers further apart are two numbers
UNDONE = re.compile(r"\\(?:sum|prod|i*int|oint|lim|bigcup|bigcap|max|min|sup|inf|gcd|lcm)(?![A-Za-z])")


def same_expression(gold: str, answer: str) -> str:
    """Return what math-verify says of one expression, as a reason code of rewards/math.py."""
    if why := refused(answer, gold=gold):
        return why
    wanted, given = expression(gold), expression(answer)
    if not wanted or not given:
        return "unreadable"
    verifier, _ = _math_verify()
    try:
        same = verifier.verify(wanted, given, timeout_seconds=None) and not _differ(wanted[0], given[0])
        same = same or _same_where_real(wanted[0], given[0])
    except Exception:  # what sympy raises at model text is anybody's guess; a grader that raises would end the run
        return "unreadable"
    return "correct" if same else "wrong_value"


def refused(answer: str, *, gold: str = "") -> str | None:
    """Return why an expression is not given to math-verify, as a reason code; None if it is."""
    if len(answer) > MAX_PARSED:
        return "too_long"
    if set(UNDONE.findall(answer)) - set(UNDONE.findall(gold)):
        return "unevaluated"
    if "'" in answer and "'" not in gold:  # math-verify drops them: y' would be y
        return "unreadable"
    return "too_big" if too_big(answer) else None


def near(exact: str, rounded: str) -> bool:
    """Return whether a decimal is a value rounded to its digits, or cut off behind them."""
    if (given := number(rounded)) is None:
        return False
    places = len(rounded.partition(".")[2])
    half, cut = Fraction(1, 2 * 10**places), Fraction(1, 10**places) if places else Fraction(1, 2)
    if value := number(exact):
        return -half <= abs(value[0]) - abs(given[0]) <= cut and value[0] * given[0] >= 0
    if refused(exact) or not (read := expression(exact)):
        return False
    try:
        value = read[0].evalf(30)
        return bool(-half <= abs(value) - abs(given[0]) <= cut and value * given[0] >= 0)
    except Exception:  # no real number, or whatever sympy raises at model text
        return False


def _differ(wanted, given) -> bool:
    r"""Return whether two expressions differ in what math-verify overlooks.

    That is tiny and huge numbers (10^{-20}\pi and 10^{-20}e), and what stands left of an "=".
    """
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
    r"""Return whether two expressions are equal for positive variables, and at points wherever one of them is real.

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
        gap = abs(one - other) / abs(one)
        if (one.is_real or other.is_real) and not (gap.is_comparable and gap < RELATIVE):
            return False
    positive = {symbol: type(symbol)(symbol.name, positive=True) for symbol in symbols}
    return (wanted - given).subs(positive).simplify() == 0


def too_big(text: str) -> bool:
    r"""Return whether sympy may not come back: nesting, long numbers, powers of powers, big exponents and factorials.

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
def expression(text: str) -> list:
    r"""Return math-verify's reading, LaTeX only (its plain-text reader is sympy's, which calls eval); [] for none.

    Decimals become fractions: with floats it rounds to 6 places and takes 3.141593 for \pi.
    """
    verifier, reader = _math_verify()
    text = re.sub(r"(\d*)\.(\d+)", lambda m: rf"\frac{{{m[1]}{m[2]}}}{{{10 ** len(m[2])}}}", text)  # exact, no floats
    return verifier.parse(f"${text}$", [reader], fallback_mode="no_fallback", parsing_timeout=None)


@functools.cache
def _math_verify() -> tuple:
    """Return the library and how it reads: units, boxes and equations are normal()'s business."""
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
