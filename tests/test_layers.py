"""Imports point down only; the first layer knows nothing of jax; nothing is read with a silent default."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from benchmarks import house

ROOT = Path(__file__).parent.parent
RANKS = {
    "errors": -2, "printable": -2, "sections": -1, "storage": -1,
    "readers": 0, "types": 0, "phases": 0, "relay": 0, "sharding": 0, "sigterm": 0,
    "compiling": 0, "lock": 0.5, "runtime": 1,
    "rewards": 1, "tasks": 1.5, "tokenizer": 1,
    "losses": 2, "metrics": 2, "records": 2,
    "models": 3,
    "sampler": 4, "checkpoint": 4, "log": 4,
    "flags": 5, "report": 5,
    "didactic": 6, "rollout": 6,
    "eval": 7,
    "scaling": 8,
    "curation": 9,
    "train": 10,
    "tools": 11, "experiments": 11,
}  # fmt: skip
HEAVY = {
    "matplotlib": {"report/figures.py", "report/files.py", "didactic/panels.py"},
    "transformers": {"tokenizer.py"},
    "huggingface_hub": {"checkpoint/pretrained.py"},
    "safetensors": {"checkpoint/hf.py"},
    "gguf": {"checkpoint/gguf.py"},
    "tensorboardX": {"log.py"},
    "IPython": {"log.py"},
    "wandb": {"log.py"},
    "orbax": {"checkpoint/store.py"},
    "lm_eval": {"eval/lm_eval.py"},
    "datasets": {"tasks/rows.py"},
    "pyarrow": {"tasks/rows.py"},
    "array_record": {"tasks/rows.py"},
    "tensorflow_datasets": {"tasks/rows.py"},
    "math_verify": {"rewards/symbolic.py"},
    "sklearn": {"scaling/choosing.py"},
    "sympy": set(),
}

PRIVATE = {  # what has no public name, by file; each in a `try` that goes on without it, tested where it is named
    "runtime.py": {"jax._src", "jax._src.clusters"},  # test_flags
    "models/attention.py": {"jax._src.cudnn"},  # test_models_attention
    "checkpoint/store.py": {"orbax.checkpoint._src.serialization"},  # test_checkpoint_store
}


def modules():
    for path in sorted((ROOT / "e3jax").rglob("*.py")):
        yield path.relative_to(ROOT / "e3jax").as_posix(), ast.parse(path.read_text())


def imports(tree):
    """Return every import of a file, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ([f"{node.module}.{a.name}" for a in node.names] if node.module == "e3jax" else [node.module])
            if node.module and node.module.startswith("e3jax."):
                yield from (f"{node.module}.{a.name}" for a in node.names)


def part(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


def test_imports_point_down():
    """A file may import lower layers and its own folder."""
    wrong = []
    for name, tree in modules():
        if name.endswith("__init__.py"):
            continue
        for imported in imports(tree):
            if imported.startswith("e3jax."):
                other = imported.split(".")[1]
                if other != part(name) and RANKS[other] >= RANKS[part(name)]:
                    wrong.append(f"{name} imports {imported}")
    assert not wrong, wrong


def test_every_part_has_a_rank():
    """A new folder without a rank would escape the rule."""
    assert {part(name) for name, _ in modules()} - {"__init__"} == set(RANKS)


def test_heavy_libraries_have_one_home():
    for name, tree in modules():
        for imported in imports(tree):
            home = HEAVY.get(imported.split(".")[0])
            assert home is None or name in home, f"{name} imports {imported}"


def test_groups_in_regular_expressions_are_atomic_not_possessive():
    """Python up to 3.11.4 matches (?:ab?c)++ wrongly, without a word (gh-106052), and (?>(?:ab?c)+) as it should."""
    possessive = re.compile(r"\)(?:[*+?]|\{[\d,]+\})\+")
    for name, tree in modules():
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        assert not (wrong := [text for text in texts if possessive.search(text)]), f"{name}: {wrong}"


def test_private_names_of_other_libraries_can_be_missing():
    """A release of JAX or orbax that renames one would stop every command at its import."""
    guarded = {}
    for name, tree in modules():
        private = lambda node: {i for i in imports(node) if any(p[:1] == "_" != p[1:2] for p in i.split("."))}  # noqa: E731
        for guard in (n for n in ast.walk(tree) if isinstance(n, ast.Try)):
            caught = {part.id for h in guard.handlers for part in ast.walk(h.type) if isinstance(part, ast.Name)}
            if {"ImportError", "AttributeError"} <= caught:
                guarded[name] = guarded.get(name, set()) | private(ast.Module(guard.body, []))
        assert private(tree) == guarded.get(name, set()), f"{name}: {private(tree)} outside a try"
    assert {name: names for name, names in guarded.items() if names} == PRIVATE


def test_tasks_and_rewards_do_not_load_jax():
    """Problem generators and graders run in data workers and on laptops without jax."""
    code = "import sys; sys.modules['jax'] = None\nimport e3jax.tasks.grade, e3jax.tasks.table, e3jax.tokenizer"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_get_on_configs():
    """`config.get('warm_up_steps', 0)` is 0 for ever when the field is called warmup_steps."""
    for path in [*(ROOT / "configs").glob("*.py"), *(ROOT / "e3jax/train").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
                assert ast.unparse(node.func.value) == "os.environ", f"{path}: {ast.unparse(node)}"


def test_nothing_happens_at_import():
    """Modules hold definitions, constants and imports; no statement with an effect."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If)
    for name, tree in modules():
        for node in tree.body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert docstring or isinstance(node, allowed), f"{name}:{node.lineno}"
            if isinstance(node, ast.If):
                assert ast.unparse(node.test) == "__name__ == '__main__'", f"{name}:{node.lineno}"


def test_imports_start_no_device():
    """A mesh or an array made at import would pick devices before the command line is read."""
    names = [n.removesuffix(".py").replace("/", ".") for n, _ in modules() if not n.endswith("__init__.py")]
    code = "import importlib\n" + "".join(f"importlib.import_module('e3jax.{n}')\n" for n in names)
    code += "from jax._src import xla_bridge\nassert not xla_bridge._backends, xla_bridge._backends"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_four_files_from_the_command_to_the_equation():
    """config -> train/curriculum.py -> train/grpo.py -> losses/grpo.py: each calls the next, none lies between."""
    source = {name: ast.unparse(tree) for name, tree in modules()}
    assert "grpo.train(" in source["train/curriculum.py"]
    assert "grpo_loss(" in source["train/grpo.py"] and "from e3jax.losses.grpo import" in source["train/grpo.py"]
    assert "jnp.clip(ratio, 1 - loss.clip_low, 1 + loss.clip_high)" in source["losses/grpo.py"]


# functions that are longer or take more, and why; whatever else is, is split or its arguments are grouped
LONG = {"models/presets.py presets": "a table of shapes", "train/grpo.py train": "the loop of a stage"}
WIDE = {}


def test_functions_are_short_and_take_few_arguments():
    """25-parameter functions fed by splatted dicts hid which settings they read; 125 lines hid the algorithm."""
    long, wide = set(), set()
    for name, tree in modules():
        for function in house.functions(tree):
            place = f"{name} {function.name}"
            if house.lines(function) > (house.MOST_LINES_OF_A_LOOP if place in LONG else house.MOST_LINES):
                long.add(place)
            if house.parameters(function) > house.MOST_PARAMETERS:
                wide.add(place)
    assert not long and wide == set(WIDE), (sorted(long), sorted(wide))


def test_imports_make_no_circle():
    """report/html.py and report/compare.py imported each other."""
    assert not house.circles({f"e3jax/{name}": tree for name, tree in modules()})


def test_no_other_file_compares_a_tasks_name():
    """A new task touched six files, among fifteen that asked for a name."""
    assert not [name for name, tree in modules() if house.compares_a_task(tree)]


def test_files_are_short():
    """CONTRIBUTING's limit, which nothing checked: train/grpo.py had 468 lines."""
    long = {p.name: n for p in (ROOT / "e3jax").rglob("*.py") if (n := p.read_text().count("\n")) > 400}
    assert not long
