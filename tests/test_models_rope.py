"""RoPE's frequencies and angles against transformers, and against closed forms where it is absent."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from e3jax.checkpoint.hf_config import from_hub, to_hub
from e3jax.models.presets import preset
from e3jax.models.rope import Linear, Llama3, Yarn, frequencies, rope, rope_angles

SCALINGS = {
    "default": (None, {}),
    "linear": (Linear(4.0), {"factor": 4.0}),
    "yarn": (
        Yarn(4.0, 32_768, 32.0, 1.0, 0.1 * math.log(4) + 1, True),
        {"factor": 4.0, "original_max_position_embeddings": 32_768},
    ),
    "llama3": (
        Llama3(32.0, 1.0, 4.0, 8192),
        {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    ),
}


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize(("head_width", "theta"), [(128, 1e6), (64, 5e5), (128, 1e4)])
def test_frequencies_equal_transformers(kind, head_width, theta):
    """To 4e-7 (llama3 rounds three times), with most bits equal: at position 32,768 one bit is 0.002 rad."""
    pytest.importorskip("torch", reason="parity needs pip install -e '.[parity]'")
    transformers = pytest.importorskip("transformers", reason="parity needs pip install -e '.[parity]'")
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    scaling, extra = SCALINGS[kind]
    config = transformers.Qwen3Config(
        head_dim=head_width, rope_parameters={"rope_type": kind, "rope_theta": theta, **extra}
    )
    theirs = Qwen3RotaryEmbedding(config)
    got, want = frequencies(head_width, theta, scaling), theirs.inv_freq.numpy()
    np.testing.assert_allclose(got, want, rtol=4e-7)
    assert (got != want).mean() < 0.05
    assert got.dtype == np.float32
    if scaling is not None and kind == "yarn":
        assert scaling.attention_factor == theirs.attention_scaling


def test_closed_forms():
    """In YaRN and Llama3 pairs at one end are plain and at the other divided, half of them each; Linear divides all."""
    plain = 1e6 ** (-np.arange(64) / 64)
    np.testing.assert_allclose(frequencies(128, 1e6, None), plain, rtol=1e-6)
    np.testing.assert_allclose(frequencies(128, 1e6, Linear(4.0)), plain / 4, rtol=1e-6)
    for kind, factor in (("yarn", 4), ("llama3", 32)):
        got = frequencies(128, 1e6, SCALINGS[kind][0])
        np.testing.assert_allclose(got[:20], plain[:20], rtol=1e-6)
        np.testing.assert_allclose(got[-10:], plain[-10:] / factor, rtol=1e-6)
        assert (np.diff(got) < 0).all()


def test_angles_far_out():
    """sin and cos of large angles in float32 equal float64's at the same frequency; YaRN's factor multiplies both."""
    position = jnp.array([[0, 1, 32_767, 131_071]])
    yarn = SCALINGS["yarn"][0]
    sin, cos = rope_angles(position, head_width=128, theta=1e6, scaling=yarn)
    # the product rounds once in float32; what follows must not add to it
    angle = (np.array([0, 1, 32_767, 131_071], np.float32)[:, None] * frequencies(128, 1e6, yarn)).astype(np.float64)
    np.testing.assert_allclose(sin[0, :, 0], np.sin(angle) * yarn.attention_factor, atol=1e-6)
    np.testing.assert_allclose(cos[0, :, 0], np.cos(angle) * yarn.attention_factor, atol=1e-6)


def test_only_differences_of_positions_matter():
    """q at m and k at n meet as at m - n: the property that RoPE is for."""
    q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 1, 64)).astype(np.float32)

    def meet(m, n):
        at = [rope_angles(jnp.array([[p]]), head_width=64, theta=1e4, scaling=None) for p in (m, n)]
        return float((rope(jnp.asarray(q), at[0]) * rope(jnp.asarray(k), at[1])).sum())

    assert abs(meet(70, 30) - meet(1040, 1000)) < 1e-3
    assert abs(meet(70, 30) - meet(70, 31)) > 1e-2


@pytest.mark.parametrize("kind", SCALINGS)
def test_scaling_survives_config_json(kind):
    """to_hub and reading it back is the identity for every scheme."""
    config = dataclasses.replace(preset("tiny"), rope_scaling=SCALINGS[kind][0], rope_theta=123_456.0)
    assert from_hub(to_hub(config, dtype="float32", bos=None, eos=1, pad=0)) == config
