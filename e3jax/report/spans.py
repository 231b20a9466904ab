"""What a response's text is made of, as spans of characters: attempts, verifications, E2C's phases, thinking, answer.

The same readings as the metrics': e3jax/metrics/exploration.py counts what is marked here.

    found = text_spans("7 5 2 ?24", "7 + 5 * 2 = 12 24 ?24 0 yes <answer> 7 + 5 * 2 </answer>")
"""

import re
from typing import NamedTuple

from e3jax.metrics.exploration import STARTS, attempts_text
from e3jax.phases import TAG, begins_plan, read_text
from e3jax.tasks.countdown_traces import parse
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
ANSWER = re.compile(r"<answer>.*?</answer>|\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}", re.DOTALL)


class Span(NamedTuple):
    """Characters [start, end) of a response."""

    start: int
    end: int
    kind: str  # of KINDS


def text_spans(prompt: str, text: str) -> list[Span]:
    """All spans of a response; they may lie inside one another.

    >>> [(s.start, s.end, s.kind) for s in text_spans("1 2 ?3", "1 + 2 = 3 ?3 0 yes")]
    [(0, 18, 'right'), (6, 18, 'check'), (0, 18, 'solution')]
    """
    found = [Span(m.start(), m.end(), "answer") for m in ANSWER.finditer(text)]
    if TAG.search(text):
        phases = read_text(text, begun=begins_plan(prompt))
        found += [Span(*span, kind) for span, kind in zip(phases[:2], ("plan", "execution")) if span and span[1]]
        return found
    if CALCULATOR.fullmatch(prompt):
        return found + _calculator(prompt, text)
    if "</think>" in text or text.lstrip().startswith("<think>") or prompt.rstrip().endswith("<think>"):
        end = text.rfind("</think>")
        found.append(Span(0, len(text) if end < 0 else end, "thinking"))
    at = 0
    for paragraph in attempts_text(text):  # an attempt by the paper's rule
        if paragraph.strip():
            found.append(Span(at, at + len(paragraph), "open"))
        at += len(paragraph) + 2
    for sentence in re.finditer(r"[^.!?\n]+", text):
        if sentence[0].strip().lower().startswith(STARTS):
            start = sentence.end() - len(sentence[0].lstrip())
            found.append(Span(start, sentence.end(), "check"))
    return found


def attempts(spans: list[Span]) -> int:
    """How many attempts there are among them."""
    return sum(s.kind in ("right", "wrong", "open") for s in spans)


def _calculator(prompt: str, text: str) -> list[Span]:
    numbers, target = prompt.split(" ?")
    meta = {"form": "calculator", "numbers": [int(n) for n in numbers.split()], "target": int(target)}
    words = [m.span() for m in re.finditer(r"\S+", text)]  # what the parser counts in
    found, at = [], 0
    for attempt in parse(text, Problem("", "countdown", prompt, target, "", meta))[0]:
        said = attempt.text.split()
        start, end = words[at][0], words[at + len(said) - 1][1]
        found.append(Span(start, end, "right" if attempt.verdict == attempt.truth else "wrong"))
        if "=" in said:
            found.append(Span(words[at + said.index("=")][0], end, "check"))
        if attempt.truth:
            found.append(Span(start, end, "solution"))
        at += len(said)
    return found
