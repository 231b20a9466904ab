"""What all graders share: the verdict, and the answer cut out of a response.

last_answer("<think>…</think> <answer> 1 + 2 </answer>")  # "1 + 2"
"""

from typing import NamedTuple

OPEN, CLOSE = "<answer>", "</answer>"


class Grade(NamedTuple):
    """A reward in [0, 1] and why: a short code, logged as counts."""

    score: float
    reason: str


def last_answer(text: str, *, last_line_only: bool = False) -> str | None:
    """The stripped content of the last complete <answer>…</answer> of a response, or None.

    A tag pair is an <answer> and the first </answer> after it; of two openings in a row the later
    one counts. `last_line_only` is the reference's rule (ALGORITHMS A.4): only the text after the
    last newline is looked at, so a newline inside or after the answer means no answer. Give it the
    response alone: the paper's prompt has an <answer> too. Linear in len(text).

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
