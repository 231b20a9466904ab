"""The runner end to end at smoke size: a shared base, a failing arm left out, a fixed rule; estimators; the configs."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_hub
import tiny_text
from conftest import SLOW
from etils import epath

from e3jax.checkpoint.pretrained import load_tokenizer, model_config
from e3jax.errors import Stopped, UserError
from e3jax.experiments import ceiling, plan, read, results, run
from e3jax.experiments.collect import collect
from e3jax.metrics.sigmoid import Curve
from e3jax.phases import TAGS, read_tokens, tag_ids
from e3jax.scaling import run as scaling_run
from e3jax.tasks.countdown_plans import Habits
from e3jax.tasks.table import TASKS
from e3jax.tools.convert import convert

ROOT = Path(__file__).parent.parent
IN_TEXT = ("budgets", "coupled", "e2c", "eq2", "mask", "oxa", "rivals", "verification", "wait")
OTHERS = ("common", "pk", "__init__")  # pk: the didactic model's own command (tests/test_didactic.py)
NAMES = sorted(p.stem for p in (ROOT / "configs/experiments").glob("*.py") if p.stem not in OTHERS)


def load(name, *size):
    return importlib.import_module(f"configs.experiments.{name}").get_config(*size)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Write a tiny random Qwen3 with a byte-level tokenizer as a Hugging Face directory."""
    pytest.importorskip("transformers", reason="real tokenizers need pip install -e '.[hf]'")
    path = tmp_path_factory.mktemp("model")
    size = tiny_text.write_tokenizer(path, begin=False)
    tiny_hub.write_tiny(path, "qwen3-tied", vocab_size=size, eos_token_id=None)
    return path


@pytest.fixture(scope="module")
def tagged(model, tmp_path_factory):
    """Write the same model with E2C's tags as tokens."""
    path = tmp_path_factory.mktemp("models") / "tagged"
    convert(str(model), path, dtype="", add_tokens=TAGS, most_bytes=1 << 30)
    return path


@pytest.mark.parametrize("size", ["cpu", "gpu", "lm", "lm-smoke"])
@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_is_possible(name, size, monkeypatch, request):
    """Every run's config passes its check, rules name arms and measures, figures name what exists, in 6 colours."""
    if size.startswith("lm"):
        if name not in IN_TEXT:
            with pytest.raises(UserError, match="has :cpu and :gpu only"):
                load(name, size)
            return
        size += f",model={request.getfixturevalue('model')}"
    monkeypatch.setattr("jax.devices", lambda: [None])
    monkeypatch.setattr("e3jax.train.check.check_attention", lambda c: None)
    c = load(name, size)
    plan.check_experiment(c)
    if c.scaling:
        c.scaling.models = (("a", "/w/a"),)
        scaling_run.check(c.scaling)
    nodes = plan.plan(c, epath.Path("/w/x"))
    assert len({n.directory for n in nodes}) == len(nodes) == len(c.seeds) * (len(c.bases) + len(c.sets) + len(c.arms))
    known = {*c.bases, *c.arms}
    for figure in c.figures:
        arms = figure["arms"] if "arms" in figure else [a for line in figure["groups"].values() for _, a in line]
        assert set(arms) <= known and (len(arms) <= 6 or "groups" in figure), figure["title"]
    source = (ROOT / f"configs/experiments/{name}.py").read_text()
    assert f"--config=configs/experiments/{name}.py" in source and c.name == name


def test_bases_are_one_directory_for_all_experiments(monkeypatch):
    """Another stage list or evaluation in one experiment would make its base refuse the others'."""
    monkeypatch.setattr("jax.devices", lambda: [None])
    seen = {}
    for name in NAMES:
        if name != "smoke":
            for n in plan.plan(load(name), epath.Path("/w/x")):
                if n.kind == "base":
                    assert seen.setdefault(str(n.directory), n.config.to_dict()) == n.config.to_dict(), (name, n.name)
    assert len(seen) == 39


def smoke_config():
    """Return a config with 2 seeds and one of the tests' 8 devices (a mesh of 8 would need 8 rows)."""
    c = load("smoke")
    c.bases.countdown.sampler.slots = 16
    c.bases.countdown.stages.base.rows = 8
    return c


def test_end_to_end(tmp_path, monkeypatch):
    """Killed in an arm, failed in another, run again: nothing is done twice, results and figures are as stated."""
    workdir, real, seen = tmp_path / "smoke", plan.curriculum.main, []
    c = smoke_config()

    def sabotaged(config, directory):
        name = "/".join(directory.split("/")[-2:])
        seen.append(name)
        if name == "mask/seed0":
            raise RuntimeError("the disk is <full>")
        if name == "mask/seed1":
            raise Stopped("mask, step 1")
        real(config, directory)

    monkeypatch.setattr("e3jax.train.grpo.compile_ahead", lambda *_, **__: None)  # would compile in each of 4 RL runs
    monkeypatch.setattr(plan.curriculum, "write_report", lambda where: where)  # tests/test_report.py; a second each
    monkeypatch.setattr(plan.curriculum, "main", sabotaged)
    with pytest.raises(Stopped):
        run.main(c, str(workdir))
    first = results.read(workdir)  # after seed 0
    assert first["failed"] == [{"arm": "mask", "seed": 0, "why": "the disk is <full>"}]
    assert first["verdict"] == "not decided"
    with pytest.raises(UserError, match=r"smoke: 1 of 6 runs failed \(mask of seed 0\); the same command tries again"):
        monkeypatch.setattr(plan.curriculum, "main", lambda x, d: sabotaged(x, d.replace("mask/seed1", "mask//seed1")))
        run.main(c, str(workdir))
    monkeypatch.setattr(plan.curriculum, "main", real)
    run.main(c, str(workdir))
    assert seen[:3] == ["countdown/seed0", "grpo/seed0", "mask/seed0"] and seen.count("grpo/seed0") == 1
    found = results.read(workdir)
    assert not found["failed"] and found["rule"][0]["values"].keys() == {"0", "1"}
    assert found["verdict"] in ("reproduced", "not reproduced")
    steps = [json.loads(x) for x in (workdir / "grpo/seed1/metrics.jsonl").read_text().splitlines()]
    want = np.mean([s["length/mean"] for s in steps])
    assert len(steps) == 2 and found["values"]["length"]["grpo"]["1"] == pytest.approx(want)
    line = json.loads((workdir.parent / "bases/countdown/seed0/eval.jsonl").read_text().splitlines()[-1])
    assert found["values"]["3 numbers at 24"]["countdown"]["0"] == line["accuracy"]["24"][0]
    assert found["values"]["length"]["countdown"]["0"] is None  # no RL steps
    assert found["values"]["length"]["chosen"] == found["values"]["length"]["grpo"]  # Eq. 2 had one budget
    assert [f["title"] for f in found["figures"]] == ["Response length", "Accuracy: 3 numbers", "Length"]
    assert len(list(workdir.glob("figure*.svg"))) == 3 and "Response length" in (workdir / "page.html").read_text()
    log = (workdir / "progress.log").read_text()
    assert "2/6 grpo, seed 0" in log and "FAILED" in log and "min left" in log
    c.rule = ({**c.rule[0], "margin": 5.0},)
    with pytest.raises(UserError, match="states another rule"):
        run.main(c, str(workdir))


def test_a_changed_arm_is_not_taken_for_a_finished_one(tmp_path, monkeypatch):
    """DONE of another config in the same place fails that arm and what comes after it, and nothing is trained."""
    monkeypatch.setattr("jax.devices", lambda: [None])
    monkeypatch.setattr(plan.curriculum, "main", lambda *_: pytest.fail("trained"))
    c = load("smoke")
    c.seeds = (0,)
    for node in plan.plan(c, epath.Path(tmp_path / "x")):
        run.claim(node.directory, node.config.to_dict())
        (node.directory / "DONE").write_text("")
    c.bases.countdown.grpo.temperature = 0.5
    nodes = plan.plan(c, epath.Path(tmp_path / "x"))
    failed = run.run_all(nodes, 0, run.Progress(tmp_path, nodes, {"base": 1.0, "arm": 1.0}))
    assert [f["why"][:30] for f in failed[1:]] == ["countdown failed before it"] * 2
    assert "grpo.temperature: 1.0 there, 0.5 here" in failed[0]["why"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.arms.grpo.update(after="cuontdown"), "config.arms.grpo.after='cuontdown'"),
        (lambda c: c.arms.grpo.change.update(gpro=1), "config.arms.grpo.change: "),
        (lambda c: c.arms.grpo.update(sets="data"), r"config.arms.grpo.sets='data': use '' or one of \[\]"),
        (lambda c: c.arms.grpo.change.stages.rl.update(budget=9999), "arm grpo: config.stages.rl.budget=9999"),
        (lambda c: c.update(rule=({**c.rule[0], "plus": ("gpro",)},)), r"config.rule\[0\]=\['gpro'\]"),
        (lambda c: c.update(rule=({**c.rule[0], "measure": "x"},)), r"config.rule\[0\].measure='x'"),
        (lambda c: c.update(seeds=(0, 0)), "config.seeds"),
        (lambda c: c.update(seeds=(0, 1 << 32)), "config.seeds=4294967296: use a whole number"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(change, words, monkeypatch):
    monkeypatch.setattr("jax.devices", lambda: [None])
    c = load("smoke")
    change(c)
    with pytest.raises(UserError, match=words):
        plan.check_experiment(c)
        plan.plan(c, epath.Path("/w/x"))


def test_a_copied_run_is_no_seed(tmp_path, monkeypatch):
    """The directory of seed 0, copied to seed 1, made an interval of no width over "two seeds"."""
    monkeypatch.setattr("jax.devices", lambda: [None])
    c = load("smoke")
    nodes = [n for n in plan.plan(c, epath.Path(tmp_path) / "x") if n.name == "grpo"]
    for node in nodes:
        node.directory.mkdir(parents=True)
        (node.directory / "DONE").write_text("")
        (node.directory / "metrics.jsonl").write_text(
            '{"kind": "grpo", "stage": "rl", "step": 1, "time/step_s": 0.5}\n'
        )
    assert len(nodes) == 2
    with pytest.raises(UserError, match=r"grpo/seed1 is a copy of .*grpo/seed0, not another seed: remove it"):
        run.collect(c, nodes, epath.Path(tmp_path) / "x")
    with (nodes[1].directory / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "grpo", "stage": "rl", "step": 2, "time/step_s": 0.5}\n')
    assert set(run.collect(c, nodes, epath.Path(tmp_path) / "x")["grpo"]) == {0, 1}


def test_parts_of_the_seeds_are_made_beside_each_other(tmp_path, monkeypatch):
    """The lock of the experiment's directory refused every second call of `experiments.sh --jobs=2`."""
    from test_kills import train_stub

    monkeypatch.setattr(plan.curriculum, "main", train_stub)
    monkeypatch.setattr(plan, "check", lambda config: None)  # of training, for 8 devices
    held, there, hold = [], tmp_path / "smoke", run.hold
    monkeypatch.setattr(run, "hold", lambda at, **how: held.append(str(at)[len(str(there)) :]) or hold(at, **how))
    for seeds in ((0,), (1,)):
        c = load("smoke")
        c.seeds, c.part = seeds, True
        run.main(c, str(there))
        assert not (there / "results.json").exists()
    run.main(load("smoke"), str(there))
    assert held == ["/parts/0", "/parts/1", ""]
    made = [line for part in "01" for line in (there / f"parts/{part}/times.jsonl").read_text().splitlines()]
    runs = [json.loads(line) for line in made]
    assert len(runs) == len({(one["name"], one["seed"]) for one in runs}) and not (there / "times.jsonl").exists()
    assert results.read(there)["minutes"] == sum(one["minutes"] for one in runs)


def records(lengths, accuracy):
    steps = [{"length/mean": x, "reward/mean": None} for x in lengths]
    waits = {"wait-1": {"accuracy": [0.4], "length": 100.0}, "wait-10": {"accuracy": [0.6], "length": 300.0}}
    forced = {"accuracy": {"96": [0.3], "384": [0.5]}, "explore": {"length": 80.0}, "forcing": waits}
    return read.RunLines(steps, {"s": {"accuracy": accuracy}}, {"s": forced}, {}, {})


def test_measures_by_hand():
    r = records([1.0, 3.0, 5.0, 9.0], {"24": [0.2, 0, 1], "48": [0.5, 0, 1]})
    assert read.value(r, ("train", "length/mean", 2)) == 7.0
    assert read.value(r, ("rise", "length/mean", 2)) == 5.0 and read.value(r, ("start", "length/mean", 1)) == 1.0
    assert read.value(r, ("gain", "s", 24, 48)) == pytest.approx(0.3)
    assert read.value(r, ("eval", "s", "accuracy", "24")) == 0.2
    assert read.value(r, ("wait", "s", "wait-1")) == pytest.approx(-0.1) and read.value(r, ("best", "s")) == 0.6
    for absent in (("train", "reward/mean", 2), ("eval", "t", "accuracy", "24"), ("best", "t"), ("gain", "s", 24, 96)):
        assert np.isnan(read.value(r, absent)), absent
    with pytest.raises(ValueError, match="'test'"):
        read.value(r, ("test", "s"))


def test_eq2_and_its_neighbours_by_hand():
    """Seed 0: 24 -> 48 doubles, 48 -> 96 gains 10 %: 48 at kappa 1.2. Seed 1 is flat: the smallest, with no half."""
    of = {0: {"24": [0.2], "48": [0.4], "96": [0.44], "192": [0.45]}, 1: {b: [0.3] for b in ("24", "48", "96", "192")}}
    judged = {"first": {seed: records([], accuracy) for seed, accuracy in of.items()}}
    rows = read.choices(judged, judge="first", of="s", budgets=(24, 48, 96), kappas=(1.05, 1.2, 2.5))
    assert [(seed, kappa, b) for seed, kappa, b, _ in rows] == [
        (0, 1.05, 96),
        (0, 1.2, 48),
        (0, 2.5, 24),
        (1, 1.05, 24),
        (1, 1.2, 24),
        (1, 2.5, 24),
    ]
    values = {"m": {"b24": {0: 1.0, 1: 2.0}, "b48": {0: 3.0, 1: 4.0}, "b96": {0: 5.0}}}
    read.add_choice(values, {0: 48, 1: 24}, arms={24: "b24", 48: "b48", 96: "b96"})
    m = values["m"]
    assert (m["half"], m["chosen"], m["double"]) == ({0: 1.0}, {0: 3.0, 1: 2.0}, {0: 5.0, 1: 4.0})


def test_figures_by_hand():
    """The band is the range of seeds, cut to the shortest; waits are ordered by number, not by letter."""
    two = {"a": {0: records([1.0] * 7, {"24": [0.2]}), 1: records([3.0] * 6, {"24": [0.4]})}}
    line = read.curve_figure(two, title="t", key="length/mean", ylabel="", percent=False, arms=("a", "b"))["lines"][0]
    assert (line["x"], line["mean"], line["low"], line["high"]) == (list(range(1, 7)), [2.0] * 6, [1.0] * 6, [3.0] * 6)
    line = read.budget_figure(two, title="t", of="s", mark=None, arms=("a",))["lines"][0]
    assert (line["x"], line["mean"]) == ([24], [pytest.approx(0.3)])
    line = read.forced_figure(two, title="t", of="s", arms=("a",))["lines"][0]
    assert (line["x"], line["mean"]) == ([80.0, 100.0, 300.0], [0.5, 0.4, 0.6])


def spent(reward, tokens, **more):
    """Return an RL step that sampled so many tokens, as its rate and its seconds say."""
    return {"reward/mean": reward, "time/rollout_tokens_per_s": tokens / 7, "time/rollout_s": 7.0} | more


def test_tokens_and_ceilings_by_hand():
    """Dynamic sampling counts what it drew; the first step is before training; a broken block is left out."""
    steps = [spent(0.2, 100), spent(0.4, 50), spent(0.9, 70, **{"drawn/tokens": 200, "drawn/reward": 0.5}), spent(1, 9)]
    r = read.RunLines(steps, {}, {}, {}, {})
    assert [read.tokens_of(x) for x in steps] == [100, 50, 200, 9] and read.value(r, ("spent",)) == 359
    assert np.isnan(read.value(read.RunLines([], {}, {}, {}, {}), ("spent",)))
    start, compute, reward = ceiling.points(steps, block=2)
    assert (start, compute.tolist(), reward.tolist()) == (0.2, [125.0], [pytest.approx(0.45)])
    true = Curve(0.7, 1.5, 800.0)
    runs = {}
    for seed in (0, 1):
        curve = [float(true.at([c], start=0.2)[0]) for c in range(100, 2500, 100)]
        lines = [spent(0.2, 100), *(spent(x, 100) for x in curve)]
        runs[seed] = read.RunLines(lines, {}, {}, {}, {})
    records = {"good": runs, "short": {0: r}, "base": {0: read.RunLines([], {}, {}, {}, {})}}
    found = ceiling.table(records, arms=("good", "short", "base", "absent"), block=2, level=0.95)
    rows = {(row[0], row[1]): row for row in found["rows"]}
    assert list(rows) == [("good", "0"), ("good", "1"), ("good", "all"), ("short", "0"), ("base", "0")]
    assert float(rows["good", "all"][3]) == pytest.approx(70, abs=2) and rows["good", "0"][2] == "12"
    assert rows["short", "0"][3:5] == ["–", "1 points, 8 are needed"] and rows["base", "0"][4] == "no RL steps"
    assert all(len(row) == len(found["header"]) for row in found["rows"])
    line = ceiling.tokens_figure(records, title="t", block=2, arms=("good", "base"))["lines"]
    assert len(line) == 1 and line[0]["x"][0] == 150 and len(line[0]["x"]) == 12


def test_a_pareto_picture_by_hand():
    """A mark per arm at its mean tokens, from the least to the greatest accuracy; arms without either are left out."""
    values = {"tokens": {"a": {0: 100.0, 1: 300.0}, "b": {0: 50.0}, "c": {}}, "far": {"a": {0: 0.5, 1: 0.7}, "c": {}}}
    how = dict(title="t", x="tokens", y="far", xlabel="", ylabel="", percent=True)
    (line,) = read.pareto_figure(values, **how, arms=("a", "b", "c"))["lines"]
    assert (line["label"], line["x"], line["mean"]) == ("a", [200.0] * 3, [0.5, pytest.approx(0.6), 0.7])


def test_rivals_at_smoke_size(tmp_path, monkeypatch):
    """Arms of three kinds run; tokens, pictures and fits of them are in the results."""
    monkeypatch.setattr("e3jax.train.grpo.compile_ahead", lambda *_, **__: None)
    monkeypatch.setattr(plan.curriculum, "write_report", lambda where: where)
    c = load("rivals", "smoke")
    base, c.seeds = c.bases.countdown, (0,)
    base.sampler.slots, base.stages.base.rows, base.grader.workers = 16, 8, 1
    run.main(c, str(tmp_path / "rivals"))
    found = results.read(tmp_path / "rivals")
    assert not found["failed"] and set(found["arms"]) == {"countdown", "grpo", "dapo", "brpo"}
    tokens = found["values"]["tokens"]
    assert all(tokens[arm]["0"] > 0 for arm in ("grpo", "dapo", "brpo")) and tokens["countdown"]["0"] is None
    drawn = (tmp_path / "rivals/dapo/seed0/drawn.jsonl").read_text().splitlines()
    steps = [json.loads(x) for x in (tmp_path / "rivals/dapo/seed0/metrics.jsonl").read_text().splitlines()]
    assert tokens["dapo"]["0"] == sum(x["drawn/tokens"] for x in steps) and len(drawn) == 6  # nothing is ever right
    assert [row["measure"] for row in found["rule"]] == ["3 numbers at 24"] * 2 and found["verdict"] == "not decided"
    (table,) = found["tables"]
    assert table["rows"][0] == ["grpo", "0", "1", "–", "1 points, 8 are needed", "–", "–"]
    titles = [figure["title"] for figure in found["figures"]]
    of = "responses and rewards"
    assert titles == [f"Beyond the budget: {of}", f"Right once in 2: {of}", f"Accuracy: {of}", f"Reward: {of}"]
    assert len(list((tmp_path / "rivals").glob("figure*.svg"))) == 4


@pytest.mark.parametrize(("size", "arms"), [("lm", 25), ("gpu", 25), ("cpu", 16), ("smoke", 3)])
def test_rivals_of_every_size(size, arms, monkeypatch, request):
    """Every arm passes its check; arms of a language model start from its checkpoint, not from its first weights."""
    size += f",model={request.getfixturevalue('model')}" if size == "lm" else ""
    monkeypatch.setattr("jax.devices", lambda: [None])
    monkeypatch.setattr("e3jax.train.check.check_attention", lambda c: None)
    c = load("rivals", size)
    plan.check_experiment(c)
    nodes = plan.plan(c, epath.Path("/w/x"))
    assert len(nodes) == len(c.seeds) * (arms + 1) and len(c.rule) == arms - 1
    one = next(node for node in nodes if node.name == "grpo")
    budget = one.config.stages.rl.budget
    assert one.config.eval.budgets == tuple(n * budget for n in (1, 2, 4, 8))
    assert one.config.init.init_from == str(nodes[0].checkpoint)
    responses = {n.name: n.config.grpo.prompts * n.config.grpo.group_size for n in nodes if n.kind == "arm"}
    assert len(set(responses.values())) == 1, responses
    with pytest.raises(UserError, match="size 'huge': write :cpu, :gpu, :lm or"):
        load("rivals", "huge")


def test_last_line_of_a_file_that_is_being_written(tmp_path):
    path = epath.Path(tmp_path / "m.jsonl")
    assert read.last_line(path) == {}
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read.last_line(path) == {"step": 2}


def test_oxa_is_an_experiment_of_the_one_runner(monkeypatch):
    """Base, sets of that base, arms on those sets: nothing else would show that another seed's sets were taken."""
    monkeypatch.setattr("jax.devices", lambda: [None])
    c = load("oxa")
    nodes = {n.name: n for n in plan.plan(c, epath.Path("/w/x")) if n.seed == 3}
    base, sets, full, sft = (nodes[name] for name in ("oxa_base", "data", "full", "sft"))
    assert list(nodes) == ["oxa_base", "data", *c.arms] and sets.kind == "sets"
    assert str(base.checkpoint) == "/w/bases/oxa_base/seed3/checkpoints/base/280"
    assert sets.config.base == sets.config.own.model == full.config.init.init_from == str(base.checkpoint)
    assert full.after == ("oxa_base", "data") and {n.config.seed for n in nodes.values()} == {3}
    assert full.config.stages.tune.promote == "/w/x/data/seed3/sets/promote.jsonl"
    assert full.config.stages.tune.suppress == "/w/x/data/seed3/sets/suppress.jsonl"
    assert sft.config.stages.tune.promote == "/w/x/data/seed3/sets/random.jsonl" and not sft.config.stages.tune.suppress
    assert list(full.config.stages) == ["rl", "tune"] and full.config.order == ("tune", "rl")


def test_failed_sets_fail_the_arms_that_train_on_them(tmp_path, monkeypatch):
    """The base does not fail with them; the sets are made by a command of their own."""
    made = []
    monkeypatch.setattr("jax.devices", lambda: [None])
    monkeypatch.setattr(plan.curriculum, "main", lambda c, directory: made.append(directory))
    monkeypatch.setattr(plan.oxa_sets, "main", lambda *_: pytest.fail("no teacher"))
    c = load("oxa")
    c.seeds = (0,)
    nodes = plan.plan(c, epath.Path(tmp_path / "x"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan.oxa_sets, "main", lambda *_: 1 / 0)
        failed = run.run_all(nodes, 0, run.Progress(tmp_path, nodes, c.minutes.to_dict()))
    assert made == [f"{tmp_path}/bases/oxa_base/seed0"]
    assert [f["arm"] for f in failed] == ["data", *c.arms]
    assert [f["why"] for f in failed[1:]] == ["data failed before it"] * 5


def oxa_lines(seed, shift):
    """Return the lines of a finished arm: two sets after two stages, and two RL steps."""
    passed = {
        stage: {of: {"pass_at_k": {"1": [x], "16": [x + shift + 0.01 * seed]}} for of, x in (("a", 0.1), ("b", 0.3))}
        for stage in ("tune", "rl")
    }
    steps = [{"entropy/mean": 0.1 + shift + 0.01 * seed}, {"entropy/mean": 9.0}]
    return read.RunLines(steps, passed["rl"], {}, passed, {})


def test_oxa_s_questions_by_hand():
    """full − sft of the same seed, at RL's first step and for the mean of both sets; other arms do not count."""
    c = load("oxa")
    shifts = {"full": 0.3, "sft": 0.0, "promote": 7.0}
    runs = {arm: {seed: oxa_lines(seed if arm == "full" else 0, x) for seed in (0, 1, 2)} for arm, x in shifts.items()}
    values = {
        m: {arm: {s: read.value(r, spec.read) for s, r in of.items()} for arm, of in runs.items()}
        for m, spec in c.measures.items()
    }
    answers = {s["measure"]: run.judge(dict(s), values, seeds=(0, 1, 2), level=c.level) for s in c.rule}
    assert {name: a["outcome"] for name, a in answers.items()} == {
        "entropy before RL": "yes",
        "pass@16 before RL": "yes",
        "pass@16 after RL": "yes",
        "pass@1 after RL": "open",
    }
    for name in ("entropy before RL", "pass@16 before RL"):
        assert answers[name]["mean"] == pytest.approx(0.31)
        assert answers[name]["low"] == pytest.approx(0.31 - 4.302653 * 0.01 / 3**0.5)
    assert all(run.judge(dict(s), values, seeds=(0,), level=0.95)["outcome"] == "open" for s in c.rule)
    assert values["entropy"]["full"][0] == pytest.approx((0.4 + 9.0) / 2)
    line, _ = read.pass_at_k_figure(runs, title="t", stage="tune", arms=("full", "sft"))["lines"]
    assert (line["x"], line["low"]) == ([1, 16], [pytest.approx(0.2), pytest.approx(0.5)])
    nothing = read.RunLines([], {}, {}, {}, {})
    assert all(np.isnan(read.value(nothing, spec.read)) for spec in c.measures.values())
    assert not read.pass_at_k_figure({"x": {0: nothing}}, title="t", stage="", arms=("x",))["lines"]


def test_sets_of_a_language_model_have_their_sources(monkeypatch, model):
    """Promoted and suppressed responses of a better and of the own model; the base is the other experiments' own."""
    monkeypatch.setattr("jax.devices", lambda: [None])
    nodes = {n.name: n for n in plan.plan(load("oxa", f"lm,model={model}"), epath.Path("/w/x")) if n.seed == 1}
    sources = {n.name: (n.config.right, n.config.wrong) for n in nodes.values() if n.kind == "sets"}
    better, own = ("teacher", "teacher"), ("own", "own")
    assert sources == {"data": ("teacher", "own"), "data_better": better, "data_own": own}
    base, own = nodes["countdown"], nodes["own"]
    assert base.config.to_dict() == plan.plan(load("mask", f"lm,model={model}"), epath.Path("/w/x"))[8].config.to_dict()
    (data,) = (n for n in nodes.values() if n.name == "data")
    assert data.config.base == data.config.own.model == own.config.init.init_from == str(base.checkpoint)
    assert data.config.own.budget == nodes["full"].config.stages.rl.budget == 512


def test_e2c_wants_its_tags_as_tokens(model, tagged, tmp_path):
    """A trace's phases are found in its tokens, and without the tags the run is refused before it begins."""
    problem = TASKS["plans_text"].open((4,), seed=0, split="train")(0, 1)[0]
    text = TASKS["plans_text"].trace(problem, np.random.default_rng(0), Habits(solution_rate=1.0))
    tokenizer = load_tokenizer(tagged, model_config(str(tagged)))
    tokens = tokenizer.encode(text)
    first, end = read_tokens(tokens, tag_ids(tokenizer), begun=False).plan
    assert f"{TAGS[0]}{tokenizer.decode(tokens[first:end])}{TAGS[1]}" in text and tokenizer.decode(tokens) == text
    joined = tokenizer.encode(f"{problem.question}{text}")
    assert joined == [*tokenizer.encode(f"{problem.question}{TAGS[0]}"), *tokens[1:]]  # the forced tag, then the rest
    assert not tag_ids(load_tokenizer(model, model_config(str(model))))
    c = on_the_tests_devices(load("e2c", f"lm-smoke,model={model}"))
    with pytest.raises(UserError, match=r"task.opening=.<EXPLORATION>.: the tokenizer lacks .*add them with python -m"):
        plan.curriculum.main(plan.plan(c, epath.Path("/w/x"))[0].config, str(tmp_path / "run"))


def on_the_tests_devices(c):
    """Return an experiment of size lm-smoke with rows and slots for 8 devices."""
    for base in c.bases.values():
        base.stages.traces.rows = base.sampler.slots = base.sampler.prefill_rows = 8
    for one in (c.evaluation, c.scaling, *(sets.config for sets in c.sets.values())):
        if one:
            one.sampler.slots = one.sampler.prefill_rows = 8
    return c


def test_judged_plans_by_hand():
    """Numbers of a cell, what was not measured, and a line of the figure: mean tokens, the range of seeds."""

    def cells(right):
        one = {"method": "select", "tokens": 100.0 * right, "accuracy": [right, 0, 1]}
        return [one | {"k": k, "sc": {"difference": [k * right, 0, 1]}} for k in (16, 4)]

    runs = {"a": {seed: read.RunLines([], {}, {}, {}, {"s": cells(x)}) for seed, x in enumerate((0.25, 0.75))}}
    r = runs["a"][0]
    assert read.value(r, ("scaled", "s", "select", 4, "sc", "difference")) == 1.0
    assert read.value(r, ("scaled", "s", "select", 16, "accuracy")) == 0.25
    for absent in (("s", "sc", 4), ("s", "select", 8), ("t", "select", 4)):
        assert np.isnan(read.value(r, ("scaled", *absent, "accuracy")))
    (line,) = read.scaled_figure(runs, title="t", of="s", methods=("sc", "select"), arms=("a", "b"))["lines"]
    assert (line["label"], line["x"]) == ("a, select", [50.0, 50.0])
    assert (line["mean"], line["low"], line["high"]) == ([0.5] * 2, [0.25] * 2, [0.75] * 2)


def test_sizes_and_models_of_the_argument():
    """What stands behind the config's name, and budgets in text."""
    common = importlib.import_module("configs.experiments.common")
    assert common.parse_size("lm,model=a/b") == ("lm", "a/b") and common.parse_size("cpu")[0] == "cpu"
    assert [common.at("lm", b) for b in (48, 96, 192, 384)] == [256, 512, 1024, 2048]
    assert common.at("gpu", 96) == 96
    for wrong in ("large", "cpu,model=x", "lm,x"):
        with pytest.raises(UserError, match="write :cpu, :gpu, :lm or :lm,model=DIRECTORY"):
            load("mask", wrong)


@pytest.mark.parametrize("name", [n if n == "wait" else pytest.param(n, marks=SLOW) for n in IN_TEXT])
def test_an_experiment_with_a_language_model(name, request, tmp_path, monkeypatch):
    """Size lm-smoke, end to end: bases, sets, arms, evaluations, results; collected runs give the same results."""
    model = request.getfixturevalue("tagged" if name == "e2c" else "model")
    c = on_the_tests_devices(load(name, f"lm-smoke,model={model}"))
    monkeypatch.setattr("e3jax.train.grpo.compile_ahead", lambda *_, **__: None)
    monkeypatch.setattr(plan.curriculum, "write_report", lambda where: where)
    run.main(c, str(tmp_path / "one" / name))
    found = results.read(tmp_path / "one" / name)
    assert not found["failed"] and found["verdict"] == "not decided"  # one seed
    for row in found["rule"]:
        values = found["values"][row["measure"]]
        assert set(values) >= {*row["plus"], *row["minus"]}, row
        if c.scaling or c.sets:
            assert all(values[arm]["0"] is not None for arm in (*row["plus"], *row["minus"])), row
    collect([str(tmp_path / "one")], tmp_path / "two", any_commit=True)
    assert not list((tmp_path / "two").rglob("checkpoints"))
