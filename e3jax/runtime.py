"""Several processes, one program: all run the same lines, and each holds its own devices' part of every array.

This is plain multi-controller JAX, with nothing to start beside the command itself. What differs between processes is
here: which one writes, how results travel, how arrays get onto devices that other processes own.

    start()                                # before the first array
    grades = gather(my_grades)             # [the grades of process 0, those of process 1, …], on every process
    budget = from_main(read_budget)        # process 0 reads it, and every process gets it
    tokens = put(tokens_bt, "BT")          # the same numpy array on every process -> one global array
    lengths = fetch(state.length_j)        # a global array -> the whole numpy array on every process
    if stop_asked(): save(); raise Stopped # SIGTERM reached one of the processes
"""

import contextlib
import functools
import importlib.util
import os
import pickle
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from e3jax.errors import Stopped, UserError, first_line
from e3jax.lock import release_all
from e3jax.relay import Relay
from e3jax.sharding import spec
from e3jax.sigterm import TERMINATED, WRITERS, await_sigterm, sigterm_pipe

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
HEARTBEAT_S = 60  # backstop behind DEAD_S: JAX's heartbeat timeout, which cannot name the dead process
POLL_S = 1.0  # how often a process says that it lives, and looks whether another one has failed
DEAD_S = 30  # a process that has been silent for this long is dead, and the others end
SILENT_S = 4  # the same after a collective broke: then one of them is gone, and only its name is missing
FAILED, ALIVE = "e3jax/failed", "e3jax/alive"
LISTENER = "listens for other processes"
BROKEN, OVER = threading.Event(), threading.Event()  # a collective failed; the work is done
ENDING = threading.Lock()  # held by the thread that ends this process because of another one
JOIN_S = 300  # JAX's own time for finding the others
TESTED = "0.10 and 0.11"  # releases of JAX: CONTRIBUTING.md, setup.py


def start() -> None:
    """Join the other processes that the three variables, a TPU pod, Slurm or Open MPI name; without these, run alone.

    JAX_COORDINATOR_ADDRESS is host:port of process 0, with any free port.
    """
    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", False)  # its signal is SIGTERM too; `stop_asked` answers it
    given, relay = [os.environ.get(name) for name in NAMES], None
    if any(given):
        missing = [name for name, value in zip(NAMES, given) if not value]
        address, count, index = given
        if missing or not count.isdigit() or not index.isdigit() or int(index) >= int(count):
            shown = ", ".join(f"{name}={value!r}" for name, value in zip(NAMES, given))
            raise UserError(f"{shown}: set all three, with an address host:port and a process number below the count")
        relay = join(address, int(count), int(index))
    elif on_cluster():
        try:
            relay = join(*cluster())
        except ValueError as error:  # a TPU without Google's metadata, or a job of one task
            if "should be defined" not in str(error) and "must be defined" not in str(error):
                raise
    threading.Thread(target=await_sigterm, args=(sigterm_pipe(), leave_late), daemon=True).start()
    if processes() == 1:
        return
    pulse, told = Pulse(), key_values() is not None
    if told:
        threading.Thread(target=listen, args=(pulse,), name=LISTENER, daemon=True).start()
    else:
        warn("a process that fails cannot tell the others why", "jax._src.distributed.global_state.client")
    if relay:
        threading.Thread(target=watch, args=(relay, pulse, told), name=LISTENER, daemon=True).start()


def join(address: str | None, count: int | None, index: int | None, devices: list[int] | None = None) -> Relay | None:
    """Join the other processes; return what stands between this process and process 0, if anything does.

    What is None is left to JAX.
    """
    how = dict(local_device_ids=devices, heartbeat_timeout_seconds=HEARTBEAT_S)
    relay = Relay(address) if address and index and address.rpartition(":")[2].isdigit() else None
    jax.distributed.initialize(relay.address if relay else address, count, index, **how)
    if relay:
        relay.lost.clear()  # connections that were tried before process 0 was there
    return relay


def cluster() -> tuple:
    """Return what JAX finds out about processes of a launcher or a pod: address of process 0, count, index, devices."""
    try:
        from jax._src.clusters import ClusterEnv  # the public way joins at once

        return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, JOIN_S)
    except (ImportError, AttributeError, TypeError):
        warn("if process 0 dies, the others end with JAX's words", "jax._src.clusters.ClusterEnv")
        return None, None, None


def key_values() -> Any:
    """Return the client of JAX's store of keys and values, which process 0 serves; None without one.

    It has no public name; orbax uses it too.
    """
    try:
        from jax._src import distributed

        return distributed.global_state.client
    except (ImportError, AttributeError):
        return None


def warn(what: str, missing: str) -> None:
    """Say what goes less well because this JAX lacks something that has no public name."""
    said = f"JAX {jax.__version__} has no {missing}: {what}. Tested are JAX {TESTED}"
    print(said, file=sys.stderr, flush=True)


def finish() -> None:
    """Stop listening, before an orderly end: a thread inside JAX while Python shuts down aborts the process."""
    OVER.set()
    for thread in threading.enumerate():
        if thread.name == LISTENER:
            thread.join()


def leave_late(why: str) -> NoReturn:
    """End this process in the middle of its work, with a last sentence on how the time after SIGTERM was used."""
    tell(f"{me()} leaves: {why}" if processes() > 1 else why)
    release_all(POLL_S)
    if processes() > 1 and is_main():
        time.sleep(2 * POLL_S)  # or the others would find process 0 gone without a word
    os._exit(0)


def stop_asked() -> bool:
    """Return whether any process got SIGTERM: the same on all, which must call this at the same places."""
    terminated = np.array([TERMINATED.is_set()])
    return bool(terminated.any() if processes() == 1 else multihost_utils.process_allgather(terminated).any())


def unless_stopped(advance: Callable[[int], None], where: str) -> Callable[[int], None]:
    """Return `advance` with a check that raises Stopped after SIGTERM, for work that is not saved but made again."""

    def heard(finished: int) -> None:
        advance(finished)
        if stop_asked():
            raise Stopped(where)

    return heard


def on_cluster() -> bool:
    """Return whether there is an environment of a launcher or a TPU pod from which JAX learns its processes."""
    tasks = any(int(os.environ.get(name, "1")) > 1 for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    tpu = has_tpu() and importlib.util.find_spec("libtpu") and os.environ.get("JAX_PLATFORMS", "tpu") != "cpu"
    return tasks or bool(tpu)


def has_tpu() -> bool:
    """Return whether the kernel shows a TPU's device files."""
    return any(any(Path("/dev").glob(pattern)) for pattern in ("accel*", "vfio/[0-9]*"))


def memory_used() -> dict[str, float]:
    """Return the most memory that this process has used so far, GiB, by metric: its fullest device's, and the host's.

    Devices that do not tell, such as CPUs, are left out.
    """
    told = [d.memory_stats() or {} for d in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in told if "peak_bytes_in_use" in stats]
    unit = 1 if sys.platform == "darwin" else 1 << 10  # of ru_maxrss, in bytes
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"memory/host_gib": host / 2**30} | ({"memory/device_gib": max(peaks) / 2**30} if peaks else {})


def processes() -> int:
    """Return the number of processes, without touching a device."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_main() -> bool:
    """Return whether this is process 0, which writes records, TensorBoard, the report and what a person reads."""
    return processes() == 1 or jax.process_index() == 0


def gather(value: Any) -> list:
    """Return every process's value (anything that pickles), in process order, on every process."""
    if processes() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(data)])).reshape(-1)
    room = max(4096, 1 << int(sizes.max() - 1).bit_length())  # few sizes, because each compiles a program
    rows = multihost_utils.process_allgather(np.pad(data, (0, room - len(data))))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def from_main(make: Callable[[], Any]) -> Any:
    """Call make() on process 0 and return its result on all; what it raises becomes a UserError or OSError on all."""
    if processes() == 1:
        return make()
    value = error = None
    if is_main():
        try:
            value = make()
        except Exception as raised:  # caught because the others wait for an answer
            error = (UserError if isinstance(raised, UserError) else OSError, (str(raised) or repr(raised),))
            if isinstance(raised, OSError) and raised.errno:  # so that it is known as one of a disk
                error = OSError, (raised.errno, raised.strerror, raised.filename)
    value, error = gather((value, error))[0]
    if error is not None:
        kind, about = error
        raise kind(*about)
    return value


def put(array: np.ndarray, axes: str) -> jax.Array | np.ndarray:
    """Lay out a host array, which every process has, by its axis letters over the mesh of `jax.set_mesh`.

    Without a mesh, it stays what it is. The letters "" put the whole array on every device.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return array
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec(axes, mesh)), lambda at: array[at])


def fetch(tree) -> Any:
    """Return device arrays (of the mesh of `jax.set_mesh`) as whole numpy arrays, on every process."""
    if processes() == 1:
        return jax.tree.map(np.asarray, jax.device_get(tree))
    return jax.tree.map(np.asarray, jax.device_get(everywhere(jax.sharding.get_mesh())(tree)))


@functools.cache
def everywhere(mesh: jax.sharding.Mesh) -> Callable:
    """Return the program that gives every device a whole tree of arrays."""
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


def barrier(name: str) -> None:
    """Wait until every process is here."""
    if processes() > 1:
        multihost_utils.sync_global_devices(name)


def me() -> str:
    """Return the name of this process: "process 1 of 4"."""
    return f"process {jax.process_index()} of {processes()}"


def known() -> str | None:
    """Return the reason that the first process to fail has left; None while all is well."""
    try:
        return key_values().key_value_try_get(FAILED)
    except (jax.errors.JaxRuntimeError, AttributeError):  # no such key; or no client, once the run is over
        return None


class Pulse:
    """When each process was last heard of: one that has stopped writing its line is dead."""

    def __init__(self):
        self.said, self.heard = {}, {}
        self.where = f"pid {os.getpid()} on {socket.gethostname()}"

    def beat(self, count: int) -> None:
        """Say that this process lives, and read what the others said."""
        client, now = key_values(), time.monotonic()
        client.key_value_set(f"{ALIVE}/{jax.process_index()}", f"{count} {self.where}", allow_overwrite=True)
        for key, line in client.key_value_dir_get(ALIVE):
            if self.said.get(key) != line:
                self.said[key], self.heard[key] = line, now

    def dead(self, after: float) -> str | None:
        """Return in words which process has been silent for `after` seconds; None when there is none."""
        now = time.monotonic()
        for key, at in self.heard.items():
            if now - at > after:
                return self.died(int(key.rsplit("/", 1)[1]), f", last heard of {now - at:.0f} s ago")
        return None

    def died(self, index: int, when: str) -> str:
        """Return in words that a process is gone, and how the run goes on."""
        where = self.said.get(f"{ALIVE}/{index}", "").partition(" ")[2] or "before it said where it runs"
        return (
            f"process {index} of {processes()} ({where}) died without a word{when}: killed, out of memory, or its host "
            f"is gone. The same command goes on from {'the newest checkpoint' if WRITERS else 'what was saved'}"
        )


def listen(pulse: Pulse) -> None:
    """End this process with the reason as soon as another one has failed; else it would wait for it in a collective."""
    count = 0
    while not OVER.wait(POLL_S):
        count += 1
        reason = known()
        if reason is None:
            with contextlib.suppress(jax.errors.JaxRuntimeError, AttributeError):  # the run is over
                pulse.beat(count)
            # after a collective broke one of the processes is certainly gone, so there is no need to wait long
            reason = pulse.dead(SILENT_S if BROKEN.is_set() else DEAD_S)
        if reason and not reason.startswith(me()):
            end_because(reason)


def watch(relay: Relay, pulse: Pulse, asking: bool) -> None:
    """End this process when process 0 is gone, which serves what `listen` reads: that hangs then.

    `asking`: `listen` asks process 0 something every second, so that its silence means something.
    """
    quiet = 0
    while not OVER.wait(POLL_S):
        quiet = quiet + 1 if asking and relay.unanswered() else 0
        if relay.lost.is_set():
            end_because(pulse.died(0, ""))
        if quiet * POLL_S > DEAD_S:
            end_because(pulse.died(0, f", last heard of {quiet * POLL_S:.0f} s ago"))
    relay.over.set()


def end_because(reason: str) -> None:
    """End this process because of another one; only the first of several reasons counts."""
    if ENDING.acquire(blocking=False):
        print(f"{me()} ends, because {reason}", file=sys.stderr, flush=True)
        leave(1)


def end_all(reason: str, code: int, *, broken: bool = False) -> NoReturn:
    """Say which process failed and why, here and on the others, and end all of them within seconds.

    With `broken`, a collective failed here: then another process died first, and `listen` finds out which.
    """
    if broken:
        BROKEN.set()
        time.sleep(3 * SILENT_S)  # listen() ends this process meanwhile, unless all are alive
    if known() is None:  # else this failure only follows from that one
        tell(f"{me()} failed: {reason}")
    leave(code)


def end_now(message: str) -> NoReturn:
    """End this job with one sentence and exit status 2, from any thread, whatever the other threads are doing."""
    if processes() > 1:
        end_all(f"error: {message}", 2)
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(2)


def tell(reason: str) -> None:
    """Print the reason here, and give it to the other processes, which end because of it."""
    print(reason, file=sys.stderr, flush=True)
    with contextlib.suppress(jax.errors.JaxRuntimeError, AttributeError):  # another was quicker; or there is none
        key_values().key_value_set(FAILED, reason)


def leave(code: int) -> NoReturn:
    """Exit, whatever the devices wait for; process 0, which serves the reason to the others, exits last."""
    time.sleep((5 if is_main() else 2) * POLL_S)
    release_all(POLL_S)
    os._exit(code)


@contextlib.contextmanager
def out_of_memory(advice: str) -> Iterator[None]:
    """Turn a device's "out of memory" within the block into a UserError that says which fields to lower."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        why = first_line(error).removeprefix("RESOURCE_EXHAUSTED: ").rstrip(". ")
        raise UserError(f"the device ran out of memory ({why}): {advice}") from error
