"""The host's table of prompts' full pages: they lie on a device once, and all samples of the prompt there own them.

They have a pool and numbers of their own, from 0 on every device. A page keeps its prompt's keys after its last owner
ended, until another prompt needs the room. Numpy only.

    shared = SharedPages.empty(shards=1, slots=4, page=64, longest=2)
    grown, copies, saved = shared.begin(np.array([0, 1]), np.array([5, 5]), np.array([130, 130]))
    grown, copies.tolist(), saved    # [8], [[5, 0, 0], [5, 1, 1]], 2: prompt 5's pages 0 and 1, read twice, copied once
    shared.release(np.array([0, 1]))

Axes: d is a device, y a page, w one of its owners.
"""

from dataclasses import dataclass

import numpy as np

from e3jax.models.pages import NONE
from e3jax.sampler.page_table import LEAST, grow, owned_by


def shared_pages_of(tokens, page: int):
    """Return how many pages of such a prompt are shared: those that decoding, from its last token on, never writes.

    A single page is not: reading a pool of its own for it takes longer than reading its copies (on a CPU, 64 slots).

    >>> [int(shared_pages_of(tokens, 64)) for tokens in (1, 65, 128, 129, 193)]
    [0, 0, 0, 2, 3]
    """
    full = (tokens - 1) // page
    return full * (full > 1)


@dataclass
class SharedPages:
    """Which prompt's which page lies where, and who reads it; changed in place as responses begin and end."""

    prompt_dy: np.ndarray  # number of the prompt whose keys and values the page holds, or -1
    order_dy: np.ndarray  # which of its prompt's pages it is
    owner_dyw: np.ndarray  # slots, counted on their device, that read the page, or -1; W is a power of two
    slots: int  # per device
    page: int  # positions per page
    longest: int  # most pages that a prompt shares
    least: int  # pages per device in the first piece of the pool

    @classmethod
    def empty(cls, shards: int, slots: int, *, page: int, longest: int, least: int = LEAST) -> "SharedPages":
        nothing = np.zeros((shards, 0), np.int32)
        return cls(nothing, nothing, np.zeros((shards, 0, 1), np.int32), slots // shards, page, longest, least)

    def owners(self) -> np.ndarray:
        """Return owner_yw of models/pages.py."""
        return self.owner_dyw.reshape(-1, self.owner_dyw.shape[2])

    def held(self) -> np.ndarray:
        """Return [shards, Y] bool: pages that some slot owns."""
        return (self.owner_dyw >= 0).any(2)

    def begin(self, slots: np.ndarray, prompts: np.ndarray, tokens: np.ndarray) -> tuple[list[int], np.ndarray, int]:
        """Give slots their prompts' pages; return new pieces of the pool, what to copy, and the pages already there.

        `slots`, `prompts` and the prompts' `tokens` have an entry for each sample that begins. Pieces are in pages over
        all devices; copies are [shards · M, 3], rows of (prompt, its n-th page, page of the pool) as in `Copies`.
        """
        shards, device = len(self.prompt_dy), slots // self.slots
        count = shared_pages_of(tokens, self.page)
        wanted = {(d, p): n for d, p, n in zip(device, prompts, count) if n}
        new = {(d, p): n for (d, p), n in wanted.items() if not (self.prompt_dy[d] == p).any()}
        usable_dy, missing_d = ~self.held(), np.zeros(shards, int)
        for d, p in wanted:
            usable_dy[d, self.prompt_dy[d] == p] = False
        for (d, _), n in new.items():
            missing_d[d] += n
        short = int((missing_d - usable_dy.sum(1)).max())
        grown = grow(self.prompt_dy.shape[1], short, self.slots * self.longest, self.least)
        self.widen(sum(grown), 0)
        usable_dy = np.pad(usable_dy, ((0, 0), (0, sum(grown))), constant_values=True)
        copies_d = [[] for _ in range(shards)]
        for (d, p), n in new.items():
            pages = np.flatnonzero(usable_dy[d])[:n]
            usable_dy[d, pages] = False
            self.prompt_dy[d, np.isin(self.prompt_dy[d], self.prompt_dy[d, pages])] = -1  # these prompts are not whole
            self.prompt_dy[d, pages], self.order_dy[d, pages] = p, np.arange(n)
            copies_d[d] += [(p, i, y) for i, y in enumerate(pages)]
        for d, p in wanted:
            mine = slots[(device == d) & (prompts == p)] % self.slots
            self.add_owners(mine, d, np.flatnonzero(self.prompt_dy[d] == p))
        copies = stacked(copies_d, self.slots * self.longest)
        return [n * shards for n in grown], copies, int(count.sum()) - sum(map(len, copies_d))

    def add_owners(self, slots: np.ndarray, d: int, pages: np.ndarray) -> None:
        """Write slots among the owners of a prompt's pages, all of which have the same owners."""
        while (self.owner_dyw[d, pages[0]] < 0).sum() < len(slots):
            self.widen(0, self.owner_dyw.shape[2])
        columns = np.flatnonzero(self.owner_dyw[d, pages[0]] < 0)[: len(slots)]
        self.owner_dyw[d, pages[:, None], columns[None]] = slots

    def widen(self, pages: int, owners: int) -> None:
        """Make room for so many more pages on every device, and for so many more owners of each."""
        more = ((0, 0), (0, pages))
        self.prompt_dy = np.pad(self.prompt_dy, more, constant_values=-1)
        self.order_dy = np.pad(self.order_dy, more)
        self.owner_dyw = np.pad(self.owner_dyw, (*more, (0, owners)), constant_values=-1)

    def entries(self, table_jn: np.ndarray, first: int) -> np.ndarray:
        """Return table_jn of models/pages.py: a copy with the shared pages, where a device has `first` others."""
        d, y, w = np.nonzero(self.owner_dyw >= 0)
        table_jn = table_jn.copy()
        slot = d * self.slots + self.owner_dyw[d, y, w]
        table_jn[slot, self.order_dy[d, y]] = first + y * self.owner_dyw.shape[2] + w
        return table_jn

    def release(self, slots: np.ndarray) -> None:
        """End these slots' ownership: a page without owners is free."""
        self.owner_dyw[owned_by(slots, self.owner_dyw, self.slots)] = -1

    def fewer(self, slot_j: np.ndarray) -> "tuple[np.ndarray, SharedPages]":
        """Keep the slots slot_j, in this order; return the pages that they own, closed up, and their table."""
        shards, kept, held_dy = len(self.prompt_dy), len(slot_j) // len(self.prompt_dy), self.held()
        size = power_of_two(held_dy.sum(1).max(), LEAST)
        columns = power_of_two((self.owner_dyw >= 0).sum(2).max(initial=0), 1)
        table = SharedPages.empty(shards, len(slot_j), page=self.page, longest=self.longest, least=self.least)
        table.widen(size, max(columns - 1, 0))
        page_dy = np.zeros((shards, size), np.int32)
        for d in range(shards):
            pages = np.flatnonzero(held_dy[d])
            to = slice(0, len(pages))
            page_dy[d, to] = pages
            table.prompt_dy[d, to], table.order_dy[d, to] = self.prompt_dy[d, pages], self.order_dy[d, pages]
            for new, old in enumerate(slot_j[d * kept : (d + 1) * kept] % self.slots):
                mine = np.flatnonzero((self.owner_dyw[d, pages] == old).any(1))
                if len(mine):
                    table.add_owners(np.array([new]), d, mine)
        return page_dy.reshape(-1), table


def power_of_two(n: int, least: int) -> int:
    """Return the smallest power of two that is neither below n nor below `least`; 0 if n is 0."""
    return max(least, 1 << (int(n) - 1).bit_length()) if n else 0


def stacked(copies_d: list[list[tuple[int, int, int]]], most: int) -> np.ndarray:
    """Return every device's copies as [shards · M, 3] int32, filled up with copies to nowhere.

    M is 0, 8, 32, 128, … or `most`: few shapes, because each is a program.
    """
    longest = max(map(len, copies_d))
    eights = (longest - 1) // LEAST
    m = min(LEAST << (eights.bit_length() + 1) // 2 * 2, most) if longest else 0
    rows = np.full((len(copies_d), m, 3), (0, 0, NONE), np.int32)
    for d, copies in enumerate(copies_d):
        rows[d, : len(copies)] = np.array(copies, np.int32).reshape(-1, 3)
    return rows.reshape(-1, 3)
