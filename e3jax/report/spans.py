"""What a response's text is made of, as spans of characters: attempts, verifications, E2C's phases, thinking, answer.

The readings are the metrics' own (e3jax/metrics/exploration.py): what is marked here is counted there.

    found = text_spans("7 5 2 ?24", "7 + 5 * 2 = 12 24 ?24 0 yes <answer> 7 + 5 * 2 </answer>")
"""

import re
from typing import NamedTuple

from e3jax.metrics.exploration import attempt_spans, verification_starts
from e3jax.phases import TAG, begins_plan, read_text
from e3jax.rewards.extract import CLOSE, OPEN
from e3jax.tasks.problem import Problem

# kind -> (what the legend says, the sign at its end)
KINDS = {
    "plan": ("plan (exploration)", ""),
    "execution": ("execution", ""),
    "thinking": ("thinking", ""),
    "answer": ("answer", ""),
    "right": ("attempt, the model's verdict is right", "✓"),
    "wrong": ("attempt, its verdict is wrong", "✗"),
    "open": ("attempt, no verdict", ""),
    "solution": ("really a solution", "★"),
    "check": ("verification", ""),
}
CALCULATOR = re.compile(r"\d{1,9}(?: \d{1,9})+ \?\d{1,9}")  # tasks/countdown_traces.py's prompts
SENTENCE = re.compile(r"[^.!?\n]+")
ANSWER = re.compile(r"<answer>|\\boxed\s*\{")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} open and close nothing, as for the graders


class Span(NamedTuple):
    """Characters [start, end) of a response."""

    start: int
    end: int
    kind: str  # of KINDS


def text_spans(prompt: str, text: str) -> list[Span]:
    """All spans of a response; they may lie inside one another.

    >>> [(s.start, s.end, s.kind) for s in text_spans("1 2 ?3", "1 + 2 = 3 ?3 0 yes")]
    [(0, 18, 'right'), (7, 18, 'check'), (0, 18, 'solution')]
    """
    found = answer_spans(text)
    if TAG.search(text):
        phases = read_text(text, begun=begins_plan(prompt))
        return found + [Span(*span, kind) for span, kind in zip(phases[:2], ("plan", "execution")) if span]
    problem = Problem("", "math", prompt, "", "", {})
    close = "</think>"
    if CALCULATOR.fullmatch(prompt) and text.split(" ") == text.split():  # as its tokenizer writes
        numbers, target = prompt.split(" ?")
        meta = {"form": "calculator", "numbers": [int(n) for n in numbers.split()], "target": int(target)}
        problem, close = Problem("", "countdown", prompt, target, "", meta), "<answer>"
    elif close in text or text.lstrip().startswith("<think>") or prompt.rstrip().endswith("<think>"):
        found.append(Span(0, len(text.partition(close)[0]), "thinking"))
    for a in attempt_spans(problem, text, close=close):
        judged = "open" if a.verdict is None else "right" if a.verdict == a.truth else "wrong"
        found.append(Span(a.start, a.end, judged))
        if a.chosen < a.end:
            found.append(Span(a.chosen, a.end, "check"))
        if a.truth:
            found.append(Span(a.start, a.end, "solution"))
    starts = [] if problem.meta else verification_starts(text)
    return found + [Span(start, SENTENCE.match(text, start).end(), "check") for start in starts]


def answer_spans(text: str) -> list[Span]:
    r"""Every <answer>…</answer> and \boxed{…} that is closed, one behind the other. Linear in len(text).

    >>> [text[s.start : s.end] for text in [r"<answer> \boxed{1} </answer> \boxed{\frac{1}{2}} \boxed{"]
    ...  for s in answer_spans(text)]
    ['<answer> \\boxed{1} </answer>', '\\boxed{\\frac{1}{2}}']
    """
    closed, opened = {}, []  # where the brace that stands at a place is closed
    for brace in BRACE.finditer(text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            closed[opened.pop()] = brace.end()
    found, last = [], text.rfind(CLOSE)
    for mark in ANSWER.finditer(text):
        if found and mark.start() < found[-1].end:
            continue  # inside an answer
        if mark[0] != OPEN and mark.end() - 1 in closed:
            found.append(Span(mark.start(), closed[mark.end() - 1], "answer"))
        elif mark[0] == OPEN and mark.end() <= last:
            found.append(Span(mark.start(), text.index(CLOSE, mark.end()) + len(CLOSE), "answer"))
    return found


def attempts(spans: list[Span]) -> int:
    """How many attempts there are among them."""
    return sum(s.kind in ("right", "wrong", "open") for s in spans)
