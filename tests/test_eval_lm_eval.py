"""lm-eval on our models scores as transformers does on the same weights: log-likelihoods, greedy flags, texts."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("transformers", reason="real tokenizers need pip install -e '.[hf]'")
import tiny_hub
import tiny_text
from rich.console import Console

from e3jax.checkpoint.pretrained import load_pretrained
from e3jax.errors import UserError
from e3jax.eval import lm_eval as ours
from e3jax.rollout.likelihood import Batching, batches, log_likelihoods
from e3jax.sampler.layout import sampling_layout
from e3jax.sampler.slots import unsampled
from e3jax.sharding import make_mesh

ROOT = Path(__file__).parent.parent
MOST = 48  # tokens; short, so that contexts are cut
FAMILIES = {"qwen3-tied": False, "llama-3.2": True}  # -> whether texts get a begin token


def write_model(path, family):
    size = tiny_text.write_tokenizer(path, begin=FAMILIES[family])
    return tiny_hub.write_tiny(path, family, vocab_size=size, eos_token_id=None)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Write a tiny model with a byte-level tokenizer as a Hugging Face directory."""
    return write_model(tmp_path_factory.mktemp("qwen3"), "qwen3-tied")


def load(directory):
    return load_pretrained(str(directory), dtype="float32", mesh=one_device())


def one_device(**_):
    return make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def pretrained(directory):
    return load(directory)


def transformers_of(directory):
    """Return a function from tokens to transformers' log-softmax [T, V] in float64, and its tokenizer."""
    torch = pytest.importorskip("torch", reason="transformers' models need pip install -e '.[parity]'")
    from transformers import AutoTokenizer

    model = tiny_hub.transformers_model(directory)

    def logp(tokens):
        with torch.no_grad():
            return torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), -1).numpy()

    return logp, AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def reference(directory):
    return transformers_of(directory)


MODEL = dict(model="tiny", dtype="", max_length=None, tokens=256, slots=4, thinking=False, seed=0)


def adapter(pretrained, **changes):
    pytest.importorskip("lm_eval", reason="the adapter needs pip install -e '.[lm-eval]'")
    options, batching = ours.ModelOptions(**MODEL | changes), Batching(256, MOST, pretrained.tokenizer.pad)
    return ours.make_lm(ours.Served(pretrained, options, batching, Console(quiet=True)))


def instances(*args):
    return [SimpleNamespace(args=a) for a in args]


def reference_score(logp, context, continuation, most):
    """Score one request alone, as lm-eval's documentation of a causal model says."""
    both = (context + continuation)[-(most + 1) :]
    table = logp(both[:-1])[-len(continuation) :]
    return table[np.arange(len(continuation)), continuation].sum(), (table.argmax(1) == continuation).all()


LONG = "Question: is the answer seven or no? " * 9  # more than MOST tokens
PAIRS = (
    ("Question: is the", " answer is yes"),  # many tokens
    ("Question: is the answer", " yes"),
    ("Question: is the answer", " no"),
    ("the answer is ", "no"),  # the blank goes to the continuation
    ("x ab", "c y"),  # "abc" is one token
    (LONG, " yes the answer is seven"),  # the context loses its first tokens
    ("", "the answer"),  # nothing before it
    ("Answer:", " é ☃"),  # bytes
)


def test_a_merge_hides_the_boundary(pretrained):
    """The fixture has what the next tests need: a boundary inside a token, and a context that is too long."""
    tokenizer = pretrained.tokenizer
    assert len(tokenizer.encode("abc")) == 1 and len(tokenizer.encode("ab")) > 0
    assert len(tokenizer.encode(LONG)) > MOST


@pytest.mark.parametrize("family", FAMILIES)
def test_log_likelihoods_equal_transformers(family, tmp_path):
    """Splitting, truncation, shared rows and padding: each would shift a score by more than 1e-4.

    lm-eval's split where a token hides the boundary: the context as it is encoded alone, then those tokens of both
    encoded together that lie behind as many.
    """
    logp, tokenizer = transformers_of(write_model(tmp_path, family))
    lm = adapter(load(tmp_path))
    got = lm.loglikelihood(instances(*PAIRS), disable_tqdm=True)
    prefix = tokenizer.bos_token_id if FAMILIES[family] else tokenizer.eos_token_id
    assert (tokenizer.encode("x")[0] == prefix) == FAMILIES[family]
    for (context, continuation), (score, greedy) in zip(PAIRS, got):
        if context:
            first = tokenizer.encode(context.rstrip())
            second = tokenizer.encode(context + continuation)[len(first) :]
        else:
            first, second = [prefix], tokenizer.encode(continuation, add_special_tokens=False)
        expected, likeliest = reference_score(logp, first, second, MOST)
        assert abs(score - expected) < 1e-4, (context, continuation)
        assert greedy == likeliest
    # a text longer than the model: every token is predicted once, with as much before it as fits
    got = lm.loglikelihood_rolling(instances((LONG,), ("no",)))
    for text, score in zip((LONG, "no"), got):
        tokens, total, done = tokenizer.encode(text), 0.0, 0
        while done < len(tokens):
            n = min(len(tokens) - done, MOST)
            read = ([prefix, *tokens])[max(done + n - MOST, 0) : done + n]
            table = logp(read)[-n:]
            total += table[np.arange(n), tokens[done : done + n]].sum()
            done += n
        assert abs(score - total) < 1e-4 * max(1, len(tokens) / 10)


def test_the_likeliest_continuation_is_greedy(pretrained, reference):
    """Random continuations are never the likeliest: a flag that is always False would pass."""
    logp, tokenizer = reference
    context = tokenizer.encode("the answer is")
    written = list(context)
    for _ in range(3):
        written.append(int(logp(written)[-1].argmax()))
    continuation = written[len(context) :]
    other = [*continuation[:1], (continuation[1] + 1) % 120, continuation[2]]
    model, params, _ = pretrained
    good, bad = log_likelihoods(model, params, [(context, continuation), (context, other)], Batching(64, MOST, 0))
    assert good.greedy and not bad.greedy
    assert abs(good.logp - reference_score(logp, context, continuation, MOST)[0]) < 1e-4


def test_responses_equal_transformers(pretrained, reference):
    """Greedy texts are equal, cut at the first `until`: between tokens, inside a token, or not at all."""
    logp, tokenizer = reference
    prompts = ["Question: is", "the answer", LONG, ""]
    budget, room = 12, MOST - 12

    def respond(prompt):
        written = (tokenizer.encode(prompt) or [tokenizer.eos_token_id])[-room:]
        drawn = []
        while len(drawn) < budget and tokenizer.eos_token_id not in drawn:
            drawn.append(int(logp(written + drawn)[-1].argmax()))
        return drawn, tokenizer.decode(drawn, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    whole = {p: respond(p) for p in prompts}
    tokens, text = whole[prompts[0]]
    by_token = tokenizer.decode(tokens[4:6])
    for until in ([by_token], [text[3:5], "\x00never"]):
        settings = {"until": until, "max_gen_toks": budget, "do_sample": False}
        got = adapter(pretrained).generate_until(instances(*((p, settings) for p in prompts)))
        for prompt, said in zip(prompts, got):
            expected = whole[prompt][1]
            for u in until:
                expected = expected.split(u)[0]
            assert said == expected, (prompt, until)


def test_stop_strings_stop_the_sampler(pretrained, monkeypatch):
    """`until` ends a response while it is drawn, without waiting for the budget; a thought goes on."""
    seen = []

    def sample(model, params, requests, sampling, *, stop, pad, **_):
        seen.append(stop)
        return unsampled(requests.prompts, 1, pad=pad)

    monkeypatch.setattr(ours, "sample", sample)
    settings = {"until": "\n\n", "max_gen_toks": 4}
    adapter(pretrained).generate_until(instances(("the", settings)))
    adapter(pretrained, thinking=True).generate_until(instances(("the", settings)))
    newlines = tuple(pretrained.tokenizer.encode("\n\n"))
    assert seen == [[*pretrained.tokenizer.stop, newlines], [*pretrained.tokenizer.stop]]


def test_repeats_differ_and_the_batch_does_not_matter(pretrained):
    """A request that comes twice gets two sampled responses, and neither depends on the requests beside it."""
    settings = {"max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    many = adapter(pretrained).generate_until(instances(*[("the answer", settings)] * 2, ("Question", settings)))
    alone = adapter(pretrained).generate_until(instances(("Question", settings)))
    assert many[0] != many[1] and many[2] == alone[0]


def test_settings_that_the_sampler_has_not_are_refused():
    assert ours.read_settings({"until": None, "num_beams": 1}) == ours.Settings((), 256, 0.0, 0, 1.0)
    assert ours.read_settings({"do_sample": True, "max_new_tokens": 9, "top_k": -1}).temperature == 1.0
    for odd in ({"num_beams": 4}, {"repetition_penalty": 1.2}, {"max_gen_toks": 0}):
        with pytest.raises(UserError, match="generation settings"):
            ours.read_settings(odd)


def test_what_cannot_be_scored_is_an_error(pretrained):
    model, params, _ = pretrained
    for pair in (([], [1]), ([1], []), ([1], [1] * (MOST + 1))):
        with pytest.raises(UserError, match="request 0: a context of"):
            log_likelihoods(model, params, [pair], Batching(64, MOST, 0))
    with pytest.raises(UserError, match="leaves no room for a prompt in 48"):
        adapter(pretrained).generate_until(instances(("the", {"max_gen_toks": MOST})))


def test_few_shapes_and_little_padding():
    """The tokens computed for many lengths are bounded; a mesh of 8 devices takes rows in eights."""
    rng = np.random.default_rng(0)
    lengths = sorted(np.clip(rng.lognormal(5.5, 0.8, 3000).astype(int), 5, 4096).tolist(), reverse=True)
    for groups in (1, 8):
        made = list(batches(lengths, tokens=16_384, most=4096, groups=groups))
        assert [i for _, _, which in made for i in which] == list(range(len(lengths)))
        assert all(rows % groups == 0 and len(which) <= rows for rows, _, which in made)
        assert all(lengths[which.start] <= width for _, width, which in made)
        assert len({(rows, width) for rows, width, _ in made}) <= 13
        assert sum(lengths) / sum(rows * width for rows, width, _ in made) > 0.75


def test_a_mesh_changes_nothing(directory, pretrained):
    """Rows spread over 8 devices get the same scores."""
    pairs = [([5, 6, 7, i], [8, i]) for i in range(11)]
    model, params, _ = pretrained
    expected = log_likelihoods(model, params, pairs, Batching(64, MOST, 0))
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    with jax.set_mesh(mesh):
        model, params, _ = load_pretrained(str(directory), dtype="float32", mesh=mesh)
        with sampling_layout(params, tensor=1, dtype=jnp.float32) as spread:
            got = log_likelihoods(model, spread, pairs, Batching(64, MOST, 0))
    np.testing.assert_allclose([s.logp for s in got], [s.logp for s in expected], atol=1e-5)
    assert [s.greedy for s in got] == [s.greedy for s in expected]


# ---- whole tasks


QUESTIONS = [{"question": f"Is {n} the answer?", "choices": ["yes", "no", "seven"], "label": n % 3} for n in range(7)]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Write two local tasks: multiple choice (log-likelihoods) and short answers (responses)."""
    path = tmp_path_factory.mktemp("tasks")
    (path / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    data = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {path}/questions.jsonl\ntest_split: test\n"
    (path / "tiny_choice.yaml").write_text(
        "task: tiny_choice\n" + data + "output_type: multiple_choice\n"
        'doc_to_text: "Question: {{question}}\\nAnswer:"\ndoc_to_choice: choices\ndoc_to_target: label\n'
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )
    (path / "tiny_answer.yaml").write_text(
        "task: tiny_answer\n" + data + "output_type: generate_until\n"
        'doc_to_text: "Question: {{question}}\\nAnswer:"\ndoc_to_target: "{{choices[label]}}"\n'
        'generation_kwargs:\n  until: ["\\n\\n"]\n  max_gen_toks: 6\nmetric_list:\n  - metric: exact_match\n'
    )
    return path


TASKS = dict(limit=None, num_fewshot=None, gen_kwargs=None, chat=False, system=None)


def evaluate(directory, tasks, names, *, to, samples_to=None, thinking=False, **changes):
    options = ours.ModelOptions(**MODEL | dict(model=str(directory), tokens=64, slots=8, thinking=thinking))
    asking = ours.TaskOptions(tasks=names, include_path=str(tasks), **TASKS | changes)
    return ours.evaluate(options, asking, to=str(to), samples_to=samples_to and str(samples_to))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Turn the hub off, with an empty cache of data."""
    pytest.importorskip("lm_eval", reason="the command needs pip install -e '.[lm-eval]'")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(ours, "make_mesh", one_device)  # 8 simulated devices compile for long


def test_a_local_task_end_to_end(directory, reference, tasks, tmp_path, offline, capsys):
    """Accuracies and every recorded log-likelihood are right in the command's files."""
    logp, tokenizer = reference
    files = dict(to=tmp_path / "r.json", samples_to=tmp_path / "s.jsonl")
    evaluate(directory, tasks, ["tiny_choice", "tiny_answer"], **files)
    results = json.loads((tmp_path / "r.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [line["task"] for line in lines] == ["tiny_choice"] * 7 + ["tiny_answer"] * 7
    right = 0
    for q, line in zip(QUESTIONS, sorted(lines[:7], key=lambda line: line["doc_id"])):
        context = tokenizer.encode(f"Question: {q['question']}\nAnswer:")
        scores = []
        for choice, ((recorded, _),) in zip(q["choices"], line["resps"]):
            whole = tokenizer.encode(f"Question: {q['question']}\nAnswer: {choice}")
            scores.append(reference_score(logp, context, whole[len(context) :], 10_000)[0])
            assert abs(float(recorded) - scores[-1]) < 1e-4
        right += int(np.argmax(scores)) == q["label"]
    assert results["results"]["tiny_choice"]["acc,none"] == pytest.approx(right / 7)
    assert 0 <= results["results"]["tiny_answer"]["exact_match,none"] <= 1
    assert "tiny_choice" in capsys.readouterr().out


def test_chat_and_thinking(directory, tasks, tmp_path, offline):
    """Prompts stand in the template; what is graded comes after the thought, nothing when it never ended."""
    chat = dict(to=tmp_path / "r.json", samples_to=tmp_path / "s.jsonl", limit=2, thinking=True, system="Be brief.")
    evaluate(directory, tasks, ["tiny_answer"], chat=True, **chat)
    for line in map(json.loads, (tmp_path / "s.jsonl").read_text().splitlines()):
        prompt = line["arguments"][0][0]
        assert prompt.startswith("[system]Be brief.\n[user]Question: Is") and prompt.endswith("\n[assistant]<think>")
        assert line["resps"] == [[""]]
    with pytest.raises(UserError, match="give --chat too"):
        evaluate(directory, tasks, ["tiny_answer"], chat=False, **chat)


def test_mistakes_are_sentences(tasks, tmp_path, offline, monkeypatch):
    """An unknown task, a missing directory, a broken file, or an unreachable hub is one sentence."""
    with pytest.raises(UserError, match=r"no directory: name one with \.yaml"):
        ours.load_tasks(["x"], str(tmp_path / "absent"))
    (tmp_path / "far.yaml").write_text(
        "task: far\ndataset_path: nobody/nothing\noutput_type: multiple_choice\ntest_split: test\n"
        "doc_to_text: a\ndoc_to_choice: b\ndoc_to_target: c\n"
    )
    with pytest.raises(UserError, match=r"'far' could not be loaded \(.*\$HF_HOME.*dataset_path: json"):
        ours.load_tasks(["far"], str(tmp_path))
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(  # the index of its own tasks takes a while
        "lm_eval.tasks.TaskManager",
        lambda include_path, include_defaults=False: TaskManager(include_path=include_path, include_defaults=False),
    )
    with pytest.raises(UserError, match=r"no task 'tiny_chioce': did you mean tiny_choice\?"):
        ours.load_tasks(["tiny_chioce"], str(tasks))


def test_without_lm_eval(tmp_path):
    """One sentence names the extra to install, and the file itself can be imported."""
    code = (
        "import sys; sys.modules['lm_eval'] = None\nfrom e3jax.eval import lm_eval\n"
        "from e3jax.errors import UserError\n"
        "try:\n    lm_eval.load_tasks(['gsm8k'], None)\nexcept UserError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "pip install 'e3jax[lm-eval]'" in done.stdout
