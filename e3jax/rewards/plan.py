r"""Read E2C's responses: the answer of a well-formed execution, and the share of the plan that it follows.

    grade_text(problem, "1. add</EXPLORATION><EXECUTION>1. add: \boxed{2}</EXECUTION>", where="execution", grade=…)
    share_b = [plan_share(p, text, "sound", task_of(p).followed) for p, text in zip(problems, texts)]

The released grader (`verl/utils/reward_score/e2c.py` of E2C's code; docs/algorithms.md, "E2C") is kept under its own
name, where="e2c_original" and following="original", to compare with its numbers. Its format check passes everything,
and its comparison of answers is UNSOUND (`original_correct`). "As released" below means as there.
"""

import re
from collections.abc import Callable, Sequence
from itertools import islice

from e3jax.errors import UserError
from e3jax.phases import TAGS, begins_plan, split_text
from e3jax.rewards.extract import Grade, last_boxed

UNSOUND = (
    "task.where='e2c_original' is E2C's released grader and UNSOUND: it drops minus signs and decimal points, so that "
    "-5 is 5, 1.5 is 15 and 1/12 is 11/2. Use it only to compare with the paper's numbers; 'execution' is sound"
)
FOLLOWING = ("off", "sound", "original")
HALF = 0.5  # of a planned step's words that an executed step must have (own choice: .3 is met by an article)
ORIGINAL_SHARE = 0.3  # as released
STEP = re.compile(r"^[ \t*#]*(?:step\s+)?\d+[.):]+\**\s+(.+)$", re.IGNORECASE | re.MULTILINE)
TITLE = re.compile(r"(?<!\d)\d+\.\s*(.*?)\n")  # of a step as the original reads it
MOST_STEPS, MOST_WORDS = 64, 64  # read of a text: bounds the work
TAIL = 300  # characters in which the original looks for the box


def grade_text(problem, text: str, *, where: str, grade: Callable[..., Grade]) -> Grade:
    r"""Grade a response of two phases. `grade` is the task's grader of an answer (math, mcq, multiplication).

    "execution": a malformed response scores 0, reason "format_…" (phases.FAULTS); else its execution alone is graded,
    so that an answer in the plan is none. "e2c_original": the last \boxed within the last 300 characters, no format
    check; reasons end in "_unsound".
    """
    if where == "execution":
        _, execution, fault = split_text(text, begun=begins_plan(problem.question))
        return Grade(0.0, f"format_{fault}") if fault else grade(problem, execution, where="anywhere")
    if where != "e2c_original":
        raise UserError(f"where={where!r}: of two phases an answer is read in 'execution' or as 'e2c_original'")
    answer = last_boxed(text[-TAIL:])
    if answer is None:
        return Grade(0.0, "no_answer_unsound")
    right = original_correct(last_boxed(problem.answer) or problem.answer, answer)
    return Grade(float(right), "correct_unsound" if right else "wrong_value_unsound")


def original_correct(gold: str, answer: str) -> bool:
    r"""Return whether two answers are equal as released, UNSOUND: by their ASCII letters and digits, or as fractions.

    >>> original_correct("5", "-5"), original_correct("15", "1.5"), original_correct(r"\frac{1}{12}", r"\frac{11}{2}")
    (True, True, True)
    """
    readings = [{_bare(text.replace(r"\frac", "")), _value(text)} - {""} for text in (gold, answer)]
    return bool(readings[0] & readings[1])


def _bare(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _value(text: str) -> str:
    """Return the digits of a fraction's value as a float, "" for anything else."""
    # 300 digits are more than an answer in TAIL characters has, and fit into a float
    fraction = re.search(r"\\frac\{(\d{1,300})\}\{(\d{1,300})\}|\b(\d{1,300})/(\d{1,300})", text)
    if not fraction:
        return ""
    above, below = (int(n) for n in fraction.groups() if n)
    return _bare(str(above / below)) if below else ""


# ---- is the plan followed


def steps(text: str) -> list[list[str]]:
    """Return the numbered lines of a plan or execution ("1. …", "**2.** …", "Step 3: …") as case-folded words.

    >>> steps("1. Add both.\\n2) **Halve** it\\nso 1.5 is half")
    [['add', 'both'], ['halve', 'it']]
    """
    titles = [re.findall(r"\w+", title.casefold())[:MOST_WORDS] for title in _first(STEP, text)]
    return [words for words in titles if words]


def followed(plan: str, execution: str) -> float:
    """Return the share, in [0, 1], of the plan's steps that the execution takes, in order, each by another step.

    A step is taken by one that has at least half of the plan step's words, in order. No numbered step: 0.
    """
    planned, taken = steps(plan), steps(execution)
    if not planned:
        return 0.0
    same = [[common(p, t) >= HALF * len(p) for t in taken] for p in planned]
    return _longest(len(planned), len(taken), lambda i, j: same[i][j]) / len(planned)


def followed_original(text: str) -> float:
    """Return the share of planned titles that some executed title resembles, in whatever order, as released.

    One resembles the other if it contains it, or shares more than 0.3 of the words of the SHORTER one (the released
    docstring says: of the planned one), so that an executed step of one word takes any plan that has it. The text is
    split at <EXECUTION>, else at </EXPLORATION>, else at a second line "1. " (inferred).
    """
    tag = next((t for t in (TAGS[2], TAGS[1]) if t in text), "")
    plan, _, execution = text.partition(tag) if tag else _second_list(text)
    planned, taken = (_titles(part.replace("*", "")) for part in (plan, execution))

    def resembles(a: str, a_words: list[str], b: str, b_words: list[str]) -> bool:
        words = sorted((a_words, b_words), key=len)
        return a in b or (bool(words[0]) and common(*words) / len(words[0]) > ORIGINAL_SHARE)

    followed_steps = sum(any(resembles(*a, *b) for b in taken) for a in planned)
    return followed_steps / max(len(planned), 1)


def _titles(text: str) -> list[tuple[str, list[str]]]:
    """Return the first steps as released, each with its words; behind the last line break there is none."""
    titles = _first(TITLE, text[: text.rfind("\n") + 1])
    return [(title, title.casefold().split()[:MOST_WORDS]) for title in titles]


def _first(pattern: re.Pattern, text: str) -> list[str]:
    """Return what the pattern captures, MOST_STEPS times at most."""
    return [match[1] for match in islice(pattern.finditer(text), MOST_STEPS)]


def _second_list(text: str) -> tuple[str, str, str]:
    at = text.find("\n1. ", text.find("1. ") + 1)
    return (text, "", "") if at < 0 else (text[:at], "", text[at:])


def common(a: Sequence, b: Sequence) -> int:
    """Return the length of the longest common subsequence.

    A row of the table is one number (Hyyrö 2004), which is quick for long texts.

    >>> common("abcd", "axcd")
    3
    """
    places, full = {}, (1 << len(a)) - 1
    for i, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << i
    row = full
    for item in b:
        matches = row & places.get(item, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(a) - row.bit_count()


def _longest(n: int, m: int, same: Callable[[int, int], bool]) -> int:
    """Return how many pairs (i, j) with same(i, j) a sequence can have in which both rise."""
    best = [0] * (m + 1)
    for i in range(n):
        row = [0]
        for j in range(m):
            row.append(best[j] + 1 if same(i, j) else max(best[j + 1], row[j]))
        best = row
    return best[m]


def plan_share(problem, text: str, following: str, share: Callable[[str, str], float]) -> float:
    """Return the share of a response's plan that its execution follows; 0 where it has no two phases.

    `following` "sound": `share` of (plan, execution), which is `followed` but for tasks that have their own.
    """
    if following == "original":
        return followed_original(text)
    plan, execution, fault = split_text(text, begun=begins_plan(problem.question))
    if fault:
        return 0.0
    return share(plan, execution)
