"""Checkpoints of a stage with orbax, written in the background and committed at the end; restores the newest readable.

store = Store(workdir / "checkpoints" / "easy", keep=2, keep_every=0, say=print)
step, state = store.newest(state)       # `state` gives shapes, dtypes and shardings: those of this run's devices,
store.save(step + 1, state, rank=0.31)  # whatever mesh the checkpoint was written on
store.close(step + 1, state)
"""

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import jax
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from e3jax.errors import UserError, first_line
from e3jax.runtime import end_now, from_main, gather, processes
from e3jax.sigterm import LATE, TERMINATED, WRITERS, Write
from e3jax.storage import is_bucket, patiently, place

MARKERS = ("_CHECKPOINT_METADATA", "commit_success.txt")  # orbax writes them last into a complete checkpoint
WRITING = ".orbax-checkpoint-tmp"
TESTED = "0.12"  # release of orbax
MEET_MS = 10_000  # how long a process whose write failed waits for others whose writes fail too, on one full disk
TOLD_EVERY_S = 15.0  # between the lines that tell how far a write is for which the run waits


class Store:
    """The checkpoints of one stage; a step number is the number of training steps done.

    It keeps the last `keep`, every `keep_every`-th step (0: none of these) and the one of the highest rank. `ranks` are
    those of earlier steps, which a resumed run knows from its metrics.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep: int,
        keep_every: int,
        say: Callable[[str], None],
        ranks: dict[int, float] | None = None,
    ):
        self.directory, self.say, self.ranks = place(directory), say, dict(ranks or {})
        kept = [policies.LatestN(keep), Highest(self.ranks)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        self.meet = ocp.multihost.get_barrier_sync_fn()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            async_options=ocp.options.AsyncOptions(barrier_sync_fn=self.meet_or_end),
        )
        if is_bucket(directory):
            bound_retries(say)
        from_main(self.clear_interrupted)
        self.manager = ocp.CheckpointManager(self.directory, options=options)
        self.good = max(self.manager.all_steps(), default=None)  # the newest step that is known to be complete
        self.target, self.size, self.before = 0, 0, 0  # the last write's step and bytes, and bytes written before it
        self.busy = False  # whether `save` or `close`, which may try again, is running
        WRITERS[:] = [self]

    def newest(self, like):
        """Return (step, state) of the newest checkpoint that can be read, or (0, like) where there is none yet.

        A checkpoint that cannot be read is named, and set aside once an older one could be read. With several processes
        it is set aside at once, and all of them end, to start again. UserError when none can be read.
        """
        broken = {}
        for step in reversed(from_main(lambda: list(self.manager.all_steps()))):
            try:
                state = self.restore(step, like)
            except Exception as error:  # whatever orbax and tensorstore raise on files that are cut or missing
                broken[step] = short(error)
                self.say(f"checkpoint {self.directory / str(step)} cannot be read: {broken[step]}")
                # other processes may have read it and wait inside orbax, so all end and start again with an older one
                if processes() > 1 and step > min(self.manager.all_steps()):
                    self.set_aside(str(step))
                    raise RuntimeError(f"checkpoint {step} is set aside: start again, with an older one") from error
                continue
            for unusable in broken:
                self.set_aside(str(unusable))
            if broken:
                self.manager.reload()
            self.good = step
            return step, state
        if broken:
            raise UserError(
                f"none of the checkpoints {sorted(broken)} of {self.directory} can be read ({broken[max(broken)]}): "
                "repair them, or remove that directory to begin the stage again"
            )
        return 0, like

    def restore(self, step: int, like):
        """Return the state of `step`, laid out as `like` (arrays or ShapeDtypeStructs)."""
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self.manager.restore(step, args=ocp.args.StandardRestore(target))

    def save(self, step: int, state, *, rank: float = math.nan) -> None:
        """Start writing a checkpoint, trying for a minute if need be; return before its bytes are there.

        First waits for the write before it, and says so where that failed.
        """
        self.ranks[step] = rank
        with self.telling():
            self.finish_writing()
            self.try_for_a_minute(step, lambda: self.begin_writing(step, state))

    def settled(self) -> int | None:
        """Wait for the write under way, after SIGTERM; return its step where no time is left to begin another one."""
        with self.telling():
            self.finish_writing()
        self.note_complete()
        late, complete = zip(*gather((LATE.is_set(), self.good == self.target)))
        return self.target if any(late) and all(complete) else None

    def close(self, step: int, state) -> None:
        """Wait until the checkpoint of `step` is complete; where its write failed, try again for a minute."""

        def certain():
            if not self.finish_writing() or step not in self.manager.all_steps():
                self.begin_writing(step, state)
                self.together(self.manager.wait_until_finished)

        with self.telling():
            self.try_for_a_minute(step, certain)
            self.manager.close()

    def under_way(self) -> Write | None:
        """Return the write that is not complete yet, and how much of this process's part is written; or None."""
        if not self.busy and not self.manager.is_saving_in_progress():
            return None
        written = bytes_written() - self.before if self.size else 0
        return Write(f"checkpoint {self.directory / str(self.target)}", written, self.size)

    def kept(self) -> str:
        """Return the newest complete checkpoint, in words."""
        self.note_complete()
        if self.good is None:
            return f"the beginning of stage {self.directory.name}, which has no complete checkpoint"
        return f"checkpoint {self.directory / str(self.good)}"

    def note_complete(self) -> None:
        """Remember the last write as the newest good one if it has meanwhile been completed in the background."""
        last = self.directory / str(self.target)
        if self.target and all((last / m).exists() for m in MARKERS):
            self.good = self.target

    def took(self) -> float:
        """Return the seconds that the newest complete write took, in this run or an earlier one; 0 before the first."""
        self.note_complete()
        with suppress(OSError, ValueError, KeyError, TypeError):
            written = json.loads((self.directory / str(self.good) / MARKERS[0]).read_text())
            return (written["commit_timestamp_nsecs"] - written["init_timestamp_nsecs"]) / 1e9
        return 0.0

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Say within the block how far the write is that the run waits for; after SIGTERM e3jax/sigterm.py says it."""
        over, start = threading.Event(), time.monotonic()

        def tell() -> None:
            while not over.wait(TOLD_EVERY_S):
                if not TERMINATED.is_set():
                    self.say(f"waiting for {self.under_way()}, {time.monotonic() - start:.0f} s")

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        self.busy = True
        try:
            yield
        finally:
            self.busy = False
            over.set()
            thread.join()

    def begin_writing(self, step: int, state) -> None:
        """Copy the state to the host and write it in the background; leave a step alone that is there already."""
        if step not in self.manager.all_steps():
            self.note_complete()
            self.target, self.before = step, bytes_written()
            self.size = sum(x.nbytes for x in jax.tree.leaves(state))
            self.together(lambda: self.manager.save(step, args=ocp.args.StandardSave(state)))

    def finish_writing(self) -> bool:
        """Wait for the write under way; return whether it succeeded, and say why where it failed."""
        try:
            self.together(self.manager.wait_until_finished)
            return True
        except OSError as error:
            self.say(f"a checkpoint of {self.directory} was not written: {error}")
            return False

    def together(self, act: Callable[[], None]) -> None:
        """Call act() on every process; where it fails on one, clear what it left behind and raise OSError on all."""
        error = None
        try:
            act()
        except Exception as raised:  # orbax's and tensorstore's errors have no common base
            error = raised
        told = [text for text in gather(error and short(error)) if text]
        if told:
            from_main(self.clear_interrupted)
            self.manager.reload()
            raise OSError(told[0]) from error

    def meet_or_end(self, *, key: str, timeout_ms: int) -> None:
        """Meet the other processes, for orbax; after this one's part of a write failed, only if theirs failed too.

        Otherwise they would wait for 20 minutes to hear that all parts are there, so all processes end with the reason.
        """
        error = sys.exception()  # orbax meets the others on its way out of a failed write
        if error is None:
            return self.meet(key=key, timeout_ms=timeout_ms)
        try:
            return self.meet(key=key, timeout_ms=MEET_MS)
        except jax.errors.JaxRuntimeError:
            end_now(
                f"cannot write checkpoint {self.directory / str(self.target)}: {short(error)}. The same command goes "
                f"on from {self.kept()}"
            )

    def try_for_a_minute(self, step: int, act: Callable[[], None]) -> None:
        """Try act() for a minute; on failure tell the user what to do."""
        good = max((n for n in self.manager.all_steps() if n < step), default="none")
        advice = f"The newest good checkpoint is {good}: make room, then give the same command again"
        patiently(f"write checkpoint {self.directory / str(step)}", act, advice=advice)

    def clear_interrupted(self) -> None:
        """Remove what a killed or failed write left behind; set aside what looks whole but was never committed."""
        for path in self.directory.iterdir() if self.directory.exists() else ():
            if WRITING in path.name:
                self.say(f"the write of checkpoint {path.with_suffix('')} was interrupted: removed")
                path.rmtree()
            elif path.name.isdigit() and not all((path / marker).exists() for marker in MARKERS):
                self.say(f"checkpoint {path} is incomplete: not used")
                if not is_bucket(path):  # in a bucket orbax goes by the marker too, and writes the step in its place
                    self.set_aside(path.name)

    def set_aside(self, name: str) -> None:
        """Rename a checkpoint to unusable-NAME: none is ever deleted because it is broken."""
        target = self.directory / f"unusable-{name}"
        while target.exists():
            target = target.with_name(target.name + "-")
        self.say(f"{self.directory / name} is now called {target.name}, and not used")
        with suppress(FileNotFoundError):  # another process was quicker
            (self.directory / name).rename(target)


def short(error: Exception) -> str:
    """Return an error's beginning and end: tensorstore's long messages begin with what happened and end with why."""
    text = first_line(error).split(" [tensorstore_spec")[0]
    return text if len(text) < 240 else f"{text[:80]} … {text[-160:]}"


def bound_retries(say: Callable[[str], None]) -> None:
    """Let tensorstore give up on a bucket after about 20 s instead of an hour, because `patiently` tries again.

    orbax has no option for this. Where an orbax has other names than the one that was tested, say what that means.
    """
    try:
        from orbax.checkpoint._src.serialization import tensorstore_utils

        contexts = tensorstore_utils._BASE_TS_CONTEXT, tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT
    except (ImportError, AttributeError):
        say(
            f"orbax {ocp.__version__} has no tensorstore_utils._BASE_TS_CONTEXT and _DEFAULT_OCDBT_TS_CONTEXT: a write "
            f"of a checkpoint into a bucket that cannot be reached fails after about an hour. Tested is orbax {TESTED}"
        )
        return
    for context in contexts:
        context["gcs_request_retries"] = {"max_retries": 6, "initial_delay": "500ms", "max_delay": "8s"}


def bytes_written() -> int:
    """Return the bytes of all files and objects that tensorstore has completed in this process."""
    counts = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/")
    return sum(v["value"] for c in counts if c["name"].endswith("/bytes_written") for v in c["values"])


class Highest(policies.PreservationPolicy):
    """Keeps the checkpoint of the highest rank; NaN is no rank, and of equal ranks the latest counts."""

    def __init__(self, ranks: dict[int, float]):
        self.ranks = ranks

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        """Return for each checkpoint whether it is kept."""
        rank = {c.step: self.ranks.get(c.step, math.nan) for c in checkpoints}
        known = [step for step in rank if not math.isnan(rank[step])]
        best = max(known, key=lambda step: (rank[step], step), default=None)
        return [c.step == best for c in checkpoints]


def save_params(directory: epath.PathLike, params) -> None:
    """Write parameters alone, as DIR/default, which is there only once complete; copies about 1 GB at a time."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(save_concurrent_gb=1)) as writer:
        writer.save(place(directory) / "default", args=ocp.args.PyTreeSave({"params": params}))


def load_params(directory: epath.PathLike, like):
    """Load only the parameters of a checkpoint (RUN/checkpoints/STAGE/STEP, or converted), laid out as `like`.

    They are restored one by one, because orbax holds several copies of what it reads at once.
    """
    path = place(directory) / "default"
    stored, wanted = by_name(stored_params(directory)), by_name(like)
    wrong = [f"missing     {n} {x.shape}" for n, x in wanted.items() if n not in stored]
    wrong += [f"unexpected  {n} {x.shape}" for n, x in stored.items() if n not in wanted]
    wrong += [
        f"misshapen   {n}: expected {x.shape}, found {stored[n].shape}"
        for n, x in wanted.items()
        if n in stored and stored[n].shape != x.shape
    ]
    if wrong:
        raise UserError(f"{directory} is of another model, {len(wrong)} parameters:\n  " + "\n  ".join(wrong))

    def restore(keys, leaf):
        target = ocp.utils.to_shape_dtype_struct(leaf)
        for key in reversed(keys):
            target = {key.key: target}
        target = {"params": target}
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        args = ocp.args.PyTreeRestore(target, restore_args=restore_args, partial_restore=True)
        return jax.tree.leaves(reader.restore(path, args=args))[0]

    with ocp.PyTreeCheckpointer() as reader, damaged(directory):
        return jax.tree_util.tree_map_with_path(restore, like)


def stored_params(directory: epath.PathLike):
    """Return shapes and dtypes of a checkpoint's parameters; UserError when there is no checkpoint."""
    path = place(directory) / "default"
    if not path.exists():
        raise UserError(f"{directory} is no checkpoint: name a directory like RUN/checkpoints/STAGE/STEP")
    with ocp.PyTreeCheckpointer() as reader, damaged(directory):
        tree = reader.metadata(path).item_metadata.tree["params"]
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@contextmanager
def damaged(directory: epath.PathLike):
    """Turn whatever orbax or tensorstore raise on a file that is cut or missing into a UserError of one sentence."""
    try:
        yield
    except Exception as error:
        why = short(error)
        raise UserError(f"the checkpoint {directory} cannot be read, it may be cut or incomplete ({why})") from error


def by_name(tree) -> dict:
    """Return the leaves by name, such as "layers/wq_dnh"."""
    return {"/".join(p.key for p in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
