"""A run directory's records: append-only JSON lines, TensorBoard, optional wandb, and one live progress line.

Of several processes the first writes; the others call the same methods, and only `read` gives them something.

log = RunLog(workdir, config.to_dict(), tensorboard=True, wandb="")
log.metrics("easy", "grpo", step=3, global_step=903, values={"reward/mean": 0.31})
log.rewind("easy", 2)      # a resumed run forgets what came after its checkpoint, and nothing else
with log.phase("stage easy", total=80) as phase:
    phase.advance(1, "reward 0.31")
"""

import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from e3jax.errors import UserError
from e3jax.runtime import from_main, is_main

RECORDS = ("metrics.jsonl", "samples.jsonl", "eval.jsonl", "eval_samples.jsonl", "budget.jsonl", "shapes.jsonl")
PLAIN_EVERY_S = 15.0  # without a terminal, a progress line this often


class RunLog:
    """Writer of metrics.jsonl, samples.jsonl, eval.jsonl, budget.jsonl and tb/ under one directory."""

    def __init__(self, workdir: epath.PathLike, config: dict, *, tensorboard: bool, wandb: str):
        self.workdir = epath.Path(workdir)
        self.main = is_main()
        self.console = Console(file=sys.stderr, quiet=not self.main)
        self.writer = self.wandb = None
        from_main(lambda: claim(self.workdir, config))
        if not (self.workdir / "config.json").exists():
            raise UserError(f"{self.workdir} is there for process 0 only: choose a --workdir that all hosts share")
        for name in RECORDS:
            self.keep(name, lambda line: True)  # a line that a kill cut short would swallow the next one
        if not self.main:
            return
        if tensorboard:
            from tensorboardX import SummaryWriter

            self.writer = SummaryWriter(str(self.workdir / "tb"))
        if wandb:
            import wandb as wandb_package

            run_id = hashlib.sha256(str(self.workdir.absolute()).encode()).hexdigest()[:16]
            self.wandb = wandb_package.init(project=wandb, config=config, id=run_id, resume="allow")

    def append(self, name: str, line: dict) -> None:
        """Add one JSON line to a file of the run directory; numbers that are not finite become null."""
        if self.main:
            with (self.workdir / name).open("a") as file:
                file.write(json.dumps(finite(line)) + "\n")

    def read(self, name: str) -> list[dict]:
        """Lines of a file as process 0 has them, on every process: all must ask."""
        return from_main(lambda: self.lines(name))

    def lines(self, name: str) -> list[dict]:
        """Lines of a file, [] when there is none; a last line that a kill cut short is dropped."""
        path = self.workdir / name
        lines = path.read_text().splitlines() if path.exists() else []
        parsed = []
        for i, text in enumerate(lines):
            try:
                parsed.append(json.loads(text))
            except json.JSONDecodeError as error:
                if i + 1 < len(lines):
                    raise ValueError(f"{path} line {i + 1} is not JSON ({error}): mend or remove it") from error
        return parsed

    def keep(self, name: str, wanted: Callable[[dict], bool]) -> None:
        """Drop the lines of a file that are not wanted (and a cut last line), atomically."""
        if not self.main:
            return
        path = self.workdir / name
        kept = "".join(json.dumps(line) + "\n" for line in self.lines(name) if wanted(line))
        if path.exists() and kept != path.read_text():
            new = self.workdir / f"{name}.new"
            new.write_text(kept)
            new.replace(path)

    def rewind(self, stage: str, step: int) -> None:
        """Forget this stage's metrics and samples after `step`: they are made again, to the same numbers."""
        if not self.main:
            return
        again = [x["global_step"] for x in self.lines("metrics.jsonl") if x["stage"] == stage and x["step"] > step]
        if self.writer and again:  # TensorBoard hides what it read at these steps before
            self.writer.close()
            self.writer = type(self.writer)(str(self.workdir / "tb"), purge_step=min(again))
        for name in ("metrics.jsonl", "samples.jsonl"):
            self.keep(name, lambda line: line["stage"] != stage or line["step"] <= step)

    def metrics(self, stage: str, kind: str, *, step: int, global_step: int, values: dict) -> None:
        """One line of metrics.jsonl, and the same names to TensorBoard and wandb at `global_step`."""
        values = {name: float(value) for name, value in values.items()}
        self.append(
            "metrics.jsonl",
            {"stage": stage, "kind": kind, "step": step, "global_step": global_step, **values},
        )
        if self.writer:
            for name, value in values.items():
                if math.isfinite(value):  # the mean of an empty class is a gap in its curve
                    self.writer.add_scalar(name, value, global_step)
        if self.wandb:
            self.wandb.log({**values, "stage": stage, "global_step": global_step}, step=global_step)

    def say(self, text: str) -> None:
        """A line for the person watching."""
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def phase(self, name: str, *, total: int) -> Iterator["Phase"]:
        """One live line with a bar on a terminal; a plain line every 15 s where there is none."""
        columns = (
            TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        live = Progress(*columns, console=self.console, disable=not (self.main and self.console.is_terminal))
        phase = Phase(name, total, live, self)
        with live:
            yield phase
        self.say(f"{name}: {phase.done} done in {time.monotonic() - phase.start:.0f} s  {phase.note}")

    def close(self) -> None:
        """Flush TensorBoard and wandb."""
        if self.writer:
            self.writer.close()
        if self.wandb:
            self.wandb.finish()


class Phase:
    """Progress of one long phase: `advance(n, note)` moves it on and tells how it goes."""

    def __init__(self, name: str, total: int, live: Progress, log: RunLog):
        self.name, self.total, self.live, self.log = name, total, live, log
        self.done, self.note = 0, ""
        self.start = self.said = time.monotonic()
        self.task = live.add_task(name, total=total, note="")

    def advance(self, n: int, note: str | None = None) -> None:
        """`n` more done; `note` (kept until the next one) is shown beside the bar."""
        self.done += n
        self.note = self.note if note is None else note
        self.live.update(self.task, advance=n, note=self.note)
        if not self.log.console.is_terminal and time.monotonic() - self.said > PLAIN_EVERY_S:
            self.said = time.monotonic()
            self.log.say(f"{self.name}: {self.done}/{self.total}  {self.note}")


def claim(workdir: epath.Path, config: dict) -> None:
    """Write config.json and code.json, or refuse a directory that another config wrote, naming what differs."""
    workdir.mkdir(parents=True, exist_ok=True)
    path, text = workdir / "config.json", json.dumps(config, indent=1, sort_keys=True)
    if not path.exists():
        (workdir / "code.json").write_text(json.dumps(code_version(), indent=1))
        path.write_text(text)
        return
    old, new = flatten(json.loads(path.read_text())), flatten(json.loads(text))
    absent = "(absent)"
    changed = [
        f"{key}: {old.get(key, absent)!r} there, {new.get(key, absent)!r} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    ]
    if changed:
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(changed[:5])}"
            f"{'; …' if len(changed) > 5 else ''}): choose another --workdir, or give the config it was made with"
        )


def flatten(tree: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def finite(value):
    """NaN and infinities, which JSON does not know, as None; through lists and dicts."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def code_version() -> dict[str, str]:
    """Commit of the source tree (with "+dirty" when it was changed), jax's version, the devices."""
    source = epath.Path(__file__).parent

    def git(*args):
        done = subprocess.run(["git", "-C", str(source), *args], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD") or "unknown"
    dirty = "+dirty" if git("status", "--porcelain") else ""
    return {"commit": commit + dirty, "jax": jax.__version__, "devices": str(jax.devices())}
