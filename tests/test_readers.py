"""Files that somebody else wrote: each odd one is a sentence with file and line, a row left out, or simply read."""

import base64
import io
import json
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath
from rich.console import Console

from e3jax import flags
from e3jax.checkpoint.hf import inventory, load_hf
from e3jax.checkpoint.hf_config import read_config
from e3jax.checkpoint.pretrained import generation_config
from e3jax.errors import UserError
from e3jax.experiments import read, results
from e3jax.log import Phase, RunLog, claim
from e3jax.readers import fault, parse_json, read_json, read_json_lines
from e3jax.report import browser, html, serve
from e3jax.report.read_run import RECORDS, SAMPLES
from e3jax.rollout import responses
from e3jax.tasks.rows import write_prepared
from e3jax.tasks.sets import load_set
from e3jax.tools import replay
from e3jax.tools.prompts import read_prompts
from tests.test_experiments_paper import made_up
from tests.tiny_hub import LLAMA3, QWEN3, YARN, like_of, write_tiny

BOM = b"\xef\xbb\xbf"
DEEP = b"[" * 100_000
STEERING = "\x1b]0;title\x07 \x1b[2J \x1b]8;;http://evil\x1b\\ \x9b31m \u202eabc\u2066"
# what stands where a value belongs
ODD = (None, True, -1, 10**400, 1e308, float("inf"), "", "\ud800", [], [1], {}, {"96": [1, 2]}, "../..", "x" * 100_000)


def write_lines(path, *lines):
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return str(path)


def test_a_shape_names_what_does_not_fit():
    """Wrong types, missing keys and numbers that are none are reported with their place and name."""
    shape = {"stage": str, "accuracy": {int: [(float, None), float]}, "note?": str}
    fits = {"stage": "a", "accuracy": {"96": [None, 0.5]}}
    assert fault(fits, shape) == ""
    for change, said in (
        ({"stage": 3}, "stage is 3, not a text"),
        ({"note": []}, "note is [], not a text"),
        ({"accuracy": {"x": [1, 1]}}, "accuracy.'x' is no whole number"),
        ({"accuracy": {"96": [1]}}, "accuracy.96 has 1 parts, not 2"),
        ({"accuracy": {"96": [1, float("nan")]}}, "accuracy.96[1] is nan, not a number"),
        ({"accuracy": {"96": ["1", 1]}}, "accuracy.96[0] is '1', not a number or null"),
    ):
        assert fault(fits | change, shape) == said
    assert fault({"stage": "a"}, shape) == "there is no accuracy"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DEEP, "nested deeper than 100 levels"),
        (b"[" * 101 + b"]" * 101, "nested deeper than 100 levels"),
        (b'{"a": "\xe9"}', "not UTF-8 (invalid continuation byte at byte 7)"),
        (b'{"a": "\x00"}', "not JSON ("),
        (b"", "not JSON ("),
        (b"9" * 5000, "not JSON ("),
    ],
)
def test_json_that_cannot_be_read(text, said, tmp_path):
    """RecursionError was a traceback in every reader; 5,000 digits and half a file are sentences too."""
    with pytest.raises(ValueError, match=r".") as error:
        parse_json(text)
    assert said in str(error.value)
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(UserError, match=r"x.json is .*: mend it"):
        read_json(tmp_path / "x.json", dict)
    write_lines(tmp_path / "x.jsonl", {"a": "b\u2028c"}, text or b"{")
    with pytest.raises(UserError, match=r"x.jsonl line 2: .*: mend or remove the line"):
        read_json_lines(tmp_path / "x.jsonl", {"a": str})


def test_marks_and_line_separators_are_read(tmp_path):
    r"""A byte order mark before any line, and U+2028 inside one: JSON's lines end with "\n" alone."""
    line = '{"problem": "1\u2028+ 1?", "answer": "2"}'.encode()
    for name, data in (("a.jsonl", BOM + line + b"\n" + BOM + line), ("a.json", BOM + b"[" + line + b"]")):
        (tmp_path / name).write_bytes(data)
        problems = load_set(str(tmp_path / name), prompt="bare", chat=str)
        assert [p.question for p in problems] == ["1\u2028+ 1?"] * (2 if name == "a.jsonl" else 1)
    (tmp_path / "p.jsonl").write_bytes(BOM + b'{"prompt": "one"}\r\n')
    (tmp_path / "p.txt").write_bytes(BOM + "one\r\nt\u2028wo\n".encode())
    assert read_prompts(str(tmp_path / "p.jsonl")) == ["one"]
    assert read_prompts(str(tmp_path / "p.txt")) == ["one", "t\u2028wo"]
    (tmp_path / "config.json").write_bytes(BOM + json.dumps(QWEN3).encode())
    assert read_config(tmp_path).layers == 2
    (tmp_path / "p.txt").write_bytes("one".encode("utf-16"))
    with pytest.raises(UserError, match=r"p.txt is UTF-16: save it as UTF-8"):
        read_prompts(str(tmp_path / "p.txt"))
    (tmp_path / "p.txt").write_bytes(b"one\ntw\xe9\n")
    with pytest.raises(UserError, match=r"p.txt line 2: not UTF-8 \("):
        read_prompts(str(tmp_path / "p.txt"))
    with pytest.raises(UserError, match=r"p.jsonl line 1: nested deeper"):
        read_prompts(write_lines(tmp_path / "p.jsonl", DEEP))
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(UserError, match=r"d.jsonl cannot be read, it is a directory"):
        read_prompts(str(tmp_path / "d.jsonl"))


def test_odd_rows_of_a_set_are_counted(tmp_path, capsys):
    """Half a character ended the run in the tokenizer; missing columns and wrong types were KeyError and TypeError."""
    good = [{"problem": f"{i} + 1?", "answer": str(i + 1)} for i in range(40)]
    mcq = {"question": "Which?", "choices": ["a", "b"], "answer": 1}
    gpqa = {"Question": "?", "Correct Answer": "a", **{f"Incorrect Answer {i}": "b" for i in (1, 2, 3)}}
    ours = {"task": "math", "problem": "p", "answer": "1", "difficulty": "d", "meta": {}}
    cases = {
        b'{"problem": "bad \\ud800 text", "answer": "1"}': "half a character",
        b'{"problem": "x", "answer": "\\udc00"}': "half a character",
        DEEP: "nested deeper than 100 levels",
        json.dumps(mcq | {"choices": 5}).encode(): "the choices are '5', not a list",
        json.dumps({k: v for k, v in gpqa.items() if k != "Question"}).encode(): "no Question",
        json.dumps({k: v for k, v in gpqa.items() if k[-1] != "2"}).encode(): "a choice is empty",
        json.dumps(ours | {"meta": "x"}).encode(): "meta is 'x', not an object",
        json.dumps({k: v for k, v in ours.items() if k != "difficulty"}).encode(): "there is no difficulty",
        b'{"a\\u001b[2J\\nb": 1}': "columns are a\N{REPLACEMENT CHARACTER}[2J b: needed",
    }
    for line, said in cases.items():
        assert len(load_set(write_lines(tmp_path / "a.jsonl", *good, line), prompt="bare", chat=str)) == 40
        told = capsys.readouterr().err
        assert f"left out 1 of 41 rows, which are malformed: line 41: {said}" in told and told.count("\n") == 1
        with pytest.raises(UserError, match="1 of 1 rows are malformed"):
            load_set(write_lines(tmp_path / "a.jsonl", line), prompt="bare", chat=str)


def test_damaged_sets_are_sentences(tmp_path):
    """A parquet file and a prepared set that are cut or changed raised whatever their libraries raise."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"problem": ["1 + 1?"] * 50, "answer": ["2"] * 50}), tmp_path / "a.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[4:40] = bytes(36)
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"a.parquet is damaged behind row 0 \("):
        load_set(str(tmp_path / "a.parquet"), prompt="bare", chat=str)
    pytest.importorskip("array_record")
    write_prepared(tmp_path / "set", [{"task": "math", "problem": "p", "answer": "1", "difficulty": "", "meta": {}}])
    (tmp_path / "set/problems.array_record").write_bytes(b"x")
    with pytest.raises(UserError, match="prepare the set again"):
        load_set(str(tmp_path / "set"), prompt="bare", chat=str)
    (tmp_path / "set/set.json").write_bytes(DEEP)
    with pytest.raises(UserError, match=r"set.json is nested deeper"):
        load_set(str(tmp_path / "set"), prompt="bare", chat=str)


ROPE5 = {"rope_theta": 1e6, "rope_type": "default", "partial_rotary_factor": 1.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000, a number of at most 10,000 is believed"),
        ({"vocab_size": 10**15}, "vocab_size=1000000000000000, a number of at most"),
        ({"hidden_size": 10**400}, "hidden_size=1000"),
        ({"intermediate_size": 1e3}, "intermediate_size=1000.0, a number above 0 is needed"),
        ({"rope_theta": 10**400}, "rope_theta=1000"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps=inf, a number above 0 is needed"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false', true or false is needed"),
        ({"rope_scaling": "yarn"}, "rope_scaling='yarn', an object is needed"),
        ({"rope_parameters": ["x"]}, "rope_parameters=['x'], an object is needed"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type=['yarn'], a string is needed"),
        ({"rope_scaling": YARN | {"beta_fast": "x"}}, "beta_fast='x', a number above 0 is needed"),
        ({"rope_scaling": YARN | {"attention_factor": float("nan")}}, "attention_factor=nan, a number above 0"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor=4.0 is not below high_freq_factor=4.0"),
        ({"rope_parameters": ROPE5 | {"partial_rotary_factor": 0.5}}, "with partial_rotary_factor: not supported"),
        ({"layer_types": 3}, "layer_types=3, a list is needed"),
        ({"layer_types": [{}]}, "layer_types=[{}] is not supported"),
        ({"max_window_layers": "x", "use_sliding_window": True}, "max_window_layers='x'"),
        ({"num_attention_heads": 1000, "num_key_value_heads": 1000, "head_dim": None}, "head_dim=0, a number above 0"),
    ],
)
def test_every_number_of_a_config_has_a_range(change, said, tmp_path):
    """10^9 layers allocated until the machine gave up; a string where an object belongs was a TypeError."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN3 | {"model_type": "qwen2"} | change))
    with pytest.raises(UserError) as error:
        read_config(tmp_path)
    assert said in str(error.value) and str(tmp_path / "config.json") in str(error.value)


def test_partial_rotary_factor_of_one_is_none(tmp_path):
    """transformers 5 moves it into rope_parameters when it saves; at the top level it was already accepted."""
    (tmp_path / "config.json").write_text(
        json.dumps({k: v for k, v in QWEN3.items() if k != "rope_theta"} | {"rope_parameters": ROPE5})
    )
    assert read_config(tmp_path).rope_theta == 1e6
    (tmp_path / "generation_config.json").write_bytes(DEEP)
    with pytest.raises(UserError, match=r"generation_config.json is nested deeper.*repair or remove it"):
        generation_config(tmp_path)


def test_a_single_file_wins_over_an_index(tmp_path):
    """As in transformers: an index left behind by an older model silently brought that model's shards back."""
    write_tiny(tmp_path / "old", "qwen3-tied", most_bytes=40_000)
    write_tiny(tmp_path / "new", "qwen3-tied", dtype="bfloat16")
    for file in (tmp_path / "old").iterdir():
        if file.name != "config.json":
            shutil.copy(file, tmp_path / "new" / file.name)
    assert {x.dtype for x in inventory(tmp_path / "new").values()} == {"BF16"}
    _, like = like_of(tmp_path / "new")
    shards = sorted((tmp_path / "old").glob("*.safetensors"))
    shards[1].write_bytes(shards[0].read_bytes())
    with pytest.raises(UserError, match=r"model.* is in .* and in .*: remove one"):
        load_hf(tmp_path / "old", like)
    shards[1].unlink()
    shards[1].mkdir()
    with pytest.raises(UserError, match="is truncated or damaged"):
        load_hf(tmp_path / "old", like)
    for index in ([], {"weight_map": {"a": 3}}, {"weight_map": {"a": "../x.safetensors"}}, {"weight_map": {}}):
        (tmp_path / "old/model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match=r"index.json is damaged"):
            inventory(tmp_path / "old")


def test_many_wrong_tensors_are_few_lines(tmp_path):
    """With a config.json of another size the error named every tensor of thousands of layers."""
    write_tiny(tmp_path, "qwen3-tied")
    (tmp_path / "config.json").write_text(json.dumps(QWEN3 | {"num_hidden_layers": 2000}))
    with pytest.raises(UserError, match=r"(?s)21978 tensors:\n.*… and 21958 more$") as error:
        load_hf(tmp_path, like_of(tmp_path)[1])
    assert str(error.value).count("\n") == 21


# ---- pages

LINES = {
    "metrics.jsonl": {"stage": "a", "kind": "grpo", "step": 1, "reward/mean": 0.5},
    "eval.jsonl": {"stage": "a", "set": "s", "accuracy": {"96": [0.1, 0.0, 0.2]}, "explore": {}, "train_budget": 96},
    "budget.jsonl": {"stage": "a", "kappa": 1.2, "minimum": 60, "chosen": 96, "satisfied": True, "rows": [
        {"budget": 96, "satisfied": True, "chosen": True, "accuracy": 0.1}]},
    "eval_samples.jsonl": {"stage": "a", "set": "s", "prompt": "p", "response": "r", "target": "1", "reward": 0.0,
        "reason": "x", "length": 1, "done": True, "answer": "", "attempts": [
            {"text": "t", "verdict": None, "truth": None}]},
    "samples.jsonl": {"stage": "a", "step": 1, "prompt": "p", "response": "r", "answer": "1", "reward": 0.0,
        "reason": "x", "length": 1, "truncated": False, "advantage": 0.5, "tokens": ["r"], "entropy": [0.1],
        "logp": [None]},
    "problems.jsonl": {"stage": "m", "set": "t", "problem": "p0", "question": "q", "answer": "7",
        "reason_of": ["x"], "right_of": [1]},
}  # fmt: skip
RESPONSE = {"part": "response", "id": "p0", "problem": 0, "sample": 0, "done": True, "length": 1, "text": "yes"}


def changed(line: dict) -> list:
    """Return the line without each of its keys, with every odd value in their place, and lines that are none at all."""
    absent = [{k: v for k, v in line.items() if k != key} for key in line]
    return [*absent, *(line | {key: odd} for key in line for odd in ODD), 3, [], DEEP, b"\x00", b'{"stage": "\xff"}']


@pytest.fixture
def run_dir(tmp_path):
    """Write a run whose every file has one good line, and all odd ones beside it."""
    (tmp_path / "run/responses/m/t").mkdir(parents=True)
    for name, line in LINES.items():
        write_lines(tmp_path / "run" / name, line, *changed(line))
    write_lines(tmp_path / "run/responses/m/t/0.jsonl", RESPONSE, *changed(RESPONSE))
    (tmp_path / "run/config.json").write_bytes(DEEP)
    return tmp_path / "run"


def test_odd_lines_take_no_page_down(run_dir, tmp_path):
    """One odd line made 7 of 11 requests a traceback; now it is left out, and the page says so."""
    page = html.report_page(run_dir)
    for name in RECORDS:
        assert f"{name}: " in page and "unreadable lines skipped, line 2: there is no stage" in page
    assert "config.json could not be read: " in page and "nested deeper than 100 levels" in page
    data = browser.page_data([epath.Path(run_dir)])
    assert len(data["notes"]) == len(SAMPLES) + 1 and "yes" in data["samples"]["text"]
    assert all("unreadable lines skipped" in note for note in data["notes"])
    json.dumps(data, allow_nan=False)
    for name in LINES:  # a directory where a file belongs
        (run_dir / name).unlink()
        (run_dir / name).mkdir()
    assert html.report_page(run_dir).count("is a directory") == len(RECORDS)


def test_a_left_out_problem_does_not_shift_the_others(tmp_path):
    """Responses are matched by their problem's id, not by its place among the lines that could be read."""
    row = LINES["problems.jsonl"]
    write_lines(tmp_path / "problems.jsonl", b"{", row | {"problem": "p1", "question": "second"})
    (tmp_path / "responses/m/t").mkdir(parents=True)
    write_lines(tmp_path / "responses/m/t/0.jsonl", RESPONSE, RESPONSE | {"id": "p1", "problem": 1, "text": "right"})
    data = browser.page_data([epath.Path(tmp_path)])
    assert data["samples"]["text"] == ["right"] and data["problems"] == [["second", "7", ""]]


def test_records_cannot_name_files_elsewhere(tmp_path):
    """A stage called "../.." would bring files of other directories into the page."""
    outside = tmp_path / "secret"
    outside.mkdir()
    write_lines(outside / "0.jsonl", RESPONSE)
    run = tmp_path / "run"
    (run / "responses").mkdir(parents=True)
    row = LINES["problems.jsonl"]
    odd = [("../..", "secret"), (str(tmp_path), "secret"), ("a\0", "t"), ("x" * 200, "y" * 200)]
    good = LINES["samples.jsonl"]
    write_lines(run / "problems.jsonl", *(row | {"stage": stage, "set": name} for stage, name in odd))
    write_lines(run / "samples.jsonl", good)
    assert browser.page_data([epath.Path(run)])["samples"]["text"] == ["r"]


def test_silent_clients_are_left(run_dir, monkeypatch, capsys):
    """A client that connects and says nothing kept a thread for ever; one that went away printed a traceback."""
    monkeypatch.setattr(serve, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(
        serve, "PAGES", {"report.html": lambda run_dir: "x" * 100, "broken.html": lambda run_dir: 1 / 0}
    )
    server = serve.make_server(run_dir, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with socket.create_connection(server.server_address) as client:
            client.settimeout(30)
            start = time.monotonic()
            assert client.recv(1) == b"" and time.monotonic() - start < 25  # closed by the server
        with socket.create_connection(server.server_address) as client:
            client.sendall(b"GET / HTTP/1.0\r\n")  # half a request
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # then a reset
        where = f"http://localhost:{server.server_address[1]}"
        with pytest.raises(urllib.error.HTTPError, match="500"):
            urllib.request.urlopen(f"{where}/broken.html")
        assert urllib.request.urlopen(f"{where}/report.html").status == 200
    finally:
        server.shutdown()
        server.server_close()
    assert "Traceback" not in capsys.readouterr().err


def test_odd_results_are_sentences(tmp_path):
    """results.json was checked one level deep: a text where a number belongs was a TypeError in the page."""
    good = json.loads(json.dumps(made_up()))
    for change, said in (
        (lambda r: r["rule"][0].update(mean="x"), r"rule\[0\].mean is 'x', not a number or null"),
        (lambda r: r["rule"][0].update(outcome="x"), r"rule\[0\] is 'above' and 'x'"),
        (lambda r: r["rule"][0].update(measure="x"), "rule.0. is about 'x', which is no measure"),
        (lambda r: r["figures"][0].update(lines=[]), r"figures\[0\] has a line without points"),
        (lambda r: r["figures"][0]["lines"][0]["x"].pop(), "fewer means than points"),
        (lambda r: r["figures"][0]["lines"][0].update(x=[0, 1]), "x = 0 on a logarithmic axis"),
        (lambda r: r.update(values={}), "there are no values of the measure 'length'"),
        (lambda r: r["tables"][0].update(rows=[3]), r"tables\[0\].rows\[0\] is 3, not a list"),
    ):
        odd = json.loads(json.dumps(good))
        change(odd)
        (tmp_path / "results.json").write_text(json.dumps(odd))
        with pytest.raises(UserError, match=said):
            results.read(tmp_path)


# ---- what is unpacked, and other records


def test_bombs_stay_packed(tmp_path, monkeypatch):
    """A line of responses, or a micro-batch of a dump, that unpacks to gigabytes filled the memory."""
    (tmp_path / "responses").mkdir()
    monkeypatch.setattr(responses, "MOST_BYTES", 1 << 12)
    monkeypatch.setattr(replay, "MOST_BYTES", 1 << 20)
    bomb = base64.b64encode(zlib.compress(bytes(1 << 20))).decode()
    write_lines(tmp_path / "responses/0.jsonl", RESPONSE | {"tokens": bomb})
    with pytest.raises(UserError, match=r"0.jsonl line 1 is not a response .*more than 1,024"):
        responses.Responses(epath.Path(tmp_path / "responses"))
    write_lines(tmp_path / "responses/0.jsonl", RESPONSE | {"tokens": ""}, b"{")
    with pytest.raises(UserError, match=r"0.jsonl line 1 is not a response .*cut short"):
        responses.Responses(epath.Path(tmp_path / "responses"))
    dump = tmp_path / "r/replay/a-1"
    dump.mkdir(parents=True)
    (tmp_path / "r/config.json").write_text(json.dumps({"model": {"preset": "tiny", "dtype": "float32", "remat": ""}}))
    call = {"kind": "sft", "temperature": 1.0, "chunk": 8, "loss": {}}
    (dump / "call.json").write_text(json.dumps(call))
    np.savez_compressed(dump / "batch-0.npz", *[np.zeros((2, 3))] * 4)
    assert len(replay.read(epath.Path(dump))[1][0]) == 4
    named = {"name": "qwen3-0.6b", "preset": "tiny", "dtype": "auto", "remat": ""}  # a model by config.model.name
    (tmp_path / "r/config.json").write_text(json.dumps({"model": named}))
    assert replay.read(epath.Path(dump))[2] == named | {"preset": "qwen3-0.6b", "dtype": "float32", "lora": None}
    for damage, said in (
        (lambda: np.savez_compressed(dump / "batch-0.npz", *[np.zeros((2, 3))] * 3), "3 arrays of shapes"),
        (lambda: np.savez_compressed(dump / "batch-0.npz", *[np.full((2, 3), "x")] * 4), "hold no numbers"),
        (lambda: (dump / "batch-0.npz").write_bytes(b"PK"), "batch-0.npz is damaged"),
        (lambda: (dump / "call.json").write_text(json.dumps(call | {"kind": "x"})), "kind is 'x', not one of sft"),
        (lambda: (dump / "call.json").write_bytes(DEEP), "call.json is nested deeper"),
    ):
        damage()
        with pytest.raises(UserError, match=said):
            replay.read(epath.Path(dump))
    np.savez_compressed(dump / "batch-0.npz", np.zeros((1 << 14, 1 << 6)))
    with pytest.raises(UserError, match="bytes when it is unpacked"):
        replay.read_arrays(epath.Path(dump / "batch-0.npz"), (1,))


def test_odd_records_of_an_experiment_name_the_line(tmp_path):
    """str.splitlines() cut a line at U+2028; a missing key was a KeyError after hours of runs."""
    run = epath.Path(tmp_path)
    write_lines(
        tmp_path / "metrics.jsonl", json.dumps(LINES["metrics.jsonl"] | {"x": "a\u2028b"}, ensure_ascii=False).encode()
    )
    write_lines(tmp_path / "eval.jsonl", LINES["eval.jsonl"])
    elsewhere = dict(forced=run / "none", scaled=run / "none")
    records = read.read_run(run, label="a", **elsewhere)
    assert len(records.steps) == 1 and read.value(records, ("eval", "s", "accuracy", "96")) == 0.1
    write_lines(tmp_path / "metrics.jsonl", LINES["metrics.jsonl"], {"stage": "a", "step": 2})
    with pytest.raises(UserError, match=r"metrics.jsonl line 2: there is no kind"):
        read.read_run(run, label="a", **elsewhere)
    (tmp_path / "config.json").write_bytes(b"{")
    with pytest.raises(UserError, match=r"config.json is not JSON .*choose another --workdir"):
        claim(run, {})


# ---- terminals


def test_nothing_steers_a_terminal(capsys):
    """A name, a note or an error cannot move the cursor, set a title, turn the text or start a new line."""
    out = io.StringIO()
    log = SimpleNamespace(console=Console(file=out, width=500, markup=False), main=True)
    log.say = lambda text, cell=None: RunLog.say(log, text, cell=cell)
    with RunLog.phase(log, f"[/red]{STEERING}\nerror: fake", total=1) as phase:
        assert isinstance(phase, Phase)
        phase.advance(1, f"[bold]{STEERING}\nerror: fake")
    log.say(f"{STEERING}\r\nerror: fake \ud800")
    said = out.getvalue()
    assert said.count("\n") == 2 and said.count("error: fake") == 3 and "[/red]" in said
    with pytest.raises(SystemExit):
        flags.stop(f"{STEERING}\nerror: fake\n  a list's line")
    told = capsys.readouterr().err
    assert told.count("\n") == 2 and "\n  a list's line" in told
    for text in (said, told):
        assert not set(text) & {"\x1b", "\x07", "\x9b", "\r", "\u202e", "\u2066", "\ud800"}
