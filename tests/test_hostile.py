"""No text of a model makes a reader of it slow, or makes it raise (benchmarks/hostile.py lists the readers)."""

import ast
import random
import sys
from pathlib import Path

import pytest

from benchmarks import hostile
from benchmarks.hostile import FRAGMENTS, IN_COMMANDS, READERS, SIZES, Reader, growth, slow_growth
from e3jax.metrics.exploration import STARTS, repetition, verification_starts
from e3jax.report.browser import answer_spans
from e3jax.rewards.extract import MOST_DIGITS, integers
from e3jax.rewards.plan import plan_share
from e3jax.tasks.grade import grade_one
from e3jax.tasks.table import task_of

ROOT = Path(__file__).parent.parent
APPLY = ("search", "match", "fullmatch", "findall", "finditer", "sub", "subn", "split")
# regular expressions in these read what people and programs write: flags, data sets, figures, compiled programs, names
NOT_OF_MODELS = (
    "flags.py", "log.py", "tasks/math.py", "tasks/plan_prompts.py", "report/files.py",
    "didactic/panels.py", "report/figures.py", "tools/aot.py", "tools/hlo.py", "checkpoint/pretrained.py",
    "checkpoint/store.py", "tasks/own_reward.py",
)  # fmt: skip
ORDINARY = (
    "Let me see: 3 + 4 = 7.\n\nWait, 7*2=14. Alternatively:\n1. **Add** both\n2. Halve it.",
    r"<think>so $x=3$ is wrong. \(y\) too, not true.</think>\boxed{\frac{1}{2}} answer is C",
    "1. add\n2. halve\n", "<answer>7 + 5 * 2</answer>", "7 + 5 * 2 = 12 24 ?24 0 yes", "6 7 3 = 6 4 7 ?7 yes",
    "Try 7 + 5 * 2: 5 * 2 = 10, 7 + 10 = 17. Not 24.", "Multiply 6 by 7.\n6 * 7 = 42\nSo the product is 42. That is 6.",
    r"5 \text{ cm}", r"x^2-0.5", r"x+1!", "42", "1, 2", r"(1,2),(3,\frac\pi2]", r"\frac{14}{3}", r"3\sqrt{13}",
    "½", r"\frac{14}{3} \approx 4.67", "x < 5", r"x \in (1,2)",
)  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_time_is_linear_in_the_text(name):
    """Newlines stopped the trainer in verification_starts: 20,000 took 6.7 s, and five times as many 25 times as long.

    So did digits in `followed_original`, <answer> and newlines in `text_spans`.
    """
    few = FRAGMENTS[len(name) % 8 :: 8] if name in IN_COMMANDS else FRAGMENTS
    assert not growth(name, fragments=few, sizes=SIZES[:2])


def test_quadratic_work_is_noticed():
    """The check itself works: it notices the old regular expression, and does not object to a linear one."""
    import re

    old = re.compile(r"(?:^|[.!?\n])\s*([^\s.!?])")
    assert "not linear" in slow_growth(
        Reader(lambda text: [*old.finditer(text)], 50.0), lambda n: "\n" * n, (1000, 5000)
    )
    assert not slow_growth(Reader(verification_starts, 50.0), lambda n: "\n" * n, SIZES[:2])


def test_no_reader_raises_at_mixtures():
    """A grader that raises ends the run, and a resumed run draws the same text again: 5,000 digits did that."""
    _, raised = hostile.survey(hostile.hostile(80, seed=1, longest=5000))
    assert not raised, raised


@pytest.mark.parametrize("digits", [MOST_DIGITS, MOST_DIGITS + 1, 4300, 4301, 100_000])
def test_integers_of_any_length(digits):
    """int() raises beyond 4,300 digits: such an integer is malformed in an execution, in a plan and in a vote."""
    n, problem = "9" * digits, hostile.PROBLEMS["plans"]
    text = f"* {n} ?{n} + </EXPLORATION> <EXECUTION> {n} + 5 = {n} * 2 = 24 </EXECUTION>"
    begun = hostile.Problem("p", problem.task, problem.question + " <EXPLORATION>", "24", "?", problem.meta)
    assert grade_one(begun, text, True).reason == ("wrong_numbers" if digits <= MOST_DIGITS else "malformed")
    assert plan_share(begun, text, "sound", task_of(begun).followed) == (0.5 if digits <= MOST_DIGITS else 0.0)
    assert integers([n]) == ([int(n)] if digits <= MOST_DIGITS else None)
    hostile.voted_in(problem)("<EXPLORATION>" + text)


def test_what_ordinary_texts_count_is_what_it_was():
    """Equals the slow definitions, word for word, on texts that are short enough for them."""
    import re

    def starts(text):
        firsts = (m.start(1) for m in re.finditer(r"(?:^|[.!?\n])\s*([^\s.!?])", text))
        return [i for i in firsts if text[i : i + 30].lower().startswith(STARTS)]

    def copies(text, end, at=-1, count=0):
        while (at := text.find(end, at + 1)) >= 0:
            count += 1
        return count

    rng = random.Random(0)
    for _ in range(300):
        text = hostile.mixture(rng, rng.randrange(1, 1500))
        assert verification_starts(text) == starts(text), text
        assert repetition(text) == (copies(text, text[-100:]) - 1 if len(text) >= 50 else 0), text


def test_answers_are_marked_however_deep_their_braces_are():
    r"""Three levels inside a \boxed{…} went unmarked, and \{ counted as a brace though no grader counts it."""
    deep = r"\boxed{\frac{\sqrt{a_{n}}}{2}}"
    text = rf"so {deep} or \boxed {{\left\{{x\right.}} or <answer> \boxed{{1}} </answer> or \boxed{{2 or <answer>"
    marked = [text[s.start : s.end] for s in answer_spans(text)]
    assert marked == [deep, r"\boxed {\left\{x\right.}", r"<answer> \boxed{1} </answer>"]


def functions_that_apply_regular_expressions() -> set[tuple[str, str]]:
    """(file, function) of e3jax where re.search(…), NAME.search(…) or re.compile(…).search(…) stands."""
    functions = set()
    for path in sorted((ROOT / "e3jax").rglob("*.py")):
        name, source = path.relative_to(ROOT / "e3jax").as_posix(), path.read_text()
        if name in NOT_OF_MODELS or "import re\n" not in source:
            continue
        for function in ast.walk(ast.parse(source)):
            if isinstance(function, ast.FunctionDef):
                calls = [
                    n.func for n in ast.walk(function) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
                ]
                owners = [ast.unparse(f.value) for f in calls if f.attr in APPLY]
                if any(o == "re" or o.startswith("re.") or (o.isupper() and o.isidentifier()) for o in owners):
                    functions.add((name, function.name))
    return functions


def test_every_regular_expression_that_reads_a_model_has_a_reader():
    """A new function with a regular expression is called by a line of READERS, or its file reads no model's text."""
    called, folder = set(), str(ROOT / "e3jax") + "/"

    def listen(frame, event, _):
        if frame.f_code.co_filename.startswith(folder):
            called.add((frame.f_code.co_filename.removeprefix(folder), frame.f_code.co_name))

    for module in [m for name, m in sys.modules.items() if name.startswith("e3jax.")]:
        for function in vars(module).values():
            getattr(function, "cache_clear", int)()  # what another test called already is called again
    before = sys.getprofile()
    sys.setprofile(listen)
    try:
        for text in (*ORDINARY, "x"):
            for reader in READERS.values():
                reader.read(text)
    finally:
        sys.setprofile(before)
    missing = functions_that_apply_regular_expressions() - called
    assert not missing, f"add a reader that calls them to benchmarks/hostile.py: {sorted(missing)}"
