"""Lines of any record are whole, or named: what a kill cut is dropped, what a person broke is told by file and line."""

import json
import pickle

import pytest

from e3jax import records
from e3jax.errors import UserError
from e3jax.log import RunLog
from e3jax.records import Records, read_lines


def test_a_record_of_any_name_is_mended_at_its_first_use(tmp_path):
    """Only records of listed names were mended. In others the next line was glued to a cut one, and the start after
    that was refused. A line that lacks only its newline is kept.
    """
    for name, cut, left in (("rows.jsonl", '{"index": 1, "ro', 1), ("done.jsonl", '{"index": 1}', 2)):
        for use in ("append", "keep", "lines"):
            path = tmp_path / use / name
            path.parent.mkdir(exist_ok=True)
            path.write_text('{"index": 0}\n' + cut)
            log = Records(path.parent)
            if use == "append":
                log.append(name, {"index": 9})
                assert [x["index"] for x in log.lines(name)] == [*range(left), 9]
            elif use == "keep":
                log.keep(name, lambda line: line["index"] > 0)
                assert len(log.lines(name)) == left - 1
            assert log.lines(name) == read_lines(path) and path.read_text() in ("", path.read_text().rstrip() + "\n")
    log = Records(tmp_path)
    log.add("progress.log", "12:00 begins\n")
    (tmp_path / "progress.log").write_text("12:00 begins\n12:0")
    again = Records(tmp_path)
    again.add("progress.log", "12:02 goes on\n")
    assert (tmp_path / "progress.log").read_text() == "12:00 begins\n12:02 goes on\n"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"index": {"index": 2}', "line 2: not JSON"),
        (b'{"index": "\xff"}', "line 2: not UTF-8"),
        (b"[" * 100_000, "line 2: nested deeper"),
        (b"[1]", "line 2: .* not an object"),
        (b'{"other": 1}', "line 2 has no 'index'"),
    ],
    ids=["glued", "bytes", "deep", "list", "field"],
)
def test_a_broken_line_is_named(tmp_path, line, why):
    """Each was a traceback. It is reported at the start of a run, not at the end of its first stage."""
    (tmp_path / "ledger.jsonl").write_bytes(b'{"index": 0}\n' + line + b'\n{"index": 2}\n')
    with pytest.raises(UserError, match=f"ledger.jsonl {why}"):
        RunLog(tmp_path, {}, tensorboard=False, wandb="")
        [x["index"] for x in Records(tmp_path).lines("ledger.jsonl")]


def test_texts_come_back(tmp_path):
    """`splitlines` cuts at U+2028 and others, which JSON need not escape; some editors put a BOM first."""
    text = "a\u2028b\u0085c\x1cd"
    (tmp_path / "x.jsonl").write_text("\ufeff" + json.dumps({"text": text}, ensure_ascii=False) + "\n\n")
    log = Records(tmp_path)
    log.append("x.jsonl", {"text": text})
    assert [x["text"] for x in log.lines("x.jsonl")] == [text, text]
    (line, _) = pickle.loads(pickle.dumps(log.lines("x.jsonl")))  # other processes get them so
    with pytest.raises(UserError, match=r"x.jsonl line 1 has no 'reward'"):
        line["reward"]


def test_a_bucket_gets_a_done_line_last(tmp_path, monkeypatch):
    """In the order of names "eval.jsonl" came before "problems.jsonl": a kill in between lost the problems for good."""
    monkeypatch.setattr(records, "is_bucket", lambda path: True)
    (tmp_path / "problems.jsonl").write_text('{"set": "old"}\n')
    log, written = Records(tmp_path), []
    for name in ("eval.jsonl", "problems.jsonl", "forced.jsonl", "eval.jsonl"):
        log.append(name, {"set": "new"})
    monkeypatch.setattr(records, "patiently", lambda what, act, **_: (written.append(what.split("/")[-1]), act()))
    log.flush()
    assert written == ["problems.jsonl", "forced.jsonl", "eval.jsonl"] and not log.late
    assert [x["set"] for x in read_lines(tmp_path / "problems.jsonl")] == ["old", "new"]
