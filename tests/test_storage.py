"""Writes are whole or not there, even on a disk that fills up."""

import os
import subprocess
import sys

import pytest

from e3jax import storage
from e3jax.errors import UserError
from e3jax.storage import append, patiently, place


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 1 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root and mount: a small tmpfs to fill up")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_line_that_does_not_fit_leaves_no_half(small_disk):
    """Half a line swallows the next one, which is then lost too."""
    path = small_disk / "metrics.jsonl"
    append(path, "first\n")
    with pytest.raises(OSError, match="No space left"):
        append(path, "x" * 2_000_000)
    assert path.read_text() == "first\n"
    append(path, "second\n")
    assert path.read_text() == "first\nsecond\n"


def test_tries_and_then_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(storage, "WAITS_S", (0, 0))
    failures = [OSError("full"), ValueError("ABORTED: bucket")]

    def write():
        if failures:
            raise failures.pop()
        return "written"

    assert patiently("write it", write) == "written"
    assert capsys.readouterr().err.count("cannot write it: ") == 2
    with pytest.raises(UserError, match=r"cannot write it: full \(3 tries in 0 s\)\. Make room"):
        patiently("write it", lambda: (_ for _ in ()).throw(OSError("full")), advice="Make room")
    failures += [UserError("not a thing that waiting mends")]
    with pytest.raises(UserError, match="not a thing"):
        patiently("write it", write)


def test_a_bucket_stays_a_bucket():
    """`epath.Path("gs://b/run").absolute()` is "/here/gs:/b/run", a local directory that nobody looks into."""
    code = (
        "from e3jax.storage import place\nimport fsspec\n"
        "print(place('gs://b/run'), fsspec.config.conf['gcs']['use_listings_cache'])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["gs://b/run", "False"]
    assert os.fspath(place("runs/x")) == os.path.abspath("runs/x")
