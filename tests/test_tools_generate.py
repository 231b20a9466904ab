"""The first command of a newcomer: right tokens, whole characters, clean stdout, and one sentence for every mistake."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("transformers", reason="generate needs pip install -e '.[hf]'")
from e3jax.checkpoint.hf import save_hf
from e3jax.checkpoint.pretrained import write_description
from e3jax.errors import UserError
from e3jax.flags import guard
from e3jax.sampler.plan import Sampling
from e3jax.tasks.countdown_traces import WORDS
from e3jax.tokenizer import HubTokenizer, WordTokenizer
from e3jax.tools import generate
from e3jax.tools.prompts import make_prompt, read_prompts

ROOT = Path(__file__).parent.parent
STOP = (1, WordTokenizer(WORDS).index["?46"])  # EOS, and a word that generation_config.json names beside it
SAMPLING = dict(temperature=0.6, top_k=20, top_p=0.95, slots=8)


def ask(model, *, samples=1, budget=None, seed=0, temperature=0.6, **words):
    """Call `generate` with the defaults of its flags, except for what is given."""
    sampling = Sampling(**SAMPLING | {"temperature": temperature})
    words = generate.Words(**{"prompt": None, "prompts": None} | words)
    generate.generate(str(model), words, generate.Draws(samples, budget, seed, sampling), dtype="")


@pytest.fixture(scope="module")
def sharp(tiny):
    """Return a tiny model whose logits are spread enough that it stops by itself."""
    model, params = tiny
    return model, params | {"embed_vd": params["embed_vd"] * 8}


@pytest.fixture(scope="module")
def directory(sharp, tmp_path_factory):
    """Write the same model as a Hugging Face directory."""
    model, params = sharp
    path = tmp_path_factory.mktemp("hf")
    tokenizer = WordTokenizer(WORDS)
    tokenizer.stop = STOP
    write_description(path, model.config, tokenizer, dtype="float32", generation={})
    save_hf(params, path)
    return path


@pytest.fixture(scope="module")
def greedy(sharp):
    """Return (prompt, budget) -> response tokens and mean log-prob: the whole sequence again for every token."""
    model, params = sharp

    @jax.jit
    def logp(tokens, at):
        hidden, _ = model.apply({"params": params}, tokens, jnp.arange(40)[None])
        return jax.nn.log_softmax(hidden[0, at] @ params["embed_vd"].T)

    def respond(prompt, budget):
        tokens, logps = list(prompt), []
        while len(logps) < budget and (not logps or tokens[-1] not in STOP):
            padded = np.pad(tokens, (0, 40 - len(tokens)))[None]
            logp_v = np.asarray(logp(padded, len(tokens) - 1))
            tokens.append(int(logp_v.argmax()))
            logps.append(logp_v.max())
        return tokens[len(prompt) :], np.mean(logps)

    return respond


def test_greedy_lines_equal_repeated_argmax(greedy, directory, tmp_path, capsys):
    """Files, loading, templates, slots, stopping lie between a prompt and its line; each could change a token."""
    words = WordTokenizer(WORDS)
    asked = ["7 5 2 ?24", "3 3 ?9", "1 + 2 =", "99 ?98", "no yes", "50 40 30 ?20"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": a, "id": 1}) + "\n\n" for a in asked))
    ask(directory, prompts=str(tmp_path / "p.jsonl"), budget=20, temperature=0.0)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == asked
    last = set()
    for line in lines:
        tokens, logp = greedy(words.encode(line["prompt"]), 20)
        assert line["response"] == line["answer"] == words.decode(tokens)
        assert (line["sample"], line["thinking"], line["tokens"]) == (0, None, len(tokens))
        assert line["stopped"] == ("end" if tokens[-1] in STOP else "budget")
        np.testing.assert_allclose(line["logp_mean"], logp, atol=1e-4)
        last.add(tokens[-1])
    assert last > set(STOP), "both ways to stop, and the budget"


def test_commands(directory, tmp_path):
    """stdout holds JSON lines and nothing else, a closed pipe is no traceback, a wrong flag is one sentence."""
    (tmp_path / "p.txt").write_text("7 5 2 ?24\n3 3 ?9\n")
    ask = ["--model", directory, "--prompts", tmp_path / "p.txt", "--samples=2", "--budget=9", "--slots=2"]
    command = [sys.executable, "-m", "e3jax.tools.generate"]
    pipes = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    good = subprocess.Popen([*command, *ask], **pipes)
    closed = subprocess.Popen([*command, *ask], **pipes)
    closed.stdout.close()
    wrong = subprocess.Popen([*command, "--model=x", "--promt=hi"], **pipes)
    out, _ = good.communicate()
    lines = [json.loads(line) for line in out.splitlines()]
    assert good.returncode == 0
    assert [(x["prompt"], x["sample"]) for x in lines] == [(p, g) for p in ("7 5 2 ?24", "3 3 ?9") for g in (0, 1)]
    assert lines[0]["response"] != lines[1]["response"]
    out, errors = wrong.communicate()
    assert (wrong.returncode, out) == (2, b"") and errors.startswith(b"error: Unknown command line flag 'promt'")
    assert b"Traceback" not in closed.stderr.read() and closed.wait() == 141


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(), "either --prompt"),
        (dict(prompt="7", prompts="x.txt"), "either --prompt"),
        (dict(prompt="seven"), "'seven' is not in the model's vocabulary"),
        (dict(prompt=" "), "empty"),
        (dict(prompt="7 5", budget=2047), "prompt of 2 and a budget of 2047 tokens .* 2048: use --budget=2046 or less"),
        (dict(prompt="7", system="yes"), "no chat template"),
        (dict(prompt="7", system="yes", raw=True), "leave out --raw"),
    ],
)
def test_mistakes_are_one_sentence(directory, changes, message):
    with pytest.raises(UserError, match=message):
        ask(directory, **changes)


def test_budget_fits_the_model():
    assert generate.choose_budget(None, longest_prompt=10, max_length=2048) == generate.BUDGET
    assert generate.choose_budget(None, longest_prompt=2000, max_length=2048) == 48
    for asked in (None, 5):
        with pytest.raises(UserError, match=r"prompt of 2048 .* shorten the prompt"):
            generate.choose_budget(asked, longest_prompt=2048, max_length=2048)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "7", "neither .txt"),
        ("absent.txt", None, "cannot be read"),
        ("p.txt", "\n \n", "holds no prompt"),
        ("p.txt", b"\xff\xfe", "UTF-8"),
        ("p.jsonl", '{"prompt": "7"}\n{"prompt"\n', "line 2: "),
        ("p.jsonl", '\n["7"]\n', r"line 2: \[\"7\"\] is not an object"),
        ("p.jsonl", '{"prompt": "7", "messages": []}', "line 1: .* either"),
        ("p.jsonl", '{"prompt": 7}', "line 1: 7 stands where a string"),
        ("p.jsonl", '{"prompt": "\\ud83d"}', "line 1: .*surrogate"),
        ("p.jsonl", '{"messages": []}', "line 1: .*not a list"),
        ("p.jsonl", '{"messages": [{"role": "user"}]}', "line 1: None stands"),
    ],
)
def test_a_bad_file_names_its_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_prompts(str(tmp_path / name))


def test_prompts_of_text_files_keep_their_line(tmp_path):
    """U+2028 and a form feed are inside a prompt for everybody but str.splitlines."""
    (tmp_path / "p.txt").write_text("a\u2028b\x0cc\n\n d \n")
    assert read_prompts(str(tmp_path / "p.txt")) == ["a\u2028b\x0cc", " d "]


def test_the_chat_template_is_used_when_there_is_one(tmp_path):
    """A chat model fed a bare text continues it; a raw prompt in a template is not the one a model was trained on."""
    words = WordTokenizer(WORDS)
    words.save(tmp_path)
    template = "{% for m in messages %}{{ m.content }} {% endfor %}{% if enable_thinking %}= {% endif %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    tokenizer = HubTokenizer(str(tmp_path))

    def text(asked, *, raw=False, thinking=False, system=""):
        return words.decode(make_prompt(tokenizer, asked, raw=raw, thinking=thinking, system=system).tokens)

    messages = [{"role": "system", "content": "1"}, {"role": "user", "content": "2"}]
    assert text("7") == "7" and text("7", thinking=True) == "7 =" and text("7", system="yes") == "yes 7"
    assert text("7", raw=True, thinking=True) == "7"
    assert text(messages, thinking=True) == "1 2 ="
    assert text(messages[1:], system="yes") == "yes 2"
    with pytest.raises(UserError, match="system message of their own"):
        text(messages, system="yes")
    with pytest.raises(UserError, match="leave out --raw"):
        text(messages, raw=True)


# ---- how it is shown: a sampler that plays back a script


@pytest.fixture
def script(monkeypatch):
    """Play back (row, tokens) in this order, calling what is callable, instead of sampling."""
    tokenizer = WordTokenizer([*WORDS, "<think>", "</think>", "\x1b[2J"])
    pretrained = generate.Pretrained(None, None, tokenizer)
    prompts = [generate.Prompt(t, tokenizer.encode(t), t) for t in ("7 5 2 ?24", "3 3 ?9")]

    def play(show, prompts, blocks, *, samples=1):
        def sample(*_, events, **__):
            for block in blocks:
                if callable(block):
                    block()
                else:
                    row, text = block
                    tokens = [tokenizer.eos if word == "end" else tokenizer.index[word] for word in text.split()]
                    events.on_tokens(row, np.array(tokens), np.full(len(tokens), -0.5, np.float32))

        monkeypatch.setattr(generate, "sample", sample)
        show(pretrained, prompts, generate.Draws(samples, 9, 0, Sampling(temperature=1.0)))

    return SimpleNamespace(play=play, prompts=prompts)


def interrupt():
    raise KeyboardInterrupt


def test_lines_are_in_order_as_early_as_it_allows(script, capsys):
    """What is finished is not lost when a user stops the command."""
    lines, counts = [], []

    def look():
        lines.extend(json.loads(line) for line in capsys.readouterr().out.splitlines())
        counts.append(len(lines))

    blocks = [(2, "5 end"), look, (0, "<think> 1"), look, (0, "</think> 2 end"), look, (3, "end"), (1, "4"), interrupt]
    with pytest.raises(KeyboardInterrupt):
        script.play(generate.write_lines, script.prompts, blocks, samples=2)
    look()
    assert counts == [0, 0, 1, 3]
    assert [(x["prompt"], x["sample"], x["tokens"]) for x in lines] == [
        ("7 5 2 ?24", 0, 5),
        ("3 3 ?9", 0, 2),
        ("3 3 ?9", 1, 1),
    ]
    assert lines[0]["response"] == "<think> 1 </think> 2"
    assert (lines[0]["thinking"].strip(), lines[0]["answer"].strip()) == ("1", "2")
    assert lines[0]["logp_mean"] == -0.5


def test_a_terminal_sees_text_as_it_is_drawn(script, capsys):
    """Thinking is dimmed, a model cannot clear the screen, and the last line says why it stopped."""
    seen = []
    blocks = [(0, "<think> 1"), lambda: seen.append(capsys.readouterr().out), (0, "</think> \x1b[2J 2"), (0, "end")]
    script.play(generate.stream, script.prompts[0], blocks)
    rest = capsys.readouterr().out
    assert seen == ["\x1b[2m<think> 1"]
    assert rest.startswith(" </think>\x1b[0m \ufffd[2J 2\x1b[0m\n") and "6 tokens, " in rest and "end of resp" in rest
    script.play(generate.stream, script.prompts[0], [(0, "1 " * 9)])
    assert "9 tokens, budget spent" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        script.play(generate.stream, script.prompts[0], [(0, "1 2"), interrupt])
    assert "2 tokens, interrupted" in capsys.readouterr().out


def test_a_terminal_sees_many_under_their_headers(script, capsys):
    blocks = [(1, "<think> 1 </think> \x1b[2J 2 end"), (0, "4 5 end")]
    script.play(generate.show_all, script.prompts, blocks, samples=1)
    out = capsys.readouterr().out
    assert "prompt 2/2, sample 1/1: 3 3 ?9\n 1 \n\n \ufffd[2J 2\n6 tokens, end\n" in out
    assert out.index("prompt 2/2") < out.index("prompt 1/2, sample 1/1: 7 5 2 ?24\n4 5\n3 tokens, end\n")


def test_a_terminal_streams_one_and_lists_many(directory, monkeypatch):
    """Checks the choice among the three ways to show responses."""
    shown = []
    for name in ("stream", "show_all", "write_lines"):
        monkeypatch.setattr(generate, name, lambda *_, name=name, **__: shown.append(name))
    for terminal, samples in ((True, 1), (True, 2), (False, 1)):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        ask(directory, prompt="7 5 2 ?24", samples=samples)
    assert shown == ["stream", "show_all", "write_lines"]


def test_characters_come_whole(qwen3_files):
    """One byte-pair token may be a third of a character; shown at once it is \ufffd and never mended."""
    tokenizer = HubTokenizer(str(qwen3_files))
    text = "naïve 你好，𠮷𠮷 🤔🏳️‍🌈 é ᚠᛇᚻ\n\nok"
    tokens = tokenizer.encode(text)
    alone = [tokenizer.decode([t]) for t in tokens]
    assert sum("\ufffd" in a for a in alone) > 10
    stream = generate.TextStream(tokenizer.decode)
    pieces = [stream.add([t]) for t in tokens]
    assert "".join(pieces) == text and stream.rest() == ""
    assert all(piece for piece, a in zip(pieces, alone) if "\ufffd" not in a), "held back longer than needed"
    broken = generate.TextStream(tokenizer.decode)
    assert broken.add(tokens[:4]) + broken.add([next(t for t, a in zip(tokens, alone) if "\ufffd" in a)]) != ""
    assert broken.rest() == "\ufffd" and broken.rest() == ""


@pytest.mark.parametrize(
    ("error", "status"), [(UserError("mend it"), 2), (KeyboardInterrupt(), 130), (BrokenPipeError(), 141)]
)
def test_endings_without_a_traceback(error, status, capsys, monkeypatch):
    monkeypatch.setattr("os._exit", sys.exit)

    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        guard(main)
    assert ended.value.code == status
    assert capsys.readouterr().err == ("error: mend it\n" if status == 2 else "")
