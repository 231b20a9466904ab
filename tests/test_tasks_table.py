"""The table of tasks: its rows are whole, and a new task is one file and one row, which all other code follows."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from e3jax.errors import UserError, need
from e3jax.eval.scoring import answer_of
from e3jax.metrics.exploration import attempt_keys, detect
from e3jax.metrics.reading import read
from e3jax.rewards.extract import Grade, last_answer
from e3jax.rewards.votes import tagged_vote
from e3jax.rollout.bench import ProblemSet, load_problems
from e3jax.tasks.countdown_traces import Attempt
from e3jax.tasks.problem import Problem, draws_of
from e3jax.tasks.stream import DEFAULT_WORDING, endless
from e3jax.tasks.table import TASKS, Task, forms, need_form, reads_set, task_of
from e3jax.tokenizer import WordTokenizer
from e3jax.train.examples import open_examples
from e3jax.train.settings import resolve_stage

# ---- what a new file e3jax/tasks/parity.py would hold: is a number even or odd?

WORDS = ("even", "odd", "<answer>", "</answer>", *map(str, range(100)))


@dataclass(frozen=True, kw_only=True)
class Habits:
    """Traces that guess `guesses` times."""

    guesses: int


def parity_problem(seed, index, *, most, split):
    number = int(draws_of(seed, most, index, split=split).integers(most))
    answer = ("even", "odd")[number % 2]
    return Problem(f"parity-{split}-{seed}-{index}", "parity", str(number), answer, "", {"form": "parity"})


def open_parity(most, *, seed, split, wording=DEFAULT_WORDING):
    return endless(lambda i: parity_problem(seed, i, most=most, split=split))


def need_most(field, most):
    need(isinstance(most, int) and 2 <= most <= 100, field, most, "2 to 100")


def parity_trace(problem, rng, habits):
    guesses = [("even", "odd")[i] for i in rng.integers(2, size=habits.guesses)]
    return " ".join([*guesses, f"<answer> {problem.answer} </answer>"])


def grade_parity(problem, text):
    answer = last_answer(text)
    if answer is None:
        return Grade(0.0, "no_answer")
    right = answer == problem.answer
    return Grade(float(right), "correct" if right else "wrong_value")


def parse_parity(text, problem):
    guesses, _, rest = text.partition("<answer>")
    return [Attempt(word, word, None, word == problem.answer) for word in guesses.split()], f"<answer>{rest}"


# ---- and its row

ROW = Task(
    name="parity",
    problem_task="parity",
    field="most",
    open=open_parity,
    check_source=need_most,
    words=WORDS,
    trace=parity_trace,
    habits=Habits,
    least_trace_tokens=lambda most: 5,
    grade=grade_parity,
    vote=tagged_vote,
    parse=parse_parity,
)


@pytest.fixture
def parity(monkeypatch):
    """Return a table with the new row."""
    monkeypatch.setitem(TASKS, "parity", ROW)
    return ROW


def test_a_task_is_one_file_and_one_row(parity):
    """Its form is known, and its problems are drawn, graded, read, counted and voted on, without a line elsewhere."""
    assert need_form("task.form", "parity") and not reads_set("parity")
    questions = ProblemSet(form="parity", source=10, prompt="", problems=4, where="response")
    first, *_ = problems = load_problems(questions, seed=0)
    assert problems == [parity_problem(0, i, most=10, split="test") for i in range(4)] and task_of(first) is parity
    wrong = "even" if first.answer == "odd" else "odd"
    text = f"{wrong} {first.answer} <answer> {first.answer} </answer>"
    one = read(first, text, True, apart=True)
    assert one.grade == Grade(1.0, "correct") and one.features["attempts"] == 2 and one.parts.answer == first.answer
    assert [a.truth for a in one.parts.attempts] == [False, True] and attempt_keys(first, text) == [wrong, first.answer]
    assert read(first, text, False).grade.reason == "truncated" and answer_of(first, text) == first.answer
    assert detect(first, text, close="<answer>") == (1, 0)
    with pytest.raises(UserError, match=r"config\.stages\.base\.most=1: 2 to 100"):
        parity.check_source("stages.base.most", 1)


def test_a_new_tasks_traces_are_learnt_from(parity):
    """A supervised stage takes its field and its habits from the row."""
    tokenizer = WordTokenizer(parity.words)

    def draw_from(source, *, split):
        return parity.open(source, seed=0, split=split)

    settings = SimpleNamespace(task=SimpleNamespace(form="parity"))
    run = SimpleNamespace(settings=settings, seed=0, tokenizer=tokenizer, draw_from=draw_from)
    given = {"kind": "sft", "most": 10, "traces": {"guesses": 2}, "rows": 2, "row_length": 12, "steps": 1, "lr": 1.0}
    given |= {"warmup": 0, "evaluated": False, "position_gap": 0, "gap_rate": 0.0}
    where = dict(name="base", index=0, first_step=0, first_problem=0)
    base = {"task": {"form": "parity"}, "sft": {"aggregation": "token_mean"}}
    examples = open_examples(run, resolve_stage(base, given, **where))
    prompt, response, gap = next(examples(0, 0, 0))
    assert tokenizer.decode(prompt) == parity_problem(0, 0, most=10, split="train").question and gap == 0
    assert len(response) == 6 and response[-1] == tokenizer.eos


@pytest.mark.parametrize("name", TASKS)
def test_rows_are_whole(name):
    """Fields that belong together are refused together; a row is known by its problems."""
    task = TASKS[name]
    assert task.name == name and bool(task.field) == bool(task.open) == bool(task.check_source) == (name in forms())
    assert (task.trace is None) == (task.habits is None) and (task.trace is not None or task.words is None)
    traced = task.trace is not None or task.own  # an own task's file may read attempts
    assert task.words or traced == (task.parse is not None)  # traces in text are told from free text
    assert task_of(Problem("p", task.problem_task, "", "", "", {"form": name})) is task


def test_a_problem_of_no_row_is_refused():
    """Guards against a grader chosen by default."""
    for task, meta in (("chess", {}), ("countdown", {"form": "abacus"})):
        with pytest.raises(ValueError, match=f"no row of tasks/table.py has problems of task '{task}'"):
            task_of(Problem("p", task, "", "", "", meta))
