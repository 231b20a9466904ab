"""Countdown's traces in text: they are true, the parser reads them back, and metrics and pages count what it reads."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.text_traces import HABITS, survey
from e3jax.errors import UserError
from e3jax.metrics.exploration import attempt_keys, attempt_spans, detect, equations, explore
from e3jax.metrics.reading import read
from e3jax.phases import OPEN
from e3jax.report.browser import text_spans
from e3jax.rewards.countdown import evaluate, grade_text
from e3jax.tasks.countdown import paper_problem, prompt
from e3jax.tasks.countdown_text import Habits, base_trace, expressions, least_characters, parse, proposal_text, write
from e3jax.tasks.problem import Problem
from e3jax.tasks.stream import Wording
from e3jax.tasks.table import TASKS
from e3jax.tasks.written_arithmetic import false_equations, read_equations
from e3jax.tokenizer import HubTokenizer
from e3jax.train.check import check_lengths, check_traces
from e3jax.train.examples import PROBLEMS_PER_STEP, trace_examples
from e3jax.train.packing import pack_rows
from tests.stages import sft_stage

PROBLEM = Problem(
    "p", "countdown", prompt((72, 40, 11), 43), "43", "", {"form": "paper", "numbers": (72, 40, 11), "target": 43}
)
TRACE = """<think>
Try 72 * 40 + 11: 72 * 40 = 2880, 2880 + 11 = 2891. Not 43.

Wait, try 72 + 40 - 11: 72 + 40 = 112, 112 - 11 = 101. Not 43.

Alternatively, 72 - 40 + 11: 72 - 40 = 32, 32 + 11 = 43. That is 43.
</think>
<answer> 72 - 40 + 11 </answer>"""


def habits(**changes):
    return Habits(**HABITS["countdown"] | changes)


def test_traces_are_true_and_read_back():
    """A few of the 10,000 of benchmarks/text_traces.py: problems of 2 to 6 numbers, every habit."""
    assert not survey("countdown", 300, seed=1).wrong


def test_planted_errors_are_found():
    """Each of 200 responses with wrong results: the parser says which equations are false, no other, and why."""
    got = survey("countdown", 200, seed=2, planted=True)
    assert not got.wrong and got.planted == 200


def test_a_trace_by_hand():
    """The trace that the module shows is one that is written, and what is read of it."""
    rng = np.random.default_rng(0)
    seen = {write(PROBLEM, rng, habits(give_up=0.0)).text.split("\n")[1] for _ in range(300)}
    assert "Try 72 * 40 + 11: 72 * 40 = 2880, 2880 + 11 = 2891. Not 43." in seen
    attempts, rest = parse(TRACE, PROBLEM)
    assert [(a.proposal, a.verdict, a.truth) for a in attempts] == [
        ("72 * 40 + 11", False, False),
        ("72 + 40 - 11", False, False),
        ("72 - 40 + 11", True, True),
    ]
    assert rest == "</think>\n<answer> 72 - 40 + 11 </answer>" and not false_equations(TRACE)
    assert len(list(read_equations(TRACE))) == equations(PROBLEM, TRACE) == 6


def test_expressions_are_all_and_none_twice():
    """Every value of at most one pair of parentheses, the numbers in order, is that of one that is listed."""
    numbers = (7, 50, 3, 2)
    listed = {proposal_text(numbers, one) for one in expressions(4)}
    assert len(listed) == len(expressions(4)) and "7 - (50 + 3) - 2" in listed and "7 + (50 - 3) - 2" not in listed
    values = {evaluate(text) for text in listed if "/ 0" not in text}
    for ops in {one.operations for one in expressions(4)}:
        for pair in range(3):
            words = [str(n) for n in numbers]
            words[pair], words[pair + 1] = f"({words[pair]}", f"{words[pair + 1]})"
            assert evaluate(" ".join([words[0], *(f"{o} {w}" for o, w in zip(ops, words[1:]))])) in values


def test_habits_have_their_rates():
    """Giving up, solutions, the favourite, no verification: each as its field says."""
    rng, problems = np.random.default_rng(0), [paper_problem(0, i, numbers=3) for i in range(500)]
    traces = [write(p, rng, habits(persistent=0.0)) for p in problems]
    failed = [(a, i == len(t.attempts) - 1) for t in traces for i, a in enumerate(t.attempts) if not a.truth]
    assert abs(np.mean([last for _, last in failed]) - 0.35) < 4 * np.sqrt(0.35 * 0.65 / len(failed))
    assert not any(len(set(a.proposal for a in t.attempts)) < len(t.attempts) for t in traces)
    persistent = [write(p, rng, habits(persistent=1.0, persistent_solution_rate=0.0)) for p in problems[:50]]
    assert all(t.attempts[-1].truth or len(t.attempts) >= 12 for t in persistent)
    sure = [write(p, rng, habits(solution_rate=1.0)) for p in problems[:100]]
    assert np.mean([len(t.attempts) == 1 and t.attempts[0].truth for t in sure]) > 0.75  # some want a fraction
    same = [write(p, rng, habits(favourite=1.0, give_up=0.0, most_attempts=3)) for p in problems[:50]]
    sums = [" + ".join(map(str, p.meta["numbers"])) for p in problems]
    assert all({a.proposal for a in t.attempts} == {s} for t, s in zip(same, sums))
    blind = [write(p, rng, habits(checked=False, persistent=1.0, most_attempts=5)) for p in problems[:50]]
    assert all(a.verdict is None for t in blind for a in t.attempts)
    assert all(len(t.attempts) == 5 for t in blind if len(t.text) < 600)
    assert all(len(base_trace(p, rng, habits(most_characters=180))) <= 180 for p in problems[:200])
    with pytest.raises(ValueError, match="most_characters=40"):
        base_trace(problems[0], rng, habits(most_characters=40))
    with pytest.raises(UserError, match="most_attempts=0"):
        habits(most_attempts=0)


def test_the_parser_on_what_a_model_may_write():
    """Lies, wrong numbers, other signs and blanks, missing verdicts, a cut attempt, text behind the answer."""
    text = (
        "Try 72 - 40 + 11: 72 - 40 = 31, 31 + 11 = 42. Not 43. Wait, try 72 - 40 × 1: = 32. That is 43.\n\n"
        "alternatively, try (72-40)+11: so 43\n\nTry 5: 5. That is 43.\n\nWait, try 72 + 40 - 11: 72 + 40 = 11"
    )
    attempts, rest = parse(text, PROBLEM)
    assert [(a.proposal, a.verdict, a.truth) for a in attempts] == [
        ("72 - 40 + 11", False, True),
        ("72 - 40 × 1", True, False),
        ("(72-40)+11", None, True),
    ]
    assert rest.startswith("Try 5: 5.") and false_equations(text) == ["72 - 40 = 31", "72 + 40 = 11"]
    behind = "Try 72 + 40: 112. Not 43.</think>Try 72 - 40 + 11: 43. That is 43."
    assert [a.proposal for a in parse(behind, PROBLEM)[0]] == ["72 + 40"]
    free = "3 + 4 = 7\n\n3 + 4 = 7. Wait: no"
    assert parse(free, PROBLEM) == ([], free)


def test_metrics_count_the_attempts_and_fall_back_to_free_text():
    """Right verdicts, unique attempts, Def. 4.1; a text in other words is read as e3 reads it, with the same names."""
    liar = TRACE.replace("= 101. Not 43", "= 43. That is 43").replace("That is 43.\n</think>", "Not 43.\n</think>")
    f = explore(PROBLEM, liar, done=True, correct=True)
    assert (f["attempts"], f["unique"], f["equations"], f["verdicts"], f["right_verdicts"]) == (3, 3, 6, 3, 1)
    assert (f["yes"], f["false_yes"], f["gave_up"]) == (1, 1, False)
    free = explore(PROBLEM, "3 + 4 = 7\n\nWait, 3 + 4 = 7", done=True, correct=False)
    assert (free["attempts"], free["unique"], free["verifications"], free["verdicts"]) == (2, 1, 1, 0)
    assert free["gave_up"] and set(free) == set(f)
    assert detect(PROBLEM, TRACE, close="</think>") == (3, 3)
    assert detect(PROBLEM, TRACE.replace("<answer> 72 -", "<answer> 72 /"), close="</think>") == (4, 3)
    assert attempt_keys(PROBLEM, TRACE) == ["72 * 40 + 11", "72 + 40 - 11", "72 - 40 + 11"]
    one = read(PROBLEM, TRACE, True, apart=True)
    assert one.grade.score == 1 and one.parts.answer == "72 - 40 + 11" and len(one.parts.attempts) == 3
    unchecked = TRACE.replace(" Not 43.", "").replace(" That is 43.", "")
    assert detect(PROBLEM, unchecked, close="</think>") == (3, 0)


def test_spans_and_colours():
    """A span's choice ends with the colon; the page marks verdicts, solutions and false equations."""
    spans = attempt_spans(PROBLEM, TRACE, close="</think>")
    assert [TRACE[s.start : s.chosen] for s in spans] == [
        "Try 72 * 40 + 11:", "Wait, try 72 + 40 - 11:", "Alternatively, 72 - 40 + 11:"
    ]  # fmt: skip
    assert TRACE[spans[0].chosen : spans[0].end] == " 72 * 40 = 2880, 2880 + 11 = 2891. Not 43."
    text = TRACE.replace("112 - 11 = 101. Not 43", "112 - 11 = 43. That is 43")
    kinds = [(text[s.start : s.end], s.kind) for s in text_spans(PROBLEM.question, text)]
    assert [kind for _, kind in kinds].count("right") == 2 and ("112 - 11 = 43", "false") in kinds
    assert [words[:12] for words, kind in kinds if kind == "wrong"] == ["Wait, try 72"]
    assert [words[:14] for words, kind in kinds if kind == "solution"] == ["Alternatively,"]
    free = text_spans(PROBLEM.question, "3+4=8. Wait, no. It is 7")
    assert [s.kind for s in free] == ["open", "open", "check"]  # as before


def test_a_stage_learns_from_them(qwen3_files):
    """Examples of a supervised stage with a real tokenizer fit their rows, and are no longer than its check allows."""
    run, stage = stage_on(qwen3_files, "paper", (3, 4), habits(most_characters=600), row_length=1200)
    examples = trace_examples(run, stage)(0, 0, 0)
    tokens, _, segments, mask = pack_rows(examples, rows=4, length=1200, pad=run.tokenizer.pad)
    text = run.tokenizer.decode(tokens[0][(segments[0] == 1) & (mask[0] == 1)])
    first = run.draw_from((3, 4), split="train")(0, 1)[0]
    attempts, rest = parse(text, first)
    assert text.startswith("<think>\nTry ") and attempts and not false_equations(text) and "</answer>" in rest
    assert grade_text(first, text).reason in ("correct", "wrong_value")
    settings = SimpleNamespace(stages=[stage], task=SimpleNamespace(form="paper"))
    check_traces(settings)
    short = sft_stage(source=(3, 4), traces=habits(most_characters=100))
    with pytest.raises(UserError, match=rf"most_characters=100: one attempt .* need {least_characters((3, 4))}"):
        check_traces(SimpleNamespace(stages=[short], task=settings.task))
    settings = SimpleNamespace(
        stages=[stage],
        model=SimpleNamespace(preset="tiny"),
        eval=SimpleNamespace(pass_budget=1, budgets=(1,)),
        budget_rule=SimpleNamespace(budgets=(1,)),
    )
    check_lengths(settings, 598, 1000)
    with pytest.raises(UserError, match="most_characters=600: prompt and trace must fit row_length=1200"):
        check_lengths(settings, 599, 1000)


def test_examples_are_those_of_one_at_a_time(qwen3_files):
    """Prompts and traces of a block are encoded together: draws, order and tokens are as if one followed the other."""
    run, stage = stage_on(qwen3_files, "paper", (3, 4), habits(most_characters=600), row_length=1200)
    stage = replace(stage, position_gap=9, gap_rate=0.5)
    rng, start = np.random.default_rng([run.seed, 1, 2]), 3 * PROBLEMS_PER_STEP
    for example, problem in zip(trace_examples(run, stage)(1, 2, 3), run.draw_from((3, 4), split="train")(start, 40)):
        response = [*run.tokenizer.encode(TASKS["paper"].trace(problem, rng, stage.traces)), run.tokenizer.eos]
        gap = int(rng.integers(10)) if rng.random() < 0.5 else 0
        assert example == (run.tokenizer.encode(problem.question.removesuffix(OPEN)), response, gap)


def stage_on(files, form, source, its_habits, *, row_length):
    """Return a run and a stage as train/examples.py wants them."""
    task, tokenizer = TASKS[form], HubTokenizer(str(files))

    def draw_from(source, *, split):
        return task.open(source, seed=0, split=split, wording=Wording(prompt="multiply"))

    run = SimpleNamespace(
        settings=SimpleNamespace(task=SimpleNamespace(form=form)), seed=0, tokenizer=tokenizer, draw_from=draw_from
    )
    return run, sft_stage(source=source, traces=its_habits, row_length=row_length)
