"""The notebooks run, at small size, and leave what they promise; in git they have no outputs."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import matplotlib
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
FILES = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
# in place of the cell tagged "parameters"; AT is one directory for all: 04 looks at the run that 00 made
SMALL = {
    "00_tour": """
CONFIG = "smoke"
OVERRIDES = {
    "order": ("easy", "hard"), "stages.easy.steps": 2, "stages.hard.steps": 2, "stages.hard.budget": 24,
    "grpo.prompts": 2, "grpo.group_size": 2, "grpo.rows": 4, "grpo.minibatches": 1, "model.remat": "none",
    "sampler.slots": 4, "sampler.prefill_rows": 4, "eval.problems": 2, "eval.budgets": (12, 24),
}
WORKDIR = AT / "run"
""",
    "01_pk_model": """
SETTINGS, SEEDS, FRACTION, POINTS, TRACES = ("sum over tokens",), 2, 0.005, 2, 2_000
WORKDIR = AT / "pk"
""",
    "02_grpo_by_hand": "CLIP_LOW, CLIP_HIGH, DUAL_CLIP, POINTS = 0.2, 0.5, 3.0, 20",
    "03_budget_rule": """
ACCURACY = {256: 0.2, 512: 0.32, 1024: 0.41, 2048: 0.47}
KAPPAS, MINIMUM = (1.1, 1.2), 300
""",
    "04_extrapolation": """
RUN, WORKDIR = AT / "run", AT / "evaluation"
PROBLEMS, SAMPLES, BUDGETS = 3, 2, (8, 16, 24)
""",
    "05_e2c_and_oxa": "LAMBDA, QUERIES, RESPONSES, TOTAL = 2.0, 100, 4, 160",
}
FIGURES = {
    "00_tour": 2,
    "01_pk_model": 3,
    "02_grpo_by_hand": 2,
    "03_budget_rule": 1,
    "04_extrapolation": 2,
    "05_e2c_and_oxa": 3,
}
SAID = {  # what is printed only when a cell got to its end
    "00_tour": ("easy: GRPO, budget 24: 2 done in", "hard: GRPO, budget 24: 2 done in", "after hard:"),
    "01_pk_model": ("sum over tokens, mask: 20 done in",),
    "02_grpo_by_hand": ("loss 0.1775",),
    "03_budget_rule": ("**1,024**",),
    "04_extrapolation": (
        "3 numbers: 6 responses at 16 tokens, the same",
        "4 numbers: 6 responses at 16 tokens, the same",
    ),
    "05_e2c_and_oxa": ("asked 160, taken",),
}


def code_of(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters_of(notebook):
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return cell


def assigned(source: str) -> set[str]:
    """Return the names to which a cell assigns."""
    targets = [t for node in ast.parse(source).body for t in node.targets]
    return {name.id for t in targets for name in ast.walk(t) if isinstance(name, ast.Name)}


@pytest.fixture(scope="module")
def execute(tmp_path_factory):
    """Return a function from a name to the notebook after its cells ran in a kernel, once."""
    at, done = tmp_path_factory.mktemp("notebooks"), {}

    def run(name: str):
        if name not in done:
            notebook = nbformat.read(FILES[name], as_version=4)
            cell = parameters_of(notebook)
            small = SMALL[name].replace("AT /", f"Path({str(at)!r}) /")
            assert assigned(small) == assigned(cell.source), "the small sizes name other parameters than the notebook"
            cell.source = small
            where = {"metadata": {"path": str(at)}}
            NotebookClient(notebook, timeout=300, startup_timeout=180, resources=where).execute()
            done[name] = notebook
        return done[name]

    return run


@pytest.mark.parametrize("name", FILES)
def test_runs(name, execute, monkeypatch):
    """Every cell runs, with all its figures and the words that its end promises, and nothing complains."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    if name == "04_extrapolation":
        execute("00_tour")
    cells = code_of(execute(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    data = [output.data for output in outputs if "data" in output]
    drawn = sum("image/png" in x or x.get("text/html", "").lstrip().startswith("<svg") for x in data)
    assert drawn == FIGURES[name]
    said = "\n".join([o.text for o in outputs if "text" in o] + [str(x) for x in data])
    for words in SAID[name]:
        assert words in said
    assert not [o for o in outputs if o.output_type == "stream" and o.name == "stderr"]


def test_a_phase_has_one_line(execute, monkeypatch):
    """A live line is overwritten, not followed by others, which would make the tour forty lines longer."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (train,) = [cell for cell in execute("00_tour").cells if cell.id == "train"]
    lines = [output.data["text/plain"] for output in train.outputs]
    lines = [line for line in lines if "programs compiled in" not in line]  # nothing where they were kept
    phases = [line.partition(":")[0] + line.partition(":")[2].partition(":")[0] for line in lines if "done in" in line]
    assert len(phases) == len(set(phases)) == 12 and len(lines) == 15, lines  # table, report and samples


def test_hand_numbers_are_compared():
    """A wrong number on paper stops the notebook: no assertion is decoration."""
    notebook = nbformat.read(FILES["02_grpo_by_hand"], as_version=4)
    matplotlib.use("Agg")
    wrong = {"71 / 400": "72 / 400", "1 / 16, 0]": "1 / 15, 0]", "-15 / 8": "-15 / 9", "[1 / 10] * 4": "[1 / 11] * 4"}
    for right, other in wrong.items():
        space = {}
        with pytest.raises(AssertionError):
            for cell in code_of(notebook)[1:]:
                if "plt." not in cell.source:
                    exec(cell.source.replace(right, other), space)
    for name in FILES:
        asserts = [node for node in ast.walk(whole(name)) if isinstance(node, ast.Assert)]
        assert len(asserts) >= (2 if name != "00_tour" else 0), name


def whole(name: str) -> ast.Module:
    """Return all code of a notebook."""
    return ast.parse("\n\n".join(cell.source for cell in code_of(nbformat.read(FILES[name], as_version=4))))


@pytest.mark.parametrize("name", FILES)
def test_stripped_and_stable(name):
    """No outputs, no counts, and ids that say what a cell is, so that a diff shows what a person changed."""
    notebook = nbformat.read(FILES[name], as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert re.fullmatch(r"[a-z]+[a-z0-9]*(-[a-z]+)*", cell.id), cell.id
        assert set(cell.metadata) <= {"tags"}
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert notebook.cells[0].cell_type == "markdown" and parameters_of(notebook) is code_of(notebook)[1]


def test_the_first_cell_installs(tmp_path, monkeypatch):
    """It is the same in all of them; where e3jax cannot be imported it clones and installs the clone."""
    firsts = {code_of(nbformat.read(path, as_version=4))[0].source for path in FILES.values()}
    assert len(firsts) == 1
    known, asked, commands = importlib.util.find_spec, [], []

    def find_spec(name):
        asked.append(name)
        return None if name == "libtpu" or asked.count("e3jax") == 1 else known(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append([str(x) for x in command]))
    monkeypatch.setattr("shutil.which", lambda program: None)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.chdir(tmp_path)
    space = {}
    exec(firsts.pop(), space)
    clone = str(tmp_path / "e3jax-clone")
    assert commands[0][:2] == ["git", "clone"] and commands[0][-2:] == [space["REPOSITORY"], clone]
    assert commands[1] == [sys.executable, "-m", "pip", "install", "--quiet", "-e", f"{clone}[hf]"]
    assert sys.path == [str(ROOT), clone] and space["ROOT"] == ROOT


@pytest.mark.parametrize("name", FILES)
def test_names_exist(name):
    """Whatever a cell takes from e3jax or configs exists; this finds a renamed function without a kernel."""
    tree, modules = whole(name), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in ("e3jax", "configs"):
            for alias in node.names:
                package = importlib.import_module(node.module)
                if not hasattr(package, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                if isinstance(getattr(package, alias.name), ModuleType):
                    modules[alias.asname or alias.name] = getattr(package, alias.name)
    assert modules or name in ("02_grpo_by_hand", "03_budget_rule", "05_e2c_and_oxa")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert hasattr(modules[node.value.id], node.attr), ast.unparse(node)


def test_numbers_of_the_real_run_are_the_published_ones():
    """Notebook 03 applies Eq. 2 to the quickstart's table, which stands in README or docs/."""
    published = "\n".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    assignments = [node for node in whole("03_budget_rule").body if isinstance(node, ast.Assign)]
    (runs,) = [ast.literal_eval(node.value) for node in assignments if ast.unparse(node.targets[0]) == "RUNS"]
    assert len(runs) == 9
    for (_, _, seed), values in runs.items():
        assert f"| {seed} | " + " | ".join(map(str, values)) in published
