"""Measure how the code is to live in, of this checkout or another commit's: the table of LOG.md's house entry.

    python benchmarks/house.py                    # this checkout
    python benchmarks/house.py 4aa5fff HEAD       # two commits side by side, each read from git

Counts names and lines with `ast` and `tokenize`; imports nothing of what it measures.
"""

import ast
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from pathlib import Path

MOST_PARAMETERS, MOST_LINES, MOST_LINES_OF_A_LOOP = 8, 60, 120
RIDDLES = ("asked", "own", "found")  # participles as names: they say nothing of what they hold
TASK_FIELDS = ("form", "task")  # comparing one of these with a string is knowing a task by its name


def functions(tree: ast.AST):
    """Yield every function definition of a module, methods and nested ones too."""
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def parameters(function: ast.FunctionDef) -> int:
    """Count a function's parameters without `self` and `cls`; *args and **kwargs are one each."""
    a = function.args
    names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return len([n for n in names if n not in ("self", "cls")]) + bool(a.vararg) + bool(a.kwarg)


def lines(function: ast.FunctionDef) -> int:
    """Count a function's lines: signature and body, without decorators, docstring and blank lines."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    documented = function.body[0].end_lineno - function.body[0].lineno + 1 if ast.get_docstring(function) else 0
    return (body[-1].end_lineno if body else function.end_lineno) - function.lineno + 1 - documented


def riddles(text: str) -> int:
    """Count the tokens of a source that are one of RIDDLES as a name."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(t.type == tokenize.NAME and t.string in RIDDLES for t in tokens)


def compares_a_task(tree: ast.AST) -> bool:
    """Return whether a module compares `form` or `task` with a string or a collection of strings."""

    def names_task(node) -> bool:
        last = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        return last in TASK_FIELDS or (isinstance(node, ast.Call) and names_task(getattr(node.func, "value", None)))

    def strings(node) -> bool:
        if isinstance(node, ast.Tuple | ast.Set | ast.List):
            return any(strings(x) for x in node.elts)
        return (isinstance(node, ast.Constant) and isinstance(node.value, str)) or isinstance(node, ast.Name)

    compared = (n for n in ast.walk(tree) if isinstance(n, ast.Compare))
    called = (
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "startswith"
    )
    return any(
        names_task(side) and any(strings(x) for x in (c.left, *c.comparators) if x is not side)
        for c in compared
        for side in (c.left, *c.comparators)
    ) or any(names_task(c.func.value) for c in called)


def circles(trees: dict[str, ast.AST]) -> list[tuple[str, ...]]:
    """Return groups of modules of e3jax that import each other, imports inside functions included."""
    names = {path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): path for path in trees}
    edges: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        for node in ast.walk(trees[path]):
            if isinstance(node, ast.ImportFrom) and node.module:
                edges[name] |= {f"{node.module}.{a.name}" for a in node.names} | {node.module}
            elif isinstance(node, ast.Import):
                edges[name] |= {a.name for a in node.names}
        edges[name] = {e for e in edges[name] if e in names and e != name}

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for other in edges[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        return seen

    reach = {name: reached(name) for name in names}
    groups = {tuple(sorted(o for o in reach[n] if n in reach[o])) for n in names if n in reach[n]}
    return sorted(groups)


def measure(root: Path) -> dict[str, object]:
    """Return the figures of one checkout."""
    sources = {p.relative_to(root).as_posix(): p.read_text() for p in sorted((root / "e3jax").rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in sources.items()}
    every = [f for tree in trees.values() for f in functions(tree)]
    widths, heights = [parameters(f) for f in every], [lines(f) for f in every]
    everything = [
        *sources.values(),
        *(
            p.read_text()
            for d in ("tests", "configs", "benchmarks", "examples")
            for p in sorted((root / d).rglob("*.py"))
        ),
    ]
    folders = {}
    for path in sources:
        folders.setdefault(str(Path(path).parent), []).append(path)
    return {
        f"functions of more than {MOST_PARAMETERS} parameters": sum(n > MOST_PARAMETERS for n in widths),
        "most parameters": max(widths),
        f"functions of more than {MOST_LINES} lines": sum(n > MOST_LINES for n in heights),
        "most lines of a function": max(heights),
        "# fmt: skip": sum(len(re.findall(r"#\s*fmt:\s*skip\s*$", text, re.M)) for text in everything),
        "most files in a folder": max(len(v) for v in folders.values()),
        "files, lines of e3jax": f"{len(sources)}, {sum(t.count(chr(10)) for t in sources.values()):,}",
        "circles of imports": len(circles(trees)),
        "files that compare a task's name": sum(compares_a_task(tree) for tree in trees.values()),
        "`asked`, `own`, `found` as names": sum(riddles(text) for text in sources.values()),
        "lines of README.md": (root / "README.md").read_text().count("\n"),
    }


def checkout(commit: str, folder: str) -> Path:
    """Unpack a commit of this repository."""
    archive = subprocess.run(["git", "archive", commit], capture_output=True, check=True).stdout
    tarfile.open(fileobj=io.BytesIO(archive)).extractall(folder, filter="data")
    return Path(folder)


def main(commits: list[str]) -> None:
    """Print a markdown table: a row a figure, a column a commit."""
    columns = {}
    for commit in commits:
        with tempfile.TemporaryDirectory() as folder:
            columns[commit] = measure(checkout(commit, folder))
    columns = columns or {"this checkout": measure(Path(__file__).parent.parent)}
    print("| |" + "|".join(columns) + "|\n|---|" + "---:|" * len(columns))
    for name in next(iter(columns.values())):
        print(f"| {name} | " + " | ".join(str(c[name]) for c in columns.values()) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
