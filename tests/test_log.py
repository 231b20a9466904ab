"""Records survive kills: append only, rewound exactly to a checkpoint; another config's directory is refused."""

import json

import pytest

from e3jax.errors import UserError
from e3jax.log import RunLog, claim, finite


@pytest.fixture
def log(tmp_path):
    return RunLog(tmp_path, {"seed": 0}, tensorboard=False, wandb="")


def test_rewind_forgets_only_what_is_made_again(log):
    for stage, steps in (("base", 3), ("easy", 5)):
        for step in range(1, steps + 1):
            log.metrics(stage, "grpo", step=step, global_step=step, values={"x": step})
    log.rewind("easy", 2)
    assert [(x["stage"], x["step"]) for x in log.read("metrics.jsonl")] == [
        ("base", 1), ("base", 2), ("base", 3), ("easy", 1), ("easy", 2),
    ]  # fmt: skip


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
