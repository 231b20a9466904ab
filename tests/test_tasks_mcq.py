"""MMLU, MMLU-Pro and GPQA: the right letter follows its choice wherever the order puts it."""

import pytest

from e3jax.tasks.mcq import read_mcq

MMLU = {"question": "Which is a prime?", "subject": "math", "choices": ["4", "6", "7", "8"], "answer": 2}
PRO = {
    "question_id": 1, "question": "Which is a prime?", "options": ["4", "6", "7", "8", "9", "10"], "answer": "C",
    "answer_index": 2, "category": "math", "cot_content": "", "src": "x",
}  # fmt: skip
GPQA = {
    "Question": "Which is a prime?", "Correct Answer": "7\n", "Incorrect Answer 1": "4", "Incorrect Answer 2": "6",
    "Incorrect Answer 3": "8",
}  # fmt: skip


def choice_of(fields) -> str:
    """Return the choice that the gold letter names in the text that a model reads."""
    line = next(line for line in fields.problem.split("\n") if line.startswith(f"{fields.answer}. "))
    return line.partition(". ")[2]


@pytest.mark.parametrize("row", [MMLU, PRO, PRO | {"answer": None}, GPQA], ids=["mmlu", "pro", "pro-index", "gpqa"])
@pytest.mark.parametrize("shuffle", [None, True])
def test_the_letter_names_the_right_choice(row, shuffle):
    """In the set's order and in 40 random ones."""
    for index in range(40):
        fields = read_mcq(row, source="s", index=index, seed=3, shuffle=shuffle)
        assert fields.task == "mcq" and choice_of(fields) == "7"
        assert fields.problem.startswith("Which is a prime?\n\nA. ")
        assert [fields.meta["choices"][k] for k in range(len(fields.meta["order"]))] == [
            line.partition(". ")[2] for line in fields.problem.split("\n")[2:]
        ]


def test_own_order_is_kept():
    """MMLU and MMLU-Pro come with an order, and published numbers use it."""
    assert read_mcq(MMLU, source="s", index=5, seed=1).meta["order"] == [0, 1, 2, 3]
    assert read_mcq(PRO, source="s", index=5, seed=1).answer == "C"
    assert read_mcq(MMLU, source="s", index=0, seed=0).difficulty == "math"


def test_gpqa_is_shuffled_by_a_recorded_seed():
    """Guards: the right answer always being A; an order that changes from run to run, or the same for every row."""
    questions = [read_mcq(GPQA, source="gpqa", index=i, seed=0) for i in range(200)]
    assert questions == [read_mcq(GPQA, source="gpqa", index=i, seed=0) for i in range(200)]
    assert questions[3].meta["seed"] == 0 and sorted(questions[3].meta["order"]) == [0, 1, 2, 3]
    letters = [a.answer for a in questions]
    assert all(30 < letters.count(letter) < 70 for letter in "ABCD"), letters  # 50 each, sd 6
    assert letters != [read_mcq(GPQA, source="gpqa", index=i, seed=1).answer for i in range(200)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (MMLU | {"answer": 4}, "the answer is 4 of 4 choices"),
        (MMLU | {"answer": -1}, "the answer is -1 of 4 choices"),
        (MMLU | {"answer": "7"}, "neither a letter nor a number"),
        (MMLU | {"answer": True}, "neither a letter nor a number"),
        (MMLU | {"answer": None}, "no answer"),
        (MMLU | {"choices": ["7"]}, "1 choices, not 2 to 26"),
        (MMLU | {"choices": ["4", "", "7", "8"]}, "a choice is empty"),
        (MMLU | {"question": ""}, "the question is '', not a text"),
        (PRO | {"answer": "G"}, "the answer is 'G' of 6 choices"),
        (GPQA | {"Incorrect Answer 2": None}, "a choice is empty"),
    ],
)
def test_malformed_rows_say_why(row, said):
    """Guards against a wrong letter taken from a broken row."""
    with pytest.raises(ValueError, match=said):
        read_mcq(row, source="s", index=0, seed=0)
