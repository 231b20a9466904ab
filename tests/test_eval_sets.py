"""Sets that change between two calls on one directory: edited, grown, shrunk, left out. No old number counts as new."""

import importlib
import json
from contextlib import nullcontext
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from e3jax.errors import UserError
from e3jax.eval import run
from e3jax.log import RunLog
from e3jax.rewards.extract import Grade
from e3jax.rollout import bench
from e3jax.rollout.bench import ProblemSet, load_problems
from e3jax.rollout.digests import changed_since, still_counts, what_was_scored
from e3jax.sampler.slots import unsampled, widened
from e3jax.sharding import make_mesh
from e3jax.tasks.problem import Problem
from e3jax.tasks.table import TASKS

PROBLEMS = TASKS["calculator"].open((3,), seed=0, split="test")(0, 8)


def by_answer(problems, texts, done):
    """Stands for a grader: its verdict depends on the problem's answer and on the text."""
    right = [d and (int(p.answer) + len(t)) % 3 == 0 for p, t, d in zip(problems, texts, done)]
    return SimpleNamespace(result=lambda: [Grade(float(r), "correct" if r else "wrong_value") for r in right])


def draw_nothing(model, params, requests, sampling, *, pad, events, **_):
    """Stands for the sampler: a response is a function of its prompt, problem and number, as the sampler's is."""
    prompts, ids, samples, budget, _ = requests
    r = widened(unsampled(prompts, [len(numbers) for numbers in samples], pad=pad), 32, pad)
    rows = [(i, number) for i, numbers in enumerate(samples) for number in numbers]
    for row, (i, number) in enumerate(rows):
        rng = np.random.default_rng([ids[i], number, *prompts[i]])
        first, n = r.prompt_len[row], int(rng.integers(1, int(budget[row]) + 1))
        r.tokens[row, first : first + n] = rng.integers(4, 30, n)
        r.length[row], r.done[row] = first + n, n < budget[row]
    events.on_finished(np.arange(len(rows)), r)


@pytest.fixture
def light(monkeypatch):
    """Use one device, one process, no sampling, and verdicts that differ."""
    monkeypatch.setattr("e3jax.rollout.responses.sample", draw_nothing)
    monkeypatch.setattr(bench, "make_mesh", lambda **_: make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1]))
    monkeypatch.setattr("e3jax.rewards.workers.GraderPool", lambda **_: nullcontext(SimpleNamespace(submit=by_answer)))


def write_set(path, *, count, question=None, answer=None):
    """Write Countdown as a set: the first `count` problems, one of them with other words or another answer."""
    rows = []
    for p in PROBLEMS[:count]:
        meta = {"form": "calculator", "numbers": list(p.meta["numbers"]), "target": p.meta["target"]}
        rows.append({"task": "countdown", "problem": p.question, "answer": p.answer, "difficulty": "", "meta": meta})
    if question is not None:
        rows[question]["problem"] = PROBLEMS[7].question
    if answer is not None:
        rows[answer]["answer"] = str(int(rows[answer]["answer"]) + 1)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluate(checkpoint, path, workdir, *, problems=0, samples=2, **fields):
    c = importlib.import_module("configs.eval_countdown").get_config(f"tiny={checkpoint}")
    one = importlib.import_module("configs.eval_math").one_set(str(path), samples=samples, prompt="bare")
    one.problems = problems
    c.sets = {"a": one, "b": one.copy_and_resolve_references()}
    c.only, c.budgets, c.pass_ks = "a", (8,), (1,)
    c.sampler.slots, c.sampler.prefill_rows, c.sampler.block = 64, 8, 8
    c.update(fields)
    run.main(c, str(workdir))
    records = {name: (workdir / name).read_text() for name in ("eval.jsonl", "problems.jsonl")}
    drawn = sum(len(f.read_text().splitlines()) for f in (workdir / "responses/tiny").glob("*/*.jsonl"))
    return records, drawn


def test_an_edited_set_is_refused_or_graded_again(checkpoint, light, tmp_path, capsys):
    """An edited s.jsonl of as many rows was silently scored with the old responses, old grades and old problems.jsonl.
    Now a changed question is refused by name, and a changed answer is graded again from the same responses.
    """
    path, workdir = tmp_path / "s.jsonl", tmp_path / "run"
    write_set(path, count=4)
    before, drawn = evaluate(checkpoint, path, workdir)
    assert drawn == 8 and evaluate(checkpoint, path, workdir) == (before, 8)

    write_set(path, count=4, question=2)
    capsys.readouterr()
    with pytest.raises(UserError, match=r"responses/tiny/a holds responses to another question than problem 2, 's-2'"):
        evaluate(checkpoint, path, workdir)
    assert {name: (workdir / name).read_text() for name in before} == before  # the old record is not lost

    write_set(path, count=4, answer=1)
    after, drawn = evaluate(checkpoint, path, workdir)
    assert "tiny, a: since it was scored, answers changed: it is scored again" in capsys.readouterr().err
    fresh, _ = evaluate(checkpoint, path, tmp_path / "fresh")
    assert after == fresh != before and drawn == 8  # nothing is drawn again

    one = importlib.import_module("configs.eval_math").one_set(str(path), samples=2, prompt="bare").to_dict()
    problems = load_problems(ProblemSet(**one | {"where": "anywhere"}), seed=0)
    assert changed_since(json.loads(after["eval.jsonl"])["scored"], problems, 2) == ["answers"]


def test_a_set_without_a_readable_answer_is_told(checkpoint, light, monkeypatch, tmp_path, capsys):
    """An evaluation whose answers nobody could read gave 0 %, without a word on where they were looked for."""
    blind = lambda *args: SimpleNamespace(result=lambda: [Grade(0.0, "no_answer") for _ in args[0]])  # noqa: E731
    monkeypatch.setattr("e3jax.rewards.workers.GraderPool", lambda **_: nullcontext(SimpleNamespace(submit=blind)))
    write_set(tmp_path / "s.jsonl", count=4)
    evaluate(checkpoint, tmp_path / "s.jsonl", tmp_path / "run")
    assert "tiny, a: none of 8 responses has an answer that the grader can read" in capsys.readouterr().err


def test_sets_grow_shrink_and_are_left_out(checkpoint, light, tmp_path, capsys):
    """A directory was bound to one number of problems and samples and to all sets of the config. Now what is there is
    kept, only what is missing is drawn, and the records are those of one call.
    """
    path, workdir = tmp_path / "s.jsonl", tmp_path / "run"
    write_set(path, count=6)
    small, drawn = evaluate(checkpoint, path, workdir, problems=3, samples=2)
    assert drawn == 6 and not (workdir / "responses/tiny/b").exists()
    large, drawn = evaluate(checkpoint, path, workdir, problems=5, samples=4)
    assert drawn == 20
    assert "the number of problems and the number of samples changed: it is scored again" in capsys.readouterr().err
    assert large == evaluate(checkpoint, path, tmp_path / "once", problems=5, samples=4)[0]
    assert evaluate(checkpoint, path, workdir, problems=3, samples=2) == (small, 20)
    both, drawn = evaluate(checkpoint, path, workdir, problems=3, samples=2, only="")
    assert drawn == 26 and [json.loads(x)["set"] for x in both["eval.jsonl"].splitlines()] == ["a", "b"]
    with pytest.raises(UserError, match=r"config.only='c': no set is called 'c': the sets are 'a', 'b'"):
        evaluate(checkpoint, path, workdir, only="c")


def test_directories_of_before_are_taken_with_a_sentence(checkpoint, light, tmp_path, capsys):
    """Responses and records without digests, from earlier versions, are used, and a sentence says so."""
    path, workdir = tmp_path / "s.jsonl", tmp_path / "run"
    write_set(path, count=4)
    evaluate(checkpoint, path, workdir, problems=2)
    files = [workdir / "eval.jsonl", *(workdir / "responses/tiny/a").glob("*.jsonl")]
    for file in files:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        gone = ("scored", "question")
        file.write_text("".join(json.dumps({k: v for k, v in x.items() if k not in gone}) + "\n" for x in lines))
    capsys.readouterr()
    evaluate(checkpoint, path, workdir, problems=2)
    assert "scored before digests of sets were kept" in capsys.readouterr().err
    after, drawn = evaluate(checkpoint, path, workdir, problems=4)
    assert drawn == 8 and "responses to 2 problems were kept before digests" in capsys.readouterr().err
    assert after == evaluate(checkpoint, path, tmp_path / "once", problems=4)[0]


def test_records_with_a_line_a_problem(tmp_path, capsys):
    """rates.jsonl and rows.jsonl went on from lines of another question, and kept grades of another answer."""
    from e3jax.rollout.digests import line_digests

    problems = [Problem(f"s-{i}", "math", f"{i}+1?", str(i + 1), "s", {"where": "anywhere"}) for i in range(3)]
    log = RunLog(tmp_path, {}, tensorboard=False, wandb="")
    for i, p in enumerate(problems):
        log.append("rates.jsonl", {"index": i, "problem": p.id, **line_digests(p, 4)})

    def known(now, samples=4):
        return still_counts(log, "rates.jsonl", now, samples=samples, wanted=lambda line: True)

    assert known(problems) == {0, 1, 2} and known(problems[:2]) == {0, 1}
    other = Problem("s-1", "math", "1+1?", "11", "s", {"where": "anywhere"})
    assert known([problems[0], other, problems[2]]) == {0, 2} == known(problems)  # its line is gone: drawn again
    assert "rates.jsonl: the answers of 1 problems" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"rates.jsonl: problem 2 was 's-2'; now it is 's-2' or asks another question"):
        known([*problems[:2], Problem("s-2", "math", "2 + 1?", "3", "s", {"where": "anywhere"})])
    assert known(problems, samples=8) == set()
    assert what_was_scored(problems, 4)["questions"] == what_was_scored(problems, 8)["questions"]
