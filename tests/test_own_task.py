"""Tasks of the user's own: the example, held-out seeds, graders in the pool, errors with the user's line."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs import my_grpo
from e3jax.errors import UserError
from e3jax.eval.scoring import answer_of
from e3jax.metrics.exploration import attempt_keys, explore
from e3jax.metrics.reading import LOST, READ_OWN, read
from e3jax.rewards.extract import Grade
from e3jax.rewards.workers import GraderPool
from e3jax.rollout.bench import ProblemSet, load_problems
from e3jax.tasks.environment import judging
from e3jax.tasks.own_task import grade, load_task, make_problem, open_own, parse, seed_of
from e3jax.tasks.problem import Problem
from e3jax.tasks.stream import DEFAULT_WORDING, Wording
from e3jax.tasks.table import task_of
from e3jax.train.check import check
from e3jax.train.settings import resolve

ROOT = Path(__file__).parent.parent
EXAMPLE = str(ROOT / "examples/my_task.py")
BROKEN = '''"""A task with every mistake."""

import math
import time

from e3jax.rewards.extract import Grade


def problem(seed, i):
    if i == 1:
        return {"question": "1+1?"}
    if i == 2:
        return 1 / 0
    return {"question": "1+1?", "answer": 2, "kind": "sum"}


def grade(problem, response, done):
    if response == "hang":
        time.sleep(60)
    if response == "reason":
        return Grade(1.0, "very good!")
    return {"nan": math.nan, "none": None, "cut": done, "good": Grade(0.5, "half")}[response]


class Talk:
    """The same with a system prompt."""

    problem, grade = staticmethod(problem), staticmethod(grade)

    @staticmethod
    def prompt(problem):
        return [{"role": "system", "content": "Be short."}, {"role": "user", "content": problem.question}]


class Answers(Talk):
    """A prompt that ends with an answer, and attempts that are no part of the response."""

    prompt = staticmethod(lambda problem: [{"role": "assistant", "content": "2"}])
    attempts = staticmethod(lambda response: ["x"])


class Silent(Talk):
    """A prompt that is none."""

    prompt = staticmethod(lambda problem: 7)


class Half:
    """Without a grader."""

    problem = staticmethod(problem)


class Narrow(Talk):
    """A grader of two parameters."""

    grade = staticmethod(lambda problem, response: 1.0)
'''
LINE = {line.partition("(")[0].strip()[4:]: n for n, line in enumerate(BROKEN.splitlines(), 1) if "def " in line}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Write the broken task and go there."""
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return tmp_path


def problems(spec=EXAMPLE, *, split="train", count=6, **how):
    return open_own(spec, seed=3, split=split, wording=Wording(**how) if how else DEFAULT_WORDING)(0, count)


def test_the_example_is_a_task():
    """Its problems are drawn, put into a chat, graded, taken apart and counted as any other task's."""
    plain = problems(chat=str)
    first = plain[0]
    assert first.question == f"How many of the letters of {first.meta['problem']!r} are vowels (a, e, i, o, u)? " + (
        "End with 'Answer: NUMBER'."
    )
    assert first.answer == str(sum(first.meta["problem"].count(vowel) for vowel in "aeiou"))
    assert problems()[0].question.startswith("<|im_start|>user\nHow many") and task_of(first).name == "own"
    assert first.id == "my_task-train-3-0" and first.difficulty == f"{len(first.meta['problem'])} letters"
    text = f"99 vowels? No. {first.answer} vowels. Answer: {first.answer}"
    one = read(first, text, True, apart=True)
    assert one.grade == Grade(1.0, "own") and one.features["attempts"] == one.features["unique"] == 2
    assert one.parts.rest == f". Answer: {first.answer}"
    assert read(first, text, False).grade.score == 0.0 and read(first, "Answer: 99", True).grade.score == 0.1
    assert attempt_keys(first, text) == ["99 vowels", f"{first.answer} vowels"]
    assert answer_of(first, r"\boxed{3}") == "3" and answer_of(first, text) is None
    short = problems(f"{EXAMPLE}:SHORT")
    assert all(len(p.meta["problem"]) <= 5 for p in short) and short[0].id == "my_task:SHORT-train-3-0"


def test_held_out_seeds_are_never_trained_on():
    """A run with seed 4 must not train on what one with seed 3 held out; problem i is the same in every process."""
    seeds = {split: {seed_of(seed, split) for seed in range(50)} for split in ("train", "test")}
    assert not seeds["train"] & seeds["test"] and len(seeds["train"]) == len(seeds["test"]) == 50
    train, test = problems(count=40), problems(split="test", count=40)
    assert not {p.question for p in train} & {p.question for p in test}
    code = f"from e3jax.tasks.own_task import open_own\nfor p in open_own({EXAMPLE!r}, seed=3, split='test')(0, 40): "
    said = subprocess.run(
        [sys.executable, "-c", code + "print(p.answer, p.id)"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines() == [f"{p.answer} {p.id}" for p in test]
    assert load_problems(ProblemSet("own", EXAMPLE, "", 2, "response"), seed=3)[0].answer == test[0].answer


def test_messages_and_meta(here):
    """A prompt of messages keeps those before the question, a dict's other fields are in meta, its answer is a text."""
    said = []
    (one,) = problems("broken.py:Talk", count=1, chat=lambda words, *before: said.append((words, *before)) or "chat")
    assert said == [("1+1?", [{"role": "system", "content": "Be short."}])] and one.question == "chat"
    assert (one.answer, one.meta["kind"], one.difficulty) == ("2", "sum", "broken:Talk")
    assert grade(one, "good", True) == Grade(0.5, "half") and grade(one, "cut", False) == Grade(0.0, "own")
    assert parse("some text", one) == ([], "some text")
    assert explore(one, "Wait, 2", done=True, correct=True)["attempts"] == 1  # free text, without `attempts`


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("absent.py", "absent.py does not exist in "),
        ("broken", "'broken' is no Python file: write FILE.py, or FILE.py:NAME"),
        ("broken.py:a b", "is no Python file"),
        ("broken.py:Nothing", "broken.py has no 'Nothing': name an object"),
        ("broken.py:Half", r"broken.py:Half has no function 'grade': write grade\(problem, response, done\)"),
        ("broken.py:Narrow", r"line \d+: grade\(problem, response\) cannot be called: it takes \(problem, response, d"),
        (7, "config.task.file=7: use a text"),
    ],
)
def test_what_cannot_be_loaded_is_a_sentence(here, spec, words):
    config = config_of("")
    with config.ignore_type():
        config.task.file = spec
    with pytest.raises(UserError, match=words):
        resolve(config)


def test_errors_show_the_users_line(here):
    """Of each of the four functions: what it raised, or what it gave instead of what is wanted."""
    cases = {
        ("broken.py", 1): rf"broken\.py line {LINE['problem']}: problem gave \"{{'question': '1\+1\?'}}\": return",
        ("broken.py", 2): rf"broken\.py line {LINE['problem'] + 4}, in problem at problem 2 of train: ZeroDivision",
        ("broken.py:Silent", 0): r"broken\.py line \d+: prompt: prompt is 7, not a list of messages: return a text",
        ("broken.py:Answers", 0): r"broken\.py line \d+: prompt: the last message is by 'assistant': end with",
    }
    for (spec, i), words in cases.items():
        with pytest.raises(UserError, match=words):
            make_problem(load_task(spec), 0, i, split="train", wording=DEFAULT_WORDING)
    (one,) = problems("broken.py", count=1)
    cases = {
        "nan": rf"broken\.py line {LINE['grade']}: grade gave 'nan', not a finite number",
        "none": "grade gave 'None', not a finite number: return a number or a Grade",
        "reason": "grade gave the reason 'very good!': use letters",
        "key": rf"broken\.py line {LINE['grade'] + 5}, in grade at the response 'key' to broken-train-3-0: KeyError",
    }
    for text, words in cases.items():
        with pytest.raises(UserError, match=words):
            grade(one, text, True)
    answers = Problem("p", "own", "?", "2", "", {"file": "broken.py:Answers"})
    with pytest.raises(UserError, match=r"attempts gave 'x', which is not in the rest of the response"):
        parse("a response", answers)


def test_in_the_pool(here):
    """What hangs costs its grade; what raises ends the run with the user's line, also in e3jax.eval.run's workers."""
    (one,) = problems("broken.py", count=1)
    how = dict(workers=1, timeout_s=2.0, lost=LOST)
    with GraderPool(function=READ_OWN, arguments=("", "broken.py", ""), **how) as pool:
        good, hung, cut = pool.submit([one] * 3, ["good", "hang", "cut"], [True, True, False]).result()
        assert good.grade == Grade(0.5, "half") and hung == LOST and cut.grade == Grade(0.0, "own")
        with pytest.raises(UserError, match=rf"line {LINE['grade'] + 5}, in grade at the response 'key'"):
            pool.submit([one], ["key"], [True]).result()
    with GraderPool(workers=1, timeout_s=2.0, **judging([[one]], "", "")) as pool:
        assert pool.grade_all([one], ["good"], [True]) == [Grade(0.5, "half")]


def config_of(file: str):
    config = my_grpo.get_config()
    config.model.name, config.tokenizer, config.init.number_embeddings = "", "any", False
    config.task.file = file
    return config


def test_one_field_names_the_task(here, monkeypatch):
    """It takes the place of form and set; a stage and an evaluation set may name a part of it; Eq. 2 does not go."""
    monkeypatch.setattr("jax.devices", lambda: [None])
    shutil.copy(EXAMPLE, "my_task.py")
    config = config_of("my_task.py")
    s = check(config)
    assert s.task.form == "own" and s.stages[0].source == "my_task.py"
    config.stages.rl.file = "my_task.py:SHORT"
    config.eval.sets = {"short": "my_task.py:SHORT"}
    s = check(config)
    assert s.stages[0].source == "my_task.py:SHORT"
    config.eval.sets = {"short": "my_task.py:LONG"}
    with pytest.raises(UserError, match=re.escape("config.eval.sets['short']='my_task.py:LONG': my_task.py has no")):
        check(config)
    config = config_of("my_task.py")
    config.stages.rl.budget = "auto"
    with pytest.raises(UserError, match=r"budget='auto': Eq\. 2 compares accuracies, and a reward of yours may be an"):
        check(config)
