"""From config.json to ModelConfig and back, for the Hugging Face families that one block serves.

    qwen3   QK-norm, no biases                       Qwen3
    qwen2   biases on q, k, v                        Qwen2.5, Qwen2.5-Math, DeepSeek-R1-Distill-Qwen
    llama   neither                                  Llama-3.2, and other Llamas without biases

A config.json that asks for something the block does not do is refused: another activation, a sliding window, output
biases, chunked attention, quantisation, a RoPE scheme or RoPE field that is not known here. RoPE's θ has no default.
Fields that these families do not compute with are ignored.

    config = read_config("/models/Qwen3-1.7B")
"""

import math
import reprlib
from typing import Any

from etils import epath

from e3jax.errors import UserError
from e3jax.models.presets import ModelConfig
from e3jax.models.rope import Linear, Llama3, Scaling, Yarn
from e3jax.readers import fault, read_json

ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
# The largest accepted values of fields, far beyond those of any published model: a file that says more is damaged or
# hostile, and its shapes would not fit into any memory.
LARGEST = {
    "num_hidden_layers": 10_000, "vocab_size": 1 << 24, "hidden_size": 1 << 20, "intermediate_size": 1 << 22,
    "num_attention_heads": 1 << 14, "num_key_value_heads": 1 << 14, "head_dim": 1 << 14, "rms_norm_eps": 1,
    "max_position_embeddings": 2**31 - 1, "original_max_position_embeddings": 2**31 - 1,
}  # fmt: skip
MOST_NUMBER = 10**15  # the largest accepted value of any other number, such as rope_theta and rope_scaling's factors
NEEDED = {
    int: "a number above 0", float: "a number above 0", str: "a string", bool: "true or false", list: "a list",
    dict: "an object",
}  # fmt: skip
MAY_BE_ZERO = ("max_window_layers", "beta_slow")


def read_config(directory: epath.PathLike) -> ModelConfig:
    """Read DIR/config.json; a UserError names the file and the field that is missing or not supported."""
    path = epath.Path(directory) / "config.json"
    if not path.exists():
        raise UserError(f"{directory} holds no config.json: name a Hugging Face model directory")
    fields = read_json(path, dict, advice="download it again")
    try:
        return from_hub(fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def from_hub(c: dict) -> ModelConfig:
    """Return the ModelConfig of config.json's fields; RoPE's may stand alone or in `rope_parameters`."""
    family = field(c, "model_type", str)
    if family not in ARCHITECTURES:
        raise UserError(f"model_type {family!r} is not one of {', '.join(ARCHITECTURES)}")
    refuse_unsupported(c)
    layers, heads = field(c, "num_hidden_layers", int), field(c, "num_attention_heads", int)
    width = field(c, "hidden_size", int)
    # transformers' default where the field is absent: 128 for Qwen3, D / N for the other two families
    head_width = 128 if family == "qwen3" else width // heads
    max_length = field(c, "max_position_embeddings", int)
    theta, scaling = rope_from_hub(c, max_length)
    try:
        return ModelConfig(
            vocab_size=field(c, "vocab_size", int),
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=field(c, "num_key_value_heads", int, heads),
            head_width=field(c, "head_dim", int, head_width),
            mlp_width=field(c, "intermediate_size", int),
            rope_theta=theta,
            rope_scaling=scaling,
            norm_epsilon=field(c, "rms_norm_eps", float),
            tied=field(c, "tie_word_embeddings", bool, False),
            max_length=max_length,
            qk_norm=family == "qwen3",
            qkv_bias=family == "qwen2",
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def refuse_unsupported(c: dict) -> None:
    """Raise UserError for a field that asks for something the block does not do."""
    window = field(c, "use_sliding_window", bool, False)
    kinds = field(c, "layer_types", list, [])
    refused = {
        "hidden_act": field(c, "hidden_act", str, "silu") not in ("silu", "swish"),
        "attention_bias": field(c, "attention_bias", bool, False),
        "mlp_bias": field(c, "mlp_bias", bool, False),
        "use_sliding_window": window and field(c, "max_window_layers", int, 0) < field(c, "num_hidden_layers", int),
        "layer_types": any(kind != "full_attention" for kind in kinds),
        "partial_rotary_factor": field(c, "partial_rotary_factor", float, 1.0) != 1.0,
        "quantization_config": field(c, "quantization_config", dict, {}),
        "dual_chunk_attention_config": field(c, "dual_chunk_attention_config", dict, {}),
    }
    for name, refuse in refused.items():
        if refuse:
            raise UserError(
                f"{name}={reprlib.repr(c[name])} is not supported: the block has full attention, SiLU, and no such bias"
            )


def field(c: dict, name: str, kind: type, otherwise: Any = None) -> Any:
    """Return a field as `kind`, or `otherwise` where it is absent or null; UserError for another type or size.

    A number must be above 0 (those of MAY_BE_ZERO may be 0) and at most LARGEST or MOST_NUMBER.
    """
    value = c[name] if name in c and c[name] is not None else otherwise
    number, largest = kind in (int, float), LARGEST[name] if name in LARGEST else MOST_NUMBER
    good = not fault(value, kind) and not (number and value <= 0 and not (name in MAY_BE_ZERO and value == 0))
    if not good:
        raise UserError(f"{name}={reprlib.repr(value)}, {NEEDED[kind]} is needed")
    if number and value > largest:
        raise UserError(f"{name}={value}, a number of at most {largest:,} is believed")
    return kind(value)


def rope_from_hub(c: dict, max_length: int) -> tuple[float, Scaling]:
    """Return θ and scaling: transformers 5 writes both into `rope_parameters`, 4 wrote `rope_theta` and `rope_scaling`.

    Version 5 moves `partial_rotary_factor` there too; 1 asks for what the block does.
    """
    r = {**field(c, "rope_scaling", dict, {}), **field(c, "rope_parameters", dict, {})}
    theta = field(r if "rope_theta" in r else c, "rope_theta", float)
    kind = field(r, "rope_type" if r.get("rope_type") is not None else "type", str, "default")
    known = {
        "default": (),
        "linear": ("factor",),
        "yarn": (
            "factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "attention_factor",
            "truncate",
        ),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }
    if kind not in known:
        raise UserError(f"RoPE type {kind!r} is not one of {', '.join(known)}")
    whole = field(r, "partial_rotary_factor", float, 1.0) == 1.0
    ignored = {"rope_type", "type", "rope_theta", *(["partial_rotary_factor"] if whole else [])}
    unknown = {k for k, v in r.items() if v is not None} - ignored - set(known[kind])
    if unknown:
        raise UserError(f"RoPE type {kind!r} with {', '.join(sorted(unknown))}: not supported")
    if kind == "default":
        return theta, None
    factor = field(r, "factor", float)
    if kind == "linear":
        return theta, Linear(factor)
    original_length = field(r, "original_max_position_embeddings", int, max_length)
    if kind == "llama3":
        low, high = (field(r, name, float) for name in ("low_freq_factor", "high_freq_factor"))
        if not low < high:
            raise UserError(f"low_freq_factor={low} is not below high_freq_factor={high}")
        return theta, Llama3(factor, low, high, original_length)
    if theta == 1:
        raise UserError("rope_theta=1 with RoPE type 'yarn': all frequencies would be equal")
    return theta, Yarn(
        factor=factor,
        original_length=original_length,
        beta_fast=field(r, "beta_fast", float, 32.0),
        beta_slow=field(r, "beta_slow", float, 1.0),
        attention_factor=field(r, "attention_factor", float, 0.1 * math.log(factor) + 1 if factor > 1 else 1.0),
        truncate=field(r, "truncate", bool, True),
    )


def to_hub(c: ModelConfig, *, dtype: str, bos: int | None, eos: int, pad: int) -> dict:
    """Return config.json's fields of a ModelConfig, in the spelling that transformers 4, 5 and vLLM all read."""
    if c.qk_norm and c.qkv_bias:
        raise UserError("no Hugging Face family has both QK-norm and QKV biases: this model cannot be exported")
    family = "qwen3" if c.qk_norm else "qwen2" if c.qkv_bias else "llama"
    if family == "qwen2" and c.head_width * c.heads != c.width:
        raise UserError(
            f"{family} needs head width = width / heads, but this model has head width {c.head_width}, width {c.width} "
            f"and {c.heads} heads: it cannot be exported"
        )
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
    """Return the `rope_scaling` of config.json."""
    match scaling:
        case None:
            return None
        case Linear(factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3(factor, low, high, original_length):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original_length,
            }
        case Yarn():
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "attention_factor": scaling.attention_factor,
                "truncate": scaling.truncate,
                "original_max_position_embeddings": scaling.original_length,
            }
