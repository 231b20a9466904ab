"""Digests of a set's questions and answers, kept with responses and records, so that an edited set is noticed.

A response carries a digest of its question's tokens (rollout/responses.py), a record's line digests of what it counts.
Changed questions are refused, changed answers are graded again, and a set may grow or shrink.

    line["scored"] = what_was_scored(problems, samples)
    changed_since(line["scored"], problems, samples)      # later: [], or ["answers"]
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from e3jax.errors import UserError
from e3jax.log import RunLog
from e3jax.tasks.problem import Problem


def digest(value) -> str:
    """Return 16 hex digits that name a value which JSON can hold."""
    return hashlib.sha256(json.dumps(value, default=str, sort_keys=True).encode()).hexdigest()[:16]


def graded_by(problem: Problem) -> list:
    """Return all that a grade of this problem, and its records, depend on besides the question and the response."""
    meta = {name: value for name, value in problem.meta.items() if name != "problem"}  # the question's own words
    return [problem.task, problem.answer, problem.difficulty, meta]


def what_was_scored(problems: Sequence[Problem], samples: int) -> dict[str, Any]:
    """Return how many problems and samples a record counts, and digests of the questions and of what grades them."""
    return {
        "problems": len(problems),
        "samples": samples,
        "questions": digest([p.question for p in problems]),
        "answers": digest([graded_by(p) for p in problems]),
    }


def changed_since(before: dict[str, Any], problems: Sequence[Problem], samples: int) -> list[str]:
    """Return which of `what_was_scored` has changed: "questions" and "answers" of the problems that are in both."""
    both = min(before["problems"], len(problems))
    now = what_was_scored(problems[:both], samples)
    names = [name for name in ("questions", "answers") if both == before["problems"] and now[name] != before[name]]
    names += ["the number of problems"] if len(problems) != before["problems"] else []
    return names + (["the number of samples"] if samples != before["samples"] else [])


def is_scored(
    log: RunLog, known: dict[tuple[str, str], dict], label: str, name: str, problems: list[Problem], *, samples: int
) -> bool:
    """Return whether a record's line counts these problems and samples; say so where it did and no longer does."""
    line = known.get((label, name))
    if line is None:
        return False
    if "scored" in line:
        changed = changed_since(line["scored"], problems, samples)
    else:  # of an earlier version of this file
        now = {"problems": len(problems), "samples": samples}
        changed = [f"the number of {name}" for name in now if name in line and line[name] != now[name]]
        log.say(f"{label}, {name}: scored before digests of sets were kept; its questions are taken for those of now")
    if changed:
        log.say(
            f"{label}, {name}: since it was scored, {' and '.join(changed)} changed: it is scored again, with the "
            "responses that are there"
        )
    return not changed


def line_digests(problem: Problem, samples: int) -> dict[str, str]:
    """Return what a record with a line per problem says of its question, and of what grades `samples` responses."""
    return {"question": digest(problem.question), "graded": digest([*graded_by(problem), samples])}


def still_counts(
    log: RunLog, record: str, problems: Sequence[Problem], *, samples: int, wanted: Callable[[dict], bool]
) -> set[int]:
    """Return which problems a record's `wanted` lines count, by their "index"; for records with a line per problem.

    Raise UserError for a line of another question (its "question" and "problem"). A line whose answer has changed (its
    "graded") is dropped, with a sentence: the problem is drawn again, which gives the same responses.
    """
    changed, counted, untold = set(), set(), 0
    for line in log.read(record):
        index = line["index"]
        if not wanted(line) or index >= len(problems):
            continue
        problem = problems[index]
        now = line_digests(problem, samples)
        if line["problem"] != problem.id or line.get("question", now["question"]) != now["question"]:
            raise UserError(
                f"{log.workdir / record}: problem {index} was {line['problem']!r}; now it is {problem.id!r} or asks "
                "another question: the set has changed, bring the old one back or choose another --workdir"
            )
        untold += "graded" not in line
        counted.add(index)
        if line.get("graded", now["graded"]) != now["graded"]:
            changed.add(index)
    if untold:
        log.say(f"{record}: {untold} lines were written before digests were kept, and are taken as they are")
    if changed:
        log.say(
            f"{record}: the answers of {len(changed)} problems, or how many samples they get, have changed: they are "
            "drawn and graded again"
        )
        log.keep(record, lambda line: not (wanted(line) and line["index"] in changed))
    return counted - changed
