"""examples/: what a newcomer reads first runs, and computes what the trainer computes."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from e3jax.losses.grpo import group_advantages
from e3jax.train import grpo
from e3jax.train.state import new_state
from tests.stages import grpo_stage

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def example():
    """Return the names of the module; another test runs it as a script."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "examples/minimal_grpo.py")))


def test_the_minimal_loop_is_the_trainers_update(tiny, example):
    """Loss, its parts and updated parameters of examples/minimal_grpo.py equal train/grpo.py's, packing and all."""
    model, params = tiny
    params = params | {"embed_vd": params["embed_vd"] * 8}  # so that log-probs are not all alike
    tokenizer = SimpleNamespace(encode=lambda text: [5, 6, 7 + int(text)], stop=(1,), pad=0)
    problems = [SimpleNamespace(question=str(p)) for p in range(4)]
    r = example.roll_out(model, params, tokenizer, problems, key=jax.random.key(0), group_size=4, budget=20)
    reward_pg = np.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]])
    advantage_pg = group_advantages(reward_pg, normalize_std=True, ddof=1, epsilon=1e-6)
    reference = jax.tree.map(lambda x: x * 1.01, params)
    tx = optax.sgd(1.0)

    batch = example.make_batch(model, params, reference, r, advantage_pg)
    got, _, loss = example.update(model, tx, params, tx.init(params), batch)

    run = SimpleNamespace(model=model, tokenizer=SimpleNamespace(pad=0), chunk=4096, prompt_room=8)
    state = new_state(tx, jax.tree.map(jnp.copy, params))
    state, values, _ = grpo.update(
        run,
        tx,
        state,
        SimpleNamespace(rollouts=r),
        advantage_pg.reshape(-1),
        reference,
        replace(grpo_stage(minibatches=1, rows=8), loss=example.LOSS),
    )
    for name, value in loss.items():
        assert float(value) == pytest.approx(values[f"loss/{name}"], rel=1e-6, abs=1e-6), name
    gaps = jax.tree.map(lambda x, y: float(abs(x - y).max()), got, state.params)
    assert max(jax.tree.leaves(gaps)) < 1e-6, gaps
    moved = jax.tree.map(lambda x, y: float(abs(x - y).max()), got, params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_the_minimal_loop_runs(checkpoint, monkeypatch, capsys):
    """The command in its docstring runs on a tiny random checkpoint."""
    args = [str(checkpoint), "--steps=2", "--prompts=2", "--group_size=2", "--budget=16"]
    monkeypatch.setattr(sys, "argv", ["minimal_grpo.py", *args])
    runpy.run_path(str(ROOT / "examples/minimal_grpo.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].startswith("step 2: reward 0")
