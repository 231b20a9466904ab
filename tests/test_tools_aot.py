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

import pytest

from e3jax.checkpoint.hf_config import to_hub
from e3jax.models.presets import num_params, preset
from e3jax.tools.aot import Measured, most_that_fits
from e3jax.tools.chips import GIB
from e3jax.tools.hlo import collectives
from e3jax.tools.programs import NAMES

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
    found = collectives(HLO, loops=16)
    assert found["all-gather"] == (16 * 28, 16 * 28 * 64 * 1 / 2)
    assert found["reduce-scatter"] == (16 * 28, 16 * 28 * 256 * 3 / 4)
    assert found["all-reduce"] == (16, 16 * 2 * 20 * 3 / 4)
    assert set(found) == {"all-gather", "reduce-scatter", "all-reduce"}


def test_suggestion_by_hand():
    """1 row a chip takes 4 GiB, 2 take 6, so 6 fit in 14; where 2 ran out of memory, only 1 is known to fit."""
    blank = Measured("gradient", "", 0, 0, 0, 0, 4 * GIB, {}, 0.0, 0.0, "", 0.0, [], "")
    assert most_that_fits(blank, blank._replace(total=6 * GIB), 1.0, 14.0) == 6
    assert most_that_fits(blank, blank._replace(total=None), 1.0, 14.0) == 1


def start(tmp_path, *flags, config="e3_math.py:stage=2", fields=("math.budget=384",)):
    (tmp_path / "config.json").write_text(json.dumps(to_hub(SMALL, dtype="bfloat16", bos=None, eos=1, pad=0)))
    command = [sys.executable, "-m", "e3jax.tools.aot", f"--config=configs/{config},chips=4"]
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
    }
    if importlib.util.find_spec("libtpu"):
        asked |= {
            "fits": start(here, f"--json={here / 'fit.jsonl'}", "--nosuggest"),
            "limit": start(here, "--programs=add", "--limit=0.01", "--nosuggest"),
            "sft": start(
                here, f"--json={here / 'sft.jsonl'}", config="e2c.py:stage=sft", fields=["sft.row_length=512"]
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
    ],
)
def test_bad_input_is_one_sentence(answers, name, words):
    """It is reported before anything is compiled, without a traceback."""
    if name in ("topology", "rows") and not importlib.util.find_spec("libtpu"):
        pytest.skip("the TPU compiler is not installed: pip install libtpu")
    _, err, status = answers[0][name]
    assert status == 2 and words in " ".join(err.split()) and "Traceback" not in err, err[-2000:]
