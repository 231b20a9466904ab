"""Start a tiny model's number embeddings from sines and cosines of the number, so that arithmetic has a metric.

Random embeddings make 5 and 6 as unlike as 5 and 77; a 0.2M-parameter model then needs far more text to learn sums.
Trained further like all parameters. Measured in LOG.md.
"""

from collections.abc import Sequence

import jax
import numpy as np

from e3jax.runtime import fetch

SCALE = 3.0  # times the random entries: at 1 the model ignores them, at 10 it learns little else (LOG.md)
PERIODS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12.5, 20, 25, 100 / 3, 50, 100, 200)  # residues first, then size


def number_features(embed_vd: jax.Array, words: Sequence[str]) -> jax.Array:
    """[V, D] with the first 32 features of number words ("7", "?7") replaced."""
    embed = np.array(fetch(embed_vd))
    scale = SCALE * embed.std() * np.sqrt(2)
    for row, word in enumerate(words):
        digits = word.lstrip("?")
        if digits.isdigit():
            angle = 2 * np.pi * int(digits) / np.array(PERIODS)
            embed[row, : 2 * len(PERIODS)] = scale * np.concatenate([np.sin(angle), np.cos(angle)])
    return jax.make_array_from_callback(embed.shape, embed_vd.sharding, lambda at: embed[at])
