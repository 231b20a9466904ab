"""Sequences of many lengths into rows of few widths, several in a row: endless examples for SFT, whole rollouts for RL.

tokens, positions, segments, mask = pack_rows(examples, rows=16, length=192, pad=0)
for packed in pack_micro_batches(lengths, micro_batch_shapes(104, 32, groups=1)):
    tokens, logp = packed.take(tokens_bt, pad), packed.take(logp_bt)
"""

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from e3jax.errors import UserError
from e3jax.tasks.chat_tokens import Example


def pack_rows(examples: Iterator | list, *, rows: int, length: int, pad: int):
    """Fill [rows, length] with (prompt, response, gap) examples, first fit in order: of an endless iterator as many as
    fit; of a list all, or UserError.

    Returns tokens, positions, segments (0 = padding) and mask (1 on response tokens, EOS included), all [B, T].
    Positions run from 0 in every example; `gap` is added to those of the response. An example longer than a row
    is an error: nothing is cut silently.
    """
    tokens = np.full((rows, length), pad, np.int32)
    positions = np.zeros((rows, length), np.int32)
    segments = np.zeros((rows, length), np.int32)
    mask = np.zeros((rows, length), np.float32)

    rest = iter(examples)

    def fetch():
        example = next(rest, None)
        if example and len(example[0]) + len(example[1]) > length:
            raise ValueError(
                f"an example of {len(example[0]) + len(example[1])} tokens does not fit row_length={length}"
            )
        return example

    example = fetch()
    for row in range(rows):
        at, segment = 0, 1
        while example and at + len(example[0]) + len(example[1]) <= length:
            prompt, response, gap = example
            n, end = len(prompt), at + len(prompt) + len(response)
            tokens[row, at:end] = prompt + response
            positions[row, at:end] = np.arange(end - at)
            positions[row, at + n : end] += gap
            segments[row, at:end] = segment
            mask[row, at + n : end] = 1
            at, segment = end, segment + 1
            example = fetch()
    if example and isinstance(examples, list):
        raise UserError(f"a step's {len(examples)} examples do not fit rows={rows} of {length} tokens: raise rows")
    return tokens, positions, segments, mask


HALVINGS = 3  # of the full micro-batch; a fourth saves 1 to 2 % of padding and costs two more compiled programs
LEAST = 32  # tokens; narrower rows only cost compiled programs


def row_widths(longest: int) -> list[int]:
    """The widths [tokens] of rows: room for the longest sequence, then halves of it.

    Multiples of 8, above 1,024 tokens of 128 (the lane count of TPUs).

    >>> row_widths(1024 + 16_384), row_widths(104)
    ([17408, 8704, 4352, 2176], [104, 56, 32])
    """
    unit = 128 if longest > 1024 else 8
    halves = [-(-longest // (unit << i)) * unit for i in range(HALVINGS + 1)]
    return halves[:1] + [w for w in dict.fromkeys(halves[1:]) if LEAST <= w < halves[0]]


def micro_batch_shapes(longest: int, rows: int, *, groups: int) -> list[tuple[int, int]]:
    """The shapes [rows, width] that a stage compiles: room for the longest sequence in every row, then halves of it.

    Half the rows, because they hold any sequence, down to one for each of the devices' `groups`; then half the width.

    >>> micro_batch_shapes(652, 32, groups=1), micro_batch_shapes(652, 32, groups=16)
    ([(32, 656), (16, 656), (8, 656), (4, 656)], [(32, 656), (16, 656), (16, 328), (16, 168)])
    """
    widths = row_widths(longest)
    shapes = [(rows, widths[0])]
    for _ in widths[1:]:
        rows, width = shapes[-1]
        half = -(-rows // (2 * groups)) * groups
        shapes.append((half, width) if half < rows else (rows, widths[widths.index(width) + 1]))
    return shapes


def enough_rows(rows: int, sequences: int, *, groups: int) -> int:
    """Return how many rows a micro-batch has: `rows`, or fewer where a step has fewer sequences; a multiple of groups.

    >>> enough_rows(32, 64, groups=8), enough_rows(32, 4, groups=1), enough_rows(32, 4, groups=8)
    (32, 4, 8)
    """
    return -(-min(rows, sequences) // groups) * groups


class Packed(NamedTuple):
    """Where the sequences of one micro-batch lie in its [rows, width]."""

    rows: int
    width: int
    places: list[tuple[int, int, int, int]]  # sequence, row, first column, tokens

    def of(self, index: np.ndarray) -> "Packed":
        """The same places for sequences of a larger array: sequence i is its row index[i]."""
        return self._replace(places=[(int(index[i]), *place) for i, *place in self.places])

    def take(self, array_bt: np.ndarray, fill=0) -> np.ndarray:
        """The micro-batch's rows of `array_bt` [B, T], one row per sequence; `fill` where there is no token."""
        out = np.full((self.rows, self.width), fill, array_bt.dtype)
        for sequence, row, start, length in self.places:
            out[row, start : start + length] = array_bt[sequence, :length]
        return out

    def back(self, packed: np.ndarray, out_bt: np.ndarray) -> None:
        """Write the micro-batch's [rows, width] into its sequences' rows of `out_bt` [B, T]: the inverse of `take`."""
        for sequence, row, start, length in self.places:
            out_bt[sequence, :length] = packed[row, start : start + length]

    def positions(self) -> np.ndarray:
        """[rows, width] int32: from 0 in every sequence."""
        out = np.zeros((self.rows, self.width), np.int32)
        for _, row, start, length in self.places:
            out[row, start : start + length] = np.arange(length)
        return out

    def segments(self) -> np.ndarray:
        """[rows, width] int32: 1, 2, … in a row; 0 on padding."""
        out = np.zeros((self.rows, self.width), np.int32)
        for _, row, start, length in self.places:  # from left to right in every row
            out[row, start : start + length] = out[row, start - 1] + 1 if start else 1
        return out


def pack_micro_batches(lengths: np.ndarray, shapes: Sequence[tuple[int, int]]) -> list[Packed]:
    """All sequences, each once and whole, in the fewest tokens of [rows, width] micro-batches that best fit finds.

    As many of the full shape, the first, as needed, and of every smaller one at most one: candidates are tried from the
    smallest on. Of the lengths of tests/test_train_packing.py 3 to 10 % of the tokens are padding.
    """
    (rows, width), smaller = shapes[0], shapes[1:]
    if lengths.max() > width:
        raise UserError(f"a row of {lengths.max()} tokens exceeds prompt_room + budget: raise config.task.prompt_room")
    total, most = int(lengths.sum()), rows * width
    subsets = [s for n in range(len(smaller) + 1) for s in itertools.combinations(smaller, n) if tokens(s) < most]
    for full in itertools.count(total // most):
        for subset in sorted(subsets, key=tokens):
            chosen = [shapes[0]] * full + list(subset)
            if tokens(chosen) >= total and (packed := best_fit(lengths, chosen)):
                return packed


def pack_step(lengths: np.ndarray, *, rows: int, width: int, groups: int) -> list[Packed]:
    """Pack a step's sequences into micro-batches of at most `rows` rows of `width` tokens, a multiple of `groups`."""
    rows = enough_rows(rows, len(lengths), groups=groups)
    return pack_micro_batches(lengths, micro_batch_shapes(width, rows, groups=groups))


def pack_examples(
    examples: Sequence[Example], weigh: Callable, *, rows: int, width: int, pad: int, groups: int
) -> list[list[np.ndarray]]:
    """Return a step's examples in micro-batches: tokens, positions, segments and weights, each [rows, width].

    `weigh(mask_bt)` makes the weights, one array [B, T] or several, of the trained tokens of ALL examples, a row each.
    """
    lengths = np.array([len(x.tokens) for x in examples])
    token_bt = np.full((len(examples), lengths.max()), pad, np.int32)
    mask_bt = np.zeros(token_bt.shape, np.float32)
    for row, (tokens, trained) in enumerate(examples):
        token_bt[row, : len(tokens)], mask_bt[row, : len(tokens)] = tokens, trained
    weights = [w.astype(np.float32) for w in weigh(mask_bt)]
    packed = pack_step(lengths, rows=rows, width=width, groups=groups)
    return [[m.take(token_bt, pad), m.positions(), m.segments(), *map(m.take, weights)] for m in packed]


def tokens(shapes: Sequence[tuple[int, int]]) -> int:
    """Tokens of micro-batches of these shapes, padding included."""
    return sum(rows * width for rows, width in shapes)


def best_fit(lengths: np.ndarray, shapes: Sequence[tuple[int, int]]) -> list[Packed] | None:
    """Best-fit decreasing: longest first, each into the fullest row that has room; None where one finds none.

    One micro-batch per entry of `shapes`. Ties go to the first row: the same everywhere.
    """
    packed = [Packed(rows, width, []) for rows, width in shapes]
    free = sorted((width, i, row) for i, (rows, width) in enumerate(shapes) for row in range(rows))  # room, where
    for sequence in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[sequence])
        at = bisect.bisect_left(free, (length,))
        if at == len(free):
            return None
        room, i, row = free.pop(at)
        packed[i].places.append((sequence, row, packed[i].width - room, length))
        bisect.insort(free, (room - length, i, row))
    return packed


class MiniBatch(NamedTuple):
    """The responses of one optimiser update."""

    index: np.ndarray  # its rows of the rollouts
    packed: list[Packed]  # its micro-batches: which response lies where


def padding(micro: Sequence[Packed]) -> float:
    """Share of the computed tokens that are padding."""
    used = sum(length for packed in micro for *_, length in packed.places)
    return 1 - used / tokens([(packed.rows, packed.width) for packed in micro])
