"""The README tells the truth: its tree is the disk's, its commands parse, its links exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

from configs import e3_math, quickstart
from e3jax.log import flatten

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


def commands():
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield from (part.strip() for part in line.split("#")[0].split("&&") if part.strip())


def test_commands_parse():
    """Every `python -m …` has a module that answers --help, configs exist, every other command is a known one."""
    modules = set()
    for command in commands():
        words = command.split()
        if words[0] == "python" and words[1] == "-m":
            modules.add(words[2])
            for word in words:
                if word.startswith("--config="):
                    assert (ROOT / word.removeprefix("--config=").partition(":")[0]).exists(), command
        elif words[0] == "python":
            assert (ROOT / words[1]).exists(), command
        elif words[0].startswith("launch/"):
            assert os.access(ROOT / words[0], os.X_OK), command
        else:
            assert words[0] in ("pip", "pytest", "git", "cd", "cp", "tensorboard"), command
    assert modules
    started = {
        m: subprocess.Popen(
            [sys.executable, "-m", m, "--help"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for m in modules
    }
    for module, process in started.items():
        out, errors = process.communicate()
        assert b"Traceback" not in errors and out, (module, errors)


def test_overrides_name_real_fields():
    """A renamed field that the README still advertises, in a command or in a sentence."""
    fields = flatten(quickstart.get_config().to_dict()) | flatten(e3_math.get_config().to_dict())
    named = re.findall(r"--config\.([\w.]+)=", README)
    assert named and set(named) <= set(fields), set(named) - set(fields)


def test_no_placeholder_is_left():
    """A number still to be filled in."""
    for name in ("README.md", "LOG.md"):
        assert "@@" not in (ROOT / name).read_text(), name


def test_links_exist():
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
    for code in re.findall(r"`(e3jax/[\w/]+\.py|configs/\w+\.py|tests/\w+\.py)", README):
        assert (ROOT / code).exists(), code
