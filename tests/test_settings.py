"""Every field of a config reaches the settings that the code takes, from a stage or from its base, or is refused."""

import ast
import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from e3jax.errors import UserError
from e3jax.train.settings import Settings, resolve

ROOT = Path(__file__).parent.parent
PLACED = ("name", "index", "first_step", "first_problem")  # where a stage stands: not a person's to say
STAGES = {  # config (module, argument), a stage of each kind
    "traces": ("quickstart", None, "base"),
    "set": ("e2c", "stage=sft", "sft"),
    "oxa": ("oxa", "arm=full", "tune"),
    "grpo": ("quickstart", None, "hard"),
    "plans": ("e2c_countdown", None, "rl2"),
}


def load(module: str, argument: str | None) -> ConfigDict:
    config = importlib.import_module(f"configs.{module}").get_config(*([argument] if argument else []))
    config.unlock()
    return config


def leaves(value, path: str = "") -> dict:
    """{dotted path: value} of dataclasses and mappings; a tuple is one value."""
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if not isinstance(value, Mapping):
        return {path: value}
    return {k: v for name, part in value.items() for k, v in leaves(part, f"{path}.{name}".lstrip(".")).items()}


def another(value):
    """A different value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 2 * value or 1
    if isinstance(value, float):
        return value / 2 or 0.25
    if isinstance(value, str):
        return f"{value}x"
    return 7.5 if value is None else value[:1] if len(value) > 1 else (*value, *value)


def put(config: ConfigDict, path: str, value) -> None:
    """Set a dotted field, making the sections on the way."""
    *sections, last = path.split(".")
    for name in sections:
        if name not in config:
            config[name] = ConfigDict()
        config = config[name]
        config.unlock()
    if last in config:
        del config[last]  # its type is not this test's matter
    config[last] = value


def check(config: ConfigDict, before: Settings, field: str, arrives: str, value) -> None:
    """The settings differ from those `before` in this field alone, or its name is in what is refused."""
    try:
        after = resolve(config)
    except UserError as error:
        assert f"{field.split('.')[-1]}=" in str(error), f"{field}={value!r}: {error}"
        return
    old, new = leaves(settings_by_name(before)), leaves(settings_by_name(after))
    assert new[arrives] == value, f"{field}={value!r} did not arrive"
    changed = {k for k in old if k not in new or old[k] != new[k]} - {arrives}
    following = {k for k in changed if k.split(".")[-1] in PLACED}  # of later stages, when steps or prompts change
    assert changed <= following, f"{field}={value!r} changed {sorted(changed)} too"


def settings_by_name(s: Settings) -> dict:
    """The settings with stages by name instead of a tuple of them."""
    parts = {f.name: getattr(s, f.name) for f in dataclasses.fields(s) if f.name != "stages"}
    return parts | {"stages": {stage.name: stage for stage in s.stages}}


@pytest.mark.parametrize("kind", STAGES)
def test_every_field_of_a_stage_takes_effect_or_is_refused(kind):
    """A stage's temperature did not reach Eq. 2, and stages of one section were merged by three rules, all shallow."""
    module, argument, name = STAGES[kind]
    before = resolve(load(module, argument))
    fields = leaves(before.stage(name))
    tried = 0
    for field, value in fields.items():
        if field in PLACED or (value is None and field in ("source", "traces", "data")):
            continue
        config, given = load(module, argument), another(value)
        written = field
        if field == "source":
            written = next(n for n in ("numbers", "digits", "set") if n in config.stages[name])
        put(config, f"stages.{name}.{written}", given)
        if written == "budget":
            given = config.stages[name].budget
        check(config, before, f"stages.{name}.{written}", f"stages.{name}.{field}", given)
        tried += 1
    assert tried >= 10


@pytest.mark.parametrize("module", ["quickstart", "e2c_countdown"])
def test_every_field_of_a_section_takes_effect_or_is_refused(module):
    """Sections that no stage changes, and the bases of stages: what a stage does not say comes from there."""
    before = resolve(load(module, None))
    config = load(module, None).to_dict()
    stage = {"grpo": next(s.name for s in before.stages if hasattr(s, "minibatches")), "sft": before.stages[0].name}
    for section in config.keys() - {"stages", "order"}:
        for field, value in leaves({section: config[section]}).items():
            changed, given = load(module, None), another(value)
            put(changed, field, given)
            place = field.replace("sampler.", "sampling.", 1) if section == "sampler" else field
            if section in stage:
                place = f"stages.{stage[section]}.{field.partition('.')[2]}"
                if field.partition(".")[2] in leaves(config["stages"][stage[section]]):
                    continue  # this stage says it for itself
                try:
                    assert leaves(settings_by_name(resolve(changed)))[place] == given, field
                except UserError as error:
                    assert f"config.{field}=" in str(error), f"{field}: {error}"
                continue
            check(changed, before, field, place, given)


@pytest.mark.parametrize("name", ["groups", "loss.kl_coeff", "reward.unfinish", "sampler.slots"])
def test_an_unknown_field_of_a_stage_is_refused_by_name(name):
    """A misspelt field of a stage would otherwise train another experiment."""
    config = load("quickstart", None)
    put(config, f"stages.hard.{name}", 1)
    with pytest.raises(UserError, match=rf"config\.stages\.hard\.{name.split('.')[0]}.*no such field"):
        resolve(config)


def test_a_stages_section_is_merged_field_by_field():
    """A stage had to say all of a section: `reward={"following": "sound"}` was refused."""
    config = load("quickstart", None)
    put(config, "stages.hard.loss.kl_coef", 0.5)
    easy, hard = (resolve(config).stage(name).loss for name in ("easy", "hard"))
    assert hard == dataclasses.replace(easy, kl_coef=0.5)


def test_every_setting_is_read():
    """A knob that nothing reads: each field of the settings is an attribute that code outside its class takes."""
    read = set()
    for path in (ROOT / "e3jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                read.add(node.attr)
    whole = {"ddof", "epsilon", "normalize_std", "coefficient", "missing"}  # passed on whole, as keyword arguments
    whole |= {"workers", "timeout_s"}  # read by the method that starts them
    s = resolve(load("quickstart", None))
    names = {name.split(".")[-1] for name in leaves(settings_by_name(s)) if not name.startswith("eval.sets")}
    assert not names - read - whole - {"favourite", "checked"}, names - read - whole
