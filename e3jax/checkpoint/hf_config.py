"""config.json of the Hugging Face families that one block serves, to ModelConfig and back.

    qwen3   QK-norm, no biases                       Qwen3
    qwen2   biases on q, k, v                        Qwen2.5, Qwen2.5-Math, DeepSeek-R1-Distill-Qwen
    llama   neither                                  Llama-3.2, and other Llamas without biases

What a config.json asks for and the block does not do is an error: another activation, a sliding window, output biases,
chunked attention, quantisation, a RoPE scheme or RoPE field that is not known here. RoPE's θ has no default. Fields
that these families do not compute with are ignored.

    config = read_config("/models/Qwen3-1.7B")
"""

import json
import math

from etils import epath

from e3jax.errors import UserError
from e3jax.models.presets import ModelConfig
from e3jax.models.rope import Linear, Llama3, Scaling, Yarn

ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}


def read_config(directory: epath.PathLike) -> ModelConfig:
    """ModelConfig of DIR/config.json; UserError names the file and the field that is missing or not supported."""
    path = epath.Path(directory) / "config.json"
    if not path.exists():
        raise UserError(f"{directory} holds no config.json: name a Hugging Face model directory")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): download it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object: download it again")
    try:
        return from_hub(found)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def from_hub(c: dict) -> ModelConfig:
    """config.json's fields -> ModelConfig. `rope_theta` and `rope_scaling` may stand alone or in `rope_parameters`."""
    family = field(c, "model_type", str)
    if family not in ARCHITECTURES:
        raise UserError(f"model_type {family!r} is not one of {', '.join(ARCHITECTURES)}")
    layers, heads = field(c, "num_hidden_layers", int), field(c, "num_attention_heads", int)
    window = given(c, "use_sliding_window", False) and given(c, "max_window_layers", 0) < layers
    refused = {
        "hidden_act": given(c, "hidden_act", "silu") not in ("silu", "swish"),
        "attention_bias": given(c, "attention_bias", False),
        "mlp_bias": given(c, "mlp_bias", False),
        "use_sliding_window": window,
        "layer_types": set(given(c, "layer_types", ())) - {"full_attention"},
        "partial_rotary_factor": given(c, "partial_rotary_factor", 1.0) != 1.0,
        "quantization_config": given(c, "quantization_config", {}),
        "dual_chunk_attention_config": given(c, "dual_chunk_attention_config", {}),
    }
    for name, refuse in refused.items():
        if refuse:
            raise UserError(f"{name}={c[name]!r} is not supported: the block is full attention, SiLU, no such bias")
    width = field(c, "hidden_size", int)
    # transformers' default where the field is absent: 128 for Qwen3, D / N for the other two
    head_width = optional(c, "head_dim", 128 if family == "qwen3" else width // heads)
    max_length = field(c, "max_position_embeddings", int)
    theta, scaling = rope_from_hub(c, max_length)
    try:
        return ModelConfig(
            vocab_size=field(c, "vocab_size", int),
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=optional(c, "num_key_value_heads", heads),
            head_width=head_width,
            mlp_width=field(c, "intermediate_size", int),
            rope_theta=theta,
            rope_scaling=scaling,
            norm_epsilon=field(c, "rms_norm_eps", float),
            tied=bool(given(c, "tie_word_embeddings", False)),
            max_length=max_length,
            qk_norm=family == "qwen3",
            qkv_bias=family == "qwen2",
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def given(c: dict, name: str, otherwise):
    """A field that may be absent or null."""
    value = c.get(name)
    return otherwise if value is None else value


def field(c: dict, name: str, kind: type):
    """A field that must be there, as `kind`."""
    value = c.get(name)
    good = isinstance(value, int | float if kind is float else kind) and not isinstance(value, bool)
    if not good or (kind is not str and not value > 0):
        raise UserError(f"{name}={value!r}, a {'string' if kind is str else 'number above 0'} is needed")
    return kind(value)


def optional(c: dict, name: str, otherwise: int) -> int:
    """A whole number that may be absent or null."""
    return otherwise if c.get(name) is None else field(c, name, int)


def rope_from_hub(c: dict, max_length: int) -> tuple[float, Scaling]:
    """θ and scaling: transformers 5 writes both into `rope_parameters`, 4 wrote `rope_theta` and `rope_scaling`."""
    r = {**given(c, "rope_scaling", {}), **given(c, "rope_parameters", {})}
    theta = field(r if "rope_theta" in r else c, "rope_theta", float)
    kind = given(r, "rope_type", given(r, "type", "default"))
    known = {
        "default": (),
        "linear": ("factor",),
        "yarn": (
            "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate",
        ),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }  # fmt: skip
    if kind not in known:
        raise UserError(f"RoPE type {kind!r} is not one of {', '.join(known)}")
    unknown = {k for k, v in r.items() if v is not None} - {"rope_type", "type", "rope_theta", *known[kind]}
    if unknown:
        raise UserError(f"RoPE type {kind!r} with {', '.join(sorted(unknown))}: not supported")
    original_length = optional(r, "original_max_position_embeddings", max_length)
    match kind:
        case "default":
            return theta, None
        case "linear":
            return theta, Linear(field(r, "factor", float))
        case "llama3":
            return theta, Llama3(
                factor=field(r, "factor", float),
                low_freq_factor=field(r, "low_freq_factor", float),
                high_freq_factor=field(r, "high_freq_factor", float),
                original_length=original_length,
            )
    factor = field(r, "factor", float)
    return theta, Yarn(
        factor=factor,
        original_length=original_length,
        beta_fast=float(given(r, "beta_fast", 32)),
        beta_slow=float(given(r, "beta_slow", 1)),
        attention_factor=float(given(r, "attention_factor", 0.1 * math.log(factor) + 1 if factor > 1 else 1)),
        truncate=bool(given(r, "truncate", True)),
    )


def to_hub(c: ModelConfig, *, dtype: str, bos: int | None, eos: int, pad: int) -> dict:
    """ModelConfig -> config.json's fields, in the spelling that transformers 4, 5 and vLLM all read."""
    if c.qk_norm and c.qkv_bias:
        raise UserError("no Hugging Face family has both QK-norm and QKV biases: this model cannot be exported")
    family = "qwen3" if c.qk_norm else "qwen2" if c.qkv_bias else "llama"
    if family == "qwen2" and c.head_width * c.heads != c.width:
        raise UserError(f"{family} has head width = width / heads, this model {c.head_width} of {c.width} / {c.heads}")
    return {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "intermediate_size": c.mlp_width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": c.max_length,
        "rms_norm_eps": c.norm_epsilon,
        "rope_theta": c.rope_theta,
        "rope_scaling": scaling_to_hub(c.rope_scaling),
        "tie_word_embeddings": c.tied,
        "attention_bias": False,  # Qwen2's biases are part of its class
        "attention_dropout": 0.0,
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "torch_dtype": dtype,
    }


def scaling_to_hub(scaling: Scaling) -> dict | None:
    """`rope_scaling` of config.json."""
    match scaling:
        case None:
            return None
        case Linear(factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3(factor, low, high, original_length):
            return {
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original_length,
            }  # fmt: skip
        case Yarn():
            return {
                "rope_type": "yarn", "factor": scaling.factor, "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow, "attention_factor": scaling.attention_factor,
                "truncate": scaling.truncate, "original_max_position_embeddings": scaling.original_length,
            }  # fmt: skip
