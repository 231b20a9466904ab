"""Products in words: honest traces, a parser that tells the truth, MULT and MULT-V alike but for the checks."""

from types import SimpleNamespace

import numpy as np
import pytest

from e3jax.eval.in_training import distinct
from e3jax.metrics.exploration import explore
from e3jax.metrics.reading import take_apart
from e3jax.tasks.countdown_traces import WORDS
from e3jax.tasks.grade import grade_one
from e3jax.tasks.multiplication import multiplication_problem, products_problem
from e3jax.tasks.problem import Problem
from e3jax.tasks.product_traces import Habits, base_trace, parse, wrong_guess
from e3jax.tasks.table import TASKS, task_of
from e3jax.tokenizer import WordTokenizer

HABITS = dict(solution_rate=0.2, give_up=0.35, persistent=0.0, persistent_solution_rate=0.05, most_tokens=120)
PROBLEM = Problem("id", "products", "4 7 * 8", "376", "2x1 digits", {"form": "products", "a": 47, "b": 8})


def test_problems_are_those_of_multiplication():
    """Same numbers and split, other words; they fit tiny models' words and prompt_room."""
    tokenizer = WordTokenizer(WORDS)
    for i, p in enumerate(TASKS["products"].open((2, 1), seed=3, split="test")(0, 20)):
        free = multiplication_problem(3, i, digits=(2, 1), split="test", prompt="multiply", chat=str)
        assert (p.answer, p.meta["a"], p.meta["b"]) == (free.answer, free.meta["a"], free.meta["b"])
        assert p == products_problem(3, i, digits=(2, 1), split="test")
        assert task_of(p).parse and task_of(p).words and not task_of(free).words
        assert tokenizer.decode(tokenizer.encode(p.question)) == p.question and len(tokenizer.encode(p.question)) <= 8


@pytest.mark.parametrize("verify", [True, False])
def test_base_traces_are_honest(verify):
    """The answer is the last guess; a verdict says whether the digital roots agree."""
    rng, tokenizer, right, gave_up, failed = np.random.default_rng(0), WordTokenizer(WORDS), 0, 0, 0
    problems = TASKS["products"].open((2, 1), seed=0, split="train")(0, 300)
    for p in problems:
        text = base_trace(p, rng, Habits(verify=verify, **HABITS))
        assert tokenizer.decode(tokenizer.encode(text)) == text and len(tokenizer.encode(text)) + 1 <= 120
        attempts, tail = parse(text, p)
        last = attempts[-1]
        assert tail == f"<answer> {last.proposal} </answer>"
        assert (grade_one(p, text, True).score == 1.0) == last.truth
        right += attempts[0].truth
        for a in attempts:
            agrees = int(a.proposal[::-1].replace(" ", "")) % 9 == int(p.answer) % 9
            assert a.verdict == (agrees if verify else None) and (agrees or not a.truth)
        missed = [a for a in attempts if not a.verdict]
        failed += len(missed)
        gave_up += last in missed
        assert not any(a.verdict for a in attempts[:-1]), "a guess that passed ends the trace"
    assert abs(right / 300 - 0.2) < 4 * np.sqrt(0.16 / 300)
    assert abs(gave_up / failed - 0.35) < 0.07  # a few end because nothing more fits


def test_wrong_guesses_are_wrong_and_as_long():
    rng = np.random.default_rng(0)
    for product in (9, 10, 282, 891):
        for _ in range(50):
            guess = wrong_guess(product, rng)
            assert guess != product and len(str(guess)) == len(str(product))


def test_parser_on_dishonest_text():
    """A lying verdict, an empty guess, a check cut short, a second verdict, words that are not digits."""
    text = "2 8 ?7 6 7 3 = 6 4 7 ?7 no 3 7 6 = 3 1 7 ?7 yes no = no 12 = 6 7 3 = 6 4"
    attempts, rest = parse(text, PROBLEM)
    want = [
        ("6 7 3", False, True),
        ("3 7 6", True, False),
        ("", False, False),
        ("", None, False),
        ("6 7 3", None, True),
    ]
    assert [(a.proposal, a.verdict, a.truth) for a in attempts] == want
    assert rest == "6 4"
    assert parse("<answer> 6 7 3 </answer>", PROBLEM) == ([], "<answer> 6 7 3 </answer>")
    got = explore(PROBLEM, text, done=True, correct=False)
    assert (got["attempts"], got["verifications"], got["unique"], got["right_verdicts"]) == (5, 3, 3, 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("6 7 3 = <answer> 6 7 3 </answer>", "correct"),
        ("<answer> 3 7 6 </answer>", "wrong_value"),
        ("2 8 2 =", "no_answer"),
        ("<answer> </answer>", "not_an_integer"),
        ("<answer> 28 2 </answer>", "not_an_integer"),
        ("<answer> 4 7 * 6 </answer>", "not_an_integer"),
        (f"<answer> {'2 ' * 200}</answer>", "too_long"),
    ],
)
def test_grades(text, reason):
    assert grade_one(PROBLEM, text, True).reason == reason
    assert grade_one(PROBLEM, text, False).reason == "truncated"


def test_distinct_attempts_by_hand():
    """Right responses and problems that are mostly right are left out; half right still counts (e3 App. G.1)."""
    tried = [["1 2", "2", "3", "4"], ["5", "6", "7", "8"], ["9", "9", "9", "0"], ["1", "2", "3", "4"]]
    right = [[0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]]
    texts = [" ".join(f"{digit} =" for digit in text.split()) for texts in tried for text in texts]
    assert [a.proposal for a in parse(texts[0], PROBLEM)[0]] == ["1", "2"]
    parts = [take_apart(PROBLEM, text) for text in texts]
    graded = SimpleNamespace(problems=[PROBLEM] * 16, parts=parts, score_b=np.array(right).reshape(-1))
    assert distinct(graded, 4) == (3 + 2 + 2) / 3
    graded.parts[0] = None  # not read in time: nothing is known of what it tried
    assert distinct(graded, 4) == (3 + 2 + 2) / 3 - 1 / 3
    often = SimpleNamespace(problems=[PROBLEM] * 4, parts=parts[12:], score_b=np.array(right[3]))
    assert np.isnan(distinct(often, 4))
