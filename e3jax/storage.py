"""Writes that wait for a full disk or a bucket that is away, then give up in one sentence; local paths and gs://.

patiently(f"write {path}", lambda: path.write_text(text))   # tries again, with a minute of waiting
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
    """A local path made absolute, a bucket's as it is (`epath` would make "/here/gs:/…" of it).

    For a bucket, gcsfs is told not to keep listings: it would go on showing what it saw first.
    """
    if not is_bucket(path):
        return epath.Path(path).absolute()
    import fsspec  # under epath where there is a bucket; it comes with gcsfs

    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(path)


def is_bucket(path: epath.PathLike) -> bool:
    """gs://…: objects are written whole, there is no append and no rename of directories at once."""
    return "://" in os.fspath(path)


def patiently(what: str, act: Callable[[], Any], *, advice: str = "") -> Any:
    """act(); where it fails, again after 1, 2, 4, … s, saying so; after a minute of waiting a UserError with `advice`.

    On a bucket every try itself takes up to a minute: gcsfs and tensorstore try again too.

    Any exception counts: what a file system, gcsfs or tensorstore raise has no common base.
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
    """Add to a local file; a write that fails half-way (a full disk) is cut off again before it raises."""
    left = text.encode()
    with open(path, "ab", buffering=0) as file:  # a buffer would be written again when the file is closed
        before = file.tell()
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(before)
            raise


def write_whole(path: epath.Path, content: str | bytes) -> None:
    """Put a file in the place of another at once: a kill leaves the old one or the new one.

    An object of a bucket is written whole anyway.
    """
    new = path if is_bucket(path) else path.with_name(f"{path.name}.new")
    new.write_bytes(content.encode() if isinstance(content, str) else bytes(content))
    if new != path:
        new.replace(path)


def read_whole(path: epath.Path) -> bytes:
    """What a file holds, b"" when there is none; a disk or bucket that is away is waited for, not taken for empty."""

    def read() -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""

    return patiently(f"read {path}", read)
