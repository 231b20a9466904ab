"""Problem i is a function of (seed, i); its answer is the product; no test product is ever trained on."""

import pytest

from e3jax.errors import UserError
from e3jax.tasks.multiplication import multiplication_problem
from e3jax.tasks.stream import Wording
from e3jax.tasks.table import TASKS


def made(seed, index, digits=(5, 5), split="train", prompt="multiply"):
    return multiplication_problem(seed, index, digits=digits, split=split, prompt=prompt)


def test_products_and_digits():
    """Both ends of the range of 5 digits are possible, and nothing outside it."""
    for index in range(300):
        p = made(0, index, (5, 3))
        a, b = p.meta["a"], p.meta["b"]
        assert 10_000 <= a <= 99_999 and 100 <= b <= 999 and p.answer == str(a * b)
        assert p.task == "multiplication" and p.difficulty == "5x3 digits" and p.meta["problem"] == f"{a} * {b}"
        assert (
            f"Multiply {a} and {b}. Please reason step by step, and put your final answer within \\boxed{{}}."
            in p.question
        )
    assert len({made(0, i).id for i in range(300)}) == len({made(0, i).question for i in range(300)}) == 300
    assert {made(0, i, (1, 1)).meta["a"] for i in range(300)} == set(range(1, 10))


def test_a_function_of_seed_and_number():
    """It does not depend on earlier calls; another seed is another sequence."""
    backwards = [made(4, i) for i in reversed(range(20))][::-1]
    assert backwards == [made(4, i) for i in range(20)]
    assert all(made(4, i) != made(5, i) for i in range(20))
    draw = TASKS["multiplication"].open((5, 5), seed=4, split="train", wording=Wording(prompt="multiply"))
    assert draw(7, 5) == backwards[7:12]


def test_prompt_of_the_paper():
    """The prompt is Box E.1, in the chat form."""
    p = made(0, 0, prompt="multiply-check")
    assert p.question == (
        f"<|im_start|>user\nMultiply {p.meta['a']} and {p.meta['b']}. Please reason step by step, and put your final "
        "answer within \\boxed{}. At each step, try to verify your response if possible and prefix the line with "
        '"Check:". <think><|im_end|>\n<|im_start|>assistant\n'
    )


def test_splits_share_no_product():
    """With one digit all 81 products are drawn, and a x b counts as b x a."""
    pairs = {"train": set(), "test": set()}
    for split, seen in pairs.items():
        for seed in (0, 1):
            metas = [made(seed, i, (1, 1), split).meta for i in range(400)]
            seen.update(tuple(sorted((m["a"], m["b"]))) for m in metas)
    assert not pairs["train"] & pairs["test"] and len(pairs["train"] | pairs["test"]) == 45
    assert 2 <= len(pairs["test"]) <= 12  # an eighth of 45, by a fixed hash


def test_errors_are_sentences():
    """Guards against numpy's ValueError for 10**19."""
    with pytest.raises(UserError, match=r"digits=\(5, 19\): two counts of digits, 1 to 18 each"):
        made(0, 0, (5, 19))
    with pytest.raises(UserError, match="split='dev'"):
        made(0, 0, split="dev")
    with pytest.raises(UserError, match="use one of multiply-check, multiply"):
        made(0, 0, prompt="e3")
