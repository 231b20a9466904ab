"""Checkpoints of a stage with orbax: written asynchronously, committed last, the newest complete one restored.

store = Store(workdir / "checkpoints" / "easy", keep=2)
store.save(40, state)
state = store.restore(store.latest_step(), state)  # `state` gives shapes, dtypes and shardings
"""

import jax
import orbax.checkpoint as ocp
from etils import epath

from e3jax.types import UserError


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

    @staticmethod
    def load_params(path: epath.PathLike, like):
        """Only the parameters of a checkpoint `RUN/checkpoints/STAGE/STEP` of any optimiser, laid out as `like`."""
        path = epath.Path(path).absolute()
        if not (path / "default").exists():
            raise UserError(f"{path} is no checkpoint: name a directory like RUN/checkpoints/STAGE/STEP")
        target = {"params": jax.tree.map(ocp.utils.to_shape_dtype_struct, like)}
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        with ocp.PyTreeCheckpointer() as reader:
            args = ocp.args.PyTreeRestore(target, restore_args=restore_args, partial_restore=True)
            return reader.restore(path / "default", args=args)["params"]

    def close(self) -> None:
        """Wait for writes under way."""
        self.manager.wait_until_finished()
        self.manager.close()
