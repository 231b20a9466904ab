"""The compiler answers whether a stage fits, and a bad answer reaches the exit status.

Compiles two layers of Qwen3-0.6B's widths for a v5e 2x2, without a TPU, in subprocesses (tests/test_tpu_compile.py says
why).
"""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs.e3_math import get_config
from e3jax.checkpoint.hf_config import to_hub
from e3jax.models.presets import num_params, preset
from e3jax.tools.aot import Measured, most_that_fits
from e3jax.tools.chips import GIB
from e3jax.tools.hlo import collectives, crosses, groups
from e3jax.tools.programs import NAMES
from e3jax.tools.rl_programs import stage_programs
from e3jax.train.settings import resolve

ROOT = Path(__file__).parent.parent
SMALL = dataclasses.replace(preset("qwen3-0.6b"), layers=2, vocab_size=4096)

HLO = """HloModule jit_f, entry_computation_layout={()->f32[]}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p: bf16[64,2]) -> bf16[16,2] {
  %r = bf16[64,2]{1,0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}

%fused_computation.1 (x: f32[4,2]) -> f32[8,2] {
  %g = f32[8,2]{1,0:T(8,128)} all-gather(%x), channel_id=3, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}
}

%async_collective_fusion.2 (x: f32[4,2], y: f32[8,2]) -> f32[8,2] {
  %h = f32[8,2]{1,0:T(8,128)} all-gather(%x), channel_id=3, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}
}

%cond (c: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(28)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (c: (s32[], f32[8])) -> (s32[], f32[8]) {
  %d = f32[8,2]{1,0} fusion(%x), kind=kCustom, calls=%fused_computation.1
  %g = f32[8,2]{1,0} fusion(%x, %d), kind=kOutput, calls=%async_collective_fusion.2
  %k = f32[8] custom-call(%g), frontend_attributes={kernel_metadata={
}}, metadata={op_name="splash"}
  %f = bf16[16,2]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
}

%until (c: (s32[], f32[8])) -> pred[] {
  ROOT %any = pred[] compare(%i, %m), direction=LT
}

%outer (c: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], f32[8]{0}) while(%t), condition=%cond, body=%body
  %a = (f32[4]{0}, f32[]) all-reduce(%u, %v), replica_groups=[2,4]<=[8], to_apply=%add
}

ENTRY %main (x: f32[8]) -> f32[] {
  %o = (s32[], f32[8]{0}) while(%t), condition=%until, body=%outer
}
"""


def test_traffic_by_hand():
    """A loop's body counted once hides 27 of 28 layers; loops nest, a scatter hides in a fusion, a gather in two.

    16 outer runs: 28 gathers of 64 B over 2 (half of it sent), 28 scatters of 256 B over 4, one all-reduce of 20 B over 4.
    """  # noqa: E501
    found, across = collectives(HLO, loops=16)
    assert found["all-gather"] == (16 * 28, 16 * 28 * 64 * 1 / 2)
    assert found["reduce-scatter"] == (16 * 28, 16 * 28 * 256 * 3 / 4)
    assert found["all-reduce"] == (16, 16 * 2 * 20 * 3 / 4)
    assert set(found) == {"all-gather", "reduce-scatter", "all-reduce"} and not across


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("replica_groups={{0,2},{1,3}}, dimensions={0}", [[0, 2], [1, 3]]),
        ("replica_groups=[2,3]<=[6], to_apply=%add", [[0, 1, 2], [3, 4, 5]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'b'}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        (
            "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, dimensions={0}",
            [[0, 1, 2, 3], [4, 5, 6, 7]],
        ),
        ("source_target_pairs={{0,1},{1,0},{2,3}}", [[0, 1], [1, 0], [2, 3]]),
        ("replica_groups={}, to_apply=%add", []),
    ],
)
def test_groups_in_every_form(text, want):
    """A form that is read wrongly calls traffic between slices traffic inside, and that is the slow kind."""
    assert groups(text) == want


def test_crossing_by_hand():
    """Slices of 4: {0,2} stays inside, {3,4} does not; a collective of all crosses; one slice has nothing to cross."""
    assert not crosses("replica_groups={{0,2},{1,3},{4,6},{5,7}}", 4)
    assert crosses("replica_groups=[4,2]<=[2,4]T(1,0)", 4) and crosses("source_target_pairs={{0,1},{3,4}}", 4)
    assert crosses("replica_groups={}", 4) and not crosses("replica_groups={}", None)


SEND = """HloModule jit_g

%until (c: (s32[])) -> pred[] {
  %n = s32[]{:T(128)} constant(9)
  %send.1 = (s32[1,1,128]{2,1,0}, u32[], token[]) send(%live, %t), channel_id=2, is_host_transfer=true, KIND
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%step (c: (s32[])) -> (s32[]) {
  ROOT %same = (s32[]) tuple(%i)
}

ENTRY %main (x: f32[8]) -> f32[] {
  %w = (s32[]) while(%t), condition=%until, body=%step
  %recv = (f32[24,16]{1,0:T(8,128)}, u32[], token[]) recv(%t), channel_id=1, is_host_transfer=true, KIND
}
"""


@pytest.mark.parametrize(
    ("kind", "target", "name", "size"),
    [
        ("ALL_REDUCE", '"{1,2}x{0:7}"', "all-reduce", 512 * 2 * 1 / 2),
        ("ALL_REDUCE", '"{1,2,3,4}x{0:7}"', "all-reduce", 512 * 2 * 3 / 4),
        ("REDUCE_SCATTER", '"{1,2,3}x{0:3}"', "reduce-scatter", 512 * 2 / 3),
        ("ALL_GATHER", '"{1,2,3}x{0:3}"', "all-gather", 512 * 2),  # of its own part
        ("ALL_TO_ALL", "{{100000,100003,200000,200003},{100001,100002,200001,200002}}", "all-to-all", 512 / 2),
        ("ONE_TO_ONE", "{{100003->200000},{200003->100000}}", "collective-permute", 512),
    ],
)
def test_network_by_hand(kind, target, name, size):
    """What the TPU compiler sends to other slices, 10 times: a loop of 9 asks 10 times whether it goes on."""
    attributes = f'frontend_attributes={{_xla_megascale_target={target},_xla_megascale_transfer_type="{kind}"}}'
    inside, across = collectives(SEND.replace("KIND", attributes), loops=16, chips=8)
    assert inside == {} and across == {name: (10, pytest.approx(10 * size))}


def test_only_gradients_cross_slices(monkeypatch):
    """8 CPU devices as two slices, no TPU compiler: sampling sends what a block drew, an update its gradient."""
    monkeypatch.setattr("e3jax.sharding.slice_of", lambda device: device.id // 4)
    c = get_config("stage=2,chips=8")
    c.model.update(preset="tiny", attention="xla", dtype="float32", chunk=64)
    c.task.prompt_room, c.stages.math.budget, c.mesh.data = 16, 48, 2
    # a CPU's partitioner spreads the cache writes of prefills over the slices too; the TPU's does not (docs/memory.md)
    settings, names = resolve(c), ("score", "to_sampling", "admit", "decode", "gradient")
    found = {}
    for program in stage_programs(settings, "math", jax.devices(), names=names):
        text = program.lower().compile().as_text()
        found[program.name] = collectives(text, loops=program.loops, chips=4)
    assert found["to_sampling"][1] == {} and found["admit"][1] == {}
    assert sum(t.bytes for t in found["score"][1].values()) < 8  # one number of the plain attention, not of splash
    assert all(found[name][0] for name in ("score", "to_sampling", "admit"))  # but do communicate, inside
    drawn = found["decode"][1]
    block, slots = settings.sampling.block, settings.sampling.slots
    assert sum(t.count for t in drawn.values()) < block  # not at every token
    assert sum(t.bytes for t in drawn.values()) < 2 * 3 * 4 * (block + 4) * slots
    assert set(found["gradient"][1]) == {"all-reduce"}  # gathered weights and activations stay inside


def test_suggestion_by_hand():
    """1 row a chip takes 4 GiB, 2 take 6, so 6 fit in 14; where 2 ran out of memory, only 1 is known to fit."""
    blank = Measured("gradient", "", 0, 0, 0, 0, 4 * GIB, {}, {}, 0.0, 0.0, "", 0.0, [], "")
    assert most_that_fits(blank, blank._replace(total=6 * GIB), 1.0, 14.0) == 6
    assert most_that_fits(blank, blank._replace(total=None), 1.0, 14.0) == 1


def start(tmp_path, *flags, config="e3_math.py:stage=2", chips=4, fields=("math.budget=384",)):
    (tmp_path / "config.json").write_text(json.dumps(to_hub(SMALL, dtype="bfloat16", bos=None, eos=1, pad=0)))
    command = [sys.executable, "-m", "e3jax.tools.aot", f"--config=configs/{config},chips={chips}"]
    command += ["--topology=v5e:2x2", f"--config.model.preset={tmp_path}", "--config.task.prompt_room=128", *flags]
    command += ["--config.model.chunk=512", *(f"--config.stages.{field}" for field in fields)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Return what the tool says in cases that need no compiler, and in one that compiles all programs."""
    here = tmp_path_factory.mktemp("aot")
    asked = {
        "topology": start(here, "--topology=v5e:3x5"),
        "gpu": start(here, "--topology=h100:8"),
        "axis": start(here, "--config.mesh.tensr=2"),
        "rows": start(here, "--config.grpo.rows=6"),
        "programs": start(here, "--programs=decode,update"),
        "slices": start(here, "--slices=2", "--nosuggest", chips=8),
    }
    if importlib.util.find_spec("libtpu"):
        asked |= {
            "fits": start(here, f"--json={here / 'fit.jsonl'}", "--nosuggest"),
            "limit": start(here, "--programs=add", "--limit=0.01", "--nosuggest"),
            "sft": start(
                here, f"--json={here / 'sft.jsonl'}", config="e2c.py:stage=sft", fields=["sft.row_length=512"]
            ),
            "two slices": start(
                here,
                "--slices=2",
                "--config.mesh.data=2",
                "--programs=to_sampling,admit,decode",
                f"--json={here / 'slices.jsonl'}",
                "--nosuggest",
                chips=8,
            ),
            "full": start(here, "--programs=admit", "--config.sampler.slots=40000", "--nosuggest"),
        }
    told = {name: (*process.communicate(), process.returncode) for name, process in asked.items()}
    return told, here


needs_libtpu = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="the TPU compiler is not installed: pip install libtpu"
)


@pytest.mark.aot
@needs_libtpu
def test_every_program_is_measured(answers):
    """The table would show a program left out, arguments that are not sharded, a cache copied or sent around."""
    told, here = answers
    out, err, status = told["fits"]
    assert status == 0, err[-2000:]
    line = json.loads((here / "fit.jsonl").read_text())
    programs = {p["name"]: p for p in line["programs"]}
    assert tuple(programs) == NAMES
    assert all(name in out for name in NAMES) and "GiB per chip" in out
    share = num_params(SMALL) * 4 / 4  # float32 over 4 chips
    assert programs["add"]["arguments"] == pytest.approx(2 * share, rel=0.01)
    assert programs["apply"]["arguments"] == pytest.approx(4 * share, rel=0.01)
    assert programs["apply"]["results"] < 0.01 * share  # donated
    assert programs["to_sampling"]["results"] == pytest.approx(num_params(SMALL) * 2, rel=0.01)  # replicated
    cache = 2 * 2 * 8 * 512 * 128 * 2 * 2  # k and v, layers, heads, positions, width, bytes, slots of a chip
    decode, admit = programs["decode"], programs["admit"]
    assert decode["results"] + admit["results"] < 0.01 * cache  # in place
    assert sum(t["bytes"] for t in decode["traffic"].values()) < 0.05 * cache
    gathered = sum(t["bytes"] for t in programs["gradient"]["traffic"].values())
    assert gathered < 10 * num_params(SMALL) * 2  # weights twice, gradients once; not a loop's every turn


@pytest.mark.aot
@needs_libtpu
def test_sampling_on_two_slices_is_measured(answers):
    """Only what a block of 32 steps drew crosses the network, once; before, every step asked whether to go on."""
    told, here = answers
    out, err, status = told["two slices"]
    assert status == 0, err[-2000:]
    line = json.loads((here / "slices.jsonl").read_text())
    assert line["slices"] == 2 and line["devices"] == 8 and "2 x v5e:2x2" in out and "network: all-gather" in out
    programs = {p["name"]: p for p in line["programs"]}
    assert all(programs[name]["across"] == {} for name in ("to_sampling", "admit"))
    assert all(programs[name]["traffic"] for name in ("to_sampling", "admit"))
    drawn = programs["decode"]["across"].values()
    assert sum(t["count"] for t in drawn) < 8 and 0 < sum(t["bytes"] for t in drawn) < 10_000


@pytest.mark.aot
@needs_libtpu
def test_a_supervised_stage_is_measured(answers):
    """Its gradient and update are measured, without any sampling."""
    told, here = answers
    _, err, status = told["sft"]
    assert status == 0, err[-2000:]
    line = json.loads((here / "sft.jsonl").read_text())
    programs = {p["name"]: p for p in line["programs"]}
    assert line["stage"] == "sft" and line["rows"] == 8 and tuple(programs) == ("gradient", "apply")
    share = num_params(SMALL) * 4 / 4  # float32 over 4 chips
    assert programs["gradient"]["beside"] == pytest.approx(2 * share, rel=0.01)  # AdamW's moments
    assert programs["apply"]["results"] < 0.01 * share  # donated


@pytest.mark.aot
@needs_libtpu
def test_what_does_not_fit_fails(answers):
    """With an exit status of 0 a script would rent the slice."""
    told, _ = answers
    out, err, status = told["limit"]
    assert status == 1 and "add needs 0." in out and "biggest: " in out, (out, err[-1000:])
    out, err, status = told["full"]
    assert status == 1 and "admit ran out of memory" in out, (out, err[-1000:])
    assert "8.00 GiB [0][0][0].k bfloat16(2, 131072" in " ".join(out.split()), out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("topology", "these do: v5e:1x1"),
        ("gpu", "no GPU topologies"),
        ("axis", "did you mean 'mesh.tensor'"),
        ("rows", "config.grpo.rows=6 does not divide over mesh.data x mesh.fsdp = 4"),
        ("programs", "--programs=update: the programs are gradient"),
        ("slices", "mesh.data=1 is no multiple of the 2 TPU slices"),
    ],
)
def test_bad_input_is_one_sentence(answers, name, words):
    """It is reported before anything is compiled, without a traceback."""
    if name in ("topology", "rows", "slices") and not importlib.util.find_spec("libtpu"):
        pytest.skip("the TPU compiler is not installed: pip install libtpu")
    _, err, status = answers[0][name]
    assert status == 2 and words in " ".join(err.split()) and "Traceback" not in err, err[-2000:]
