"""What measures a checkpoint: every number by hand, by enumeration, or recomputed from whole logits."""

import importlib
import json
import re
import xml.etree.ElementTree as ElementTree
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from e3jax.checkpoint.hf import save_hf
from e3jax.checkpoint.pretrained import write_description
from e3jax.errors import UserError
from e3jax.eval.attempts import PROBES, chain, conditional, pairs_of, probes, token_spans
from e3jax.eval.forcing import Trace
from e3jax.eval.probes import Read, chain_cell, check, main, token_sums, unique_attempts
from e3jax.losses.grpo import kl_penalty
from e3jax.metrics.asymmetry import chained_asymmetry, verification_gap
from e3jax.metrics.bootstrap import interval, ratio
from e3jax.metrics.exploration import STARTS, Span, attempt_spans, detect, equations, verification_starts
from e3jax.metrics.names import undefined_fields
from e3jax.models.qwen3 import unembedding
from e3jax.rollout.bench import ProblemSet, load_problems
from e3jax.rollout.distributions import Along, distributions
from e3jax.rollout.likelihood import Batching, log_likelihoods
from e3jax.rollout.responses import Response, Responses
from e3jax.tasks.countdown import paper_problem
from e3jax.tasks.countdown_traces import WORDS, Habits, base_trace
from e3jax.tasks.grade import grade_all
from e3jax.tasks.problem import Problem
from e3jax.tokenizer import WordTokenizer

WORD = WordTokenizer(WORDS)
CALCULATOR = Problem(
    "c", "countdown", "7 5 2 ?24", "24", "", {"form": "calculator", "numbers": (7, 5, 2), "target": 24}
)
TRACE = "7 + 5 - 2 = 12 10 ?24 14 no 7 + 5 * 2 = 12 24 ?24 0 yes <answer> 7 + 5 * 2 </answer>"
TOKENS = tuple([*WORD.encode(TRACE), WORD.eos])
ANSWER, EOS = WORD.index["<answer>"], WORD.eos


# ---- attempts


def test_calculator_spans_are_tokens():
    """An attempt is 11 words (3 numbers), its choice 6 with "=", and the second verdict is right."""
    spans = token_spans(CALCULATOR, TOKENS, WORD.decode, close="<answer>")
    assert spans == [Span(0, 6, 11, False, False), Span(11, 17, 22, True, True)]
    assert WORD.decode(TOKENS[11:17]) == "7 + 5 * 2 ="
    same = token_spans(CALCULATOR, WORD.encode("7 no 7 no 5"), WORD.decode, close="<answer>")
    assert [(s.start, s.chosen, s.end) for s in same] == [(0, 1, 2), (2, 3, 4)]  # repeated, without "="
    assert token_spans(CALCULATOR, (EOS,), WORD.decode, close="<answer>") == []


def test_text_spans_are_paragraphs_with_an_equation():
    """A paragraph without an equation is no attempt, nor is what follows </think>. Tokens are pieces of text."""
    problem = paper_problem(0, 0, numbers=3)
    pieces = ("try 3 + 4", " = 7\n\n", "hm", "\n\n5 * 2", " = 10 no", "\n</think>\n<answer>1 + 1 = 2</answer>")
    text = "".join(pieces)
    spans = attempt_spans(problem, text, close="</think>")
    assert [text[s.start : s.end] for s in spans] == ["try 3 + 4 = 7", "5 * 2 = 10 no"]
    tokens = token_spans(problem, pieces, "".join, close="</think>")
    assert [(s.start, s.chosen, s.end) for s in tokens] == [(0, 2, 2), (3, 5, 5)]  # the blank lines go with a token
    assert equations(problem, text) == 3 and equations(CALCULATOR, TRACE) == 4


def test_detect_counts_generating_and_verifying():
    """Def. 4.1: an answer that was not an attempt is a proposal that nothing verified."""
    assert detect(CALCULATOR, TRACE, close="<answer>") == (2, 2)
    assert detect(CALCULATOR, "<answer> 7 + 5 </answer>", close="<answer>") == (1, 0)
    assert detect(CALCULATOR, "7 +", close="<answer>") == (0, 0)
    paper = paper_problem(0, 0, numbers=3)
    assert detect(paper, "3+4=7 Wait", close="</think>") == (1, 0)  # no sentence starts with it
    assert detect(paper, "Wait. 3+4=7. Wait, no. But wait", close="</think>") == (1, 2)  # one is at the start
    assert detect(paper, "Wait\n\n3+4=7. Wait, no.", close="</think>") == (1, 1)  # the first verifies nothing
    assert detect(paper, "<answer>3+4</answer>", close="</think>") == (1, 0)
    math = Problem("m", "math", "?", "7", "", {})
    assert detect(math, "It is 7. Alternatively 8.</think> Wait", close="</think>") == (2, 1)
    assert detect(math, " ", close="</think>") == (0, 0)


@given(st.text(alphabet="Wait but.hold on?!\nXx", max_size=60), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_verification_starts_are_the_sentences(text, extra):
    """Equals App. N's count, sentence by sentence."""
    text += ". Wait" * extra
    sentences = re.split(r"[.!?\n]+", text)
    assert len(verification_starts(text)) == sum(s.strip().lower().startswith(STARTS) for s in sentences)
    assert all(text[i:].lower().startswith(STARTS) for i in verification_starts(text))


# ---- chains and Def. 4.1


def test_chains_are_cut_and_counted():
    """After 0, 1 and 2 attempts; with fewer, the thinking stays without its end; 8 tokens end this response."""
    spans = token_spans(CALCULATOR, TOKENS, WORD.decode, close="<answer>")
    cut = {
        n: chain(Response(TOKENS, True), spans, n, close=[ANSWER], stop=(EOS,), closing=[ANSWER]) for n in (0, 1, 2, 5)
    }
    assert [(len(t.tokens), t.forced, t.dropped) for t in cut.values()] == [
        (1, 1, 30),
        (12, 1, 19),
        (23, 1, 8),
        (23, 1, 8),
    ]
    assert cut[1].tokens == (*TOKENS[:11], ANSWER) and cut[5].tokens == cut[2].tokens
    late = chain(Response((5, 6, EOS), True), [], 3, close=[ANSWER], stop=(EOS,), closing=[ANSWER])
    assert late.tokens == (5, 6, ANSWER) and late.dropped == 1  # ended by itself: its ending is taken away


def test_chain_cell_by_hand():
    """Two problems, 4 completions each: 1 and 4 right. pass@2 is (1/2 + 1)/2."""
    cut = [Trace((1, 2, ANSWER), 1, 7, False, False), Trace((1, ANSWER), 1, 3, False, False)]
    drawn = [[Response((1,), True)] * 4, [Response((1, 2, 3), True)] * 4]
    right = [True, False, False, False, True, True, True, True]
    cell = chain_cell(cut, drawn, right, [True, False], problems=2, pass_ks=(1, 2, 8))
    assert cell["pass_at_k"] == {"1": [0.625, 0.25, 1.0], "2": [0.75, 0.5, 1.0]}
    assert {k: cell[k] for k in ("completions", "reached", "kept", "forced", "dropped", "drawn")} == {
        "completions": 4,
        "reached": 0.5,
        "kept": 1.5,
        "forced": 1.0,
        "dropped": 5.0,
        "drawn": 2.0,
    }


def test_both_sides_of_definition_4_1():
    """The right side includes the left one: 2/3 against 3/5, not against the 1/2 of those that never verify."""
    reward = [[1, 0, 1], [1, 0, 1]]
    generated, verified = [[1, 1, 2], [1, 4, 0]], [[0, 0, 2], [1, 5, 0]]
    a = chained_asymmetry(reward, generated, verified)
    assert [a[k][0] for k in ("chained", "any", "without")] == [2 / 3, 3 / 5, 1 / 2]
    np.testing.assert_allclose([a["difference"][0], a["chained_minus_without"][0]], [1 / 15, 1 / 6])
    assert a["responses"] == {"chained": 3, "any": 5, "without": 2}
    assert {k: (v["reward"][0], v["responses"]) for k, v in a["by_chains"].items()} == {
        "0": (2 / 3, 3),
        "1": (1.0, 1),
        "2-3": (1.0, 1),
        "4-7": (0.0, 1),
    }
    never = chained_asymmetry([[1, 0]], [[1, 1]], [[0, 0]])
    assert np.isnan(never["chained"]).all() and np.isnan(never["difference"]).all() and never["any"][0] == 0.5
    assert verification_gap([[[Span(0, 1, 1, None, None)], []]]) == {}  # text


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_intervals_hold_their_estimate_of_sums(pairs):
    """The interval of Σ part / Σ whole contains its estimate for very unequal problems; one problem has no spread."""
    values = np.array([(min(a, b), b) for a, b in pairs], float)
    mean, low, high = interval(values, ratio)
    if values[:, 1].sum() == 0:
        assert np.isnan([mean, low, high]).all()
        return
    assert mean == values[:, 0].sum() / values[:, 1].sum() and 0 <= low <= high <= 1
    if len(values) == 1:
        assert low == mean == high
    with pytest.raises(ValueError, match="at least one problem"):
        interval(values[:0], ratio)


def test_interval_is_the_bootstraps():
    """For two problems with means 0 and 1 each draw is 0, 1/2 or 1, with chances 1/4, 1/2, 1/4."""
    assert interval(np.array([[0.0, 1.0], [1.0, 1.0]]), ratio) == [0.5, 0.0, 1.0]
    assert interval(np.array([[0.0, 1.0], [1.0, 1.0]]), ratio, level=0.4) == [0.5, 0.5, 0.5]


# ---- distributions and App. G.1


@partial(jax.jit, static_argnames="model")
def hidden(model, params, row):
    return model.apply({"params": params}, row, jnp.arange(64)[None])[0]


def whole_logits(model, params, tokens):
    """Return logits [T, V] after each token without the code under test; rows are 64 long, and the rest is not seen."""
    row = np.zeros((1, 64), np.int32)
    row[0, : len(tokens)] = tokens
    states = np.asarray(hidden(model, params, row)[0], np.float64)[: len(tokens)]
    return states @ np.asarray(unembedding(params), np.float64).T


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def pair(tiny):
    """Return a model that is sure of some tokens, and a base that differs from it."""
    model, params = tiny
    return model, params | {"embed_vd": params["embed_vd"] * 8}, params | {"embed_vd": params["embed_vd"] * 7.5}


def test_distributions_are_those_of_whole_logits(pair):
    """Log-prob, entropy, KL over the vocabulary and watched tokens, for two lengths at temperature .7."""
    model, params, base = pair
    pairs, batching = [([7, 8, 9], [4, 5, 6, EOS]), ([3], list(range(2, 50)))], Batching(128, 64, WORD.pad)
    options = dict(temperature=0.7, watched=(EOS, 5))
    scored = distributions(model, params, pairs, batching, base=(model, base), **options)
    for (prompt, response), a in zip(pairs, scored):
        read, at = [*prompt, *response][:-1], len(prompt) - 1
        ours, theirs = (log_softmax(whole_logits(model, w, read)[at:] / 0.7) for w in (params, base))
        rows = np.arange(len(response))
        close = dict(atol=5e-5, rtol=1e-4)
        np.testing.assert_allclose(a.logp, ours[rows, response], **close)
        np.testing.assert_allclose(a.base_logp, theirs[rows, response], **close)
        np.testing.assert_allclose(a.entropy, -(np.exp(ours) * ours).sum(1), **close)
        np.testing.assert_allclose(a.kl, (np.exp(ours) * (ours - theirs)).sum(1), **close)
        np.testing.assert_allclose(a.watched, np.exp(ours[:, [EOS, 5]]), **close)
        for estimator in ("k1", "k3"):  # over all tokens that might have been drawn, both estimate kl without bias
            each = np.asarray(kl_penalty(ours, theirs, estimator=estimator), np.float64)
            np.testing.assert_allclose((np.exp(ours) * each).sum(1), a.kl, atol=1e-4, rtol=1e-3)
    same = distributions(model, params, pairs[:1], batching, base=(model, params), **options)[0]
    np.testing.assert_array_equal(same.kl, 0)
    with pytest.raises(UserError, match="response 0: a prompt of 0"):
        distributions(model, params, [([], [1])], batching, base=(model, params), **options)


def test_probes_of_app_g1_are_those_of_whole_logits(pair):
    """The definitions hold attempt by attempt, each computed from a separate text."""
    model, params, _ = pair
    prompt, spans = WORD.encode("7 5 2 ?24"), token_spans(CALCULATOR, TOKENS, WORD.decode, close="<answer>")
    parts = pairs_of(prompt, TOKENS, spans)
    scored = [
        np.array([s.logp for s in log_likelihoods(model, params, part, Batching(128, 64, WORD.pad))]) for part in parts
    ]

    def logp(context, choice):
        table = log_softmax(whole_logits(model, params, [*context, *choice]))
        return sum(table[len(context) - 1 + i, t] for i, t in enumerate(choice))

    one, two = TOKENS[0:6], TOKENS[11:17]
    first = logp(prompt, one)
    by_hand = {
        "dependence": logp([*prompt, *TOKENS[:11]], two) - logp(prompt, two),
        "sharpening": logp([*prompt, *TOKENS[:11]], two) - first,
        "reattempt": logp([*prompt, *TOKENS[:11]], one),
        "reattempt_change": logp([*prompt, *TOKENS[:11]], one) - first,
    }
    values = probes(*scored)
    assert set(values) == set(PROBES)
    for name, value in by_hand.items():
        np.testing.assert_allclose(values[name], [value], rtol=1e-4, err_msg=name)


def test_probes_are_averaged_over_attempts():
    """With three attempts and two, attempt 2 is a mean of both responses, attempt 3 of one, and the whole of all."""
    long = probes(np.array([-9.0, -4.0, -2.0]), np.array([-6.0, -6.0]), np.array([-1.0, -3.0]))
    short = probes(np.array([-9.0, -8.0]), np.array([-8.0]), np.array([-5.0]))
    c = conditional([long, short], [0, 1], 2)
    assert (c["dependence"][0], c["reattempt"][0], c["attempts"]) == ((2 + 4 + 0) / 3, -3.0, 3)
    by = c["by_attempt"]
    assert (by["2"]["dependence"][0], by["3"]["sharpening"][0], by["2"]["attempts"]) == (1.0, 2.0, 2)
    assert by["3"]["reattempt_change"][0] == -3.0 - -4.0
    assert conditional([], [], 2)["attempts"] == 0 and np.isnan(conditional([], [], 2)["dependence"]).all()


def test_what_goes_into_a_mean_per_token():
    """Choices are 12 of 31 tokens; both attempts have a token after them, and only the first attempt was wrong."""
    spans = token_spans(CALCULATOR, TOKENS, WORD.decode, close="<answer>")
    t = np.arange(31.0)
    along = Along(logp=-t, entropy=t, base_logp=-t - 1, kl=t, watched=np.stack([t / 100, t / 1000], axis=1))
    sums = token_sums(Read(0, 0, Response(TOKENS, True), TRACE, True, spans), along)
    assert len(sums["entropy_choice"]) == 12 and sums["entropy_choice"].sum() == sum([*range(6), *range(11, 17)])
    np.testing.assert_allclose(sums["end_after_attempt"], [0.121, 0.242])
    np.testing.assert_allclose((sums["end_after_wrong"][0], sums["eos_after_wrong"][0]), (0.121, 0.011))
    np.testing.assert_allclose((sums["k1"][3], sums["k3"][3]), (1.0, np.exp(-1)), rtol=1e-6)


# ---- the command


class Pool:
    """A grader in this process (tests/test_rewards_workers.py tests the real workers)."""

    def __init__(self, **options):
        self.submit = lambda *given: SimpleNamespace(result=lambda: grade_all(*given))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture(scope="module")
def config(tiny, tmp_path_factory):
    """Return a config: two different checkpoints of the tiny model, 4 problems with 2 base traces each as responses."""
    model, params = tiny
    directory = tmp_path_factory.mktemp("probes")
    for name, scale in (("base", 8), ("e3", 6)):
        (directory / name).mkdir()
        write_description(directory / name, model.config, WORD, dtype="float32", generation={})
        save_hf(params | {"embed_vd": params["embed_vd"] * scale}, directory / name, most_bytes=1 << 30)
    c = importlib.import_module("configs.probes").get_config(f"base={directory / 'base'},e3={directory / 'e3'}")
    c.sets.probe.update(source=(3,), problems=4, samples=2)
    c.budget, c.tokens = 64, 512
    c.sampler.update(slots=16, prefill_rows=8, block=4)
    c.chains.update(attempts=(0, 1), rollouts=2, completions=2, answer=8, pass_ks=(1, 4))
    c.conditional.update(rollouts=2, attempts=4)
    c.grader.workers = 1
    return c, directory / "run"


def fill(run, config):
    """Responses that have attempts, as if they had been drawn."""
    problems, rng = load_problems(ProblemSet(**config.sets.probe), seed=0), np.random.default_rng(0)
    habits = dict(solution_rate=0.2, give_up=0.2, persistent=0.0, persistent_solution_rate=0.0, most_tokens=56)
    for label in ("base", "e3"):
        responses = Responses(run / "responses" / label / "probe")
        texts = {
            (p, g): base_trace(problem, rng, Habits(**habits)) for p, problem in enumerate(problems) for g in range(2)
        }
        new = {("response", *k): Response(tuple([*WORD.encode(t), EOS]), True) for k, t in texts.items()}
        responses.add(new, [problems[p].id for p, _ in texts], list(texts.values()))
        responses.flush()  # a bucket would get them half a minute later


def test_the_command_measures_resumes_and_draws_nothing_twice(config, monkeypatch):
    """Responses are there; completions are drawn; a second start changes nothing but adds what is missing."""
    monkeypatch.setattr("e3jax.rollout.bench.keep_programs", lambda: None)
    monkeypatch.setattr("e3jax.rewards.workers.GraderPool", Pool)
    c, run = config
    fill(epath.Path(run), c)
    main(c, str(run))
    rows = [json.loads(x) for x in (run / "probes.jsonl").read_text().splitlines()]
    base, e3 = rows
    assert [r["stage"] for r in rows] == ["base", "e3"] and base["samples"] == 2
    assert not undefined_fields("probes.jsonl", base) | undefined_fields("probes.jsonl", e3)
    assert base["tokens"]["kl"] == [0.0, 0.0, 0.0] and base["tokens"]["k1"] == [0.0, 0.0, 0.0]
    assert 0 < e3["tokens"]["kl"][1] <= e3["tokens"]["kl"][0] <= e3["tokens"]["kl"][2]
    assert e3["asymmetry"]["responses"] == {"chained": 8, "any": 8, "without": 0}
    assert e3["gap"]["verification"][0] == 1.0 and e3["tokens"]["tokens"] >= 8 * 11
    assert set(e3["chains"]) == {"0", "1"} and e3["chains"]["0"]["kept"] == 0 and e3["chains"]["1"]["reached"] == 1
    assert e3["conditional"]["attempts"] > 0 and all(np.isfinite(e3["conditional"]["dependence"]))
    files = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file() and p.name != "starts.jsonl"}
    for name in ("chains-probe.svg", "conditional-probe.svg", "tokens-probe.svg"):
        ElementTree.fromstring(files[name])
    assert files["probes-probe.md"].count(b"\n") > 20 and b"E[r | verified]" in files["probes-probe.csv"]
    drawn = [json.loads(x) for f in (run / "responses/e3/probe").glob("*") for x in f.read_text().splitlines()]
    keys = [(x["part"], x["problem"], x["sample"]) for x in drawn]
    assert len(set(keys)) == len(keys) and {k[2] for k in keys if k[0] == "chains-0-of-2"} == {2, 3, 4, 5}
    lines = (run / "probes.jsonl").read_text().splitlines()
    (run / "probes.jsonl").write_text(lines[0] + "\n")  # e3 is measured again, from what was drawn
    main(c, str(run))
    again = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file() and p.name != "starts.jsonl"}
    assert {k for k in files if files[k] != again[k]} <= {"DONE"}
    assert sum(len(f.read_text().splitlines()) for f in (run / "responses/e3/probe").glob("*")) == len(keys)


def test_unique_attempts_are_counted_on():
    lines = [
        {"stage": "a", "problem": "p", "rollouts": [[False, ["1", "2"]], [True, ["9"]]]},
        {"stage": "b", "problem": "p", "rollouts": [[False, ["2", "3"]], [False, []]]},
        {"stage": "a", "problem": "q", "rollouts": [[True, ["5"]], [True, []]]},
        {"stage": "b", "problem": "q", "rollouts": [[True, ["6"]], [False, ["7"]]]},
    ]
    assert unique_attempts(lines, ["a", "b"], most_success=0.5) == ([2.0, 3.0], 1)
    assert unique_attempts(lines, ["a", "b"], most_success=1.0) == ([1.0, 2.0], 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(base="x"), "config.base='x': use one of base, e3"),
        (lambda c: c.sampler.update(temperature=0.0), "config.sampler.temperature=0.0: above 0"),
        (lambda c: c.chains.update(attempts=(2, 1)), "config.chains.attempts"),
        (lambda c: c.chains.update(rollouts=3), "config.chains.rollouts=3: 1 to 2"),
        (lambda c: c.chains.update(pass_ks=(1, 64)), "config.chains.pass_ks=.1, 64.: 4 completions at most"),
        (lambda c: c.conditional.update(attempts=1), "config.conditional.attempts=1: 2 or more"),
        (lambda c: c.update(models=()), "config.models"),
    ],
)
def test_impossible_configs_are_named(config, change, words):
    c = config[0].copy_and_resolve_references()
    check(c)
    change(c)
    with pytest.raises(UserError, match=words):
        check(c)


def test_the_config_is_possible(monkeypatch):
    monkeypatch.setattr("jax.devices", lambda: [None])
    check(importlib.import_module("configs.probes").get_config("base=a,e3=b"))
    assert len(jax.devices()) == 1
