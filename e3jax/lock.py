"""One job at a time writes a run directory. RUN/lock.json says which: host, pid, since.

lock = hold(workdir, say=print, lost=end)  # UserError while another job has it, in words
lock.check()                               # before a write after a long sleep: is it still this job's?
lock.release()                             # at an orderly end; release_all() releases what this process still holds

Process 0 of a job holds it, the others follow process 0. A killed job leaves its lock behind; the next job takes it
over with a sentence. On the machine that wrote the lock, that is at once: its process is gone. Elsewhere (another host,
a bucket) the holder's sign of life counts: a thread renews the lock every BEAT_S, and after STALE_S without that the
holder is dead. Ages are by the file system's or the bucket's clock, so that clocks of hosts need not agree. The thread
says when it cannot renew. It vouches for the process, not for its progress: a job that hangs in a write keeps its lock
until a person ends it, because it may go on writing.

A lock changes hands by compare-and-swap, so that one of several takers wins: in a bucket by preconditions on the
object's generation, on a disk by the file lock.json.VERSION, which only one process can create (O_EXCL, on NFS too).

A process that opens a directory again while it holds it gets the same lock back. This is a notebook's cell that runs a
second time, or an experiment that goes on after a run failed. Such a process runs its commands one after the other,
thus the earlier one is over, although nobody closed it; refusing would cost the person the kernel.
"""

import atexit
import hashlib
import json
import os
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

from etils import epath

from e3jax.errors import UserError, first_line
from e3jax.storage import is_bucket, patiently, place

NAME = "lock.json"
BEAT_S = 20.0  # how often a holder shows that it lives
STALE_S = 90.0  # a holder that has been silent for so long is dead, on whatever machine it was
CLAIM_S = 10.0  # a change takes milliseconds; one that has lasted for so long was killed half-way
POLL_S = 1.0  # how often a holder of another machine is looked at, while nobody knows whether it lives
PROC = Path("/proc")
HELD: dict[str, "Lock"] = {}  # what this process holds, by directory


class Holder(NamedTuple):
    """Who has a directory: shown to people (host, pid, since), and what tells its process from all others."""

    host: str
    pid: int
    since: str
    machine: str  # pids are comparable within it
    start: str  # of the process, as the kernel counts; "" where the kernel does not say
    nonce: str

    def __str__(self):
        return f"process {self.pid} on {self.host}, since {self.since}"

    def is_this_process(self) -> bool:
        """Whether it is the process that asks."""
        return (self.machine, self.pid, self.start) == (machine(), os.getpid(), start_of(os.getpid()))

    def dead(self, age_s: float) -> str:
        """Why the holder no longer lives, in words, given how long ago it was heard of; "" if it lives or may live."""
        here = self.machine == machine()
        if here and not alive(self.pid):
            return "that process is gone"
        if here and self.start and start_of(self.pid) not in ("", self.start):
            return "that process is gone, its pid is another one's now"
        if age_s > STALE_S and not (here and self.start):
            return f"it was last heard of {age_s:.0f} s ago"
        return ""


class Seen(NamedTuple):
    """A lock as it was read."""

    holder: Holder
    version: str  # changes with everything that is written
    beat: str  # changes with every sign of life
    age_s: float  # since the last one; a bucket tells it to the second


def this_process() -> Holder:
    """A new holder: this process, from now on."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return Holder(socket.gethostname(), os.getpid(), since, machine(), start_of(os.getpid()), uuid.uuid4().hex)


def machine() -> str:
    """Within what pids are comparable: one boot of one machine, and one pid namespace (containers have their own)."""
    with suppress(OSError):
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{(PROC / 'self/ns/pid').stat().st_ino}"
    return f"{socket.gethostname()}/{uuid.getnode()}"


def alive(pid: int) -> bool:
    """Whether a process of this machine has this pid, and is more than an exit status that nobody has read."""
    try:
        os.kill(pid, 0)
    except PermissionError:  # another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return stat_of(pid)[:1] not in (["Z"], ["X"])


def start_of(pid: int) -> str:
    """When a process of this machine was started, in the kernel's ticks since boot; "" where it does not say."""
    return (stat_of(pid)[19:20] or [""])[0]


def stat_of(pid: int) -> list[str]:
    """/proc/PID/stat from the state on: the name before it may hold blanks; [] without /proc."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def parse(text: str) -> Holder:
    """The holder that a lock names; of a text that is no lock (a disk failed) an unknown one, judged by its age."""
    try:
        fields = json.loads(text)
        return Holder(*(kind(fields[name]) for name, kind in Holder.__annotations__.items()))
    except (ValueError, TypeError, KeyError):
        return Holder("an unknown host", 0, "an unknown time", "", "", "")


class DiskLock:
    """RUN/lock.json on a disk, local or shared by hosts."""

    def __init__(self, workdir: epath.Path):
        self.path = Path(workdir) / NAME

    def read(self) -> Seen | None:
        """The lock as it is now; None without one."""
        try:
            text, stat = self.path.read_text(errors="replace"), self.path.stat()
        except FileNotFoundError:
            return None
        return Seen(parse(text), version(text), str(stat.st_mtime_ns), self.clock() - stat.st_mtime)

    def clock(self) -> float:
        """What time the file system thinks it is."""
        with tempfile.TemporaryFile(dir=self.path.parent) as file:
            file.write(b"now")
            file.flush()
            return os.fstat(file.fileno()).st_mtime

    def swap(self, before: str, text: str) -> bool:
        """Write `text` ("": remove the lock) if the version is `before` ("": no lock); of several one wins."""
        claim = self.path.with_name(f"{NAME}.{before or 'free'}")
        try:
            file = claim.open("x")
        except FileExistsError:
            with suppress(FileNotFoundError):
                if self.clock() - claim.stat().st_mtime > CLAIM_S:
                    claim.unlink()
            return False
        try:
            with file:
                file.write(text)
            seen = self.read()
            if (seen.version if seen else "") != before:
                return False
            if text:
                claim.replace(self.path)
            else:
                self.path.unlink()
            return True
        finally:
            claim.unlink(missing_ok=True)

    def renew(self, seen: Seen, text: str) -> bool:
        """Show that the holder lives: a newer time of the same file, so that nothing of a new holder is overwritten."""
        os.utime(self.path)
        return True


class BucketLock:
    """RUN/lock.json in a bucket. `fs` is gcsfs, whose `call` takes the JSON API's parameters, preconditions too."""

    def __init__(self, workdir: epath.Path):
        import fsspec

        self.fs = fsspec.filesystem("gcs")
        self.bucket, self.key, _ = self.fs.split_path(f"{os.fspath(workdir)}/{NAME}")

    def read(self) -> Seen | None:
        """The lock as it is now; None without one. The text may be a newer one's: then `swap` finds out."""
        try:
            headers, meta = self.fs.call("GET", "b/{}/o/{}", self.bucket, self.key)
            _, text = self.fs.call("GET", self.fs.url(f"{self.bucket}/{self.key}"))
        except FileNotFoundError:
            return None
        meta = json.loads(meta)
        age = parsedate_to_datetime(headers["Date"]) - datetime.fromisoformat(meta["updated"])
        generation = meta["generation"]
        return Seen(parse(text.decode(errors="replace")), generation, generation, age.total_seconds())

    def swap(self, before: str, text: str) -> bool:
        """Write `text` ("": remove the lock) if the generation is `before` ("": no lock); of several one wins."""
        only_if = {"ifGenerationMatch": before or "0"}
        try:
            if text:
                url = f"{self.fs._location}/upload/storage/v1/b/{self.bucket}/o"
                how = {"headers": {"Content-Type": "text/plain"}, "uploadType": "media", "name": self.key}
                self.fs.call("POST", url, data=text.encode(), **how, **only_if)
            else:
                self.fs.call("DELETE", "b/{}/o/{}", self.bucket, self.key, **only_if)
            return True
        except (FileExistsError, FileNotFoundError):  # gcsfs's words for "precondition failed" and "no such object"
            seen = self.read()  # a request that was sent twice is refused for what it did the first time
            return bool(text) and seen is not None and seen.holder == parse(text)

    def renew(self, seen: Seen, text: str) -> bool:
        """Show that the holder lives: the same text once more, unless another one has taken the lock meanwhile."""
        return self.swap(seen.version, text)


def version(text: str) -> str:
    """A short name of a text; no two locks have the same, because of their nonces."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Lock:
    """A lock that this process holds, renewed by a thread until it is released."""

    def __init__(self, workdir: epath.Path, at: DiskLock | BucketLock, holder: Holder, lost: Callable[[str], None]):
        self.workdir, self.at, self.holder, self.lost = workdir, at, holder, lost
        self.text = text_of(holder)
        self.renewed, self.turn, self.over = time.time(), threading.Lock(), threading.Event()
        threading.Thread(target=self.beat, name=f"lock {workdir}", daemon=True).start()

    def renew(self) -> None:
        """Show that this process lives; UserError when another one has taken the directory."""
        with self.turn:
            if self.over.is_set():
                return
            seen = self.at.read()
            if seen is None:  # somebody removed it by hand: taken again
                renewed = self.at.swap("", self.text)
            elif seen.holder == self.holder:
                renewed = self.at.renew(seen, self.text)
            elif seen.holder.is_this_process():  # under another name of the same directory
                renewed = True
            else:
                raise UserError(
                    f"{self.workdir} is no longer this job's: {seen.holder} took it while this process was silent for "
                    f"{time.time() - self.renewed:.0f} s (suspended, or cut off from the directory). It ends here, and "
                    "writes nothing more; that job goes on from what was saved"
                )
            if renewed:
                self.renewed = time.time()

    def check(self) -> None:
        """Before a write: UserError when this process slept for so long that another one has taken the directory."""
        if time.time() - self.renewed > STALE_S:
            self.renew()

    def beat(self) -> None:
        """Renew until released; what hinders it is told, once in a row."""
        told = False
        while not self.over.wait(BEAT_S):
            try:
                self.renew()
                told = False
            except UserError as error:
                return self.lost(str(error))
            except Exception as error:  # what gcsfs and file systems raise has no common base
                if not is_bucket(self.workdir) and not self.workdir.exists():
                    return None  # the whole directory was removed: nothing is left to guard
                if not told:
                    limit = f"another job may take the directory after {STALE_S:.0f} s without"
                    print(f"cannot renew {self.workdir / NAME}: {first_line(error)}; {limit}", file=sys.stderr)
                told = True
        return None

    def release(self) -> None:
        """Remove the lock, if it is still this process's; a second time nothing."""
        self.over.set()
        if HELD.get(key(self.workdir)) is self:
            del HELD[key(self.workdir)]
        with self.turn, suppress(Exception):  # a bucket that is away, a directory that was removed: it goes stale
            seen = self.at.read() if os.getpid() == self.holder.pid else None
            if seen and seen.holder == self.holder:
                self.at.swap(seen.version, "")


def text_of(holder: Holder) -> str:
    """The JSON of lock.json."""
    return json.dumps(holder._asdict(), indent=1) + "\n"


def key(workdir: epath.Path) -> str:
    """The same for every spelling of a local directory."""
    return os.fspath(workdir) if is_bucket(workdir) else os.path.realpath(workdir)


def hold(workdir: epath.PathLike, *, say: Callable[[str], None], lost: Callable[[str], None]) -> Lock:
    """Take the directory for this process, or wait until it is known whether its holder lives; UserError if it does.

    A holder on another machine that was heard of less than STALE_S ago may be one that was just preempted. Whether it
    renews its lock is waited for: BEAT_S as a rule, STALE_S at most. `lost` is called from a thread, with a sentence,
    when another job takes the directory later.
    """
    workdir = place(workdir)
    if (lock := HELD.get(key(workdir))) is not None:
        lock.renew()
        return lock
    patiently(f"make {workdir}", lambda: workdir.mkdir(parents=True, exist_ok=True))
    at = BucketLock(workdir) if is_bucket(workdir) else DiskLock(workdir)
    first = None
    while True:
        seen = patiently(f"read {workdir / NAME}", at.read)
        over = "" if seen is None or seen.holder.is_this_process() else seen.holder.dead(seen.age_s)
        if seen is None or seen.holder.is_this_process() or over:
            holder = this_process()
            before = seen.version if seen else ""
            if patiently(f"write {workdir / NAME}", lambda b=before, h=holder: at.swap(b, text_of(h))):
                break
            time.sleep(POLL_S / 10)  # another process was quicker: look who
            continue
        first = first or seen
        if seen.holder.machine == machine() or seen.beat != first.beat:  # it lives
            raise UserError(refusal(workdir, seen))
        if first is seen:
            age = max(seen.age_s, 0)
            say(
                f"{workdir} is taken by {seen.holder}, last heard of {age:.0f} s ago: waiting for its next sign of "
                f"life; if there is none in {STALE_S - age:.0f} s, this job takes the directory over"
            )
        time.sleep(POLL_S)
    if over:
        say(f"{workdir} was taken by {seen.holder}, and {over}: this job takes it over")
    if not HELD:
        atexit.register(release_all)
    lock = HELD[key(workdir)] = Lock(workdir, at, holder, lost)
    return lock


def refusal(workdir: epath.Path, seen: Seen) -> str:
    """Why a directory is not to be had, and what to do."""
    return (
        f"another job writes {workdir}: {seen.holder}, last heard of {max(seen.age_s, 0):.0f} s ago. "
        f"Wait for its end, or end it (kill {seen.holder.pid} on {seen.holder.host}), or choose another --workdir"
    )


def release_all(within_s: float | None = None) -> None:
    """Release whatever this process still holds: an end that does not go through `RunLog.close`.

    `within_s`: go on after so long, because the process ends at once and a disk or bucket may hang.
    """
    if within_s is not None:
        thread = threading.Thread(target=release_all, daemon=True)
        thread.start()
        return thread.join(within_s)
    for lock in list(HELD.values()):
        lock.release()
    return None
