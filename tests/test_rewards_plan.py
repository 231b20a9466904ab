"""E2C's rewards: format, the sound grader against the original, plans that are followed, overlong responses."""

import numpy as np
import pytest

from e3jax.errors import UserError
from e3jax.metrics.names import undefined
from e3jax.metrics.reading import read
from e3jax.phases import write_text
from e3jax.rewards import countdown_plans
from e3jax.rewards.plan import UNSOUND, common, followed, followed_original, plan_share, steps
from e3jax.rewards.repetition import most_repeats
from e3jax.rewards.shaping import RewardSettings, overlong, shaped
from e3jax.tasks.grade import grade_one
from e3jax.tasks.problem import Problem
from e3jax.tasks.prompts import asked_length, asking_for_length, qwen3_chat

PLAN = "1. Add the numbers.\n2. Halve the sum.\n"
WORK = "1. **Add** the numbers: 10\n2. Halve the sum\nso \\boxed{5}"


def problem(answer="5", where="execution", question="q", task="math"):
    return Problem("p", task, question, answer, "", {"where": where})


def reason(text, **about):
    return grade_one(problem(**about), text, True).reason


def test_the_answer_of_a_well_formed_execution():
    text = write_text(PLAN, WORK)
    assert grade_one(problem(), text, True) == (1.0, "correct")
    assert grade_one(problem(), text, False) == (0.0, "truncated")
    assert grade_one(problem(question="q<EXPLORATION>"), text.removeprefix("<EXPLORATION>"), True) == (1.0, "correct")
    assert reason(text, question="q<EXPLORATION>") == "format_nested"  # the forced tag said again
    assert reason(text.removeprefix("<EXPLORATION>")) == "format_no_plan"
    assert reason(WORK) == "format_no_plan"
    assert reason(text.removesuffix("</EXECUTION>")) == "format_no_execution_end"
    assert reason(write_text(PLAN + "\\boxed{5}", "done")) == "no_answer"  # an answer in the plan is none
    assert reason(write_text(PLAN, WORK), task="multiplication") == "correct"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [("-5", "5"), ("5", "-5"), ("1.5", "15"), ("\\frac{1}{12}", "\\frac{11}{2}"), ("1/12", "11/2"), ("0.25", "25")],
)
def test_signs_points_and_fractions_count(gold, answer):
    """The original's normalisation makes these equal, and its reason says that such a grade is unsound."""
    text = write_text(PLAN, f"\\boxed{{{answer}}}")
    assert grade_one(problem(gold), text, True) == (0.0, "wrong_value")
    if gold != "0.25":
        assert grade_one(problem(gold, where="e2c_original"), text, True) == (1.0, "correct_unsound")
    assert "UNSOUND" in UNSOUND and "-5 is 5" in UNSOUND


def test_the_original_grader_looks_at_the_end_and_at_no_format():
    original = dict(where="e2c_original")
    assert reason(WORK, **original) == "correct_unsound"
    assert reason(WORK + "x" * 300, **original) == "no_answer_unsound"
    assert reason("\\boxed{6}", **original) == "wrong_value_unsound"
    assert reason("\\boxed{0.5}", answer="\\frac{1}{2}", **original) == "correct_unsound"
    with pytest.raises(UserError, match="response, after_thinking, anywhere, execution, e2c_original"):
        grade_one(Problem("p", "math", "q", "5", "", {}), "x", True)


def test_following_by_hand():
    """Steps match in order, one to one, by the plan's words; the original counts a word for a step, in any order."""
    assert steps(WORK) == [["add", "the", "numbers", "10"], ["halve", "the", "sum"]]
    assert steps("Step 3: Go on\n  4) then\n5.5 is no step") == [["go", "on"], ["then"]]
    assert followed(PLAN, WORK) == 1.0
    assert followed(PLAN, "2. Halve the sum\n1. Add the numbers\n") == 0.5  # in the wrong order
    assert followed(PLAN, "1. Add the numbers\n") == 0.5  # one step is not two
    assert followed(PLAN, "1. the\n2. the\n") == 0.0 and followed_original(write_text(PLAN, "1. the\n")) == 1.0
    assert followed("1. Add the two given numbers\n", "1. the\n") == 0.0  # 1 of 5 words
    assert followed_original(write_text(PLAN, "2. Halve the sum\n1. Add the numbers\n")) == 1.0
    assert followed("just think", WORK) == 0.0 and followed_original(write_text("just think", WORK)) == 0.0
    assert followed_original("1. Add both\n2. Stop\nnow\n1. Add both\n") == 0.5  # no tag: the second list executes
    assert common("", "a") == 0 and common("abcbdab", "bdcaba") == 4


def test_the_shaped_reward():
    texts = [write_text(PLAN, WORK), write_text(PLAN, "1. Add the numbers \\boxed{5}"), write_text(PLAN, WORK), "no"]
    share = [plan_share(problem(), text, "sound", followed) for text in texts]
    right_b, length_b = np.array([1, 1, 0, 0]), np.array([60, 60, 80, 100])
    reward, values = shaped(share, right_b, length_b, RewardSettings("wrong", "sound", 40, 0.5), budget=100)
    assert len(values) == 3 and not undefined("grpo", values)
    assert reward.tolist() == [1.0, 0.5, -0.25, -0.5]
    assert values == {"reward/following": 0.75, "reward/overlong": -0.1875, "reward/shaped": 0.1875}
    reward, values = shaped(share, right_b, length_b, RewardSettings("wrong", "off", 0, 1.0), budget=100)
    assert reward.tolist() == [1, 1, 0, 0] and values == {}
    with pytest.raises(UserError, match="following='on': use one of 'off', 'sound', 'original'"):
        RewardSettings("wrong", "on", 0, 1.0)
    lie = RewardSettings("wrong", "off", 0, 1.0, lie_alpha=0.01, lie_length=90, lie_cap=0.25)
    reward, values = shaped(share, right_b, np.array([60, 60, 80, 30]), lie, budget=100)  # right ones may be short
    np.testing.assert_allclose(reward, [1, 1, -0.1, -0.25], rtol=1e-12)
    assert values["reward/too_short"] == pytest.approx(-0.0875) and not undefined("grpo", values)
    with pytest.raises(UserError, match=r"lie_alpha=0\.1: set lie_length"):
        RewardSettings("wrong", "off", 0, 1.0, lie_alpha=0.1)
    again = RewardSettings("wrong", "off", 0, 1.0, lie_repetition=0.6)
    repeats_b = np.array([10, 9, 11, 0])
    reward, values = shaped(share, right_b, length_b, again, budget=100, repeats_b=repeats_b)  # right ones pay too
    assert reward.tolist() == [0.4, 1.0, -0.6, 0.0] and values["reward/repetition"] == pytest.approx(-0.3)
    assert not undefined("grpo", values) and again.options == {"following": "off", "repeats": True}
    for kind, want in (("exact", [0.8, 1.0, -0.4, -0.2]), ("max", [0.7, 0.5, 0.0, 0.0])):
        asked = RewardSettings("wrong", "off", 0, 1.0, lcpo=kind, lcpo_alpha=0.01)
        reward, values = shaped(share, right_b, length_b, asked, budget=100, asked_b=np.array([80, 60, 40, 80]))
        np.testing.assert_allclose(reward, want, atol=1e-12)
        assert values["reward/length_error"] == 20 and not undefined("grpo", values) and not asked.binary
    with pytest.raises(UserError, match="lcpo='least': use one of 'off', 'exact', 'max'"):
        RewardSettings("wrong", "off", 0, 1.0, lcpo="least")
    assert RewardSettings("wrong", "off", 0, 1.0).binary
    assert overlong([8191, 4096, 0], budget=8192, buffer=4096, factor=1.0).tolist() == [-4095 / 4096, 0, 0]


def test_repetition_by_hand():
    """LIE's rule: ten words, ten times; overlapping windows count, and underscores end words."""
    ten = "one two three four five six seven eight nine ten "
    assert most_repeats(10 * ten) == 10 and most_repeats(9 * ten) == 9 and most_repeats(ten) == 0
    assert most_repeats("no " * 19) == 10 and most_repeats("no_" * 19) == 10
    problem = Problem("p", "multiplication", "6 * 7 = ?", "42", "", {"where": "anywhere"})
    assert read(problem, 10 * ten, True, repeats=True).features["repeats"] == 10
    assert "repeats" not in read(problem, 10 * ten, True).features


def test_the_length_that_a_prompt_asks_for():
    """The same for the same words and seed, within its bounds, at the end of the user's turn."""
    chat = asking_for_length(qwen3_chat, seed=1, fewest=100, most=4000)
    questions = [chat(f"{i} + 1?") for i in range(200)]
    lengths = [asked_length(q) for q in questions]
    assert questions == [chat(f"{i} + 1?") for i in range(200)] and 100 <= min(lengths) < max(lengths) <= 4000
    assert len(set(lengths)) > 150 and 1800 < np.mean(lengths) < 2300
    assert f"0 + 1? Think for {lengths[0]} tokens.<|im_end|>\n<|im_start|>assistant" in questions[0]
    assert asked_length(asking_for_length(qwen3_chat, seed=2, fewest=100, most=4000)("0 + 1?")) != lengths[0]
    before = [{"role": "system", "content": "Be short."}]
    assert chat("0 + 1?", before).startswith("<|im_start|>system\nBe short.")
    with pytest.raises(ValueError, match="asks for no length"):
        asked_length("What is 1+1?")


@pytest.mark.parametrize(
    ("execution", "why"),
    [
        ("7 + 5 = 12 * 2 = 24", "correct"),
        ("5 + 7 = 12 * 2 = 24", "correct"),
        ("7 + 5 = 13 * 2 = 24", "false_step"),
        ("7 + 5 = 12 + 2 = 14", "wrong_value"),
        ("7 + 7 = 14 * 2 = 28", "wrong_numbers"),
        ("7 + 5 = 12", "wrong_numbers"),
        ("7 * 2 = 14 + 5 = 19 + 5 = 24", "wrong_numbers"),
        ("7 + 5 = 12 * 2", "malformed"),
        ("7 + 5 = 12 * 2 = ?24", "malformed"),
        ("", "malformed"),
    ],
)
def test_countdown_with_plans(execution, why):
    problem = Problem("p", "countdown_plans", "7 5 2 ?24 <EXPLORATION>", "24", "", {"numbers": (7, 5, 2), "target": 24})
    text = f"* 2 ?12 + </EXPLORATION> <EXECUTION> {execution} </EXECUTION>"
    assert grade_one(problem, text, True) == (float(why == "correct"), why)
    assert grade_one(problem, f"<EXPLORATION> {text}", True).reason == "format_nested"
    assert grade_one(problem, execution, True).reason == "format_no_plan_end"


def test_countdown_plans_followed():
    followed = countdown_plans.followed
    assert followed("* 2 ?12 +", "7 + 5 = 12 * 2 = 24") == 1.0
    assert followed("* 2 ?12 +", "7 + 5 = 13 * 2 = 24") == 0.5  # the target was not reached
    assert followed("* 2 ?12 -", "7 + 5 = 12 * 2 = 24") == 0.5
    assert followed("+ 5 ?7 * 2 ?3 -", "9 - 6 = 3 * 2 = 6 + 5 = 11") == 2 / 3  # 6 is not 7
    assert followed("+", "7 + 5 = 12 * 2 = 24") == 0.5  # a step that nobody planned
    assert followed("?12 +", "7 + 5 = 12") == followed("", "7 + 5 = 12") == followed("+", "7 +") == 0.0
