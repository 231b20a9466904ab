r"""rewards/math.py: hand pairs, math-verify's false accepts, e3's rules, gold answers, hostile text, the pool.

The pass over all of DeepScaleR-10K and 20,000 responses: benchmarks/graders.py.
"""

import json
import os
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest

from benchmarks.graders import DATA, HOSTILE, KINDS, gold_answers, mixed, perturbations, problem, response
from e3jax.errors import UserError
from e3jax.rewards import math
from e3jax.rewards.extract import Grade, boxed_answer, last_boxed
from e3jax.rewards.latex import normal, number, parts
from e3jax.rewards.math import compare, grade_text
from e3jax.rewards.symbolic import too_big
from e3jax.rewards.workers import GraderPool
from e3jax.tasks.grade import grade_one

ROOT = Path(__file__).parent.parent
REASONS = {
    "correct", "no_thinking", "no_answer", "too_long", "wrong_value", "unreduced", "not_a_number", "unevaluated",
    "too_big", "unreadable",
}  # fmt: skip
# (gold, kind, wrong answer, why it is not a mistake of the grader): benchmarks/graders.py, all of the data
EXCEPTIONS = json.loads((ROOT / "tests/golden/math_exceptions.json").read_text())

# ---- where the answer is


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}.", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\left\{1\right.}", r"\left\{1\right."),  # escaped braces open nothing
        (r"\boxed{a\\}", r"a\\"),  # and \\ is no escape of the brace after it
        (r"\fbox{3}", "3"),
        (r"\boxed{1} \fbox{3}", "1"),  # the reference: \fbox only without any \boxed
        (r"\boxed {4}", "4"),
        (r"\boxed{5} \boxed{6", None),  # the last one counts, and it is not closed
        (r"\boxed 7", None),
        ("", None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


def test_where():
    """The reference reads the whole response, so a box inside the thinking counts once </think> is there."""
    inside, behind, none = r"\boxed{1}</think> so", r"\boxed{1}</think>\boxed{2}", r"\boxed{1}"
    assert boxed_answer(inside, where="response") == ("1", "")
    assert boxed_answer(inside, where="after_thinking") == (None, "no_answer")
    assert boxed_answer(behind, where="response") == boxed_answer(behind, where="after_thinking") == ("2", "")
    for where in ("response", "after_thinking"):
        assert boxed_answer(none, where=where) == (None, "no_thinking")
    assert boxed_answer(none, where="anywhere") == ("1", "")
    assert boxed_answer(r"</think>\boxed{ }", where="response") == (None, "no_answer")
    with pytest.raises(UserError, match=r"where='end'.*after_thinking"):
        boxed_answer(none, where="end")


def test_where_comes_with_the_problem():
    """So it reaches the workers' processes, which see nothing of the config."""
    inside = r"\boxed{7}</think> so"
    assert grade_one(problem("7", where="response"), inside, True) == Grade(1.0, "correct")
    assert grade_one(problem("7", where="after_thinking"), inside, True) == Grade(0.0, "no_answer")
    assert grade_one(problem("7"), response("7"), False) == Grade(0.0, "truncated")
    lost = problem("7")
    lost.meta.pop("where")
    with pytest.raises(UserError, match=r'meta\["where"\]'):
        grade_one(lost, inside, True)


def test_a_gold_answer_may_come_boxed():
    assert grade_text(problem(r"so \boxed{\frac{1}{2}}"), response("0.5")).score == 1.0


# ---- numbers, exactly


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("025", 25),
        ("-7", -7),
        ("+7", 7),
        ("7.", 7),
        ("142.0", 142),
        (".5", Fraction(1, 2)),
        ("1,234,567", 1234567),
        ("12{,}345", 12345),
        (r"11,\! 111,\! 100", 11111100),
        ("5 000 000", 5000000),
        (r"\$1,000.50", Fraction(2001, 2)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"\dfrac34", Fraction(3, 4)),
        (r"-\tfrac{3}{4}", Fraction(-3, 4)),
        (r"\frac{-3}{4}", Fraction(-3, 4)),
        ("3/4", Fraction(3, 4)),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        ("2 1/2", Fraction(5, 2)),
        (r"8 \times 10^{-5}", Fraction(1, 12500)),
        (r"0.\overline{3}", Fraction(1, 3)),
        (r"1.2\overline{18}", Fraction(67, 55)),
        (r"90^\circ", 90),
        (r"50\%", 50),
        (r"40 \text{ inches}", 40),
        (r"12 \text{ cm}^2", 12),
        ("20 seconds", 20),
        (r"\text{5 apples}", 5),
        ("(2)", 2),
        ("{2}", 2),
        ("−3", -3),
        (r"$\frac{ 1 } { 2 }$", Fraction(1, 2)),
        (r"\(7\)", 7),
        (r"\mathrm{7}", 7),
        (r"\mathbf{7}", 7),
    ],
)
def test_numbers(text, value):
    assert number(normal(text))[0] == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "3+2",
        r"3\cdot2",
        "2^5",
        "5!",
        r"\sqrt{4}",
        "1 2",
        "5x",
        r"5 \text{ million}",
        "5 dozen",
        r"\frac{1}{0}",
        "1:2",
        "(1,2)",
        "3 or 4",
        "1.2.3",
        "--3",
        "1,23",
        "٣",
        "2516_8",
        r"\pi",
        "7:55",
    ],
)
def test_no_numbers(text):
    assert number(normal(text)) is None


def test_thousands_are_not_lists():
    assert parts(normal("1,234")).kind == "" and parts(normal("1, 234")).items == ["1", "234"]
    assert parts(normal("(100,200)")).items == ["100", "200"]


# ---- pairs

SAME = [
    (r"\frac{14}{3}", "14/3"), (r"\frac{14}{3}", r"4\frac{2}{3}"), (r"\frac{6}{4}", "1.5"), ("0.5", r"\frac12"),
    ("0", "-0"), ("5", r"5\%"), ("x=5", "5"), ("5", "x = 5"), ("5", r"\angle ABC = 5^\circ"),
    (r"\text{Evelyn}", "evelyn"),
    (r"\text{(C)}", "C"), ("C", r"\textbf{(C)}"), ("1,-2", "-2, 1"), ("1,-2", r"x=1 \text{ or } x=-2"),
    ("1,-2", r"\{-2,1\}"),
    (r"6, 8\text{, and }10", "6,8,10"), (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"),
    ("(3,4]", r"\left(3, 4\right]"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \frac{2\pi}{4})"), (r"x \in [-2,7]", "[-2,7]"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty)\cup(-\infty,2)"), ("2516_8", "2516_{8}"),
    ("1:5 000 000", "1 : 5,000,000"),
    (r"7:55 \text{ p.m.}", "7:55 PM"),
    (r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}", r"\begin{pmatrix}-\frac13\\\frac23\end{pmatrix}"),
    ("p - q", "-q+p"), (r"11\sqrt2", r"\sqrt{242}"), ("6 - 5i", "-5i+6"), ("2x-3y=0", "3y=2x"), ("y=2x+3", "2x+3"),
    ("a > 1", "1 < a"), (r"\frac{1}{1-x}", r"-\frac{1}{x-1}"), (r"\cot x", r"\frac{\cos x}{\sin x}"),
    ("e^{-1}", r"\frac1e"),
    (r"2.5\pi", r"\frac{5\pi}{2}"), (r"(0.03)^2 \times 0.97 + (0.03)^3", "0.0009"),
    (r"\frac{0.9}{0.7 \times 53}", r"\frac{9}{371}"),
    (r"2^{5} \cdot 3!", "192"), ("2y=4x+6", "y=2x+3"), ("y=2x+3", "3+2x=y"), ("2^{-2023}", "0.5^{2023}"),
    ("x^2+y^2=4", "4-y^2=x^2"), (r"3\sqrt{2}i", r"i\sqrt{18}"), (r"12\pi \text{ cm}", r"12 \pi"),
]  # fmt: skip
DIFFERENT = [
    ("5", "3+2", "not_a_number"), ("56088", r"123\times456", "not_a_number"), ("1024", "2^{10}", "not_a_number"),
    ("120", "5!", "not_a_number"), (r"\frac{5}{6}", r"\frac12+\frac13", "not_a_number"), ("5", "five", "not_a_number"),
    (r"\frac{14}{3}", r"\frac{28}{6}", "unreduced"), ("5", r"\frac{10}{2}", "unreduced"), ("5", "-5", "wrong_value"),
    (r"\frac13", "0.3333", "wrong_value"), ("0.0000001", "0.0", "wrong_value"), ("0.5", r"50\%", "wrong_value"),
    ("5000000", r"5 \text{ million}", "not_a_number"), ("12", "1 2", "not_a_number"), ("5", "5 or 7", "wrong_value"),
    (r"\pi", "3.141593", "wrong_value"), (r"\sqrt3", "1.7320508", "wrong_value"), ("2516_8", "2516", "wrong_value"),
    ("2516", "2516_8", "not_a_number"), ("(1,2)", r"\{1,2\}", "wrong_value"), ("(1,2)", "(2,1)", "wrong_value"),
    ("(1,2)", "1,2", "wrong_value"), ("[0,1)", "(0,1]", "wrong_value"), ("1,-2", "1", "wrong_value"),
    ("1,1,2", "1,2,2", "wrong_value"),
    ("x=5", "y=5", "wrong_value"), ("p-q", "q-p", "wrong_value"), (r"\text{Evelyn}", r"\text{Navin}", "wrong_value"),
    ("C", "B", "wrong_value"), ("2:3", "3:2", "wrong_value"), (r"3\sqrt2", r"2\sqrt3", "wrong_value"),
    (r"\frac{n(n+1)}{2}", r"\sum_{k=1}^{n} k", "unevaluated"), (r"\pi", r"9^{9^{9}}\pi", "too_big"),
    (r"\pi", "+1" * 200, "too_long"),
    ("y=2x+3", "2y=2x+3", "wrong_value"), ("f(n)=n", "-f(n)=n", "wrong_value"),
    ("2x+3", "2y=2x+3", "wrong_value"), ("2^{-2023}", "3^{-2023}", "wrong_value"),
    (r"10^{-20}\pi", "10^{-20}e", "wrong_value"),
    (r"\frac{2009! + 1}{2009!}", r"\frac{2000! + 1}{2009!}", "wrong_value"),
    ("5", "1" * 1001, "too_long"), (r"\pi", r"\div", "unreadable"),
    ("y=2x+3", "y'=2x+3", "unreadable"), ("0.333", "0.333...", "not_a_number"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_same(gold, answer):
    assert compare(gold, answer) == "correct"


@pytest.mark.parametrize(("gold", "answer", "reason"), DIFFERENT)
def test_different(gold, answer, reason):
    assert reason in REASONS and compare(gold, answer) == reason


def test_every_reason_is_documented():
    for reason in REASONS:
        assert reason in math.__doc__, reason


# ---- real answers


def in_subset(name: str, i: int) -> bool:
    """Return whether an answer is tested: all of AIME, HMMT and AMC, a tenth of MATH-500, a hundredth of DeepScaleR."""
    return i % {"math500": 10, "deepscaler_10k": 100}.get(name, 1) == 0


@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not here")
def test_gold_answers():
    """At least 99.5 % are right each way, and EXCEPTIONS lists the others."""
    pytest.importorskip("pyarrow", reason="reads DeepScaleR's parquet file: pip install -e '.[test]'")
    listed = {(e["gold"], e["kind"]) for e in EXCEPTIONS}
    right, wrong = [], []
    for name, answers in gold_answers().items():
        for i, gold in enumerate(answers):
            right.append(grade_text(problem(gold), response(gold)).score)
            if in_subset(name, i):
                for kind, answer in perturbations(gold).items():
                    ok = grade_text(problem(gold), response(answer)).score == 0.0
                    assert ok or (gold, kind) in listed, (gold, kind, answer)
                    wrong.append(ok)
    assert len(right) == 10_671 and sum(right) / len(right) >= 0.995
    assert len(wrong) > 1000 and sum(wrong) / len(wrong) >= 0.995


def test_exceptions_are_still_exceptions():
    """An exception that the grader now gets right must leave the list."""
    for e in EXCEPTIONS:
        assert e["kind"] in ("gold", *KINDS) and e["why"]
        answer = e["gold"] if e["kind"] == "gold" else perturbations(e["gold"])[e["kind"]]
        assert (compare(e["gold"], answer) == "correct") == (e["kind"] != "gold"), e


# ---- hostile text, long text


def test_long_responses_take_linear_time():
    """62k characters of braces, boxes and tags, and an answer of that length."""
    texts = [
        "{" * 31_000 + "}" * 31_000 + r"</think>\boxed{204}",
        r"\boxed{" * 9000 + "</think>",
        "</think>" * 8000,
        r"</think>\boxed{" + "{}" * 31_000 + "}",
        r"</think>\boxed{" + "1" * 62_000 + "}",
        "\\" * 62_000 + r"</think> \boxed{204}",
        " " * 62_000 + r"</think>\boxed" + " " * 62_000,
    ]
    start = time.process_time()
    reasons = [grade_text(problem("204"), text, where="response").reason for text in texts]
    assert reasons == ["correct", "no_answer", "no_answer", "too_long", "too_long", "correct", "no_answer"]
    assert time.process_time() - start < 1.0


def test_long_answers_take_bounded_time():
    """The longest answers that are read, made of what the patterns have to walk over."""
    bits = (
        " ",
        "1",
        "1 ",
        "1,",
        "{",
        "(",
        "()",
        r"\text{",
        r"\text{a}",
        r"\frac",
        r"\frac1",
        "^",
        "_{1}",
        "a",
        r"\left",
        "$",
        "1 a",
        "1 aa ",
    )
    start = time.process_time()
    for bit in bits:
        assert compare("204", (bit * 1000)[: math.MAX_CHARS]) != "correct"
    assert time.process_time() - start < 2.0


def test_what_sympy_would_choke_on_is_turned_away():
    for text in (
        "9^9^9^9",
        "9^{9^{9}}",
        "(10^9)!",
        "5!!!!",
        "(9^9)^{999}",
        "2^{99999}",
        "(" * 20 + "x" + ")" * 20,
        "1" * 50,
    ):
        assert too_big(text), text
    for text in (
        r"2^{25}\cdot26!",
        r"\frac{2016!}{1953!}",
        "x^{12}+x^{11}",
        "2^{2010}",
        r"\binom{50}{19}",
        r"\left(1-2^{-\frac{1}{32}}\right)^{-1}",
    ):
        assert not too_big(text), text


@pytest.fixture
def here(monkeypatch):
    """Let the workers import this checkout."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))


def test_hostile_answers_get_grades(here):
    """Against a number, an expression and an equation no worker hangs and none dies."""
    golds = ("204", r"3\sqrt{13}", "y=2x+3")
    problems, texts = zip(*[(problem(gold), response(text)) for text in HOSTILE for gold in golds])
    with GraderPool(workers=1, timeout_s=60.0) as pool:
        grades = pool.grade_all(problems, texts, [True] * len(texts))
        assert len(pool.started) == 1  # the first worker lived through it all
    assert {grade.reason for grade in grades} <= REASONS - {"correct"}


def test_the_pool_gives_the_same_verdicts(here):
    """1,000 responses up to 62k characters: in this process, with 8 workers, and with 1 from another thread."""
    items = mixed(1000)
    verdicts = {}
    with GraderPool(workers=8, timeout_s=60.0) as pool:
        verdicts["8"] = pool.grade_all(*items)
        left = [worker.process for worker in pool.started]
    with GraderPool(workers=1, timeout_s=60.0) as pool:
        thread = threading.Thread(target=lambda: verdicts.update({"1, thread": pool.grade_all(*items)}))
        thread.start()
        thread.join()
    start = time.process_time()
    verdicts["here"] = [grade_one(*item) for item in zip(*items)]
    seconds = time.process_time() - start
    assert verdicts["8"] == verdicts["1, thread"] == verdicts["here"]
    assert all(process.poll() is not None for process in left)  # reaped: no zombies
    reasons = {grade.reason for grade in verdicts["here"]}
    assert reasons >= {"correct", "wrong_value", "truncated", "no_thinking", "no_answer"} and "timeout" not in reasons
    assert 300 < sum(grade.score for grade in verdicts["here"]) < 500
    assert seconds < 20.0


def test_expressions_are_compared_off_the_main_thread():
    """math-verify's own timeouts need signals, which other threads have not: an error there once became reward 0."""
    reasons = []
    thread = threading.Thread(target=lambda: reasons.append(compare(r"5\sqrt{13}", r"\sqrt{325}")))
    thread.start()
    thread.join()
    assert reasons == ["correct"]


def test_numbers_need_no_math_verify_and_expressions_say_what_to_install():
    code = (
        "import sys; sys.modules['math_verify'] = None\n"
        "from e3jax.rewards.math import compare\n"
        "assert compare('204', '0204') == 'correct' and compare('204', '2+2') == 'not_a_number'\n"
        "compare('x+1', '1+x')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "UserError" in ran.stderr and "pip install 'e3jax[math]'" in ran.stderr
