"""The compact format: base traces are honest, and the parser tells the truth about dishonest ones."""

import numpy as np
import pytest

from e3jax.metrics.exploration import attempt_key, explore, repetition, verifications_code, verifications_paper
from e3jax.rewards.countdown import grade_calculator
from e3jax.tasks.countdown import calculator_problem, paper_problem
from e3jax.tasks.countdown_traces import WORDS, Habits, base_trace, parse, solves
from e3jax.tasks.problem import Problem
from e3jax.tokenizer import WordTokenizer

HABITS = dict(solution_rate=0.2, give_up=0.35, persistent=0.0, persistent_solution_rate=0.05, most_tokens=120)
PROBLEM = Problem(
    "id", "countdown", "7 5 2 ?24", "24", "3 numbers", {"form": "calculator", "numbers": (7, 5, 2), "target": 24}
)


@pytest.mark.parametrize("numbers", [3, 4])
def test_base_traces_are_honest_and_often_give_up(numbers):
    """Every verdict is right, the answer is the last proposal, give-ups have their rate, nothing is too long."""
    rng, tokenizer, gave_up, failed = np.random.default_rng(0), WordTokenizer(WORDS), 0, 0
    most = (120 - (2 * numbers + 2)) // (3 * numbers + 2)  # attempts that fit
    for i in range(400):
        problem = calculator_problem(0, i, numbers=numbers, split="train")
        text = base_trace(problem, rng, Habits(**HABITS))
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert len(tokenizer.encode(text)) + 1 <= 120
        attempts, tail = parse(text, problem)
        assert all(a.verdict == a.truth for a in attempts)
        assert tail == f"<answer> {attempts[-1].proposal} </answer>"
        assert (grade_calculator(problem, text).score == 1.0) == attempts[-1].truth
        gave_up += not attempts[-1].truth and len(attempts) < most
        failed += sum(not a.truth for a in attempts[: most - 1])
    assert abs(gave_up / failed - 0.35) < 4 * np.sqrt(0.35 * 0.65 / failed)


def test_persistent_traces_fill_their_room():
    """Persistent traces end with a solution, or when no further attempt fits."""
    rng, tokenizer = np.random.default_rng(0), WordTokenizer(WORDS)
    for _ in range(50):
        text = base_trace(PROBLEM, rng, Habits(**HABITS | {"persistent": 1.0, "most_tokens": 60}))
        attempts, _ = parse(text, PROBLEM)
        assert attempts[-1].truth or len(attempts) == 4  # 4 x 11 + 8 <= 60 < 5 x 11 + 8
        assert len(tokenizer.encode(text)) < 60
    with pytest.raises(ValueError, match="most_tokens=10"):
        base_trace(PROBLEM, rng, Habits(**HABITS | {"most_tokens": 10}))


def test_bases_of_ablations():
    """A favourite is written again and again and judged honestly; without checks a verdict follows the displays."""
    rng = np.random.default_rng(0)
    habits = HABITS | {"solution_rate": 0.0, "give_up": 0.0, "favourite": 0.7}
    attempts = [a for _ in range(200) for a in parse(base_trace(PROBLEM, rng, Habits(**habits)), PROBLEM)[0]]
    share = np.mean([a.proposal == "7 + 5 + 2" for a in attempts])
    chance = 0.3 / len({a.proposal for a in attempts})
    assert abs(share - 0.7 - chance) < 4 * np.sqrt(0.7 * 0.3 / len(attempts))
    assert all(a.verdict == a.truth for a in attempts)
    text = base_trace(PROBLEM, rng, Habits(**HABITS | {"solution_rate": 1.0, "checked": False}))
    assert text in (
        "7 + 5 * 2 = 12 24 yes <answer> 7 + 5 * 2 </answer>",
        "5 + 7 * 2 = 12 24 yes <answer> 5 + 7 * 2 </answer>",
    )
    assert [(a.verdict, a.truth) for a in parse(text, PROBLEM)[0]] == [(True, True)]


def test_displays_and_distance_are_computed_left_to_right():
    rng = np.random.default_rng(1)
    seen = {base_trace(PROBLEM, rng, Habits(**HABITS | {"solution_rate": 1.0})) for _ in range(50)}
    assert "7 + 5 * 2 = 12 24 ?24 0 yes <answer> 7 + 5 * 2 </answer>" in seen


def test_parser_on_dishonest_text():
    """The parser sees through a lying verdict, wrong numbers, a display below 0, garbage, and a cut attempt."""
    text = "7 + 5 * 2 = 12 24 ?24 0 no 7 + 5 = 12 ?24 0 yes 5 - 7 * 2 = 4 no = = no 7 + 5"
    attempts, rest = parse(text, PROBLEM)
    assert [(a.verdict, a.truth) for a in attempts] == [(False, True), (True, False), (False, False), (False, False)]
    assert rest == "7 + 5"
    below_zero = Problem(
        "id", "countdown", "3 7 10 ?6", "6", "3 numbers", PROBLEM.meta | {"numbers": (3, 7, 10), "target": 6}
    )
    assert solves("3 - 7 + 10", below_zero)  # the grader rewards it, so it is a solution
    assert grade_calculator(below_zero, "<answer> 3 - 7 + 10 </answer>").score == 1.0
    assert not solves("7 5 2 + *", PROBLEM) and not solves("", PROBLEM) and not solves("7 +", PROBLEM)
    assert parse("yes no <answer> no yes </answer>", PROBLEM)[1] == "<answer> no yes </answer>"


def test_explore_by_hand():
    """Three verdicts, one of them right; two distinct proposals of three; with a "yes" it is not a give-up."""
    text = "7 + 5 * 2 = 12 24 ?24 0 no 7 + 5 = 12 ?24 0 yes 7 + 5 = 12 ?24 1 no <answer> 7 + 5 </answer>"
    f = explore(PROBLEM, text, done=True, correct=False)
    assert (f["attempts"], f["unique"], f["verdicts"], f["right_verdicts"]) == (3, 2, 3, 1)
    assert (f["yes"], f["false_yes"], f["gave_up"]) == (1, 1, False)
    quit_text = "7 + 5 - 2 = 12 10 ?24 14 no <answer> 7 + 5 - 2 </answer>"
    assert explore(PROBLEM, quit_text, done=True, correct=False)["gave_up"]
    assert not explore(PROBLEM, quit_text, done=False, correct=False)["gave_up"]  # cut is not giving up


def test_text_counters_by_hand():
    """Paper and code count differently: sentences that start with a phrase, against lines that contain a word."""
    text = "Try 3*4=12. Wait, no.\nBut wait: 5+5 = 10. I await an approximation.\nAlternatively 2*3 = 6"
    assert verifications_paper(text) == 3
    assert verifications_code(text) == 3
    assert verifications_code("we waited\n\nfine") == 1 and verifications_paper("we waited") == 0
    problem = paper_problem(0, 0, numbers=3)
    f = explore(problem, "3 + 4 = 7\n\n3 + 4 = 7\n\nso 5 * 2 = 10", done=True, correct=True)
    assert (f["attempts"], f["unique"]) == (3, 2)
    assert attempt_key("so 3 + 4 = 7 and 1+1=2\n5*2 = 10.5") == "3 + 4 = 7\n5*2 = 10.5"


def test_repetition_by_hand():
    assert repetition("x" * 49) == 0
    assert repetition("abc" * 100) == 66  # the tail starts at 200; earlier copies at 2, 5, …, 197
    assert repetition("".join(chr(97 + i % 26) + str(i) for i in range(100))) == 0
