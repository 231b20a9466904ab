"""Traces of Countdown with plans are what the grader calls right, and honest where the plan is wrong; in text, too."""

import re

import numpy as np
import pytest

from e3jax.phases import OPEN, split_text
from e3jax.rewards.countdown_plans import Step, followed
from e3jax.rewards.plan import plan_share
from e3jax.tasks import countdown_plans_text as in_text
from e3jax.tasks.countdown_plans import WORDS, Habits, draw_plan, plan_trace
from e3jax.tasks.grade import grade_one
from e3jax.tasks.problem import Problem
from e3jax.tasks.table import TASKS
from e3jax.tasks.written_arithmetic import false_equations, read_equations
from e3jax.tokenizer import WordTokenizer

PROBLEM = Problem("p", "countdown_plans_text", "…", "24", "", {"numbers": (7, 5, 2), "target": 24})
PLAN, EXECUTION = "Undo * 2: 24 / 2 = 12. Make 12 by +.", "7 + 5 = 12. 12 * 2 = 24."
TEXT = f"<EXPLORATION>{PLAN}</EXPLORATION><EXECUTION>{EXECUTION}</EXECUTION>"


def test_traces():
    """Traces are well formed, in the tiny model's words, executed as far as a plan can be, and right at their rate."""
    tokenizer, rng = WordTokenizer(WORDS), np.random.default_rng(0)
    assert tokenizer.vocab_size == 210
    problems = TASKS["plans"].open((3, 4), seed=0, split="train")(0, 60)
    for rate, reasons in ((1.0, {"correct"}), (0.0, {"correct", "wrong_value"})):
        whys = []
        for problem in problems:
            for _ in range(2):
                text = plan_trace(problem, rng, Habits(solution_rate=rate))
                plan, execution, fault = split_text(text, begun=False)
                why = grade_one(problem, text, True).reason
                assert not fault and (followed(plan, execution) == 1.0) == (why == "correct")
                assert tokenizer.decode(tokenizer.encode(text)) == text
                whys.append(why)
        assert set(whys) == reasons
    assert whys.count("correct") < len(whys) / 3  # any plan is seldom right
    assert problems[0].id.startswith("countdown-plans-train-3") and not problems[0].question.endswith(OPEN)


# ---- in text


def test_a_plan_in_text_by_hand():
    """The text that the module shows is one that is written; what is read of it, how it is graded and what it votes."""
    rng = np.random.default_rng(0)
    assert TEXT in {in_text.plan_trace(PROBLEM, rng, Habits(solution_rate=1.0)) for _ in range(60)}
    assert in_text.read_plan(PLAN) == ([("*", 2, 12)], "+")
    assert in_text.read_execution(EXECUTION) == (7, [Step("+", 5, 12), Step("*", 2, 24)])
    assert grade_one(PROBLEM, TEXT, True) == (1.0, "correct") and TASKS["plans_text"].vote(PROBLEM, TEXT) == "24"
    assert plan_share(PROBLEM, TEXT, "sound", in_text.followed) == 1.0
    (attempt,), rest = in_text.parse(TEXT, PROBLEM)
    assert (attempt.proposal, attempt.verdict, attempt.truth, rest) == (PLAN, None, True, "</EXECUTION>")
    assert attempt.text[: attempt.chosen] == PLAN and attempt.text.endswith(EXECUTION)
    assert in_text.parse(TEXT.replace("Make", "Take"), PROBLEM)[0] == []
    made = in_text.plans_problem(0, 0, numbers=3, split="test")
    given = ", ".join(map(str, made.meta["numbers"]))
    assert made.id == "countdown-plans-text-test-3-0-0" and f"Make {made.answer} out of {given}." in made.question


def test_plans_in_text_are_true_and_read_back():
    """1,000 problems of 3 and 4 numbers: every equation holds, the plan that was drawn is read, and it was executed."""
    draw, rng, same = TASKS["plans_text"].open((3, 4), seed=1, split="train"), *map(np.random.default_rng, (7, 7))
    counts = {"correct": 0, "wrong_value": 0}
    for problem in draw(0, 1000):
        habits = Habits(solution_rate=0.5)
        text, (order, ops, targets) = in_text.plan_trace(problem, rng, habits), draw_plan(problem, same, habits)
        plan, execution, fault = split_text(text, begun=False)
        planned, (first, steps) = in_text.read_plan(plan), in_text.read_execution(execution)
        assert not fault and not false_equations(text)
        assert len(list(read_equations(text))) == 2 * len(order) - 3  # an execution has one more than its plan
        assert planned == (list(zip(ops[:0:-1], order[:1:-1], targets)), ops[0])
        assert (first, [(step.op, step.number) for step in steps]) == (order[0], list(zip(ops, order[1:])))
        reason = grade_one(problem, text, True).reason
        assert (in_text.followed(plan, execution) == 1.0) == (reason == "correct")
        counts[reason] += 1
    assert 500 < counts["correct"] < 700 and len(text) < 300


def test_errors_that_are_planted_in_plans_in_text_are_found():
    """A result that is off by one is a false equation, makes the execution wrong, and makes a plan none."""
    rng = np.random.default_rng(0)
    for problem in TASKS["plans_text"].open((3, 4), seed=2, split="train")(0, 100):
        plan, execution, _ = split_text(in_text.plan_trace(problem, rng, Habits(solution_rate=1.0)), begun=False)
        for phase in (plan, execution):
            results = list(re.finditer(r"= (\d+)", phase))
            one = results[rng.integers(len(results))]
            wrong = f"{phase[: one.start(1)]}{int(one[1]) + 1}{phase[one.end(1) :]}"
            assert false_equations(wrong) == [
                sentence.partition(": ")[2] or sentence
                for sentence, was in zip(in_text.sentences(wrong), in_text.sentences(phase)) if sentence != was
            ]  # fmt: skip
            if phase is plan:
                assert in_text.read_plan(wrong) is None and in_text.followed(wrong, execution) == 0.0
            else:
                text = f"<EXPLORATION>{plan}</EXPLORATION><EXECUTION>{wrong}</EXECUTION>"
                assert grade_one(problem, text, True).reason in ("false_step", "malformed")


@pytest.mark.parametrize(
    ("execution", "why"),
    [
        ("5 + 7 = 12.\n12 * 2 = 24.", "correct"),
        ("7 + 5 = 13. 13 * 2 = 26.", "false_step"),
        ("7 + 5 = 12. 12 + 2 = 14.", "wrong_value"),
        ("7 + 7 = 14. 14 * 2 = 28.", "wrong_numbers"),
        ("7 + 5 = 12. 2 * 12 = 24.", "malformed"),  # it does not go on from 12
        ("7 + 5 = 12. 12 * 2 = 24", "malformed"),
        ("So 7 + 5 = 12. 12 * 2 = 24.", "malformed"),
        ("7 + 5 = 12 * 2 = 24.", "malformed"),
        ("", "malformed"),
    ],
)
def test_executions_in_text(execution, why):
    text = TEXT.replace(EXECUTION, execution)
    assert grade_one(PROBLEM, text, True) == (float(why == "correct"), why)
    assert grade_one(PROBLEM, f"<EXPLORATION>{text}", True).reason == "format_nested"


@pytest.mark.parametrize(
    "plan",
    [
        "Undo * 2: 24 - 2 = 22. Make 22 by +.", "Undo * 2: 24 / 3 = 8. Make 8 by +.",
        "Undo * 2: 24 / 2 = 12. Make 13 by +.", "Undo * 2: 24 / 2 = 12. Undo - 3: 13 + 3 = 16. Make 16 by +.",
        "Undo * 2: 25 / 2 = 12. Make 12 by +.", "Undo * 2: 24 / 2 = 12.", "Make 12 by +. Make 12 by +.", "",
    ],
)  # fmt: skip
def test_what_is_no_plan_in_text(plan):
    """Another operation, number or value than the one before it, a false equation, no end, two ends, nothing."""
    assert in_text.read_plan(plan) is None
