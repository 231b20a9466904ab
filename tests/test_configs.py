"""Every config loads and passes its check; bad input stops at once with one clear sentence and no traceback."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from e3jax.errors import UserError
from e3jax.train.check import check
from e3jax.train.settings import resolve

ROOT = Path(__file__).parent.parent
# those with arguments: below, tests/test_curation_….py, tests/test_eval_….py …
WITH_ARGUMENTS = (
    "countdown_lm", "difficulty", "e2c", "e2c_data", "e3_math", "fastcurl", "oxa", "oxa_data", "polaris", "probes",
)  # fmt: skip
CONFIGS = sorted(
    p.stem
    for p in (ROOT / "configs").glob("*.py")
    if p.stem not in ("__init__", "common", *WITH_ARGUMENTS) and not re.match(r"eval_|my_|.*_scaling$", p.stem)
)


def renormalise(config):
    """Sample from a nucleus and correct for it, where nothing reads the correction."""
    config.sampler.top_p, config.grpo.restricted_sampling = 0.9, "renormalise"


def load(name):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", CONFIGS)
def test_config_loads_and_is_possible(name, monkeypatch):
    monkeypatch.setattr("jax.devices", lambda: [None])  # the machine that the config's header names: one device
    check(load(name))


@pytest.mark.parametrize("argument", ["", "size=smoke", "chips=16", "model=qwen3-0.6b"])
def test_countdown_lm_is_possible(argument, monkeypatch):
    """The recipe for a language model passes its check on one GPU and on a slice; a preset stands for a directory."""
    get_config = importlib.import_module("configs.countdown_lm").get_config
    config = get_config(argument if "model" in argument else f"model=smollm2-135m,{argument}".rstrip(","))
    monkeypatch.setattr("jax.devices", lambda: [None] * (16 if "chips" in argument else 1))
    config.tokenizer = "any"  # which a preset does not bring
    check(config)
    assert get_config("").model.name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    for wrong in ("size=tiny", "model=", "chips=0"):
        with pytest.raises(UserError, match=r"model=TEXT; size=full\|smoke; chips=NUMBER"):
            get_config(wrong)


@pytest.mark.parametrize("argument", ["stage=1", "stage=2", "stage=2,model=8b", "stage=2,seq=32k", "stage=1,chips=16"])
def test_e3_math_is_possible(argument, monkeypatch):
    """e3_math passes its check: a recipe that nothing reads goes stale."""
    config = importlib.import_module("configs.e3_math").get_config(argument)
    monkeypatch.setattr("jax.devices", lambda: [None] * config.sampler.prefill_rows)
    check(config)


@pytest.mark.parametrize("argument", ["fastcurl:", "fastcurl:split=80,chips=64", "polaris:", "polaris:chips=64"])
def test_other_curricula_are_possible(argument, monkeypatch):
    """FastCuRL and POLARIS pass their check; only a set's problems can be left out."""
    name, _, given = argument.partition(":")
    config = importlib.import_module(f"configs.{name}").get_config(given)
    monkeypatch.setattr("jax.devices", lambda: [None] * config.grpo.rows)
    settings = check(config)
    assert any(stage.selects for stage in settings.stages) and not settings.stages[0].reads_drawn
    with pytest.raises(UserError, match="split='short': use a number of tokens"):
        importlib.import_module("configs.fastcurl").get_config("split=short")
    monkeypatch.setattr("jax.devices", lambda: [None])
    config = load("quickstart")
    config.stages.hard.drop_above = 0.9
    with pytest.raises(UserError, match=r"stages.hard.drop_above, prompt_tokens=.* makes new problems without end"):
        check(config)


def test_a_length_is_asked_for_in_a_user_s_turn(monkeypatch):
    """LCPO wants a length in the prompt, which the closed words of tiny models have no room for."""
    monkeypatch.setattr("jax.devices", lambda: [None])
    config = load("quickstart")
    config.grpo.reward.lcpo = "exact"
    with pytest.raises(UserError, match=r"stages.easy.reward.lcpo='exact': pays for the length .*: set task.lengths"):
        check(config)
    config.task.lengths = (10, 50)
    with pytest.raises(UserError, match=r"task.lengths=\(10, 50\): the length is asked for in a user's turn"):
        check(config)
    config.task.lengths = (50, 10)
    with pytest.raises(UserError, match=r"task.lengths=\(50, 10\): use two whole numbers, the fewest and the most"):
        check(config)


@pytest.mark.parametrize(
    "argument",
    ["stage=sft", "stage=sft,behaviour=original", "stage=rl1,model=4b", "stage=rl2,behaviour=original", "stage=ef"],
)
def test_e2c_is_possible(argument, monkeypatch):
    """E2C passes its check, with the released numbers (docs/algorithms.md, E2C); the card's λ is in both stages."""
    get_config = importlib.import_module("configs.e2c").get_config
    config = get_config(argument)
    monkeypatch.setattr("jax.devices", lambda: [None] * config.grpo.rows)
    check(config)
    λs = [get_config(f"stage={s},lambda={v}").grpo.e2c.coefficient for v in ("scripts", "card") for s in ("rl1", "rl2")]
    assert λs == [1.0, 2.0, 2.0, 2.0]
    with pytest.raises(UserError, match=r"behaviour=sound\|original; chips=NUMBER"):
        get_config("stage=rl3")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.task.update(opening="<PLAN>"), "config.task.opening='<PLAN>': use '<EXPLORATION>'"),
        (lambda c: c.grpo.e2c.update(coefficient=0.0), "config.grpo.e2c.coefficient=0.0"),
        (lambda c: c.stages.rl2.e2c.update(missing="none"), "config.stages.rl2.e2c.missing='none': use one of 'plain'"),
        (lambda c: c.grpo.reward.update(following="on"), "config.grpo.reward.following='on'"),
        (lambda c: c.stages.rl2.reward.update(overlong_buffer=99), "overlong_buffer=99: at most the budget"),
        (lambda c: c.stages.rl1.update(group_size=1), "config.stages.rl1.group_size=1"),
        (lambda c: c.update(tokenizer="x"), "task.form='plans' wants words"),
    ],
)
def test_e2c_says_what_is_wrong(change, words, monkeypatch):
    """A stage's own sections are checked like the common ones."""
    monkeypatch.setattr("jax.devices", lambda: [None])
    config = load("e2c_countdown")
    config.stages.rl1.group_size = 8
    change(config)
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        check(config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.stages.math.update(set="e3-math-esay"), "config.stages.math.set='e3-math-esay': use one of deeps"),
        (lambda c: c.stages.math.update(set=""), "config.stages.math.set=''"),
        (lambda c: c.eval.sets.update({"x": "aime26"}), r"config.eval.sets\['x'\]='aime26'"),
        (lambda c: c.task.update(prompt="multiply"), "config.task.prompt: prompt 'multiply' is not one for problem"),
        (lambda c: c.task.update(form="maths"), "config.task.form='maths': use one of 'calculator', 'plans', 'paper'"),
        (lambda c: c.task.update(form="paper"), "config.eval.sets"),
        (lambda c: c.update(tokenizer="words"), "config.tokenizer='words': task.form='math' wants a hub tokenizer"),
    ],
)
def test_e3_math_says_what_is_wrong(change, words, monkeypatch):
    """Otherwise 128 chips would have to start before a misspelt set is reported."""
    config = importlib.import_module("configs.e3_math").get_config()
    monkeypatch.setattr("jax.devices", lambda: [None] * config.sampler.prefill_rows)
    change(config)
    with pytest.raises(UserError, match=words):
        check(config)


def test_all_errors_of_a_config_come_at_once(monkeypatch):
    """A config with six bad fields took six starts to correct. What only follows from a bad value is not reported."""
    monkeypatch.setattr("jax.devices", lambda: [None])
    config = load("quickstart")
    config.grpo.minibatches, config.grpo.temperature, config.sampler.tensor = 0, 0.0, 0
    config.model.preset, config.eval.only, config.stages.easy.budget = "huge", "5 numbers", 0
    config.stages.hard.lr, config.budget_rule.budgets = 0.0, ()
    with pytest.raises(UserError) as raised:
        check(config)
    lines = [line.strip() for line in str(raised.value).splitlines()]
    starts = (
        "config.sampler.tensor=0",
        "config.budget_rule.budgets=()",
        "config.eval.only='5 numbers'",
        "config.grpo.minibatches=0",
        "config.grpo.temperature=0.0",
        "config.stages.easy.budget=0",
        "config.stages.hard.lr=0.0",
    )
    assert all(sum(line.startswith(start) for line in lines) == 1 for start in starts), lines
    (last,) = (line for line in lines if not line.startswith(starts))
    assert "'huge'" in last and "qwen3-0.6b" in last


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(prompts=5), "config.stages.hard.prompts=5: must be a multiple of grpo.minibatches=2"),
        (dict(minibatches=3), "config.stages.hard.minibatches=3: must divide grpo.prompts=16"),
        (dict(old_logp="both"), "config.stages.hard.old_logp='both': use one of 'trainer', 'sampler'"),
        (dict(reward={"following": "on"}), "config.stages.hard.reward.following='on': use one of 'off', 'sound'"),
        (dict(reward={"followed": "off"}), "config.stages.hard.reward.followed='off': no such field: it has unfinish"),
        (dict(group=8), "config.stages.hard.group=8: no such field: it has name"),
        (dict(rows=8.5), "config.stages.hard.rows=8.5: use a whole number"),
    ],
)
def test_a_stage_s_own_fields_are_checked(fields, words, monkeypatch):
    """Five prompts in two minibatches passed the check and died in numpy; an unknown field was a TypeError."""
    monkeypatch.setattr("jax.devices", lambda: [None])
    config = load("quickstart")
    with config.unlocked():
        config.stages.hard.update(fields)
    with pytest.raises(UserError, match=words):
        check(config)


def test_room_for_prompts():
    """A user who did not know how long the longest prompt is learned it from a failed step. Now it is measured, and a
    prompt_room that is too small is refused with the number that would do.
    """
    from e3jax.tasks.countdown_traces import WORDS
    from e3jax.tokenizer import WordTokenizer
    from e3jax.train.setup import room_for_prompts

    config, tokenizer = load("smoke"), WordTokenizer(WORDS)
    assert room_for_prompts(resolve(config), tokenizer) == config.task.prompt_room == 8
    config.task.prompt_room = 2
    with pytest.raises(UserError, match=r"config.task.prompt_room=2: prompts of config.*: use 5 or more, or 0"):
        room_for_prompts(resolve(config), tokenizer)
    config.task.prompt_room = 0
    assert room_for_prompts(resolve(config), tokenizer) == 5
    config.eval.budgets = (2044,)
    with pytest.raises(UserError, match=r"config.eval.budgets=\(2044,\): tiny has room for 2043"):
        room_for_prompts(resolve(config), tokenizer)


def test_multiplication_is_possible(monkeypatch):
    """Multiplication passes its check: it has digits instead of a set, and a prompt of two numbers."""
    config = importlib.import_module("configs.e3_math").get_config()
    monkeypatch.setattr("jax.devices", lambda: [None] * config.sampler.prefill_rows)
    config.task.form, config.task.prompt, config.eval.sets = "multiplication", "multiply-check", {"5x5": (5, 5)}
    with pytest.raises(UserError, match="wants 'digits', which says which problems"):
        check(config)
    config.stages.math.digits = (5, 5)
    check(config)
    config.stages.math.digits = (5, 0)
    with pytest.raises(UserError, match=r"config.stages.math.digits=\(5, 0\): two counts of digits"):
        check(config)


@pytest.mark.parametrize("argument", ["arm=full", "model=7b,stage=rl", "stage=rl,arm=sft,budgets=released"])
def test_oxa_is_possible(argument, monkeypatch):
    """All arms have the same RL budget unless the released ones are chosen; what is refused is named."""
    load_oxa = importlib.import_module("configs.oxa").get_config
    config = load_oxa(argument)
    monkeypatch.setattr("jax.devices", lambda: [None] * 32)
    check(config)
    assert config.stages.rl.budget == 16_384 if "rl" in config.stages else config.stages.tune.suppress
    assert {load_oxa(f"stage=rl,arm={arm}").stages.rl.budget for arm in ("sft", "full")} == {18_432}
    with pytest.raises(UserError, match="arm='both' is not one of model="):
        load_oxa("arm=both")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(promote="sets"), "config.stages.tune.promote='sets'"),
        (lambda s: s.update(row_length=40_001), "config.stages.tune.row_length=40001: the model has room for 40000"),
        (lambda s: s.update(per_step=0), "config.stages.tune.per_step=0"),
        (lambda s: s.update(ul_weight=-1.0), "config.stages.tune.ul_weight=-1.0"),
        (lambda s: s.update(rows=33), "config.stages.tune.rows=33: must be a multiple"),
    ],
)
def test_oxa_says_what_is_wrong(change, words, monkeypatch):
    config = importlib.import_module("configs.oxa").get_config()
    monkeypatch.setattr("jax.devices", lambda: [None] * 32)
    change(config.stages.tune)
    with pytest.raises(UserError, match=words):
        check(config)


@pytest.mark.parametrize("argument", ["stage=3", "size=8b", "stage=1,model=7b", "chips=many"])
def test_e3_math_refuses_unknown_arguments(argument):
    """A misspelt argument would otherwise run another experiment."""
    with pytest.raises(UserError, match=r"stage=1\|2; model="):
        importlib.import_module("configs.e3_math").get_config(argument)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.grpo.update(group_size=1), "config.grpo.group_size=1"),
        (lambda c: c.grpo.update(minibatches=3), "must divide grpo.prompts=16"),
        (lambda c: c.grpo.update(temperature=0.0), "config.grpo.temperature=0.0"),
        (lambda c: c.stages.easy.update(budget=4096), "room for 2040"),
        (lambda c: c.stages.easy.update(budget="soon"), "'auto'"),
        (lambda c: c.budget_rule.update(budgets=(2048,)), "config.stages.hard.budget='auto': asks for 4096"),
        (lambda c: c.budget_rule.update(kappa=1.0), "kappa"),
        (lambda c: c.eval.update(budgets=(96, 4096)), "config.eval.budgets"),
        (lambda c: c.eval.update(pass_problems=4096), "config.eval.pass_problems"),
        (lambda c: c.update(order=("base", "esay")), "esay"),
        (lambda c: c.update(order=("base", "base")), "name each stage once"),
        (lambda c: c.update(order=()), "name each stage once"),
        (lambda c: c.mesh.update(data=3), "config.mesh"),
        (lambda c: c.grpo.weights.update(aggregation="tokenmean"), "'token_mean', 'sequence_mean', 'dr_grpo'"),
        (lambda c: c.grpo.loss.update(dual_clip=0.5), "config.grpo.loss.dual_clip=0.5"),
        (lambda c: c.stages.easy.update(numbers=(3, 9)), "config.stages.easy.numbers"),
        (lambda c: c.stages.short.update(rows=0), "config.stages.short.rows=0"),
        (lambda c: c.stages.short.traces.update(most_tokens=128), "row_length=128"),
        (lambda c: c.task.update(form="paper"), "config.tokenizer='words'"),
        (lambda c: c.sampler.update(top_p=0.0), "top_p"),
        (
            lambda c: c.sampler.update(top_p=0.9),
            "config.sampler.top_p=0.9: stage easy would train on tokens drawn from",
        ),
        (lambda c: c.sampler.update(top_k=20), "config.sampler.top_k=20: stage easy would train on tokens"),
        (renormalise, "config.stages.easy.restricted_sampling='renormalise': nothing reads the corrected"),
        (lambda c: c.grpo.loss.update(surrogate="trpo"), "config.grpo.loss.surrogate='trpo': use one of 'ppo'"),
        (lambda c: c.grpo.advantage.update(kind="pass_at_k", k=9), "advantage.k=9: at most group_size=8"),
        (lambda c: c.sampler.update(block=0), "config.sampler.block=0"),
        (lambda c: c.eval.update(budgets=()), "config.eval.budgets"),
        (lambda c: c.eval.sets.update({"9": (9,)}), "config.eval.sets"),
        (lambda c: c.model.update(preset="huge"), "qwen3-0.6b"),
        (lambda c: c.update(seed=1 << 31), "config.seed=2147483648: use a whole number from 0 to 2147483647"),
    ],
)
def test_impossible_configs_are_named(change, words, monkeypatch):
    monkeypatch.setattr("jax.devices", lambda: [None])
    config = load("quickstart")
    change(config)
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        check(config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.grpo.update(rows=12), "config.grpo.rows=12: must be a multiple of data x fsdp = 8"),
        (
            lambda c: c.sampler.update(slots=4),
            "config.sampler.slots=4: must be a multiple of devices / sampler.tensor = 8",
        ),
        (lambda c: c.sampler.update(tensor=2), "config.sampler.tensor=2: must divide 8 devices and 1 key/value heads"),
        (lambda c: c.mesh.update(data=3), "needs 6 devices, 8 are here"),
    ],
)
def test_batches_divide_over_all_hosts(change, words):
    """Rows that do not divide over 8 devices, on any number of hosts, would stop every process in its own traceback."""
    config = load("smoke")
    config.order = ("easy",)
    change(config)
    with pytest.raises(UserError, match=words):
        check(config)


def test_command_line_errors_are_sentences(tmp_path):
    """An unknown key, a wrong type, one sample per group, a budget too large, a workdir of another config."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used/config.json").write_text('{"seed": 5}')
    cases = {
        ("--config.grpo.groupsize=4",): "config has no field 'grpo.groupsize': did you mean 'grpo.group_size'",
        ("--config.nope=1",): "config has no field 'nope'",
        ("--config.grpo.prompts=8.5",): "--config.grpo.prompts=8.5",
        ("--config.grpo.group_size=1",): "config.grpo.group_size=1: a group of one has no baseline",
        ("--config.stages.easy.budget=9999",): "config.stages.easy.budget=9999: asks for 9999 tokens",
        (f"--workdir={tmp_path / 'used'}",): "holds a run of another config",
        ("--config=configs/absent.py",): "configs/absent.py",
        ("seed=3",): "not a flag",
        ("--config.seed=4294967301",): "config.seed=4294967301: use a whole number from 0 to 2147483647",
    }
    started = {}
    for flags in cases:
        command = [sys.executable, "-m", "e3jax.train.curriculum"]
        command += ["--config=configs/quickstart.py", f"--workdir={tmp_path / 'new'}", *flags]
        started[flags] = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for flags, process in started.items():
        _, errors = process.communicate()
        assert process.returncode == 2, flags
        assert "Traceback" not in errors, errors
        assert cases[flags] in errors, errors
        assert len([line for line in errors.splitlines() if line.startswith("error:")]) == 1, errors
    assert not (tmp_path / "new/metrics.jsonl").exists()
