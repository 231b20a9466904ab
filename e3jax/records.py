"""Records of a directory: JSON lines that are only added to, on a disk or in a bucket (gs://). Process 0 writes them.

A record may have any name. At its first use it is read, and a last line that a kill cut short is dropped: the next
line would otherwise be glued to it. In a bucket there is no append: records are written whole, every half minute and
at `flush`, in the order of their last lines, so that a line which says that work is done comes after the work's lines.

records = Records("runs/x")
records.append("rows.jsonl", {"index": 3})
records.keep("rows.jsonl", lambda line: line["index"] < 3)
records.flush()                     # before anything is deleted, or saved, that stands on these lines
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
    """One line of a record. A field that it lacks is a UserError, which names file and line."""

    def __init__(self, value: dict, path: epath.Path, number: int):
        super().__init__(value)
        self.path, self.number = path, number

    def __missing__(self, key):
        raise UserError(f"{self.path} line {self.number} has no {key!r}: mend or remove the line")


class Records:
    """All records of one directory; every process has one of these, and those that are not the first write nothing."""

    def __init__(self, workdir: epath.PathLike):
        self.workdir, self.bucket, self.main = place(workdir), is_bucket(workdir), is_main()
        self.used: dict[str, bytearray] = {}  # records that were used; what a bucket's hold, a disk's stay there
        self.late: dict[str, None] = {}  # what a bucket has not got yet, in the order of the last changes
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
        """Note that a bucket lacks the newest lines of a record."""
        self.late.pop(name, None)
        self.late[name] = None

    def flush(self) -> None:
        """Write what a bucket has not got yet."""
        for name in list(self.late):
            path = self.workdir / name
            patiently(f"write {path}", lambda path=path, name=name: path.write_bytes(self.used[name]), advice=SPACE)
            del self.late[name]
        self.flushed = time.monotonic()

    def read(self, name: str) -> list[Line]:
        """Lines of a record as process 0 has them, on every process: all must ask."""
        return from_main(lambda: self.lines(name))

    def lines(self, name: str, shape: Any = dict) -> list[Line]:
        """Lines of a record, [] when there is none; UserError for one that has not the shape (readers.py)."""
        return parse(self.content(name), self.workdir / name, shape)

    def content(self, name: str) -> bytes | bytearray:
        """What a record holds, whole lines only. Its first use mends it."""
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
        """Put other lines in the place of a record's, all at once."""
        if self.bucket:
            self.used[name] = bytearray(content)
            self.change(name)
        else:
            path = self.workdir / name
            patiently(f"write {path}", lambda: write_whole(path, content), advice=SPACE)

    def keep(self, name: str, wanted: Callable[[Line], bool]) -> None:
        """Drop the lines that are not wanted."""
        if not self.main:
            return
        lines = self.lines(name)
        kept = [line for line in lines if wanted(line)]
        if len(kept) < len(lines):
            self.replace(name, "".join(json.dumps(line) + "\n" for line in kept).encode())


def read_lines(path: epath.Path, shape: Any = dict) -> list[Line]:
    """Lines of a record that somebody else writes, or has written; [] when there is none, else as `Records.lines`."""
    return parse(without_cut_line(read_whole(path)), path, shape)


def without_cut_line(content: bytes) -> bytes:
    """Whole lines only. A last one that lacks its newline stays if it is JSON, and gets the newline; else it goes."""
    last = content.rpartition(b"\n")[2]
    if not last:
        return content
    try:
        parse_json(bytes(last))
        return content + b"\n"
    except ValueError:
        return content[: -len(last)]


def parse(content: bytes, path: epath.Path, shape: Any) -> list[Line]:
    """The lines of a file of JSON objects; UserError, with file and line, for one that is something else."""
    lines = []
    for number, value, wrong in json_lines(bytes(content)):
        wrong = wrong or fault(value, dict) or fault(value, shape)
        if wrong:
            raise UserError(f"{path} line {number}: {wrong}: mend or remove the line")
        lines.append(Line(value, path, number))
    return lines


def finite(value):
    """NaN and infinities, which JSON does not know, as None; through lists and dicts."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
