"""Host arrays into few shapes, without losing or mixing a token."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from e3jax.errors import UserError
from e3jax.train.packing import micro_batch_shapes, pack_micro_batches, pack_rows, padding


def test_pack_rows_by_hand():
    """Two examples share row 0; the third did not fit and opens row 1 with its gap. Prompts are not trained."""
    examples = iter([([2, 3], [4], 0), ([5], [6, 7], 0), ([8], [9, 10, 11], 50), *itertools.repeat(([2], [3], 0), 9)])
    tokens, positions, segments, mask = pack_rows(examples, rows=2, length=7, pad=0)
    assert tokens.tolist() == [[2, 3, 4, 5, 6, 7, 0], [8, 9, 10, 11, 2, 3, 0]]
    assert positions.tolist() == [[0, 1, 2, 0, 1, 2, 0], [0, 51, 52, 53, 0, 1, 0]]
    assert segments.tolist() == [[1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 2, 2, 0]]
    assert mask.tolist() == [[0, 0, 1, 0, 1, 1, 0], [0, 1, 1, 1, 0, 1, 0]]


def test_too_long_an_example_is_refused():
    with pytest.raises(ValueError, match="row_length=4"):
        pack_rows(itertools.repeat(([1], [2] * 4, 0)), rows=1, length=4, pad=0)


def realistic(rng, count: int, budget: int) -> np.ndarray:
    """Draw log-normal lengths of median .3 budgets (sigma .8); a fifth, and what would be longer, is truncated."""
    length = np.minimum(np.exp(rng.normal(np.log(0.3 * budget), 0.8, count)), budget)
    return np.where(rng.random(count) < 0.2, budget, length).astype(int).clip(1)


@pytest.mark.parametrize(
    ("count", "rows", "budget", "room", "prompt"),
    [(1024, 128, 16_384, 1024, 250), (1024, 128, 8192, 1024, 250), (256, 16, 1024, 64, 40), (256, 16, 1024, 0, 0)],
)
def test_at_most_a_tenth_is_padding(count, rows, budget, room, prompt):
    """On e3's stages and a small one; length buckets left 12 to 24 % of the computed tokens to padding."""
    for groups in (1, rows):
        shapes = micro_batch_shapes(room + budget, rows, groups=groups)
        assert len(shapes) <= 4
        for seed in range(10):
            rng = np.random.default_rng(seed)
            micro = pack_micro_batches(realistic(rng, count, budget) + prompt, shapes)
            assert padding(micro) <= 0.10, seed
            assert {(m.rows, m.width) for m in micro} <= set(shapes)


def recorded(mean: float, limit: int, count: int) -> np.ndarray:
    """Return the response lengths of benchmarks/lengths.json, stretched to a mean and cut at the limit."""
    file = Path(__file__).parent.parent / "benchmarks/lengths.json"
    share = np.array(json.loads(file.read_text())["share"][:count])
    least, most = 0.0, 1e6
    for _ in range(60):
        middle = (least + most) / 2
        least, most = (least, middle) if np.minimum(share * middle, limit).mean() > mean else (middle, most)
    return np.maximum(np.minimum(share * least, limit).round().astype(int), 1)


@pytest.mark.parametrize("rows", [16, 32])
@pytest.mark.parametrize("room", [140, 160, 192])
def test_a_tenth_where_prompts_are_a_third_of_a_row(room, rows):
    """A step of SmolLM2: 64 prompts of 140 tokens x 8, mean response 238, limit 512, 4 minibatches.

    Narrow rows hold few of these sequences: 16 to 25 % of the computed tokens were padding.
    """
    lengths = 140 + recorded(238, 512, 512)
    for seed in range(5):
        shuffled = np.random.default_rng(seed).permutation(lengths)
        shapes = micro_batch_shapes(room + 512, rows, groups=1)
        micro = [m for part in np.split(shuffled, 4) for m in pack_micro_batches(part, shapes)]
        assert padding(micro) < 0.10, (seed, padding(micro))


def test_shapes_of_micro_batches():
    """Every device has rows of its own, as many as the others; each shape is about half of the one before."""
    for longest, rows, groups in ((652, 32, 1), (104, 32, 2), (17_408, 128, 64), (80, 3, 1), (80, 98, 1), (20, 8, 1)):
        shapes = micro_batch_shapes(longest, rows, groups=groups)
        assert shapes[0][0] == rows and shapes[0][1] >= longest
        for (r, w), (half_r, half_w) in itertools.pairwise(shapes):
            assert half_r % groups == 0 and r * w / 2 <= half_r * half_w <= r * w * 0.7


def test_packed_sequences_are_whole_apart_and_in_the_right_place():
    """A token lost, doubled, overwritten or seen by a neighbour would silently change the gradient."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 105, 50)
    array = np.where(np.arange(104) < lengths[:, None], 1 + np.arange(50 * 104).reshape(50, 104), 0)
    part = np.arange(10, 50)
    seen = []
    for m in (x.of(part) for x in pack_micro_batches(lengths[part], micro_batch_shapes(104, 4, groups=1))):
        tokens, position, segment = m.take(array, -1), m.positions(), m.segments()
        assert ((tokens == -1) == (segment == 0)).all() and (tokens != 0).all()
        for row in range(m.rows):
            count = segment[row].max()
            assert (np.diff(segment[row][segment[row] > 0]) >= 0).all()
            for s in range(1, count + 1):
                at = segment[row] == s
                i = (tokens[row, at][0] - 1) // 104
                assert tokens[row, at].tolist() == array[i, : lengths[i]].tolist()
                assert position[row, at].tolist() == list(range(lengths[i]))
                seen.append(i)
    assert sorted(seen) == part.tolist()


def test_too_long_a_rollout_names_the_field():
    with pytest.raises(UserError, match=r"config\.task\.prompt_room"):
        pack_micro_batches(np.array([5, 33]), [(2, 32)])
