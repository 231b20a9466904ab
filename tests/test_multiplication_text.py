"""Multiplication's traces in text, MULT and MULT-V: they are true, and the parser reads them back."""

import numpy as np
import pytest

from benchmarks.text_traces import HABITS, survey
from e3jax.metrics.exploration import attempt_keys, attempt_spans, detect, explore
from e3jax.metrics.reading import read
from e3jax.report.browser import text_spans
from e3jax.rewards.multiplication import grade_text
from e3jax.tasks.multiplication import multiplication_problem
from e3jax.tasks.multiplication_text import Habits, least_characters, misreadings, parse, write
from e3jax.tasks.problem import Problem
from e3jax.tasks.written_arithmetic import false_equations, read_equations
from e3jax.train.examples import trace_examples
from e3jax.train.packing import pack_rows
from tests.test_countdown_text import stage_on

PROBLEM = Problem("p", "multiplication", "Multiply 47 and 86.", "4042", "", {"a": 47, "b": 86, "where": "response"})
TRACE = r"""<think>
Add the digits. 47: 4 + 7 = 11, 1 + 1 = 2. 86: 8 + 6 = 14, 1 + 4 = 5. 2 * 5 = 10, 1 + 0 = 1. So it must be 1.

Multiply 47 by 86.
47 * 80 = 3760
47 * 5 = 235
3760 + 235 = 3995
So the product is 3995.
Check: 3 + 9 + 9 + 5 = 26, 2 + 6 = 8. Not 1.

Wait, multiply 86 by 47.
86 * 40 = 3440
86 * 7 = 602
3440 + 602 = 4042
So the product is 4042.
Check: 4 + 0 + 4 + 2 = 10, 1 + 0 = 1. That is 1.
</think>
\boxed{4042}"""


def habits(kind="MULT-V", **changes):
    return Habits(**HABITS[kind] | changes)


def problems(count, digits=(3, 2)):
    how = dict(digits=digits, split="train", prompt="multiply")
    return [multiplication_problem(0, i, **how) for i in range(count)]


@pytest.mark.parametrize("kind", ["MULT", "MULT-V"])
def test_traces_are_true_and_read_back(kind):
    """A few of the 10,000 of benchmarks/text_traces.py: factors of 1 to 8 digits, every habit."""
    assert not survey(kind, 200, seed=1).wrong


@pytest.mark.parametrize("kind", ["MULT", "MULT-V"])
def test_planted_errors_are_found(kind):
    """Each of 200 responses with wrong results: the parser says which equations are false, and no other."""
    got = survey(kind, 200, seed=2, planted=True)
    assert not got.wrong and got.planted == 200


def test_a_trace_by_hand():
    """The trace that the module shows is one that is written, and what is read of it."""
    rng = np.random.default_rng(0)
    seen = {write(PROBLEM, rng, habits(give_up=0.0, most_attempts=2)).text for _ in range(3000)}
    assert TRACE in seen
    attempts, rest = parse(TRACE, PROBLEM)
    assert [(a.proposal, a.verdict, a.truth) for a in attempts] == [("3995", False, False), ("4042", True, True)]
    assert attempts[0].text[attempts[0].chosen :] == "\nCheck: 3 + 9 + 9 + 5 = 26, 2 + 6 = 8. Not 1."
    assert rest == "</think>\n\\boxed{4042}" and len(list(read_equations(TRACE))) == 16 and not false_equations(TRACE)
    plain = write(PROBLEM, rng, habits("MULT", solution_rate=1.0, give_up=1.0)).text
    assert (
        plain.startswith("<think>\nMultiply ") and "Check" not in plain and plain.endswith("\n</think>\n\\boxed{4042}")
    )


def test_habits_have_their_rates():
    """MULT ends after any product, MULT-V at one that passes; what is misread is never read the same way again."""
    rng = np.random.default_rng(0)
    blind = [write(p, rng, habits("MULT", persistent=0.0)) for p in problems(400)]
    ended = [(i == len(t.attempts) - 1) for t in blind for i in range(min(len(t.attempts), 7))]
    assert abs(np.mean(ended) - 0.35) < 4 * np.sqrt(0.35 * 0.65 / len(ended))
    assert abs(np.mean([t.attempts[0].truth for t in blind]) - 0.5) < 4 * 0.5 / np.sqrt(len(blind))
    sure = [write(p, rng, habits(persistent=1.0, persistent_solution_rate=0.2)) for p in problems(200)]
    assert all(t.attempts[-1].verdict or len(t.attempts) == 8 for t in sure)
    assert not any(a.verdict for t in sure for a in t.attempts[:-1])
    passed = [a.truth for t in sure for a in t.attempts if a.verdict]
    assert 0.5 < np.mean(passed) < 1  # nines let some misreadings pass: 0 for 9, and any beside a factor like 333
    stubborn = [write(p, rng, habits("MULT", favourite=1.0, solution_rate=0.0, give_up=0.0)) for p in problems(50)]
    assert all(len({a.proposal for a in t.attempts}) == 1 and not t.attempts[0].truth for t in stubborn)
    lost = [write(p, rng, habits("MULT", persistent=1.0)) for p in problems(50)]
    assert all(len({a.text.partition(".")[2] for a in t.attempts}) == 8 for t in lost)
    assert all(0 < wrong != n for n in (1, 10, 999) for wrong in misreadings(n))


def test_one_attempt_fits_the_least_limit():
    """The limit that train/check.py asks for has room for the longest attempt, whatever the factors."""
    rng = np.random.default_rng(0)
    for digits in ((1, 1), (5, 5), (1, 18), (18, 18)):
        short = habits(most_characters=least_characters(digits), wrong_arithmetic=0.2)
        assert all(write(p, rng, short).attempts for p in problems(30, digits))


def test_the_parser_on_what_a_model_may_write():
    """Other products, commas, lies, a check that never ends, an attempt without a product, text behind the thinking."""
    text = (
        "Multiply 47 by 80. So the product is 3760. That is 7. multiply 47 by 86: the product is 4,042. Check: Not 1.\n"
        "Alternatively, multiply 86 by 47. I give up. Wait, multiply 86 by 47. So the product is 4,04 then. That is 1."
        " Multiply 47 by 86. The product is 5. Check: 5"
    )
    attempts, rest = parse(text, PROBLEM)
    assert [(a.proposal, a.verdict, a.truth) for a in attempts] == [
        ("4042", False, True),
        ("4", True, False),
        ("5", None, False),
    ]
    assert rest == "Check: 5"
    assert parse(r"</think> Multiply 47 by 86. The product is 4042.", PROBLEM)[0] == []
    free = "47 * 86 = 4042. Wait, no."
    assert parse(free, PROBLEM) == ([], free)


def test_metrics_and_pages_count_the_attempts():
    """Right verdicts, Def. 4.1, what is coloured; a text in other words is read as before."""
    f = explore(PROBLEM, TRACE, done=True, correct=True)
    assert (f["attempts"], f["unique"], f["equations"], f["verdicts"], f["right_verdicts"]) == (2, 2, 16, 2, 2)
    free = explore(PROBLEM, "47*86=41. Wait, \\boxed{42}", done=True, correct=False)
    assert (free["attempts"], free["verifications"], free["verdicts"]) == (1, 1, 0) and set(free) == set(f)
    assert detect(PROBLEM, TRACE, close="</think>") == (2, 2)
    assert detect(PROBLEM, TRACE.replace(r"\boxed{4042}", r"\boxed{4043}"), close="</think>") == (3, 2)
    assert attempt_keys(PROBLEM, TRACE) == ["3995", "4042"]
    one = read(PROBLEM, TRACE, True, apart=True)
    assert one.grade.score == 1 and one.parts.answer == "4042" and len(one.parts.attempts) == 2
    spans = attempt_spans(PROBLEM, TRACE, close="</think>")
    assert [TRACE[: s.chosen].rpartition("\n")[2] for s in spans] == [
        "So the product is 3995.", "So the product is 4042."
    ]  # fmt: skip
    marked = text_spans(PROBLEM.question, TRACE.replace("= 602", "= 603"))
    kinds = [s.kind for s in marked]
    assert kinds == ["answer", "thinking", "right", "check", "right", "check", "solution", "false"]


def test_a_stage_learns_from_them(qwen3_files):
    """Examples of a stage with a real tokenizer fit their rows; a prompt that opens the thought is heeded."""
    run, stage = stage_on(qwen3_files, "multiplication", (3, 3), habits(most_characters=900), row_length=1000)
    examples = trace_examples(run, stage)(0, 0, 0)
    tokens, _, segments, mask = pack_rows(examples, rows=4, length=1000, pad=run.tokenizer.pad)
    text = run.tokenizer.decode(tokens[0][(segments[0] == 1) & (mask[0] == 1)])
    first = run.draw_from((3, 3), split="train")(0, 1)[0]
    assert text.startswith("<think>\nAdd the digits. ") and parse(text, first)[0] and not false_equations(text)
    assert grade_text(first, text, where="response").reason in ("correct", "wrong_value")
    plain = multiplication_problem(0, 0, digits=(3, 3), split="train", prompt="multiply-check", chat=str)
    assert write(plain, np.random.default_rng(0), habits()).text.startswith("Add the digits. ")
