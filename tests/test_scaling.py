"""Test-time scaling: what counts as a token, who votes, what the ReAct loop does; the whole command on a tiny model."""

import base64
import importlib
import json
import zlib
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sklearn", reason="clusters of plans need pip install -e '.[scaling]'")
pytest.importorskip("transformers", reason="checkpoints' tokenizers need pip install -e '.[hf]'")
from e3jax.checkpoint.pretrained import Pretrained
from e3jax.errors import UserError
from e3jax.eval.scoring import answer_of
from e3jax.metrics.names import undefined_fields
from e3jax.metrics.voting import at_cost, vote
from e3jax.rewards.extract import Grade
from e3jax.rewards.plan import common
from e3jax.rollout import bench as benches
from e3jax.rollout.bench import Chat
from e3jax.rollout.likelihood import Batching, hidden_states
from e3jax.rollout.responses import Response, Responses
from e3jax.sampler.slots import padded
from e3jax.scaling import choosing, planning, react
from e3jax.scaling import run as scaling
from e3jax.scaling.calls import Call
from e3jax.scaling.choosing import Judge, clusters, load_encoder, mean_hidden, nearest
from e3jax.scaling.planning import Plan, Planning, Study, draw_plans, graded_problem
from e3jax.scaling.react import NEW, REFINED, React, accepted, guarded, next_plan, overlap, stuck_words
from e3jax.sharding import make_mesh
from e3jax.tasks.countdown_plans import WORDS, plans_problem
from e3jax.tasks.problem import Problem
from e3jax.tokenizer import WordTokenizer

MATH = Problem("m", "math", "How many apples?", "7", "", {"where": "execution", "problem": "How many apples?"})
COUNTDOWN = Problem("c", "countdown_plans", "7 5 2 ?24", "24", "", {"numbers": (7, 5, 2), "target": 24})


# ---- votes and costs


def test_votes():
    """Weights add up, ties share, and no answer is no vote; in Countdown a class may include a response that cheats."""
    assert vote([("7", 1, 2), ("8", 0, 1), ("8", 0, 1.5)]) == 0 and vote([("7", 1, 3), ("8", 0, 2)]) == 1
    assert vote([("7", 1, 1), ("8", 0, 1)]) == 0.5 and vote([]) == vote([(None, 0, 9)]) == 0
    assert vote([("24", 1, 1), ("24", 0, 3), ("25", 0, 2)]) == 0.25


def test_costs_are_met_between_two_ks():
    costs = np.array([10.0, 20.0, 30.0])
    for cost in (10, 14, 20, 29.5, 30):
        assert at_cost(cost, costs) @ costs == pytest.approx(cost) and at_cost(cost, costs).sum() == 1
    assert at_cost(3, costs).tolist() == [1, 0, 0] and at_cost(99, costs).tolist() == [0, 0, 1]


def test_what_a_response_votes_for():
    text = "* 2 ?12 + </EXPLORATION> <EXECUTION> 7 + 5 = 12 * 2 = 24 </EXECUTION>"
    assert answer_of(graded_problem(COUNTDOWN), text) == "24"
    assert answer_of(graded_problem(COUNTDOWN), text.replace("= 24", "24")) is None
    assert answer_of(COUNTDOWN, text) is None  # its prompt does not begin the plan
    boxed = "\\boxed{1}</EXPLORATION><EXECUTION>so \\boxed{7.0}</EXECUTION>"
    assert answer_of(graded_problem(MATH), boxed) == "7"  # the plan's box is none


@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
@settings(max_examples=100, deadline=None)
def test_common_subsequence(a, b):
    """Rows of bits give what the whole table gives."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    assert common(a, b) == table[-1, -1]


# ---- choosing


def test_clusters_by_hand():
    """Directions count, not lengths; the plan nearest to the mean is taken; equal plans make fewer clusters."""
    v = np.array([[1, 0], [5, 0.1], [9, 0], [0, 1], [0.1, 3], [-1, 0]], np.float32)
    assert clusters(v, 3, seed=42) == [(0, 3), (3, 2), (5, 1)]
    assert clusters(np.ones((4, 2)), 3, seed=42) == [(0, 4)]
    assert clusters(v[:1], 3, seed=42) == [(0, 1)] and clusters(np.zeros((2, 2)), 3, seed=42) == [(0, 2)]


def test_the_judge_is_taken_at_its_words():
    plans = ["1. Count the red ones.", "1. Halve the sum.", "1. Halve the sum. 2. Add one."]
    assert [nearest(x, plans) for x in ("Best: 1. Halve the sum. 2. Add one.", "count red", "")] == [2, 0, 0]
    assert load_encoder("numpy:sort") is np.sort
    with pytest.raises(UserError, match="neither 'policy' nor a MODULE:FUNCTION"):
        load_encoder("numpy:no_such_encoder")


# ---- the loop's rules


def test_a_final_box_is_well_placed():
    def box(before, behind):
        return accepted(MATH, "x" * before + "\\boxed{7}" + "y" * behind, rule="box")

    assert [box(299, 0), box(300, 0), box(300, 500), box(300, 501)] == [False, True, True, False]
    assert not accepted(MATH, "x" * 400 + "\\boxed{", rule="box")
    for text, form, target in (("7 + 5 = 12 * 2 = 24", True, True), ("7 + 5 = 12", True, False), ("7 +", False, False)):
        assert [accepted(COUNTDOWN, text, rule=r) for r in ("form", "target")] == [form, target]


def test_the_guard_ends_a_loop_at_a_chunk():
    """Two chunks of 8 and a loop of 3 tokens: not seen after 16, where it has run for 5 tokens only."""
    assert guarded([*range(11), *[1, 2] * 20], 8) == (24, True)
    assert guarded(tuple(range(50)), 8) == (50, False)
    assert guarded([1] * 8, 8) == (8, False)  # all is drawn already


def test_next_plans():
    """A1 to A4 when stuck; else the refinement, an unused plan where it stalled, or a new one where none is left."""
    plans = {1: "use induction on n", 2: "count the pairs twice", 3: "draw a picture of it"}
    now = dict(current="use induction on pairs", tried=["use induction on pairs"], unused=plans, words={"induction"})
    assert next_plan(stuck=True, refined="something else", **now) == 2
    only = now | {"unused": {1: "try strong induction here"}}
    assert next_plan(stuck=True, refined="something else", **only) == REFINED
    assert next_plan(stuck=True, refined="", **only) == 1
    assert next_plan(stuck=True, refined="", **now | {"unused": {}}) == NEW
    assert next_plan(stuck=False, refined="something else", **now) == REFINED
    assert next_plan(stuck=False, refined=now["current"], **now) == 1
    again = now | {"unused": {1: "Use induction on pairs", 2: plans[2]}}  # the first is the one that was tried
    assert next_plan(stuck=False, refined=now["current"], **again) == 2
    assert next_plan(stuck=False, refined=now["current"], **now | {"unused": {}}) == NEW
    assert overlap("a b c", "a b c d") == 0.75


def test_stuck_words_are_the_plans_own():
    plan, tail = "Use induction on apples, then symmetry", "induction … induction … symmetry … apples"
    assert stuck_words(plan, tail, "How many apples?") == {"induction", "symmetry"}


# ---- the loop, with a model whose every word is written here


class Letters:
    """A tokenizer with one token per character, tags too; EOS is 0."""

    eos, stop, has_chat, tags = 0, (0,), True, (1, 2, 3, 4)

    def encode(self, text):
        for i, tag in enumerate(("<EXPLORATION>", "</EXPLORATION>", "<EXECUTION>", "</EXECUTION>"), 1):
            text = text.replace(tag, chr(i))
        return [ord(c) for c in text]

    def decode(self, tokens):
        text = "".join(chr(t) for t in tokens if t)
        for i, tag in enumerate(("<EXPLORATION>", "</EXPLORATION>", "<EXECUTION>", "</EXECUTION>"), 1):
            text = text.replace(chr(i), tag)
        return text

    def chat_text(self, words, *, thinking):
        return f"[{words}]"


@pytest.fixture
def scripted(monkeypatch):
    """(study, script, calls): script {part: text} answers everything; calls collects (part, prompt, temperature)."""
    script, calls, tokenizer = {}, [], Letters()

    def ask(bench, part, requests, *, stop, temperature, top_p):
        out = {}
        for r in requests:
            text = tokenizer.decode(r.prompt)
            calls.append((part, text, temperature))
            for i, g in enumerate(r.samples):
                said = script[part] if isinstance(script[part], str) else script[part][g]
                tokens, read = tuple(tokenizer.encode(said)), (r.forced, len(r.prompt) - r.forced) if i == 0 else (0, 0)
                done = bool(tokens) and tokens[-1] in stop
                out[r.problem, g] = Response(tokens, done), Call(part, g, len(tokens), *read)
        return out

    for module in (planning, choosing, react):
        monkeypatch.setattr(module, "ask", ask)
    bench = SimpleNamespace(
        pretrained=Pretrained(None, None, tokenizer),
        plain=[replace(MATH, question="Q")],
        problems=[MATH],
        prompts=[tokenizer.encode("[Q]")],
        chat=Chat(thinking=True),
        sampling=SimpleNamespace(temperature=0.9, top_p=0.95),
    )
    how = Planning(words=True, plan_budget=50, execution_budget=999, thought=9, tokens=99)
    return Study(bench, tokenizer.tags, how), script, calls


PLANS = [f"1. {way}{chr(2)}" for way in ("Count apples by induction.", "Count pears by induction.", "Draw them.")]
LOOP = React(
    accept="box",
    rounds=3,
    chunk=8,
    tail=40,
    refine_budget=9,
    refine_temperature=0.3,
    explore_temperature=0.95,
    rescue_budget=9,
)


def loop_of(study):
    pool = draw_plans(study, range(3))
    picks = choosing.best_plans(study, pool, 3, Judge(how="words", budget=9))
    return react.react(study, pool, picks, 3, LOOP)[0]


def test_the_loop_refines_switches_and_pays(scripted):
    """Stuck in a loop: cut, not rescued, a plan without its word is next; no box: refined; then it arrives."""
    study, script, calls = scripted
    done = "abcdefghij" * 30 + f"\\boxed{{7}}{chr(4)}"
    script |= {
        "plan": PLANS,
        "judge-3": "1. Count apples by induction.\0",
        "execute": {0: "by induction " + "ab" * 30, 2: f"So 1 = 2, wrong. Nothing.{chr(4)}"},
        "react-box-3-rescue-0": "no\0",
        "react-box-3-refine-0": "1. Count apples by induction." + chr(2),
        "react-box-3-rescue-1": "no\0",
        "react-box-3-refine-1": f"1. Paint them.{chr(2)}",
        "react-box-3-execute-2": done,
    }
    ended = loop_of(study)
    assert [part for part, *_ in calls] == [
        "plan",
        "judge-3",
        "execute",
        "react-box-3-rescue-0",
        "react-box-3-refine-0",
        "execute",
        "react-box-3-rescue-1",
        "react-box-3-refine-1",
        "react-box-3-execute-2",
    ]
    prompts, heat = {part: text for part, text, _ in calls}, {part: t for part, _, t in calls}
    assert heat["plan"] == 0.9 and heat["react-box-3-refine-0"] == 0.3 and heat["execute"] == heat["judge-3"] == 0
    assert "These statements turned out to be wrong: 1 = 2" in prompts["react-box-3-refine-1"]
    assert prompts["react-box-3-execute-2"].endswith("<EXPLORATION>1. Paint them.</EXPLORATION><EXECUTION>")
    assert "Guideline (follow exactly):\n1. Paint them.\n" in prompts["react-box-3-execute-2"]
    assert ended.done and ended.text.endswith("\\boxed{7}</EXECUTION>")
    cut = 24  # 13 tokens before the loop; after 16 it has run for 3, after 24 for a whole chunk
    said = [
        *PLANS,
        script["judge-3"],
        "x" * cut,
        "no\0",
        script["react-box-3-refine-0"],
        script["execute"][2],
        "no\0",
        script["react-box-3-refine-1"],
        done,
    ]
    assert scaling.spent(ended.calls)["sampled"] == sum(map(len, said))
    assert scaling.spent(ended.calls)["forced"] == 1 + 3 * 3 + 2  # plans' tag, three executions, two refinements
    assert scaling.spent((*ended.calls, *ended.calls)) == scaling.spent(ended.calls)


def test_the_loop_rescues_and_ends(scripted):
    """A box on demand ends it; without one there are four executions and no more, the last with new plans."""
    study, script, calls = scripted
    script |= {"plan": PLANS, "judge-3": PLANS[1], "execute": "lost", "react-box-3-rescue-0": "\\boxed{7}\0"}
    saved = loop_of(study)
    assert saved.done and saved.text.endswith("lost\n\\boxed{7}</EXECUTION>") and len(calls) == 4
    calls.clear()
    script |= {f"react-box-3-{what}-{n}": "lost" for what in ("rescue", "refine", "new", "execute") for n in range(4)}
    script |= {f"react-box-3-new-{n}": f"1. Way {n}{chr(2)}" for n in range(4)}
    script |= {f"react-box-3-refine-{n}": chr(2) for n in range(3)}
    lost = loop_of(study)
    parts = [part for part, *_ in calls]
    assert not lost.done and sum("execute" in part for part in parts) == 4 and "react-box-3-new-2" in parts
    assert dict((part, t) for part, _, t in calls)["react-box-3-new-2"] == 0.95
    assert "Do not use" in dict((part, text) for part, text, _ in calls)["react-box-3-new-2"]


# ---- the command on a tiny random model


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    return write_checkpoint(tiny, tmp_path_factory.mktemp("model"), WORDS)


def config_for(checkpoint):
    c = importlib.import_module("configs.e2c_countdown_scaling").get_config(f"tiny={checkpoint}")
    c.sets["3 numbers"].problems, c.sets["3 numbers"].samples, c.ks = 3, 4, (1, 2, 4, 8)
    c.sampler.slots, c.sampler.prefill_rows, c.sampler.block = 8, 8, 8  # few programs: these, greedy and sampled
    c.react.rounds, c.react.refine_temperature, c.react.explore_temperature = 1, 0.9, 0.9
    return c


@pytest.fixture
def light(monkeypatch):
    """One device, and grades that differ: a random model solves nothing."""
    one = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    monkeypatch.setattr(benches, "make_mesh", lambda **_: one)

    def submit(problems, texts, done):
        return SimpleNamespace(result=lambda: [Grade(float(d and len(t) % 2), "") for t, d in zip(texts, done)])

    monkeypatch.setattr(scaling, "answer_of", lambda problem, text: text.split()[-1])
    monkeypatch.setattr("e3jax.rewards.workers.GraderPool", lambda **_: nullcontext(SimpleNamespace(submit=submit)))


def test_tokens_equal_a_recount_of_the_saved_texts(checkpoint, tmp_path, light, monkeypatch):
    """Every number of the table follows from the texts on disk; a second start draws and changes nothing."""
    work = tmp_path / "a"
    scaling.main(config_for(checkpoint), str(work))
    words, length = WordTokenizer(WORDS), {}
    for file in (work / "responses/tiny/3 numbers").glob("*.jsonl"):
        for x in map(json.loads, file.read_text().splitlines()):
            tokens = np.frombuffer(zlib.decompress(base64.b64decode(x["tokens"])), "<i4")
            silent = int(np.isin(tokens, (words.pad, words.eos)).sum())  # they leave no word; a random model pads too
            length[x["id"], x["part"], x["sample"]] = len(words.encode(x["text"])) + silent
            assert len(tokens) == length[x["id"], x["part"], x["sample"]]
    ledger = [json.loads(x) for x in (work / "ledger.jsonl").read_text().splitlines()]
    (line,) = [json.loads(x) for x in (work / "scaling.jsonl").read_text().splitlines()]
    cells = {(c["method"], c["k"]): c for c in line["cells"]}
    assert not {x for c in line["cells"] for x in undefined_fields("cells of scaling.jsonl", c)}
    assert set(cells) == {("greedy", 1)} | {(m, k) for m in scaling.LOOKS if m != "greedy" for k in (1, 2, 4)}
    assert len(ledger) == 3 * len(cells)
    for x in ledger:
        drawn = [c for c in x["calls"] if not (c[0].startswith("judge") or c[0] == "embed")]
        assert len({tuple(c[:2]) for c in drawn}) == len(drawn)  # none twice
        counted = [length[x["problem"], part, sample] for part, sample, _ in drawn]
        assert x["sampled"] == sum(n for *_, n in drawn) <= sum(counted)
        assert x["method"].startswith("react") or x["sampled"] == sum(counted)  # a guard counts less
        if x["method"] == "sc":
            assert [c[:2] for c in x["calls"]] == [["chain", g] for g in range(x["k"])]
            assert x["forced"] == 1 and x["prompt"] == 4  # one prefill for all: three numbers, the target
        if x["method"] == "all":
            assert x["forced"] == 1 + 3 * x["k"]
    for (method, k), c in cells.items():
        rows = [x for x in ledger if (x["method"], x["k"]) == (method, k)]
        assert [c[n] for n in scaling.KINDS[1:]] == [np.mean([x[n] for x in rows]) for n in scaling.KINDS[1:]]
        assert c["tokens"] == np.mean([x["sampled"] for x in rows])
        assert c["accuracy"][0] == pytest.approx(np.mean([x["score"] for x in rows]))
        assert (c["sc"] is None) == method.startswith("sc")
        assert c["sc"] is None or c["sc"]["tokens"] <= cells["sc", 4]["tokens"] + 1e-9
    files = {name: (work / name).read_bytes() for name in ("ledger.jsonl", "scaling.jsonl", "scaling-3 numbers.md")}
    assert b"<svg" in (work / "scaling-3 numbers.svg").read_bytes() and files["scaling-3 numbers.md"].count(b"\n") == 30
    (work / "scaling.jsonl").unlink()  # as killed before its last line
    monkeypatch.setattr(Responses, "add", None)
    scaling.main(config_for(checkpoint), str(work))
    assert {name: (work / name).read_bytes() for name in files} == files


def test_embeddings_and_likelihoods_by_hand(tiny):
    """Means of hidden states over a plan's tokens; the judge's mean log-prob, from whole logits."""
    model, params = tiny
    words = WordTokenizer(WORDS)
    problem = plans_problem(0, 0, numbers=3, split="test")
    bench = SimpleNamespace(
        pretrained=Pretrained(model, params, words), problems=[problem], prompts=[words.encode(problem.question)]
    )
    how = Planning(words=False, plan_budget=8, execution_budget=16, thought=3, tokens=512)
    study = Study(bench, planning.need_tags(words, "x"), how)
    texts = ("* 2 ?12 +", "+ 3", "- 7 ?5 *")
    plans = [Plan(tuple(words.encode(t)), t, Call("plan", i, 4, 0, 0)) for i, t in enumerate(texts)]
    first, state, mean = len(study.begun(0)), [], []
    rows = padded([[*study.begun(0), *plan.tokens, study.tags[1]] for plan in plans], 16, 0)
    hidden = np.asarray(hidden_states(model, params, rows))
    logp = np.asarray(jax.nn.log_softmax(hidden @ np.asarray(params["embed_vd"]).T))
    for row, h, p, plan in zip(rows, hidden, logp, plans):
        last = first + len(plan.tokens)
        state.append(h[first:last].mean(0))
        mean.append(np.mean([p[i - 1, row[i]] for i in range(first, last + 1)]))
    (vectors,) = choosing.embed(study, {0: plans}, encoder="policy").values()
    np.testing.assert_allclose(vectors, np.stack(state), atol=1e-5)
    index, calls = choosing.best_plans(study, {0: plans}, 3, Judge(how="likelihood", budget=1))[0]
    assert (
        index == int(np.argmax(mean)) and [c.prompt for c in calls] == [10, 8, 10] and not sum(c.sampled for c in calls)
    )
    assert mean_hidden(model, params, [((1,), ())], Batching(64, 64, 0)).any() == np.False_


@pytest.mark.parametrize("name", ["e2c_scaling", "e2c_countdown_scaling"])
def test_configs_are_possible(name, monkeypatch):
    monkeypatch.setattr("jax.devices", lambda: [None] * 128 if name == "e2c_scaling" else [None])
    scaling.check(importlib.import_module(f"configs.{name}").get_config())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(methods=("sc", "best")), "config.methods=.*some of greedy"),
        (lambda c: c.judge.update(how="words"), "judge.how='words': without words"),
        (lambda c: c.react.update(accept="box"), "react.accept='box': 'box' for boxed answers"),
        (lambda c: c.sets["3 numbers"].update(form="math"), "only form='plans' states a target"),
        (lambda c: c.update(methods=("sc-target",)), "sc-target comes with sc"),
        (lambda c: c.update(ks=(4, 1)), "must rise"),
    ],
)
def test_impossible_configs_are_named(change, words, monkeypatch):
    monkeypatch.setattr("jax.devices", lambda: [None])
    config = importlib.import_module("configs.e2c_countdown_scaling").get_config()
    change(config)
    with pytest.raises(UserError, match=words):
        scaling.check(config)
