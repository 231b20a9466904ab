"""Checkpoints of a stage with orbax: written asynchronously, committed last, the newest one that can be read restored.

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
MEET_MS = 10_000  # for processes whose writes fail together, of one full disk
TOLD_EVERY_S = 15.0  # how far a write is that the run waits for


class Store:
    """The checkpoints of one stage; a step number is the number of training steps done.

    Kept are the last `keep`, every `keep_every`-th step (0: none of them) and the one of the highest rank; `ranks` are
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
            bound_retries()
        from_main(self.clear_interrupted)
        self.manager = ocp.CheckpointManager(self.directory, options=options)
        self.good = max(self.manager.all_steps(), default=None)  # the newest step that is known to be complete
        self.target, self.size, self.before = 0, 0, 0  # of the last write: its step, its bytes, those written before it
        self.busy = False  # inside `save` or `close`, which may try again
        WRITERS[:] = [self]

    def newest(self, like):
        """-> (step, state) of the newest checkpoint that can be read, or (0, like) where there is none yet.

        Those that cannot be read are named, and set aside once an older one can (of several processes: at once, and all
        end, to start again); UserError when none can.
        """
        broken = {}
        for step in reversed(from_main(lambda: list(self.manager.all_steps()))):
            try:
                state = self.restore(step, like)
            except Exception as error:  # whatever orbax and tensorstore raise on files that are cut or missing
                broken[step] = short(error)
                self.say(f"checkpoint {self.directory / str(step)} cannot be read: {broken[step]}")
                # other processes may have read it, and wait inside orbax: all end, and start again with an older one
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
                "mend them, or remove that directory to begin the stage again"
            )
        return 0, like

    def restore(self, step: int, like):
        """The state of `step`, laid out as `like` (arrays or ShapeDtypeStructs)."""
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self.manager.restore(step, args=ocp.args.StandardRestore(target))

    def save(self, step: int, state, *, rank: float = math.nan) -> None:
        """Start writing, for a minute if need be; returns before the bytes are there.

        Whether the write before it came to its end is found out, and told, here.
        """
        self.ranks[step] = rank
        with self.telling():
            self.finish_writing()
            self.try_for_a_minute(step, lambda: self.begin_writing(step, state))

    def settled(self) -> int | None:
        """After SIGTERM: wait for the write under way -> its step, where no time is left to begin another one."""
        with self.telling():
            self.finish_writing()
        self.note_complete()
        late, complete = zip(*gather((LATE.is_set(), self.good == self.target)))
        return self.target if any(late) and all(complete) else None

    def close(self, step: int, state) -> None:
        """Wait until the checkpoint of `step` is there; where its write failed, write it again, for a minute."""

        def certain():
            if not self.finish_writing() or step not in self.manager.all_steps():
                self.begin_writing(step, state)
                self.together(self.manager.wait_until_finished)

        with self.telling():
            self.try_for_a_minute(step, certain)
            self.manager.close()

    def under_way(self) -> Write | None:
        """The write that is not complete yet, and how much of it is there (of this process's part)."""
        if not self.busy and not self.manager.is_saving_in_progress():
            return None
        written = bytes_written() - self.before if self.size else 0
        return Write(f"checkpoint {self.directory / str(self.target)}", written, self.size)

    def kept(self) -> str:
        """The newest complete checkpoint, in words."""
        self.note_complete()
        if self.good is None:
            return f"the beginning of stage {self.directory.name}, which has no complete checkpoint"
        return f"checkpoint {self.directory / str(self.good)}"

    def note_complete(self) -> None:
        """Remember the last write as the newest good one, if it is: it came to its end in the background."""
        last = self.directory / str(self.target)
        if self.target and all((last / m).exists() for m in MARKERS):
            self.good = self.target

    def took(self) -> float:
        """Seconds that the newest complete write took, in this run or an earlier one; 0 before the first."""
        self.note_complete()
        with suppress(OSError, ValueError, KeyError, TypeError):
            written = json.loads((self.directory / str(self.good) / MARKERS[0]).read_text())
            return (written["commit_timestamp_nsecs"] - written["init_timestamp_nsecs"]) / 1e9
        return 0.0

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Say how far a write is for which the run waits; after SIGTERM e3jax/sigterm.py does so more often."""
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
        """Copy the state to the host and write it in the background; a step that is there already is left alone."""
        if step not in self.manager.all_steps():
            self.note_complete()
            self.target, self.before = step, bytes_written()
            self.size = sum(x.nbytes for x in jax.tree.leaves(state))
            self.together(lambda: self.manager.save(step, args=ocp.args.StandardSave(state)))

    def finish_writing(self) -> bool:
        """Wait for the write under way; False, with a line that says why, where it failed."""
        try:
            self.together(self.manager.wait_until_finished)
            return True
        except OSError as error:
            self.say(f"a checkpoint of {self.directory} was not written: {error}")
            return False

    def together(self, act: Callable[[], None]) -> None:
        """act() on every process; where it failed on one, OSError on all, and what it left behind is cleared."""
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
        """Meet the other processes, for orbax. When this one's part of a write failed, only if theirs failed too.

        Else they wait, for 20 minutes, to hear that all parts are there: all processes end instead, with the reason.
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
        """`patiently`, with what to do when it was of no avail."""
        good = max((n for n in self.manager.all_steps() if n < step), default="none")
        advice = f"The newest good checkpoint is {good}: make room, then give the same command again"
        patiently(f"write checkpoint {self.directory / str(step)}", act, advice=advice)

    def clear_interrupted(self) -> None:
        """Remove what a killed or failed write left; set aside what looks whole but was never committed."""
        for path in self.directory.iterdir() if self.directory.exists() else ():
            if WRITING in path.name:
                self.say(f"the write of checkpoint {path.with_suffix('')} was interrupted: removed")
                path.rmtree()
            elif path.name.isdigit() and not all((path / marker).exists() for marker in MARKERS):
                self.say(f"checkpoint {path} is incomplete: not used")
                if not is_bucket(path):  # there orbax goes by the marker too, and will write the step in its place
                    self.set_aside(path.name)

    def set_aside(self, name: str) -> None:
        """Rename to unusable-NAME: a checkpoint is never deleted because it is broken."""
        target = self.directory / f"unusable-{name}"
        while target.exists():
            target = target.with_name(target.name + "-")
        self.say(f"{self.directory / name} is now called {target.name}, and not used")
        with suppress(FileNotFoundError):  # another process was quicker
            (self.directory / name).rename(target)


def short(error: Exception) -> str:
    """tensorstore's messages begin with what happened, end with why, and are as long as a page."""
    text = first_line(error).split(" [tensorstore_spec")[0]
    return text if len(text) < 240 else f"{text[:80]} … {text[-160:]}"


def bound_retries() -> None:
    """Let tensorstore give up on a bucket after about 20 s instead of an hour: `patiently` is who tries again.

    orbax has no option for it.
    """
    from orbax.checkpoint._src.serialization import tensorstore_utils

    for context in (tensorstore_utils._BASE_TS_CONTEXT, tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT):
        context["gcs_request_retries"] = {"max_retries": 6, "initial_delay": "500ms", "max_delay": "8s"}


def bytes_written() -> int:
    """Bytes of all files and objects that tensorstore has written in this process, each counted when it is complete."""
    counts = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/")
    return sum(v["value"] for c in counts if c["name"].endswith("/bytes_written") for v in c["values"])


class Highest(policies.PreservationPolicy):
    """Keep the checkpoint of the highest rank; NaN is no rank, and of equal ones the latest counts."""

    def __init__(self, ranks: dict[int, float]):
        self.ranks = ranks

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        rank = {c.step: self.ranks.get(c.step, math.nan) for c in checkpoints}
        known = [step for step in rank if not math.isnan(rank[step])]
        best = max(known, key=lambda step: (rank[step], step), default=None)
        return [c.step == best for c in checkpoints]


def save_params(directory: epath.PathLike, params) -> None:
    """Parameters alone, as DIR/default; there only once it is complete. About 1 GB is copied at a time."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(save_concurrent_gb=1)) as writer:
        writer.save(place(directory) / "default", args=ocp.args.PyTreeSave({"params": params}))


def load_params(directory: epath.PathLike, like):
    """Only the parameters of a checkpoint (RUN/checkpoints/STAGE/STEP, or converted), laid out as `like`.

    Restored one by one: orbax holds several copies of what it reads at once.
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
    """Shapes and dtypes of a checkpoint's parameters; UserError when there is none."""
    path = place(directory) / "default"
    if not path.exists():
        raise UserError(f"{directory} is no checkpoint: name a directory like RUN/checkpoints/STAGE/STEP")
    with ocp.PyTreeCheckpointer() as reader, damaged(directory):
        tree = reader.metadata(path).item_metadata.tree["params"]
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@contextmanager
def damaged(directory: epath.PathLike):
    """Whatever orbax or tensorstore raises on a file that is cut or missing, as one sentence."""
    try:
        yield
    except Exception as error:
        why = short(error)
        raise UserError(f"the checkpoint {directory} cannot be read, it may be cut or incomplete ({why})") from error


def by_name(tree) -> dict:
    """Leaves by "layers/wq_dnh"."""
    return {"/".join(p.key for p in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
