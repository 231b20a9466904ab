"""E2C's causal data: every filter by hand, rows that SFT reads, the same after a kill on a tiny random model."""

import importlib
import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest

pytest.importorskip("transformers", reason="checkpoints' tokenizers need pip install -e '.[hf]'")
import tiny_hub
import tiny_text

from e3jax.checkpoint.pretrained import Pretrained
from e3jax.curation import e2c
from e3jax.errors import UserError
from e3jax.phases import TAGS
from e3jax.rewards.extract import Grade
from e3jax.rollout import bench as benches
from e3jax.rollout.bench import Chat
from e3jax.rollout.responses import Response, Responses
from e3jax.scaling.calls import Call
from e3jax.sharding import make_mesh
from e3jax.tasks.grade import grade_all
from e3jax.tasks.plan_prompts import PLAN_PROMPTS, fill, numbered
from e3jax.tasks.problem import Problem
from e3jax.tasks.sets import load_set
from e3jax.train.examples import response_text

LIMITS = e2c.Limits(fewest_steps=2, most_steps=3, most_plan_tokens=20, most_execution_tokens=30, least_followed=0.75)
PLAN = "1. Add the numbers.\n2. Halve the sum."
WORK = "1. Add the numbers: 10\n2. Halve the sum: so \\boxed{5}"


def test_plans_that_are_not_taken():
    def fault(plan, tokens=10):
        return e2c.plan_fault(plan, tokens, limits=LIMITS)

    assert fault(PLAN) == "" == fault(PLAN, 20) and fault(PLAN, 21) == "long"
    assert fault("1. Add.") == fault(PLAN + "\n3. Go.\n4. Stop.") == fault("Add, then halve.") == "steps"
    assert fault(PLAN + " \\boxed{5}") == "tells_answer" and fault(PLAN + TAGS[2]) == "tags"


def test_executions_that_are_not_taken():
    right = Grade(1.0, "correct")

    def fault(text, tokens=30, grade=right):
        return e2c.execution_fault(PLAN, text, tokens, grade, limits=LIMITS)

    assert fault(WORK) == "" and fault(WORK, 31) == "long" and fault(WORK + TAGS[3]) == "tags"
    assert fault(WORK, grade=Grade(0.0, "wrong_value")) == "wrong_value"
    assert fault("1. Add the numbers: \\boxed{5}") == fault("\\boxed{5}") == "not_followed"


def test_prompts_take_texts_as_they_are():
    """A solution may hold braces and the names of fields."""
    for name, text in PLAN_PROMPTS.items():
        fields = {x: "{plan}\\boxed{5}" for x in ("problem", "solution", "plan", "plans", "tail", "feedback", "words")}
        assert "{plan}\\boxed{5}" in fill(name, **fields) and ("\\boxed{}" in text) == (name in ("execute", "rescue"))
    assert numbered(["a", "b"]) == "Plan 1:\na\n\nPlan 2:\nb"
    with pytest.raises(KeyError):
        fill("judge", problem="q")


class Words:
    """A tokenizer with one token per word."""

    stop, has_chat = ("<end>",), True

    def encode(self, text):
        return text.split(" ")

    def decode(self, tokens):
        return " ".join(t for t in tokens if t != "<end>")

    def chat_text(self, words, *, thinking):
        return f"<user> {words} <model>"


SAID = {  # (part, sample of the problem) -> response; what is missing is cut by the budget
    ("solution", 0): "<think>hm</think> Sum 10, half \\boxed{5}",
    ("solution", 1): "\\boxed{6}",
    ("solution", 3): "\\boxed{5}",
    ("solution", 4): "\\boxed{5} again",
    ("solution", 5): "it is \\boxed{5}",
    ("exploration", 0): PLAN,
    ("exploration", 3): "Just add.",
    ("exploration", 4): PLAN,
    ("exploration", 5): PLAN,
    ("re_execution", 0): WORK,
    ("re_execution", 4): WORK.replace("5", "7"),
}
DROPPED = {
    "solution: wrong_value": 1,
    "solution: truncated": 1,
    "exploration: steps": 1,
    "re_execution: wrong_value": 1,
    "re_execution: truncated": 1,
}


def test_a_row_from_hand_made_responses(monkeypatch, tmp_path):
    """One of six solutions passes; one that failed a filter is not looked at again; SFT reads the row."""
    seen = {}

    def ask(bench, part, requests, *, stop, temperature, top_p):
        out = {}
        for r in requests:
            (g,) = r.samples
            seen[part, g] = bench.pretrained.tokenizer.decode(r.prompt)
            text = SAID.get((part, g))
            tokens = ("cut",) if text is None else (*text.split(" "), "<end>")
            out[r.problem, g] = Response(tokens, text is not None), Call(part, g, len(tokens), 0, len(r.prompt))
        return out

    monkeypatch.setattr(e2c, "ask", ask)
    problem = Problem(
        "p-0", "math", "<user> Half of 4+6? Box it. <model>", "5", "", {"where": "anywhere", "problem": "Half of 4+6?"}
    )
    words = Words()
    bench = SimpleNamespace(
        pretrained=Pretrained(None, None, words),
        plain=[replace(problem, question="Half of 4+6? Box it.")],
        problems=[problem],
        prompts=[words.encode(problem.question)],
        samples=6,
        chat=Chat(thinking=False),
    )
    grader = SimpleNamespace(submit=lambda *a: SimpleNamespace(result=lambda: grade_all(*a)))
    drafts, phase = e2c.Drafts(bench, grader, LIMITS), e2c.Phase(budget=99, temperature=0.7, top_p=0.8)
    drafts.solve([0], phase)
    drafts.summarise(phase)
    drafts.execute(phase)
    assert sorted(g for part, g in seen if part == "exploration") == [0, 3, 4, 5]
    assert sorted(g for part, g in seen if part == "re_execution") == [0, 4, 5]
    assert "Solution:\nSum 10, half \\boxed{5}\n" in seen["exploration", 0] and "hm" not in seen["exploration", 0]
    assert f"Half of 4+6? Box it.\n\nGuideline (follow exactly):\n{PLAN}\n" in seen["re_execution", 0]
    assert "Sum 10" not in seen["re_execution", 0]  # from question and plan alone
    assert dict(drafts.dropped[0]) == DROPPED
    (row,) = drafts.rows.values()
    assert row == {
        "question": "Half of 4+6?",
        "exploration": PLAN,
        "execution": "Sum 10, half \\boxed{5}",
        "re_execution": WORK,
        "answer": "5",
        "cot": SAID["solution", 0],
    }
    grid = e2c.table([{"rows": [row], "dropped": DROPPED}])
    assert grid[1] == ["drawn", "6"] and grid[-1] == ["kept", "1"] and grid[2][0].startswith("dropped, solution: ")
    (tmp_path / "set.jsonl").write_text(json.dumps(row) + "\n")
    (read,) = load_set(str(tmp_path / "set.jsonl"), prompt="bare", seed=0, chat=str, where="execution")
    assert response_text(read, "both") == f"{TAGS[0]}{PLAN}{TAGS[1]}{TAGS[2]}{WORK}{TAGS[3]}" and read.answer == "5"


# ---- the command on a tiny random model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    size = tiny_text.write_tokenizer(path, begin=False)
    return tiny_hub.write_tiny(path, "qwen3-tied", vocab_size=size, eos_token_id=None)


def config_for(checkpoint, source):
    c = importlib.import_module("configs.e2c_data").get_config(f"tiny={checkpoint}")
    c.sets.math.source, c.sets.math.samples, c.at_once = str(source), 2, 2
    for phase in e2c.PHASES:
        c[phase].budget, c[phase].top_p = 3, 1.0
    c.sampler.slots, c.sampler.prefill_rows, c.sampler.block, c.sampler.top_k = 8, 8, 8, 0
    return c


class Killed(Exception):
    pass


def test_killed_anywhere_ends_with_the_same_rows(checkpoint, tmp_path, monkeypatch):
    """Everything that a random model says ends and is right here, and every plan is taken."""
    one = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    monkeypatch.setattr(benches, "make_mesh", lambda **_: one)
    monkeypatch.setattr(
        e2c,
        "ask",
        lambda *a, real=e2c.ask, **k: {key: (r._replace(done=True), call) for key, (r, call) in real(*a, **k).items()},
    )
    monkeypatch.setattr(e2c, "plan_fault", lambda plan, tokens, **_: "long" if tokens > 5 else "")
    monkeypatch.setattr(e2c, "followed", lambda plan, text: 1.0)
    right = SimpleNamespace(
        submit=lambda problems, texts, done: SimpleNamespace(result=lambda: [Grade(1.0, "correct") for _ in texts])
    )
    monkeypatch.setattr("e3jax.rewards.workers.GraderPool", lambda **_: nullcontext(right))
    (tmp_path / "set.jsonl").write_text("".join(json.dumps({"problem": f"{i}+1?", "answer": 1}) + "\n" for i in "123"))
    drawn, real = [], Responses.add
    monkeypatch.setattr(Responses, "add", lambda self, new, *a: (real(self, new, *a), drawn.extend(new))[0])
    config = config_for(checkpoint, tmp_path / "set.jsonl")
    e2c.main(config, str(tmp_path / "a"))
    rows = (tmp_path / "a/math.jsonl").read_text()
    assert rows and set(json.loads(rows.splitlines()[0])) == {
        "question",
        "exploration",
        "execution",
        "re_execution",
        "answer",
        "cot",
        "id",
    }
    assert not (tmp_path / "a/responses").exists()
    all_drawn, drawn[:] = sorted(drawn), []

    def add(self, new, *rest):
        real(self, new, *rest)
        drawn.extend(new)
        if self.directory.name == "0000002" and any(part == "exploration" for part, *_ in new):
            raise Killed

    monkeypatch.setattr(Responses, "add", add)
    with pytest.raises(Killed):
        e2c.main(config, str(tmp_path / "b"))
    monkeypatch.setattr(Responses, "add", lambda self, new, *a: (real(self, new, *a), drawn.extend(new))[0])
    e2c.main(config, str(tmp_path / "b"))
    assert sorted(drawn) == all_drawn  # none twice
    for name in ("math.jsonl", "rows.jsonl", "counts-math.md"):
        assert (tmp_path / "b" / name).read_text() == (tmp_path / "a" / name).read_text()
    changed = config_for(checkpoint, tmp_path / "set.jsonl")
    changed.seed = 7
    with pytest.raises(UserError, match="holds a run of another config"):
        e2c.main(changed, str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: None, ""),
        (lambda c: c.update(models=(("a", "x"), ("b", "y"))), "one model writes a set"),
        (lambda c: c.sets.math.update(form="plans"), "form='plans': 'math'"),
        (lambda c: c.update(fewest_steps=13), "fewest_steps=13: 1 to most_steps=12"),
        (lambda c: c.solution.update(temperature=-1.0), "solution.temperature=-1.0"),
    ],
)
def test_configs(change, words, monkeypatch):
    """The shipped config passes its check; what is impossible is refused by name."""
    monkeypatch.setattr("jax.devices", lambda: [None] * 128)
    config = importlib.import_module("configs.e2c_data").get_config()
    change(config)
    with pytest.raises(UserError, match=words) if words else nullcontext():
        e2c.check(config)
