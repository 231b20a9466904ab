"""What a response does with its budget: attempts, verifications, giving up, repeating itself (e3 §3, §4, App. N).

features = explore(problem, text, done=True, correct=False)      # one response -> dict of numbers
"""

import re

from e3jax.tasks.problem import Problem
from e3jax.tasks.traces import is_parsed, parse

STARTS = (
    "wait",
    "but wait",
    "alternatively",
    "is there another way",
    "but let me double",
    "but hold on",
)
EQUATION = re.compile(r"\b\d+\s*[-+*/]\s*\d+\s*=\s*\d+(?:\.\d+)?\b", re.ASCII)  # ALGORITHMS A.7


def verifications_paper(text: str) -> int:
    """Sentences that start with one of App. N's phrases ("Wait", "But wait", "Alternatively", …).

    >>> verifications_paper("3+4=7. Wait, that is 7. But wait! Alternatively 4*2.")
    3
    """
    sentences = re.split(r"[.!?\n]+", text)
    return sum(s.strip().lower().startswith(STARTS) for s in sentences)


def verifications_code(text: str) -> int:
    """Lines with "wait" or "approximation" anywhere, or that start with a phrase (`metric_utils.py`, broader).

    >>> verifications_code("an approximation\\nbut we waited\\nfine")
    2
    """
    lines = [line.strip().lower() for line in text.split("\n")]
    return sum("wait" in s or "approximation" in s or s.startswith(STARTS) for s in lines)


def attempts_text(text: str) -> list[str]:
    """Countdown attempts of free text: its paragraphs (the reference's `split("\\n\\n")`)."""
    return text.split("\n\n")


def attempt_key(attempt: str) -> str:
    """What makes two attempts the same: the first equation of each line (ALGORITHMS A.7, unique attempts)."""
    found = (EQUATION.search(line) for line in attempt.split("\n"))
    return "\n".join(m.group(0) for m in found if m)


def repetition(text: str, *, tail: int = 100) -> int:
    """Overlapping occurrences of the last `tail` characters beyond the last one; 0 below 50 characters.

    `error_analysis.py` calls a response repeating when its count (the last one included) exceeds 5.

    >>> repetition("ab" * 60)
    10
    """
    if len(text) < 50:
        return 0
    end, count, at = text[-tail:], 0, -1
    while (at := text.find(end, at + 1)) >= 0:
        count += 1
    return count - 1


def distinct_attempts(proposals_pg: list[list[list[str]]], right_pg) -> float:
    """e3 Fig. 6 (left) at one checkpoint: distinct attempts in the wrong responses to a problem, mean over problems.

    `proposals_pg` [P][G] lists of attempts, `right_pg` [P][G]. Only problems with less than half of their responses
    right count (App. G.1: else the better policy would show fewer); NaN when there is none.

    >>> distinct_attempts([[["1+2", "1*2"], ["1+2"], ["2-1"]], [["9"], ["8"]]], [[0, 0, 1], [1, 1]])
    2.0
    """
    hard = [(ps, rs) for ps, rs in zip(proposals_pg, right_pg) if sum(rs) < len(rs) / 2]
    counts = [len({a for p, right in zip(ps, rs) if not right for a in p}) for ps, rs in hard]
    return sum(counts) / len(counts) if counts else float("nan")


def explore(problem: Problem, text: str, *, done: bool, correct: bool) -> dict[str, float]:
    """Counts of one response; a ratio's parts are kept apart so that means over responses can be exact.

    attempts, unique: proposals and distinct proposals; verifications: checks made; gave_up: ended by itself with a
    wrong answer without having found a "yes" (tasks/traces.py) or with a wrong answer (free text).
    right_verdicts / verdicts: the verifier's accuracy; false_yes / yes: how often "yes" is wrong.
    """
    if not is_parsed(problem):
        keys = [attempt_key(a) for a in attempts_text(text)]
        return {
            "attempts": len(keys),
            "unique": len(set(filter(None, keys))),
            "verifications": verifications_paper(text),
            "verifications_code": verifications_code(text),
            "gave_up": done and not correct,
            "repetition": repetition(text),
        }
    attempts, _ = parse(text, problem)
    yes, checked = [a for a in attempts if a.verdict], [a for a in attempts if a.verdict is not None]
    return {
        "attempts": len(attempts),
        "unique": len({a.proposal for a in attempts}),
        "verifications": len(checked),
        "verdicts": len(checked),
        "right_verdicts": sum(a.verdict == a.truth for a in checked),
        "yes": len(yes),
        "false_yes": sum(not a.truth for a in yes),
        "gave_up": done and not correct and not yes,
        "repetition": repetition(text),
    }
