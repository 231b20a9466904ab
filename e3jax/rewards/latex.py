r"""Answers as people and models write them in LaTeX -> a normal form, its parts, exact numbers. Nothing is evaluated.

    normal(r" $\dfrac12$ \text{ cm}")   # r"\frac{1}{2}"
    number(r"\frac{1}{2}")              # (Fraction(1, 2), True): lowest terms
    parts(r"(0,\frac{1}{2}]")           # Parts(kind="(]", items=["0", r"\frac{1}{2}"])

The normal form is made in passes, each of which removes one way in which the same answer can be written differently:
`_latex_only` (unicode), `_unmarked` (Markdown), `rebuilt` (delimiters, styles, arguments: rewards/tex.py),
`_split_unit` (rewards/units.py), `_tidy` (thousands, fractions, blanks, brackets around it all).
Every function is linear in its text up to a factor for nesting; callers bound the length (MAX_CHARS).
"""

import math
import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

from e3jax.rewards import units
from e3jax.rewards.tex import rebuilt

MAX_CHARS = 1000
MAX_DIGITS = 4000  # of a number: Python turns no more than 4,300 into an int
MAX_LAYERS = 8  # brackets around a whole answer that are taken off
SYMBOLS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ",
    "∩": r"\cap ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∓": r"\mp ",
    "≈": r"\approx ", "∈": r"\in ", "∅": r"\emptyset ", "∠": r"\angle ", "△": r"\triangle ", "⁄": "/", "∶": ":",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "º": "°",
    "…": "...", "、": ",", "。": ".", "‘": "'", "’": "'", "′": "'", "⁺": "^+", "⁻": "^-", "ϕ": r"\phi ",
}  # fmt: skip
AREA = re.compile(r"(?<=\d) ?([cdkm]?m|ft|in)([²³])")  # 5m² is a measure, 5m^2 may be a product
TWICE_ESCAPED = re.compile(  # \\frac for \frac
    r"\\\\(?=(?:[dt]?frac|left|right|sqrt|text|pi|in|infty|cup|[lg]eq?|times|cdot|pm|mathbb|circ)(?![A-Za-z]))"
)
LEAD = re.compile(r"(?i: *(?:so|thus|hence|therefore)?,? ?(?:the )?(?:final |correct )?answer(?: is:?| ?[:=]) *(?=\S))")
CURRENCY = re.compile(r"([+-]?) ?(?:US|CA|AU)?([$€£¥₹]|USD|EUR)[ ~]?(?=[\d.\\])")
UNIT_STARTS = re.compile(  # a blank or nothing, then what may be a unit
    r" *\\(?:text\{|frac\{ ?\\text\{)|(?<=[\d)}\]]) *(?=[A-Za-z°%$€£¥₹¢])|(?<=\\pi) +(?=[A-Za-z])"
)
SINGLE_LETTERS = "mshgL"  # that are units even when they are set as plain mathematics, behind a blank
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
SLASH = re.compile(r"(?<![\w.}^_/)!])(\d+)/(\d+)(?![\d./!^_])", re.ASCII)
SIGNS = re.compile(r"(?<![\d°%$])[°%$]++|[°%$]++(?! *\d)")  # 5%6 is not 56
CLOCK = re.compile(r"0\d(?: ?[ap]m)?")  # of a time, "3:05", which is no ratio
DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
NUMBER = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<decimal>{DECIMAL})"
    r"(?:(?:\\times|\\cdot|\*) ?10\^(?P<power>\d|\{[+-]?\d{1,3}\})|[eE](?P<e>[+-]?\d{1,3}))?"
    r"|(?P<whole>\d+ ?)?\\frac\{(?P<a>[+-]?\d+)\}\{(?P<b>[+-]?\d+)\}"
    r"|(?:(?P<whole2>\d+) )?(?P<a2>\d+)/(?P<b2>\d+)"
    r"|(?P<once>\d*\.\d*)\\overline\{(?P<again>\d+)\})",
    re.ASCII,
)


class Parts(NamedTuple):
    """An answer taken apart: kind "" is one expression, else "list", "or" (of sets), ":", "clock", matrix, brackets."""

    kind: str
    items: list[str]


class Measured(NamedTuple):
    """An answer's normal form without its unit, the unit (units.read; None without one), and the form with it."""

    value: str
    unit: str | None
    whole: str


def normal(text: str) -> str:
    r"""Return the text without what does not change its meaning: styles, spacing, delimiters, units, thousands commas.

    Units are those of rewards/units.py; degree, percent and dollar signs go too: "5 cm" is 5, "50\%" is 50 (and not
    0.5), as in e3's normalisation. All other words stay. The result is for comparing, and is what `number`
    and `parts` read.

    >>> normal(r"$\left( 3, \dfrac \pi 2 \right)$."), normal(r"\$23{,}000"), normal(r"90^{\circ}"), normal("**5 cm**")
    ('(3,\\frac{\\pi}{2})', '23000', '90', '5')
    """
    return measured(text).value


def measured(text: str, *, thousands: bool = True) -> Measured:
    r"""Return the normal form and the unit. `thousands`: "3,100" is one number, and else a list of two.

    >>> measured(r"12 \text{ square inches}")
    Measured(value='12', unit='in^2', whole='12 square inches')
    """
    text = re.sub(r"\s{2,}|[\n\r\v\f]", "  ", _latex_only(text).replace("\x00", "\n"))
    if len(text) > 2 * MAX_CHARS:  # "½" is eleven characters in LaTeX: this is no answer
        return Measured(text, None, text)
    if r"\begin" not in text:
        text = TWICE_ESCAPED.sub(r"\\", text)
    text = re.sub(r"\{,\}|,\s*\\!\s*", "\x00", text)  # a comma that is certainly no list's
    text = re.sub(r"(?<=\d)\x00(?=\d{3})", "", text).replace("\x00", ",")
    text = re.sub(r"\s{2,}", "  ", rebuilt(_unmarked(text.strip())))
    text = re.sub(r"(?<![A-Za-z])([aApP])\.? ?[mM]\b\.?", lambda m: m[1].lower() + "m", text)
    text = _unmarked(re.sub(r"^\\text\{([^{}]*)\}$", r"\1", text.strip()).strip())
    value, unit = _split_unit(text)
    whole = _tidy(text, thousands)
    return Measured(whole if unit is None else _tidy(value, thousands), unit, whole)


def _latex_only(text: str) -> str:
    r"""Return the text without characters that LaTeX has a command for, and full-width or styled letters and digits.

    >>> _latex_only("３½ ≤ θ²")
    '3\\frac{1}{2} \\le  \\theta ^{2}'
    """
    if text.isascii():
        return text
    text = AREA.sub(r" \\text{\1}\2", text)
    text = re.sub(r"√ ?(\d+)", r"\\sqrt{\1}", text).replace("√", r"\sqrt ")
    text = re.sub(r"[⁰¹²³⁴-⁹]+", lambda m: "^{" + unicodedata.normalize("NFKC", m[0]) + "}", text)
    return re.sub(r"[^\x00-\x7f]", lambda m: _character(m[0]), text)


def _character(character: str) -> str:
    """Return a character outside ASCII in LaTeX; one that is none of SYMBOLS, a fraction, a style or Greek stays."""
    if character in SYMBOLS:
        return SYMBOLS[character]
    kind, _, codes = unicodedata.decomposition(character).rpartition("> ")
    plain = "".join(chr(int(code, 16)) for code in codes.split())
    if kind == "<fraction" and "\u2044" in plain[:-1]:
        top, _, bottom = plain.partition("\u2044")
        return rf"\frac{{{top}}}{{{bottom}}}"
    if kind == "<sub":
        return f"_{plain}"
    if kind in ("<wide", "<font", "<narrow", "<noBreak", "<compat"):
        character = plain
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(character[:1], ""))
    if greek is None:
        return character
    name = greek[2].lower().replace("lamda", "lambda")
    return rf"\{name if greek[1] == 'SMALL' else name.capitalize()} "


def _unmarked(text: str) -> str:
    """Return the text without Markdown's marks around it."""
    return re.sub(r"^(?:\*{1,3}|__|`{1,3})\s*|\s*(?:\*{1,3}|__|`{1,3})(?=[.,]?$)", "", text)


def _split_unit(text: str) -> tuple[str, str | None]:
    r"""Return the answer before its unit and the unit, which is None where no whole tail of the text is one.

    A unit in \text{…} may stand behind anything, plain words of two letters or more behind a blank, and glued or single
    letters ("5cm", "5 m") behind a number only: "5m" is a product.
    """
    if paid := CURRENCY.match(text):
        value, unit = _split_unit(paid[1] + text[paid.end() :])
        currency = units.read(paid[2])
        return (value, currency) if units.compatible(currency, unit) else (text, None)
    for start in UNIT_STARTS.finditer(text, max(0, len(text) - units.MAX_CHARS - 40)):
        value, tail = text[: start.start()].rstrip(), text[start.start() :]
        words = re.sub(r"\\frac\{ ?\\text\{([^{}]*)\} ?\}\{ ?\\text\{([^{}]*)\} ?\}", r"\1/\2", tail)
        words = re.sub(r"\\text\{([^{}]*)\}", r" \1", words).replace(r"\cdot", "·").strip()
        words = re.sub(r"\^\{(-?\d)\}", r"^\1", words)
        unit = units.read(words, of_one=value == "1") if value else None
        if unit is None:
            continue
        plain = words[0].isalpha() and tail.lstrip()[0].isalpha()
        first = re.match(r"[A-Za-z]*", words)[0]
        if plain and (start[0] == "" or len(first) == 1):
            letter = len(first) == 1 and (start[0] == "" or first not in SINGLE_LETTERS)
            if letter or number(_tidy(value, True)) is None:
                continue
        return value, unit
    return text, None


def _tidy(text: str, thousands: bool) -> str:
    """Return the text without signs of units, thousands commas, idle blanks, a last stop, brackets around it all."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    text = SIGNS.sub("", text)
    if lead := LEAD.match(text):
        text = text[lead.end() :]
    text = re.sub(r"\\dot\{(\d)\}(\d*)\\dot\{(\d)\}", r"\\overline{\1\2\3}", text)
    text = re.sub(r"(?<=[\d.])\\dot\{(\d)\}", r"\\overline{\1}", text)
    if thousands and not re.match(r"\s*(?:\\\{|[(\[])", text):  # in brackets "1,000" is two numbers
        text = THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    text = re.sub(r"(?<![\d.,])\d{1,3}(?:\s\d{3})+(?![\d,/])", lambda m: re.sub(r"\s", "", m[0]), text)
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d|\s)", " ", text)  # wide blanks between digits stay: 1  600 is no number
    text = re.sub(r"(?<![A-Za-z0-9]) +| +(?![A-Za-z0-9 ])", "", text).strip()
    text = re.sub(r"(?<!\.)[.,;]$", "", text)  # the sentence's; dots that go on stay
    for _ in range(MAX_LAYERS):
        inner = text[1:-1]
        if text[:1] + text[-1:] not in ("()", "{}") or _closing(text) != len(text) - 1:
            break
        if text[0] == "(" and len(split(inner, ",")) + len(split(inner, ";")) > 2:
            break
        text = inner
    text = SLASH.sub(r"\\frac{\1}{\2}", text)  # before a factor too: 1/2x is half of x
    return r"\emptyset" if text == r"\{\}" else re.sub(r"^\+(?![+-])", "", text)


def number(text: str) -> tuple[Fraction, bool] | None:
    r"""Return the exact value of a number in normal form, and whether its fraction is in lowest terms; else None.

    Numbers: integers (leading zeros too), decimals (0.\overline{3} too), \frac{a}{b}, a/b, mixed 1\frac{1}{2},
    a\times10^{k}, aek. Sums, products, powers and roots are none.

    >>> number("025"), number("-1.50"), number(r"\frac{6}{4}"), number("3+2"), number(r"8\times10^{-5}")
    ((Fraction(25, 1), True), (Fraction(-3, 2), True), (Fraction(3, 2), False), None, (Fraction(1, 12500), True))
    >>> number("1.5e-3"), number(r"0.\overline{3}")
    ((Fraction(3, 2000), True), (Fraction(1, 3), True))
    """
    match = NUMBER.fullmatch(text) if len(text) <= MAX_DIGITS else None
    if match is None:
        return None
    sign = -1 if match["sign"] == "-" else 1
    if match["decimal"]:
        power = int((match["power"] or match["e"] or "0").strip("{}"))
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
    r"""Return a normal form taken apart at its outermost level.

    >>> parts(r"(1,2]\cup(3,4)"), parts("x=1,x=-2"), parts("3:05").kind, parts("3:5").kind
    (Parts(kind='or', items=['(1,2]', '(3,4)']), Parts(kind='list', items=['x=1', 'x=-2']), 'clock', ':')
    """
    if matrix := _matrix(text):
        return matrix
    if len(union := split(text, r"\cup")) > 1:
        return Parts("or", union)
    if text.startswith(r"\{") and text.endswith(r"\}") and _closing(text) == len(text) - 1:
        return Parts("list", _both_signs(_separated(text[2:-2])))
    listed = [item for part in _separated(text) for item in re.split(r"(?i: ?\b(?:and|or)\b ?)", part) if item]
    if len(listed := _both_signs(listed)) > 1:
        return Parts("list", listed)
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _closing(text) == len(text) - 1:
        items = _separated(text[1:-1])
        if len(items) > 1:
            return Parts(text[0] + text[-1], items)
    if len(ratio := split(text, ":")) > 1:
        return Parts("clock" if any(CLOCK.fullmatch(item) for item in ratio[1:]) else ":", ratio)
    return Parts("", [text])


def _separated(text: str) -> list[str]:
    """Return a list's items: between semicolons where there are any, else between commas."""
    pieces = split(text, ";")
    return [piece for piece in pieces if piece] if len(pieces) > 1 else split(text, ",")


def _matrix(text: str) -> Parts | None:
    r"""Return a matrix, whatever its environment and brackets; a determinant is another kind, and ||…|| a third."""
    bars = re.fullmatch(r"([(\[|])(\\begin.*\\end\{\w+\})([)\]|])", text)
    if bars and bars[1] + bars[3] not in ("()", "[]", "||"):
        return None
    env = re.fullmatch(
        r"\\begin\{([bBpvV]?)(?:small)?(matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1(?:small)?\2\}",
        bars[2] if bars else text,
    )
    if env is None or r"\begin" in env[3]:
        return None
    kind = "|" if bars and bars[1] == "|" else {"v": "|", "V": "||"}.get(env[1], "")
    rows = [row.split("&") for row in re.split(r"\\\\(?:\[\w+\])?", env[3]) if row]
    return Parts(f"matrix{kind} {[len(row) for row in rows]}", [cell for row in rows for cell in row])


def split(text: str, separator: str) -> list[str]:
    """Return the pieces between separators outside all brackets; half-open intervals count as brackets."""
    if separator not in text:
        return [text]
    pieces, depth, start = [], 0, 0
    for token in re.finditer(rf"\\[A-Za-z]+|\\.|[()\[\]{{}}]|{re.escape(separator)}", text):
        if token[0] == separator and depth == 0:
            pieces.append(text[start : token.start()])
            start = token.end()
        elif token[0] in ("(", "[", "{", r"\{"):
            depth += 1
        elif token[0] in (")", "]", "}", r"\}"):
            depth -= 1
    return [*pieces, text[start:]]


def _closing(text: str) -> int:
    """Return where the bracket that the text begins with is closed: an index of its last character, or -1."""
    depth = 0
    for token in re.finditer(r"\\.|[()\[\]{}]", text):
        depth += 1 if token[0] in ("(", "[", "{", r"\{") else -1 if token[0] in (")", "]", "}", r"\}") else 0
        if depth == 0:
            return token.end() - 1
    return -1


def _both_signs(items: list[str]) -> list[str]:
    r"""Return the items with two for one that has a \pm."""
    spread = []
    for item in items:
        if item.count(r"\pm") == 1:
            spread += [re.sub(r"\\pm ?", sign, item).replace("=+", "=").removeprefix("+") for sign in "+-"]
        else:
            spread.append(item)
    return spread
