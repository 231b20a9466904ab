"""The host's table of slots: which request each one works for, and which pages of the cache are its alone.

The full pages of a slot's prompt, its first ones, are not here but in sampler/shared_pages.py. Slots and pages are
dealt to `shards` devices, slot j to device j // (slots / shards); a device's pages have numbers of their own, from 0
through all pieces of its pool. Numpy only.

    table = PageTable.empty(shards=1, slots=4, page=64, columns=8, longest=5)
    grown = table.reserve(np.array([100, 0, 0, 0]))     # [8]: pages that the pool has to grow by
    table.release(np.array([0]))                        # slot 0 and its pages are free again
"""

from dataclasses import dataclass

import numpy as np

from e3jax.models.pages import NONE

LEAST = 8  # pages per device in the first piece, if a table names no other number; each later one doubles the pool


def pages_of(tokens, page: int):
    """Return how many pages hold so many positions."""
    return -(-tokens // page)


def grow(have: int, short: int, most: int, least: int = LEAST) -> list[int]:
    """Return the new pieces of a device's pool of `have` pages that is `short` of some: it doubles, up to `most` pages.

    >>> grow(0, 3, 100), grow(8, 20, 100), grow(64, 1, 100), grow(0, 3, 100, least=256)
    ([8], [8, 16], [40], [104])
    """
    most, grown = pages_of(most, LEAST) * LEAST, []
    while short > sum(grown):
        now = have + sum(grown)
        grown.append(min(now or max(least, 1 << (short - 1).bit_length()), most - now))
    return grown


def owned_by(slots: np.ndarray, owner_d: np.ndarray, each: int) -> np.ndarray:
    """Return where owner_d [shards, …], slots counted on their device, or -1, names one of `slots`, `each` a device."""
    ended_dj = np.zeros((len(owner_d), each), bool)
    ended_dj.reshape(-1)[slots] = True
    device = np.arange(len(owner_d)).reshape(-1, *(1,) * (owner_d.ndim - 1))
    return (owner_d >= 0) & ended_dj[device, np.maximum(owner_d, 0)]


@dataclass
class PageTable:
    """Slots, J of them over all devices, and the pages of each device; changed in place as responses begin and end."""

    request_j: np.ndarray  # request in each slot, or -1
    length_j: np.ndarray  # tokens of each slot's sample so far, as the device has them
    shared_j: np.ndarray  # how many of the slot's first pages are shared: NONE in table_jn
    table_jn: np.ndarray  # number of the slot's n-th page, or NONE
    owner_dx: np.ndarray  # [shards, X]: slot, counted on its device, or -1
    order_dx: np.ndarray  # [shards, X]: which of its owner's pages it is
    page: int  # positions per page
    longest: int  # most pages that are one sample's alone
    least: int  # pages per device in the first piece

    @classmethod
    def empty(
        cls, shards: int, slots: int, *, page: int, columns: int, longest: int, least: int = LEAST
    ) -> "PageTable":
        return cls(
            np.full(slots, -1),
            np.zeros(slots, np.int32),
            np.zeros(slots, np.int32),
            np.full((slots, columns), NONE, np.int32),
            np.full((shards, 0), -1, np.int32),
            np.zeros((shards, 0), np.int32),
            page,
            longest,
            least,
        )

    def free(self) -> np.ndarray:
        """Return [J] bool: slots without a request."""
        return self.request_j < 0

    def per_device(self) -> int:
        """Return how many slots a device has."""
        return len(self.request_j) // len(self.owner_dx)

    def owners(self) -> tuple[np.ndarray, np.ndarray]:
        """Return owner_x and order_x of models/pages.py."""
        return self.owner_dx.reshape(-1), self.order_dx.reshape(-1)

    def reserve(self, tokens_j: np.ndarray) -> list[int]:
        """Allocate pages so that slot j can hold tokens_j[j] positions; grow the pool where it has too few.

        Returns the pages, over all devices, of each new piece of the pool.
        """
        shards = len(self.owner_dx)
        wanted = pages_of(tokens_j, self.page) - self.shared_j
        held = (self.table_jn != NONE).sum(1)
        missing_dj = np.maximum(wanted - held, 0).reshape(shards, -1)
        short = int((missing_dj.sum(1) - (self.owner_dx < 0).sum(1)).max())
        grown = grow(self.owner_dx.shape[1], short, self.per_device() * self.longest, self.least)
        self.owner_dx = np.pad(self.owner_dx, ((0, 0), (0, sum(grown))), constant_values=-1)
        self.order_dx = np.pad(self.order_dx, ((0, 0), (0, sum(grown))))
        for device in np.flatnonzero(missing_dj.any(1)):
            missing, count = missing_dj[device], missing_dj[device].sum()
            slot = np.repeat(np.arange(len(missing)), missing)
            j, nth = (
                device * self.per_device() + slot,
                np.arange(count) - np.repeat(missing.cumsum() - missing, missing),
            )
            pages = np.flatnonzero(self.owner_dx[device] < 0)[:count]  # the lowest: attention reads a short part
            order = self.shared_j[j] + held[j] + nth
            self.table_jn[j, order] = pages
            self.owner_dx[device, pages] = slot
            self.order_dx[device, pages] = order
        return [pages * shards for pages in grown]

    def release(self, slots: np.ndarray) -> None:
        """Mark these slots and their pages as free; the pool keeps its size until `fewer` closes it up."""
        self.owner_dx[owned_by(slots, self.owner_dx, self.per_device())] = -1
        self.table_jn[slots] = NONE
        self.request_j[slots], self.shared_j[slots] = -1, 0

    def copies(self, slots: np.ndarray, rows: np.ndarray, most: int) -> np.ndarray:
        """Return own_m3 of `Copies` where `slots` begin on prompts `rows`: the pages of theirs that are not shared.

        A slot has `most` rows; decoding writes on the last page that is copied.
        """
        n = self.shared_j[slots][:, None] + np.arange(most)
        there = n < pages_of(self.length_j[slots], self.page)[:, None]
        n = np.where(there, n, 0)
        copies_jm3 = np.full((len(self.request_j), most, 3), (0, 0, NONE), np.int32)
        to = np.where(there, self.table_jn[slots[:, None], n], NONE)
        copies_jm3[slots] = np.stack([np.broadcast_to(rows[:, None], n.shape), n, to], axis=2)
        return copies_jm3.reshape(-1, 3)

    def fewer(self, fewest: int) -> "tuple[np.ndarray, np.ndarray, PageTable] | None":
        """Move to the next smaller power of two of slots; return (slots kept, pages kept, their table).

        None where so few cannot hold all requests, or are below `fewest`. Powers of two make few programs, whatever the
        number of slots was at first. The pages of every device are closed up: the pool gets as small as they allow.
        """
        shards, each = len(self.owner_dx), self.per_device()
        busy_d = (~self.free()).reshape(shards, each).sum(1)
        kept = 1 << max((each - 1).bit_length() - 1, 0)
        if kept == each or kept * shards < fewest or busy_d.max() > kept:
            return None
        slot_dj = np.argsort(self.free().reshape(shards, each), axis=1, kind="stable")[:, :kept]
        slot_j = (slot_dj + np.arange(shards)[:, None] * each).reshape(-1)
        rows = [self.table_jn[j][self.table_jn[j] != NONE] for j in slot_j]
        held_d = [sum(len(r) for r in rows[d * kept : (d + 1) * kept]) for d in range(shards)]
        size = max(min(self.least, pages_of(kept * self.longest, LEAST) * LEAST), 1 << (max(held_d) - 1).bit_length())
        page_dx, columns = np.zeros((shards, size), np.int32), self.table_jn.shape[1]
        sizes = dict(page=self.page, columns=columns, longest=self.longest, least=self.least)
        table = PageTable.empty(shards, len(slot_j), **sizes)
        kept_fields = (self.request_j, self.length_j, self.shared_j)
        table.request_j, table.length_j, table.shared_j = (x[slot_j] for x in kept_fields)
        table.owner_dx, table.order_dx = np.full((shards, size), -1, np.int32), np.zeros((shards, size), np.int32)
        at_d = np.zeros(shards, int)
        for j, row in enumerate(rows):
            device, slot = divmod(j, kept)
            to, order = at_d[device] + np.arange(len(row)), table.shared_j[j] + np.arange(len(row))
            page_dx[device, to] = row
            table.owner_dx[device, to], table.order_dx[device, to] = slot, order
            table.table_jn[j, order] = to
            at_d[device] += len(row)
        return slot_j, page_dx.reshape(-1), table
