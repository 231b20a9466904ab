"""What a run writes and says: records (records.py), TensorBoard, optional wandb, and one live progress line.

Of several processes only the first writes. The others call the same methods, of which only `read` returns something to
them. In a bucket (gs://) `flush` comes before a checkpoint, so what a kill loses after it is made again from the
checkpoint.

log = RunLog(workdir, config.to_dict(), tensorboard=True, wandb="")
log.metrics("easy", "grpo", step=3, global_step=903, values={"reward/mean": 0.31})
log.rewind("easy", 2)      # a resumed run drops the lines after its checkpoint, and nothing else
with log.phase("stage easy", total=80) as phase:
    phase.advance(1, "reward 0.31")
"""

import datetime
import hashlib
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from e3jax.errors import UserError
from e3jax.lock import hold
from e3jax.printable import printable
from e3jax.readers import read_json
from e3jax.records import Records, read_lines
from e3jax.runtime import end_now, from_main, processes
from e3jax.storage import patiently, read_whole, write_whole

PLAIN_EVERY_S = 15.0  # without a terminal, a progress line this often
CELL_EVERY_S = 0.5  # in a notebook, where the line is overwritten
# How the work is laid out, watched and kept. A resumed run may change these; numbers stay the same up to rounding.
# "sets.NAME.problems", "sets.NAME.samples", "only": an evaluation may count more or less of a set (eval/run.py).
# "models": an evaluation may compare more checkpoints than it began with (eval/run.py checks that none was replaced).
# "preset": makes other sets of the same pass rates (curation/difficulty.py).
# "promote.", "suppress.", "baselines": make other sets of the same perplexities (curation/oxa_sets.py).
LAYOUT = (
    "mesh.", "log.", "checkpoint.", "grader.", "faults.", "preset", "promote.", "suppress.", "baselines",
    "at_once", "keep_responses", "only", "eval.only", "set.problems", "pass_at_k",
    "models", "model.attention", "model.remat", "model.chunk",
    "grpo.rows", "grpo.parity_alarm", "sampler.tensor", "sampler.slots", "sampler.block", "sampler.prefill_rows",
)  # fmt: skip
SIZES = re.compile(r"sets\..*\.(problems|samples)")  # fields that may change too


class RunLog(Records):
    """Writer of metrics.jsonl, samples.jsonl, eval.jsonl, … and tb/ under one directory."""

    def __init__(self, workdir: epath.PathLike, config: dict, *, tensorboard: bool, wandb: str):
        super().__init__(workdir)
        wide = None if sys.stderr.isatty() else 160  # a log file is wide enough for whole names in tables
        self.console = Console(file=sys.stderr, quiet=not self.main, markup=False, width=wide)
        self.writer = self.wandb = self.beside = None
        self.lock = None  # held by process 0
        changed = from_main(lambda: self.enter(config))
        if not (self.workdir / "config.json").exists():
            raise UserError(f"{self.workdir} is there for process 0 only: choose a --workdir that all hosts share")
        if not self.main:
            return
        for path in sorted(self.workdir.glob("*.jsonl")):
            read_lines(path)  # to report a broken line now, not after hours
        self.append("starts.jsonl", {**this_start(), "changed": changed})
        self.flush()
        if changed:
            self.say(f"not as in {self.workdir / 'config.json'}, and used from here on: {'; '.join(changed)}")
        if tensorboard:
            self.writer = self.tensorboard()
        if wandb:
            import wandb as wandb_package

            run_id = hashlib.sha256(str(self.workdir).encode()).hexdigest()[:16]
            self.wandb = wandb_package.init(project=wandb, config=config, id=run_id, resume="allow")

    def enter(self, config: dict) -> list[str]:
        """Take the directory, unless another job has it (e3jax/lock.py), and claim it for the config."""
        self.lock = hold(self.workdir, say=self.say, lost=end_now)
        try:
            return claim(self.workdir, config)
        except BaseException:
            self.lock.release()
            raise

    def tensorboard(self, **options):
        """Return a writer into RUN/tb; for a bucket it writes into a local directory, which every flush copies."""
        from tensorboardX import SummaryWriter

        if self.bucket and self.beside is None:
            self.beside = tempfile.TemporaryDirectory(prefix="e3jax-tb-")
        return SummaryWriter(str(self.beside.name if self.bucket else self.workdir / "tb"), **options)

    def add(self, name: str, text: str) -> None:
        """Add whole lines of any text; UserError when another job has taken the directory meanwhile."""
        if self.main:
            self.lock.check()
        super().add(name, text)

    def flush(self) -> None:
        """Write what a bucket lacks. Call it before every checkpoint, so that none is ahead of its records."""
        if self.lock:
            self.lock.check()
        super().flush()
        if self.writer:
            self.writer.flush()
        if self.beside:
            for file in epath.Path(self.beside.name).iterdir():
                target = self.workdir / "tb" / file.name
                patiently(f"write {target}", lambda file=file, target=target: target.write_bytes(file.read_bytes()))

    def rewind(self, stage: str, step: int) -> None:
        """Drop this stage's metrics, samples and draws after `step`: they are made again, with the same numbers."""
        if not self.main:
            return
        again = [x["global_step"] for x in self.lines("metrics.jsonl") if x["stage"] == stage and x["step"] > step]
        if self.writer and again:  # tells TensorBoard to hide what it has read at these steps
            self.writer.close()
            self.writer = self.tensorboard(purge_step=min(again))
        for name in ("metrics.jsonl", "samples.jsonl", "drawn.jsonl"):
            self.keep(name, lambda line: line["stage"] != stage or line["step"] <= step)

    def metrics(self, stage: str, kind: str, *, step: int, global_step: int, values: dict) -> None:
        """Write one line of metrics.jsonl, and the same names to TensorBoard and wandb at `global_step`."""
        values = {name: float(value) for name, value in values.items()}
        self.append("metrics.jsonl", {"stage": stage, "kind": kind, "step": step, "global_step": global_step, **values})
        if self.writer:
            for name, value in values.items():
                if math.isfinite(value):  # the mean of an empty class is a gap in its curve
                    self.writer.add_scalar(name, value, global_step)
        if self.wandb:
            self.wandb.log({**values, "stage": stage, "global_step": global_step}, step=global_step)

    def say(self, text: str, *, cell=None):
        """Show a line to the user; in a notebook return it, or put it in the place of an earlier one (`cell`)."""
        text = printable(text, lines=False)
        if not self.console.is_jupyter or not self.main:
            self.console.print(text, highlight=False, soft_wrap=True)
            return None
        from IPython.display import display

        if cell is None:
            return display({"text/plain": text}, raw=True, display_id=True)
        cell.update({"text/plain": text}, raw=True)
        return cell

    @contextmanager
    def phase(self, name: str, *, total: int) -> Iterator["Phase"]:
        """Show progress: a live bar on a terminal, a line that changes in a notebook, else a plain line every 15 s."""
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # a narrow terminal cuts the note and nothing else
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(20 if self.console.width > 110 else 8),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False, table_column=rest),
        )
        shown = self.main and self.console.is_terminal
        live = Progress(*columns, console=self.console, disable=not shown, expand=True)
        phase = Phase(name, total, live, self)
        with live:
            yield phase
        self.say(f"{name}: {phase.done} done in {time.monotonic() - phase.start:.0f} s  {phase.note}", cell=phase.cell)

    def write(self, files: dict[str, str]) -> None:
        """Write text files {name in the run directory: text}, by process 0."""
        for name, text in files.items() if self.main else ():
            path = self.workdir / name
            patiently(f"make {path.parent}", lambda path=path: path.parent.mkdir(parents=True, exist_ok=True))
            patiently(f"write {path}", lambda path=path, text=text: write_whole(path, text.encode(errors="replace")))

    def done(self) -> None:
        """Write RUN/DONE: all stages are finished, and there is nothing to start again."""
        if self.main:
            self.flush()
            patiently(f"write {self.workdir / 'DONE'}", lambda: (self.workdir / "DONE").write_text(now() + "\n"))

    def close(self) -> None:
        """Flush records, TensorBoard and wandb; release the directory."""
        self.flush()
        if self.writer:
            self.writer.close()
        if self.wandb:
            self.wandb.finish()
        if self.lock:
            self.lock.release()


class Phase:
    """Progress of one long phase: `advance(n, note)` moves it on and tells how it goes."""

    def __init__(self, name: str, total: int, live: Progress, log: RunLog):
        self.name, self.total, self.live, self.log = printable(name, lines=False), total, live, log
        self.done, self.note, self.cell = 0, "", None
        self.start = self.said = time.monotonic()
        self.task = live.add_task(self.name, total=total, note="")

    def advance(self, n: int, note: str | None = None) -> None:
        """Count `n` more as done; show `note`, which stays until the next one, beside the bar."""
        self.done += n
        self.note = self.note if note is None else printable(note, lines=False)
        self.live.update(self.task, advance=n, note=self.note)
        console, at = self.log.console, time.monotonic()
        if not console.is_terminal and at - self.said > (CELL_EVERY_S if console.is_jupyter else PLAIN_EVERY_S):
            self.said = at
            text = f"{self.name}: {self.done}/{self.total} in {at - self.start:.0f} s  {self.note}"
            self.cell = self.log.say(text, cell=self.cell)


def claim(workdir: epath.Path, config: dict) -> list[str]:
    """Write config.json, or refuse a directory that another config wrote, naming what differs.

    Returns the differences that are allowed: those of LAYOUT and SIZES.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path, text = workdir / "config.json", json.dumps(config, indent=1, sort_keys=True)
    content = read_whole(path)
    if not content:
        write_whole(path, text)
        return []
    damaged = "restore it, or choose another --workdir"
    old, new = flatten(read_json(path, dict, advice=damaged)), flatten(json.loads(text))
    absent = "(absent)"
    differ = {
        key: f"{key}: {old.get(key, absent)!r} there, {new.get(key, absent)!r} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    }
    changed = [text for key, text in differ.items() if not (key.startswith(LAYOUT) or SIZES.fullmatch(key))]
    if changed:
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(changed[:5])}"
            f"{'; …' if len(changed) > 5 else ''}): choose another --workdir, or give the config it was made with"
        )
    return list(differ.values())


def flatten(tree: dict, prefix: str = "") -> dict:
    """Return a tree's leaves by dotted names: {"a": {"b": 1}} becomes {"a.b": 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def this_start() -> dict:
    """Return when and where the command was started: commit of the source ("+dirty" when changed), jax, devices."""
    source = epath.Path(__file__).parent

    def git(*args):
        done = subprocess.run(["git", "-C", str(source), *args], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD") or "unknown"
    dirty = "+dirty" if git("status", "--porcelain") else ""
    kinds = sorted({d.device_kind for d in jax.devices()})
    return {
        "time": now(),
        "commit": commit + dirty,
        "jax": jax.__version__,
        "processes": processes(),
        "devices": len(jax.devices()),
        "kind": ", ".join(kinds),
    }
