"""Kill a command at any of its writes without ending this process, and give it again.

    dead = Kills(monkeypatch)
    with dead.at(3):                 # the third write from here on is left half-done, and nothing is written after it
        main(config, workdir)        # raises Killed, which no `except Exception` catches; no `finally` can write more

Counted are appends, files that are written, replaced or removed, through epath's local disk and gs:// (an object is
there whole or not at all). Checkpoints are orbax's own: tests/test_train_resume.py and tests/test_gcs.py kill those.
"""

from contextlib import contextmanager

from etils import epath
from etils.epath import backend

from e3jax import records, storage
from e3jax.eval import responses

NEVER = 10**9


class Killed(BaseException):
    """What a SIGKILL looks like from inside."""


class Kills:
    """The writes of this process, one of which may be its last."""

    def __init__(self, monkeypatch):
        self.left, self.count = NEVER, 0
        append = storage.append

        def torn(path, text):
            return self.write(lambda: append(path, text), lambda: append(path, text[: len(text) // 2]))

        monkeypatch.setattr(storage, "append", torn)
        for module in (records, responses):
            monkeypatch.setattr(module, "append", torn)
        for of, is_local in ((backend.os_backend, True), (backend.fsspec_backend, False)):
            monkeypatch.setattr(of, "open", self.opening(of.open, is_local))
            monkeypatch.setattr(of, "rmtree", self.removing(of))
            for name in ("replace", "rename", "remove"):
                monkeypatch.setattr(of, name, self.counted(getattr(of, name)))

    def write(self, act, half=lambda: None):
        """act(), or where the process dies here half of it."""
        if self.left <= 0:
            raise Killed
        self.left, self.count = self.left - 1, self.count + 1
        if self.left == 0:
            half()
            raise Killed
        return act()

    def counted(self, act):
        return lambda *args, **kwargs: self.write(lambda: act(*args, **kwargs))

    def opening(self, real, is_local: bool):
        def opened(path, mode):
            if "r" in mode:
                return real(path, mode)
            if not is_local:
                return self.write(lambda: real(path, mode))  # there once it is closed: this counts as the moment
            if self.left <= 0:
                raise Killed
            return Torn(real(path, mode), self)

        return opened

    def removing(self, of):
        """A directory is removed file by file."""
        real = of.rmtree

        def half(path):
            files = [f for f in epath.Path(path).iterdir() if not f.is_dir()]
            if files:
                type(of).remove(of, str(files[0]))

        return lambda path: self.write(lambda: real(path), lambda: half(path))

    @contextmanager
    def at(self, number: int):
        """Die at this write."""
        self.left, self.count = number, 0
        try:
            yield
        finally:
            self.left = NEVER


class Torn:
    """A local file whose writes are counted."""

    def __init__(self, file, kills: Kills):
        self.file, self.kills = file, kills

    def write(self, data):
        return self.kills.write(lambda: self.file.write(data), lambda: self.file.write(data[: len(data) // 2]))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)
