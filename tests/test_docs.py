"""Every page tells the truth: its commands parse, its links and anchors exist, its metrics are the code's.

Pages: README.md, CONTRIBUTING.md, all of docs/, launch/README.md, benchmarks/README.md. Nothing is run: Python's
commands are parsed up to their main, launch/'s scripts print what they would do.
"""

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
from absl import flags

from e3jax.log import flatten
from e3jax.metrics.names import KINDS, REASONS, fits, undefined
from e3jax.models.presets import flops_per_token, preset
from e3jax.phases import FAULTS
from e3jax.report.panels import PANELS
from e3jax.tools import cost, metrics_page

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "launch/README.md", "benchmarks/README.md"]
PAGES += sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))
PLAIN = ("pip", "pytest", "git", "cd", "cp", "tensorboard")  # programs whose words are not looked at
MORE = {  # and of these pages
    "CONTRIBUTING.md": ("ruff",),
    "launch/README.md": ("gcloud",),
    "benchmarks/README.md": ("python3.11", "."),
    "docs/checkpoints.md": ("unzip",),
    "docs/recipes/e2c.md": ("hf",),
}
CONFIGS = ("quickstart", "e3_math")  # whose fields a page may name in a sentence; a page of docs/ also these
OTHERS = ("eval_math", "difficulty", "oxa", "oxa_data", "e2c", "e2c_data", "e2c_scaling", "probes")


@cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def fences(page: str, language: str) -> list[str]:
    """Return the contents of fenced blocks, with lines that end in a backslash joined."""
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text_of(page), re.DOTALL | re.MULTILINE)
    return [block.replace("\\\n", " ") for name, block in blocks if name == language]


def commands(page: str) -> list[list[str]]:
    """Return the words of every command in bash blocks, without comments, redirections and variables set before it."""
    out = []
    for block in fences(page, "bash"):
        for line in block.splitlines():
            words, parts = shlex.split(line, comments=True), [[]]
            for word in words:
                if word in ("&&", ";"):
                    parts.append([])
                else:
                    parts[-1].append(word)
            for part in parts:
                while part and re.match(r"[A-Z_]+=", part[0]):
                    part = part[1:]
                part = part[: part.index(">")] if ">" in part else part
                out += [part] if part else []
    return out


def recipe_lines(page: str) -> list[tuple[str, list[list[str]]]]:
    """(file name, stages) of plain blocks that begin with "# NAME.stages": what launch/curriculum.sh reads."""
    blocks = [block.splitlines() for block in fences(page, "") if re.match(r"# \w+\.stages$", block, re.MULTILINE)]
    return [(lines[0][2:], [shlex.split(line) for line in lines[1:] if line.strip()]) for lines in blocks]


def header_commands() -> list[tuple[str, list[str]]]:
    """Return (file, words) of every `python -m e3jax.…` in headers of configs/ and e3jax/; "$stage" may be a word."""
    out = []
    for path in sorted([*(ROOT / "configs").rglob("*.py"), *(ROOT / "e3jax").rglob("*.py")]):
        text = path.read_text()
        header = re.match(r'r?"""(.*?)"""', text, re.DOTALL)
        for line in re.sub(r" \\\\?\n\s+", " ", header[1] if header else "").splitlines():
            if line.strip().startswith("python -m e3jax."):
                words = shlex.split(line.replace("$stage", "sft"), comments=True)
                out.append((path.name, words[: words.index(">")] if ">" in words else words))
    return out


def config_of(words: list[str]) -> Path | None:
    given = [word.removeprefix("--config=").partition(":")[0] for word in words if word.startswith("--config=")]
    return ROOT / given[0] if given else None


@cache
def parsed() -> dict[tuple[str, ...], tuple[int | None, str]]:
    """Parse every `python -m …` of all pages and headers and every module's --help: exit status and output."""
    asked = []
    for page in PAGES:
        modules = [words[2:] for words in commands(page) if words[:2] == ["python", "-m"]]
        stages = [["e3jax.train.curriculum", *stage] for _, file in recipe_lines(page) for stage in file]
        asked += [*modules, *([words[0], "--help"] for words in modules), *stages]
        for words in commands(page):
            if words[0] in ("launch/tpu_run.sh", "launch/tpu_babysit.sh", "launch/local.sh", "launch/xpk.sh"):
                run = [word for word in words[1:] if word.startswith("--config")]
                asked += [["e3jax.train.curriculum", *run, "--workdir=x"]] if run else []
    asked += [words[2:] for _, words in header_commands()]
    asked = [list(words) for words in dict.fromkeys(map(tuple, asked))]
    done = subprocess.run(
        [sys.executable, "tests/parse_commands.py"],
        input=json.dumps(asked),
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    )
    return {tuple(words): (status, said) for words, (status, said) in zip(asked, json.loads(done.stdout))}


def test_the_parser_refuses_what_is_wrong():
    """Otherwise the next test could not fail."""
    wrong = [
        ["e3jax.train.curriculum", "--config=configs/smoke.py", "--workdir=x", "--config.sed=1"],
        ["e3jax.train.curriculum", "--config=configs/smoke.py", "--workdir=x", "--config.seed=one"],
        ["e3jax.train.curriculum", "--config=configs/e3_math.py:stage=3", "--workdir=x"],
        ["e3jax.train.curriculum", "--config=configs/smoke.py"],
        ["e3jax.tools.convert", "--from=x", "--too=y"],
        ["e3jax.report"],
        ["e3jax.nothing"],
    ]
    right = ["e3jax.train.curriculum", "--config=configs/smoke.py", "--workdir=x", "--config.seed=1"]
    done = subprocess.run(
        [sys.executable, "tests/parse_commands.py"],
        input=json.dumps([*wrong, right]),
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    )
    statuses = [status for status, _ in json.loads(done.stdout)]
    assert statuses == [2, 2, 2, 2, 2, 2, None, 0]


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page, tmp_path):
    """Python's with every flag, config, argument and override; launch/'s by --dry-run; others are known ones."""
    for name, stages in recipe_lines(page):
        (tmp_path / name).write_text("\n".join(shlex.join(stage) for stage in stages) + "\n")
        for stage in stages:
            status, said = parsed()["e3jax.train.curriculum", *stage]
            assert status == 0, (name, stage, said)
    for words in commands(page):
        if (config := config_of(words)) is not None:
            assert config.exists(), words
        if words[:2] == ["python", "-m"]:
            status, said = parsed()[tuple(words[2:])]
            assert status == 0, (words, said)
            status, said = parsed()[words[2], "--help"]
            assert said and "Traceback" not in said, (words, said)
        elif words[0] == "python":
            own = [(ROOT / name).read_text() for name in (words[1], "benchmarks/command.py")]
            for flag in (word.partition("=")[0] for word in words[2:] if word.startswith("--")):
                assert any(f'"{flag}"' in source for source in own), words
        elif words[0].startswith("launch/"):
            assert os.access(ROOT / words[0], os.X_OK), words
            done = subprocess.run(
                ["bash", ROOT / words[0], *words[1:], "--dry-run"],
                cwd=tmp_path,
                text=True,
                capture_output=True,
                env=os.environ | {"LAUNCH_ENV": str(ROOT / "launch/env.sh.example")},
                check=False,
            )
            assert done.returncode == 0 and done.stdout, (words, done.stderr)
            run = [word for word in words[1:] if word.startswith("--config")]
            if run:
                status, said = parsed()["e3jax.train.curriculum", *run, "--workdir=x"]
                assert status == 0, (words, said)
        else:
            assert words[0] in PLAIN + MORE.get(page, ()), words


def test_commands_in_headers_parse():
    """Commands in the header of a config or a module parse as they are written there."""
    found = header_commands()
    assert len(found) > 70
    for name, words in found:
        status, said = parsed()[tuple(words[2:])]
        assert status == 0, (name, words, said)


def test_readme_has_commands():
    assert sum(words[:2] == ["python", "-m"] for words in commands("README.md")) >= 2


@cache
def fields(names: tuple[str, ...]) -> set[str]:
    found = set()
    for name in names:
        found |= set(flatten(importlib.import_module(f"configs.{name}").get_config().to_dict()))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_overrides_name_real_fields(page):
    """Guards against a renamed field that a page still advertises, in a command or in a sentence."""
    known = fields(CONFIGS + (OTHERS if page.startswith("docs/") else ()))
    given = commands(page) + [stage for _, stages in recipe_lines(page) for stage in stages]
    fenced = {word for words in given for word in words}  # parsed above, each with its own config
    named = {
        n for n in re.findall(r"--config\.([\w.]+)=", text_of(page)) if not any(f"--config.{n}=" in w for w in fenced)
    }
    assert named <= known, named - known
    if page == "README.md":
        assert set(re.findall(r"--config\.([\w.]+)=", text_of(page))) <= fields(CONFIGS)


def anchors(path: Path) -> set[str]:
    """Return ids, and GitHub's names of headings: lower case, - for blanks, no other signs, -1 for a repetition."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = set(re.findall(r'<a id="([^"]+)"', text))
    for title in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)
        name = plain = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        count = 0
        while name in found:
            count += 1
            name = f"{plain}-{count}"
        found.add(name)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_exist(page):
    """Relative links, pictures and anchors; code that a page names."""
    text, here = text_of(page), (ROOT / page).parent
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        path, _, anchor = target.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        file = (here / path).resolve() if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), (target, sorted(anchors(file)))
    for code in re.findall(r"`((?:e3jax|configs|tests|benchmarks|launch|docs|notebooks)/[\w/.]+\.\w+)", text):
        own = code.startswith("launch/env") or "NAME" in code  # the reader's
        assert own or (ROOT / code).exists(), code


def test_lines_are_short():
    """Prose wraps at 120; tables, links and code do not."""
    for page in (p for p in PAGES if p.startswith(("docs/", "README", "CONTRIBUTING"))):
        text = re.sub(r"^ *```.*?^ *```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
        long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "![", "    "))]
        assert not long, (page, long)


def test_no_placeholder_is_left():
    """Guards against a number that was still to be filled in."""
    for page in PAGES:
        assert "@@" not in text_of(page), page


def test_every_page_of_docs_is_linked():
    """Nobody finds a page to which nothing links."""
    linked = set()
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", text_of(page)):
            if not target.startswith("http"):
                linked.add(((ROOT / page).parent / target).resolve())
    assert {ROOT / p for p in PAGES if p.startswith("docs/")} <= linked


# ---------------------------------------------------------------- metrics


def test_the_page_of_metrics_is_made_from_the_code():
    page = ROOT / "docs/metrics.md"
    assert page.read_text() == metrics_page.page(), "python -m e3jax.tools.metrics_page"


@pytest.mark.parametrize("page", PAGES)
def test_tables_have_as_many_cells_as_their_heads(page):
    """A bar inside a cell would end it, and the rest of the line would be lost."""
    text = re.sub(r"^ *```.*?^ *```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1, block[:300]


def sources() -> str:
    files = [p for p in (ROOT / "e3jax").rglob("*.py") if p.name not in ("names.py", "metrics_page.py", "panels.py")]
    return "".join(p.read_text() for p in files)


def test_what_is_defined_is_logged_and_what_is_drawn_is_defined():
    """Guards against a definition without a metric, and a panel of a metric that is gone."""
    code = sources()
    for name in (name for names in KINDS.values() for name in names):
        group, _, last = name.rpartition("/")
        ways = [f'"{name}"']  # as it is, after a prefix that is put before a dict's names, or by phase or pool
        ways += [f'"{last}"'] if group in ("loss", "optim", "") else []
        ways += [f'f"{group}/{{name}}"'] if last in ("exploration", "execution", "…") else []
        ways += [f'f"{last.rpartition("_")[0]}_{{pool}}"'] if last.endswith(("_promoted", "_suppressed")) else []
        assert any(way in code for way in ways), name
    for kind, panels in PANELS.items():
        assert not undefined(kind, [name for lines in panels.values() for name in lines]), kind


GRADERS = [*(ROOT / "e3jax/rewards").glob("*.py"), *(ROOT / "e3jax/tasks").glob("*.py")]


def reasons_made() -> set[str]:
    """Return the codes in the graders' calls of Grade and ExpressionError and in returns of math.py and symbolic.py."""
    made = {f"format_{fault}" for fault in FAULTS}
    for path in GRADERS:
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            given = {"Grade": 1, "ExpressionError": 0}.get(name)
            places = [] if given is None else node.args[given : given + 1]
            if isinstance(node, ast.Return) and path.name in ("math.py", "symbolic.py") and node.value is not None:
                places = [node.value]
            for place in places:
                both = (place.body, place.orelse) if isinstance(place, ast.IfExp) else (place,)
                made |= {x.value for x in both if isinstance(x, ast.Constant) and isinstance(x.value, str)}
    return made


def test_every_reason_is_defined():
    """The defined reasons are the codes of all graders, and no others."""
    made = reasons_made()
    assert len(made) > 20 and made <= set(REASONS), made - set(REASONS)
    code = "".join(path.read_text() for path in GRADERS)
    for reason in set(REASONS) - made:
        assert f'"{reason}"' in code, reason


def test_patterns_fit_part_by_part():
    assert fits("chains.4.kept", "chains.….kept") and not fits("chains.4.kept", "chains.…")


# ---------------------------------------------------------------- numbers that are made here


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/recipes/")])
def test_costs_are_what_the_command_says(page):
    """Every `e3jax.tools.cost` of a recipe stands in its table with the same numbers."""
    found = [words[3:] for words in commands(page) if words[2:3] == ["e3jax.tools.cost"]]
    for words in found:
        values = flags.FlagValues()
        cost.define(values)
        values(["cost", *words])
        for row in cost.rows_of(values, values.config):
            assert f" | {' | '.join(row[1:])} |" in text_of(page), (words, row)
    assert found or page.endswith("countdown.md")


def test_simulated_steps_are_what_the_command_says():
    """Every row of `--simulate` stands in docs/memory.md with the same numbers."""
    found = [words[3:] for words in commands("docs/memory.md") if "--simulate" in words]
    for words in found:
        values = flags.FlagValues()
        cost.define(values)
        values(["cost", *words])
        for row in cost.simulated(values, values.config):
            assert f" | {' | '.join(row[1:])} |" in text_of("docs/memory.md"), (words, row)
    assert len(found) == 3


def test_costs_rest_on_the_compiled_programs():
    """Traffic of a decode step and FLOPs of a gradient are those of benchmarks/aot's JSON, at full length."""
    compiled = json.loads((ROOT / "benchmarks/aot/qwen3-1.7b-stage2-v5e-8x16.json").read_text())
    programs = {program["name"]: program for program in compiled["programs"]}
    model, chip, width = preset("qwen3-1.7b"), cost.CHIPS["v5e"], 17_408
    seconds = (
        cost.decode_seconds(  # 32 steps of 512 slots whose mean context is the whole cache
            model, chip, responses=512, length=32, budget=0, slots=512, chips=128, tensor=1
        )
        + 4 * model.layers * model.kv_heads * model.head_width * 4 * 32 * (width - cost.PROMPT - 16) / chip.bandwidth
    )
    assert seconds == pytest.approx(programs["decode"]["seconds"], rel=0.01)
    assert 4 * width * flops_per_token(model, width / 2) == pytest.approx(programs["gradient"]["flops"], rel=0.001)


def test_the_figure_is_drawn_from_the_tables():
    """The figure's means of the seeds are those that the tables and the README print."""
    spec = importlib.util.spec_from_file_location("extrapolation", ROOT / "docs/extrapolation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = text_of("docs/quickstart.md")
    for title, (budgets, rows) in module.tables(page).items():
        assert budgets == [96, 192, 384] and list(rows) == ["base model", "stage 1", "stage 2"], title
        for name, values in rows.items():
            assert values.shape == (3, 3)
            means = values.mean(0).tolist()
            table = page[page.index(f"## {title}") :]
            printed = re.search(rf"\| \*\*{name}\*\* \| mean \|((?: \*\*[\d.]+\*\* \|)+)", table)[1]
            shown = " | ".join(re.findall(r"[\d.]+", printed))
            assert [float(x) for x in shown.split(" | ")] == pytest.approx(means, abs=0.1), name
            assert f"{name} | {shown} |" in text_of("README.md"), shown


def test_the_figure_of_the_language_model_is_drawn_from_its_table():
    """Both problem sets, three models, the three budgets of the page's table."""
    spec = importlib.util.spec_from_file_location("countdown_lm", ROOT / "docs/recipes/countdown_lm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = module.rows(text_of("docs/recipes/countdown.md"))
    assert list(rows) == ["3 numbers", "4 numbers, never in RL"]
    assert [list(models) for models in rows.values()] == [["primed base", "GRPO", "GRPOMask"]] * 2
    assert rows["3 numbers"]["GRPO"].tolist() == [71.1, 80.1, 84.2]


def test_every_method_has_a_whole_row():
    """Method, source, equation, function and default, under an anchor of its own."""
    rows = [line for line in text_of("docs/algorithms.md").splitlines() if line.startswith("| <a id")]
    names = [name for row in rows for name in re.findall(r'<a id="([^"]+)"', row)]
    assert len(rows) > 50 and len(names) == len(set(names))
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 5 and all(cells), row


def test_the_page_of_algorithms_names_what_is_there():
    """Files, functions and fields of docs/algorithms.md exist, so that a comment may cite it."""
    source = "\n".join(path.read_text() for path in (ROOT / "e3jax").rglob("*.py"))
    for line in (ROOT / "docs/algorithms.md").read_text().splitlines():
        for name in re.findall(r"`([^`]+)`", line) if line.startswith("| <a id") else ():
            if name.endswith(".py"):
                assert (ROOT / "e3jax" / name).exists() or (ROOT / name).exists(), name
            elif re.fullmatch(r"[a-z_]+", name) and "_" in name:
                assert re.search(rf"def {name}\b|\b{name}\b", source), name


# ---------------------------------------------------------------- CONTRIBUTING's map from tests to modules


def map_rows() -> list[tuple[list[str], list[str]]]:
    """Return (module patterns, test names) of every row of both tables; the second table has no patterns."""
    tables = text_of("CONTRIBUTING.md").split("## Which test guards what")[1]
    rows = []
    for line in re.findall(r"^\| (?!what |modules |-).*$", tables, re.MULTILINE):
        left, right = (re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split("|"))
        rows.append(([name for name in left if name.endswith((".py", "*"))], right))
    return rows


def imports(test: Path) -> set[str]:
    """Return the modules of the package that a test imports or names in a string (a command), as A/B.py."""
    names = set()
    for node in ast.walk(ast.parse(test.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= set(re.findall(r"e3jax[\w.]+\w", node.value))
    paths = (ROOT / f"{name.replace('.', '/')}.py" for name in names if name.startswith("e3jax."))
    return {path.relative_to(ROOT / "e3jax").as_posix() for path in paths if path.exists()}


def test_the_map_has_every_module_and_every_test():
    """No module lacks a row, no test is left out, and no row points to nothing or to a test that imports none of it."""
    modules = {p.relative_to(ROOT / "e3jax").as_posix() for p in (ROOT / "e3jax").rglob("*.py")}
    left = modules - {name for name in modules if name.endswith("__init__.py")}
    tests = {path.stem.removeprefix("test_"): path for path in (ROOT / "tests").glob("test_*.py")}
    rows = map_rows()
    assert len(rows) > 60
    assert {name for _, names in rows for name in names} == set(tests)
    for patterns, names in rows:
        covered = {module for module in left for pattern in patterns if fnmatch(module, pattern)}
        assert all(pattern.endswith("*") or pattern in covered for pattern in patterns), (patterns, covered)
        folder = {module for module in modules for pattern in patterns if fnmatch(module, pattern)}
        for name in names if patterns else ():
            assert folder & imports(tests[name]), (patterns, name)
        left -= covered
    assert not left, left


# ---------------------------------------------------------------- LOG.md


def test_entries_of_the_log_can_be_linked():
    """No two headings have the same name, so links to them stay right; links of the log lead somewhere."""
    text = re.sub(r"^```.*?^```", "", text_of("LOG.md"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    assert len(titles) == len({re.sub(r"[^\w ]", "", title.lower()) for title in titles}) > 90
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        file = ROOT / (path or "LOG.md")
        assert file.exists() and (not anchor or anchor in anchors(file)), target
