"""Sets by name: files of every kind, prepared sets, the hub and TFDS; errors in them are reported row by row."""

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from e3jax.errors import UserError
from e3jax.tasks.prompts import no_chat, qwen3_chat
from e3jax.tasks.rows import PreparedSet
from e3jax.tasks.sets import MOST_BAD, SETS, TFDS, Needs, load_set, short_name
from e3jax.tasks.stream import Wording
from e3jax.tasks.table import TASKS
from e3jax.tools.prepare import prepare

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared/data"
real = pytest.mark.skipif(
    not DATA.exists(), reason=f"no {DATA}: real problems lie there, beside those of the test below"
)
GOOD = [{"problem": f"What is {i}+1?", "answer": str(i + 1)} for i in range(30)]


def write(path: Path, rows) -> str:
    """Write rows as .json, .jsonl (a text is a line as it is), .csv, .gz of any of these, or .parquet."""
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(Path(write(path.with_suffix(""), rows)).read_bytes()))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


# ---- files


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet", ".json.gz", ".jsonl.gz", ".csv.gz"])
def test_files(tmp_path, suffix):
    """The answer is the same in every format; ids and meta say where a problem comes from."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="parquet files need pip install -e '.[data]'")
    problems = load_set(write(tmp_path / f"mine{suffix}", GOOD), prompt="e3", chat=str)
    assert [p.answer for p in problems] == [str(i + 1) for i in range(30)]
    p = problems[3]
    assert (p.id, p.task, p.difficulty) == ("mine-3", "math", "mine")
    assert p.question == "What is 3+1? Let's think step by step and output the final answer within \\boxed{}."
    assert p.meta == {"source": "mine", "index": 3, "problem": "What is 3+1?", "where": "response"}
    assert len(load_set(str(tmp_path / f"mine{suffix}"), prompt="e3", limit=4)) == 4
    assert load_set(f"{tmp_path}/mine{suffix}", prompt="e3", where="anywhere")[0].meta["where"] == "anywhere"


def test_csv_holds_texts_of_any_kind(tmp_path):
    """Quotes, commas, line breaks and a byte order mark; a cell longer than the csv module's own limit."""
    rows = [{"problem": 'Is "1, 2"\na list?', "answer": "yes"}, {"problem": "x" * 200_000, "answer": "1"}]
    path = write(tmp_path / "mine.csv", rows)
    Path(path).write_bytes(b"\xef\xbb\xbf" + Path(path).read_bytes())
    assert [p.meta["problem"] for p in load_set(path, prompt="bare", chat=str)] == [row["problem"] for row in rows]


def test_a_gzip_bomb_is_refused(tmp_path, monkeypatch):
    """Four gigabytes of zeros have four megabytes when they are packed, and filled the host's memory."""
    monkeypatch.setattr("e3jax.tasks.rows.MOST_UNPACKED", 1 << 20)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(bytes(1 << 22)))
    with pytest.raises(UserError, match=r"x\.jsonl\.gz has more than 1,048,576 bytes when it is unpacked"):
        load_set(str(tmp_path / "x.jsonl.gz"), prompt="e3")


def test_a_set_needs_no_prompt(tmp_path):
    """Without one a box is asked for, a letter of choices, nothing where the question does or no grader reads."""
    rows = [
        {"question": "1+1?", "answer": "2"},
        {"question": "1+1? Use \\boxed{}.", "answer": "2"},
        {"question": "Which?", "choices": ["a", "b"], "answer": 1},
    ]
    path = write(tmp_path / "mine.jsonl", rows)
    plain, asks, choice = (p.question for p in load_set(path, prompt="", chat=str))
    assert plain == "1+1?\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert asks == rows[1]["question"] and choice.endswith("put its letter within \\boxed{}.")
    unread = load_set(path, prompt="", chat=str, needs=Needs(rows=True, answers=False))
    assert unread[0].question == "1+1?" and unread[0].meta["row"] == rows[0]


def test_messages_before_a_question(tmp_path):
    """A system prompt of the row was dropped. Now it is in the chat, and in text before a model without a template."""
    system = {"role": "system", "content": "Be short."}
    rows = [{"prompt": [system, {"role": "user", "content": "1+1?"}], "solution": "2"}] * 2
    path = write(tmp_path / "mine.jsonl", rows)
    p = load_set(path, prompt="bare")[0]
    assert p.question == "<|im_start|>system\nBe short.<|im_end|>\n" + qwen3_chat("1+1?")
    assert p.meta["problem"] == "1+1?" and p.meta["before"] == [system]
    assert load_set(path, prompt="bare", chat=no_chat)[0].question == "Be short.\n\n1+1?"


def test_malformed_rows_are_listed(tmp_path, capsys):
    """They are listed by line and the others keep their numbers. Guards against a row that vanishes, and a run that
    stops for one row of many.
    """
    rows = [*GOOD, *GOOD, *GOOD]
    rows[4] = {"problem": "p", "answer": " "}
    rows[9] = "{broken"
    path = write(tmp_path / "mine.jsonl", ["", *rows])  # the first line is blank
    problems = load_set(path, prompt="e3")
    assert len(problems) == 88 and [p.meta["index"] for p in problems][3:6] == [3, 5, 6]
    said = capsys.readouterr().err
    assert "left out 2 of 90 rows, which are malformed: line 6: the answer is empty; line 11: not JSON (" in said


def test_too_many_malformed_rows_stop(tmp_path):
    """More than one row in twenty means another schema, not a slip; equal faults are reported once."""
    rows = [*GOOD[:18], {"problem": "p"}, {"problem": "p", "answer": ""}]
    assert 2 > MOST_BAD * len(rows)
    with pytest.raises(
        UserError, match=r"2 of 20 rows are malformed: mend .*\(row 18: columns .*; row 19: the answer is"
    ):
        load_set(write(tmp_path / "mine.json", rows), prompt="e3")
    many = [{"problem": "p", "answer": ""}] * 50
    with pytest.raises(UserError, match=r"row 0, row 1, .*row 19: the answer is empty … and 30 more\)$"):
        load_set(write(tmp_path / "many.json", many), prompt="e3")


def test_wrong_files_are_sentences(tmp_path):
    """Missing columns, empty, not UTF-8, no file, another kind of file, another JSON, no parquet; one sentence each."""
    (tmp_path / "latin.json").write_bytes('[{"problem": "é", "answer": "1"}]'.encode("latin-1"))
    (tmp_path / "latin.jsonl").write_bytes('{"problem": "é", "answer": "1"}\n'.encode("latin-1"))
    (tmp_path / "x.csv").write_text("problem,answer\n")
    (tmp_path / "quotes.csv").write_text('problem,answer\n"1+1?,2\n')
    (tmp_path / "names.csv").write_text("problem,problem\n1+1?,2\n")
    (tmp_path / "cells.csv").write_text("problem,answer\n1+1?,2,3\n")
    (tmp_path / "latin.csv").write_bytes("problem,answer\né,1\n".encode("latin-1"))
    (tmp_path / "x.xlsx").write_text("")
    (tmp_path / "x.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"problem": "p", "answer": "1"}\n')[:-6])
    (tmp_path / "x.parquet").write_text("no parquet")
    (tmp_path / "lines.json").write_text('{"problem": "p"}\n{"problem": "q"}\n')
    cases = {
        write(
            tmp_path / "columns.json", [{"text": "p", "gold": "1"}]
        ): "row 0: columns are gold, text: needed are prob",
        write(tmp_path / "empty.json", []): "empty.json is empty: there is no row in it",
        write(tmp_path / "empty.jsonl", []): "empty.jsonl is empty",
        write(tmp_path / "object.json", {"problem": "p"}): "holds a dict: a list of objects is needed",
        write(tmp_path / "list.json", [[1]]): "row 0: not an object",
        str(tmp_path / "latin.json"): "latin.json is not UTF-8 (",
        str(tmp_path / "latin.jsonl"): "line 1: not UTF-8 (",
        str(tmp_path / "lines.json"): "must be named .jsonl",
        str(tmp_path / "none.json"): "none.json does not exist",
        str(tmp_path / "x.csv"): "x.csv is empty: there is no row in it",
        str(tmp_path / "quotes.csv"): "quotes.csv line 2 is not CSV (",
        str(tmp_path / "names.csv"): "names.csv line 1: its names are 'problem, problem': name each column once",
        str(tmp_path / "cells.csv"): "line 2: 3 cells, and the first line names 2",
        str(tmp_path / "latin.csv"): "latin.csv is not UTF-8 (",
        str(tmp_path / "x.xlsx"): "x.xlsx is none of .json, .jsonl, .csv, .parquet, .json.gz, .jsonl.gz, .csv.gz",
        str(tmp_path / "x.jsonl.gz"): "x.jsonl.gz is no whole gzip file (",
        str(tmp_path / "cut.jsonl.gz"): "cut.jsonl.gz is no whole gzip file (",
        str(tmp_path / "x.parquet"): "x.parquet is no parquet file",
        "aime26": "no set is called 'aime26': use one of deepscaler, ",
        f"{write(tmp_path / 'ok.json', GOOD)}@test": "has no splits, leave it out",
    }
    for name, said in cases.items():
        with pytest.raises(UserError) as error:
            load_set(name, prompt="e3")
        assert said in str(error.value), (name, str(error.value))
    with pytest.raises(UserError, match="prompt 'e4' is not one for problem"):
        load_set(str(tmp_path / "ok.json"), prompt="e4")


# ---- prepared sets


def test_prepared_sets(tmp_path):
    """array_record and JSONL give back the same problems; one record is read without its neighbours."""
    pytest.importorskip("array_record", reason="prepared sets need pip install -e '.[data]'")
    rows = [*GOOD, {"question": "Which?", "choices": ["a", "b"], "answer": 1, "subject": "s"}]
    source = write(tmp_path / "mine.json", rows)
    assert prepare(source, tmp_path / "bucket/set") == f"{tmp_path / 'bucket/set'}: 31 problems of {source}"
    prepare(source, tmp_path / "set.jsonl", limit=31)
    read = PreparedSet(tmp_path / "bucket/set")
    assert len(read) == 31 and read[7]["problem"] == "What is 7+1?" and read.about["set"] == source
    with pytest.raises(IndexError):
        read[31]
    want = load_set(source, prompt="qwen")
    for place in (tmp_path / "bucket/set", tmp_path / "set.jsonl"):
        got = load_set(str(place), prompt="qwen")
        assert [p.id for p in got][:2] == ["set-0", "set-1"]
        assert [(p.task, p.question, p.answer) for p in got] == [(p.task, p.question, p.answer) for p in want]
        assert got[30].meta["order"] == [0, 1] and got[30].meta["prepared_from"] == ["mine", 30]
    with pytest.raises(UserError, match="exists: name a new place"):
        prepare(source, tmp_path / "bucket/set")
    about = tmp_path / "bucket/set/set.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"rows": 30}))
    with pytest.raises(UserError, match=r"holds 31 rows, set\.json says 30: prepare it again"):
        load_set(str(tmp_path / "bucket/set"), prompt="e3")


def test_prepare_command(tmp_path):
    """The command runs as errors and configs/e3_math.py give it."""
    source = write(tmp_path / "mine.json", GOOD)
    command = [sys.executable, "-m", "e3jax.tools.prepare", f"--set={source}", f"--to={tmp_path / 'x.jsonl'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith(f"x.jsonl: 30 problems of {source}\n")
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.splitlines()[-1].startswith("error: ")


# ---- the hub, TFDS


def test_a_local_copy_of_a_hub_set(tmp_path):
    """The code for the hub reads the directory of `hf download`, and its splits are known."""
    pytest.importorskip("datasets", reason="the hub's sets need pip install -e '.[data]'")
    (tmp_path / "copy/data").mkdir(parents=True)
    write(tmp_path / "copy/data/train-00000-of-00001.parquet", GOOD)
    write(tmp_path / "copy/data/test-00000-of-00001.parquet", GOOD[:5])
    name = str(tmp_path / "copy")
    assert len(load_set(name, prompt="e3")) == 30
    assert [p.id for p in load_set(f"{name}@test", prompt="e3")] == [f"copy-{i}" for i in range(5)]
    assert len(load_set(name, prompt="e3", split="test", limit=3)) == 3  # streamed
    for limit in (0, 3):
        with pytest.raises(UserError, match=r"has no split 'dev' \(.*train.*\): name another as NAME@SPLIT"):
            load_set(name, prompt="e3", split="dev", limit=limit)
    with pytest.raises(UserError, match="name one split"):
        load_set(f"{name}@test", prompt="e3", split="train")


@pytest.mark.parametrize("name", ["aime24", "someone/their-set"])
def test_an_unreachable_hub_says_what_to_do(name):
    """Offline by setting, which works on every machine; HF_HUB_OFFLINE is read when the library is imported."""
    pytest.importorskip("datasets", reason="the hub's sets need pip install -e '.[data]'")
    code = (
        "import sys\nfrom e3jax.tasks.sets import load_set\nfrom e3jax.errors import UserError\n"
        f"try:\n    load_set({name!r}, prompt='e3')\nexcept UserError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent/hf"},
    )
    hub = SETS[name].hub if name in SETS else name
    assert done.stdout.startswith(f"{hub} cannot be read from the hub (")
    assert f"hf download --repo-type dataset {hub} --local-dir DIR" in done.stdout


def test_gsm8k_through_tfds(tmp_path, monkeypatch):
    """TFDS's builder reads two rows of GSM8K's form, without TensorFlow; then a download fails."""
    pytest.importorskip("tensorflow_datasets", reason="GSM8K needs pip install -e '.[data]'")
    import tensorflow_datasets as tfds

    rows = [{"question": f"What is {i}+1?", "answer": f"So {i} + 1.\n#### 1,00{i}"} for i in range(2)]
    file = write(tmp_path / "rows.jsonl", rows)
    manager = tfds.download.DownloadManager
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
    source = tfds.data_source
    monkeypatch.setattr(tfds, "data_source", lambda name, **more: source(name, data_dir=str(tmp_path / "tfds"), **more))
    monkeypatch.setattr(manager, "download_and_extract", lambda self, urls: dict.fromkeys(urls, file))
    problems = load_set("gsm8k", prompt="qwen")
    assert sorted(p.answer for p in problems) == ["1000", "1001"]
    assert {p.meta["problem"] for p in problems} == {"What is 0+1?", "What is 1+1?"}

    def fails(self, urls):
        raise ConnectionError("no such host")

    monkeypatch.setattr(tfds, "data_source", lambda name, **more: source(name, data_dir=str(tmp_path / "new"), **more))
    monkeypatch.setattr(manager, "download_and_extract", fails)
    with pytest.raises(UserError, match=r"gsm8k cannot be read through TFDS \(.*no such host.*name a .jsonl"):
        load_set("gsm8k", prompt="qwen")


def test_names():
    """Every set that the documentation names is known."""
    assert set(SETS) | set(TFDS) >= {
        "deepscaler",
        "e3-math-easy",
        "e3-math-medhard",
        "hmmt-aime-2025",
        "aime24",
        "aime25",
        "hmmt25",
        "amc",
        "math500",
        "omni-math",
        "openmathreasoning",
        "mmlu",
        "mmlu-pro",
        "gpqa-diamond",
        "gsm8k",
    }
    names = {"x/mine.jsonl.gz": "mine", "gs://b/sets/easy": "easy", "a/b@test": "a/b@test"}
    assert {name: short_name(name) for name in names} == names


# ---- streams


def stream(name, *, seed=0, split="train", **wording):
    """Open a set with e3's prompt."""
    return TASKS["math"].open(name, seed=seed, split=split, wording=Wording(prompt="e3", **wording))


def test_epochs(tmp_path):
    """Every problem comes once an epoch, in another order each, for any sizes of blocks, and with another seed."""
    name = write(tmp_path / "mine.json", GOOD)
    draw = stream(name)
    straight = [p.meta["index"] for p in draw(0, 90)]
    epochs = [straight[i : i + 30] for i in (0, 30, 60)]
    assert all(sorted(e) == list(range(30)) for e in epochs) and len({tuple(e) for e in epochs}) == 3
    assert [p.meta["index"] for start in range(0, 84, 7) for p in draw(start, 7)] == straight[:84]
    other = stream(name, seed=1)
    assert [p.meta["index"] for p in other(0, 30)] != epochs[0]
    assert [p.meta["index"] for p in stream(name, split="test")(0, 99)] == [*range(30)]


def test_long_prompts_are_left_out_and_said(tmp_path, capsys):
    """Guards against a step that stops hours later at a prompt too long for its shapes."""
    name = write(tmp_path / "mine.json", [*GOOD, {"problem": "x" * 500, "answer": "1"}])
    draw = stream(name, fits=lambda text: len(text) < 300)
    assert {p.meta["index"] for p in draw(0, 60)} == set(range(30))
    assert "left out 1 of 31 problems, whose prompts are longer than config.task.prompt_room: rows 30" in (
        capsys.readouterr().err
    )
    with pytest.raises(UserError, match="no prompt fits"):
        stream(name, fits=lambda text: False)


# ---- the real data


@real
@pytest.mark.parametrize(
    ("name", "rows"),
    [("aime24", 30), ("aime25", 30), ("hmmt25", 30), ("amc", 83), ("math500", 500), ("deepscaler_10k", 9998)],
)
def test_real_sets(name, rows, capsys):
    """All rows: none malformed, no foreign instruction, AIME without zeros, AMC without points, prompts by token."""
    from e3jax.tokenizer import HubTokenizer

    tokenizer = HubTokenizer(str(DATA / "qwen3-tokenizer"))
    (path,) = (DATA / "math").glob(f"{name}.*")
    problems = load_set(str(path), prompt="e3")
    assert len(problems) == rows and not capsys.readouterr().err
    assert len({p.id for p in problems}) == rows
    for p in problems:
        assert (
            p.answer and "Let's reason step by step" not in p.question and p.question.count("Let's think step by") == 1
        )
        if name.startswith("aime"):
            assert str(int(p.answer)) == p.answer
        if name == "amc":
            assert not p.answer.endswith(".0")
    for p in problems[:: max(rows // 50, 1)]:
        words = f"{p.meta['problem']} Let's think step by step and output the final answer within \\boxed{{}}."
        assert tokenizer.encode(p.question) == tokenizer.chat([{"role": "user", "content": words}], thinking=True)
        assert p.question == tokenizer.chat_text(words, thinking=True)


def test_rows_of_the_real_sets_schemas(tmp_path, qwen3_files):
    """What test_real_sets checks in the originals, on rows made here: verl's instruction, AIME's zeros, AMC's points.
    Every prompt is, token by token, the tokenizer's own chat.
    """
    from e3jax.tokenizer import HubTokenizer

    tokenizer = HubTokenizer(str(qwen3_files))
    verl = {
        "prompt": [
            {
                "content": "How many $x$ solve $x^2=4$? \nLet's reason step by step. Enclose the reasoning.",
                "role": "user",
            }
        ],
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {"index": 0, "split": "train"},
    }
    rows = {
        "deepscaler.parquet": ([verl], "How many $x$ solve $x^2=4$?", "2"),
        "aime.json": ([{"id": 0, "problem": "Find $5^2$, é 你好.", "answer": "025", "year": 2024}], None, "25"),
        "amc.json": ([{"problem": "Is it \\[142\\]?", "answer": 142.0, "difficulty": 2.0}], None, "142"),
        "hmmt.json": (
            [{"problem_idx": 1, "problem": "A half", "answer": "\\frac{1}{2}", "problem_type": ["Algebra"]}],
            None,
            "\\frac{1}{2}",
        ),
    }
    for name, (written, text, answer) in rows.items():
        (p,) = load_set(write(tmp_path / name, written), prompt="e3")
        assert (p.meta["problem"], p.answer) == (text or written[0]["problem"], answer)
        words = f"{p.meta['problem']} Let's think step by step and output the final answer within \\boxed{{}}."
        assert tokenizer.encode(p.question) == tokenizer.chat([{"role": "user", "content": words}], thinking=True)
        assert p.question == tokenizer.chat_text(words, thinking=True)


def test_chat_without_thinking(qwen3_files):
    """Qwen3's enable_thinking=False, through the tokenizer's template."""
    from e3jax.tokenizer import HubTokenizer

    tokenizer = HubTokenizer(str(qwen3_files))
    text = tokenizer.chat_text("x", thinking=False)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.encode(text) == tokenizer.chat([{"role": "user", "content": "x"}], thinking=False)
