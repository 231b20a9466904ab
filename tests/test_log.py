"""Records survive kills: append only, rewound exactly to a checkpoint; another config's directory is refused."""

import io
import json
import re
import struct
import sys
import types

import pytest
from rich.console import Console

from e3jax.errors import UserError
from e3jax.log import RunLog, claim
from e3jax.records import finite


@pytest.fixture
def log(tmp_path):
    return RunLog(tmp_path, {"seed": 0}, tensorboard=False, wandb="")


def test_rewind_forgets_only_what_is_made_again(log):
    for stage, steps in (("base", 3), ("easy", 5)):
        for step in range(1, steps + 1):
            log.metrics(stage, "grpo", step=step, global_step=step, values={"x": step})
    log.rewind("easy", 2)
    assert [(x["stage"], x["step"]) for x in log.read("metrics.jsonl")] == [
        ("base", 1),
        ("base", 2),
        ("base", 3),
        ("easy", 1),
        ("easy", 2),
    ]


def test_cut_last_line_is_dropped_and_a_broken_one_is_named(log):
    path = log.workdir / "metrics.jsonl"
    path.write_text('{"stage": "a", "step": 1}\n{"stage": "a", "st')
    assert len(log.read("metrics.jsonl")) == 1
    log.rewind("a", 1)
    assert path.read_text() == '{"stage": "a", "step": 1}\n'
    path.write_text("oops\n{}\n")
    with pytest.raises(ValueError, match="line 1"):
        log.read("metrics.jsonl")


def test_not_finite_becomes_null(log):
    log.append("x.jsonl", {"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads((log.workdir / "x.jsonl").read_text()) == {"a": None, "b": [None, 1.5]}
    assert finite(3) == 3


def test_a_directory_belongs_to_one_config(tmp_path):
    claim(tmp_path, {"seed": 0, "grpo": {"lr": 1.0}, "budgets": (1, 2)})
    claim(tmp_path, {"seed": 0, "grpo": {"lr": 1.0}, "budgets": (1, 2)})
    with pytest.raises(UserError, match=r"grpo.lr: 1.0 there, 2.0 here"):
        claim(tmp_path, {"seed": 0, "grpo": {"lr": 2.0}, "budgets": (1, 2)})


def test_phase_counts_without_a_terminal(tmp_path, capsys):
    log = RunLog(tmp_path, {}, tensorboard=False, wandb="")
    with log.phase("easy", total=3) as phase:
        phase.advance(2, "reward 0.5")
        phase.advance(1)
    assert "easy: 3 done in 0 s  reward 0.5" in capsys.readouterr().err


def test_phase_says_so_now_and_then_in_a_log_file(tmp_path, capsys, monkeypatch):
    """A log file gets whole lines with count, time and note, without control characters."""
    monkeypatch.setattr("e3jax.log.PLAIN_EVERY_S", 0.0)
    log = RunLog(tmp_path, {}, tensorboard=False, wandb="")
    with log.phase("easy", total=3) as phase:
        phase.advance(2, "reward 0.5")
    assert capsys.readouterr().err == "easy: 2/3 in 0 s  reward 0.5\neasy: 2 done in 0 s  reward 0.5\n"


def test_phase_keeps_name_and_count_on_a_narrow_terminal(log, monkeypatch):
    """A long note once pushed the count out, and then the bar."""
    monkeypatch.setenv("TERM", "xterm")
    log.console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with log.phase("easy: GRPO, budget 96", total=80) as phase:
        phase.advance(41, "rollouts 12/128  reward 0.52  length 72  attempts 5.4  3120 tok/s")
    frames = re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", log.console.file.getvalue()))
    shown = [frame for frame in frames if "41/80" in frame]
    assert shown and all(re.match(r"easy: GRPO, budget 96 \S+ 41/80 0:00:0\d rollouts 12/128 .*…$", f) for f in shown)
    assert all(len(frame) == 80 for frame in shown)


def test_phase_is_one_line_in_a_notebook(log, monkeypatch):
    """The line is overwritten, and says at the end what was done; another phase or sentence has another line."""
    cells = []

    class Cell:
        def __init__(self, data, **how):
            assert how == {"raw": True, "display_id": True}
            cells.append([data["text/plain"]])
            self.texts = cells[-1]

        def update(self, data, *, raw):
            self.texts.append(data["text/plain"])

    monkeypatch.setattr("e3jax.log.CELL_EVERY_S", 0.0)
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=Cell))
    log.console = Console(file=io.StringIO(), force_jupyter=True)
    for name in ("easy", "hard"):
        with log.phase(name, total=2) as phase:
            phase.advance(1, "reward 0.5")
            phase.advance(1)
    log.say("report: report.html")
    assert cells.pop() == ["report: report.html"]
    assert [len(texts) for texts in cells] == [3, 3] and cells[0][0] == "easy: 1/2 in 0 s  reward 0.5"
    assert cells[1][-1] == "hard: 2 done in 0 s  reward 0.5" and not log.console.file.getvalue()


def scalars(directory) -> set[tuple[str, float]]:
    """Return (tag, value) of a TensorBoard file: records of length, 4 bytes, protocol buffer, 4 bytes."""
    from tensorboardX.proto.event_pb2 import Event

    found = set()
    for path in directory.iterdir():
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found |= {(event.step, value.tag, round(value.simple_value, 4)) for value in event.summary.value}
            at += 16 + size
    return found


def test_tensorboard_and_wandb_get_the_same_names(tmp_path, monkeypatch):
    """The three records of a run use the same names; a value that is not finite is a gap in TensorBoard."""
    logged = []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **_: run))
    log = RunLog(tmp_path, {}, tensorboard=True, wandb="project")
    values = {"reward/mean": 0.25, "explore/give_up": 0.5, "length/correct": float("nan")}
    log.metrics("easy", "grpo", step=3, global_step=903, values=values)
    log.close()
    (line,) = log.read("metrics.jsonl")
    names = set(line) - {"stage", "kind", "step", "global_step"}
    assert names == set(values) and line["length/correct"] is None
    assert scalars(tmp_path / "tb") == {(903, "reward/mean", 0.25), (903, "explore/give_up", 0.5)}
    ((step, sent),) = logged
    assert step == 903 and set(sent) == names | {"stage", "global_step"} and sent["reward/mean"] == 0.25
