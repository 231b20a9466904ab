"""E2C's and OXA's full-size configs, two steps of each stage: real tokenizer and problems, a model of 16 widths.

What is made small is only what the flags below say; the mathematics recipe of e3 has tests/test_train_math.py.
"""

import json
from pathlib import Path

import pytest
from test_train_math import OPTIMISED, write_model

from benchmarks.faults import records, run_to_end
from e3jax.phases import TAGS
from e3jax.tools.convert import convert

DATA = Path(__file__).parent.parent.parent / "shared/data"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason=f"no {DATA}: the Qwen3 tokenizer and real problems lie there")
SMALL = (
    "--config.model.dtype=float32", "--config.model.chunk=512", "--config.sampler.slots=4",
    "--config.sampler.prefill_rows=2", "--config.sampler.block=8", "--config.sampler.tensor=1",
    "--config.grader.workers=1", "--config.checkpoint.every=1", "--config.log.tensorboard=False",
    "--config.task.prompt_room=104", f"--config.eval.sets.aime24={DATA}/math/aime24.json",
)  # fmt: skip
RL = (
    "--config.grpo.prompts=2",
    "--config.grpo.group_size=2",
    "--config.grpo.rows=2",
    "--config.grpo.minibatches=1",
    "--config.grpo.reward.overlong_buffer=8",
)


def train(config: str, workdir: Path, model: Path, stage: str, after: Path, **fields) -> dict[str, list]:
    """Train two steps of a stage, from `after`; return the run's records. `fields` are those of config.stages.STAGE."""
    given = {"model.preset": model, "tokenizer": model, "init.init_from": after, f"stages.{stage}.evaluated": False}
    given |= {f"stages.{stage}.{name}": value for name, value in ({"steps": 2} | fields).items()}
    flags = [f"--config.{name}={value}" for name, value in given.items()]
    run_to_end(workdir, *SMALL, *(RL if "budget" in fields else ()), *flags, config=config, env=OPTIMISED)
    assert (workdir / "DONE").exists()
    said = records(workdir)
    assert said["metrics.jsonl"][-1]["step"] == 2  # a supervised stage logs every tenth and the last
    assert all(line["optim/skipped"] == 0 for line in said["metrics.jsonl"])
    return said


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Return a model that says a plan's and an answer's tokens, in any order; the four tags have rows of their own."""
    there = tmp_path_factory.mktemp("recipes")
    write_model(there / "plain", "1. add 2 </think> \\boxed{2}", DATA / "qwen3-tokenizer")
    convert(str(there / "plain"), there / "tags", add_tokens=TAGS)
    return there / "tags"


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_e2c(model, tmp_path):
    """SFT on both phases, then RL from it with λ on the plan, the plan-following reward and a forced start."""
    rows = [
        {
            "question": f"What is {i}+1?",
            "exploration": f"1. Add one to {i}.\n2. Box it.",
            "answer": str(i + 1),
            "execution": f"1. Add one to {i}: {i + 1}\n2. Box it: \\boxed{{{i + 1}}}",
        }
        for i in range(16)
    ]
    causal = write_rows(tmp_path / "causal.jsonl", rows)
    recipe = "configs/e2c.py:stage={},chips=1".format
    data = {"data.set": causal, "data.per_step": 4, "row_length": 192}
    sft = train(recipe("sft"), tmp_path / "sft", model, "sft", model, **data)
    assert all(line["loss/total"] > 0 and line["optim/grad_norm"] > 0 for line in sft["metrics.jsonl"])

    rl = train(
        recipe("rl2"),
        tmp_path / "rl2",
        model,
        "rl2",
        tmp_path / "sft/checkpoints/sft/2",
        budget=24,
        set=DATA / "math/deepscaler_10k.parquet",
    )
    assert all(line["length/exploration"] > 0 for line in rl["metrics.jsonl"])
    for sample in rl["samples.jsonl"]:
        assert sample["prompt"].endswith("<|im_start|>assistant\n<EXPLORATION>")  # forced, and not trained


def test_oxa(model, tmp_path):
    """Fine-tune on promoted and suppressed responses, then RL from it. (The sets: tests/test_curation_oxa_sets.py.)"""
    sets = {
        name: write_rows(
            tmp_path / f"{name}.jsonl",
            [{"prompt": f"What is {i}+1?", "response": f"{said}</think> \\boxed{{{i + 1}}}"} for i in range(8)],
        )
        for name, said in (("promote", "it follows"), ("suppress", "so so so"))
    }
    recipe = "configs/oxa.py:arm=full,chips=1"
    tuned = train(recipe, tmp_path / "tune", model, "tune", model, **sets, per_step=4, row_length=128, rows=1)[
        "metrics.jsonl"
    ]
    assert all(line["loss/ce"] > 0 and line["loss/ul"] > 0 for line in tuned)

    rl = train(
        f"{recipe},stage=rl",
        tmp_path / "rl",
        model,
        "rl",
        tmp_path / "tune/checkpoints/tune/2",
        budget=24,
        set=DATA / "math/deepscaler_10k.parquet",
    )["metrics.jsonl"]
    assert all(line["parity/logp_max"] < 1e-4 for line in rl)
