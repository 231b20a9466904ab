"""How far two cores are from each other: nanoseconds for a number to go to the other core and back.

    python benchmarks/cores.py

A virtual machine's cores may be as near as one cache at one moment and as far as two chiplets at the next; programs of
many short steps on two threads feel it, others do not (README.md).
"""

import mmap
import os
import subprocess
import sys
import time

ROUNDS, BATCHES = 128 * 16, 10  # the byte is back at 0 after a batch


def distance() -> float:
    """Of the fastest batch of rounds, in a process of its own; NaN with one core."""
    return float(subprocess.run([sys.executable, __file__], stdout=subprocess.PIPE, check=True, text=True).stdout)


def main() -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        return print("nan")
    ball = mmap.mmap(-1, 1)  # both processes count it up in turn
    child = os.fork() == 0
    os.sched_setaffinity(0, {cores[child]})
    seconds = []
    for _ in range(BATCHES):
        start = time.perf_counter()
        for i in range(ROUNDS):
            mine = (2 * i + child) % 256
            while ball[0] != mine:
                pass
            ball[0] = (mine + 1) % 256
        seconds.append(time.perf_counter() - start)
    if child:
        os._exit(0)
    os.wait()
    print(f"{min(seconds) / ROUNDS * 1e9:.0f}")


if __name__ == "__main__":
    main()
