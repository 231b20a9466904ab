"""A gcloud that plays Google Cloud in a directory ($STUB), for tests/test_launch.py, which calls it `gcloud` on PATH.

Every call's arguments become a line of calls.jsonl. The TPU is the file `queue` (its state; none: no TPU), its workers
are the directories homes/0, homes/1, …, in which ssh really runs the command that it is given; the bucket is `bucket/`.
A test writes what should happen: `creates` holds one line per creation, the states that one asking after the other sees
("error: MESSAGE": refused); `broken` lists workers that ssh cannot reach.
"""

import json
import os
import sys
from pathlib import Path

STUB = Path(os.environ["STUB"])
ARGS = sys.argv[1:]
WORKERS = 2


def flag(name: str) -> str:
    return next((a.partition("=")[2] for a in ARGS if a.startswith(f"--{name}=")), "")


def fail(message: str):
    print(f"ERROR: (gcloud) {message}", file=sys.stderr)
    sys.exit(1)


def pop(path: Path) -> str:
    """Remove and return the first line of a file."""
    lines = path.read_text().splitlines() if path.exists() else []
    if lines:
        path.write_text("".join(line + "\n" for line in lines[1:]))
    return lines[0] if lines else ""


def become(number: str, command: str):
    """Replace this process by the command, as on a worker."""
    home, path = str(STUB / "homes" / number), f"{STUB}/bin:{os.environ['PATH']}"
    os.chdir(home)
    os.execvpe("bash", ["bash", "-c", command], os.environ | {"HOME": home, "WORKER": number, "PATH": path})


def queue(verb: str):
    state = STUB / "queue"
    if verb == "create":
        if state.exists():
            fail("ALREADY_EXISTS: it is there")
        plan = pop(STUB / "creates") or "ACTIVE"
        if plan.startswith("error: "):
            fail(plan.removeprefix("error: "))
        state.write_text(plan)
        for i in range(WORKERS):
            (STUB / "homes" / str(i)).mkdir(parents=True)
    elif not state.exists():
        fail("NOT_FOUND: Resource 'queuedResources/e3jax' was not found")
    elif verb == "delete":
        state.unlink()
        os.chdir(STUB)
        kill = "for home in homes/*/.e3jax; do bash $home/worker.sh signal KILL; done; rm -rf homes"
        os.execvp("bash", ["bash", "-c", f"{{ {kill}; }} > /dev/null"])
    elif "failedData" in flag("format"):
        print((STUB / "why").read_text())
    else:
        now, _, later = state.read_text().strip().partition(" ")
        state.write_text(later or now)
        print(now)


def machines(verb: str):
    if not (STUB / "queue").exists():
        fail("NOT_FOUND: Resource 'nodes/e3jax' was not found")
    if verb == "describe":
        gone = (STUB / "queue").read_text().startswith("SUSPEND")
        print(f"{'PREEMPTED' if gone else 'READY'}\t{WORKERS}")
        return
    number = flag("worker")
    broken = STUB / "broken"
    if broken.exists() and number in broken.read_text().split():
        fail("[/usr/bin/ssh] exited with return code [255].")
    if verb == "ssh":
        become(number, flag("command"))
    *sources, to = [a for a in ARGS[4:] if not a.startswith("--")]
    os.execvp("cp", ["cp", "--preserve=mode", *sources, f"{STUB}/homes/{number}/{to.split(':')[1]}"])


def storage(verb: str):
    path = next(a for a in ARGS[2:] if a.startswith("gs://"))
    found = sorted((STUB / "bucket").glob(path.removeprefix("gs://").rstrip("/")))
    if not found:
        fail("One or more URLs matched no objects.")
    if verb == "cat":
        print(found[0].read_text(), end="")
    for entry in found if verb == "ls" else ():
        inside = sorted(entry.iterdir()) if path.endswith("/") else [entry]
        for item in inside:
            print("gs://" + item.relative_to(STUB / "bucket").as_posix() + "/" * item.is_dir())


if __name__ == "__main__":
    with (STUB / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(ARGS) + "\n")
    if ARGS[0] == "storage":
        storage(ARGS[1])
    elif ARGS[2] == "queued-resources":
        queue(ARGS[3])
    else:
        machines(ARGS[3])
