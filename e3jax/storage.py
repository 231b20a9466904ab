"""Writes, to local paths and gs://, that wait for a full disk or an unreachable bucket, then give up in one sentence.

patiently(f"write {path}", lambda: path.write_text(text))   # tries again for a minute
append(path, '{"step": 1}\n')                               # whole or not at all
write_whole(path, "a page")                                 # the old or the new content, never half of it
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from etils import epath

from e3jax.errors import UserError, first_line
from e3jax.printable import printable

WAITS_S = (1, 2, 4, 8, 16, 30)  # between tries
SPACE = "Nothing that was written before is lost: make room, then give the same command again"


def place(path: epath.PathLike) -> epath.Path:
    """Return a local path made absolute, and a bucket's as it is (`epath` would turn it into "/here/gs:/…").

    For a bucket, gcsfs is told not to keep listings, because it would go on showing what it saw first.
    """
    if not is_bucket(path):
        return epath.Path(path).absolute()
    import fsspec  # epath uses it for buckets; it comes with gcsfs

    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(path)


def is_bucket(path: epath.PathLike) -> bool:
    """Return whether a path is gs://…: there objects are written whole, without append or rename of directories."""
    return "://" in os.fspath(path)


def patiently(what: str, act: Callable[[], Any], *, advice: str = "") -> Any:
    """Return act(); where it fails, say so and try again for a minute, then raise a UserError with `advice`.

    It waits 1, 2, 4, … s between tries. On a bucket a try takes up to a minute, because gcsfs and tensorstore try again
    too. Any exception counts as a failure: what a file system, gcsfs and tensorstore raise has no common base.
    """
    start = time.monotonic()
    for wait in (*WAITS_S, None):
        try:
            return act()
        except UserError:
            raise
        except Exception as error:
            if wait is None:
                tries = f"{len(WAITS_S) + 1} tries in {time.monotonic() - start:.0f} s"
                raise UserError(f"cannot {what}: {first_line(error)} ({tries}). {advice}".rstrip()) from error
            text = f"cannot {what}: {first_line(error)}; trying again in {wait} s"
            print(printable(text, lines=False), file=sys.stderr, flush=True)
            time.sleep(wait)


def append(path: epath.Path, text: str) -> None:
    """Append to a local file; when a write fails half-way (a full disk), cut off what it wrote, then raise."""
    left = text.encode()
    with open(path, "ab", buffering=0) as file:  # unbuffered: closing the file would write a buffer again
        before = file.tell()
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(before)
            raise


def write_whole(path: epath.Path, content: str | bytes) -> None:
    """Replace a file's content at once, so that a kill leaves the old or the new one; buckets always write this way."""
    new = path if is_bucket(path) else path.with_name(f"{path.name}.new")
    new.write_bytes(content.encode() if isinstance(content, str) else bytes(content))
    if new != path:
        new.replace(path)


def read_whole(path: epath.Path) -> bytes:
    """Return what a file holds, b"" when there is none; wait for a disk or bucket that is out of reach."""

    def read() -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""

    return patiently(f"read {path}", read)
