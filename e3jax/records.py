"""Records of a directory: JSON lines that are only appended, on a disk or in a bucket (gs://), by process 0.

A record may have any name. At its first use it is read, and a last line that a kill cut short is dropped, because the
next line would be glued to it. A bucket cannot append, so there records are written whole, every half minute and at
`flush`, in the order of their last lines: a line which says that work is done comes after the work's lines.

records = Records("runs/x")
records.append("rows.jsonl", {"index": 3})
records.keep("rows.jsonl", lambda line: line["index"] < 3)
records.flush()                     # before deleting or saving anything that relies on these lines
records.read("rows.jsonl")          # on every process
"""

import json
import math
import time
from collections.abc import Callable
from typing import Any

from etils import epath

from e3jax.errors import UserError
from e3jax.readers import fault, json_lines, parse_json
from e3jax.runtime import from_main, is_main
from e3jax.storage import SPACE, append, is_bucket, patiently, place, read_whole, write_whole

FLUSH_EVERY_S = 30.0  # in a bucket


class Line(dict):
    """One line of a record. Reading a field that it lacks raises a UserError, which names file and line."""

    def __init__(self, value: dict, path: epath.Path, number: int):
        super().__init__(value)
        self.path, self.number = path, number

    def __missing__(self, key):
        raise UserError(f"{self.path} line {self.number} has no {key!r}: mend or remove the line")


class Records:
    """All records of one directory. Every process has one of these, but only the first process writes."""

    def __init__(self, workdir: epath.PathLike):
        self.workdir, self.bucket, self.main = place(workdir), is_bucket(workdir), is_main()
        self.used: dict[str, bytearray] = {}  # records that were used, with their content if they are in a bucket
        self.late: dict[str, None] = {}  # records whose newest lines a bucket lacks, in the order of their last changes
        self.flushed = time.monotonic()

    def append(self, name: str, line: dict) -> None:
        """Add one JSON line; numbers that are not finite become null."""
        self.add(name, json.dumps(finite(line)) + "\n")

    def add(self, name: str, text: str) -> None:
        """Add whole lines of any text."""
        if not self.main:
            return
        if name not in self.used:
            self.content(name)
        if self.bucket:
            self.used[name] += text.encode()
            self.change(name)
            if time.monotonic() - self.flushed > FLUSH_EVERY_S:
                self.flush()
        else:
            path = self.workdir / name
            patiently(f"write {path}", lambda: append(path, text), advice=SPACE)

    def change(self, name: str) -> None:
        """Note that the bucket lacks the newest lines of a record."""
        self.late.pop(name, None)
        self.late[name] = None

    def flush(self) -> None:
        """Write the records whose newest lines the bucket lacks."""
        for name in list(self.late):
            path = self.workdir / name
            patiently(f"write {path}", lambda path=path, name=name: path.write_bytes(self.used[name]), advice=SPACE)
            del self.late[name]
        self.flushed = time.monotonic()

    def read(self, name: str) -> list[Line]:
        """Return the lines of a record as process 0 has them, on every process; all processes must call this."""
        return from_main(lambda: self.lines(name))

    def lines(self, name: str, shape: Any = dict) -> list[Line]:
        """Return the lines of a record, [] when there is none; UserError for a line of another shape (readers.py)."""
        return parse(self.content(name), self.workdir / name, shape)

    def content(self, name: str) -> bytes | bytearray:
        """Return what a record holds, whole lines only; the first use repairs it."""
        if self.bucket and name in self.used:
            return self.used[name]
        path = self.workdir / name
        content = read_whole(path)
        if name in self.used:
            return content
        whole = without_cut_line(content)
        self.used[name] = bytearray(whole if self.bucket else b"")
        if whole != content and self.main:
            self.replace(name, whole)
        return whole

    def replace(self, name: str, content: bytes) -> None:
        """Replace a record's lines, all at once."""
        if self.bucket:
            self.used[name] = bytearray(content)
            self.change(name)
        else:
            path = self.workdir / name
            patiently(f"write {path}", lambda: write_whole(path, content), advice=SPACE)

    def keep(self, name: str, wanted: Callable[[Line], bool]) -> None:
        """Keep only the lines for which `wanted` is true."""
        if not self.main:
            return
        lines = self.lines(name)
        kept = [line for line in lines if wanted(line)]
        if len(kept) < len(lines):
            self.replace(name, "".join(json.dumps(line) + "\n" for line in kept).encode())


def read_lines(path: epath.Path, shape: Any = dict) -> list[Line]:
    """Return the lines of a record that somebody else writes: like `Records.lines`, but without repairing the file."""
    return parse(without_cut_line(read_whole(path)), path, shape)


def without_cut_line(content: bytes) -> bytes:
    """Return whole lines only: a last line without a newline gets one if it is JSON, and is dropped otherwise."""
    last = content.rpartition(b"\n")[2]
    if not last:
        return content
    try:
        parse_json(bytes(last))
        return content + b"\n"
    except ValueError:
        return content[: -len(last)]


def parse(content: bytes, path: epath.Path, shape: Any) -> list[Line]:
    """Return the lines of a file of JSON objects; UserError, with file and line, for a line that is something else."""
    lines = []
    for number, value, wrong in json_lines(bytes(content)):
        wrong = wrong or fault(value, dict) or fault(value, shape)
        if wrong:
            raise UserError(f"{path} line {number}: {wrong}: mend or remove the line")
        lines.append(Line(value, path, number))
    return lines


def finite(value):
    """Replace NaN and infinities, which JSON does not know, by None, inside lists and dicts too."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
