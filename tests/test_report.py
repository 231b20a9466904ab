"""The report tells what the run's files say, survives missing files, and runs nothing that a model wrote."""

import csv
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from e3jax.report import compare, figures, html
from e3jax.report import read_run as records
from e3jax.tasks.prompts import qwen3_chat

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x.png onerror=alert(1)> $a_$ \u2028&"
ACCURACY = {  # stage -> budget -> mean, low, high
    "base": {"96": [0.121, 0.101, 0.141], "192": [0.15, 0.13, 0.17], "384": [0.152, 0.132, 0.172]},
    "easy": {"96": [0.22, 0.2, 0.24], "192": [0.4, 0.38, 0.42], "384": [0.513, 0.493, 0.533]},
}


def grpo_row(stage, step, **more):
    return {"stage": stage, "kind": "grpo", "step": step, "global_step": step, **more}


def write_lines(path, rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", errors="replace")


@pytest.fixture
def run_dir(tmp_path):
    """Write a run with two RL stages, nulls, absent keys and hostile text, killed in mid-line."""
    (tmp_path / "config.json").write_text(json.dumps({"model": {"width": 64}, "note": HOSTILE}))
    sft = [{"stage": "base", "kind": "sft", "step": s, "loss/total": 2 / s, "time/step_s": 0.6} for s in range(1, 101)]
    easy = [
        grpo_row("easy", s, **{"reward/mean": s / 40, "length/mean": 50.0 + s, "budget": 192, "length/correct": None})
        for s in range(1, 21)
    ]
    hard = [grpo_row("hard $x", s, **{"reward/mean": None, "loss/ppo_kl": 0.0}) for s in range(1, 6)]
    write_lines(tmp_path / "metrics.jsonl", sft + easy + hard)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "hard $x", "kind": "gr')
    evals = [
        {
            "stage": stage,
            "set": "3 numbers",
            "problems": 512,
            "samples": 4,
            "accuracy": ACCURACY[stage],
            "pass_at_k": {"1": [0.2, 0.1, 0.3], "2": [0.3, None, None]},
            "train_budget": train,
            "explore": {"attempts": 7.25, "give_up": None},
        }
        for stage, train in (("base", None), ("easy", 192))
    ]
    write_lines(tmp_path / "eval.jsonl", evals)
    row = {"accuracy": 0.1, "accuracy_doubled": 0.17, "ratio": 1.7, "satisfied": False}
    rows = [
        {**row, "budget": 96, "chosen": False},
        {**row, "budget": 192, "ratio": 1.05, "satisfied": True, "chosen": True},
        {**row, "budget": 384, "ratio": None, "satisfied": True, "chosen": False},
    ]
    choice = {"stage": "hard", "kappa": 1.2, "minimum": 60, "chosen": 192, "satisfied": True}
    write_lines(tmp_path / "budget.jsonl", [{**choice, "rows": rows}])  # without intervals and remarks: of older runs
    write_lines(tmp_path / "eval_samples.jsonl", [make_sample(i) for i in range(12)])
    return tmp_path


def make_sample(i):
    attempts = [
        {"text": "1 + 2 no", "verdict": "no", "truth": False},  # right
        {"text": "3 * 4 no", "verdict": "no", "truth": True},  # wrong
        {"text": "5 + 6 yes", "verdict": "yes", "truth": False},  # wrong
        {"text": HOSTILE, "verdict": None, "truth": False},  # no verdict
        {"text": "7 - 8 yes", "verdict": "yes", "truth": None},  # truth unknown
    ]
    return {
        "stage": "easy" if i else "base",
        "set": "3 numbers",
        "prompt": f"sample {i}: {HOSTILE}",
        "target": 24,
        "reward": 1,
        "reason": "correct",
        "length": 87,
        "done": i != 3,
        "answer": HOSTILE,
        "attempts": attempts,
        "tail": HOSTILE,
        "response": f"all: {HOSTILE}",
    }


class Page(HTMLParser):
    """An independent reading of the page: tags, tables as text, and everything that could load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.tables, self.text, self.styles = [], [], [], "", ""
        self.ids, self.stack, self.bold = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        self.stack.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" in self.stack:
            self.styles += data
            return
        self.text += data
        if "table" in self.stack and self.stack[-1] != "sup":
            self.tables[-1][-1][-1] += ("|" if self.stack[-1] == "small" else "") + data
            if self.stack[-1] == "b":
                self.bold.append(data)


def read(path):
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_headline_numbers_are_the_inputs(run_dir):
    """Guards against a swapped budget, stage or interval end: the table is parsed back."""
    _, page = read(html.write_report(run_dir))
    head, *rows = page.tables[0]
    assert head == ["checkpoint", "96|tokens", "192|tokens", "384|tokens", "gain|96 → 384"]
    for row, (stage, table) in zip(rows, ACCURACY.items(), strict=True):
        assert row[0] == stage
        for cell, values in zip(row[1:-1], table.values(), strict=True):
            parsed = [float(x) / 100 for x in re.split(r"[|,]", cell)]
            assert parsed == pytest.approx(values, abs=5e-4)
    assert [row[-1] for row in rows] == ["+3.1", "+29.3"]
    assert page.bold[:3] == ["22.0", "40.0", "51.3"]  # the best of each column


def test_sentence_says_what_was_measured(run_dir):
    """Guards against a claim at the wrong budget: 1x is the training budget, not the smallest."""
    rows = [json.loads(line) for line in (run_dir / "eval.jsonl").read_text().splitlines()]
    assert html.describe_result(rows) == (
        "On 3 numbers, accuracy at 192 tokens (the training budget of easy) goes from 15.0% (base) "
        "to 40.0% (easy): +25.0 points. From 192 to 384 tokens (2x), easy changes by +11.3 points, "
        "base by +0.2 points (the 95 % intervals overlap)."
    )
    del rows[1]["train_budget"]  # an old line: fall back to the smallest budget, and say so
    assert "at 96 tokens (the smallest tested) goes from 12.1%" in html.describe_result(rows)
    rows[1]["accuracy"] = {"96": [0.05, None, None]}  # worse, without an interval, no larger budget
    text = html.describe_result(rows)
    assert text.endswith("to 5.0% (easy): -7.1 points. No larger budget was tested.")
    rows[1]["accuracy"] = {"1024": [0.9, 0.8, 1.0]}
    assert "share no test budget" in html.describe_result(rows)


def test_page_is_self_contained_and_hostile_text_is_text(run_dir):
    """Guards against a model's text that runs or loads, and against fonts or scripts from a CDN."""
    text, page = read(html.write_report(run_dir))
    assert not {"script", "img", "link", "iframe", "object", "base"} & set(page.tags)
    assert not re.search(r"@import|url\(", page.styles)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name, value)
        if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert value.startswith("#") or (tag, value) == ("a", "samples.html"), (tag, name, value)
        if not name.startswith("xmlns"):
            assert not re.search(r"https?:|url\((?!#)", value), (tag, name, value)
    # prompt, answer, one attempt, tail, response of ten samples; the config's is quoted by JSON
    assert page.text.count(HOSTILE) == 5 * 10 + 1
    assert "&lt;script&gt;" in text


def test_svg_ids_are_unique(run_dir):
    """Guards against figures that clip or fill with another figure's definitions (equal ids)."""
    _, page = read(html.write_report(run_dir))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) > 50 and len(ids) == len(set(ids))
    used = [value for _, name, value in page.attributes if name == "xlink:href"]
    used += [f"#{x}" for _, _, v in page.attributes for x in re.findall(r"url\(#(.*?)\)", v or "")]
    assert used and {name[1:] for name in used} <= set(ids)


def test_figures_follow_the_page_colours(run_dir):
    """Guards against black axes on a dark page: no fixed colour may be left in a figure."""
    text, page = read(html.write_report(run_dir))
    svg = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()
    used = set(re.findall(r"var\((--s\d)\)", text))
    light, dark = page.styles.split("@media(prefers-color-scheme:dark)")[:2]
    assert used and all(f"{name}:#" in light and f"{name}:#" in dark for name in used)


def test_sections_budget_table_and_rollouts(run_dir):
    """Guards against a lost section, a wrong budget marked, right and wrong verdicts mixed up."""
    text, page = read(html.write_report(run_dir))
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "Result",
        "Accuracy against the test budget",
        "pass@k",
        "Training with RL",
        "Supervised training",
        "Choice of the training budget",
        "Rollouts",
        "Config",
    ]
    assert re.findall(r"<tr class='mark'><th>(\d+)</th>", text) == ["192"]
    assert page.tables[-1][2] == ["192", "10.0", "17.0", "1.05", "yes"]
    assert page.tables[-1][3][3] == "n/a"
    articles = re.findall(r"<article.*?</article>", text, flags=re.DOTALL)
    assert len(articles) == 10  # of the last stage only, so from sample 1 on
    assert "sample 1:" in articles[0] and "sample 10:" in articles[-1]
    chips = re.findall(r"<li class='chip (\w+)'>(.)", articles[0])
    signs = {"right": "✓", "wrong": "✗", "open": "·"}
    expected = ["right", "wrong", "wrong", "open", "open"]
    assert chips == [(style, signs[style]) for style in expected]
    assert ["cut by the budget" in article for article in articles] == [i == 2 for i in range(10)]
    assert "base</b> SFT, 100 steps, 1.0 min" in text and "easy</b> GRPO, 20 steps<" not in text
    assert "1 unreadable line skipped" in page.text and "lines skipped" not in page.text
    assert "Not logged: reward/all_zero" in page.text and "loss/ppo_kl" not in page.text


def test_budget_table_has_intervals_and_what_to_know(run_dir):
    """Nothing said that no budget satisfied Eq. 2, that nothing was solved, or that another was as likely."""
    row = {"accuracy": 0.1, "accuracy_doubled": 0.17, "ratio": 1.7, "satisfied": False, "chosen": False}
    rows = [{**row, "budget": 96, "interval": [1.1, 2.5]}, {**row, "budget": 192, "interval": [1.3, None]}]
    nothing = {**row, "budget": 96, "accuracy": 0, "accuracy_doubled": 0, "ratio": None, "interval": [None, None]}
    choice = {"kappa": 1.2, "minimum": 60, "chosen": 192, "satisfied": False}
    lines = [{**choice, "stage": "hard", "rows": rows, "remarks": ["<Not> satisfied.", "Could have been 96."]}]
    lines += [{**choice, "stage": "harder", "rows": [nothing], "remarks": []}]
    write_lines(run_dir / "budget.jsonl", lines)
    text, page = read(html.write_report(run_dir))
    assert [r[3] for r in page.tables[-2][1:]] == ["1.70 [1.10, 2.50]", "1.70 [1.30, ∞]"]
    assert page.tables[-1][1][3] == "n/a" and "no problem was solved at any B (0/0)" in page.text
    assert "&lt;Not&gt; satisfied." in text and "Could have been 96." in page.text and "no B satisfies it" in page.text


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "eval.jsonl", "budget.jsonl", "eval_samples.jsonl"])
def test_any_file_alone_or_missing(run_dir, tmp_path_factory, name):
    """Guards against a report that needs a finished run: any file may be missing, or alone."""
    alone = tmp_path_factory.mktemp("alone")
    (alone / name).write_bytes((run_dir / name).read_bytes())
    (run_dir / name).unlink()
    for path, missing in ((run_dir, {name}), (alone, set(FILES) - {name})):
        text, _ = read(html.write_report(path))
        (left_out,) = re.findall(r"<p class='none'>Nothing was recorded for: (.*?)\.</p>", text)
        assert len(left_out.split(", ")) == sum(FILES[other] for other in missing) == 8 - text.count("<h2>")


def test_a_chat_model_s_report_has_no_attempts(tmp_path):
    """Rows showed the chat template, "attempts" counted paragraphs of plain answers, and six sections said "none"."""
    steps = [
        grpo_row("rl", s, **{"reward/mean": 0.5, "explore/attempts": 1.0, "explore/verifications": 0.0}) for s in (1, 2)
    ]
    write_lines(tmp_path / "metrics.jsonl", steps)
    prompt = qwen3_chat("What is 1+1?", [{"role": "system", "content": "You help."}])
    answer = {"attempts": [], "answer": "", "tail": "It is two.", "response": "It is two."}
    write_lines(tmp_path / "eval_samples.jsonl", [make_sample(1) | answer | {"prompt": prompt}])
    text, page = read(html.write_report(tmp_path))
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Training with RL", "Rollouts"]
    assert "Attempts per response" not in page.text and "chip per attempt" not in page.text
    assert "1. What is 1+1?" in page.text and "im_start" not in page.text and page.text.count("It is two.") == 1
    assert "answer <b>" not in text
    write_lines(tmp_path / "metrics.jsonl", [*steps[:1], steps[1] | {"explore/verifications": 0.25}])
    assert "Attempts per response" in read(html.write_report(tmp_path))[1].text


FILES = {  # file -> how many sections are left out when it is missing
    "config.json": 1,
    "metrics.jsonl": 2,
    "eval.jsonl": 3,
    "budget.jsonl": 1,
    "eval_samples.jsonl": 1,
}


def test_read_jsonl_counts_what_it_skips(tmp_path):
    """Guards against silent loss, and against splitlines(), which cuts a text at U+2028."""
    path = tmp_path / "x.jsonl"
    lines = ['{"a": 1, "b": "x\u2028y"}', '{"a": 2', "", "7", '{"b": 3}', '{"a": NaN}', '{"a": "é']
    path.write_bytes("\n".join(lines).encode()[:-1])  # ends inside a character
    rows, note = records.read_record(path, {"a": object})
    assert [row["a"] for row in rows[:1]] == [1] and rows[0]["b"] == "x\u2028y"
    assert len(rows) == 2 and math.isnan(rows[1]["a"])
    assert note.startswith("x.jsonl: 4 unreadable lines skipped, line 2: not JSON (")
    assert records.read_record(tmp_path / "none.jsonl", {}) == ([], "")


def test_half_a_surrogate_is_written(run_dir):
    """Guards against a report that fails on "\\ud800", which JSON can carry and UTF-8 cannot."""
    with (run_dir / "eval_samples.jsonl").open("a") as file:
        file.write(json.dumps({**make_sample(1), "stage": "last", "prompt": "\ud800 end"}) + "\n")
    _, page = read(html.write_report(run_dir))
    assert "? end" in page.text


def test_repeated_steps_and_checkpoints_count_once(run_dir):
    """Guards against a resumed run whose repeated steps are drawn, or evaluated, twice."""
    rows = [grpo_row("a", s, **{"reward/mean": float(s)}) for s in (1, 2, 3, 2, 3)]
    rows[-1]["reward/mean"] = 30.0
    rows += [grpo_row("b", s, **{"reward/mean": 0.5}) for s in (1, 2)]
    first, second = figures.collect_stages(rows)
    np.testing.assert_array_equal(first.step, [1, 2, 3])
    np.testing.assert_array_equal(first.columns["reward/mean"], [1.0, 2.0, 30.0])
    np.testing.assert_array_equal(second.step, [4, 5])
    assert np.isnan(first.columns["loss/ppo_kl"]).all()
    again = {"stage": "base", "set": "3 numbers", "accuracy": {"96": [0.99, 0.98, 1.0]}}
    with (run_dir / "eval.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    _, page = read(html.write_report(run_dir))
    assert [row[:2] for row in page.tables[0][1:]] == [["base", "99.0|98.0, 100.0"], ["easy", "22.0|20.0, 24.0"]]


def test_interval_figure_draws_the_numbers():
    """Guards against a linear budget axis and against curve or training budget out of place."""
    rows = [{"stage": "easy", "accuracy": ACCURACY["easy"], "train_budget": 192}]
    lines = figures.collect_lines(rows, "accuracy", order=["base", "easy"])
    options = {"figure_id": "f", "title": "t", "xlabel": "tokens", "train_budget": 192.0}
    svg = figures.draw_intervals(lines, **options)
    curve = re.search(r'<path d="([^"]*)"[^>]*stroke: var\(--s1\)', svg)[1]
    train = re.search(r'<path d="([^"]*)"[^>]*stroke-dasharray', svg)[1]
    (x, y), (across, _) = (np.array(re.findall(r"[\d.]+", path), float).reshape(-1, 2).T for path in (curve, train))
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=1e-3)  # log2: doublings are equally far
    rise = (y[0] - y[1]) / (y[1] - y[2])  # in an SVG y points down
    assert rise == pytest.approx((0.4 - 0.22) / (0.513 - 0.4), rel=1e-3)
    np.testing.assert_allclose(across, x[1], atol=1e-3)
    drawn = re.search(r'<path d="[^"]*"[^>]*stroke: var\(--s1\)[^>]*>', svg)[0]
    assert "clip-path" not in drawn  # markers at 0 are whole


def test_running_mean_by_hand():
    """Guards against a mean that is shifted, counts NaN as zero, or pads the ends with zeros."""
    y = np.array([1.0, np.nan, 4.0, 6.0, 8.0])
    np.testing.assert_allclose(figures.running_mean(y, window=3), [1, 2.5, 5, 6, 7], atol=1e-12)
    np.testing.assert_array_equal(figures.running_mean(y, window=1), y)
    np.testing.assert_allclose(figures.running_mean(y, window=99), np.full(5, 4.75), atol=1e-12)
    assert np.isnan(figures.running_mean(np.full(4, np.nan), window=3)).all()
    with pytest.raises(ValueError, match=r"odd and positive.*: 4"):
        figures.running_mean(y, window=4)


def test_command_line(run_dir, tmp_path_factory):
    """Guards against a traceback, or exit code 0, for a wrong directory."""
    for command in (["e3jax.report.html"], ["e3jax.report"]):  # its former name still works
        command = [sys.executable, "-m", *command]
        done = subprocess.run([*command, run_dir], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(run_dir / "report.html")
    wrong = tmp_path_factory.mktemp("empty")
    done = subprocess.run([*command, wrong], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and f"{wrong} holds none of config.json" in done.stderr


def test_comparison_groups_seeds_and_its_tables_say_so(run_dir, tmp_path_factory):
    """Guards against a seed as a group of its own, a mean over groups, and cells that spreadsheets or TeX would run."""
    above = tmp_path_factory.mktemp("runs")
    for name, config, shift in (
        ("a", {"seed": 0, "x": 1}, 0),
        ("b", {"seed": 1, "x": 1}, 0.1),
        ("c", {"seed": 0, "x": 2}, 0),
    ):
        (above / name).mkdir()
        for file in FILES:
            (above / name / file).write_bytes((run_dir / file).read_bytes())
        (above / name / "config.json").write_text(json.dumps(config))
        rows = [json.loads(line) for line in (run_dir / "eval.jsonl").read_text().splitlines()]
        for row in rows:
            row["set"] = "=3_$"
            row["accuracy"] = {b: [x + shift for x in values] for b, values in row["accuracy"].items()}
        write_lines(above / name / "eval.jsonl", rows)
    path = compare.write_comparison([above / name for name in "abc"])
    text, page = read(path)
    assert [row[1:] for row in page.tables[0][1:]] == [["0, 1", "a, b"], ["0", "c"]]
    assert [row[0] for row in page.tables[0][1:]] == ["x=1", "x=2"]
    assert page.tables[-1] == [["field", "x=1", "x=2"], ["x", "1", "2"]] and "Where the configs differ" in text
    rows = list(csv.DictReader((path.parent / "accuracy.csv").open()))
    first, last = rows[0], rows[-1]
    assert (first["set"], first["group"], first["stage"], first["at"], first["seeds"]) == (
        "'=3_$",
        "x=1",
        "base",
        "96",
        "2",
    )
    assert [float(first[k]) for k in ("mean", "low", "high")] == pytest.approx([0.171, 0.121, 0.221])
    assert [float(last[k]) for k in ("mean", "low", "high")] == pytest.approx([0.513, 0.493, 0.533])
    tex = (path.parent / "accuracy.tex").read_text()
    assert "=3\\_\\$ & x=1 & base & 17.1 {\\scriptsize [12.1, 22.1]}" in tex and tex.count("\\\\\n") == 5
    assert text.count("<figure>") > 6 and HOSTILE not in text
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_copies_of_a_run_are_no_seeds(run_dir, tmp_path_factory):
    """A copy, under its own seed or another one, was a second seed: "2 seeds" and a band of no width."""
    above = tmp_path_factory.mktemp("copies")
    for name, seed in (("a", 0), ("again", 0), ("renamed", 1), ("other", 2)):
        (above / name).mkdir()
        for file in FILES:
            (above / name / file).write_bytes((run_dir / file).read_bytes())
        (above / name / "config.json").write_text(json.dumps({"seed": seed, "x": 1}))
    with (above / "again/metrics.jsonl").open("a") as file:  # got further
        file.write('\n{"stage": "easy", "kind": "grpo", "step": 99}\n')
    rows = [json.loads(line) for line in (run_dir / "eval.jsonl").read_text().splitlines()]
    write_lines(above / "other/eval.jsonl", rows[:1])
    _, page = read(compare.write_comparison([above / name for name in ("a", "again", "renamed", "other")]))
    assert page.tables[0][1][1:] == ["0, 1, 2", "again, renamed, other"]
    assert "a is left out: it is the same run as again." in page.text
    _, page = read(compare.write_comparison([above / name for name in ("a", "renamed")]))
    assert page.tables[0][1][1:] == ["0", "a"] and "renamed is left out: it is the same run as a." in page.text


def test_seed_band_by_hand():
    """Guards against a band over steps, or a seed that ended early counted as zero."""
    seeds = [
        figures.collect_stages([grpo_row("a", s, **{"reward/mean": y}) for s, y in enumerate(ys, 1)])
        for ys in ([0.0, 0.2, 0.4], [0.2, 0.6])
    ]
    band = figures.seed_band(seeds, "reward/mean", label="x", colour=1, window=1)
    np.testing.assert_array_equal(band.x, [1, 2, 3])
    np.testing.assert_allclose([band.mean, band.low, band.high], [[0.1, 0.4, 0.4], [0, 0.2, 0.4], [0.2, 0.6, 0.4]])
    assert figures.seed_band(seeds, "loss/ppo_kl", label="x", colour=1, window=1) is None
