r"""One pass over an answer's LaTeX: what only changes its looks goes, what takes an argument gets it in braces.

    rebuilt(r"{\color{blue}\mathbf{3}\dfrac12}")    # r"3\frac{1}{2}"
    rebuilt(r"{1 \over 2} \text{ cm}")              # r"\frac{1 }{ 2} \text{ cm}"

Text is cut into commands, characters and groups; a group is written when its brace closes, so nothing recurses and the
time is linear up to a factor for nesting. Commands that are not in a table stay as they are, with their groups.
"""

import re

# what is no part of the answer: delimiters, sizes, styles that hold until the group ends
NOTHING = set(
    r"""left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr bigm Bigm displaystyle textstyle
    scriptstyle scriptscriptstyle limits nolimits displaylimits rm bf it sf tt sl cal normalfont bfseries itshape
    rmfamily sffamily ttfamily mdseries upshape boldmath unboldmath tiny scriptsize footnotesize small normalsize large
    Large LARGE huge Huge centering noindent strut mathstrut nobreak allowbreak null relax""".split()
)
DELIMITERS = {r"\(", r"\)", r"\[", r"\]", "$"}
BLANKS = {r"\,", r"\;", r"\:", r"\!", r"\>", r"\/", r"\ ", r"\thinspace", r"\space", "~", "\t"}  # thousands may have
WIDE = {r"\quad", r"\qquad", r"\enspace", "\n", "\r"}  # two blanks, which part numbers
WITHOUT_ARGUMENT = {"hspace", "vspace", "phantom", "hphantom", "vphantom", "label", "tag", "color", "kern", "mspace"}
SECOND = {"textcolor", "colorbox"}  # the first argument is the colour
STYLES = set(
    "mathbf boldsymbol bm pmb bold mathit mathsf mathtt mathnormal underline uline boxed fbox framebox emph ensuremath"
    " mathord mathbin mathrel mathinner mathop".split()
)
TEXTS = set(
    "text textbf textit textrm textsf texttt textnormal textsc textup textmd textsl mbox hbox mathrm operatorname"
    " mathup".split()
)
TWO = {
    "frac": "frac",
    "dfrac": "frac",
    "tfrac": "frac",
    "cfrac": "frac",
    "sfrac": "frac",
    "nicefrac": "frac",
    "binom": "binom",
    "dbinom": "binom",
    "tbinom": "binom",
}
ONE = {
    "overline": "overline",
    "bar": "overline",
    "dot": "dot",
    "mathbb": "mathbb",
    "mathcal": "mathcal",
    "mathfrak": "mathfrak",
    "mathscr": "mathscr",
    "vec": "vec",
    "hat": "hat",
}
AROUND = {"aligned", "align", "align*", "gathered", "gather", "gather*", "equation", "equation*", "split", "math",
          "displaymath", "center"}  # fmt: skip  # environments that only say where the answer stands
OTHER_NAMES = {
    "leq": r"\le", "leqslant": r"\le", "geq": r"\ge", "geqslant": r"\ge", "lt": "<", "gt": ">", "neq": r"\ne",
    "lbrace": r"\{", "rbrace": r"\}", "degree": "°", "ldots": "...", "dots": "...", "cdots": "...", "colon": ":",
    "varnothing": r"\emptyset", "lor": " or ", "vee": " or ", "land": " and ", "R": r"\mathbb{R}",
    "reals": r"\mathbb{R}",
    "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "ast": "*", "lbrack": "[", "rbrack": "]",
    "smallsetminus": r"\setminus", "backslash": r"\setminus", "simeq": r"\approx", "approxeq": r"\approx",
    "thickapprox": r"\approx", "doteq": r"\approx", "pounds": "£", "euro": "€", "prime": "'", "textdegree": "°",
}  # fmt: skip
ESCAPED = {r"\%": "%", r"\$": "$", r"\&": "&", r"\#": "#", r"\_": "_"}
TOKEN = re.compile(r"\\qq?uad|\\[A-Za-z]+|\\.|.", re.DOTALL)
WORDS = re.compile(r"[A-Za-z .,'/-]*[A-Za-z][A-Za-z .,'/-]*")
ENDS_IN_COMMAND = re.compile(r"\\[A-Za-z]+$")


class Group(str):
    """What stands between a pair of braces, already rebuilt."""


def rebuilt(text: str) -> str:
    r"""Return the text in the form that rewards/latex.py reads.

    >>> rebuilt(r"\displaystyle \textcolor{red}{9}"), rebuilt(r"\sqrt[3]2"), rebuilt(r"x\not=2"), rebuilt(r"90^{\circ}")
    (' 9', '\\sqrt[3]{2}', 'x\\ne2', '90°')
    """
    stack: list[list[str]] = [[]]
    for token in TOKEN.findall(text):
        if token == "{":
            stack.append([])
        elif token == "}" and len(stack) > 1:
            group = Group(_written(stack.pop()))
            stack[-1].append(group)
        else:
            stack[-1].append(token)
    while len(stack) > 1:  # braces that nobody closes stay, and make the answer unreadable
        rest = _written(stack.pop())
        stack[-1].append("{" + rest)
    return _written(stack[0])


def _written(items: list[str]) -> str:
    """Return the text of one level, whose groups are rebuilt."""
    if items.count(r"\over") == 1:
        at = items.index(r"\over")
        return rf"\frac{{{_written(items[:at])}}}{{{_written(items[at + 1 :])}}}"
    queue, out, open_command = items[::-1], [], False
    while queue:
        token = queue.pop()
        piece = _piece(token, queue, open_command)
        if piece[:1].isalpha() and out and ENDS_IN_COMMAND.search(out[-1][-20:]):
            out.append(" ")
        out.append(piece)
        if piece.strip():  # a group behind a command that no table has is its argument, and so is the one behind that
            open_command = piece[0] == "{" if isinstance(token, Group) else piece[0] == "\\" and piece[1:].isalpha()
    return "".join(out)


def _piece(token: str, queue: list[str], open_command: bool) -> str:
    """Return what a token becomes; the queue (last first) gives its arguments."""
    if isinstance(token, Group):  # invisible, but for an argument and what is meant as a set
        return "{" + token + "}" if open_command or "," in token else str(token)
    if token in DELIMITERS or token in WIDE:
        return "  "
    if token in BLANKS:
        return " "
    if token in "^_":
        return _script(token, _argument(queue))
    if token[0] != "\\" or not token[1:].isalpha():
        return ESCAPED.get(token, token)
    name = token[1:]
    if name in NOTHING:
        if name in ("left", "right", "middle") and queue and queue[-1] == ".":
            queue.pop()
        return ""
    if name in WITHOUT_ARGUMENT:
        _starred(queue)
        _argument(queue)
        return "  "
    if name in SECOND:
        _starred(queue)
        _argument(queue)
        return _argument(queue) or ""
    if name in STYLES:
        return _argument(queue) or ""
    if name in TEXTS:
        _starred(queue)
        return _text(_argument(queue) or "")
    if name in TWO:
        top, bottom = _argument(queue), _argument(queue)
        return "\\" + TWO[name] + "".join("{" + part.strip() + "}" for part in (top, bottom) if part is not None)
    if name in ONE:
        return rf"\{ONE[name]}{{{(_argument(queue) or '').strip()}}}"
    if name in ("begin", "end") and queue and queue[-1] in AROUND:
        queue.pop()
        return "  "
    if name == "sqrt":
        return _root(queue)
    if name == "not":
        while queue and queue[-1] == " ":
            queue.pop()
        after = queue.pop() if queue and queue[-1] in ("=", r"\in") else ""
        return {"=": r"\ne", r"\in": r"\notin"}.get(after, token)
    return OTHER_NAMES.get(name, token)


def _argument(queue: list[str]) -> str | None:
    """Take a command's argument: a group, or the next command or character that is no blank; None at the end."""
    while queue:
        token = queue.pop()
        if isinstance(token, Group):
            return str(token)
        if token not in BLANKS | WIDE and token != " " and not (token[0] == "\\" and token[1:] in NOTHING | STYLES):
            return OTHER_NAMES.get(token[1:], token) if token[0] == "\\" else token
    return None


def _starred(queue: list[str]) -> None:
    """Take a star, and an optional argument in brackets, that stand before a command's argument."""
    if queue and queue[-1] == "*":
        queue.pop()
    if queue and queue[-1] == "[":
        _bracketed(queue)


def _bracketed(queue: list[str], closing: str = "]") -> str:
    """Take what stands from a bracket to the one that closes it, or to the end."""
    opening, inside, depth = queue.pop(), [], 1
    while queue:
        token = queue.pop()
        depth += (token == opening) - (token == closing)
        if depth == 0:
            break
        inside.append(token if not isinstance(token, Group) else "{" + token + "}")
    return "".join(inside)


def _root(queue: list[str]) -> str:
    r"""Take \sqrt's index and its argument, a bracket too."""
    while queue and queue[-1] == " ":
        queue.pop()
    index = f"[{_bracketed(queue)}]" if queue and queue[-1] == "[" else ""
    while queue and queue[-1] == " ":
        queue.pop()
    inside = rebuilt(_bracketed(queue, ")")) if queue and queue[-1] == "(" else _argument(queue)
    return rf"\sqrt{index}" if inside is None else rf"\sqrt{index}{{{inside.strip()}}}"


def _script(mark: str, argument: str | None) -> str:
    """Return an exponent or index, in braces where it has more than one character."""
    argument = (argument or "").strip()
    if mark == "^" and argument in (r"\circ", "°", "'"):
        return "'" if argument == "'" else "°"
    return f"{mark}{argument}" if re.fullmatch(r"[A-Za-z0-9]", argument) else f"{mark}{{{argument}}}"


def _text(content: str) -> str:
    r"""Return words as \text{…}, and whatever else was set as text as plain mathematics."""
    return rf"\text{{{content}}}" if WORDS.fullmatch(content) else f" {content} "
