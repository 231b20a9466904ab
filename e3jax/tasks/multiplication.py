"""Multiplication of two whole numbers (e3's MULT, 5 digits by 5): problem i is a function of (seed, i).

    problem = multiplication_problem(0, 7, digits=(5, 5), split="train", prompt="multiply")

MULT and MULT-V are the same problems for two base models (e3 App. E.1): MULT-V's was first trained on traces made
with the prompt "multiply-check", which asks for checks. Graded in rewards/multiplication.py.
"""

from collections.abc import Sequence

from e3jax.errors import UserError, need
from e3jax.tasks.problem import Problem, draws_of, split_of
from e3jax.tasks.prompts import Chat, prompt_text, qwen3_chat
from e3jax.tasks.stream import DEFAULT_WORDING, Stream, Wording, endless


def multiplication_problem(
    seed: int,
    index: int,
    *,
    digits: tuple[int, int],
    split: str,
    prompt: str,
    chat: Chat = qwen3_chat,
    where: str = "response",
) -> Problem:
    """Return problem `index`: a times b, which are uniform over the numbers of digits[0] and of digits[1] digits.

    They are drawn until (a, b) belongs to `split`.
    a x b and b x a are one product, and are in one split (`split_of`).
    `prompt`, `chat`, `where` as in tasks/sets.py; a model that was not taught to think needs where="anywhere".
    UserError for digits outside 1..18 and for another split.
    """
    a, b = factors(seed, index, digits=digits, split=split)
    size = "x".join(map(str, digits))
    return Problem(
        id=f"multiplication-{split}-{size}-{seed}-{index}",
        task="multiplication",
        question=chat(prompt_text(prompt, a=a, b=b)),
        answer=str(a * b),
        difficulty=f"{size} digits",
        meta={"source": "multiplication", "index": index, "problem": f"{a} * {b}", "a": a, "b": b, "where": where},
    )


def products_problem(seed: int, index: int, *, digits: tuple[int, int], split: str) -> Problem:
    """Return the same product in the words of tiny models: "4 7 * 6" (tasks/product_traces.py)."""
    a, b = factors(seed, index, digits=digits, split=split)
    size = "x".join(map(str, digits))
    return Problem(
        id=f"products-{split}-{size}-{seed}-{index}",
        task="products",
        question=f"{' '.join(str(a))} * {' '.join(str(b))}",
        answer=str(a * b),
        difficulty=f"{size} digits",
        meta={"form": "products", "a": a, "b": b},
    )


def factors(seed: int, index: int, *, digits: tuple[int, int], split: str) -> tuple[int, int]:
    """Return the two numbers of product `index`."""
    if len(digits) != 2 or not all(1 <= d <= 18 for d in digits):
        raise UserError(f"digits={tuple(digits)}: two counts of digits, 1 to 18 each")
    rng = draws_of(seed, *digits, index, split=split)
    while True:
        a, b = (int(rng.integers(10 ** (d - 1), 10**d)) for d in digits)
        if split_of(*sorted((a, b))) == split:
            return a, b


def open_multiplication(digits: Sequence[int], *, seed: int, split: str, wording: Wording = DEFAULT_WORDING) -> Stream:
    """Return the stream of `multiplication_problem`s."""
    how = dict(digits=tuple(digits), split=split, prompt=wording.prompt, chat=wording.chat, where=wording.where)
    return endless(lambda i: multiplication_problem(seed, i, **how))


def open_products(digits: Sequence[int], *, seed: int, split: str, wording: Wording = DEFAULT_WORDING) -> Stream:
    """Return the stream of `products_problem`s."""
    return endless(lambda i: products_problem(seed, i, digits=tuple(digits), split=split))


def need_digits(field: str, digits) -> None:
    """Refuse config.`field` unless it is two counts of digits, 1 to 18 each."""
    counts = isinstance(digits, tuple | list) and len(digits) == 2
    whole = counts and all(isinstance(d, int) and not isinstance(d, bool) and 1 <= d <= 18 for d in digits)
    need(whole, field, digits, "two counts of digits, 1 to 18 each")
