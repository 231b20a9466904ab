"""Models in GGUF files, llama.cpp's format: read, dequantised to float32, and laid out as our parameters.

The families are those of hf_config.py. llama.cpp's converter changes three things, which are undone here: tensors have
other names; `llama` stores the rows of q and k so that the two features of a rotary pair lie side by side; and Llama
3's RoPE scaling is a tensor of factors. An embedding is tied where there is no `output.weight`.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

    file = read_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")
    params = load_gguf(file, like)         # like: shapes, dtypes and shardings (models/qwen3.py)
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from e3jax.checkpoint.hf import Stored, Tensor, match, tensors
from e3jax.checkpoint.hf_config import ARCHITECTURES, from_hub, scaling_to_hub
from e3jax.errors import UserError, first_line
from e3jax.models.presets import ModelConfig
from e3jax.models.rope import Llama3, frequencies
from e3jax.storage import is_bucket

MAGIC = b"GGUF"
FACTORS = "rope_freqs.weight"
# our name -> the name in the file, after "blk.LAYER." where a layer has it
NAMES = {
    "embed_vd": "token_embd.weight",
    "unembed_vd": "output.weight",
    "final_norm_d": "output_norm.weight",
    "attn_norm_d": "attn_norm.weight",
    "wq_dnh": "attn_q.weight",
    "wk_dkh": "attn_k.weight",
    "wv_dkh": "attn_v.weight",
    "wo_nhd": "attn_output.weight",
    "bq_nh": "attn_q.bias",
    "bk_kh": "attn_k.bias",
    "bv_kh": "attn_v.bias",
    "q_norm_h": "attn_q_norm.weight",
    "k_norm_h": "attn_k_norm.weight",
    "mlp_norm_d": "ffn_norm.weight",
    "w_gate_df": "ffn_gate.weight",
    "w_up_df": "ffn_up.weight",
    "w_down_fd": "ffn_down.weight",
}
# config.json's field -> the key in the file, after "ARCHITECTURE."
KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "max_position_embeddings": "context_length",
}
# keys that ask for something the block does not do, unless they are 0 or 1
UNSUPPORTED = (
    "expert_count", "attention.sliding_window", "attention.clamp_kqv", "attention.scale", "rope.scale_linear",
    "logit_scale", "residual_scale", "embedding_scale",
)  # fmt: skip


class Gguf(NamedTuple):
    """A file's header."""

    path: epath.Path
    fields: dict[str, Any]  # metadata by key
    tensors: dict[str, Any]  # gguf's ReaderTensor by name; its data are read from the disk when they are used
    config: ModelConfig


def is_gguf(name: epath.PathLike) -> bool:
    """Return whether a model's name is that of a GGUF file.

    >>> is_gguf("models/SmolLM2.Q4_1.gguf"), is_gguf("Qwen/Qwen3-0.6B-GGUF")
    (True, False)
    """
    return str(name).lower().endswith(".gguf")


def read_gguf(name: epath.PathLike) -> Gguf:
    """Read the header of a GGUF file; UserError when it is none, is damaged, or holds a model that is not supported."""
    path = epath.Path(name)
    if is_bucket(name) or not path.is_file():
        raise UserError(f"{path} is not a file: name a GGUF file on a local disk")
    with path.open("rb") as opened:
        begin = opened.read(len(MAGIC))
    if begin != MAGIC:
        raise UserError(f"{path} is not a GGUF file: it begins with {begin!r} instead of {MAGIC!r}")
    try:
        reader = open_gguf(path)
        fields = {key: field.contents() for key, field in reader.fields.items()}
    except UserError:
        raise
    except Exception as error:  # a damaged file makes gguf raise ValueError, IndexError, KeyError and more
        raise UserError(f"{path} is truncated or damaged ({first_line(error)}): download it again") from None
    architecture, parts = fields.get("general.architecture"), fields.get("split.count", 1)
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise UserError(
            f"{path} holds a model of architecture {architecture!r}; only {', '.join(ARCHITECTURES)} are supported"
        )
    if parts not in (0, 1):
        raise UserError(f"{path} is one of {parts} parts: merge them with llama.cpp's llama-gguf-split --merge")
    held = {tensor.name: tensor for tensor in reader.tensors}
    try:
        return Gguf(path, fields, held, from_hub(hub_fields(fields, held)))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def open_gguf(path: epath.Path):
    """Return gguf's reader of a file, which here fails where the file ends too early.

    gguf's own slices past the end are empty, so a damaged length could keep it busy for ever.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UserError(f"GGUF files need the gguf package ({error}): pip install -e '.[gguf]'") from None

    class Strict(GGUFReader):
        def _get(self, offset, dtype, count=1, override_order=None):
            end = int(offset) + int(count) * np.dtype(dtype).itemsize
            if end > self.data.size:
                raise ValueError(f"it should have {end:,} bytes or more, but has {self.data.size:,}")
            return super()._get(offset, dtype, count, override_order)

    return Strict(path)


def hub_fields(fields: dict[str, Any], held: dict[str, Any]) -> dict:
    """Return config.json's fields of a file's metadata and tensors; UserError for what the block does not do."""
    architecture = fields["general.architecture"]
    begin = f"{architecture}."
    of = {key.removeprefix(begin): short(value) for key, value in fields.items() if key.startswith(begin)}
    odd = [f"{begin}{key}={of[key]}" for key in UNSUPPORTED if key in of and of[key] not in (0, 1)]
    if odd:
        raise UserError(f"{', '.join(odd)} is not supported")
    keys = dict(KEYS)
    if architecture == "qwen3" or "attention.key_length" in of:
        keys["head_dim"] = "attention.key_length"  # elsewhere D / N, which is llama.cpp's default and transformers'
    missing = [f"{begin}{key}" for key in keys.values() if key not in of]
    missing += [NAMES["embed_vd"]] if NAMES["embed_vd"] not in held else []
    if missing:
        raise UserError(f"it lacks {', '.join(missing)}: download it again, or convert the model to GGUF again")
    hub = {name: of[key] for name, key in keys.items()} | {"model_type": architecture}
    hub["num_key_value_heads"] = of.get("attention.head_count_kv", of["attention.head_count"])
    hub["vocab_size"] = int(held[NAMES["embed_vd"]].shape[-1])
    hub["tie_word_embeddings"] = NAMES["unembed_vd"] not in held
    plain = from_hub(hub)
    if of.get("rope.dimension_count", plain.head_width) != plain.head_width:
        raise UserError(
            f"{begin}rope.dimension_count={of['rope.dimension_count']} is not supported: the block rotates all "
            f"{plain.head_width} features of a head"
        )
    return hub | {"rope_scaling": scaling_fields(of, held, plain)}


def short(value: Any) -> Any:
    """Return a float with the digits that it has in float32, as GGUF stores it; anything else as it is.

    >>> short(9.999999747378752e-06), short(8)
    (1e-05, 8)
    """
    return float(str(np.float32(value))) if isinstance(value, float) else value


def scaling_fields(of: dict[str, Any], held: dict[str, Any], plain: ModelConfig) -> dict | None:
    """Return config.json's `rope_scaling`; None where positions are not stretched. `plain`: the model without it."""
    kind = of.get("rope.scaling.type", "none")
    if FACTORS in held and kind == "none":
        return llama3_fields(np.array(held[FACTORS].data, np.float64).ravel(), plain)
    if kind == "none":
        return None
    names = {"factor": "factor", "original_context_length": "original_max_position_embeddings"}
    given = {key.removeprefix("rope.scaling."): value for key, value in of.items() if key.startswith("rope.scaling.")}
    unknown = sorted(given.keys() - {"type", "finetuned", *names}) + [FACTORS] * (FACTORS in held)
    if kind not in ("linear", "yarn") or unknown:
        raise UserError(f"rope.scaling.type={kind!r} {'with ' + ', '.join(unknown) if unknown else ''}is not supported")
    names = names if kind == "yarn" else {"factor": "factor"}
    return {"rope_type": kind, **{name: given[key] for key, name in names.items() if key in given}}


def llama3_fields(factors: np.ndarray, plain: ModelConfig) -> dict:
    """Return Llama 3's `rope_scaling` from the factors [H/2] by which its frequencies are divided.

    All published models share the other three numbers; UserError where they do not give these factors.
    """
    scaling = Llama3(factor=float(factors.max()), low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192)
    unscaled, scaled = (frequencies(plain.head_width, plain.rope_theta, s) for s in (None, scaling))
    if factors.shape != scaled.shape or not np.allclose(factors * scaled, unscaled, rtol=1e-4, atol=0):
        raise UserError(f"{FACTORS} is not supported: its factors are not those of Llama 3.1 and later")
    return scaling_to_hub(scaling)


def load_gguf(file: Gguf, like):
    """Load parameters laid out as `like` (shapes, dtypes, shardings); UserError when the tensors do not fit."""
    wanted = {name_of(t): t.name for t in tensors(like)}
    shapes = {name: tuple(map(int, reversed(t.shape))) for name, t in file.tensors.items() if name != FACTORS}
    stored = {wanted.get(name, name): Stored(file.path, shape, "F32") for name, shape in shapes.items()}
    match(stored, like, where=f"{file.path} does not fit its metadata")
    of_leaf = {}
    for t in tensors(like):
        of_leaf.setdefault(t.leaf, []).append(t)

    def load(path, leaf):
        parts = of_leaf[tuple(p.key for p in path)]
        out = np.empty(leaf.shape, leaf.dtype)
        for row, part in zip(out if parts[0].layer is not None else out[None], parts):
            row[...] = dequantised(file, part)
        return jax.device_put(out, leaf.sharding)

    return jax.tree_util.tree_map_with_path(load, like)


def name_of(t: Tensor) -> str:
    """Return a tensor's name in a GGUF file."""
    name = NAMES[t.leaf[-1]]
    return name if t.layer is None else f"blk.{t.layer}.{name}"


def dequantised(file: Gguf, t: Tensor) -> np.ndarray:
    """Return one tensor in our layout, float32."""
    from gguf import dequantize

    held = file.tensors[name_of(t)]
    try:
        values = dequantize(held.data, held.tensor_type).reshape(t.stored_shape)
    except NotImplementedError:
        raise UserError(
            f"{file.path}: {held.name} is stored as {held.tensor_type.name}, which gguf cannot dequantise: take a file "
            "with another quantisation, such as Q8_0 or F16"
        ) from None
    if file.fields["general.architecture"] == "llama" and t.leaf[-1] in ("wq_dnh", "wk_dkh"):
        values = halves(values, heads=t.shape[1])
    return (values.T if t.axes_in else values).reshape(t.shape)


def halves(rows: np.ndarray, *, heads: int) -> np.ndarray:
    """Return a projection's rows [N · H, D] with rotary pairs (i, i + H/2) in each head, from pairs (2i, 2i + 1).

    >>> halves(np.arange(8)[:, None], heads=2).ravel().tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
