"""One question with a checkable answer: what task files make and graders read.

Every generator makes problem i from (seed, i) alone, so that a run can be resumed, sharded or
re-read without storing any problem.

    problem = countdown.paper_problem(0, 7, numbers=4); print(problem.question)
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """A question, the answer it is graded against, and what the grader needs besides.

    For Countdown: `question` is the whole prompt, `answer` is str(target) and `meta` is
    {"form": "paper" | "calculator", "numbers": (int, …), "target": int}.
    """

    id: str  # unique over task, family, split, size, seed and index
    task: str  # names the grader: rewards/grade.py
    question: str
    answer: str
    difficulty: str  # the label that metrics are grouped by, as "3 numbers"
    meta: dict[str, Any]
