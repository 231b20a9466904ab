"""The README's tree is the disk's; nothing waits to be filled in. Commands, links, metrics: tests/test_docs.py."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_tree_matches_the_disk():
    """The tree has every folder of the package and of configs/, and nothing else."""
    block = README.split("## The tree")[1].split("```")[1]
    named = {line.split()[0].rstrip("/") for line in block.splitlines() if line}
    packages = {p.parent.relative_to(ROOT).as_posix() for p in (ROOT / "e3jax").rglob("__init__.py")} - {"e3jax"}
    folders = packages | {"configs", "configs/experiments", "launch", "notebooks"}
    assert named == folders, (named - folders, folders - named)


def test_no_placeholder_is_left():
    """Guards against a number that was still to be filled in."""
    for name in ("README.md", "LOG.md"):
        assert "@@" not in (ROOT / name).read_text(), name
