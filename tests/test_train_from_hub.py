"""A Hugging Face directory, one RL step, and back: what docs/checkpoints.md promises, in miniature."""

import json

import numpy as np
import pytest
from tiny_hub import QWEN3, like_of

from configs import smoke
from e3jax.checkpoint.hf import load_hf, save_hf
from e3jax.checkpoint.pretrained import load_pretrained
from e3jax.errors import UserError
from e3jax.models.qwen3 import init_params
from e3jax.sharding import make_mesh
from e3jax.train.curriculum import main

pytest.importorskip("transformers", reason="real tokenizers need pip install -e '.[hf]'")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Write a tiny Qwen3 in bfloat16 with one token per byte, and a base model's generation_config."""
    import jax
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    directory = tmp_path_factory.mktemp("hub")
    (directory / "config.json").write_text(json.dumps(QWEN3 | {"vocab_size": 320}))
    model, _ = like_of(directory)
    save_hf(jax.jit(init_params, static_argnums=0)(model, jax.random.key(0)), directory, dtype="bfloat16")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<end>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "pad_token": "<pad>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    held = {"eos_token_id": 258, "do_sample": False, "max_new_tokens": 9, "top_k": 20}
    (directory / "generation_config.json").write_text(json.dumps(held))
    return directory


def config_for(source):
    c = smoke.get_config()
    c.model.preset = c.tokenizer = c.init.init_from = str(source)
    c.init.number_embeddings, c.task.form, c.task.prompt_room = False, "paper", 640
    c.order, c.stages.easy.steps, c.stages.easy.evaluated = ("easy",), 1, False
    c.grpo.prompts, c.grpo.group_size, c.grpo.rows, c.grpo.minibatches = 2, 4, 8, 1
    return c


def test_one_step_and_back(source, tmp_path):
    """RUN/hf describes the trained model: its ends and sampling, no limits of the base; export and generation work."""
    from e3jax.tools.convert import convert

    main(config_for(source), str(tmp_path / "run"))
    described = json.loads((tmp_path / "run/hf/generation_config.json").read_text())
    assert described == {"do_sample": True, "pad_token_id": 256, "top_k": 20, "eos_token_id": [257, 258]}
    checkpoint = tmp_path / "run/checkpoints/easy/1"
    convert(str(checkpoint), tmp_path / "out")
    model, like = like_of(tmp_path / "out")
    assert model.config == like_of(source)[0].config
    trained, before = load_hf(tmp_path / "out", like), load_hf(source, like)
    moved = np.abs(np.asarray(trained["layers"]["wq_dnh"] - before["layers"]["wq_dnh"])).max()
    assert moved < 1e-2  # one step of Adam from the given weights, not from others
    asked = load_pretrained(str(checkpoint), dtype="float32", mesh=make_mesh(data=1, fsdp=8, tensor=1))
    assert asked.tokenizer.stop == (257, 258)
    np.testing.assert_array_equal(asked.params["embed_vd"], trained["embed_vd"])


def test_wrong_sources_stop_before_anything_runs(source, tmp_path):
    """Weights of a model that computes otherwise, a run where a model belongs, a name that means nothing."""
    other = config_for(source)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text(json.dumps(QWEN3 | {"vocab_size": 320, "rope_theta": 5e5}))
    other.model.preset = str(tmp_path / "other")
    with pytest.raises(UserError, match=r"is of another model \(rope_theta"):
        main(other, str(tmp_path / "run2"))
    (tmp_path / "run3/checkpoints").mkdir(parents=True)
    for name, said in (
        (tmp_path / "run3", "is a run: name one of its checkpoints"),
        ("qwen4", "is neither a directory"),
    ):
        wrong = config_for(source)
        wrong.model.preset = str(name)
        with pytest.raises(UserError, match=said):
            main(wrong, str(tmp_path / "run4"))
