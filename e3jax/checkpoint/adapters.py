"""Adapters of LoRA in files: what those of a run lie beside, and PEFT's format, in and out.

A checkpoint of a run with LoRA holds adapters alone. RUN/hf/adapter.json says what they belong to: the name of the
frozen model, its dtype in training and a checksum of its bits, rank, α and matrices. PEFT's directory is
adapter_config.json and adapter_model.safetensors, with A [r, in] and B [out, r] of every layer by itself.

    kept = adapter_at("RUN/checkpoints/STAGE/STEP")     # or PEFT's directory; None where there is none
    save_peft(read_adapters(directory, kept, like), kept, "models/my-adapter")
"""

import hashlib
import json
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from e3jax.checkpoint import store
from e3jax.checkpoint.hf import PER_LAYER, read_tensors, write_tensors
from e3jax.errors import UserError
from e3jax.models.lora import MATRICES, Lora, pair, widths
from e3jax.models.qwen3 import abstract_adapters
from e3jax.readers import read_json
from e3jax.storage import place, write_whole

OURS = "adapter.json"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FIELDS = {"base": str, "dtype": str, "digest": str, "rank": int, "alpha": float, "matrices": str}
PEFT_FIELDS = {"peft_type": str, "r": int, "lora_alpha": float}
# what PEFT's LoRA may have beside A and B: off where it is null, false, empty or "none"
MORE = (
    "use_dora", "rank_pattern", "alpha_pattern", "bias", "modules_to_save", "layer_replication", "lora_bias",
    "trainable_token_indices", "fan_in_fan_out", "target_parameters", "use_qalora", "use_bdlora", "kasa_config",
    "arrow_config", "alora_invocation_tokens", "monteclora_config", "velora_config",
)  # fmt: skip
INITS = ("gaussian", "eva", "orthogonal")  # PEFT's that leave the model as it is; PiSSA and others change it


class Kept(NamedTuple):
    """What the adapters of a directory belong to."""

    lora: Lora
    base: str  # the frozen model by name
    dtype: str  # of its matrices in training; "": PEFT does not say
    digest: str  # of its bits in that dtype; ""


# ---- of a run


@jax.jit
def checksums(params):
    """Return the sum of every array's bits as whole numbers, modulo 2^32: the same on every mesh."""

    def total(x):
        kind = {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        return jnp.sum(jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32), dtype=jnp.uint32)

    return jax.tree.map(total, params)


def digest_of(params) -> str:
    """Return a checksum of a model's names, shapes, dtypes and bits, 16 hexadecimal digits."""
    sums, text = store.by_name(checksums(params)), hashlib.sha256()
    for name, x in store.by_name(params).items():
        text.update(f"{name} {x.shape} {x.dtype} {int(sums[name])}\n".encode())
    return text.hexdigest()[:16]


def keep_base(workdir: epath.PathLike, kept: Kept) -> None:
    """Write RUN/hf/adapter.json once; UserError where the run's adapters belong to another model than this one."""
    file = place(workdir) / "hf" / OURS
    if file.exists():
        need_base(read_ours(file), kept.digest, where=file)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    rest = {"rank": kept.lora.rank, "alpha": kept.lora.alpha, "matrices": kept.lora.matrices}
    value = {"base": kept.base, "dtype": kept.dtype, "digest": kept.digest, **rest}
    write_whole(file, json.dumps(value, indent=2) + "\n")


def need_base(kept: Kept, digest: str, *, where: epath.PathLike) -> None:
    """Raise UserError unless the frozen model has the checksum that was written when training began."""
    if kept.digest and kept.digest != digest:
        raise UserError(
            f"{kept.base} is not the model that the adapters of {where} were trained beside (checksum {digest}, then "
            f"{kept.digest}): bring that one back, or train them again"
        )


def read_ours(file: epath.Path) -> Kept:
    """Read RUN/hf/adapter.json."""
    held = read_json(file, FIELDS, advice="restore it from a copy of the run")
    lora = Lora(rank=held["rank"], alpha=held["alpha"], matrices=held["matrices"])
    return Kept(lora, held["base"], held["dtype"], held["digest"])


# ---- by name


def adapter_at(directory: epath.PathLike) -> Kept | None:
    """Return what the adapters of a run's checkpoint or of PEFT's directory belong to; None where there are none."""
    directory = place(directory)
    if (directory / CONFIG).exists():
        return read_peft_config(directory)
    above = directory.parents
    if (directory / "default").exists() and len(above) > 2 and (above[2] / "hf" / OURS).exists():
        return read_ours(above[2] / "hf" / OURS)
    return None


def read_adapters(directory: epath.PathLike, kept: Kept, like) -> Any:
    """Return the float32 adapters of a directory, laid out over the mesh of `like`: shapes of the whole model."""
    mesh = jax.tree.leaves(like)[0].sharding.mesh
    target = abstract_adapters(like, kept.lora, mesh)
    if not (epath.Path(directory) / CONFIG).exists():
        return store.load_params(directory, target)
    arrays = peft_arrays(directory, kept, like)
    return jax.tree.map(
        lambda x, held: jax.make_array_from_callback(x.shape, x.sharding, lambda at, held=held: held[at]),
        target,
        arrays,
    )


# ---- PEFT's format


def peft_name(matrix: str, layer: int, which: str) -> str:
    """Return PEFT's name of an adapter of ours.

    >>> peft_name("wq_dnh", 3, "A")
    'base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight'
    """
    return f"base_model.model.model.layers.{layer}.{PER_LAYER[matrix][0].removesuffix('.weight')}.lora_{which}.weight"


def peft_base(directory: epath.PathLike) -> str:
    """Return the name of the model that PEFT's adapters belong to; UserError where none is named."""
    file = epath.Path(directory) / CONFIG
    held = read_json(file, {"base_model_name_or_path?": (str, None)}, advice="restore it")
    if not held.get("base_model_name_or_path"):
        raise UserError(f"{file} names no base_model_name_or_path: write the model there that it belongs to")
    return held["base_model_name_or_path"]


def read_peft_config(directory: epath.Path) -> Kept:
    """Read adapter_config.json; UserError for what is more than A and B. The matrices are those in the weights."""
    file, base = directory / CONFIG, peft_base(directory)
    held = read_json(file, PEFT_FIELDS, advice="restore it")
    if held["peft_type"] != "LORA":
        raise UserError(f"{file}: peft_type is {held['peft_type']!r}, and only 'LORA' is read: merge it with PEFT")
    wrong = [field for field in MORE if held.get(field) and held[field] != "none"]
    if isinstance(start := held.get("init_lora_weights"), str) and start not in INITS:
        wrong.append("init_lora_weights")
    if wrong:
        raise UserError(f"{file}: {wrong[0]}={held[wrong[0]]!r} is not read: merge the adapter with PEFT")
    # rank-stabilised LoRA counts α / √r (2312.03732)
    root = math.sqrt(held["r"]) if held.get("use_rslora") else 1.0
    present = {name for key in read_tensors(directory / WEIGHTS) for name in MATRICES if f".{name}." in key}
    if held["r"] < 1 or held["lora_alpha"] <= 0 or not present:
        raise UserError(f"{directory} holds no adapters of {', '.join(MATRICES)}: merge it with PEFT")
    chosen = " ".join(name for name in MATRICES if name in present)
    return Kept(Lora(rank=held["r"], alpha=held["lora_alpha"] * root, matrices=chosen), base, "", "")


def peft_arrays(directory: epath.PathLike, kept: Kept, like) -> Any:
    """Return PEFT's adapters in our layout, on the host; UserError where they are not those of this model."""
    held = read_tensors(epath.Path(directory) / WEIGHTS)
    layers, used = {}, set()
    for name in kept.lora.names:
        matrix, axes_in = MATRICES[name]
        stack = like["layers"][matrix].shape
        wide, out = widths(stack, axes_in)
        for ours, which, shape in zip(pair(matrix), "AB", ((kept.lora.rank, wide), (out, kept.lora.rank))):
            parts = [peft_name(matrix, layer, which) for layer in range(stack[0])]
            for part in parts:
                found = held[part].shape if part in held else "none"
                if found != shape:
                    raise UserError(f"{directory} does not fit {kept.base}: {part} should be {shape}, it is {found}")
            used |= set(parts)
            layers[ours] = np.stack([held[part].astype(np.float32).T for part in parts])
    if extra := sorted(set(held) - used):
        raise UserError(f"{directory} does not fit {kept.base}: {extra[0]} belongs to none of its matrices")
    return {"layers": layers}


def save_peft(params, kept: Kept, directory: epath.PathLike) -> None:
    """Write adapters as PEFT does, into an existing directory; all of them must be on this host's devices."""
    directory, held = epath.Path(directory), {}
    for name in kept.lora.names:
        matrix, _ = MATRICES[name]
        for ours, which in zip(pair(matrix), "AB"):
            for layer, x in enumerate(np.asarray(params["layers"][ours])):
                held[peft_name(matrix, layer, which)] = np.ascontiguousarray(x.T)
    write_tensors(held, directory / WEIGHTS)
    alpha = kept.lora.alpha
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": kept.base,
        "r": kept.lora.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "target_modules": list(kept.lora.names),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
