r"""Rows of every schema become the same bare problem and gold answer; malformed ones say why."""

import json

import pytest

from e3jax.errors import UserError
from e3jax.tasks.math import Fields, gold, read_math, unboxed, without_instruction
from e3jax.tasks.prompts import PROMPTS, prompt_text, qwen3_chat

VERL = {
    "data_source": "d",
    "prompt": [{"role": "user", "content": "What is 1+1?\nLet's reason step by step. Enclose it in <think>."}],
    "ability": "math",
    "reward_model": {"ground_truth": "2", "style": "rule"},
    "extra_info": {"index": 7, "split": "train", "level": 3},
}


@pytest.mark.parametrize(
    ("row", "answer", "difficulty"),
    [
        ({"problem": " What is 1+1? ", "answer": "2", "solution": "It is 2."}, "2", "mine"),  # DeepScaleR
        ({"ID": "2024-I-1", "Problem": "What is 1+1?", "Answer": 2, "Solution": ""}, "2", "mine"),  # Maxwell-Jia
        ({"problem": "What is 1+1?", "answer": "\\frac{4}{2}", "problem_type": ["Algebra"]}, "\\frac{4}{2}", "mine"),
        ({"problem": "What is 1+1?", "answer": "2", "level": 3, "subject": "Algebra"}, "2", "level 3"),  # MATH-500
        ({"problem": "What is 1+1?", "answer": 2.0, "difficulty": 7.5}, "2", "difficulty 7.5"),  # Omni-MATH, AMC
        ({"problem": "What is 1+1?", "answer": "2", "difficulty": "hard"}, "2", "hard"),  # our own buckets
        ({"problem": "What is 1+1?", "expected_answer": "2", "pass_rate_72b_tir": "0.5"}, "2", "mine"),  # OpenMath
        ({"question": "What is 1+1?", "answer": "1 + 1 = 2\n#### 1,002"}, "1002", "mine"),  # GSM8K
        (VERL, "2", "level 3"),
        (VERL | {"reward_model": {"ground_truth": ["\\boxed{2}"]}}, "2", "level 3"),
        (
            VERL | {"prompt": "What is 1+1? Let's think step by step and output the final answer within \\boxed{}."},
            "2",
            "level 3",
        ),
    ],
)
def test_schemas(row, answer, difficulty):
    """Every column name that the sets use is read, and no instruction is left in the problem."""
    fields = read_math(row, source="mine")
    assert fields[:4] == Fields("math", "What is 1+1?", answer, difficulty, {})[:4]


ASKED = [{"role": "user", "content": "What is 1+1?"}]
TRUTH = '{"ground_truth": "2"}'
RL_FORMS = [  # a row, its malformed twin, and what is said of that
    ({"prompt": "What is 1+1?", "solution": "2"}, {"prompt": "What is 1+1?", "solution": ""}, "the answer is empty"),
    (
        {"prompt": ASKED, "solution": "So $\\boxed{2}$."},
        {"prompt": [{"role": "assistant", "content": "2"}], "solution": "2"},
        "prompt has 0 user turns",
    ),
    ({"prompt": ASKED, "ground_truth": 2}, {"prompt": ASKED, "ground_truth": None}, "no answer"),
    ({"prompt": json.dumps(ASKED), "answer": "2"}, {"prompt": "[]", "answer": {}}, "neither text nor number"),
    (
        {"prompt": ASKED, "reward_model": TRUTH},
        {"prompt": ASKED, "reward_model": "{2}"},
        "reward_model has no ground_truth",
    ),
    (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "What is 1+1?"}]}], "answer": "2"},
        {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "2"},
        "only parts of type text are read",
    ),
    ({"messages": [*ASKED, {"role": "assistant", "content": "\\boxed{2}"}]}, {"messages": ASKED}, "no answer"),
    (
        {"conversations": [{"from": "human", "value": "What is 1+1?"}, {"from": "gpt", "value": "2"}]},
        {"conversations": [{"from": "gpt", "value": "2"}]},
        "prompt has 0 user turns",
    ),
    (
        {"prompt": "What is 1+1?", "completion": "2"},
        {"prompt": "What is 1+1?", "completion": []},
        "not a list of messages",
    ),
    (
        {"prompt": ASKED, "completion": [{"role": "assistant", "content": "2"}]},
        {"prompt": ASKED, "completion": [{}]},
        "not an object with role",
    ),
    (
        {"instruction": "What is 1+1?", "input": "", "output": "2"},
        {"instruction": "", "output": "2"},
        "the problem is ''",
    ),
    ({"query": "What is 1+1?", "response": "2"}, {"query": ["x"], "response": "2"}, "not a text"),
]


@pytest.mark.parametrize(("row", "malformed", "said"), RL_FORMS)
def test_forms_of_other_trainers(row, malformed, said):
    """TRL's and verl's rows, and those of fine-tuning, are questions with answers as they are."""
    assert read_math(row, source="mine") == Fields("math", "What is 1+1?", "2", "mine", {})
    with pytest.raises(ValueError, match=said):
        read_math(malformed, source="mine")


def test_answers_may_be_missing_for_an_own_reward():
    """A reward that reads no answer needs none; the question is still needed."""
    for row in ({"prompt": ASKED}, {"question": "What is 1+1?", "answer": None}, {"messages": ASKED}):
        assert read_math(row, source="mine", answered=False)[:3] == ("math", "What is 1+1?", "")
    with pytest.raises(ValueError, match="no problem"):
        read_math({"text": "x"}, source="mine", answered=False)


def test_kept_columns():
    """Columns that difficulty presets and tables read later stay, without verl's split and index of another set."""
    assert read_math(VERL, source="mine").meta == {"data_source": "d", "level": 3}
    row = {"problem": "p", "answer": "1", "reward": 0.25, "pass_rate_72b_tir": "0.5", "solution": "long"}
    assert read_math(row, source="mine").meta == {"reward": 0.25, "pass_rate_72b_tir": "0.5"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"problem": "p", "answer": ""}, "the answer is empty"),
        ({"problem": "p", "answer": "  "}, "the answer is empty"),
        ({"problem": "p", "answer": "\\boxed{}"}, "the answer is empty"),
        ({"problem": "p", "answer": None}, "no answer"),
        ({"problem": "p"}, "no answer"),
        ({"problem": "p", "answer": float("nan")}, "the answer is nan"),
        ({"problem": "p", "answer": {"value": 1}}, "neither text nor number"),
        ({"problem": "p", "answer": True}, "neither text nor number"),
        ({"problem": "p", "answer": ["1", "2"]}, "2 answers, not one"),
        ({"problem": " ", "answer": "1"}, "the problem is ' ', not a text"),
        ({"problem": None, "answer": "1"}, "no problem"),
        ({"problem": 3, "answer": "1"}, "the problem is 3"),
        (VERL | {"prompt": []}, "0 user turns"),
        (VERL | {"prompt": [{"role": "user"}]}, "no list of messages"),
        (VERL | {"prompt": 5}, "no list of messages"),
        (VERL | {"reward_model": {"style": "rule"}}, "no ground_truth"),
        (VERL | {"reward_model": None}, "no ground_truth"),
    ],
)
def test_malformed_rows_say_why(row, said):
    """Guards: a KeyError without a row number, or a problem that no answer can solve."""
    with pytest.raises(ValueError, match=said):
        read_math(row, source="mine")


def test_gold_answers():
    """Only what is surely the same number changes: AIME's zeros, AMC's floats, one box around all of it."""
    same = ["0", "0101", "2.50", "1/2", "-3", "\\text{Evelyn}", "x.0", "1,000", "3.0 \\text{ cm}"]
    assert [gold(x) for x in same] == same
    assert [gold(x) for x in ("000", "025", "7", 25.0, -4.0, "-4.00", 0.5)] == ["0", "25", "7", "25", "-4", "-4", "0.5"]
    assert unboxed("\\boxed{1} and \\boxed{2}") == "\\boxed{1} and \\boxed{2}"
    assert unboxed("\\boxed{\\{1, 2\\}}") == "\\{1, 2\\}"
    assert unboxed("\\boxed{\\frac{1}{2}}") == "\\frac{1}{2}"


def test_floats_are_written_out():
    """Guards: gold(1e-05) was "1e-05", which no response could match; an integer too long for Python says so."""
    values = (1e-05, 1e16, 2.5e-07, -1e-7, 6.02e23, 0.1)
    written = ["0.00001", "10000000000000000", "0.00000025", "-0.0000001", "602000000000000000000000", "0.1"]
    assert [gold(x) for x in values] == written
    assert gold("1e-05") == "1e-05"  # a text stays, and the grader reads it
    with pytest.raises(ValueError, match="an integer of 16610 bits"):
        gold(10**5000)


def test_instructions_are_stripped():
    """Guards: DeepScaleR-10K's instruction beside ours in one prompt; e3's own sets carry e3's."""
    ours = PROMPTS["e3"].replace("{problem}", "What is $x$?")
    assert without_instruction(ours) == "What is $x$?"
    assert without_instruction("Let x be a step.") == "Let x be a step."


def test_prompts_by_name():
    """The prompts are the paper's words; braces in a problem are not fields."""
    assert prompt_text("e3", problem="What is $\\frac{1}{2}$?") == (
        "What is $\\frac{1}{2}$? Let's think step by step and output the final answer within \\boxed{}."
    )
    assert prompt_text("qwen", problem="{a} {problem}").startswith("{a} {problem}\nPlease reason")
    assert prompt_text("open-models", problem="P").endswith("\\boxed{your answer}. Problem: P")
    assert prompt_text("multiply-check", a=12, b=34).startswith("Multiply 12 and 34. Please reason step by step, and")
    with pytest.raises(UserError, match=r"prompt 'e4' is not one for problem: use one of bare, e3, qwen, matharena"):
        prompt_text("e4", problem="P")
    with pytest.raises(UserError, match=r"not one for a and b: use one of multiply-check, multiply$"):
        prompt_text("e3", a=1, b=2)
    assert qwen3_chat("x") == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
