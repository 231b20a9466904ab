"""LoRA: small trained matrices beside frozen ones, as functions of the parameter tree.

    y = x·W + (α / r) · (x·A)·B        A [in, r] random, B [r, out] zero at first: Hu et al. 2021 (2106.09685), Eq. 3

The two of "wq_dnh" lie beside it as "wq_a_ir" and "wq_b_ro", stacked over layers like it; models/qwen3.py multiplies
with whatever of them is there, so that W + (α / r) A·B exists only where `merged` makes it. Axes of this file: i are
the features that go into a matrix, o those that come out, with heads and head widths as one; r is the rank.

    lora = Lora(rank=16, alpha=32.0, matrices="q_proj v_proj")
    params = beside(params, fresh_adapters(params, lora, key))
    trained(params)                        # what an optimiser sees: the adapters; without any, all parameters
    with_trained(params, new)              # the whole model again
    merged(params, lora, dtype="float32")  # an ordinary model
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from e3jax.errors import need
from e3jax.models.presets import ModelConfig

# PEFT's name -> our matrix, and how many of its axes are inputs
MATRICES = {
    "q_proj": ("wq_dnh", 1),
    "k_proj": ("wk_dkh", 1),
    "v_proj": ("wv_dkh", 1),
    "o_proj": ("wo_nhd", 2),
    "gate_proj": ("w_gate_df", 1),
    "up_proj": ("w_up_df", 1),
    "down_proj": ("w_down_fd", 1),
}
ENDS = ("_a_ir", "_b_ro")


@dataclass(frozen=True)
class Lora:
    """Which matrices have adapters, and of what size: config.model.lora."""

    rank: int  # r; 0: no adapters
    alpha: float  # α: adapters count α / r
    matrices: str  # names in MATRICES, with blanks between

    def __post_init__(self):
        need(self.rank >= 0, "rank", self.rank, "use 0 (off) or more")
        need(self.alpha > 0, "alpha", self.alpha, "must be above 0")
        names = self.matrices.split()
        known = len(names) > 0 and len(set(names)) == len(names) and set(names) <= set(MATRICES)
        need(known, "matrices", self.matrices, f"name some of {' '.join(MATRICES)}, once each, with blanks between")

    @property
    def names(self) -> tuple[str, ...]:
        """Return the chosen names, in the order of MATRICES."""
        return tuple(name for name in MATRICES if name in self.matrices.split())

    @property
    def scale(self) -> float:
        """Return α / r."""
        return self.alpha / self.rank


def pair(matrix: str) -> tuple[str, str]:
    """Return the names of a matrix's adapters.

    >>> pair("wq_dnh")
    ('wq_a_ir', 'wq_b_ro')
    """
    return tuple(matrix.rsplit("_", 1)[0] + end for end in ENDS)


def sides(c: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return the features into and out of every matrix of a block, by its name in MATRICES."""
    heads, keys = c.heads * c.head_width, c.kv_heads * c.head_width
    attention = {"q_proj": (c.width, heads), "k_proj": (c.width, keys), "v_proj": (c.width, keys)}
    inner = {"gate_proj": (c.width, c.mlp_width), "up_proj": (c.width, c.mlp_width)}
    return attention | {"o_proj": (heads, c.width)} | inner | {"down_proj": (c.mlp_width, c.width)}


def num_adapter_params(c: ModelConfig, lora: Lora) -> int:
    """Return the number of parameters of a model's adapters: r (in + out) for every chosen matrix of every layer."""
    return c.layers * lora.rank * sum(sum(sides(c)[name]) for name in lora.names)


def widths(shape: tuple[int, ...], axes_in: int) -> tuple[int, int]:
    """Return the features into and out of a stack of matrices [L, *in, *out].

    >>> widths((28, 16, 128, 1024), axes_in=2)
    (2048, 1024)
    """
    return math.prod(shape[1 : 1 + axes_in]), math.prod(shape[1 + axes_in :])


def fresh_adapters(params, lora: Lora, key: jax.Array):
    """Return new float32 adapters of `params` (arrays or shapes): A uniform within ±1/√in, B zero.

    That is PEFT's Kaiming initialisation with a = √5. A matrix's A is a function of (key, matrix) alone.
    """
    layers = {}
    for number, (name, (matrix, axes_in)) in enumerate(MATRICES.items()):
        if name in lora.names:
            stack = params["layers"][matrix].shape
            wide, out = widths(stack, axes_in)
            a, b = pair(matrix)
            drawn = jax.random.uniform(jax.random.fold_in(key, number), (stack[0], wide, lora.rank), minval=-1.0)
            layers[a] = drawn * wide**-0.5
            layers[b] = jnp.zeros((stack[0], lora.rank, out))
    return {"layers": layers}


def adapters(params):
    """Return the adapters of a model, {"layers": …}; there may be none."""
    layers = params["layers"] if "layers" in params else {}
    return {"layers": {name: x for name, x in layers.items() if name.endswith(ENDS)}}


def without(params):
    """Return a model without its adapters."""
    if not adapters(params)["layers"]:
        return params
    return params | {"layers": {name: x for name, x in params["layers"].items() if not name.endswith(ENDS)}}


def beside(params, new):
    """Return a model with adapters, in place of those that it has."""
    return params | {"layers": params["layers"] | new["layers"]}


def trained(params):
    """Return what training changes: the adapters where there are any, else all parameters."""
    own = adapters(params)
    return own if own["layers"] else params


def with_trained(params, new):
    """Return `params` with `new` in place of `trained(params)`."""
    return beside(params, new) if adapters(params)["layers"] else new


def merged(params, lora: Lora | None, *, dtype):
    """Return the model without adapters that computes the same: W + (α / r) A·B in float32, then cast to `dtype`.

    One layer's product exists at a time. Matrices without adapters stay as they are.
    """
    own, plain = adapters(params)["layers"], without(params)
    if not own:
        return plain

    def add(stacks):
        w, a, b = (x.astype(jnp.float32) for x in stacks)
        change = jnp.matmul(a, b, precision="highest").reshape(w.shape)
        return (w + lora.scale * change).astype(dtype)

    chosen = [matrix for matrix, _ in MATRICES.values() if pair(matrix)[0] in own]
    layers = plain["layers"]
    made = {name: jax.lax.map(add, (layers[name], *(own[x] for x in pair(name)))) for name in chosen}
    return plain | {"layers": layers | made}
