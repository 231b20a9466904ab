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
import logging
import re
from collections.abc import Sequence

from e3jax.errors import UserError
from e3jax.rewards.extract import Grade, boxed_answer, last_boxed
from e3jax.rewards.latex import MAX_CHARS, normal, number, parts, unnamed

MAX_PARSED = 300  # characters of an expression for math-verify
MAX_NESTING, MAX_DIGITS, MAX_POWER, MAX_FACTORIAL, MAX_SYMBOLIC = 16, 40, 10_000, 5000, 20  # of sympy's work: too_big
MAX_ITEMS, MAX_LEVELS = 24, 4  # of a list, of lists in lists
RELATIVE = 1e-12  # numbers further apart are two numbers
UNDONE = re.compile(r"\\(?:sum|prod|i*int|oint|lim|bigcup|bigcap|max|min|sup|inf|gcd|lcm)(?![A-Za-z])")


def grade_text(problem, text: str, *, where: str = "response") -> Grade:
    """A response (without its prompt) to a Problem with `answer` in LaTeX -> Grade; `where`: extract.boxed_answer."""
    answer, why = boxed_answer(text, where=where)
    if answer is None:
        return Grade(0.0, why)
    reason = compare(last_boxed(problem.answer) or problem.answer, answer)
    return Grade(float(reason == "correct"), reason)


def compare(gold: str, answer: str) -> str:
    r"""The reason code for `answer` where `gold` is right; both in LaTeX, without the box.

    >>> compare(r"\frac{1}{2}", "0.5"), compare("5", "3+2"), compare("(1,2)", r"\{1,2\}"), compare("1,-2", "-2, 1")
    ('correct', 'not_a_number', 'wrong_value', 'correct')
    """
    if len(answer) > MAX_CHARS:
        return "too_long"
    gold, answer = normal(gold), normal(answer)
    if gold == answer:
        return "correct"
    (gold_name, gold_value), (name, value) = unnamed(gold), unnamed(answer)
    if "=" in gold and "=" in answer and gold_name.lower() != name.lower():
        return _parsed(gold, answer)  # two equations; "x=5" and "5", "x=5" and "X=5" are values
    return _same(gold_value, value, levels=MAX_LEVELS)


def _same(gold: str, answer: str, *, levels: int) -> str:
    """Two normal forms, taken apart."""
    if gold == answer:
        return "correct"
    if levels == 0:
        return "too_big"
    kind, items = parts(gold)
    given_kind, given = parts(answer)
    if kind != given_kind or len(items) != len(given):
        one = kind == given_kind == "" or ({kind, given_kind} <= {"", "list"} and len(items) == len(given) == 1)
        if not one:
            return "not_a_number" if number(gold) and given_kind == "" else "wrong_value"
    if kind == given_kind == "":
        return _one(gold, answer)
    if len(items) > MAX_ITEMS:
        return "too_long"
    pair = functools.partial(_pair, levels=levels - 1)
    if kind in ("list", "or"):
        return _any_order(items, given, pair)
    return next((reason for g, a in zip(items, given) if (reason := pair(g, a)) != "correct"), "correct")


def _pair(gold: str, answer: str, *, levels: int) -> str:
    """Two items, named or not."""
    (gold_name, gold), (name, answer) = unnamed(normal(gold)), unnamed(normal(answer))
    if gold_name and name and gold_name.lower() != name.lower():
        return "wrong_value"
    return _same(gold, answer, levels=levels)


def _any_order(items: Sequence[str], given: Sequence[str], pair) -> str:
    """Every item finds one of its own, the cheap comparisons first."""
    left, rest = list(given), []
    for item in items:
        left.remove(item) if item in left else rest.append(item)
    for item in rest:
        found = next((other for other in left if pair(item, other) == "correct"), None)
        if found is None:
            return "wrong_value"
        left.remove(found)
    return "correct"


def _one(gold: str, answer: str) -> str:
    """Two single expressions."""
    if wanted := number(gold):
        if (given := number(answer)) is None:
            return "not_a_number"
        if given[0] != wanted[0]:
            return "wrong_value"
        return "correct" if given[1] else "unreduced"
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
