r"""What an answer says beside its value: a name, a chain of equal values, an approximation, an inequality, a choice.

    unnamed("f(-2)=5")               # ("f(-2)", "5")
    unnamed("2x=6")                  # ("", "2x=6"): an equation, which is not its right side
    assigned("x=1,y=2")              # {"x": "1", "y": "2"}
    region(r"-2\le x\le7")           # ("x", "[-2,7]")
    labelled("C. 12")                # ("C", "12")

All functions read normal forms (rewards/latex.py). What counts as a name is an allow-list, as units are: a policy must
not be paid for "half of x = 12" or "2x = 12" where 12 is right.
"""

import itertools
import re

from e3jax.rewards.latex import normal, number, parts, split

GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi"
    "|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Sigma|Phi|Psi|Omega|ell"
)
# words of a name in prose: they say which quantity it is and do not change it, as "half", "twice" or "not" would
NAMING = set(
    "a an and answer area angle arc are base be circumference cost coordinates count degree degrees diameter difference"
    " distance edge expected final for from height hence in length max maximum mean measure median min minimum mode"
    " number of order perimeter points position price probability product quotient radius range ratio remainder result"
    " rate sequence set side slope so solution solutions speed sum surface term the therefore thus time to total"
    " triangle value values variance volume weight width x y z ways circle rectangle segment minimal maximal least"
    " greatest largest smallest common constant ans val avg".split()
)
NO_NAMES = set(
    "not non nor no one two six ten e i or of if pm am pi ln lg never half third minus less more wrong false twice"
    " anti over under neg inv root cube".split()
)
ALPHABET = "abcdefghijklmnopqrstuvwxyz"

# ---- names of one quantity: x, x_1, \lambda, AB, f(-2), P(X=2), E[X], |AB|, \cos A, \angle ABC, \frac{AB}{CD}
INDEX = r"(?:'|_\w|_\{[^{}]*\}|\^\*|\^\{\(\w+\)\})*"
LETTER = rf"(?:\\(?:{GREEK})|[A-Za-z]|\\(?:overline|vec|hat|overrightarrow|mathbb|mathcal)\{{[A-Za-z_0-9]+\}})"
POINTS = r"(?:[A-Z]{1,5}|[A-Za-z]{1,2})"
SYMBOL = rf"(?:{POINTS}|{LETTER}){INDEX}"
CALL = r"(?:\((?:[^()]|\([^()]*\))*\)|\[[^\[\]]*\])"
ONE_NAME = re.compile(
    "|".join(
        (
            rf"(?:m ?)?(?:\\(?:angle|triangle) ?)?{SYMBOL}(?:(?:\^\{{-1\}})?{CALL})?",
            rf"{LETTER}{INDEX}(?:\\circ ?{LETTER})+{CALL}?",
            rf"(?:lcm|gcd|Var|Cov|area|vol|ord|deg|dim|rank|tr|det|max|min|arg) ?{CALL}",
            r"\\(?:sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|max|min|gcd|deg|det|dim|arg|Pr|Re|Im)"
            r"(?:\^2)?(?:_\{[^{}]*\})? ?(?:\\?[A-Za-z]+|\([^()=]*\)|\\angle ?[A-Z]+)",
            rf"\\?\|{SYMBOL}\\?\|",
            rf"\[[A-Z]{{3,6}}\]|\\l(?:floor|ceil) ?{SYMBOL}\\r(?:floor|ceil)",
            r"\\frac\{[A-Z]{2}\}\{[A-Z]{2}\}",
            r"\\sigma\^2",
        )
    )
)
VARIABLE = re.compile(rf"{LETTER}(?:_\w|_\{{\w+\}})?(?:\({LETTER}\))?")
COMMANDS = re.compile(r"\\[A-Za-z]+")

# ---- choices, sets, inequalities
LABEL = re.compile(r"(?:(?i:option|choice|answer)(?: is)?:? ?)?(?:\(([A-J])\)[.:]?|([A-J])[).:]) ?(.*)", re.DOTALL)
CHOSEN = re.compile(r"(?:(?i:option|choice) )?([A-J])")
HEDGED = re.compile(r"^(?i:,|;|/|or\b|and\b|\\cup)|(?<![A-Za-z])\(?[A-J][).]")
SET = re.compile(r"[(\[]|\\\{|\\(?:mathbb|emptyset)(?![A-Za-z])")
ALL_REALS = re.compile(r"\\mathbb\{R\}|(?i:all (?:the )?real(?: numbers?|s| [a-z])?|all reals|reals|real numbers)")
ALL_BUT = re.compile(r"\\mathbb\{R\}(?:\\setminus|-) ?\\\{(.*)\\\}")
BUILDER = re.compile(r"\\\{([^{}|:]*?)(?:\\in ?\\mathbb\{R\})?(?:\||:)(.*)\\\}")
RELATION = re.compile(r"\\(?:le|ge|ne)(?![A-Za-z])|[<>]=?|!=")
RELATIONS = {r"\le": "<=", r"\ge": ">=", r"\ne": "!="}


def unnamed(text: str, *, sums: bool = True) -> tuple[str, str]:
    r"""Return the name that an answer gives itself and the answer, also of r"x\in[0,1]"; ("", text) without a name.

    All names before the value count: "x=y=5" -> ("x=y", "5"). With `sums`, several letters ("m+n", "100a+b") name a
    constant too; "2x", "x^2", "x+1" never name anything: "2x=6" is an equation.

    >>> unnamed("f(2)=7"), unnamed("2x=6"), unnamed("m+n=7"), unnamed("Area=5"), unnamed(r"\frac{6}{2}=3")
    (('f(2)', '7'), ('', '2x=6'), ('m+n', '7'), ('Area', '5'), ('', '\\frac{6}{2}=3'))
    """
    if (spoken := re.fullmatch(r"([A-Za-z' ]+?) is ?:? ?([^A-Za-z].*)", text)) and _is_name(spoken[1]):
        return spoken[1], spoken[2]
    for sign in ("=", r"\in"):
        first, *rest = split(text, sign)
        names = [first] if rest else []
        while len(rest) > 1 and _is_name(rest[0]):
            names.append(rest.pop(0))
        value = sign.join(rest).strip()
        if not value or RELATION.search(value) or (sign == r"\in" and not SET.match(value)):
            continue
        if all(map(_is_name, names)) or (sums and len(names) == 1 and _is_sum(first) and _is_constant(value)):
            return sign.join(names).strip(), value
    return "", text


def _is_name(text: str) -> bool:
    """Return whether it names a quantity: a letter, a function's value, points, a tuple or ratio of names, words."""
    text = text.strip()
    if ONE_NAME.fullmatch(text):
        return text.lower() not in NO_NAMES
    if re.fullmatch(r"\([^()]*\)", text) and "," in text:
        return all(VARIABLE.fullmatch(item.strip()) for item in text[1:-1].split(","))
    if ":" in text:
        return all(ONE_NAME.fullmatch(item.strip()) for item in text.split(":"))
    words = re.findall(r"[A-Za-z]+|\S", re.sub(r"\\(?:triangle|angle)(?![A-Za-z])", " ", text))
    return 0 < len(words) <= 10 and all(
        word.lower() in NAMING or (re.fullmatch(POINTS, word) and word.lower() not in NO_NAMES) for word in words
    )


def _is_sum(text: str) -> bool:
    r"""Return whether it is made of two or more names, with plain coefficients: m+n, xy, 100a+b, f(2)+f(3), \sum …"""
    if re.match(r"\\(?:sum|prod|int|lim)(?![A-Za-z])", text):
        return True
    terms = [term.strip() for added in split(text, "+") for term in split(added, "-")]
    if len(set(terms)) > 1 and all(term == "..." or ONE_NAME.fullmatch(term) for term in terms):
        return True
    greek = {name: chr(ord("α") + i) for i, name in enumerate(GREEK.split("|"))}  # one other letter for each
    bare = COMMANDS.sub(lambda m: greek[m[0][1:]] if m[0][1:] in greek else "+", text)
    letters = re.findall(r"[^\W\d_](?:_\w|_\{\w+\})?", bare)
    runs = [run for run in re.findall(r"[A-Za-z]{2,}", bare) if run.lower() not in ALPHABET]  # abc, xyz
    plain = re.fullmatch(r"(?:[\w{}^+*/()|-]| (?![A-Za-z]))+", bare)
    return len(set(letters)) > 1 and plain is not None and all(len(r) == 2 and r.lower() not in NO_NAMES for r in runs)


def _is_constant(text: str) -> bool:
    """Return whether a value has no letters but those of commands."""
    return re.search(r"[A-Za-z]", COMMANDS.sub("", text)) is None


def exact_and_rounded(text: str) -> tuple[str, str]:
    r"""Return a value and what it is said to be near, which is "" where nothing is said.

    >>> exact_and_rounded(r"\sqrt{2}\approx1.41"), exact_and_rounded(r"\approx3.14"), exact_and_rounded("5")
    (('\\sqrt{2}', '1.41'), ('', '3.14'), ('5', ''))
    """
    exact, *rounded = split(text, r"\approx")
    return exact.strip(), rounded[-1].strip() if rounded else ""


def assigned(text: str) -> dict[str, str]:
    r"""Return name -> value of an answer that gives several variables their values; {} for another.

    >>> assigned("x=1,y=2"), assigned("(p,q)=(3,2)"), assigned("x=1,x=2")
    ({'x': '1', 'y': '2'}, {'p': '3', 'q': '2'}, {})
    """
    if "=" not in text:
        return {}
    kind, items = parts(text)
    if kind == "list":
        pairs = [split(item, "=") for item in items]
        if not all(len(pair) == 2 for pair in pairs):
            return {}
        names, values = [pair[0].strip() for pair in pairs], [pair[1].strip() for pair in pairs]
    else:
        name, value = unnamed(text)
        if not (name.startswith("(") and name.endswith(")")):
            return {}
        names, values = [item.strip() for item in name[1:-1].split(",")], parts(value).items
    if len(names) != len(values) or not all(map(VARIABLE.fullmatch, names)):
        return {}
    if len({name.partition("_")[0] for name in names}) < len(names):  # x=1,x=2 and x_1=1,x_2=2 are solutions
        return {}
    return dict(zip(names, values))


def in_order(values: dict[str, str]) -> list[str]:
    """Return the values as a tuple has them: of x, y in the alphabet's order, of letters apart in it as they stand."""
    letters = sorted(values)
    in_alphabet = all(len(name) == 1 for name in letters) and "".join(letters) in ALPHABET
    return [values[name] for name in (letters if in_alphabet else values)]


def labelled(text: str) -> tuple[str, str]:
    r"""Return the letter of a choice and what stands behind it; ("", text) without a letter, or with two.

    >>> labelled("C. 12"), labelled("(A)"), labelled("B"), labelled("A) or B)"), labelled("x+1")
    (('C', '12'), ('A', ''), ('B', ''), ('', 'A) or B)'), ('', 'x+1'))
    """
    if chosen := CHOSEN.fullmatch(text):
        return chosen[1], ""
    match = LABEL.fullmatch(text)
    if match is None or HEDGED.search(match[3]):
        return "", text
    return match[1] or match[2], match[3]


def region(text: str) -> tuple[str, str]:
    r"""Return the variable and the intervals of an inequality, of a set that one describes, or of all reals.

    ("", "") for everything else. The variable is "" where none is named.

    >>> region("x>3"), region(r"x<1 or x\ge2"), region(r"\mathbb{R}\setminus\{2\}")
    (('x', '(3,\\infty)'), ('x', '(-\\infty,1)\\cup[2,\\infty)'), ('', '(-\\infty,2)\\cup(2,\\infty)'))
    """
    text = text.strip()
    if ALL_REALS.fullmatch(text):
        return "", r"(-\infty,\infty)"
    if without := ALL_BUT.fullmatch(text):
        return "", _all_but(without[1])
    if RELATION.search(text) is None:
        return "", ""
    builder = BUILDER.fullmatch(text)
    either = [_inequality(part.strip()) for part in re.split(r" ?\bor\b ?", builder[2] if builder else text)]
    variables = {variable for variable, _ in either} | ({builder[1].strip()} if builder else set())
    if len(variables) > 1 or not all(intervals for _, intervals in either):
        return "", ""
    return variables.pop(), r"\cup".join(intervals for _, intervals in either)


def _inequality(text: str) -> tuple[str, str]:
    """Return the variable and the intervals of x<a, a<x, a<x<b and their like; ("", "") for others."""
    signs = [RELATIONS.get(sign, sign) for sign in RELATION.findall(text)]
    sides = [side.strip() for side in RELATION.split(text)]
    if not 1 <= len(signs) <= 2 or any(not side or "=" in side or len(split(side, ",")) > 1 for side in sides):
        return "", ""
    if signs == ["!="]:
        return (sides[0], _all_but(sides[1])) if VARIABLE.fullmatch(sides[0]) else ("", "")
    if signs[0][0] == ">":  # from small to large
        signs, sides = [sign.replace(">", "<") for sign in signs[::-1]], sides[::-1]
    if any(sign[0] != "<" for sign in signs):
        return "", ""
    if len(sides) == 2 and VARIABLE.fullmatch(sides[0]) and _is_constant(sides[1]):
        signs, sides = ["<", *signs], [r"-\infty", *sides]
    elif len(sides) == 2 and VARIABLE.fullmatch(sides[1]) and _is_constant(sides[0]):
        signs, sides = [*signs, "<"], [*sides, r"\infty"]
    if len(sides) == 2 or VARIABLE.fullmatch(sides[1]) is None:
        return "", ""
    return sides[1], f"{'[' if signs[0] == '<=' else '('}{sides[0]},{sides[2]}{']' if signs[1] == '<=' else ')'}"


def _all_but(points: str) -> str:
    """Return the intervals of all reals but these constants; "" where the order of several is not plain."""
    values = [normal(point) for point in split(points, ",")]
    if len(values) > 1:
        if not all(map(number, values)):
            return ""
        values.sort(key=lambda value: number(value)[0])
    if not all(value and _is_constant(value) for value in values):
        return ""
    ends = [r"-\infty", *values, r"\infty"]
    return r"\cup".join(f"({low},{high})" for low, high in itertools.pairwise(ends))
