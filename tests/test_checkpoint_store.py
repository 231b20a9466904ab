"""What is saved comes back bit for bit; what cannot be read is named and left alone; parameters can be taken alone."""

import asyncio
import logging
import math
import shutil
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3jax import storage
from e3jax.checkpoint.store import MARKERS, WRITING, Store, bound_retries, load_params
from e3jax.errors import UserError
from e3jax.sigterm import LATE
from e3jax.train.state import Optimizer, apply_gradients, make_optimizer, new_state


@pytest.fixture(autouse=True)
def quiet():
    """Silence asyncio, which reports every array of a broken checkpoint when its task is collected."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


@pytest.fixture
def tx():
    return make_optimizer(Optimizer(0.0, 0.9, 0.9, 1.0, "float32"), lr=0.1, warmup=0, decay_steps=0)


@pytest.fixture
def said():
    return []


@pytest.fixture
def stage(tmp_path, said):
    """Return a function that opens the stage's store, each time as a new process would."""

    def opened(**options) -> Store:
        return Store(tmp_path / "stage", **{"keep": 2, "keep_every": 0, "say": said.append, **options})

    return opened


def blank(tx):
    return new_state(tx, {"w": jnp.zeros(4)})


@pytest.fixture
def states(tx, stage, tmp_path):
    """Save and return the states of steps 1, 2 and 3."""
    state, store, made = new_state(tx, {"w": jnp.arange(4.0)}), stage(keep=3), {}
    for step in (1, 2, 3):
        state, _ = apply_gradients(tx, state, {"w": jnp.ones(4) * step})
        store.save(step, state)
        made[step] = jax.tree.map(np.asarray, state)
    store.close(3, state)
    return made


def kept(tmp_path) -> list[int]:
    return sorted(int(p.name) for p in (tmp_path / "stage").iterdir() if p.name.isdigit())


def same(got, want) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_newest_complete_step_comes_back(stage, states, tx, tmp_path, said):
    """A write that was interrupted does not count as a checkpoint; it is removed, with a line that says so."""
    (tmp_path / "stage" / f"9{WRITING}").mkdir()
    step, got = stage().newest(blank(tx))
    assert step == 3
    same(got, states[3])
    assert any("stage/9 was interrupted: removed" in line for line in said), said
    assert not (tmp_path / "stage" / f"9{WRITING}").exists()


def test_without_a_checkpoint_nothing_changes(stage, tx):
    like = blank(tx)
    assert stage().newest(like) == (0, like)


def test_every_way_to_cut_a_file_is_named_and_an_older_checkpoint_taken(stage, states, tx, tmp_path, said):
    """With half a file, an empty one or none, either the state is whole, bit for bit, or the checkpoint is not used."""
    shutil.copytree(tmp_path / "stage", tmp_path / "good")
    files = [p.relative_to(tmp_path / "good/3") for p in (tmp_path / "good/3").rglob("*") if p.is_file()]
    assert len(files) > 8
    skipped = 0
    for file in files:
        for damage in ("half", "empty", "absent"):
            shutil.rmtree(tmp_path / "stage")
            shutil.copytree(tmp_path / "good", tmp_path / "stage")
            said.clear()
            path = tmp_path / "stage/3" / file
            size = path.stat().st_size
            path.write_bytes(path.read_bytes()[: size // 2 if damage == "half" else 0])
            if damage == "absent":
                path.unlink()
            store = stage()
            step, got = store.newest(blank(tx))
            same(got, states[step])
            if step == 2:
                skipped += 1
                named = [line for line in said if "stage/3 " in line]
                assert named and (tmp_path / "stage/unusable-3").exists(), (file, damage, said)
                store.save(3, got)  # the step is made again, in the same place
                store.close(3, got)
                assert kept(tmp_path)[-1] == 3
            else:
                assert step == 3 and not said, (file, damage, said)
    assert skipped >= 6


@pytest.mark.parametrize("marker", MARKERS)
def test_a_checkpoint_without_its_commit_marker_is_not_used(stage, states, tx, tmp_path, said, marker):
    (tmp_path / "stage/3" / marker).unlink()
    step, got = stage().newest(blank(tx))
    assert step == 2
    same(got, states[2])
    assert any("stage/3 is incomplete" in line for line in said), said


def test_when_none_can_be_read_a_person_decides(stage, states, tx, tmp_path):
    """To begin the stage anew silently would throw days away; nothing is renamed before a person decides."""
    for step in (1, 2, 3):
        (tmp_path / f"stage/{step}/default/manifest.ocdbt").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the checkpoints \[1, 2, 3\]"):
        stage().newest(blank(tx))
    assert kept(tmp_path) == [1, 2, 3]


def test_what_is_kept_is_remembered_by_a_resumed_run(stage, tx, tmp_path):
    """Of eight steps in three lives, the last two, every fourth and the best stay; metrics tell the ranks."""
    ranks = {1: 0.1, 2: 0.9, 3: math.nan, 4: 0.2, 5: 0.3, 6: 0.2, 7: 0.1, 8: 0.0}
    state = blank(tx)
    for life in ((1, 2, 3), (4, 5, 6), (7, 8)):
        store = stage(keep_every=4, ranks={s: r for s, r in ranks.items() if s < life[0]})
        for step in life:
            store.save(step, state, rank=ranks[step])
        store.close(life[-1], state)
    assert kept(tmp_path) == [2, 4, 7, 8]


def test_a_disk_that_is_full_for_a_while(stage, states, tx, tmp_path, said, monkeypatch, capsys):
    """The write is tried again until it succeeds or a minute is over; the last good checkpoint is never touched."""
    monkeypatch.setattr(storage, "WAITS_S", (0.01, 0.02))
    store, failures = stage(keep=1), 2
    save = store.manager.save

    def full(*args, **kwargs):
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise OSError(28, "No space left on device")
        return save(*args, **kwargs)

    monkeypatch.setattr(store.manager, "save", full)
    store.save(4, blank(tx))
    store.close(4, blank(tx))
    assert kept(tmp_path) == [4]
    assert capsys.readouterr().err.count("No space left on device; trying again") == 2
    store, failures = stage(keep=1), 1000
    monkeypatch.setattr(store.manager, "save", full)
    with pytest.raises(UserError, match=r"stage/5: .*No space left.* newest good checkpoint is 4: make room"):
        store.save(5, blank(tx))
    assert kept(tmp_path) == [4] and stage().newest(blank(tx))[0] == 4


def test_a_write_that_fails_in_the_background_is_told_and_made_again(stage, states, tx, tmp_path, said, monkeypatch):
    """orbax raises at the next call only, when the step's buffers are gone, and after the last step there is none."""
    monkeypatch.setattr(storage, "WAITS_S", (0.01,))
    store = stage()
    wait, failures = store.manager.wait_until_finished, 1

    def failed():
        nonlocal failures
        wait()
        if failures:
            failures -= 1
            shutil.rmtree(tmp_path / "stage/4")
            raise ValueError("DATA_LOSS: write failed")

    store.save(4, blank(tx))
    monkeypatch.setattr(store.manager, "wait_until_finished", failed)
    store.close(4, blank(tx))
    assert kept(tmp_path) == [3, 4]
    assert any("was not written: DATA_LOSS" in line for line in said), said


@pytest.fixture
def slow_disk(monkeypatch):
    """Return an event; until it is set, no commit marker reaches the disk."""
    from orbax.checkpoint._src.path import async_path

    write, free = async_path.write_text, threading.Event()

    async def held(path, *args, **kwargs):
        if path.name == MARKERS[1]:
            await asyncio.to_thread(free.wait, 60)
        return await write(path, *args, **kwargs)

    monkeypatch.setattr(async_path, "write_text", held)
    yield free
    free.set()


def test_a_write_says_how_far_it_is_and_what_is_kept(stage, tx, tmp_path, said, monkeypatch, slow_disk):
    """SIGTERM's last sentence is made of this; it called a checkpoint that was being written "the newest one"."""
    monkeypatch.setattr("e3jax.checkpoint.store.TOLD_EVERY_S", 0.05)
    store, state = stage(), blank(tx)
    assert store.under_way() is None and store.took() == 0
    store.save(1, state)
    write = store.under_way()
    assert write.name == f"checkpoint {tmp_path / 'stage/1'}" and write.size == sum(
        x.nbytes for x in jax.tree.leaves(state)
    )
    assert store.kept() == "the beginning of stage stage, which has no complete checkpoint"
    threading.Timer(0.4, slow_disk.set).start()
    assert store.settled() is None  # there is time to save the step in hand too
    assert store.kept() == f"checkpoint {tmp_path / 'stage/1'}" and 0.3 < store.took() < 60
    assert any(line.startswith(f"waiting for checkpoint {tmp_path / 'stage/1'}, ") for line in said), said
    slow_disk.clear()
    store.save(2, state)
    assert store.kept() == f"checkpoint {tmp_path / 'stage/1'}"
    threading.Timer(0.2, slow_disk.set).start()
    LATE.set()
    try:
        assert store.settled() == 2  # and none: this one is what is kept
    finally:
        LATE.clear()
    store.close(2, state)
    assert stage().kept() == f"checkpoint {tmp_path / 'stage/2'}"


def test_parameters_alone(states, tmp_path):
    """A new stage starts from a model, whatever optimiser made it; a wrong path is one sentence."""
    directory = tmp_path / "stage"
    got = load_params(directory / "3", {"w": jnp.zeros(4)})
    np.testing.assert_array_equal(got["w"], states[3].params["w"])
    with pytest.raises(UserError, match="is no checkpoint"):
        load_params(directory / "7", {"w": jnp.zeros(4)})
    with pytest.raises(UserError, match=r"misshapen   w: expected \(5,\), found \(4,\)"):
        load_params(directory / "3", {"w": jnp.zeros(5)})


def test_an_orbax_that_has_renamed_its_settings_is_told_of(monkeypatch, said):
    """They have no public name: a release without them would end every run in a bucket at its first checkpoint."""
    bound_retries(said.append)
    assert not said
    monkeypatch.setitem(sys.modules, "orbax.checkpoint._src.serialization.tensorstore_utils", None)
    monkeypatch.delattr("orbax.checkpoint._src.serialization.tensorstore_utils")
    bound_retries(said.append)
    assert "fails after about an hour" in said[0]
