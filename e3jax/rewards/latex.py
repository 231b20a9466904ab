r"""Answers as people and models write them in LaTeX -> a normal form, its parts, exact numbers. Nothing is evaluated.

    normal(r" $\dfrac12$ \text{ cm}")   # r"\frac{1}{2}"
    number(r"\frac{1}{2}")              # (Fraction(1, 2), True): lowest terms
    parts(r"(0,\frac{1}{2}]")           # Parts(kind="(]", items=["0", r"\frac{1}{2}"])

Every function is linear in its text up to a factor for nesting; callers bound the length (MAX_CHARS).
"""

import math
import re
from fractions import Fraction
from typing import NamedTuple

MAX_CHARS = 1000
MAX_LAYERS = 8  # brackets around a whole answer that are taken off
SYMBOLS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ",
    "°": "", "≤": r"\le ", "≥": r"\ge ", "±": r"\pm ", "√": r"\sqrt ", "\u00a0": " ", "\n": " ", "\t": " ",
    r"\leq": r"\le ", r"\geq": r"\ge ", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\degree": "", r"\ldots": "...",
}  # fmt: skip
SHORT_UNITS = r"cm|mm|km|kg|ft|mi|mph|sq|oz|lbs?|min|sec|hrs?|units?"
NOT_UNITS = re.compile(
    r"hundred|thousand|million|billion|trillion|dozen|\d|\\"
    r"|\b(?:and|or|not|base|mod|times|over|plus|minus|more|less|squared|cubed|pi|[ap]\.?m)\b",
    re.IGNORECASE,
)
DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
NUMBER = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<decimal>{DECIMAL})(?:(?:\\times|\\cdot|\*) ?10\^(?P<power>\d|\{{[+-]?\d{{1,3}}\}}))?"
    r"|(?P<whole>\d+ ?)?\\frac\{(?P<a>[+-]?\d+)\}\{(?P<b>[+-]?\d+)\}"
    r"|(?:(?P<whole2>\d+) )?(?P<a2>\d+)/(?P<b2>\d+)"
    r"|(?P<once>\d*\.\d*)\\overline\{(?P<again>\d+)\})",
    re.ASCII,
)


class Parts(NamedTuple):
    """An answer taken apart: kind "" is one expression, else "list", "or" (of sets), ":", matrix, brackets."""

    kind: str
    items: list[str]


def normal(text: str) -> str:
    r"""The text without what does not change its meaning: styles, spacing, delimiters, units, thousands commas.

    Units: words after a number or a bracket are dropped (\text{…}, or plain words of at least three letters), and so
    are degree, percent and dollar signs: "5 cm" is 5, "50\%" is 50 (and not 0.5), as in the reference's normalisation.
    Counting words (million), a.m. and p.m. stay. The result is for comparing, and is what `number` and `parts` read.

    >>> normal(r"$\left( 3, \dfrac \pi 2 \right)$."), normal(r"\$23{,}000"), normal(r"90^{\circ}")
    ('(3,\\frac{\\pi}{2})', '23000', '90')
    """
    for symbol, plain in SYMBOLS.items():
        text = re.sub(re.escape(symbol) + r"(?![A-Za-z])", lambda _, plain=plain: plain, text) if "\\" in symbol else (
            text.replace(symbol, plain))  # fmt: skip
    text = re.sub(r"\{,\}|,\s*\\!\s*", "\x00", text.replace("\x00", " "))  # a comma that is certainly no list's
    text = re.sub(r"(?<=\d)\x00(?=\d{3})", "", text).replace("\x00", ",")
    text = re.sub(r"\\(?:left|right)\s*\.|\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])|\\[()$]|\$", "", text)
    text = re.sub(r"(\\\\)|\\[,;:!> ]|~|\\q?quad(?![A-Za-z])", lambda m: m[1] or " ", text)
    text = re.sub(r"\\[dtc](frac|binom)", r"\\\1", text)
    text = re.sub(r"\\%|%|\^\s*(?:\\circ|\{\s*\\circ\s*\})", "", text)
    text = re.sub(r"\{\s*\\(?:rm|bf|it)\s+([^{}]*)\}", r"\\text{\1}", text)
    text = re.sub(r"\\(?:text(?:bf|it|rm|sf)?|math(?:rm|bf|it|sf)|mbox|operatorname)\s*\{", r"\\text{", text)
    text = re.sub(r"(?<![A-Za-z])([aApP])\.? ?[mM]\b\.?", lambda m: m[1].lower() + "m", text)
    text = _without_unit(re.sub(r"^\\text\{([^{}]*)\}$", r"\1", text.strip()).strip())
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\(frac|binom)\s*(?=[^{\s])(\\[A-Za-z]+|[^\\])", r"\\\1{\2}", text)
    text = re.sub(r"(\\(?:frac|binom)\s*\{[^{}]*\})\s*(\\[A-Za-z]+|[^{}\\\s])", r"\1{\2}", text)
    text = re.sub(r"\\sqrt\s*([A-Za-z0-9])", r"\\sqrt{\1}", text)
    text = re.sub(r"([\^_])\s*\{\s*([A-Za-z0-9])\s*\}", r"\1\2", text)
    if not re.match(r"\s*(?:\\\{|[(\[])", text):  # in brackets "1,000" is two numbers
        text = re.sub(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])", lambda m: m[0].replace(",", ""), text)
    text = re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", re.sub(r"\s+", " ", text)).strip()
    text = re.sub(r"(?<!\.)[.,;]$", "", text)  # the sentence's; dots that go on stay
    for _ in range(MAX_LAYERS):
        inner = text[1:-1]
        if text[:1] + text[-1:] not in ("()", "{}") or _closing(text) != len(text) - 1:
            break
        if text[0] == "(" and len(split(inner, ",")) > 1:
            break
        text = inner
    text = re.sub(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d,/])", lambda m: m[0].replace(" ", ""), text)
    return text


def _without_unit(text: str) -> str:
    """Without words after a last digit or closing bracket that can be a unit."""
    styled = re.search(r"\\text\{([^{}]*)\}(?:\s*\^\s*\{?\s*\d\s*\}?)?\.?$", text)
    plain = re.search(rf"(?<=[\d}})])\s+((?:[a-z]{{3,}}|{SHORT_UNITS})(?: [a-z]{{2,}})*)(?:\^\{{?\d\}}?)?\.?$", text)
    for unit in (styled, plain):
        before = text[: unit.start()].rstrip() if unit else ""
        if re.search(r"(?:[\d)}]|\\pi)$", before) and not NOT_UNITS.search(unit[1]):
            return before
    return text


def number(text: str) -> tuple[Fraction, bool] | None:
    r"""The exact value of a number in normal form, and whether its fraction is in lowest terms; None for all else.

    Numbers: integers (leading zeros too), decimals (0.\overline{3} too), \frac{a}{b}, a/b, mixed 1\frac{1}{2},
    a\times10^{k}. Sums, products, powers and roots are none.

    >>> number("025"), number("-1.50"), number(r"\frac{6}{4}"), number("3+2"), number(r"8\times10^{-5}")
    ((Fraction(25, 1), True), (Fraction(-3, 2), True), (Fraction(3, 2), False), None, (Fraction(1, 12500), True))
    """
    match = NUMBER.fullmatch(text)
    if match is None:
        return None
    sign = -1 if match["sign"] == "-" else 1
    if match["decimal"]:
        power = int((match["power"] or "0").strip("{}"))
        return sign * Fraction(match["decimal"]) * Fraction(10) ** power, True
    if match["again"]:
        once, again = match["once"], match["again"]
        tail = Fraction(int(again), 10 ** len(again) - 1) / 10 ** len(once.partition(".")[2])
        return sign * ((Fraction(once) if once != "." else 0) + tail), True
    whole = int(match["whole"] or match["whole2"] or 0)
    a, b = int(match["a"] or match["a2"]), int(match["b"] or match["b2"])
    if b == 0 or (whole and (a < 0 or b < 0)):
        return None
    return sign * (whole + Fraction(a, b)), math.gcd(a, b) == 1 and abs(b) != 1


def parts(text: str) -> Parts:
    r"""A normal form taken apart at its outermost level.

    >>> parts(r"(1,2]\cup(3,4)"), parts("x=1,x=-2")
    (Parts(kind='or', items=['(1,2]', '(3,4)']), Parts(kind='list', items=['x=1', 'x=-2']))
    """
    matrix = re.fullmatch(r"\\begin\{([bpvV]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", text)
    if matrix and "matrix" not in matrix[2]:
        rows = [row.split("&") for row in matrix[2].removesuffix(r"\\").split(r"\\")]
        return Parts(f"matrix {[len(row) for row in rows]}", [cell for row in rows for cell in row])
    if len(union := split(text, r"\cup")) > 1:
        return Parts("or", union)
    if text.startswith(r"\{") and text.endswith(r"\}") and _closing(text) == len(text) - 1:
        return Parts("list", _both_signs(split(text[2:-2], ",")))
    listed = [item for part in split(text, ",") for item in re.split(r"(?i: ?\b(?:and|or)\b ?)", part) if item]
    if len(listed := _both_signs(listed)) > 1:
        return Parts("list", listed)
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _closing(text) == len(text) - 1:
        items = split(text[1:-1], ",")
        if len(items) > 1:
            return Parts(text[0] + text[-1], items)
    if len(ratio := split(text, ":")) > 1:
        return Parts(":", ratio)
    return Parts("", [text])


def split(text: str, separator: str) -> list[str]:
    """Pieces between separators outside all brackets; half-open intervals count as brackets."""
    pieces, depth, start = [], 0, 0
    for token in re.finditer(rf"{re.escape(separator)}|\\[A-Za-z]+|\\.|[()\[\]{{}}]", text):
        if token[0] == separator and depth == 0:
            pieces.append(text[start : token.start()])
            start = token.end()
        elif token[0] in ("(", "[", "{", r"\{"):
            depth += 1
        elif token[0] in (")", "]", "}", r"\}"):
            depth -= 1
    return [*pieces, text[start:]]


def unnamed(text: str) -> tuple[str, str]:
    r"""-> the name an answer gives itself, and the answer: "x=5" -> ("x", "5"), r"x\in[0,1]" too; ("", text) without.

    >>> unnamed("f(2)=7"), unnamed("2x=6"), unnamed("a=b=1")
    (('f(2)', '7'), ('', '2x=6'), ('', 'a=b=1'))
    """
    match = re.fullmatch(
        r"((?:\\(?:angle|triangle) ?)?[A-Za-z]{1,3}(?:_\w|_\{\w+\})?(?:\(\w+\))?)(?:=|\\in ?)([^=<>]+)", text
    )
    return (match[1], match[2]) if match else ("", text)


def _closing(text: str) -> int:
    """Where the bracket that the text begins with is closed: an index of its last character, or -1."""
    depth = 0
    for token in re.finditer(r"\\.|[()\[\]{}]", text):
        depth += 1 if token[0] in ("(", "[", "{", r"\{") else -1 if token[0] in (")", "]", "}", r"\}") else 0
        if depth == 0:
            return token.end() - 1
    return -1


def _both_signs(items: list[str]) -> list[str]:
    r"""One \pm in an item stands for two items."""
    spread = []
    for item in items:
        if item.count(r"\pm") == 1:
            spread += [re.sub(r"\\pm ?", sign, item).removeprefix("+") for sign in "+-"]
        else:
            spread.append(item)
    return spread
