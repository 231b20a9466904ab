"""Pass rates: the same after a kill, one line a problem; three definitions on a ruler; sets that a stage can name."""

import importlib
import json
from contextlib import nullcontext
from types import SimpleNamespace

import jax
import numpy as np
import pytest

pytest.importorskip("transformers", reason="checkpoints' tokenizers need pip install -e '.[hf]'")
from e3jax.curation import difficulty
from e3jax.curation.buckets import LEVELS, bucket
from e3jax.errors import UserError
from e3jax.log import RunLog
from e3jax.metrics.names import undefined_fields
from e3jax.report.files import pass_rates_file
from e3jax.rewards.extract import Grade
from e3jax.rollout import bench
from e3jax.rollout.bench import ProblemSet
from e3jax.rollout.responses import Responses
from e3jax.sharding import make_mesh
from e3jax.tasks.grade import grade_one
from e3jax.tasks.sets import load_set
from e3jax.tasks.table import TASKS


def config_for(checkpoint):
    c = importlib.import_module("configs.difficulty").get_config(f"form=calculator,model={checkpoint}")
    c.set.problems, c.samples, c.budget, c.at_once = 10, 6, 12, 4
    c.sampler.slots, c.sampler.prefill_rows, c.sampler.block = 16, 8, 4
    return c


def by_length(problems, texts, done):
    """Stands for a grader: a random model solves nothing."""
    return SimpleNamespace(
        result=lambda: [
            Grade(float(len(t) % 3 > 0), "correct") if d else Grade(0.0, "truncated") for t, d in zip(texts, done)
        ]
    )


@pytest.fixture
def light(monkeypatch):
    """One device, and verdicts that differ."""
    one = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    monkeypatch.setattr(bench, "make_mesh", lambda **_: one)
    monkeypatch.setattr("e3jax.rewards.workers.GraderPool", lambda **_: nullcontext(SimpleNamespace(submit=by_length)))


def rates_of(workdir):
    return [json.loads(line) for line in (workdir / "rates.jsonl").read_text().splitlines()]


class Killed(Exception):
    pass


def test_killed_anywhere_ends_with_the_same_numbers(checkpoint, tmp_path, light, monkeypatch):
    """Killed in a block and in the rates, with a line cut short each time, no whole response is drawn again."""
    straight, killed = tmp_path / "a", tmp_path / "b"
    difficulty.main(config_for(checkpoint), str(straight))
    expected = rates_of(straight)
    assert [x["index"] for x in expected] == list(range(10))
    assert len({x["rate"] for x in expected}) > 2 and not (straight / "responses").exists()

    drawn, real = [], Responses.add

    def add(self, new, *rest):
        real(self, new, *rest)
        drawn.extend(new)
        if len(drawn) >= 30:
            raise Killed

    monkeypatch.setattr(Responses, "add", add)
    with pytest.raises(Killed):
        difficulty.main(config_for(checkpoint), str(killed))
    assert len(rates_of(killed)) == 4  # one block; of the second some responses are there
    assert not undefined_fields("rates.jsonl", rates_of(killed)[0])
    block = next((killed / "responses").iterdir())
    file = next(block.glob("*.jsonl"))
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][: len(lines[-1]) // 2])
    lost = json.loads(lines[-1])
    drawn_before, drawn[:] = drawn[:], []
    monkeypatch.setattr(Responses, "add", lambda self, *a: (real(self, *a), drawn.extend(a[0]))[0])
    rates = (killed / "rates.jsonl").read_text().splitlines(keepends=True)
    (killed / "rates.jsonl").write_text("".join(rates[:3]) + rates[3][:20])  # killed while it was written
    changed = config_for(checkpoint)
    changed.sampler.slots, changed.sampler.prefill_rows = 8, 8
    difficulty.main(changed, str(killed))
    assert rates_of(killed) == expected
    again = set(drawn) & set(drawn_before)
    assert again == {("response", 3, g) for g in range(6)} | {("response", lost["problem"], lost["sample"])}
    for name in difficulty.SETS:
        one, other = (w / f"sets/code/{name}.jsonl" for w in (straight, killed))
        assert one.exists() == other.exists() and (not one.exists() or one.read_text() == other.read_text())


def test_other_blocks_and_other_presets_use_the_same_rates(checkpoint, tmp_path, light, monkeypatch):
    """Noise depends on the problem, not on its block; a finished run makes other sets without a model. A directory with
    5 problems refused to go on to 7; now it draws two more, with the rates of one call, and 5 need no model.
    """
    one, other = config_for(checkpoint), config_for(checkpoint)
    one.set.problems, other.set.problems = 5, 7
    other.at_once, other.keep_responses = 3, True
    difficulty.main(one, str(tmp_path / "a"))
    assert len(rates_of(tmp_path / "a")) == 5
    one.set.problems = 7
    difficulty.main(one, str(tmp_path / "a"))
    difficulty.main(other, str(tmp_path / "b"))
    assert rates_of(tmp_path / "a") == rates_of(tmp_path / "b")
    assert len(list((tmp_path / "b/responses").iterdir())) == 3
    monkeypatch.setattr(bench, "load_pretrained", None)
    one.preset, one.set.problems = "section_5", 5
    difficulty.main(one, str(tmp_path / "a"))
    sizes = [len((tmp_path / f"a/sets/section_5/{x}.jsonl").read_text().splitlines()) for x in LEVELS]
    assert sizes == [2, 2, 1]
    one.samples = 4
    with pytest.raises(UserError, match="holds a run of another config"):
        difficulty.main(one, str(tmp_path / "a"))


def test_definitions():
    """Every count of 16 and of 32 samples falls where the borders of the sources put it."""
    for n in (16, 32):
        code, appendix = (bucket([c / n for c in range(n + 1)], p) for p in ("code", "appendix_i"))
        for c in range(n + 1):
            assert code[c] == ("hard" if c == 0 else "easy" if 16 * c > 10 * n else "medium")
            assert appendix[c] == ("hard" if c == 0 else "medium" if 5 * c < n else "easy")
    assert bucket([1 / 5, 2 / 10, 3 / 15], "appendix_i") == ["easy"] * 3
    rng = np.random.default_rng(0)
    rates = rng.integers(0, 5, 300) / 16
    levels = np.array(bucket(rates, "section_5"))
    assert [int((levels == x).sum()) for x in LEVELS] == [100] * 3
    assert rates[levels == "easy"].min() >= rates[levels == "medium"].max() >= rates[levels == "medium"].min()
    assert rates[levels == "medium"].min() >= rates[levels == "hard"].max()
    ties = np.array(bucket(np.zeros(300), "section_5"))
    assert all(20 < (part == "easy").sum() < 50 for part in np.split(ties, 3))  # not the first hundred rows
    for wrong in (dict(rate_p=[0.5], preset="codes"), dict(rate_p=[1.1], preset="code")):
        with pytest.raises(UserError):
            bucket(**wrong)


def fake_rates(problems):
    return [{"rate": i / (len(problems) - 1), "samples": 16} for i in range(len(problems))]


def test_a_stage_reads_what_was_written(tmp_path, monkeypatch):
    """Answers, meta and levels of mathematics come back, under any prompt; e3_math takes the file as its set."""
    source = tmp_path / "mine.jsonl"
    rows = [{"problem": f"What is {i} + é?", "answer": str(i), "level": 3} for i in range(9)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = ProblemSet(form="math", source=str(source), prompt="e3", problems=0, where="anywhere")
    problems = difficulty.training_problems(questions, seed=0)
    log = SimpleNamespace(
        main=True,
        workdir=tmp_path,
        say=lambda text: None,
        read=lambda name: [{"index": i, **r} for i, r in reversed(list(enumerate(fake_rates(problems))))],
    )
    log.write = lambda files: RunLog.write(log, files)
    difficulty.write(log, problems, preset="code", title="t")
    path = tmp_path / "sets/code/medhard.jsonl"
    again = load_set(str(path), prompt="qwen", chat=str)
    assert [p.answer for p in again] == ["0", "1", "2", "3", "4", "5"]
    assert [p.difficulty for p in again] == ["hard"] + ["medium"] * 5
    assert again[1].question == (
        "What is 1 + é?\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    assert (again[1].meta["was"], again[1].meta["id"], again[1].meta["pass_rate"]) == ("level 3", "mine-1", 1 / 8)
    assert len(load_set(str(tmp_path / "sets/code/easy.jsonl"), prompt="e3")) == 3
    from e3jax.train.check import check

    config = importlib.import_module("configs.e3_math").get_config("stage=2")
    config.stages.math.set = str(path)
    monkeypatch.setattr("jax.devices", lambda: [None] * config.sampler.prefill_rows)
    check(config)


def test_countdown_comes_back_too(tmp_path):
    """The whole prompt is the problem, and the grader has what it needs."""
    problems = TASKS["paper"].open((3,), seed=0, split="train")(0, 4)
    rows = difficulty.split_set(problems, fake_rates(problems), "section_5")
    (tmp_path / "easy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows["easy"]))
    again = load_set(str(tmp_path / "easy.jsonl"), prompt="bare", chat=str)
    assert {p.question for p in again} <= {p.question for p in problems} and len(again) == 2
    for p in again:
        numbers = " + ".join(map(str, p.meta["numbers"]))
        for text in (f"<answer>{numbers}</answer>", "<answer>1</answer>"):
            same = next(q for q in problems if q.question == p.question)
            assert grade_one(p, text, True) == grade_one(same, text, True)


def test_wrong_fields_are_named(monkeypatch):
    monkeypatch.setattr("jax.devices", lambda: [None] * 128)
    get_config = importlib.import_module("configs.difficulty").get_config
    for argument in ("", "preset=section_5", "preset=appendix_i"):
        difficulty.check(get_config(argument))
    for change, words in (
        (dict(preset="Code"), "config.preset='Code': use one of code, section_5, appendix_i"),
        (dict(samples=0), "config.samples=0"),
        (dict(at_once=0), "config.at_once=0"),
    ):
        config = get_config()
        config.update(change)
        with pytest.raises(UserError, match=words):
            difficulty.check(config)
    config = get_config("form=calculator")
    config.set.problems = 0
    with pytest.raises(UserError, match=r"config\.set\.problems=0"):
        difficulty.check(config)
    with pytest.raises(UserError, match=r"preset='codes' is not one of preset=code\|section_5"):
        get_config("preset=codes")


def test_histogram():
    """Counts are drawn per bar with levels stacked, in a file that needs no page."""
    svg = pass_rates_file({"easy": [1.0, 0.75], "medium": [0.25] * 3, "hard": [0.0]}, samples=4, title="a < b")
    assert svg.startswith("<svg xmlns=") and "var(--" not in svg and "currentColor" not in svg and 'pt"' not in svg
    assert "a &lt; b" in svg and "medium (3)" in svg and "right of 4 samples" in svg
