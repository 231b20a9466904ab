"""Make text of others (a model, a data set, the name of a file) harmless for a terminal and for a page.

    print(printable(response, lines=True))      # ESC, CSI, OSC 8, bidi overrides become U+FFFD

Nothing else stands between a text and a person: every line of a run (log.py), every page (report/page.py) and every
tool that prints a response goes through here.
"""

import re

# Control characters but "\n" and "\t", and the marks that turn the direction of what follows.
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
BREAKS = re.compile(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")


def printable(text: object, *, lines: bool) -> str:
    r"""Return `str(text)` without what steers a terminal or a browser; half a surrogate becomes "?".

    With `lines` line breaks and tabs stay, as a response may have them; without, each run of them becomes a blank, so
    that a name cannot begin a line of its own.

    >>> printable("a\x1b[2Jb\nc", lines=True), printable("a\nerror: b", lines=False)
    ('a�[2Jb\nc', 'a error: b')
    """
    text = str(text) if lines else BREAKS.sub(" ", str(text))
    return STEERING.sub("\N{REPLACEMENT CHARACTER}", text).encode(errors="replace").decode()
