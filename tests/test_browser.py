"""The pages, driven in headless Chromium: samples, the run as it goes; hostile text, light and dark, phone width."""

import json
import shutil
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from e3jax.report import browser, live, serve
from e3jax.report.browser import attempts, text_spans
from e3jax.report.html import write_report
from e3jax.tasks.prompts import last_question
from e3jax.tokenizer import pieces

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
HOSTILE = (
    "<script>alert(1)</script><img src=http://evil.example/x.png onerror=alert(1)> <!-- </script><svg onload=alert(1)> "
    "<a href='javascript:alert(1)'>go</a> \x00 \u202eabc \u2028 &lt; </ScRiPt \ud800 😀 end"
)
SEEN = HOSTILE.replace("\x00", "‹U+0000›").replace("\u202e", "‹U+202E›").replace("\u2028", "‹U+2028›")


def trained(step, problem, number, right, **more):
    text = (
        f"{number} + 5 * 2 = 12 24 ?24 0 yes <answer> 7 + 5 * 2 </answer>" if right else "7 + 5 - 2 = 12 10 ?24 14 no"
    )
    tokens = pieces(lambda words: " ".join(words), text.split())
    return {
        "stage": "easy" if step <= 50 else "hard",
        "step": step,
        "problem": f"p{problem}",
        "prompt": f"{problem} 5 2 ?24",
        "response": text,
        "answer": "24",
        "reward": float(right),
        "reason": "correct" if right else "wrong_value",
        "length": len(tokens) + right,
        "truncated": not right,
        "advantage": 1.5 if right else -0.5,
        "tokens": [*tokens, ""] if right else tokens,
        "entropy": [0.5] * (len(tokens) + right),
        "logp": [-0.25] * (len(tokens) + right),
    } | more


def evaluated(stage, problem, text, **more):
    return {
        "stage": stage,
        "set": "3 numbers",
        "prompt": f"{problem} 5 2 ?24",
        "target": "24",
        "reward": 0.0,
        "reason": "wrong_value",
        "length": len(text.split()),
        "done": True,
        "answer": "",
        "attempts": [],
        "tail": "",
        "response": text,
    } | more


def write(path: Path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Write a run with 8 steps of 4 samples, one of them hostile, and two evaluated checkpoints."""
    run = tmp_path_factory.mktemp("small")
    rows = [trained(step, step, g, g == 1) for step in (1, 2, 3, 51) for g in range(4)]
    rows.append(
        trained(52, 7, 0, False, response=HOSTILE, reason=HOSTILE, prompt=HOSTILE, tokens=[], entropy=[], logp=[])
    )
    phases = "<EXPLORATION> * 2 ?12 + </EXPLORATION> <EXECUTION> 7 + 5 = 12 * 2 = 24 </EXECUTION>"
    rows.append(trained(53, 8, 0, False, response=phases, tokens=[], entropy=[], logp=[]))
    write(run / "samples.jsonl", rows)
    with (run / "samples.jsonl").open("a") as file:
        file.write('{"stage": "hard", "st')
    write(
        run / "eval_samples.jsonl",
        [
            evaluated(stage, p, text)
            for p in (7, 9)
            for stage, text in (("base", f"{p} + 5 + 2 = 14 16 ?24 8 no"), ("hard", f"{p} + 5 * 2 = 12 24 ?24 0 yes"))
        ],
    )
    return run


@pytest.fixture(scope="module")
def chromium():
    """Start one browser for the file."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e '.[test]'")
    if shutil.which(CHROMIUM) is None:
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


class Opened:
    """An open page, and a record of everything that it must not do. `where`: a file, or the address of a server."""

    def __init__(self, chromium, where, scheme="light", width=1400):
        self.page = chromium.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        self.wrong = []
        where = where if isinstance(where, str) else where.as_uri()
        own = where.rpartition("/")[0] + "/" if where.startswith("http") else "file:"
        self.page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("request", lambda r: self.wrong.append(r.url) if not r.url.startswith(own) else None)
        self.page.goto(where)
        if self.page.locator("script").count():
            self.page.wait_for_function("window.painted > 0")

    def count(self):
        """Return the number of samples that the list shows, once the filters have been applied."""
        self.page.wait_for_timeout(100)
        return int(self.page.inner_text("#count").split()[0].replace(",", ""))

    def choose(self, **fields):
        self.page.click("#clear")
        for name, value in fields.items():
            select = name in ("from", "stage", "correct", "reason", "truncated", "order")
            (self.page.select_option if select else self.page.fill)(f"#{name}", value)
        return self.count()


@pytest.fixture(scope="module")
def opened(chromium, small):
    return Opened(chromium, browser.write_samples([small]))


def test_filters(opened):
    """Guards against a filter that is ignored or filters another column: counts are known by construction."""
    assert opened.count() == 22
    wanted = [
        (dict(correct="1"), 4),
        (dict(correct="0"), 18),
        (dict(reason="correct"), 4),
        (dict(truncated="1"), 14),
        (dict(stage="base"), 2),
        (dict(stage="easy"), 12),
        (dict(step0="2", step1="3"), 8),
        (dict(length0="16"), 4),
        (dict(attempts0="1"), 20),  # free text that begins once, and phases, have none
        (dict(attempts0="2"), 0),
        (dict(search="EVIL.example"), 1),
        ({"from": "3 numbers"}, 4),
        (dict(stage="hard", correct="1"), 1),
    ]
    for fields, count in wanted:
        assert opened.choose(**fields) == count, fields
    opened.choose(attempts0="2")
    assert "No sample passes" in opened.page.inner_text("#list") and opened.page.inner_text("#panes") == ""
    opened.choose(order="late")
    assert "hard · step 53" in opened.page.inner_text("#list li:first-child")
    assert "1 unreadable line skipped" in opened.page.inner_text("#notes")


def test_hostile_text_is_text(opened):
    """Guards against a sample that runs, loads something, ends the data's script tag, or turns the line around."""
    opened.choose(search="evil.example")
    page = opened.page
    assert page.text_content(".response") == SEEN
    assert page.text_content(".question") == SEEN
    inside = page.evaluate("[...document.querySelectorAll('#detail *, #list *')].map(x => x.tagName)")
    assert not {"SCRIPT", "IMG", "SVG", "A"} & set(inside)
    assert page.evaluate("document.querySelectorAll('script').length") == 2
    assert opened.wrong == []
    text = (browser.page([opened_dir(page)])).split('id="data">')[1]
    assert "<" not in text[: text.index("</script>")]


def opened_dir(page):
    return Path(page.url.removeprefix("file://")).parent


def test_keys(opened):
    """Guards against keys that a text field swallows or that never reach the list."""
    opened.choose()
    page, selected = opened.page, "#list [aria-selected=true]"
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    assert "#3" in page.inner_text(selected)
    page.keyboard.press("k")
    page.keyboard.press("ArrowLeft")
    assert "#1" in page.inner_text(selected)
    page.keyboard.press("/")
    page.keyboard.type("jk?evil")
    assert page.input_value("#search") == "jk?evil" and opened.count() == 0
    page.keyboard.press("Escape")  # leaves the field …
    page.keyboard.press("Escape")  # … and clears
    assert opened.count() == 22
    page.keyboard.press("?")
    assert page.is_visible("#keys")
    page.keyboard.press("Escape")
    assert not page.is_visible("#keys") and opened.count() == 22


def test_side_by_side(opened):
    """Guards against two samples of different problems beside each other."""
    opened.choose()
    page = opened.page
    page.keyboard.press("c")
    assert opened.count() == 2
    titles = page.eval_on_selector_all("#panes h2", "nodes => nodes.map(x => x.textContent)")
    texts = page.eval_on_selector_all("#panes .response", "nodes => nodes.map(x => x.textContent)")
    assert titles == ["base", "hard"]
    assert texts == ["7 + 5 + 2 = 14 16 ?24 8 no", "7 + 5 * 2 = 12 24 ?24 0 yes"]
    assert page.inner_text("#panes section:nth-child(2) .k-solution") != ""
    page.keyboard.press("j")
    assert page.text_content("#panes .response").startswith("9 + 5 + 2")
    page.keyboard.press("c")
    assert opened.count() == 22 and opened.wrong == []


def test_parts_and_colours(opened):
    """Guards against marks in the wrong place: the marked text is compared, behind a character of two code units."""
    page = opened.page
    opened.choose(correct="1", stage="hard")
    words = page.eval_on_selector_all(".response .k-check", "nodes => nodes.map(x => x.textContent).join('')")
    assert words == " 12 24 ?24 0 yes"
    page.click("text=entropy >> nth=0")
    hot = page.eval_on_selector_all(".response .h1", "nodes => nodes.map(x => x.textContent).join('')")
    assert hot.endswith("</answer> ⏹") and page.get_attribute(".response .h1", "title").startswith("entropy 0.500 nats")
    page.click("text=advantage >> nth=0")
    assert page.locator(".response .plus").count() > 0
    page.click("text=parts >> nth=0")
    opened.choose(search="EXPLORATION")
    plan = page.eval_on_selector_all(".response .k-plan", "nodes => nodes.map(x => x.textContent).join('')")
    assert plan.strip() == "* 2 ?12 +"


def test_thousands_open_quickly(chromium, tmp_path):
    """Guards against a page that renders what it does not show."""
    write(tmp_path / "samples.jsonl", [trained(i // 50 + 1, i // 4, i % 4, i % 3 == 0) for i in range(5000)])
    opened = Opened(chromium, browser.write_samples([tmp_path]))
    assert opened.count() == 5000
    assert opened.page.evaluate("document.querySelectorAll('*').length") < 2000
    assert opened.page.evaluate("window.painted") < 2000, "milliseconds until the list was on the screen"
    opened.page.keyboard.press("n")
    assert "page 2 of 100" in opened.page.inner_text("#page")


CONTRAST = """selectors => selectors.map(selector => {
    const dot = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true}), chain = [];
    const node = document.querySelector(selector);
    for (let at = node; at; at = at.parentElement) chain.unshift(getComputedStyle(at).backgroundColor);
    const lightness = colour => {
        dot.fillStyle = colour; dot.fillRect(0, 0, 1, 1);
        return [...dot.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
            .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    };
    const [under, text] = [chain.map(lightness).at(-1), lightness(getComputedStyle(node).color)];
    return (Math.max(under, text) + .05) / (Math.min(under, text) + .05);
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(chromium, small, scheme):
    """Guards against illegible text in light or dark mode: WCAG's 4.5. The button overrides the system's mode."""
    opened = Opened(chromium, browser.write_samples([small]), scheme)
    shown = [
        "body",
        "#count",
        "#filters label",
        "#list .facts",
        ".sign.no",
        "dt",
        ".response",
        ".legend .k-check",
        "#theme",
    ]
    ratios = opened.page.evaluate(CONTRAST, shown)
    assert min(ratios) >= 4.5, dict(zip(shown, ratios))
    page_colour = "getComputedStyle(document.body).backgroundColor"
    before = opened.page.evaluate(page_colour)
    for _ in range(1 if scheme == "dark" else 2):  # auto -> light -> dark
        opened.page.keyboard.press("t")
    assert opened.page.evaluate(page_colour) != before
    names = (
        "[...document.querySelectorAll('input, select')].filter(x => !x.labels.length && !x.ariaLabel).map(x => x.id)"
    )
    assert opened.page.evaluate(names) == []


def test_spans_are_what_the_metrics_count():
    """Guards against a page that marks other attempts than the curves count."""
    text = "7 + 5 - 2 = 12 10 ?24 14 no 7 + 5 * 2 = 12 24 ?24 0 no 5 + 2"
    kinds = [(text[s.start : s.end], s.kind) for s in text_spans("7 5 2 ?24", text)]
    assert kinds == [
        ("7 + 5 - 2 = 12 10 ?24 14 no", "right"),
        (" 12 10 ?24 14 no", "check"),
        ("7 + 5 * 2 = 12 24 ?24 0 no", "wrong"),
        (" 12 24 ?24 0 no", "check"),
        ("7 + 5 * 2 = 12 24 ?24 0 no", "solution"),
    ]
    free = text_spans("What is 3+4?", "3+4=8. Wait, no. It is \\boxed{\\frac{7}{1}}")
    assert [s.kind for s in free] == ["answer", "open", "open", "check"] and attempts(free) == 2
    odd = text_spans("7 5 2 ?24", "7  +\n5 no")  # not as the tokenizer writes: read as free text, not refused
    assert attempts(odd) == 0


def test_responses_of_an_evaluation(tmp_path):
    """Guards against responses with another sample's grade."""
    problem = {
        "stage": "m",
        "set": "s",
        "problem": "p0",
        "question": "q",
        "answer": "7",
        "reason_of": ["no_answer", "correct"],
        "right_of": [0, 1],
    }
    write(tmp_path / "problems.jsonl", [problem])
    (tmp_path / "responses/m/s").mkdir(parents=True)
    line = {"part": "response", "problem": 0, "id": "p0", "done": True, "length": 3, "tokens": ""}
    lines = [line | {"sample": g, "text": f"text {g}"} for g in (1, 0)] + [
        line | {"part": "wait-1", "sample": 0, "text": "x"}
    ]
    write(tmp_path / "responses/m/s/00000.jsonl", lines)
    columns = browser.page_data([tmp_path])["samples"]
    assert columns["text"] == ["text 1", "text 0"] and columns["reward"] == [1, 0]
    assert columns["reason"] == ["correct", "no_answer"]


def test_most_text_is_bounded(monkeypatch):
    """Guards against a page of gigabytes. Evaluations stay whole, and the page says what it leaves out."""
    monkeypatch.setattr(browser, "MOST_BYTES", 1000)
    rows = [{"step": s, "text": "x" * 100, "tokens": []} for s in [*range(1, 21), browser.NO_STEP]]
    kept, said = browser.thinned(rows)
    assert [row["step"] for row in kept] == [3, 6, 9, 12, 15, 18, browser.NO_STEP] and "one training step of 3" in said


def test_served_to_this_machine_only(small, tmp_path):
    """Guards against a server that other machines reach, that serves other files, or that shows an old page."""
    run = tmp_path / "run"
    shutil.copytree(small, run)
    server = serve.make_server(run, 0)
    assert server.server_address[0] == "127.0.0.1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    where = f"http://127.0.0.1:{server.server_address[1]}"

    def status(path, **headers):
        try:
            return urllib.request.urlopen(urllib.request.Request(where + path, headers=headers)).status
        except urllib.error.HTTPError as error:
            return error.code

    def samples():
        text = urllib.request.urlopen(where + "/samples.html").read().decode().split('id="data">')[1]
        return len(json.loads(text[: text.index("</script>")])["samples"]["text"])

    try:
        assert samples() == 22
        with (run / "eval_samples.jsonl").open("a") as file:
            file.write(json.dumps(evaluated("base", 3, "3 + 5 + 2 = 8 10 ?24 14 no")) + "\n")
        assert samples() == 23
        assert status("/") == status("/run.html") == status("/run.json") == status("/report.html") == 200
        assert status("/samples.jsonl") == status("/../samples.jsonl") == status("/%2e%2e/x") == 404
        assert status("/", Host="evil.example") == 403
    finally:
        server.shutdown()
        server.server_close()
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in small.iterdir())  # nothing was written


# ---- a chat model's samples

CHAT = "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        (CHAT.format("What is 1+1?"), "What is 1+1?"),
        (CHAT.format("1+1?").removesuffix("<|im_start|>assistant\n") + CHAT.format("And 2+2?"), "And 2+2?"),
        ("<|start_header_id|>user<|end_header_id|>\n\n1+1?<|eot_id|><|start_header_id|>assistant", "1+1?"),
        ("<bos><start_of_turn>user\n1+1?<end_of_turn>\n<start_of_turn>model\n", "1+1?"),
        ("<s>[INST] 1+1? [/INST]", "1+1?"),
        ("7 5 2 ?24", "7 5 2 ?24"),
        (CHAT.format(""), CHAT.format("")),
    ],
)
def test_the_question_in_a_chat_template(prompt, question):
    """Every row of a chat model's samples began with the same words: those of its template."""
    assert last_question(prompt) == question


def test_a_chat_model_s_samples(chromium, tmp_path):
    """Rows show the question; no attempts, no filter with one value, no heading without a value."""
    plain = dict(answer="", reward=1.0, reason="own", truncated=False, tokens=[], entropy=[], logp=[], stage="rl")
    rows = [
        trained(step, step, 1, True, prompt=CHAT.format(f"What is {step}+1?"), response="It is so.", **plain)
        for step in (1, 2)
    ]
    write(tmp_path / "samples.jsonl", rows)
    opened = Opened(chromium, browser.write_samples([tmp_path]))
    page = opened.page
    shown = page.eval_on_selector_all("#list .prompt", "nodes => nodes.map(x => x.textContent)")
    assert shown == ["What is 1+1?", "What is 2+1?"] and page.text_content(".question") == "What is 1+1?"
    assert page.text_content("details .question") == rows[0]["prompt"]
    assert "attempt" not in page.inner_text("body").lower() and "expected" not in page.inner_text("#detail")
    hidden = "nodes => nodes.filter(x => !x.checkVisibility()).map(x => x.id)"
    assert set(page.eval_on_selector_all("#filters select, #filters input", hidden)) == {
        "run", "from", "stage", "correct", "reason", "truncated", "attempts0", "attempts1", "a", "b"
    }  # fmt: skip
    chips = page.eval_on_selector_all(".row button", "nodes => nodes.map(x => x.textContent)")
    assert chips == ["parts", "advantage"] and not page.is_visible("#compare")
    page.keyboard.press("e")
    assert page.locator(".response .plus").count() > 0 and opened.wrong == []


# ---- the run as it goes

SPEED = {"time/step_s": 2.0, "time/rollout_s": 1.5, "time/rollout_tokens_per_s": 1000.0, "memory/host_gib": 1.25}


def step(stage, n, **more):
    return {"stage": stage, "kind": "grpo", "step": n, "global_step": n, "reward/mean": n / 8, **SPEED, **more}


@pytest.fixture
def going(tmp_path, monkeypatch):
    """Write a run in the middle of its second stage, whose name is hostile, and serve it."""
    stages = {"base": ("sft", 20), "<b>easy</b>": ("grpo", 2), "hard": ("grpo", 8), "unlike": ("oxa", 5)}
    config = {"order": [*stages], "stages": {name: {"kind": k, "steps": n} for name, (k, n) in stages.items()}}
    (tmp_path / "config.json").write_text(json.dumps(config | {"seed": 0}))
    base = [
        {"stage": "base", "kind": "sft", "step": n, "loss/total": 1.0, "time/step_s": 0.5, "time/tokens_per_s": 800.0}
        for n in (10, 20)
    ]
    write(tmp_path / "metrics.jsonl", [*base, *(step("<b>easy</b>", n) for n in (1, 2)), step("hard", 1)])
    monkeypatch.setattr(live, "EVERY_S", 0.2)
    server = serve.make_server(tmp_path, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path, f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


def test_seconds_left_by_hand(going):
    """7 steps of hard are left at 2 s each; nothing tells how long a step of `unlike` takes."""
    run, _ = going
    config = json.loads((run / "config.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert live.seconds_left(rows, config) == (14.0, ["unlike"])
    assert live.seconds_left(rows[:3], config) == (18.0, ["unlike"])  # hard at the pace of easy
    assert live.seconds_left([], config) == (0.0, [*config["order"]])
    assert live.time_left(rows[:2], {}) == live.time_left([], {"order": 3}) == ""
    tokens = live.live_data(run)["kinds"][0]["x"]["tokens"]
    assert tokens == [1500.0, 3000.0, 4500.0]
    supervised = live.live_data(run)["kinds"][1]["x"]
    assert supervised["tokens"] == [4000.0, 8000.0] and supervised["hours"][-1] == pytest.approx(10 / 3600, rel=1e-5)


def test_a_run_as_it_goes(chromium, going):
    """The page follows the run by itself, keeps what was chosen, and runs nothing that a name says."""
    run, where = going
    opened = Opened(chromium, where)
    page = opened.page
    cells = page.eval_on_selector_all("#status div", "nodes => nodes.map(x => [...x.children].map(y => y.innerText))")
    assert dict(cells) == {
        "stage": "hard", "step": "1 of 8", "seconds per step": "2", "tokens per second": "1,000",
        "memory, most so far": "1.2 GiB host", "training time left": "about 14 s, without unlike",
    }  # fmt: skip
    assert page.eval_on_selector_all("h2", "nodes => nodes.map(x => x.textContent)") == [
        "Training with RL",
        "Supervised training",
    ]
    reward = page.locator("figure", has_text="Reward").first
    assert "mean0.125" in reward.locator("figcaption").text_content()  # the newest value
    box = reward.locator("svg").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    assert "mean0.25" in reward.locator("figcaption").text_content()
    assert page.text_content("#kinds section p") == "<b>easy</b>, step 2"
    page.select_option("#x", "tokens")
    assert page.locator("svg text", has_text="tokens").count() > 0
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(step("hard", 2)) + "\n")
    page.locator("#status", has_text="2 of 8").wait_for()
    assert page.input_value("#x") == "tokens" and "about 12 s" in page.inner_text("#status")
    (run / "DONE").write_text("now\n")
    page.locator("#now", has_text="finished").wait_for()
    assert page.locator("#kinds b b, #kinds script").count() == 0 and opened.wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_on_a_phone(chromium, going, small, scheme):
    """Guards against pages wider than a phone, and text of too little contrast on the run's page: WCAG's 4.5."""
    run, where = going
    opened = Opened(chromium, where, scheme, width=390)
    ratios = opened.page.evaluate(CONTRAST, ["body", "#now", "dt", "dd", "figcaption span", "label"])
    assert min(ratios) >= 4.5, ratios
    write_report(run)
    files = run / "report.html", browser.write_samples([small])
    for shown in (opened, *(Opened(chromium, file, scheme, width=390) for file in files)):
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= 390, shown.page.url
        assert shown.wrong == []
