"""What is saved comes back bit for bit; only complete checkpoints count; parameters alone can be taken along."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3jax.checkpoint.store import Store, load_params
from e3jax.errors import UserError
from e3jax.train.state import apply_gradients, make_optimizer, new_state


@pytest.fixture
def saved(tmp_path):
    """A stage with steps 1, 2, 3 saved, two kept, and a half-written step 9."""
    tx = make_optimizer(
        lr=0.1, warmup=0, decay_steps=0, weight_decay=0.0, beta1=0.9, beta2=0.9, grad_clip=1.0, moments_dtype="float32"
    )
    state, store = new_state(tx, {"w": jnp.arange(4.0)}), Store(tmp_path / "stage", keep=2)
    for step in (1, 2, 3):
        state, _ = apply_gradients(tx, state, {"w": jnp.ones(4) * step})
        store.save(step, state)
    store.close()
    (tmp_path / "stage" / "9.orbax-checkpoint-tmp").mkdir()
    return tmp_path / "stage", tx, state


def test_newest_complete_step_comes_back(saved):
    directory, tx, want = saved
    store = Store(directory, keep=2)
    assert store.latest_step() == 3
    got = store.restore(3, new_state(tx, {"w": jnp.zeros(4)}))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert sorted(p.name for p in directory.iterdir() if p.name.isdigit()) == ["2", "3"]
    store.close()


def test_parameters_alone(saved):
    """A new stage starts from a model, whatever optimiser made it; a wrong path is a sentence."""
    directory, _, want = saved
    got = load_params(directory / "3", {"w": jnp.zeros(4)})
    np.testing.assert_array_equal(got["w"], want.params["w"])
    with pytest.raises(UserError, match="is no checkpoint"):
        load_params(directory / "7", {"w": jnp.zeros(4)})
    with pytest.raises(UserError, match=r"misshapen   w: expected \(5,\), found \(4,\)"):
        load_params(directory / "3", {"w": jnp.zeros(5)})
