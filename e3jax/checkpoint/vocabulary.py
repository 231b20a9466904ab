"""Rows for new tokens in a trained model (E2C adds four tags).

New rows of the embedding, and of the unembedding when it is a separate matrix, are drawn around the mean of the rows
that the tokenizer names (Hewitt 2021: the mean leaves the old tokens' distribution nearly as it was):

    row = mean + 0.01 · std · ε,  ε ~ N(0, 1) per feature         ε only tells the new rows apart

Hub models often have spare rows behind the tokenizer's last token (Qwen3's has 151,669 tokens for 151,936 rows). Those
are used first. The vocabulary grows only when they do not suffice, to a multiple of 128, so that it still divides over
a mesh.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from e3jax.models.presets import ModelConfig

MULTIPLE = 128


def grow(params, config: ModelConfig, *, used: int, added: int):
    """Return params and config with rows for `added` tokens behind the first `used`; other rows keep every bit."""
    size = config.vocab_size
    if used + added > size:
        size = -(-(used + added) // MULTIPLE) * MULTIPLE
    params = dict(params)
    for name in ("embed_vd", "unembed_vd"):
        if name in params:
            params[name] = jnp.asarray(with_new_rows(np.asarray(params[name]), used, used + added, size))
    return params, dataclasses.replace(config, vocab_size=size)


def with_new_rows(old_vd: np.ndarray, used: int, stop: int, size: int) -> np.ndarray:
    """Return [size, D]: rows used..stop-1 and all rows past the old end are drawn, the others copied."""
    total = square = 0.0
    for start in range(0, used, 4096):  # in blocks: all in float64 takes four times a bfloat16 embedding
        block = old_vd[start : min(start + 4096, used)].astype(np.float64)
        total, square = total + block.sum(0), square + (block**2).sum(0)
    mean = total / used
    std = np.sqrt(np.maximum(square / used - mean**2, 0))
    fresh = np.r_[used:stop, max(stop, len(old_vd)) : size]
    new = np.empty((size, old_vd.shape[1]), old_vd.dtype)
    new[: len(old_vd)] = old_vd
    noise = np.random.default_rng(0).standard_normal((len(fresh), old_vd.shape[1]))
    new[fresh] = (mean + 0.01 * std * noise).astype(old_vd.dtype)
    return new
