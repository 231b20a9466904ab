"""Locks that let one job at a time write a run directory. RUN/lock.json says which: host, pid, since.

lock = hold(workdir, say=print, lost=end)  # UserError while another job has it, in words
lock.check()                               # before a write: after a long sleep another job may have the directory
lock.release()                             # at an orderly end; release_all() releases what this process still holds

Process 0 of a job holds the lock, and the others follow process 0. A killed job leaves its lock behind; the next job
says so and takes it over. On the machine that wrote the lock it does so at once, because that process is gone.
Elsewhere (on another host, in a bucket) it goes by the holder's sign of life: a thread renews the lock every BEAT_S,
and a holder that has not done so for STALE_S is dead. Ages are measured by the clock of the file system or the bucket,
so that clocks of hosts need not agree. The thread says when it cannot renew. It shows that the process lives, not that
it makes progress: a job that hangs in a write keeps its lock until a person ends it, because it may go on writing.

A lock changes hands by compare-and-swap, so that one of several takers wins: in a bucket by preconditions on the
object's generation, on a disk by the file lock.json.VERSION, which only one process can create (O_EXCL, on NFS too).

A process that opens a directory again while it holds it gets the same lock back, as when a notebook's cell runs a
second time or an experiment goes on after a run failed. Such a process runs its commands one after the other, so the
earlier one is over although nobody closed it. To refuse would cost the user the kernel.
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
STALE_S = 90.0  # a holder that has been silent for this long is dead, on whatever machine it was
CLAIM_S = 10.0  # a change takes milliseconds; one that has lasted this long was killed half-way
POLL_S = 1.0  # how often a lock of another machine is read, until it is known whether its holder lives
PROC = Path("/proc")
HELD: dict[str, "Lock"] = {}  # the locks that this process holds, by directory


class Holder(NamedTuple):
    """Who has a directory: host, pid and since are shown to people; the rest tells its process from all others."""

    host: str
    pid: int
    since: str
    machine: str  # within which pids are comparable: `machine`
    start: str  # when the process started, as the kernel counts: `start_of`
    nonce: str

    def __str__(self):
        return f"process {self.pid} on {self.host}, since {self.since}"

    def is_this_process(self) -> bool:
        """Return whether the holder is the process that calls this."""
        return (self.machine, self.pid, self.start) == (machine(), os.getpid(), start_of(os.getpid()))

    def dead(self, age_s: float) -> str:
        """Return in words why the holder is dead, given the age of its last sign of life; "" if it may be alive."""
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
    version: str  # changes with every write
    beat: str  # changes with every sign of life
    age_s: float  # seconds since the last sign of life; a bucket's are whole


def this_process() -> Holder:
    """Return a new holder: this process, from now on."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return Holder(socket.gethostname(), os.getpid(), since, machine(), start_of(os.getpid()), uuid.uuid4().hex)


def machine() -> str:
    """Return a name for what makes pids comparable: one boot of a machine, and one pid namespace (a container's)."""
    with suppress(OSError):
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{(PROC / 'self/ns/pid').stat().st_ino}"
    return f"{socket.gethostname()}/{uuid.getnode()}"


def alive(pid: int) -> bool:
    """Return whether a process of this machine has this pid and is not just an exit status that nobody has read."""
    try:
        os.kill(pid, 0)
    except PermissionError:  # another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return stat_of(pid)[:1] not in (["Z"], ["X"])


def start_of(pid: int) -> str:
    """Return when a process of this machine started, in the kernel's ticks since boot; "" where it does not say."""
    return (stat_of(pid)[19:20] or [""])[0]


def stat_of(pid: int) -> list[str]:
    """Return /proc/PID/stat from the state on, because the name before it may hold blanks; [] without /proc."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def parse(text: str) -> Holder:
    """Return the holder that a lock names; an unknown one, judged by its age, for a text that is no lock."""
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
        """Return the lock as it is now; None without one."""
        try:
            text, stat = self.path.read_text(errors="replace"), self.path.stat()
        except FileNotFoundError:
            return None
        return Seen(parse(text), version(text), str(stat.st_mtime_ns), self.clock() - stat.st_mtime)

    def clock(self) -> float:
        """Return the file system's time."""
        with tempfile.TemporaryFile(dir=self.path.parent) as file:
            file.write(b"now")
            file.flush()
            return os.fstat(file.fileno()).st_mtime

    def swap(self, before: str, text: str) -> bool:
        """Write `text` ("": remove the lock) if the version is `before` ("": no lock); one of several wins."""
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
        """Show that the holder lives by a newer time of the file: this overwrites nothing that a new holder wrote."""
        os.utime(self.path)
        return True


class BucketLock:
    """RUN/lock.json in a bucket. `fs` is gcsfs, whose `call` takes parameters of the JSON API, preconditions too."""

    def __init__(self, workdir: epath.Path):
        import fsspec

        self.fs = fsspec.filesystem("gcs")
        self.bucket, self.key, _ = self.fs.split_path(f"{os.fspath(workdir)}/{NAME}")

    def read(self) -> Seen | None:
        """Return the lock as it is now; None without one. The text may be a newer lock's; then `swap` refuses."""
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
        """Write `text` ("": remove the lock) if the generation is `before` ("": no lock); one of several wins."""
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
            seen = self.read()  # a request that was sent twice is refused because of what it did the first time
            return bool(text) and seen is not None and seen.holder == parse(text)

    def renew(self, seen: Seen, text: str) -> bool:
        """Show that the holder lives by writing the text again, unless another one has taken the lock meanwhile."""
        return self.swap(seen.version, text)


def version(text: str) -> str:
    """Return a short name of a lock's text; nonces make it different for every lock."""
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
            if seen is None:  # somebody removed it by hand: take it again
                renewed = self.at.swap("", self.text)
            elif seen.holder == self.holder:
                renewed = self.at.renew(seen, self.text)
            elif seen.holder.is_this_process():  # under another name of the same directory
                renewed = True
            else:
                raise UserError(
                    f"{self.workdir} is no longer this job's: {seen.holder} took it while this process was silent for "
                    f"{time.time() - self.renewed:.0f} s (suspended, or cut off from the directory). This process ends "
                    "here and writes nothing more; that job goes on from what was saved"
                )
            if renewed:
                self.renewed = time.time()

    def check(self) -> None:
        """Raise UserError, before a write, when this process slept so long that another one has taken the directory."""
        if time.time() - self.renewed > STALE_S:
            self.renew()

    def beat(self) -> None:
        """Renew until released; say what hinders it, once for failures in a row."""
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
                    limit = f"another job may take the directory after {STALE_S:.0f} s without a sign of life"
                    print(f"cannot renew {self.workdir / NAME}: {first_line(error)}; {limit}", file=sys.stderr)
                told = True
        return None

    def release(self) -> None:
        """Remove the lock if it is still this process's; a second call does nothing."""
        self.over.set()
        if HELD.get(key(self.workdir)) is self:
            del HELD[key(self.workdir)]
        with self.turn, suppress(Exception):  # with a bucket out of reach or a removed directory, the lock goes stale
            seen = self.at.read() if os.getpid() == self.holder.pid else None
            if seen and seen.holder == self.holder:
                self.at.swap(seen.version, "")


def text_of(holder: Holder) -> str:
    """Return the JSON of lock.json."""
    return json.dumps(holder._asdict(), indent=1) + "\n"


def key(workdir: epath.Path) -> str:
    """Return a name of a directory that is the same for every spelling of a local one."""
    return os.fspath(workdir) if is_bucket(workdir) else os.path.realpath(workdir)


def hold(workdir: epath.PathLike, *, say: Callable[[str], None], lost: Callable[[str], None]) -> Lock:
    """Take the directory for this process, or wait until it is known whether its holder lives; UserError if it does.

    A holder on another machine that was heard of less than STALE_S ago may just have been preempted, so this waits for
    it to renew its lock: BEAT_S as a rule, STALE_S at most. When another job takes the directory later, `lost` is
    called from a thread with a sentence.
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
            time.sleep(POLL_S / 10)  # another process was quicker: see which
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
    """Return why a directory cannot be taken, and what to do."""
    return (
        f"another job writes {workdir}: {seen.holder}, last heard of {max(seen.age_s, 0):.0f} s ago. "
        f"Wait until it ends, or end it (kill {seen.holder.pid} on {seen.holder.host}), or choose another --workdir"
    )


def release_all(within_s: float | None = None) -> None:
    """Release whatever this process still holds, at an end that does not go through `RunLog.close`.

    `within_s` is the longest wait, for a process that must end at once: a disk or bucket may hang.
    """
    if within_s is not None:
        thread = threading.Thread(target=release_all, daemon=True)
        thread.start()
        return thread.join(within_s)
    for lock in list(HELD.values()):
        lock.release()
    return None
