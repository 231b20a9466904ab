"""8 simulated devices, strict rank promotion, float32 matmuls; a tiny random model for everybody."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported

import jax
import jax.numpy as jnp
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "float32")

from e3jax.models.presets import preset  # noqa: E402
from e3jax.models.qwen3 import Qwen3, init_params  # noqa: E402


@pytest.fixture(scope="session")
def tiny():
    """(model, params) of the tiny preset, random weights, float32."""
    model = Qwen3(preset("tiny"), dtype=jnp.float32, remat="none", kernel="xla")
    return model, init_params(model, jax.random.key(0))
