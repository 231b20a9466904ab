"""Kill a command at any of its writes without ending this process, and give it again.

    kills = Kills(monkeypatch)
    with kills.life():               # ends at the first kind of write that no life has ended at: it is left half-done
        main(config, workdir)        # raises Killed, which no `except Exception` catches; no `finally` writes more

A kind is what is done (append, write, replace, rmtree, …) to a file of which name, numbers apart. A record is cut in
its first line of a life and, in another one, in its third: then there are lines before the cut. Counted are epath's
local disk and gs://, where an object is there whole or not at all. Checkpoints are orbax's own: test_train_resume.py
and test_gcs.py kill those.
"""

import re
from collections import Counter
from contextlib import contextmanager

from etils import epath
from etils.epath import backend

from e3jax import records, storage
from e3jax.rollout import responses

CUTS = (1, 3)  # which append of a life


class Killed(BaseException):
    """Stands for a SIGKILL inside the process."""


class Kills:
    """Counts the writes of this process, one of which may be its last."""

    def __init__(self, monkeypatch):
        self.ended_at, self.met, self.mortal, self.dead = set(), Counter(), False, False
        append = storage.append

        def torn(path, text):
            half = lambda: append(path, text[: len(text) // 2])  # noqa: E731
            return self.write("append", path, lambda: append(path, text), half)

        for module in (storage, records, responses):
            monkeypatch.setattr(module, "append", torn)
        for of, is_local in ((backend.os_backend, True), (backend.fsspec_backend, False)):
            monkeypatch.setattr(of, "open", self.opening(of.open, is_local))
            monkeypatch.setattr(of, "rmtree", self.removing(of))
            for name in ("replace", "rename", "remove"):
                monkeypatch.setattr(of, name, self.counted(name, getattr(of, name)))

    @contextmanager
    def life(self, *, mortal: bool = True):
        """Run one start of a command; one that is not mortal runs to its end."""
        self.met, self.mortal, self.dead = Counter(), mortal, False
        try:
            yield
        finally:
            self.mortal = self.dead = False

    def write(self, what: str, path, act, half=lambda: None):
        """Call act(), or half of it where the process dies here; do nothing once it is dead."""
        if self.dead:
            raise Killed
        if str(path).endswith(("-cache", "-atime")):  # a compiled program of JAX's, not the command's
            return act()
        kind = what, re.sub(r"\d+", "0", str(path).rpartition("/")[2])
        self.met[kind] += 1
        here = *kind, self.met[kind]
        deadly = self.met[kind] in (CUTS if what == "append" else (1,)) and here not in self.ended_at
        if self.mortal and deadly:
            self.ended_at.add(here)
            self.dead = True
            half()
            raise Killed
        return act()

    def counted(self, what: str, act):
        return lambda path, *args, **kwargs: self.write(what, path, lambda: act(path, *args, **kwargs))

    def opening(self, real, is_local: bool):
        def opened(path, mode):
            if "r" in mode:
                return real(path, mode)
            if not is_local:  # there once it is closed: this counts as the moment
                return self.write("write", path, lambda: real(path, mode))
            if self.dead:
                raise Killed
            return Torn(real(path, mode), path, self)

        return opened

    def removing(self, of):
        """Remove a directory file by file."""
        real, remove = of.rmtree, of.remove

        def half(path):
            files = [f for f in epath.Path(path).iterdir() if not f.is_dir()]
            if files:
                remove(str(files[0]))

        return lambda path: self.write("rmtree", path, lambda: real(path), lambda: half(path))


class Torn:
    """A local file whose writes are counted."""

    def __init__(self, file, path, kills: Kills):
        self.file, self.path, self.kills = file, path, kills

    def write(self, data):
        half = lambda: self.file.write(data[: len(data) // 2])  # noqa: E731
        return self.kills.write("write", self.path, lambda: self.file.write(data), half)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)
