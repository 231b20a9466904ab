r"""What all graders share: the verdict, and the answer cut out of a response.

last_answer("<think>…</think> <answer> 1 + 2 </answer>")  # "1 + 2"
boxed_answer(r"<think>…</think> so \boxed{\frac{1}{2}}", where="response")  # (r"\frac{1}{2}", "")
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from e3jax.errors import UserError

OPEN, CLOSE = "<answer>", "</answer>"
THINKING_ENDS = "</think>"
PLACES = ("response", "after_thinking", "anywhere")
# of models that plan (rewards/plan.py): in a well-formed execution; as E2C's own grader reads, which is unsound
IN_PHASES = ("execution", "e2c_original")
UNFINISHED = ("wrong", "graded")  # what a response without EOS is worth
WHERE = PLACES + IN_PHASES
MAX_BOXES = 16  # that may be one answer
OPENING, BRACES = re.compile(r"\s*+\{"), re.compile(r"(?>(?:\\.)+)|\{++|\}++", re.DOTALL)
BETWEEN = re.compile(  # what parts the boxes of one answer: ",", "and", "or", with mathematics' delimiters around them
    r"[\s$]*+(?>(?:\\[)\]])?)[\s$]*+(?>(?:\\q?quad\s*+)?)(?:,|(?>(?:,\s*+)?)(?>(?:\\text\{\s*+)?)(?:and|or)\s*+\}?+)\s*+(?>(?:\\q?quad)?)"
    r"[\s$]*+(?>(?:\\[(\[])?)[\s$]*+(?>(?:[A-Za-z]\s*=\s*)?)"
)
MOST_DIGITS = 640  # of an integer in a text; int() refuses 4,301, and can be set to refuse from 641 on


class Grade(NamedTuple):
    """A reward in [0, 1] and why: a short code, logged as counts."""

    score: float
    reason: str


def last_answer(text: str, *, last_line_only: bool = False) -> str | None:
    """Return the stripped content of the last complete <answer>…</answer> of a response, or None.

    A tag pair is an <answer> and the first </answer> after it; of two openings in a row the later
    one counts. `last_line_only` is the rule of e3's code: only the text after the last newline
    is looked at, so a newline inside or after the answer means no answer. Give it the response alone: the paper's
    prompt has an <answer> too. Linear in len(text).

    >>> last_answer("<answer>1+1</answer> no: <answer>1+2</answer> or <answer>")
    '1+2'
    """
    if last_line_only:
        text = text[text.rfind("\n") + 1 :]
    start = text.rfind(OPEN, 0, max(text.rfind(CLOSE), 0))
    if start < 0:
        return None
    start += len(OPEN)
    return text[start : text.index(CLOSE, start)].strip()


def integers(words: Sequence[str]) -> list[int] | None:
    """Return the words as integers; None if one of them is anything but digits, or has more than MOST_DIGITS.

    >>> integers(["7", "012"]), integers(["7", "-5"]), integers(["²"]), integers(["9" * 641])
    ([7, 12], None, None, None)
    """
    return [int(w) for w in words] if all(w.isdecimal() and len(w) <= MOST_DIGITS for w in words) else None


def boxed_answer(text: str, *, where: str) -> tuple[str | None, str]:
    r"""Return a response's answer as e3's mathematics reward reads it: (answer, ""), or (None, why there is none).

    `where`: "response" needs a </think> and takes the last \boxed of the whole response, inside the thinking too
    (e3's code); "after_thinking" looks only behind the last </think>; "anywhere" needs no
    </think>, for models that do not think. Boxes that are one answer come together (boxes_together). Why:
    "no_thinking", "no_answer". UserError for another `where`.

    >>> boxed_answer(r"a \boxed{1} </think> b", where="response")
    ('1', '')
    >>> boxed_answer(r"a \boxed{1} </think> b", where="after_thinking")
    (None, 'no_answer')
    """
    if where not in PLACES:
        raise UserError(f"where={where!r}: an answer is looked for in one of {', '.join(PLACES)}")
    end = text.rfind(THINKING_ENDS)
    if where != "anywhere" and end < 0:
        return None, "no_thinking"
    answer = boxes_together(text[end + len(THINKING_ENDS) :] if where == "after_thinking" else text)
    return (answer, "") if answer else (None, "no_answer")


def boxes_together(text: str) -> str | None:
    r"""Return the last box, after those that only a comma, "and" or "or" parts from it: one answer in several boxes.

    Nothing else joins boxes, so that of several attempts only the last counts, and of "\boxed{1} or \boxed{2}" neither
    alone. Linear in len(text): MAX_BOXES are looked at.

    >>> boxes_together(r"so $\boxed{(2,2)}$ and $\boxed{(6,2)}$."), boxes_together(r"\boxed{1}. No, \boxed{2}")
    ('(2,2), (6,2)', '2')
    """
    command = r"\boxed" if r"\boxed" in text else r"\fbox"
    start = text.rfind(command)
    last = _box_at(text, start, command)
    if last is None:
        return None
    boxes = [last[0]]
    while start > 0 and len(boxes) < MAX_BOXES:
        before = text.rfind(command, 0, start)
        box = _box_at(text, before, command, start)
        if box is None or not box[0] or not BETWEEN.fullmatch(text, box[1], start):
            break
        boxes.append(box[0])
        start = before
    return ", ".join(dict.fromkeys(boxes[::-1]))


def last_boxed(text: str) -> str | None:
    r"""Return what stands in the last \boxed{…} (\fbox{…} where there is no \boxed), stripped; None where none closes.

    Braces count as LaTeX counts them: \{ and \} open and close nothing. Linear in len(text).

    >>> last_boxed(r"\boxed{1} or \boxed{\left\{x^{2}\right.}")
    '\\left\\{x^{2}\\right.'
    >>> last_boxed(r"\boxed{1} or \boxed{2") is None
    True
    """
    command = r"\boxed" if r"\boxed" in text else r"\fbox"
    box = _box_at(text, text.rfind(command), command)
    return box[0] if box else None


def _box_at(text: str, start: int, command: str, limit: int | None = None) -> tuple[str, int] | None:
    """Return the stripped inside of the box that begins at `start`, and where it ends; None where none closes."""
    limit = len(text) if limit is None else limit
    opening = OPENING.match(text, start + len(command), limit) if start >= 0 else None
    if opening is None:
        return None
    depth = 1
    for run in BRACES.finditer(text, opening.end(), limit):
        braces = run.end() - run.start()
        if run[0][0] == "{":
            depth += braces
        elif run[0][0] == "}":
            if braces >= depth:
                end = run.start() + depth
                return text[opening.end() : end - 1].strip(), end
            depth -= braces
    return None
