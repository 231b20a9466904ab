"""The command end to end on Countdown: killed in the middle it ends with the same numbers, and draws nothing twice."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from e3jax.errors import UserError
from e3jax.eval.run import check
from e3jax.metrics.names import undefined_fields
from e3jax.rollout.bench import Chat, ProblemSet, in_chat, load_problems
from e3jax.tokenizer import HubTokenizer

ROOT = Path(__file__).parent.parent
FLAGS = (
    "--config.sampler.slots=16", "--config.sampler.prefill_rows=4", "--config.sampler.block=4",
    "--config.budgets=(16,48)", "--config.pass_ks=(1,8)", "--config.train_budget=16",
    "--config.forcing.early_stop=(16,)", "--config.forcing.wait=(1,)", "--config.forcing.phrases=('no','yes')",
    "--config.forcing.thinking=16", "--config.forcing.extension=8", "--config.forcing.samples=2",
    "--config.grader.workers=1",
)  # fmt: skip
RECORDS = (
    "eval.jsonl",
    "problems.jsonl",
    "forced.jsonl",
    "table1.csv",
    "table3.md",
    "forced.csv",
    "majority.md",
    "extrapolation-3 numbers.svg",
)


def start(checkpoint, workdir, tmp_path):
    config = tmp_path / "one_set.py"
    config.write_text(
        "from configs import eval_countdown\n"
        "def get_config(argument):\n"
        "    c = eval_countdown.get_config(argument)\n"
        "    c.sets = {'3 numbers': dict(c.sets['3 numbers'].to_dict(), problems=6, samples=16)}\n"
        "    return c\n"
    )
    command = [sys.executable, "-m", "e3jax.eval.run", f"--config={config}:tiny={checkpoint}", f"--workdir={workdir}"]
    return subprocess.Popen(
        [*command, *FLAGS],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )


def whole_lines(workdir) -> list[str]:
    """Return the whole lines of the responses so far."""
    files = sorted((workdir / "responses/tiny/3 numbers").glob("*.jsonl"))
    return [x for f in files for x in f.read_text().split("\n")[:-1]]


def drawn(workdir) -> list[tuple]:
    """Return (part, problem, sample) of every whole line, with repetitions."""
    return [(x["part"], x["problem"], x["sample"]) for x in map(json.loads, whole_lines(workdir))]


def when(process, happened, number):
    """Send the signal as soon as the condition holds; return what the command said."""
    deadline = time.monotonic() + 600
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()[-3000:]
        time.sleep(0.001)
    process.send_signal(number)
    return process.communicate()[1]


def test_killed_and_stopped_ends_with_the_same_numbers(checkpoint, tmp_path):
    """SIGKILL while responses are drawn, SIGTERM while some are forced, then a start that runs to the end."""
    straight, killed = tmp_path / "a", tmp_path / "b"
    one = start(checkpoint, straight, tmp_path)
    assert one.wait(600) == 0, one.stderr.read()[-3000:]
    when(start(checkpoint, killed, tmp_path), lambda: len(whole_lines(killed)) >= 8, signal.SIGKILL)
    before = len(whole_lines(killed))
    assert 8 <= before < 96
    stopped = start(checkpoint, killed, tmp_path)
    said = when(stopped, lambda: len(whole_lines(killed)) > before, signal.SIGTERM)
    assert stopped.returncode == 0 and "stopped by SIGTERM: tiny, 3 numbers: " in said, said
    assert not (killed / "DONE").exists()
    last = start(checkpoint, killed, tmp_path)
    assert last.wait(600) == 0, last.stderr.read()[-3000:]
    assert sorted(drawn(killed)) == sorted(set(drawn(killed))) == sorted(drawn(straight))
    for name in RECORDS:
        assert (killed / name).read_text() == (straight / name).read_text(), name
    (line,) = [json.loads(x) for x in (straight / "eval.jsonl").read_text().splitlines()]
    assert set(line["forcing"]) == {"stop-16", "wait-1"} and line["pass_at_k_budget"] == 48
    assert not undefined_fields("eval.jsonl", line)
    waits = [json.loads(x) for x in (straight / "forced.jsonl").read_text().splitlines()]
    assert len(waits) == 2 * 6 * 2 and any(x["forced"] for x in waits)
    assert all(x["length"] == x["forced"] + x["sampled"] <= 48 + 12 for x in waits)
    assert len((straight / "problems.jsonl").read_text().splitlines()) == 6 and (straight / "DONE").exists()
    other = start(f"{tmp_path}/absent", straight, tmp_path)  # the same label for another model
    assert "holds model 'tiny' as" in other.communicate()[1] and other.returncode == 2


@pytest.mark.parametrize("name", ["eval_math", "eval_countdown"])
def test_configs_are_possible(name, monkeypatch):
    monkeypatch.setattr("jax.devices", lambda: [None] * 128 if name == "eval_math" else [None])
    check(importlib.import_module(f"configs.{name}").get_config())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(models=()), "config.models"),
        (lambda c: c.update(models=(("a/b", "x"),)), "directory's name"),
        (lambda c: c.update(models=(("a", "x"), ("a", "y"))), "each once"),
        (lambda c: c.update(budgets=(32, 16)), r"config.budgets=\[32, 16\]: must rise"),
        (lambda c: c.update(pass_ks=(64,)), "config.sets.'3 numbers'..samples=32: 64 or more"),
        (lambda c: c.forcing.update(early_stop=(9999,)), "config.forcing.early_stop"),
        (lambda c: c.forcing.update(wait=(2,), samples=64), "config.forcing.samples=64"),
        (lambda c: c.sampler.update(slots=12), "config.sampler.slots=12: a multiple of 8"),
        (lambda c: c.sampler.update(top_p=0.0), "top_p"),
        (lambda c: c.sets["3 numbers"].update(form="calc"), "form='calc': use one of 'calculator'"),
    ],
)
def test_impossible_configs_are_named(change, words):
    """An impossible config is refused by name; there are 8 devices, as in all tests."""
    assert len(jax.devices()) == 8
    config = importlib.import_module("configs.eval_countdown").get_config()
    change(config)
    with pytest.raises(UserError, match=words):
        check(config)


def test_arguments_name_checkpoints():
    models_of = importlib.import_module("configs.eval_math").models_of
    assert models_of("runs/x/checkpoints/hard/40") == (("model", "runs/x/checkpoints/hard/40"),)
    assert models_of("Qwen3-1.7B=Qwen/Qwen3-1.7B,e3=x") == (("Qwen3-1.7B", "Qwen/Qwen3-1.7B"), ("e3", "x"))
    with pytest.raises(UserError, match="LABEL=CHECKPOINT"):
        models_of("a=x,b")


def test_prompts_of_mathematics_are_one_user_turn(tmp_path, qwen3_files):
    """A set from a file, e3's words, Qwen3's template: the tokens of its chat, thinking on by default."""
    (tmp_path / "two.jsonl").write_text(
        '{"problem": "1+1?", "answer": 2}\n{"problem": "Is $x$ odd?", "answer": "No"}\n'
    )
    one_set = importlib.import_module("configs.eval_math").one_set
    questions = ProblemSet(**one_set(str(tmp_path / "two.jsonl"), samples=1))
    problems, tokenizer = load_problems(questions, seed=0), HubTokenizer(str(qwen3_files))
    words = "1+1? Let's think step by step and output the final answer within \\boxed{}."
    assert problems[0].question == words and problems[0].meta["where"] == "response" and len(problems) == 2
    for thinking in (True, False):
        turn = in_chat(problems[0], tokenizer, Chat(thinking))
        chat = tokenizer.chat([{"role": "user", "content": words}], thinking=thinking)
        assert tokenizer.encode(turn.question) == chat
    config = importlib.import_module("configs.eval_math").get_config()
    assert len(tokenizer.encode(config.forcing.close)) == 1  # in Qwen3 the mark that ends thinking is one token
    assert tokenizer.id("</think>") in tokenizer.encode(config.forcing.sentence)
