"""Checkpoints of a stage with orbax: written asynchronously, committed last, the newest complete one restored.

store = Store(workdir / "checkpoints" / "easy", keep=2)
store.save(40, state)
state = store.restore(store.latest_step(), state)  # `state` gives shapes, dtypes and shardings
"""

from contextlib import contextmanager

import jax
import orbax.checkpoint as ocp
from etils import epath

from e3jax.errors import UserError, first_line


class Store:
    """The checkpoints of one stage; a step number is the number of training steps done."""

    def __init__(self, directory: epath.PathLike, *, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self.manager = ocp.CheckpointManager(epath.Path(directory).absolute(), options=options)

    def latest_step(self) -> int | None:
        """Newest complete checkpoint, or None."""
        return self.manager.latest_step()

    def save(self, step: int, state) -> None:
        """Start writing; returns before the bytes are on disk (`close` waits)."""
        self.manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, step: int, like):
        """The state of `step`, laid out as `like` (arrays or ShapeDtypeStructs)."""
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self.manager.restore(step, args=ocp.args.StandardRestore(target))

    def close(self) -> None:
        """Wait for writes under way."""
        self.manager.wait_until_finished()
        self.manager.close()


def save_params(directory: epath.PathLike, params) -> None:
    """Parameters alone, as DIR/default; there only once it is complete. About 1 GB is copied at a time."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(save_concurrent_gb=1)) as writer:
        writer.save(epath.Path(directory).absolute() / "default", args=ocp.args.PyTreeSave({"params": params}))


def load_params(directory: epath.PathLike, like):
    """Only the parameters of a checkpoint (RUN/checkpoints/STAGE/STEP, or converted), laid out as `like`.

    Restored one by one: orbax holds several copies of what it reads at once.
    """
    path = epath.Path(directory).absolute() / "default"
    stored, wanted = by_name(stored_params(directory)), by_name(like)
    wrong = [f"missing     {n} {x.shape}" for n, x in wanted.items() if n not in stored]
    wrong += [f"unexpected  {n} {x.shape}" for n, x in stored.items() if n not in wanted]
    wrong += [
        f"misshapen   {n}: expected {x.shape}, found {stored[n].shape}"
        for n, x in wanted.items() if n in stored and stored[n].shape != x.shape
    ]  # fmt: skip
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
    path = epath.Path(directory).absolute() / "default"
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
        why = first_line(error)[:200]
        raise UserError(f"the checkpoint {directory} cannot be read, it may be cut or incomplete ({why})") from error


def by_name(tree) -> dict:
    """Leaves by "layers/wq_dnh"."""
    return {"/".join(p.key for p in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
