"""Perplexities equal transformers'; the command makes the same sets after a kill; sets hold what train/oxa.py reads."""

import dataclasses
import importlib
import json
from contextlib import nullcontext
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hub
import tiny_text

pytest.importorskip("transformers", reason="checkpoints' tokenizers need pip install -e '.[hf]'")
from e3jax.checkpoint.hf import save_hf
from e3jax.checkpoint.pretrained import load_tokenizer, model_config, write_description
from e3jax.curation import oxa_sets as pools
from e3jax.curation.oxa_pools import blocks_of
from e3jax.curation.perplexity import perplexities
from e3jax.errors import UserError
from e3jax.metrics.names import undefined_fields
from e3jax.models.presets import preset
from e3jax.models.qwen3 import Qwen3, init_params
from e3jax.rollout.likelihood import Batching
from e3jax.rollout.responses import Request, Response
from e3jax.sharding import make_mesh, param_shardings
from e3jax.tasks import countdown_text
from e3jax.tasks.countdown import paper_problem
from e3jax.tasks.countdown_traces import WORDS
from e3jax.tasks.grade import grade_all, grade_one
from e3jax.tasks.written_arithmetic import false_equations
from e3jax.tokenizer import WordTokenizer
from e3jax.train.oxa import read_pool


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return (model, params, Hugging Face directory) of one random layer with the words of Countdown."""
    model = Qwen3(dataclasses.replace(preset("tiny"), layers=1), dtype=jnp.float32, remat="none", kernel="xla")
    params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    params |= {"embed_vd": params["embed_vd"] * 8}
    directory = tmp_path_factory.mktemp("model")
    write_description(directory, model.config, WordTokenizer(WORDS), dtype="float32", generation={})
    save_hf(params, directory, most_bytes=1 << 30)
    return model, params, directory


def test_perplexities_equal_transformers(made):
    """To 1e-4, of the response alone and given its prompt, cut at `most`, in batches over 8 devices."""
    torch = pytest.importorskip("torch", reason="parity needs pip install -e '.[parity]'")
    from transformers import AutoModelForCausalLM

    model, params, directory = made
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 210, n).tolist() for n in (3, 5, 4, 4, 6, 3)]
    responses = [rng.integers(2, 210, n).tolist() for n in (9, 2, 40, 17, 1, 70)]
    most, theirs = 50, AutoModelForCausalLM.from_pretrained(directory)

    def reference(tokens, given):
        tokens = tokens[:most]
        with torch.no_grad():
            logp = torch.log_softmax(theirs(torch.tensor([tokens])).logits[0].double(), -1)
        said = [-logp[t - 1, tokens[t]].item() for t in range(given, len(tokens))]
        return np.exp(np.mean(said)) if said else np.nan

    mesh = make_mesh(data=2, fsdp=4, tensor=1)
    with jax.set_mesh(mesh):
        placed, batching = jax.device_put(params, param_shardings(params, mesh)), Batching(256, most, 0)
        alone = perplexities(model, placed, responses, batching)
        given = perplexities(model, placed, responses, batching, prompts=prompts)
    np.testing.assert_allclose(alone, [reference(r, 1) for r in responses], rtol=1e-4)
    np.testing.assert_allclose(given, [reference(p + r, len(p)) for p, r in zip(prompts, responses)], rtol=1e-4)
    assert np.isnan(alone).tolist() == [False] * 4 + [True, False]  # one token has nothing before it
    with pytest.raises(UserError, match="response 0: a prompt of 0 tokens"):
        perplexities(model, params, [[5, 6]], batching, prompts=[[]])


def config_for(directory):
    c = importlib.import_module("configs.oxa_data").get_config(f"countdown,model={directory}")
    c.set.problems, c.at_once, c.own.samples, c.own.budget = 7, 20, 3, 8
    c.teacher.habits = [{**habits, "most_tokens": 30} for habits in c.teacher.habits]
    c.promote.high, c.promote.width, c.promote.sigma = 2001.0, 25.0, 500.0  # a random model's
    c.promote.total, c.suppress.total, c.baselines, c.score_tokens = 9, 5, 6, 2048
    return c


@pytest.fixture
def light(monkeypatch):
    """One device, graders in this process, and responses written down (drawing: test_curation_difficulty.py)."""

    def draw_responses(log, problems, student, sampling, **_):
        said, samples = WordTokenizer(WORDS).encode("<answer> 7 + 5 * 2 </answer>"), student.samples
        for here, responses in blocks_of(log, problems, 20):
            new = {("response", p, g): Response((*said[g:], 1), g < 2) for p in here for g in range(samples)}
            if responses.missing("response", [Request(p, tuple(range(samples)), (), 8) for p in here]):
                responses.add(new, [problems[p].id for p in here for _ in range(samples)], [""] * len(new))

    monkeypatch.setattr(pools, "draw_responses", draw_responses)
    monkeypatch.setattr(pools, "make_mesh", lambda **_: make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1]))
    submit = lambda *given: SimpleNamespace(result=lambda: grade_all(*given))  # noqa: E731
    monkeypatch.setattr("e3jax.rewards.workers.GraderPool", lambda **_: nullcontext(SimpleNamespace(submit=submit)))


class Killed(Exception):
    pass


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_killed_in_the_middle_makes_the_same_sets(made, tmp_path, light, monkeypatch):
    """Killed after the teacher's second block, with a line cut short; then other sets of the same numbers."""
    directory, straight, killed = made[2], tmp_path / "a", tmp_path / "b"
    pools.main(config_for(directory), str(straight))
    pool = lines(straight / "pool.jsonl")
    right = [x for x in pool if x["pool"] == "teacher" and x["correct"]]
    assert len(pool) == 7 * 8 + 7 * 3 and len(right) > 30
    assert not undefined_fields("pool.jsonl", pool[0]) | undefined_fields("pool.jsonl", pool[-1])
    assert all((x["ppl"] is not None) == x["correct"] for x in pool if x["pool"] == "teacher")
    fair = [x for x in pool if x["pool"] == "own" and not x["correct"] and x["reason"] != "truncated"]
    assert all((x["ppl"] is not None) == (x in fair) for x in pool if x["pool"] == "own")

    calls, real = [], pools.perplexities

    def perplexities_until(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(pools, "perplexities", perplexities_until)
    with pytest.raises(Killed):
        pools.main(config_for(directory), str(killed))
    text = (killed / "pool.jsonl").read_text()
    assert len(text.splitlines()) == 20  # a block
    (killed / "pool.jsonl").write_text(text[:-30])
    pools.main(config_for(directory), str(killed))
    assert sorted(lines(killed / "pool.jsonl"), key=str) == sorted(pool, key=str)
    names = sorted(p.name for p in (straight / "sets").iterdir())
    for name in (*(f"sets/{n}" for n in names), "selection.json", "selection.svg"):
        assert (straight / name).read_text() == (killed / name).read_text(), name

    report = json.loads((straight / "selection.json").read_text())
    assert {name: s["rows"] for name, s in report["sets"].items()}["promote"] == 9 and report["missing"] == 0
    promoted = lines(straight / "sets/promote.jsonl")
    assert all(1 < row["ppl"] < 2001 and row["prompt"].split()[-1] == f"?{row['answer']}" for row in promoted)
    assert read_pool(straight / "sets/promote.jsonl", per_step=9).rows[0] == (
        promoted[0]["prompt"],
        promoted[0]["response"],
    )
    shifted = (killed / "pool.jsonl").read_text().replace(pool[0]["query"], "another")
    (killed / "pool.jsonl").write_text(shifted)
    with pytest.raises(UserError, match="teacher response 0 was to another query"):  # a file that has changed since
        pools.main(config_for(directory), str(killed))
    fewer = config_for(directory)
    fewer.promote.total, fewer.promote.mu_quantile = 4, 0.1
    pools.main(fewer, str(straight))  # the pool stays, the sets are new
    assert len(lines(straight / "sets/promote.jsonl")) == 4


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    """Write a tiny random Qwen3 with a byte-level tokenizer as a Hugging Face directory."""
    path = tmp_path_factory.mktemp("text")
    size = tiny_text.write_tokenizer(path, begin=False)
    return tiny_hub.write_tiny(path, "qwen3-tied", vocab_size=size, eos_token_id=None)


@pytest.mark.parametrize("source", ["teacher", "own"])
def test_sets_in_text_of_one_source(source, text_model, tmp_path, light, monkeypatch):
    """Right and wrong traces in text, all of the teacher or all of the model, whose texts come from their tokens.

    What is promoted is right and what is suppressed wrong, by the grader; lengths are the tokenizer's; every equation
    of every response holds, and its attempts are read back.
    """
    c = importlib.import_module("configs.oxa_data").get_config(f"text,model={text_model}")
    c.set.problems, c.right, c.wrong, c.own.samples, c.teacher.samples = 6, source, source, 4, 1
    for habits in c.teacher.habits:
        habits.update(most_characters=300)
    c.promote.total = c.suppress.total = c.baselines = 5
    c.score_tokens = 2048
    c.promote.high, c.promote.width, c.promote.sigma = 1e6 + 1, 1e4, 1e5  # a random model's
    tokenizer = load_tokenizer(text_model, model_config(str(text_model)))

    def draw_responses(log, problems, student, sampling, **_):
        assert source == "own", "a model whose responses do not count is not sampled from"
        rng, task = np.random.default_rng(0), countdown_text.Habits(**c.teacher.habits[-1])
        for here, responses in blocks_of(log, problems, c.at_once):
            keys = [("response", p, g) for p in here for g in range(student.samples)]
            texts = [countdown_text.base_trace(problems[p], rng, task) for _, p, _ in keys]
            new = {k: Response((*tokenizer.encode(t), tokenizer.eos), True) for k, t in zip(keys, texts)}
            responses.add(new, [problems[p].id for _, p, _ in keys], texts)

    monkeypatch.setattr(pools, "draw_responses", draw_responses)
    pools.main(c, str(tmp_path))
    pool = lines(tmp_path / "pool.jsonl")
    assert {x["pool"] for x in pool} == {source} and len(pool) == 6 * (5 if source == "teacher" else 4)
    assert all(x["ppl"] is not None for x in pool) and 5 < sum(x["correct"] for x in pool) < len(pool) - 3
    problems = {p.question: p for n in (3, 4) for p in (paper_problem(0, 40_000_000 + i, numbers=n) for i in range(6))}
    for name in ("promote", "random", "low_ppl", "suppress"):
        rows = lines(tmp_path / f"sets/{name}.jsonl")
        assert 3 <= len(rows) <= 5
        for row in rows:
            problem, text = problems[row["prompt"]], row["response"]
            assert grade_one(problem, text, True).score == (name != "suppress")
            assert countdown_text.parse(text, problem)[0] and not false_equations(text)
            assert row["length"] == len(tokenizer.encode(text))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(right="teachers"), "config.right='teachers': use one of 'teacher', 'own'"),
        (lambda c: c.promote.update(width=0.03), "config.promote.width=0.03"),
        (lambda c: c.promote.update(mu_quantile=1.5), "config.promote.mu_quantile=1.5"),
        (lambda c: c.own.update(samples=0), "config.own.samples=0"),
        (lambda c: c.set.update(form="maths"), "config.set.form='maths'"),
    ],
)
def test_bad_values_are_named(change, words):
    c = importlib.import_module("configs.oxa_data").get_config("model=7b")
    pools.check(c)
    change(c)
    with pytest.raises(UserError, match=words):
        pools.check(c)


def test_no_response_in_range_is_an_error():
    """A tiny model's perplexities in a large model's bins would silently select nothing."""
    line = {"pool": "teacher", "index": 0, "query": "a", "correct": True, "reason": "correct", "length": 5, "ppl": 90.0}
    settings = pools.check(importlib.import_module("configs.oxa_data").get_config("model=7b"))
    with pytest.raises(UserError, match=r"low=1.0, high=5.0: no right response .* the mean is 90"):
        pools.select([line], settings)
    for wrong in ("model=3b", "text", "text,model=", "words,model=x", ""):
        with pytest.raises(UserError, match=r"model=1.5b\|7b, or countdown"):
            importlib.import_module("configs.oxa_data").get_config(wrong)
