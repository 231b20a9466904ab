"""The whole mathematics recipe on a CPU with a random model of 16 widths: a small tokenizer and sets made here, and the
real ones of ../shared/data where they are.

stream -> rollouts -> grading -> update -> checkpoint -> evaluation -> report, straight and killed.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tiny_hub import QWEN3, like_of

from benchmarks.faults import Command, difference, records, run_to_end
from e3jax.checkpoint.hf import save_hf
from e3jax.models.qwen3 import init_params
from e3jax.tokenizer import HubTokenizer

OPTIMISED = {"XLA_FLAGS": ""}  # a vocabulary of 152k: most of the time is log-softmax, not compilation
SMALL = (
    "--config.model.dtype=float32", "--config.model.chunk=512", "--config.stages.math.steps=3",
    "--config.stages.math.budget=24", "--config.grpo.prompts=2", "--config.grpo.group_size=4",
    "--config.grpo.minibatches=2", "--config.grpo.rows=2", "--config.sampler.slots=8",
    "--config.sampler.prefill_rows=4", "--config.sampler.block=8", "--config.eval.problems=3",
    "--config.eval.samples=1", "--config.eval.budgets=(12,24)", "--config.eval.pass_ks=(1,2)",
    "--config.eval.pass_problems=2", "--config.eval.pass_budget=12", "--config.checkpoint.every=1",
    "--config.grpo.temperature=1.0", "--config.eval.temperature=1.0", "--config.task.prompt_room=104",
)  # fmt: skip


def write_model(directory: Path, likely: str, tokenizer_files: Path) -> Path:
    """A random Qwen3 with this tokenizer that mostly says the tokens of `likely`, and "<|im_end|>"."""
    import jax

    tokenizer = HubTokenizer(str(tokenizer_files))
    size = 151_936 if is_real(tokenizer_files) else -(-tokenizer.vocab_size // 64) * 64
    shape = dict(vocab_size=size, hidden_size=16, intermediate_size=32, num_hidden_layers=1, head_dim=8)
    shape |= dict(num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(QWEN3 | shape))
    params = jax.jit(init_params, static_argnums=0)(like_of(directory)[0], jax.random.key(0))
    names = {name: np.array(x) for name, x in params.items() if name != "layers"}
    (head,) = [name for name in names if name not in ("embed_vd", "final_norm_d")]  # the unembedding
    names["embed_vd"][:, 0] = 3.0  # what every position has in common …
    said = list(dict.fromkeys([*tokenizer.encode(likely), tokenizer.eos]))
    if names[head].shape[0] == 16:
        names[head][0, said] = 5.0  # … makes these likely
    else:
        names[head][said, 0] = 5.0
    tokenizer.save(directory)
    save_hf(params | {n: jax.numpy.asarray(x) for n, x in names.items()}, directory)
    return directory


def is_real(tokenizer_files: Path) -> bool:
    return "shared" in tokenizer_files.parts


def write_sets(directory: Path, tokenizer_files: Path) -> dict[str, Path]:
    """Files to train on, in verl's rows, and to evaluate on, by field of the config; real for the real tokenizer."""
    names = {
        "stages.math.set": "deepscaler_10k.parquet",
        "eval.sets.aime25": "aime25.json",
        "eval.sets.hmmt25": "hmmt25.json",
    }
    if is_real(tokenizer_files):
        return {field: tokenizer_files.parent / "math" / name for field, name in names.items()}
    import pyarrow
    import pyarrow.parquet

    text = "What is ${}+1$? \nLet's reason step by step. Enclose the reasoning process within <think>...</think>."
    rows = [
        {
            "prompt": [{"content": text.format(i), "role": "user"}],
            "reward_model": {"ground_truth": str(i + 1), "style": "rule"},
            "extra_info": {"index": i, "split": "train"},
        }
        for i in range(40)
    ]
    paths = {field: directory / name for field, name in names.items()}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), paths["stages.math.set"])
    for field in ("eval.sets.aime25", "eval.sets.hmmt25"):
        questions = [{"problem": f"What is ${i}-1$?", "answer": str(i - 1)} for i in range(1, 5)]
        paths[field].write_text(json.dumps(questions))
    return paths


def flags_for(model: Path, **values) -> list[str]:
    given = {"model.preset": model, "init.init_from": model, "tokenizer": model} | values
    return [*SMALL, *(f"--config.{name}={value}" for name, value in given.items())]


def test_stage_1_killed_equals_straight(tmp_path, qwen3_files):
    """The command of the config's header, made small. Guards: the order of a set, or its grades, lost by a resume."""
    if is_real(qwen3_files) and "E3JAX_SLOW" not in os.environ:  # tests/test_recipes.py has real ones of E2C and OXA
        pytest.skip("takes minutes: set E3JAX_SLOW=1")
    model = write_model(tmp_path / "model", "</think> \\boxed{2}", qwen3_files)
    sets = write_sets(tmp_path, qwen3_files)
    env = OPTIMISED if is_real(qwen3_files) else {}
    options = dict(config="configs/e3_math.py:stage=1,chips=1", env=env)
    straight, killed, flags = tmp_path / "a", tmp_path / "b", flags_for(model, **sets)
    run_to_end(straight, *flags, **options)
    if not env:  # once is enough: a resume knows nothing of the vocabulary, and a real one takes two minutes
        command = Command(killed, *flags, **options)
        assert command.wait_for(lambda: command.logged("math", 2)), command.said[-2000:]
        command.kill()
        assert not (killed / "DONE").exists()
        run_to_end(killed, *flags, **options)
        assert not (found := difference(straight, killed)), found
    assert (straight / "report.html").exists() and (straight / "DONE").exists()
    said = records(straight)
    assert [line["step"] for line in said["metrics.jsonl"]] == [1, 2, 3]
    assert {line["set"] for line in said["eval.jsonl"]} == {"aime25", "hmmt25"}
    for line in said["metrics.jsonl"]:
        reasons = {name for name in line if name.startswith("reason/")} - {"reason/truncated"}
        assert line["truncated"] < 1 and reasons  # responses end by themselves, and a grader read them
        assert line["optim/grad_norm"] > 0 and line["explore/attempts"] >= 1
    asked = [line["problem"] for line in said["samples.jsonl"]]
    assert all(name.startswith("deepscaler_10k-") for name in asked)
    assert said["samples.jsonl"][0]["prompt"].endswith("\\boxed{}.<|im_end|>\n<|im_start|>assistant\n")
