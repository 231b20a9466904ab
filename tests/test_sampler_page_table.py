"""The host's table of pages: no page is shared or lost, and the pool grows only when it must."""

import numpy as np
import pytest

from e3jax.models.pages import NONE
from e3jax.sampler.page_table import PageTable


def check(table: PageTable):
    """Check that table and owners agree, on every device separately."""
    each = table.per_device()
    for j, row in enumerate(table.table_jn):
        device, slot = divmod(j, each)
        pages = row[row != NONE]
        assert (row[len(pages) :] == NONE).all()
        assert (table.owner_dx[device, pages] == slot).all()
        assert table.order_dx[device, pages].tolist() == list(range(len(pages)))
    assert (table.owner_dx >= 0).sum() == (table.table_jn != NONE).sum()


@pytest.mark.parametrize("shards", [1, 2])
def test_pages_through_a_random_life(shards):
    rng = np.random.default_rng(0)
    table = PageTable.empty(shards, 8, page=4, columns=8, longest=8)
    have = 0
    for _ in range(200):
        tokens = np.where(table.free(), 0, np.minimum(table.length_j + rng.integers(0, 6, 8), 32))
        have += sum(table.reserve(tokens))
        table.length_j = tokens.astype(np.int32)
        check(table)
        assert ((table.table_jn != NONE).sum(1) >= -(-tokens // 4)).all()
        assert table.owner_dx.size == have <= 8 * 8
        table.release(np.flatnonzero((rng.random(8) < 0.1) & ~table.free()))
        check(table)
        new = table.free() & (rng.random(8) < 0.5)
        table.request_j[new], table.length_j[new] = 1, 3
    assert have == 8 * 8


@pytest.mark.parametrize("shards", [1, 2])
def test_slots_get_the_lowest_pages_in_their_order(shards):
    """Slot by slot on its device, each page the lowest that is free: as a loop over slots hands them out."""
    rng = np.random.default_rng(1)
    table = PageTable.empty(shards, 8, page=4, columns=8, longest=8)
    table.reserve(np.full(8, 32))
    table.release(np.arange(8))
    for _ in range(50):
        table.shared_j[table.free()] = rng.integers(0, 3, table.free().sum())
        table.request_j[:] = 1
        want, owners = table.table_jn.copy(), table.owner_dx.copy()
        tokens = np.minimum((want != NONE).sum(1) * 4 + rng.integers(0, 9, 8) + table.shared_j * 4, 32)
        for j in range(8):
            for n in range(table.shared_j[j] + (want[j] != NONE).sum(), -(-tokens[j] // 4)):
                want[j, n] = np.argmax(owners[j // (8 // shards)] < 0)
                owners[j // (8 // shards), want[j, n]] = j % (8 // shards)
        table.reserve(tokens)
        np.testing.assert_array_equal(table.table_jn, want)
        np.testing.assert_array_equal(table.owner_dx, owners)
        table.release(np.flatnonzero(rng.random(8) < 0.4))


def test_the_pool_doubles_when_it_is_too_small():
    """It has 8 pages at first, then 8 more, then 16; never more than all slots need at their longest."""
    table = PageTable.empty(1, 4, page=4, columns=16, longest=10)
    assert table.reserve(np.array([12, 0, 0, 0])) == [8]
    assert table.reserve(np.array([12, 20, 0, 0])) == []
    assert table.reserve(np.array([12, 20, 1, 0])) == [8]
    assert table.reserve(np.array([40, 40, 40, 40])) == [16, 8]


def test_a_small_models_pool_on_a_gpu_has_one_size():
    """Every size is a program: the first piece holds all slots at their longest, and all that are left after them."""
    table = PageTable.empty(1, 16, page=4, columns=16, longest=10, least=200)
    table.request_j[:3] = 1
    assert table.reserve(np.where(table.free(), 0, 12)) == [160] and table.reserve(np.where(table.free(), 0, 40)) == []
    sizes = []
    while left := table.fewer(2):
        _, page_x, table = left
        check(table)
        sizes.append(len(page_x))
        assert table.reserve(np.where(table.free(), 0, 40)) == []
    assert sizes == [80, 40]


def test_fewer_slots_keep_their_requests_and_pages():
    """Slots 1 and 6, one of each device, are left: half of the slots hold them, with their pages first."""
    table = PageTable.empty(2, 8, page=4, columns=8, longest=8)
    table.request_j[:] = np.arange(8) + 10
    table.length_j[:] = [5, 9, 5, 5, 5, 5, 17, 5]
    table.reserve(table.length_j)
    assert table.fewer(4) is None
    table.release(np.array([0, 2, 3, 4, 5, 7]))
    before = {j: table.table_jn[j][table.table_jn[j] != NONE] for j in (1, 6)}
    assert table.fewer(8) is None
    slot_j, page_x, left = table.fewer(4)
    check(left)
    assert left.request_j[left.request_j >= 0].tolist() == [11, 16] and slot_j[[0, 2]].tolist() == [1, 6]
    for new, old in ((0, 1), (2, 6)):
        pages = left.table_jn[new][left.table_jn[new] != NONE]
        assert page_x.reshape(2, -1)[old // 4][pages].tolist() == before[old].tolist()
        assert left.length_j[new] == table.length_j[old]


def test_any_number_of_slots_comes_down_to_powers_of_two():
    """5 requests have 5 slots; 6 slots on two devices go on as four and as two, and an odd number works too."""
    for shards, slots, then in ((1, 5, [4, 2, 1]), (2, 6, [4, 2]), (1, 1, [])):
        table, seen = PageTable.empty(shards, slots, page=4, columns=8, longest=8), []
        table.request_j[0], table.length_j[0] = 7, 9
        table.reserve(np.where(table.free(), 0, table.length_j))
        while left := table.fewer(1):
            slot_j, _, table = left
            check(table)
            seen.append(len(slot_j))
            assert table.request_j.tolist() == [7] + [-1] * (len(slot_j) - 1) and table.length_j[0] == 9
        assert seen == then
