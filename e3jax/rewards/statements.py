r"""What an answer says beside its value: a name, a chain of equal values, an approximation, an inequality.

    unnamed("f(-2)=5")               # ("f(-2)", "5")
    unnamed("2x=6")                  # ("", "2x=6"): an equation, which is not its right side
    assigned("x=1,y=2")              # {"x": "1", "y": "2"}
    region(r"-2\le x\le7")           # ("x", "[-2,7]")
    labelled("C. 12")                # ("C", "12")

All functions read normal forms (rewards/latex.py).
"""

import re

from e3jax.rewards.latex import normal, number, parts, split

GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi"
    "|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Sigma|Phi|Psi|Omega|ell"
)
INDEX = r"(?:'|_\w|_\{[^{}]*\}|\^\*)*"
MARKED = r"\\(?:overline|vec|hat|overrightarrow|mathbb|mathcal|mathbf)\{[A-Za-z_0-9]+\}"
LETTER = rf"(?:\\(?:{GREEK})|[A-Za-z]|{MARKED})"
POINTS = r"(?:[A-Z]{1,5}|[A-Za-z]{1,2})"  # AB, ABCD, dx
CALL = r"(?:\((?:[^()]|\([^()]*\))*\)|\[[^\[\]]*\])"
ONE_NAME = re.compile(
    rf"(?:m ?)?(?:\\(?:angle|triangle) ?)?(?:{POINTS}|{LETTER}){INDEX}(?:(?:\^\{{-1\}})?{CALL})?"
    rf"|(?:lcm|gcd|Var|Cov|area|vol|ord|deg|dim|rank|tr|det|max|min|arg) ?{CALL}"
    rf"|\\?\|(?:{POINTS}|{LETTER}){INDEX}\\?\||\[[A-Z]{{3,6}}\]|\\frac\{{[A-Z]{{2}}\}}\{{[A-Z]{{2}}\}}|\\sigma\^2|{LETTER}{INDEX}(?:\\circ ?{LETTER})+{CALL}?"
    r"|\\(?:sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|max|min|gcd|deg|det|dim|arg|Pr|Re|Im)"
    r"(?:\^2)?(?:_\{[^{}]*\})? ?(?:\\?[A-Za-z]+|\([^()=]*\)|\\angle ?[A-Z]+)"
)
VARIABLE = re.compile(rf"{LETTER}(?:_\w|_\{{\w+\}})?(?:\({LETTER}\))?")
# words that name a quantity and do not change it: no "half", "twice", "not"
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
COMMANDS = re.compile(r"\\[A-Za-z]+")
SET = re.compile(r"[(\[]|\\\{|\\(?:mathbb|emptyset)(?![A-Za-z])")
LABEL = re.compile(r"(?:(?i:option|choice|answer)(?: is)?:? ?)?(?:\(([A-J])\)[.:]?|([A-J])[).:]) ?(.*)", re.DOTALL)
CHOSEN = re.compile(r"(?:(?i:option|choice) )?([A-J])")
HEDGED = re.compile(r"^(?i:,|;|/|or\b|and\b|\\cup)|(?<![A-Za-z])\(?[A-J][).]")
ALL_REALS = re.compile(r"\\mathbb\{R\}|(?i:all (?:the )?real(?: numbers?|s| [a-z])?|all reals|reals|real numbers)")
ORDERED = "abcdefghijklmnopqrstuvwxyz"
RELATION = re.compile(r"\\(?:le|ge|ne)(?![A-Za-z])|[<>]=?|!=")
RELATIONS = {r"\le": "<=", r"\ge": ">=", r"\ne": "!="}


def unnamed(text: str, *, sums: bool = True) -> tuple[str, str]:
    r"""-> the name an answer gives itself, and the answer: "x=5" -> ("x", "5"), r"x\in[0,1]" too; ("", text) without.

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
        if not value or (sign == r"\in" and not SET.match(value)) or re.search(r"[<>]|\\[lg]e(?![A-Za-z])|\\ne(?![A-Za-z])", value):
            continue
        if all(map(_is_name, names)) or (sums and len(names) == 1 and _is_sum(first) and _is_constant(value)):
            return sign.join(names).strip(), value
    return "", text


def _is_name(text: str) -> bool:
    """Whether it names a quantity: a letter, a function's value, points, a tuple or ratio of names, words."""
    text = text.strip()
    if ONE_NAME.fullmatch(text):
        return _can_be(text)
    if re.fullmatch(r"\([^()]*\)", text) and "," in text:
        return all(VARIABLE.fullmatch(item.strip()) for item in text[1:-1].split(","))
    if ":" in text:
        return all(ONE_NAME.fullmatch(item.strip()) for item in text.split(":"))
    words = re.findall(r"[A-Za-z]+|\S", re.sub(r"\\(?:triangle|angle)(?![A-Za-z])", " ", text))
    return 0 < len(words) <= 10 and all(w.lower() in NAMING or re.fullmatch(POINTS, w) and _can_be(w) for w in words)


def _is_sum(text: str) -> bool:
    """Whether it is made of two or more letters, with plain coefficients: m+n, xy, 100a+b, and of no words."""
    greek = {name: chr(0x3B1 + i) for i, name in enumerate(GREEK.split("|"))}  # any other letters will do
    bare = COMMANDS.sub(lambda m: greek[m[0][1:]] if m[0][1:] in greek else "+", text)
    terms = [term for sign_part in split(text, "+") for term in split(sign_part, "-")]
    if len(set(terms)) > 1 and all(term == "..." or ONE_NAME.fullmatch(term.strip()) for term in terms):
        return True  # f(2)+f(3), a_1+...+a_n
    if re.match(r"\\(?:sum|prod|int|lim)(?![A-Za-z])", text):
        return True
    letters = re.findall(r"[^\W\d_](?:_\w|_\{\w+\})?", bare)
    words = [word for word in re.findall(r"[A-Za-z]{2,}", bare) if word.lower() not in ORDERED]
    plain = re.fullmatch(r"(?:[\w{}^+*/()|-]| (?![A-Za-z]))+", bare)
    return len(set(letters)) > 1 and plain is not None and all(len(word) == 2 and _can_be(word) for word in words)


def _can_be(name: str) -> bool:
    """Whether a short name is no word or constant."""
    return name.lower() not in NO_NAMES


def _is_constant(text: str) -> bool:
    """Whether a value has no letters but those of commands."""
    return re.search(r"[A-Za-z]", COMMANDS.sub("", text)) is None


def exact_and_rounded(text: str) -> tuple[str, str]:
    r"""A value and what it is said to be near: r"\frac{1}{3}\approx0.333" -> (r"\frac{1}{3}", "0.333"); else "".

    >>> exact_and_rounded(r"\sqrt{2}\approx1.41"), exact_and_rounded(r"\approx3.14"), exact_and_rounded("5")
    (('\\sqrt{2}', '1.41'), ('', '3.14'), ('5', ''))
    """
    exact, *rounded = split(text, r"\approx")
    return exact.strip(), rounded[-1].strip() if rounded else ""


def assigned(text: str) -> dict[str, str]:
    r"""Name -> value of an answer that gives several variables their values; {} for another.

    >>> assigned("x=1,y=2"), assigned("(p,q)=(3,2)"), assigned("x=1,x=2")
    ({'x': '1', 'y': '2'}, {'p': '3', 'q': '2'}, {})
    """
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
    """The values as a tuple has them: neighbours of the alphabet in its order (x, y), other letters as they stand."""
    names = list(values)
    letters = sorted(names)
    if all(len(name) == 1 for name in names) and "".join(letters) in ORDERED:
        names = letters
    return [values[name] for name in names]


def labelled(text: str) -> tuple[str, str]:
    r"""The letter of a choice and what stands behind it: "(C)", "C. 12", "C) 12"; ("", text) without, or with two.

    >>> labelled("C. 12"), labelled("(A)"), labelled("A) or B)"), labelled("x+1")
    (('C', '12'), ('A', ''), ('', 'A) or B)'), ('', 'x+1'))
    """
    if chosen := CHOSEN.fullmatch(text):
        return chosen[1], ""
    match = LABEL.fullmatch(text)
    if match is None or HEDGED.search(match[3]):
        return "", text
    return match[1] or match[2], match[3]


def region(text: str) -> tuple[str, str]:
    r"""-> the variable and the set of real numbers that an inequality, or its set-builder form, describes; ("", "").

    >>> region("x>3"), region(r"x<1 or x\ge2"), region(r"\mathbb{R}\setminus\{2\}")
    (('x', '(3,\\infty)'), ('x', '(-\\infty,1)\\cup[2,\\infty)'), ('', '(-\\infty,2)\\cup(2,\\infty)'))
    """
    text = text.strip()
    if ALL_REALS.fullmatch(text):
        return "", r"(-\infty,\infty)"
    if without := re.fullmatch(r"\\mathbb\{R\}(?:\\setminus|\\backslash|-) ?\\\{(.*)\\\}", text):
        return "", _all_but(without[1])
    if builder := re.fullmatch(r"\\\{(.*?)(?:\||:)(.*)\\\}", text):
        variable, inside = re.fullmatch(r"(.*?)(\\in ?\\mathbb\{R\})?", builder[1].strip()).groups()
        name, interval = region(re.sub(rf"^{re.escape(variable)}\\in ?\\mathbb\{{R\}}(?:,| and )", "", builder[2]))
        return (name, interval) if variable == name else ("", "")
    if len(either := re.split(r" ?\bor\b ?", text)) > 1:
        regions = [_inequality(part.strip()) for part in either]
        if all(interval for _, interval in regions) and len({name for name, _ in regions}) == 1:
            return regions[0][0], r"\cup".join(interval for _, interval in regions)
        return "", ""
    return _inequality(text)


def _inequality(text: str) -> tuple[str, str]:
    """x<a, a<x, a<x<b and their like."""
    signs = [RELATIONS.get(sign, sign) for sign in RELATION.findall(text)]
    sides = [side.strip() for side in RELATION.split(text)]
    if not 1 <= len(signs) <= 2 or not all(sides) or any(len(split(side, ",")) > 1 or "=" in side for side in sides):
        return "", ""
    if signs == ["!="] and VARIABLE.fullmatch(sides[0]) and VARIABLE.fullmatch(sides[1]) is None:
        return sides[0], _all_but(sides[1])
    if "!=" in signs:
        return "", ""
    if signs[0][0] == ">":  # from small to large
        signs, sides = [sign.replace(">", "<") for sign in signs[::-1]], sides[::-1]
    if any(sign[0] != "<" for sign in signs):
        return "", ""
    where = [i for i, side in enumerate(sides) if VARIABLE.fullmatch(side)]
    if len(sides) == 3:
        if where != [1]:
            return "", ""
        left, right = "[" if signs[0] == "<=" else "(", "]" if signs[1] == "<=" else ")"
        return sides[1], f"{left}{sides[0]},{sides[2]}{right}"
    if len(where) != 1 or not _is_constant(sides[1 - where[0]]):
        return "", ""
    if where == [0]:
        return sides[0], rf"(-\infty,{sides[1]}{']' if signs[0] == '<=' else ')'}"
    return sides[1], rf"{'[' if signs[0] == '<=' else '('}{sides[0]},\infty)"


def _all_but(points: str) -> str:
    """The reals without these points, in their order; "" where the order of several is not plain."""
    values = [normal(point) for point in split(points, ",")]
    if len(values) > 1:
        if not all(map(number, values)):
            return ""
        values.sort(key=lambda value: number(value)[0])
    if not all(values) or not all(map(_is_constant, values)):
        return ""
    ends = [r"-\infty", *values, r"\infty"]
    return r"\cup".join(f"({low},{high})" for low, high in zip(ends, ends[1:]))
