"""Host arrays into few shapes, without losing or mixing a token."""

import itertools

import numpy as np
import pytest

from e3jax.train.packing import length_buckets, micro_batches, pack_rows, take


def test_pack_rows_by_hand():
    """Two examples share row 0, the third did not fit and opens row 1 with its gap; prompts are not trained."""
    examples = iter([([2, 3], [4], 0), ([5], [6, 7], 0), ([8], [9, 10, 11], 50), *itertools.repeat(([2], [3], 0), 9)])
    tokens, positions, segments, mask = pack_rows(examples, rows=2, length=7, pad=0)
    assert tokens.tolist() == [[2, 3, 4, 5, 6, 7, 0], [8, 9, 10, 11, 2, 3, 0]]
    assert positions.tolist() == [[0, 1, 2, 0, 1, 2, 0], [0, 51, 52, 53, 0, 1, 0]]
    assert segments.tolist() == [[1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 2, 2, 0]]
    assert mask.tolist() == [[0, 0, 1, 0, 1, 1, 0], [0, 1, 1, 1, 0, 1, 0]]


def test_too_long_an_example_is_refused():
    with pytest.raises(ValueError, match="row_length=4"):
        pack_rows(itertools.repeat(([1], [2] * 4, 0)), rows=1, length=4, pad=0)


def test_micro_batches_cover_every_row_once_in_few_shapes():
    """A row lost or doubled would silently change the gradient."""
    lengths = np.random.default_rng(0).integers(1, 105, 50)
    seen, widths = [], set()
    for index, width in micro_batches(lengths, rows=16, max_length=104):
        assert len(index) == 16 and width >= lengths[index[index >= 0]].max()
        seen += index[index >= 0].tolist()
        widths.add(width)
    assert sorted(seen) == list(range(50))
    assert widths <= set(length_buckets(104)) == {32, 48, 64, 96, 104}


def test_take_fills_missing_rows_and_columns():
    array = np.arange(6).reshape(2, 3)
    assert take(array, np.array([1, -1]), 2, 9).tolist() == [[3, 4], [9, 9]]
    assert take(array, np.array([0]), 5).tolist() == [[0, 1, 2, 0, 0]]
