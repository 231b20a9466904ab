"""Rewards of the user's own: named, weighted, in both forms, in the killable pool; errors show the user's own line."""

import json
import os
import sys
from pathlib import Path

import pytest

from e3jax.errors import UserError
from e3jax.metrics.names import undefined
from e3jax.metrics.reading import LOST, READ_OWN
from e3jax.rewards.extract import Grade
from e3jax.rewards.workers import GraderPool
from e3jax.tasks.own_reward import grade_own, load_reward, needs_of, parse_reward
from e3jax.tasks.problem import Problem
from e3jax.tasks.sets import Needs, load_set
from e3jax.train.step_records import reward_means

REWARDS = '''"""Rewards of a user."""

import math
import time

from e3jax.rewards.extract import Grade
from neighbour import LIMIT


def is_short(problem, response, done):
    return len(response) <= LIMIT and done


def graded(problem, response, done):
    return Grade(0.25, "quarter") if problem.answer in response else Grade(-1, "odd")


def has_word(completions, word, **kwargs):
    return [float(w in c) for c, w in zip(completions, word)]


def talks(completions, prompts, answer):
    return [c[0]["content"] == a and p[-1]["role"] == "user" for c, p, a in zip(completions, prompts, answer)]


def nothing(completions, **kwargs):
    return [None] * len(completions)


def moody(problem, response, done):
    if response == "hang":
        time.sleep(60)
    if response == "deep":
        return moody(problem, response, done)
    return 1 / len(response)


def not_a_number(problem, response, done):
    return math.nan


def text(problem, response, done):
    return "1.0"


def bad_reason(problem, response, done):
    return Grade(1.0, "very good!")


def two(completions, **kwargs):
    return [1.0, 2.0]


def asks(completions, completion_ids):
    return [1.0]


def one_parameter(response):
    return 1.0
'''
LINE = {line.partition("(")[0][4:]: n for n, line in enumerate(REWARDS.splitlines(), 1) if line.startswith("def ")}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Write the rewards and a neighbour that they import, and go there."""
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    (tmp_path / "neighbour.py").write_text("LIMIT = 5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return tmp_path


def problem(row=None) -> Problem:
    meta = {"where": "anywhere"} | ({"row": row} if row else {})
    return Problem("mine-0", "math", "1+1?", "2", "mine", meta)


def grade(reward: str, text: str = "2", *, done: bool = True, row=None):
    return grade_own(problem(row), text, done, load_reward(reward))


def test_numbers_grades_and_weights(here):
    """One function gives its value and its reason; several their weighted sum, and the task's grader's reason."""
    assert grade("my_rewards.py:is_short") == (Grade(1.0, "own"), {"is_short": 1.0})
    assert grade("my_rewards.py:is_short", done=False)[0].score == 0.0
    assert grade("my_rewards.py:graded") == (Grade(0.25, "quarter"), {"graded": 0.25})
    assert grade("my_rewards.py:graded*-2", "3") == (Grade(2.0, "odd"), {"graded": -1.0})
    both = "task, my_rewards.py:is_short*0.5,my_rewards.py:graded"
    assert grade(both, r"\boxed{2}") == (Grade(1.25, "correct"), {"task": 1.0, "is_short": 0.0, "graded": 0.25})
    assert grade(both, "3")[0].reason == "no_answer"
    assert needs_of(both) == Needs(rows=True, answers=True)
    assert needs_of("my_rewards.py:graded") == Needs(rows=True, answers=False)
    assert needs_of("") == Needs(rows=False, answers=True)


def test_the_functions_of_the_page(here):
    """docs/your-own.md shows a number, a Grade and TRL's form."""
    page = (Path(__file__).parent.parent / "docs/your-own.md").read_text()
    (here / "page.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    assert grade("page.py:is_short, page.py:in_box, page.py:has_answer", r"\boxed{2}")[0].score == 3.0
    assert grade("page.py:in_box", "3")[0] == Grade(0.0, "no_box")


def test_functions_of_trl(here):
    """They get columns of the row as lists, and messages where the prompt has messages; None is no reward."""
    talk = [{"role": "user", "content": "1+1?"}]
    assert grade("my_rewards.py:has_word", "a b", row={"prompt": "1+1?", "word": "b"})[0].score == 1.0
    assert grade("my_rewards.py:talks", "2", row={"prompt": talk})[0].score == 1.0
    assert grade("my_rewards.py:talks", "2", row={"prompt": json.dumps(talk)})[0].score == 1.0
    assert grade("my_rewards.py:nothing")[0].score == 0.0
    with pytest.raises(UserError, match=rf"line {LINE['has_word']}: has_word asks for 'word': the columns of mine-0"):
        grade("my_rewards.py:has_word")
    with pytest.raises(UserError, match="asks asks for 'completion_ids': the columns of mine-0 are answer"):
        grade("my_rewards.py:asks")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("not_a_number", "gave 'nan', not a finite number"),
        ("text", "gave '1.0', not a finite number: return a number or a Grade"),
        ("bad_reason", "gave the reason 'very good!': use letters"),
        ("two", r"gave '\[1.0, 2.0\]' for one completion: return a list of one number"),
    ],
)
def test_impossible_values_are_sentences(here, name, said):
    with pytest.raises(UserError, match=rf"my_rewards\.py line {LINE[name]}: {name} {said}"):
        grade(f"my_rewards.py:{name}")


def test_what_cannot_be_loaded_is_a_sentence(here):
    """A name that is none, a missing file or function, a wrong signature, a file that raises or is no Python."""
    (here / "raises.py").write_text("import os\n\nLIMIT = int('five')\n")
    (here / "broken.py").write_text("def f(problem, response, done)\n    return 1\n")
    cases = {
        "my_rewards.py": "'my_rewards.py' is no reward: write FILE.py:FUNCTION",
        "my_rewards.py:is_short*x": "is no reward",
        "is_short": "is no reward",
        "my_rewards.py:is_short,my_rewards.py:is_short*2": "the parts are called is_short, is_short: each needs",
        "absent.py:f": f"absent.py does not exist in {here}",
        "my_rewards.py:is_shorter": "my_rewards.py has no function 'is_shorter': it has is_short, graded",
        "my_rewards.py:one_parameter": f"line {LINE['one_parameter']}: one_parameter(response) cannot be called: a",
        "raises.py:f": "raises.py line 3: ValueError: invalid literal",
        "broken.py:f": "broken.py line 1: SyntaxError: expected ':'",
    }
    for reward, said in cases.items():
        with pytest.raises(UserError) as error:
            load_reward(reward)
        assert said in str(error.value), (reward, str(error.value))
    assert parse_reward("") == []


def test_in_the_pool(here):
    """What hangs or nests too deep costs its reward; what raises ends the run with the user's line."""
    with GraderPool(
        workers=1, timeout_s=2.0, function=READ_OWN, arguments=("my_rewards.py:moody,task*0.5", "", ""), lost=LOST
    ) as pool:
        texts = ["1234", "hang", r"\boxed{2}", "deep"]
        first, hung, right, deep = pool.submit([problem()] * 4, texts, [True] * 4).result()
        assert first.grade == Grade(0.25, "no_answer") and first.rewards == {"moody": 0.25, "task": 0.0}
        assert right.grade == Grade(1 / 9 + 0.5, "correct") and hung == deep == LOST
        line = LINE["moody"] + 5
        with pytest.raises(UserError, match=rf"my_rewards\.py line {line}, in moody at .*ZeroDivisionError: division"):
            pool.submit([problem()], [""], [True]).result()
    means = reward_means([first.rewards, hung.rewards, right.rewards])
    assert means == pytest.approx({"reward/own/moody": (1 / 4 + 1 / 9) / 2, "reward/own/task": 0.5})
    assert not undefined("grpo", means)


def test_rows_reach_a_reward_whole(here):
    """Columns that no reader knows are there for the reward, and a row needs no answer for one that reads none."""
    (here / "q.jsonl").write_text('{"prompt": "Say a word.", "word": "yes"}\n')
    (one,) = load_set("q.jsonl", prompt="", chat=str, needs=needs_of("my_rewards.py:has_word"))
    assert one.question == "Say a word." and grade_own(one, "yes", True, load_reward("my_rewards.py:has_word"))[0].score
    with pytest.raises(UserError, match="needed are problem"):
        load_set("q.jsonl", prompt="", chat=str)
