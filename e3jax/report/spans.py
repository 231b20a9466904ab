"""What a response's text is made of, as spans of characters: attempts, verifications, E2C's phases, thinking, answer.

The readings are the metrics' own (e3jax/metrics/exploration.py): what is marked here is counted there.

    found = text_spans("7 5 2 ?24", "7 + 5 * 2 = 12 24 ?24 0 yes <answer> 7 + 5 * 2 </answer>")
"""

import re
from typing import NamedTuple

from e3jax.metrics.exploration import attempt_spans, verification_starts
from e3jax.phases import TAG, begins_plan, read_text
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
CALCULATOR = re.compile(r"\d+(?: \d+)+ \?\d+")  # tasks/countdown_traces.py's prompts
SENTENCE = re.compile(r"[^.!?\n]+")
ANSWER = re.compile(r"<answer>.*?</answer>|\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}", re.DOTALL)


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
    found = [Span(m.start(), m.end(), "answer") for m in ANSWER.finditer(text)]
    if TAG.search(text):
        phases = read_text(text, begun=begins_plan(prompt))
        return found + [Span(*span, kind) for span, kind in zip(phases[:2], ("plan", "execution")) if span]
    problem = Problem("", "text", prompt, "", "", {})
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


def attempts(spans: list[Span]) -> int:
    """How many attempts there are among them."""
    return sum(s.kind in ("right", "wrong", "open") for s in spans)
