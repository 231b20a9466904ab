r"""Multiple choice: the letter of the last box, or of the last "answer: X", against the problem's letter.

    grade_text(problem, r"… </think> \boxed{\text{(C)}}", where="response")  # Grade(score=1.0, reason="correct")

Reasons: correct; no_thinking (extract.boxed_answer); no_answer (neither form); not_a_choice (a box, but no single
letter in it, or one that the problem does not have); wrong_choice.
"""

import re

from e3jax.rewards.extract import THINKING_ENDS, Grade, boxed_answer
from e3jax.rewards.latex import normal
from e3jax.rewards.statements import labelled

MAX_CHARS = 1000
LAST_CHOICE = "J"  # MMLU-Pro's tenth
SMALL = re.compile(r"^\(?[a-j](?=[).:]|$)")
SAID = re.compile(r"(?i:\banswer(?: is|:| is:)?)[ \n]{0,4}(?:\*\*)?\(?([A-Z])\b", re.ASCII)


def grade_text(problem, text: str, *, where: str) -> Grade:
    """Grade a response; `problem.answer` is a capital letter, `where` as in extract.boxed_answer.

    In the box: "C", "(C)", "c", "C. because", "\\text{C) …}"; two letters are none, "C) or D)" too. Without
    any box the last "answer is C" or "Answer: C" of the text after the thinking counts.
    """
    answer, why = boxed_answer(text, where=where)
    if answer is None:
        said = None if why == "no_thinking" else _last_said(text)
        if said is None:
            return Grade(0.0, why)
        return _judge(problem, said)
    if len(answer) > MAX_CHARS:
        return Grade(0.0, "not_a_choice")
    letter, _ = labelled(SMALL.sub(lambda m: m[0].upper(), normal(answer), count=1))
    return _judge(problem, letter) if letter else Grade(0.0, "not_a_choice")


def _last_said(text: str) -> str | None:
    """Return the letter of the last "answer is X" after the thinking."""
    said = SAID.findall(text[text.rfind(THINKING_ENDS) + 1 :])
    return said[-1] if said else None


def _judge(problem, letter: str) -> Grade:
    if letter > LAST_CHOICE:
        return Grade(0.0, "not_a_choice")
    right = letter == problem.answer
    return Grade(float(right), "correct" if right else "wrong_choice")
