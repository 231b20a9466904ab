"""Rotary position embedding: one frequency per pair of head features, and the schemes that stretch them.

    frequency_i = θ^(−2i/H), i < H/2                 (RoFormer; `modeling_rope_utils.py` of transformers for all below)
    Linear      frequency / factor
    Yarn        a ramp from frequency (many turns inside the original length) to frequency / factor (few turns);
                sin and cos are multiplied by `attention_factor`
    Llama3      the same ramp by wavelength, with two bounds; sin and cos are not multiplied

Frequencies are computed on the host, operation by operation in float32 as transformers does: at position 32,768 the
last bit of a frequency is worth 0.002 rad.

    sin, cos = rope_angles(position_bt, head_width=128, theta=1e6, scaling=None)
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Linear(NamedTuple):
    """Positions divided by `factor` [rope_type "linear"]."""

    factor: float


class Yarn(NamedTuple):
    """YaRN (arXiv 2309.00071 §3) [rope_type "yarn"]."""

    factor: float
    original_length: int  # [original_max_position_embeddings]
    beta_fast: float  # turns inside the original length above which a frequency stays
    beta_slow: float  # turns below which it is divided by `factor`
    attention_factor: float  # on sin and cos; 0.1 ln(factor) + 1 unless config.json says otherwise
    truncate: bool  # bounds of the ramp rounded outwards to whole feature indices


class Llama3(NamedTuple):
    """Llama 3.1's scheme [rope_type "llama3"]."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int  # [original_max_position_embeddings]


Scaling = Linear | Yarn | Llama3 | None


def frequencies(head_width: int, theta: float, scaling: Scaling) -> np.ndarray:
    """Return the frequencies [H/2], float32, in radians per position."""
    exponent = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
    turn = (np.float64(theta) ** exponent.astype(np.float64)).astype(np.float32)  # rounded once, as in torch's pow
    plain = np.float32(1) / turn
    match scaling:
        case None:
            return plain
        case Linear(factor):
            return plain / np.float32(factor)
        case Yarn():
            stretched = np.float32(1) / (np.float32(scaling.factor) * turn)
            keep = np.float32(1) - yarn_ramp(head_width, theta, scaling)
            return stretched * (np.float32(1) - keep) + plain * keep
        case Llama3(factor, low, high, original_length):
            factor = np.float32(factor)
            wavelength = np.float32(2 * math.pi) / plain
            smooth = (np.float32(original_length) / wavelength - np.float32(low)) / np.float32(high - low)
            between = (np.float32(1) - smooth) * plain / factor + smooth * plain
            stretched = np.where(wavelength > original_length / low, plain / factor, between)
            return np.where(wavelength < original_length / high, plain, stretched).astype(np.float32)


def yarn_ramp(head_width: int, theta: float, yarn: Yarn) -> np.ndarray:
    """Return a ramp [H/2], float32: 0 where a frequency stays, 1 where it is divided by the factor, linear between."""

    def feature(turns):  # (fractional) index of the pair whose frequency makes `turns` turns in the original length
        return head_width * math.log(yarn.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = feature(yarn.beta_fast), feature(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_width - 1)
    if low == high:
        high += 0.001
    index = np.arange(head_width // 2, dtype=np.float32)
    return np.clip((index - np.float32(low)) / np.float32(high - low), 0, 1)


def rope_angles(
    position_bt: jax.Array, *, head_width: int, theta: float, scaling: Scaling
) -> tuple[jax.Array, jax.Array]:
    """Return sin and cos of position · frequency, [B, T, 1, H/2] float32 each; computed once for all layers."""
    frequency = jnp.asarray(frequencies(head_width, theta, scaling))
    angle = position_bt[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
    scale = scaling.attention_factor if isinstance(scaling, Yarn) else 1.0
    return jnp.sin(angle) * scale, jnp.cos(angle) * scale


def rope(x_btnh: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate each pair (i, i + H/2) by its angle (the rotate-half layout of the hub's weights)."""
    sin, cos = angles
    a, b = jnp.split(x_btnh.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_btnh.dtype)
