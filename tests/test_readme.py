"""The README's tree is the disk's; nothing waits to be filled in. Commands, links, metrics: tests/test_docs.py."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_tree_matches_the_disk():
    """Every file of the package and of configs/ is in the tree, and nothing else."""
    block = README.split("## The tree")[1].split("```")[1]
    named, folder = set(), ""
    for line in block.splitlines():
        words = line.split("  ")[0].rstrip() if not line.startswith(" ") else line.strip().split()[0]
        if not words:
            continue
        first = line.strip().split()[0]
        if first.endswith("/"):
            folder = first
        elif first.endswith(".py"):
            named.add(folder + first if line.startswith(" ") else first)
    disk = {
        p.relative_to(ROOT).as_posix()
        for top in ("e3jax", "configs")
        for p in (ROOT / top).rglob("*.py")
        if p.name != "__init__.py"
    }
    assert named == disk, (named - disk, disk - named)


def test_no_placeholder_is_left():
    """A number still to be filled in."""
    for name in ("README.md", "LOG.md"):
        assert "@@" not in (ROOT / name).read_text(), name
