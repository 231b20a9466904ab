"""Kill a run at random moments, start it again each time with the same command, and compare with one left in peace.

    python benchmarks/faults.py --kills=50 --out=/tmp/faults
    python benchmarks/faults.py --kills=20 --out=/tmp/faults-carry --config.grpo.carry_over=2 \
        --config.grpo.old_logp=sampler --config.grpo.group_size=2   # other flags are the run's: responses carried over

The run is configs/smoke.py with a checkpoint at every step. SIGKILL comes in one of four ways, in turn: after
a random time; while a checkpoint is being written; during an evaluation; between two stages. Whenever the run gets to
its end its records are compared, line by line and bit for bit, times apart, and a new one begins until --kills is
reached. Prints a table of kills by kind, the steps that had to be made again, and where the first difference is.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECORDS = ("metrics.jsonl", "eval.jsonl", "budget.jsonl", "samples.jsonl", "drawn.jsonl", "eval_samples.jsonl")
TIMES = {"minutes", "stated", "time"}
EVERY_STEP = ("--config.checkpoint.every=1", "--config.stages.easy.steps=8", "--config.stages.hard.steps=8")


class Command:
    """A command under way, training unless said; what it says on stderr is kept."""

    def __init__(
        self,
        workdir,
        *flags: str,
        module: str = "e3jax.train.curriculum",
        config: str = "configs/smoke.py",
        env: dict | None = None,
        before="",
    ):
        """`before`: Python to run in the process first."""
        start = f"{before}\nimport runpy\nrunpy.run_module({module!r}, run_name='__main__')"
        how = ["-c", start] if before else ["-m", module]
        command = [sys.executable, *how, f"--config={config}", f"--workdir={workdir}", *flags]
        self.workdir, self.lines = workdir, []
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | (env or {}),
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self.reader.start()

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def wait_for(self, happened, timeout_s: float = 300, every_s: float = 0.005) -> bool:
        """Poll until it happened (True) or the process is over (False)."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            if happened():
                return True
            assert time.monotonic() < deadline, f"nothing in {timeout_s} s:\n{self.said[-2000:]}"
            time.sleep(every_s)
        return False

    def kill(self, number: int = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        return self.end()

    def end(self) -> int:
        """Wait for its end -> exit status."""
        self.process.wait()
        self.reader.join()
        return self.process.returncode

    def logged(self, stage: str, steps: int) -> bool:
        """Whether so many lines of the stage are in metrics.jsonl."""
        metrics = self.workdir / "metrics.jsonl"
        return metrics.exists() and metrics.read_text().count(f'"stage": "{stage}"') >= steps


def run_to_end(workdir, *flags: str, **options) -> str:
    """A run that nobody disturbs -> what it said."""
    command = Command(workdir, *flags, **options)
    assert command.end() == 0, command.said[-3000:]
    return command.said


def without_times(value):
    """A JSON value without what differs from run to run."""
    if isinstance(value, dict):
        changing = [k for k in value if k in TIMES or k.startswith(("time/", "memory/"))]
        return {k: without_times(v) for k, v in value.items() if k not in changing}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def contents(workdir: Path, called: str = "") -> dict:
    """{name: content} of a finished directory, for a comparison: all without what tells of times and starts.

    Responses count by their keys, in any order. Checkpoints and TensorBoard's files are not looked into. `called`: what
    the command knew the directory as, if not by its path.
    """
    its_name = (called or str(workdir)).encode()
    found = {}
    for path in sorted(p for p in workdir.rglob("*") if p.is_file()):
        name = path.relative_to(workdir).as_posix()
        if {"checkpoints", "tb"} & {*path.relative_to(workdir).parts} or path.name.startswith("lock.json"):
            continue  # a lock tells of a process, and a killed one leaves it
        content = path.read_bytes().replace(its_name, b"RUN")
        if path.name in ("starts.jsonl", "times.jsonl", "progress.log", "DONE") or path.suffix == ".html":
            found[name] = "there"
        elif "responses/" in name:
            lines = map(json.loads, content.split(b"\n")[:-1])
            of = found.setdefault(path.parent.relative_to(workdir).as_posix(), {})
            of |= {(x["part"], x["problem"], x["sample"]): (x["tokens"], x["done"]) for x in lines}
        elif path.suffix == ".jsonl":
            found[name] = [without_times(json.loads(line)) for line in content.split(b"\n")[:-1]]
        elif path.suffix == ".json":
            found[name] = without_times(json.loads(content))
        else:
            content = re.sub(rb"-p[0-9a-f]{10}", b"", content)  # an SVG's clips are named by chance …
            found[name] = re.sub(rb"[^>\"']*/bases/", b"/bases/", content)  # … and its title is the end of a path
    return found


def differing(got: dict, want: dict) -> list[str]:
    """What differs between the contents of two directories, in words."""
    out = []
    for name in sorted(got.keys() | want.keys()):
        a, b = (x.get(name, "absent") for x in (got, want))
        if a != b and isinstance(a, list) and isinstance(b, list):
            first = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            here, there = a[first : first + 1], b[first : first + 1]
            out.append(f"{name}: {len(a)} lines, not {len(b)}; line {first + 1}: {here}, not {there}")
        elif a != b:
            out.append(f"{name}: {str(a)[:200]}, not {str(b)[:200]}")
    return out


def records(workdir: Path) -> dict[str, list]:
    """All records without what may differ: times."""
    out = {}
    for name in RECORDS:
        text = (workdir / name).read_text() if (workdir / name).exists() else ""  # a run without Eq. 2 has no budgets
        lines = [json.loads(line) for line in text.splitlines()]
        out[name] = [{k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in lines]
    return out


def difference(straight: Path, killed: Path) -> str:
    """The first line that differs, in words; "" when there is none."""
    want, got = records(straight), records(killed)
    for name in RECORDS:
        for i, (a, b) in enumerate(zip(want[name], got[name])):
            if a != b:
                return f"{name} line {i + 1}: {[(k, a.get(k), b.get(k)) for k in a | b if a.get(k) != b.get(k)][:3]}"
        if len(want[name]) != len(got[name]):
            return f"{name}: {len(want[name])} lines, and {len(got[name])} of the killed run"
    return ""


def writing(workdir: Path) -> set[str]:
    """Checkpoints that are being written."""
    return {str(path) for path in (workdir / "checkpoints").glob("*/*.orbax-checkpoint-tmp")}


def made_again(workdir: Path) -> int:
    """Logged RL steps of the newest stage that have no checkpoint yet: a resumed run makes them again."""
    metrics = workdir / "metrics.jsonl"
    lines = [json.loads(x) for x in metrics.read_text().splitlines() if x.endswith("}")] if metrics.exists() else []
    if not lines or lines[-1]["kind"] != "grpo":
        return 0
    stage = workdir / "checkpoints" / lines[-1]["stage"]
    saved = [int(p.name) for p in stage.iterdir() if p.name.isdigit()] if stage.exists() else []
    return lines[-1]["step"] - max(saved, default=0)


def kill_at_random(workdir: Path, kind: str, rng: random.Random, flags, longest_s: float) -> bool:
    """One life of the run; whether it was killed before its end."""
    command = Command(workdir, *flags)
    if kind == "any moment":
        after = time.monotonic() + rng.uniform(0, longest_s / 2)  # most lives have less left than a whole run
        alive = command.wait_for(lambda: time.monotonic() > after)
    elif kind == "checkpoint write":
        seen, number = set(), rng.randrange(1, 30)  # which write of this life

        def in_it():
            seen.update(now := writing(workdir))
            return now and len(seen) >= number

        alive = command.wait_for(in_it)
    else:  # a phase's line appears when it is over: training before an evaluation, pass@k before the next stage
        ended = ": SFT: " if rng.random() < 0.3 else ": GRPO, "
        ended = ended if kind == "evaluation" else ": pass@k, 4 numbers"
        alive = command.wait_for(lambda: any(ended in line and " done in " in line for line in list(command.lines)))
        if alive and kind == "evaluation":
            time.sleep(rng.uniform(0, 1.0))
    if alive and command.process.poll() is None:
        return command.kill() == -signal.SIGKILL
    assert command.end() == 0, command.said[-3000:]
    return False


KINDS = ("any moment", "checkpoint write", "evaluation", "between stages")


def campaign(out: Path, *, kills: int, seed: int, kinds=KINDS, flags=EVERY_STEP, say=print) -> dict:
    """-> kills by kind, runs that came to their end, steps made again; AssertionError at the first difference."""
    rng = random.Random(seed)
    run_to_end(out / "straight", *flags)
    start = time.monotonic()
    run_to_end(out / "again", *flags)  # compiled programs are there now: how long a life is
    longest = time.monotonic() - start
    assert not (found := difference(out / "straight", out / "again")), f"two straight runs: {found}"
    count, again, runs = dict.fromkeys(kinds, 0), [], 0
    while sum(count.values()) < kills:
        workdir = out / f"killed-{runs}"
        finished = False
        while not finished and sum(count.values()) < kills:
            kind = min(kinds, key=count.__getitem__)
            if kill_at_random(workdir, kind, rng, flags, longest):
                count[kind] += 1
                again.append(made_again(workdir))
                say(f"kill {sum(count.values())} of {kills}: {kind}, {again[-1]} logged steps to be made again")
            else:
                finished = True
        run_to_end(workdir, *flags)
        assert not (found := difference(out / "straight", workdir)), f"{workdir}: {found}"
        runs += 1
        say(f"run {runs} ended with the same records")
    return {"kills": count, "runs": runs, "made_again_max": max(again), "made_again_mean": sum(again) / len(again)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--out", type=Path, required=True)
    asked, flags = parser.parse_known_args()
    asked.out.mkdir(parents=True)
    start, flags = time.monotonic(), (*EVERY_STEP, *flags)
    found = campaign(asked.out, kills=asked.kills, seed=asked.seed, kinds=asked.kinds, flags=flags)
    print(f"{json.dumps(found)} in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
