"""Samples of a prompt share its full pages: none is lost, none is written, and nothing that is drawn changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3jax.models.cache import empty_cache
from e3jax.models.pages import NONE, Copies, copy_prompts, empty_piece
from e3jax.models.presets import preset
from e3jax.sampler import decode
from e3jax.sampler import slots as slots_module
from e3jax.sampler.page_table import PageTable
from e3jax.sampler.plan import Sampling
from e3jax.sampler.shared_pages import SharedPages, shared_pages_of, stacked
from e3jax.sampler.slots import Events, Requests, sample
from e3jax.sharding import make_mesh, param_shardings
from e3jax.train.logprobs import score

EOS, PAD, PAGE = 1, 0, 8


# ---- the host's table


def check(shared: SharedPages, table: PageTable, prompt_j, content: dict) -> None:
    """Check who owns what: exactly the busy slots of a prompt own its pages, and these hold the prompt's keys."""
    each, columns = shared.slots, shared.owner_dyw.shape[2]
    first = table.owner_dx.shape[1]
    entries = shared.entries(table.table_jn, first)
    owned = set()
    for j in np.flatnonzero(~table.free()):
        d, slot = divmod(int(j), each)
        for n in range(table.shared_j[j]):
            y, w = divmod(entries[j, n] - first, columns)
            assert shared.owner_dyw[d, y, w] == slot and shared.order_dy[d, y] == n
            assert content[d, y] == (prompt_j[j], n) == (shared.prompt_dy[d, y], n)
            owned.add((d, int(y), int(w)))
        assert (table.table_jn[j, : table.shared_j[j]] == NONE).all()
    assert owned == {tuple(map(int, x)) for x in zip(*np.nonzero(shared.owner_dyw >= 0))}
    kept = [(d, p, n) for d, y in zip(*np.nonzero(shared.prompt_dy >= 0)) for p, n in [content[d, y]] if p >= 0]
    assert len(kept) == len(set(kept))  # a prompt's page lies on a device once


@pytest.mark.parametrize("seed", range(12))
def test_owners_through_random_schedules(seed):
    """Prompts of any length, groups of any size, slots that free up in any order, on one to four devices.

    Guards against a page that is freed too early, handed out twice, copied over while it is read, or never freed.
    """
    rng = np.random.default_rng(seed)
    shards, slots = int(rng.choice([1, 2, 4])), 8
    tokens_p = rng.integers(1, 60, 30)
    prompt_b = np.repeat(np.arange(30), rng.integers(1, 9, 30))
    longest, content, pages = int(shared_pages_of(tokens_p.max(), PAGE)), {}, 0
    shared = SharedPages.empty(shards, slots, page=PAGE, longest=longest)
    table = PageTable.empty(shards, slots, page=PAGE, columns=16, longest=16)
    prompt_j, following = np.full(slots, -1), 0
    while following < len(prompt_b) or not table.free().all():
        new = np.flatnonzero(table.free())[: len(prompt_b) - following]
        if len(new):
            prompt_j[new], table.request_j[new] = prompt_b[following : following + len(new)], following
            following += len(new)
            tokens = tokens_p[prompt_j[new]]
            table.shared_j[new] = shared_pages_of(tokens, PAGE)
            held, had = shared.held(), set(map(tuple, np.argwhere(shared.held())))
            grown, copies, already = shared.begin(new, prompt_j[new], tokens)
            pages += sum(grown)
            assert shared.prompt_dy.size == pages <= -(-longest * slots // shards // 8) * 8 * shards
            copied = 0
            for d, rows in enumerate(copies.reshape(shards, -1, 3)):
                for p, n, y in rows[rows[:, 2] != NONE]:
                    assert (d, y) not in had, "a page is written while a slot reads it"
                    content[d, int(y)] = (p, n)
                    copied += 1
            assert already == table.shared_j[new].sum() - copied and held.shape <= shared.held().shape
            table.reserve(np.where(table.free(), 0, tokens_p[prompt_j]))
        check(shared, table, prompt_j, content)
        ended = np.flatnonzero(~table.free() & (rng.random(slots) < rng.choice([0.1, 0.6])))
        table.release(ended), shared.release(ended)
        check(shared, table, prompt_j, content)
        while following == len(prompt_b) and (smaller := table.fewer(1)):
            slot_j, _, table = smaller
            page_y, shared = shared.fewer(slot_j)
            page_dy = page_y.reshape(shards, -1)
            content = {(d, y): content.get((d, int(old)), (-1, 0)) for (d, y), old in np.ndenumerate(page_dy)}
            prompt_j, slots, pages = prompt_j[slot_j], len(slot_j), page_dy.size
            check(shared, table, prompt_j, content)
    assert not shared.held().any() and (table.owner_dx < 0).all() and (table.table_jn == NONE).all()


def test_a_group_by_hand():
    """Prompt 5 has 130 tokens, so two of its pages of 64 are full; two samples now and one later copy them once."""
    shared = SharedPages.empty(1, 4, page=64, longest=2)
    grown, copies, already = shared.begin(np.array([0, 1]), np.array([5, 5]), np.array([130, 130]))
    assert grown == [8] and copies[:2].tolist() == [[5, 0, 0], [5, 1, 1]] and already == 2
    assert (copies[2:, 2] == NONE).all() and shared.owner_dyw[0, :2].tolist() == [[0, 1], [0, 1]]
    shared.release(np.array([0, 1]))
    assert not shared.held().any()
    grown, copies, already = shared.begin(np.array([2]), np.array([5]), np.array([130]))
    assert grown == [] and copies.shape == (0, 3) and already == 2  # nobody needed the room in between
    table_jn = np.full((4, 8), NONE, np.int32)
    assert shared.entries(table_jn, 100)[2].tolist() == [100, 102, *[NONE] * 6]  # W is 2: every second one is free


def test_copies_come_in_few_sizes():
    """Every size is a program to compile; `most` is exact, because a compiler is asked whether it fits."""
    sizes = [len(stacked([[(0, 0, 0)] * n, []], 200)) // 2 for n in (0, 1, 8, 9, 32, 33, 128, 129, 200)]
    assert sizes == [0, 8, 8, 32, 32, 128, 128, 200, 200]


# ---- copies


def test_pages_are_copied_in_one_gather_and_one_scatter():
    """They were copied page by page: 46,000 rounds on a GPU for 512 samples, each of which asked the host."""
    config = preset("tiny")
    pool = (empty_piece(config, 16, 8, jnp.float32, layers=config.layers),)
    prompts = empty_cache(config, 4, 32, jnp.float32)
    copies = Copies(jnp.zeros((8, 3), jnp.int32), jnp.zeros((12, 3), jnp.int32))
    text = str(jax.make_jaxpr(copy_prompts)((pool,), (pool,), prompts, copies))
    assert text.count(" scatter[") == text.count(" gather[") == 4  # keys and values, of both kinds of pages
    assert text.count("scan[") + text.count("while[") == 1  # over layers


# ---- the whole sampler


@pytest.fixture(scope="module")
def sharp(tiny):
    """Return a tiny model whose logits are spread enough that EOS and repeats occur."""
    model, params = tiny
    return model, params | {"embed_vd": params["embed_vd"] * 8}


def some_prompts(count: int, longest: int = 40) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(2, 210, rng.integers(1, longest)).tolist() for _ in range(count)]


def draw(model, params, prompts, *, ids=None, samples=5, budget=24, stop=(EOS,), stats=None, **schedule):
    sampling = Sampling(temperature=1.0, **dict(slots=12, block=6, prefill_rows=4) | schedule)
    requests = Requests(prompts, range(len(prompts)) if ids is None else ids, samples, budget)
    return sample(
        model, params, requests, sampling, key=jax.random.key(7), stop=stop, pad=PAD, events=Events(stats=stats)
    )


def each_alone(model, params, prompts, *, samples=5, **how):
    """Draw the same responses from a prompt for each, so that none shares a page."""
    repeated = [p for p in prompts for _ in range(samples)]
    ids = [i for i in range(len(prompts)) for _ in range(samples)]
    return draw(model, params, repeated, ids=ids, samples=[[g] for _ in prompts for g in range(samples)], **how)


def poisoned(x: jax.Array) -> jax.Array:
    return jnp.full_like(x, 100)


@pytest.fixture
def watched(monkeypatch):
    """Watch every pool of shared pages: what a slot owns is the same after each program; count what was allocated.

    New pages hold 100: finite poison, which softmax gives weight 0, and which shows where it has any.
    """
    seen = dict(owned=0, private=0, shared=0)
    monkeypatch.setattr("e3jax.sampler.plan.PAGE", PAGE)
    for module in (
        "plan",
        "page_table",
        "shared_pages",
    ):  # pools that need not grow: every size is a program to compile
        monkeypatch.setattr(f"e3jax.sampler.{module}.LEAST", 32)
    monkeypatch.setattr(slots_module, "new_piece", lambda *a: jax.tree.map(poisoned, decode.new_piece(*a)))

    class Queue(slots_module.Queue):
        def owned_pages(self):
            at = np.flatnonzero(self.shared.held().reshape(-1))
            parts = [x for pool in self.shared_pools for x in zip(*pool) if x[0] is not None]
            whole = jax.sharding.get_mesh().empty
            return [np.concatenate([np.asarray(p) for p in x], axis=1)[:, at] for x in parts] if whole else []

        def admit_next(self):
            before, held = self.owned_pages(), self.shared.held()
            super().admit_next()
            more = [(0, 0), (0, self.shared.held().shape[1] - held.shape[1])]
            left = np.pad(held, more)[self.shared.held()]  # of the pages owned now, those owned before
            for old, new in zip(before, self.owned_pages()):
                np.testing.assert_array_equal(old, new[:, left])
            for name, of in (("private", self.table), ("shared", self.shared)):
                seen[name] = max(seen[name], (of.owner_dx if name == "private" else of.prompt_dy).size)

        def decode(self):
            before = self.owned_pages()
            seen["owned"] = max(seen["owned"], int((self.shared.owner_dyw >= 0).sum(2).max(initial=0)))
            result = super().decode()
            for old, new in zip(before, self.owned_pages()):
                np.testing.assert_array_equal(old, new)
            return result

        def finish(self):
            assert not self.shared.held().any() and (self.table.owner_dx < 0).all(), "pages are still owned"
            return super().finish()

    monkeypatch.setattr(slots_module, "Queue", Queue)
    return seen


@pytest.mark.parametrize("backend, cache", [("cpu", "compute"), ("tpu", "int8")])
def test_sharing_changes_no_token(sharp, watched, monkeypatch, backend, cache):
    """Refilled, drained, with budgets and a stop sequence; with a pool for each layer, as on a CPU, and one for all."""
    model, params = sharp
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    prompts, stats, alone_stats = some_prompts(6), {}, {}
    how = dict(budget=np.where(np.arange(30) % 9, 7, 40), stop=(EOS, (12, 17)), cache=cache, slots=16)
    r = draw(model, params, prompts, stats=stats, **how)
    assert watched["owned"] == 5 and stats["shared_pages"] > 20
    alone = each_alone(model, params, prompts, stats=alone_stats, **how)
    np.testing.assert_array_equal(r.tokens, alone.tokens)
    np.testing.assert_allclose(r.logp, alone.logp, atol=1e-5)
    assert alone_stats["shared_pages"] == 0 and stats["prefilled"] == sum(map(len, prompts))
    if cache == "compute":
        again = np.asarray(score(model, params, r.tokens, temperature=1.0, chunk=4096))
        np.testing.assert_allclose(again[r.sampled], r.logp[r.sampled], atol=1e-4)


def test_sharing_does_not_depend_on_schedule_and_mesh(sharp, watched):
    """Samples that come one by one find their group's pages; four devices have a copy of a prompt's pages each."""
    model, params = sharp
    prompts = some_prompts(4)
    a = draw(model, params, prompts, samples=4)
    b = draw(model, params, prompts, samples=4, slots=2, block=12, prefill_rows=1)
    mesh = make_mesh(data=2, fsdp=2, tensor=1, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        c = draw(model, jax.device_put(params, param_shardings(params, mesh)), prompts, samples=4)
    for other in (b, c):
        np.testing.assert_array_equal(a.tokens, other.tokens)
        np.testing.assert_allclose(a.logp, other.logp, atol=1e-4)


def test_a_group_takes_the_room_of_one_prompt(sharp, watched):
    """Two prompts of 41 tokens, 8 samples each: 5 full pages of a prompt serve 8 samples."""
    model, params = sharp
    prompts, stats = [[5] * 41, [7] * 41], {}
    draw(model, params, prompts, samples=8, budget=3, slots=16, stats=stats, stop=(-1,))
    assert watched["shared"] == watched["private"] == 32  # of which 10 and 16 are in use; all alone they were 16 · 6
    assert stats["shared_pages"] == 2 * 5 * 7
