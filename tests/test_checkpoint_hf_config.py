"""config.json read exactly: what is absent, unknown or unsupported is named, never guessed."""

import json

import pytest
from tiny_hub import CASES, QWEN3

from e3jax.checkpoint.hf_config import from_hub, read_config, to_hub
from e3jax.errors import UserError
from e3jax.models.presets import presets


@pytest.mark.parametrize("name", presets())
def test_presets_survive(name):
    config = presets()[name]
    assert from_hub(to_hub(config, dtype="bfloat16", bos=None, eos=1, pad=0)) == config


@pytest.mark.parametrize("name", CASES)
def test_old_and_new_spelling_are_one(name):
    """transformers 5 keeps θ and scaling in `rope_parameters`, version 4 in two fields: both are read alike."""
    old = CASES[name]
    new = {k: v for k, v in old.items() if k not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {"rope_type": "default", **(old["rope_scaling"] or {}), "rope_theta": old["rope_theta"]}
    assert from_hub(new) == from_hub(old)


@pytest.mark.parametrize("name", CASES)
def test_transformers_reads_what_we_write(name):
    """Every field that shapes the computation arrives in transformers' config object."""
    transformers = pytest.importorskip("transformers", reason="needs pip install -e '.[hf]'")
    config = from_hub(CASES[name])
    theirs = transformers.AutoConfig.for_model(**to_hub(config, dtype="float32", bos=None, eos=1, pad=0))
    assert from_hub(theirs.to_dict()) == config
    assert theirs.rope_parameters["rope_theta"] == config.rope_theta


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_theta": None}, "rope_theta=None, a number above 0 is needed"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "RoPE type 'dynamic' is not one of default"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, "RoPE type 'yarn' with mscale"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor=None"),
        ({"model_type": "gemma"}, "model_type 'gemma' is not one of qwen3, qwen2, llama"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"use_sliding_window": True, "max_window_layers": 1}, "use_sliding_window=True is not supported"),
        ({"num_key_value_heads": 3}, "heads=4 is not a multiple of kv_heads=3"),
        ({"hidden_size": "48"}, "hidden_size='48', a number above 0 is needed"),
        ({"num_attention_heads": 0}, "num_attention_heads=0, a number above 0 is needed"),
        ({"head_dim": "16"}, "head_dim='16', a number above 0 is needed"),
        ({"dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk_attention_config"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    ],
)
def test_what_the_block_does_not_do_is_refused(change, said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3 | change))
    with pytest.raises(UserError) as error:
        read_config(tmp_path)
    assert said in str(error.value) and str(tmp_path / "config.json") in str(error.value)


def test_no_config_or_a_broken_one(tmp_path):
    with pytest.raises(UserError, match=r"holds no config.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_config(tmp_path)
