"""The page of made-up results: it says what they say, draws their figures, and runs nothing in them."""

import copy
import json

import pytest

from e3jax.errors import UserError
from e3jax.experiments import paper, results
from e3jax.metrics.seeds import judge, verdict
from tests.test_report import HOSTILE, Page

LINE = {"label": "grpo", "x": [96, 192], "mean": [0.4, 0.6], "low": [0.3, None], "high": [0.5, None]}
VALUES = {"length": {"grpo": {0: 70.0, 1: 72.0}, "mask": {0: 60.0, 1: 61.0}}}
STATEMENT = {"says": "longer", "measure": "length", "plus": ("grpo",), "minus": ("mask",), "kind": "above", "margin": 0}


def made_up(**changes) -> dict:
    rule = [judge(STATEMENT, VALUES, seeds=(0, 1), level=0.95)]
    return {
        "name": "mask",
        "paper": "Fig. 5",
        "claim": "longer",
        "setting": "tiny",
        "command": "python -m x",
        "minutes": 12.0,
        "seeds": [0, 1],
        "level": 0.95,
        "arms": {"grpo": "all", "mask": "positive"},
        "measures": {"length": {"says": "tokens", "percent": False}},
        "values": VALUES,
        "rule": rule,
        "verdict": verdict([row["outcome"] for row in rule]),
        "figures": [
            {
                "title": "Acc",
                "xlabel": "test budget",
                "ylabel": "",
                "log2": True,
                "percent": True,
                "mark": 96,
                "lines": [LINE],
            },
            {
                "title": "Length",
                "xlabel": "step",
                "ylabel": "tokens",
                "log2": False,
                "percent": False,
                "mark": None,
                "lines": [LINE | {"label": "b"}],
            },
        ],
        "tables": [{"title": "T", "header": ["a"], "rows": [["1"]]}],
        "failed": [],
    } | changes


def test_page_tells_two_results(tmp_path, capsys):
    """Numbers, verdicts, hostile text as text, nothing loaded, unique ids; a directory without results is skipped."""
    first, second = tmp_path / "a", tmp_path / "b"
    hostile = made_up(
        name=HOSTILE,
        claim=HOSTILE,
        setting=HOSTILE,
        command=HOSTILE,
        paper=HOSTILE,
        arms={"grpo": HOSTILE},
        verdict="mixed",
        tables=[{"title": HOSTILE, "header": [HOSTILE], "rows": [[HOSTILE]]}],
        failed=[{"arm": HOSTILE, "seed": 0, "why": HOSTILE}],
    )
    hostile["figures"][0] |= {"title": HOSTILE, "xlabel": HOSTILE, "ylabel": HOSTILE}
    hostile["figures"][0]["lines"] = [LINE | {"label": HOSTILE}]
    for directory, of in ((first, made_up()), (second, hostile)):
        directory.mkdir()
        results.write(directory, of)
    (tmp_path / "bases").mkdir()
    to = paper.write_page([str(first), str(second), str(tmp_path / "bases")], tmp_path / "paper.html")
    text = to.read_text()
    page = Page(text)
    assert "script" not in page.tags and "img" not in page.tags and page.tags.count("svg") == 6
    assert not [a for a in page.attributes if a[1].startswith("on") or (a[1] in ("src", "href") and "//" in str(a[2]))]
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert text.count("alert(&#x27;x&#x27;)") >= 9
    row = page.tables[1][1]  # mean of 10 and 11; t(.975, 1) = 12.706, sd .707, so 10.5 ± 6.35
    assert row == ["longer|length: grpo − mask > 0", "holds", "", "10.5|4.15 … 16.9", "10, 11"]
    # drawn from 0 in the middle: the largest end, 16.9, is 85 to the right of 90
    assert "<path d='M110.9 9H175.0' stroke='var(--c)'" in text and "<circle cx='143.0'" in text
    out = capsys.readouterr()
    assert "| Fig. 5 | `python -m x` | reproduced | longer: 10.5 (4.15 … 16.9), holds |" in out.out
    assert "bases: no results.json yet, skipped" in out.err


def test_one_seed_is_shown_without_an_interval(tmp_path):
    rule = [judge(STATEMENT, VALUES, seeds=(0,), level=0.95)]
    results.write(tmp_path, made_up(rule=rule, verdict="not decided", seeds=[0]))
    assert json.loads((tmp_path / "results.json").read_text())["rule"][0]["low"] is None
    page = Page(paper.whole_page([results.read(tmp_path)]))
    assert page.tables[1][1] == ["longer|length: grpo − mask > 0", "not shown", "", "10|– … –", "10"]
    assert page.tags.count("svg") == 2  # the figures, no interval


def test_figure_as_a_file():
    svg = paper.figure_file(made_up()["figures"][0])
    assert svg.startswith("<svg xmlns=") and "var(--" not in svg and "grpo" in svg


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.pop("claim"), "has no 'claim'"),
        (lambda r: r.update(seeds=3), "'seeds' is int"),
        (lambda r: r["rule"][0].pop("low"), r"rule\[0\] has no 'low'"),
        (lambda r: r.update(verdict="fine"), "verdict 'fine' is not one of reproduced"),
    ],
)
def test_wrong_results_are_named(tmp_path, change, words):
    """A results file that lacks something is named before half a page is made."""
    of = copy.deepcopy(made_up())
    change(of)
    with pytest.raises(UserError, match=words):
        results.write(tmp_path, of)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        results.read(tmp_path)
    with pytest.raises(UserError, match="none of these directories has results"):
        paper.write_page([str(tmp_path.parent)], tmp_path / "x.html")
