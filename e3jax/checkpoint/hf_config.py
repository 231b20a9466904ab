"""config.json of the Hugging Face families that one block serves, to ModelConfig and back.

    qwen3   QK-norm, no biases                       Qwen3
    qwen2   biases on q, k, v                        Qwen2.5, Qwen2.5-Math, DeepSeek-R1-Distill-Qwen
    llama   neither                                  Llama-3.2, and other Llamas without biases

What a config.json asks for and the block does not do is an error: another activation, a sliding window, output biases,
chunked attention, quantisation, a RoPE scheme or RoPE field that is not known here. RoPE's θ has no default. Fields
that these families do not compute with are ignored.

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
# The largest value of a field that is believed, far beyond any published model's: a file that says more is damaged or
# hostile, and shapes made of it would not fit any memory.
LARGEST = {
    "num_hidden_layers": 10_000, "vocab_size": 1 << 24, "hidden_size": 1 << 20, "intermediate_size": 1 << 22,
    "num_attention_heads": 1 << 14, "num_key_value_heads": 1 << 14, "head_dim": 1 << 14, "rms_norm_eps": 1,
    "max_position_embeddings": 2**31 - 1, "original_max_position_embeddings": 2**31 - 1,
}  # fmt: skip
MOST_NUMBER = 10**15  # of any other number, as rope_theta and the factors of rope_scaling
NEEDED = {
    int: "a number above 0", float: "a number above 0", str: "a string", bool: "true or false", list: "a list",
    dict: "an object",
}  # fmt: skip
MAY_BE_ZERO = ("max_window_layers", "beta_slow")


def read_config(directory: epath.PathLike) -> ModelConfig:
    """ModelConfig of DIR/config.json; UserError names the file and the field that is missing or not supported."""
    path = epath.Path(directory) / "config.json"
    if not path.exists():
        raise UserError(f"{directory} holds no config.json: name a Hugging Face model directory")
    found = read_json(path, dict, advice="download it again")
    try:
        return from_hub(found)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def from_hub(c: dict) -> ModelConfig:
    """config.json's fields -> ModelConfig. `rope_theta` and `rope_scaling` may stand alone or in `rope_parameters`."""
    family = field(c, "model_type", str)
    if family not in ARCHITECTURES:
        raise UserError(f"model_type {family!r} is not one of {', '.join(ARCHITECTURES)}")
    refuse_unsupported(c)
    layers, heads = field(c, "num_hidden_layers", int), field(c, "num_attention_heads", int)
    width = field(c, "hidden_size", int)
    # transformers' default where the field is absent: 128 for Qwen3, D / N for the other two
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
    """UserError for a field that asks for what the block does not do."""
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
                f"{name}={reprlib.repr(c[name])} is not supported: the block is full attention, SiLU, no such bias"
            )


def field(c: dict, name: str, kind: type, otherwise: Any = None) -> Any:
    """Return a field as `kind`, `otherwise` where it is absent or null; UserError where it has another type or size.

    A number is above 0 and below LARGEST (max_window_layers may be 0).
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
    """θ and scaling: transformers 5 writes both into `rope_parameters`, 4 wrote `rope_theta` and `rope_scaling`.

    A `partial_rotary_factor` of 1, which 5 moves there too, asks for what the block does.
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
