"""New tokens: spare rows first, growth to a multiple of 128, old rows bit for bit, new ones near the mean."""

import dataclasses

import numpy as np
import pytest

from e3jax.checkpoint.vocabulary import grow
from e3jax.models.presets import preset


@pytest.mark.parametrize(
    ("vocab", "used", "added", "size"), [(256, 200, 4, 256), (200, 200, 4, 256), (256, 255, 1, 256), (256, 254, 4, 384)]
)
@pytest.mark.parametrize("tied", [True, False])
def test_rows(vocab, used, added, size, tied):
    """Spare rows, which were never trained, are overwritten and nothing else is; config and both matrices agree."""
    config = dataclasses.replace(preset("tiny"), vocab_size=vocab, tied=tied)
    names = ("embed_vd",) if tied else ("embed_vd", "unembed_vd")
    rng = np.random.default_rng(1)
    params = {name: rng.normal(0.3, 0.02, (vocab, 64)).astype(np.float32) for name in names} | {"layers": {}}
    new, grown = grow(params, config, used=used, added=added)
    assert grown == dataclasses.replace(config, vocab_size=size)
    assert new.keys() == params.keys()
    for name in names:
        old, rows = np.asarray(params[name]), np.asarray(new[name])
        assert rows.shape == (size, 64) and rows.dtype == old.dtype
        np.testing.assert_array_equal(rows[:used], old[:used])
        np.testing.assert_array_equal(rows[used + added : vocab], old[used + added :])
        drawn = np.r_[rows[used : used + added], rows[max(vocab, used + added) :]]
        assert np.abs(drawn - old[:used].mean(0)).max() < 0.06 * old[:used].std(0).max()
        assert len(np.unique(drawn, axis=0)) == len(drawn)  # told apart
    assert new["layers"] is params["layers"]
