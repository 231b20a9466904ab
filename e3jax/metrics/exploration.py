"""What a response does with its budget: attempts, verifications, giving up, repeating itself (e3 §3, §4, App. N).

Every count has two forms. Traces (tasks whose row has a `parse`) are taken apart exactly: an attempt is a proposal with
its check. Free text is read as the paper and its code read it: paragraphs, equations, "Wait" (docs/algorithms.md,
"Measures"). What a language model writes for a task with traces in text is a trace if it has such an attempt, else free
text.

features = explore(problem, text, done=True, correct=False)      # one response -> dict of numbers
spans = attempt_spans(problem, text, close="</think>")           # where its attempts begin and end
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from e3jax.rewards.extract import last_answer, last_boxed
from e3jax.tasks.countdown_traces import Attempt
from e3jax.tasks.problem import Problem
from e3jax.tasks.table import Task, task_of
from e3jax.tasks.written_arithmetic import read_equations

STARTS = ("wait", "but wait", "alternatively", "is there another way", "but let me double", "but hold on")
EQUATION = re.compile(r"\b\d+\s*[-+*/]\s*\d+\s*=\s*\d+(?:\.\d+)?\b", re.ASCII)  # as e3's code reads
# what lies between sentences, and a phrase if one follows; it never fails, so that runs of newlines are read once
SENTENCE = re.compile(rf"(?:\A|[.!?\n])[\s.!?]*((?ai:{'|'.join(STARTS)}))?")


class Span(NamedTuple):
    """One attempt of a response, in characters (or tokens) from its beginning."""

    start: int
    chosen: int  # the end of what was chosen: of a trace the proposal with its "=" or ":", of free text all of it
    end: int
    verdict: bool | None  # what the model said of it; None where it does not say so in a word
    truth: bool | None  # whether it solves the problem; None where that is not known of an attempt


def shows_displays(task: Task) -> bool:
    """Return whether responses are attempts taken apart exactly, each an expression with the calculator's displays."""
    return task.parse is not None and task.equations and task.words is not None


def text_attempts(problem: Problem, text: str) -> list[Attempt]:
    """Return the attempts of a trace that a language model writes; none where a text, or its task, has no such."""
    task = task_of(problem)
    return task.parse(text, problem)[0] if task.parse and task.words is None else []


def verification_starts(text: str) -> list[int]:
    """Return where the sentences begin that start with one of e3 App. N's phrases.

    >>> verification_starts("3+4=7. Wait, that is 7. But wait!")
    [7, 24]
    """
    return [m.start(1) for m in SENTENCE.finditer(text) if m[1]]


def verifications_paper(text: str) -> int:
    """Count sentences that start with one of e3 App. N's phrases ("Wait", "But wait", "Alternatively", …).

    >>> verifications_paper("3+4=7. Wait, that is 7. But wait! Alternatively 4*2.")
    3
    """
    return len(verification_starts(text))


def verifications_code(text: str) -> int:
    """Count lines with "wait" or "approximation" anywhere, or a phrase at the start: e3's `metric_utils.py`, broader.

    >>> verifications_code("an approximation\\nbut we waited\\nfine")
    2
    """
    lines = [line.strip().lower() for line in text.split("\n") if line]
    return sum("wait" in s or "approximation" in s or s.startswith(STARTS) for s in lines)


def attempts_text(text: str) -> list[str]:
    """Return the Countdown attempts of free text: its paragraphs (e3's code: `split("\\n\\n")`)."""
    return text.split("\n\n")


def attempt_key(attempt: str) -> str:
    """Return what makes two attempts the same, as in e3's code: the first equation of each line."""
    matches = (EQUATION.search(line) for line in attempt.split("\n") if line)
    return "\n".join(m.group(0) for m in matches if m)


def repetition(text: str, *, tail: int = 100) -> int:
    """Count overlapping occurrences of the last `tail` characters beyond the last one; 0 below 50 characters.

    e3's `error_analysis.py` calls a response repeating when its count (the last one included) exceeds 5.

    >>> repetition("ab" * 60)
    10
    """
    if len(text) < 50:
        return 0
    end, count = text[-tail:], 0
    period = next(n for n in range(1, len(end) + 1) if end.startswith(end[n:]))  # copies are at least as far apart
    at, rest = text.find(end), end[-period:]
    while at >= 0:
        count += 1
        for more in (64, 1):  # what follows makes so many more copies that overlap: nothing to search for
            while text.startswith(more * rest, at + len(end)):
                count, at = count + more, at + more * period
        at = text.find(end, at + period)
    return count - 1


def attempt_keys(problem: Problem, text: str) -> list[str]:
    """Return what a response tried, in order: its proposals, or the equations of the paragraphs that have any."""
    task = task_of(problem)
    attempts = task.parse(text, problem)[0] if task.parse else []
    if attempts or (task.parse and task.words):
        return [a.proposal for a in attempts]
    return [key for key in map(attempt_key, filter(None, attempts_text(text))) if key]


def attempt_spans(problem: Problem, text: str, *, close: str) -> list[Span]:
    """Return a response's attempts up to `close`, the end of its thinking: "</think>", or "<answer>" in traces.

    Traces: what ends in a verdict. Countdown in other words: paragraphs with an equation. Other text: blocks that begin
    with a verification's phrase, and what comes before the first ("thought blocks", e3 §4).

    >>> spans = attempt_spans(Problem("p", "math", "?", "7", "", {}), "3+4=8. Wait, 7.</think>7", close="</think>")
    >>> [(s.start, s.chosen, s.end) for s in spans]
    [(0, 7, 7), (7, 15, 15)]
    """
    thinking, task = text.partition(close)[0], task_of(problem)
    if shows_displays(task):
        spans, words = [], re.finditer(r"\S+", thinking)
        for a in task.parse(thinking, problem)[
            0
        ]:  # attempts follow one another, whatever blanks are between their words
            its_words = [next(words) for _ in a.text.split()]
            chosen = len(a.proposal.split())
            chosen += chosen > 0 and its_words[chosen][0] == "="
            start, end = its_words[0].start(), its_words[-1].end()
            spans.append(Span(start, its_words[chosen - 1].end() if chosen else start, end, a.verdict, a.truth))
        return spans
    if attempts := text_attempts(problem, text):
        return [span for span in _places(text, attempts) if span.end <= len(thinking)]
    if task.equations:
        cuts = [0, *(m.end() for m in re.finditer("\n\n", thinking)), len(thinking)]
        blocks = [(a, a + len(thinking[a:b].rstrip("\n"))) for a, b in pairwise(cuts)]
        blocks = [(a, b) for a, b in blocks if EQUATION.search(thinking, a, b)]
    else:
        cuts = sorted({0, *verification_starts(thinking), len(thinking)})
        blocks = [(a, b) for a, b in pairwise(cuts) if thinking[a:b].strip()]
    return [Span(a, b, b, None, None) for a, b in blocks]


def _places(text: str, attempts: Sequence[Attempt]) -> Iterator[Span]:
    """Yield where attempts, which are words of the text in order, stand."""
    end = 0
    for a in attempts:
        start = text.index(a.text, end)
        end = start + len(a.text)
        yield Span(start, start + a.chosen, end, a.verdict, a.truth)


def detect(problem: Problem, text: str, *, close: str) -> tuple[int, int]:
    """Return e3 Def. 4.1's two counts: calls of p (generating a candidate) and of q(p(.)) (verifying one).

    Traces: p = proposals, and an answer that was none of them; q(p(.)) = verdicts. Text: p = attempts, at least one
    where there is an answer; q(p(.)) = App. N's sentences after the first attempt has begun.

    >>> detect(Problem("p", "math", "?", "7", "", {}), "3+4=8. Wait, 7.</think>7", close="</think>")
    (2, 1)
    """
    spans, task = attempt_spans(problem, text, close=close), task_of(problem)
    answer = last_answer(text)
    if shows_displays(task) or text_attempts(problem, text):
        answer = last_boxed(text) if task.boxed else answer
        given = answer is not None and " ".join(answer.split()) not in attempt_keys(problem, text)
        return len(spans) + given, sum(s.verdict is not None for s in spans)
    if not spans:
        return int(answer is not None or (not task.equations and bool(text.strip()))), 0
    starts = verification_starts(text.partition(close)[0])
    return len(spans), sum(at > spans[0].start for at in starts)


def equations(problem: Problem, text: str) -> int:
    """Count the equations that a response works out: matches of EQUATION; of traces displays, or equations in text.

    >>> from e3jax.tasks.countdown import calculator_problem
    >>> equations(calculator_problem(0, 0, numbers=3, split="train"), "7 + 5 * 2 = 12 24 ?24 0 yes")
    2
    """
    task = task_of(problem)
    if shows_displays(task):
        return displays(task.parse(text, problem)[0])
    if text_attempts(problem, text):
        return sum(1 for _ in read_equations(text))
    return len(EQUATION.findall(text))


def displays(attempts: Sequence[Attempt]) -> int:
    """Count the displays that a calculator's attempts show."""
    return sum(len(a.text.partition("=")[2].partition("?")[0].split()) for a in attempts)


def cumulative_unique(checkpoints: Sequence[dict[str, list[tuple[bool, list[str]]]]], *, most_success: float):
    """Return e3 Fig. 6 (left): distinct attempts so far, int [C, P'], a row for every checkpoint of a training run.

    A checkpoint is {problem id: [(correct, attempt keys) of every rollout]}. As e3 App. G.1 has it, only incorrect
    rollouts count (exploring, not rephrasing what was found), on the problems with success of `most_success` or less
    over all rollouts of all checkpoints; P' may be 0. Compare two runs on the problems that both keep.

    >>> first = {"a": [(False, ["1+1=2"]), (True, ["2+2=4"])], "b": [(True, ["3"]), (True, ["4"])]}
    >>> later = {"a": [(False, ["1+1=2", "1+2=3"]), (False, [])], "b": [(True, ["3"]), (False, ["5"])]}
    >>> cumulative_unique([first, later], most_success=0.5).tolist()
    [[1], [2]]
    """
    rollouts = {p: [r for c in checkpoints for r in c[p]] for p in checkpoints[0]}
    kept = [p for p, rs in rollouts.items() if np.mean([right for right, _ in rs]) <= most_success]
    sizes = np.zeros((len(checkpoints), len(kept)), int)
    for column, p in enumerate(kept):
        attempts: set[str] = set()
        for row, checkpoint in enumerate(checkpoints):
            attempts.update(key for right, keys in checkpoint[p] if not right for key in keys)
            sizes[row, column] = len(attempts)
    return sizes


def explore(problem: Problem, text: str, *, done: bool, correct: bool) -> dict[str, float]:
    """Return the counts of one response; a ratio's parts are kept apart so that means over responses can be exact.

    attempts, unique: proposals and distinct proposals; equations: worked out in them; verifications: checks made;
    gave_up: ended by itself with a wrong answer, in parsed attempts without having found a "yes".
    right_verdicts / verdicts: the verifier's accuracy; false_yes / yes: how often "yes" is wrong.
    false_equations / read_equations: errors of arithmetic, in the text of language models.
    """
    task = task_of(problem)
    attempts = task.parse(text, problem)[0] if task.parse else []
    yes, checked = [a for a in attempts if a.verdict], [a for a in attempts if a.verdict is not None]
    counts = {"repetition": repetition(text)}
    if task.parse:
        counts |= {
            "verdicts": len(checked),
            "right_verdicts": sum(a.verdict == a.truth for a in checked),
            "yes": len(yes),
            "false_yes": sum(not a.truth for a in yes),
        }
    if task.parse is None or task.words is None:  # of all of a task's responses, because means are over them together
        truths = [one.true for one in read_equations(text)]
        counts["verifications_code"] = verifications_code(text)
        counts |= {"read_equations": len(truths), "false_equations": truths.count(False)}
    if attempts or (task.parse and task.words):
        worked = displays(attempts) if shows_displays(task) else equations(problem, text) if task.words else len(truths)
        return counts | {
            "attempts": len(attempts),
            "unique": len({a.proposal for a in attempts}),
            "equations": worked,
            "verifications": len(checked),
            "gave_up": done and not correct and not yes,
        }
    return counts | {
        "attempts": len(attempts_text(text)),
        "unique": len(set(attempt_keys(problem, text))),
        "equations": equations(problem, text),
        "verifications": verifications_paper(text),
        "gave_up": done and not correct,
    }
