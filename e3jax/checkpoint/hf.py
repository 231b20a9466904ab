"""Weights of a Hugging Face directory, in and out: safetensors, one file or shards with an index. Never pickle.

Reading fills every stacked parameter [L, …] slice by slice with just what this host's devices hold, so the host never
has more than one stacked parameter beside the target. Writing makes shards of a stated size, one in memory at a time.

    params = load_hf("/models/Qwen3-1.7B", config, like)        # like: shapes, dtypes and shardings (models/qwen3.py)
    save_hf(params, config, "/models/mine", most_bytes=1 << 30)
"""

import json
import math
import os
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from e3jax.errors import UserError, first_line
from e3jax.readers import read_json

LISTED = 20  # most tensors that an error names
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

# our name -> (name in the file, number of input axes of a matrix, stored as [out, in]; 0: stored as it is)
WHOLE = {
    "embed_vd": ("model.embed_tokens.weight", 0),
    "unembed_vd": ("lm_head.weight", 0),
    "final_norm_d": ("model.norm.weight", 0),
}
PER_LAYER = {
    "attn_norm_d": ("input_layernorm.weight", 0),
    "wq_dnh": ("self_attn.q_proj.weight", 1),
    "wk_dkh": ("self_attn.k_proj.weight", 1),
    "wv_dkh": ("self_attn.v_proj.weight", 1),
    "wo_nhd": ("self_attn.o_proj.weight", 2),
    "bq_nh": ("self_attn.q_proj.bias", 0),
    "bk_kh": ("self_attn.k_proj.bias", 0),
    "bv_kh": ("self_attn.v_proj.bias", 0),
    "q_norm_h": ("self_attn.q_norm.weight", 0),
    "k_norm_h": ("self_attn.k_norm.weight", 0),
    "mlp_norm_d": ("post_attention_layernorm.weight", 0),
    "w_gate_df": ("mlp.gate_proj.weight", 1),
    "w_up_df": ("mlp.up_proj.weight", 1),
    "w_down_fd": ("mlp.down_proj.weight", 1),
}


class Stored(NamedTuple):
    """A tensor of a file, as the file's header describes it."""

    file: epath.Path
    shape: tuple[int, ...]
    dtype: str  # safetensors' name: "BF16", "F32", …


class Tensor(NamedTuple):
    """A tensor of a file, and the part of our parameters that it holds."""

    name: str  # in the file
    leaf: tuple[str, ...]  # path of our parameter
    layer: int | None  # index along its first axis
    axes_in: int  # 0: same layout; else the file holds [out, in] and we [*in, *out]
    shape: tuple[int, ...]  # ours, of one layer

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Return the shape in the file."""
        if self.axes_in:
            return (math.prod(self.shape[self.axes_in :]), math.prod(self.shape[: self.axes_in]))
        return (math.prod(self.shape),) if self.layer is not None else self.shape


def tensors(params) -> Iterator[Tensor]:
    """Yield every tensor of a model's files, from its parameter tree (arrays or shapes)."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = tuple(p.key for p in path)
        if names[0] == "layers":
            name, axes_in = PER_LAYER[names[-1]]
            for layer in range(leaf.shape[0]):
                yield Tensor(f"model.layers.{layer}.{name}", names, layer, axes_in, leaf.shape[1:])
        else:
            name, axes_in = WHOLE[names[-1]]
            yield Tensor(name, names, None, axes_in, leaf.shape)


def inventory(directory: epath.PathLike) -> dict[str, Stored]:
    """Return {name: file, shape, dtype} of every tensor of a directory; UserError for a missing or damaged file.

    Where model.safetensors and an index lie side by side the single file counts, as in transformers, so that one
    directory is the same model everywhere. Only the files' headers are read.
    """
    directory = epath.Path(directory)
    if "://" in str(directory):
        raise UserError(
            f"{directory}: safetensors are read from a local disk or the hub only; convert them to e3jax's format with "
            "python -m e3jax.tools.convert, and copy that into the bucket"
        )
    if (directory / SINGLE).exists():
        files = [SINGLE]
    elif (directory / INDEX).exists():
        files = indexed_files(directory / INDEX)
    else:
        others = [p.name for p in directory.glob("*.bin")] + [p.name for p in directory.glob("*.pt*")]
        hint = f"; {', '.join(sorted(others))} may hold code and are not read" if others else ""
        raise UserError(f"{directory} holds neither {SINGLE} nor {INDEX}{hint}: convert it to safetensors")
    missing = [f for f in files if not (directory / f).exists()]
    if missing:
        raise UserError(f"{directory} lacks {', '.join(missing)}, which its index names: download them again")
    stored = {}
    for file in files:
        try:
            with safe_open(directory / file, "np") as opened:
                for name in opened.keys():
                    if name in stored:
                        raise UserError(f"{directory}: {name} is in {stored[name].file.name} and in {file}: remove one")
                    part = opened.get_slice(name)
                    stored[name] = Stored(directory / file, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:  # OSError: a directory of that name, or an empty file
            why = first_line(error)
            raise UserError(f"{directory / file} is truncated or damaged ({why}): download it again") from None
    return stored


def indexed_files(index: epath.Path) -> list[str]:
    """Return the names of the files that an index lists, all of which must lie beside it."""
    try:
        files = sorted(set(read_json(index, {"weight_map": {str: str}})["weight_map"].values()))
    except UserError as error:
        raise UserError(f"{index} is damaged ({error}): download it again") from None
    odd = [file for file in files if "/" in file or "\\" in file or not file.endswith(".safetensors")]
    if odd or not files:
        raise UserError(f"{index} is damaged ({odd[0] if odd else 'it names no file'!r}): download it again")
    return files


def match(stored: dict[str, Stored], params, *, where: str) -> None:
    """Check that the files hold these parameters; else raise one UserError that names every tensor that does not fit.

    `where` begins its sentence. A tensor that does not fit is a missing, unexpected, misshapen or non-float tensor.
    """
    wanted = {t.name: t.stored_shape for t in tensors(params)}
    tied = "unembed_vd" not in params
    # a tied model's files may repeat the embedding (the hub's 0.6B does, 4B does not); old Llamas store frequencies
    extra = [n for n in stored if n not in wanted and not (tied and n == "lm_head.weight") and "rotary_emb" not in n]
    wrong = [f"missing     {n} {shape}" for n, shape in wanted.items() if n not in stored]
    wrong += [f"unexpected  {n} {stored[n].shape}" for n in sorted(extra)]
    for name, shape in wanted.items():
        if name in stored and stored[name].shape != shape:
            wrong.append(f"misshapen   {name}: expected {shape}, found {stored[name].shape}")
        elif name in stored and stored[name].dtype not in ("BF16", "F16", "F32"):
            wrong.append(f"unreadable  {name}: {stored[name].dtype} is not BF16, F16 or F32")
    if wrong:
        more = [f"… and {len(wrong) - LISTED} more"] if len(wrong) > LISTED else []
        listed = "\n  ".join(wrong[:LISTED] + more)
        raise UserError(f"{where}, {len(wrong)} tensors:\n  {listed}")


def stored_dtypes(directory: epath.PathLike, params):
    """Return the tree `params` with the files' dtypes, so that nothing is rounded; UserError where the files misfit."""
    stored = inventory(directory)
    match(stored, params, where=f"{directory} does not fit its config.json")
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    dtype_of = {}
    for t in tensors(params):
        dtype_of.setdefault(t.leaf, set()).add(names[stored[t.name].dtype])
    mixed = {leaf: dtypes for leaf, dtypes in dtype_of.items() if len(dtypes) > 1}
    if mixed:
        raise UserError(f"{directory} stores layers of one parameter in several dtypes: {mixed}")

    def typed(path, leaf):
        (dtype,) = dtype_of[tuple(p.key for p in path)]
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=getattr(leaf, "sharding", None))

    return jax.tree_util.tree_map_with_path(typed, params)


def load_hf(directory: epath.PathLike, like):
    """Load parameters laid out as `like` (shapes, dtypes, shardings); UserError when the files do not fit."""
    stored = inventory(directory)
    match(stored, like, where=f"{directory} does not fit its config.json")
    if "unembed_vd" not in like and "lm_head.weight" in stored:
        same_as_embedding(stored, directory)
    of_leaf = {}
    for t in tensors(like):
        of_leaf.setdefault(t.leaf, []).append(t)

    def load(path, leaf):
        parts = of_leaf[tuple(p.key for p in path)]
        shards = {}  # by their bounds, so that replicas share one buffer

        def shard(index):
            bounds = tuple(s.indices(n)[:2] for s, n in zip(index, leaf.shape))
            if bounds not in shards:
                shards[bounds] = fill(stored, parts, bounds, leaf.dtype)
            return shards[bounds]

        return jax.make_array_from_callback(leaf.shape, leaf.sharding, shard)

    return jax.tree_util.tree_map_with_path(load, like)


def fill(stored: dict[str, Stored], parts: list[Tensor], bounds, dtype) -> np.ndarray:
    """Read the block `bounds` (start and stop along every axis) of one parameter from the files of its layers."""
    out = np.empty([stop - start for start, stop in bounds], dtype)
    if parts[0].layer is None:
        out[...] = read(stored, parts[0], bounds)
    else:
        start, stop = bounds[0]
        for row, part in zip(out, parts[start:stop]):
            row[...] = read(stored, part, bounds[1:])
    return out


def read(stored: dict[str, Stored], t: Tensor, bounds) -> np.ndarray:
    """Read a block of one tensor into our layout; only its rows and columns are read."""
    where = stored[t.name]
    with safe_open(where.file, "np", backend="pread") as opened:
        part = opened.get_slice(t.name)
        sizes = [stop - start for start, stop in bounds]
        if not t.axes_in:
            flat = bounds if len(where.shape) == len(bounds) else [flat_bounds(bounds, t.shape)]
            return part[tuple(slice(*b) for b in flat)].reshape(sizes)
        columns = flat_bounds(bounds[: t.axes_in], t.shape[: t.axes_in])
        rows = flat_bounds(bounds[t.axes_in :], t.shape[t.axes_in :])
        return part[slice(*rows), slice(*columns)].T.reshape(sizes)


def flat_bounds(bounds, shape) -> tuple[int, int]:
    """Return start and stop in the flattened axes; only the first may be split (heads are, head widths never)."""
    if any(b != (0, n) for b, n in zip(bounds[1:], shape[1:])):
        raise ValueError(f"block {bounds} of axes {shape} is not contiguous: shard the first of them only")
    inner = math.prod(shape[1:])
    return bounds[0][0] * inner, bounds[0][1] * inner


def same_as_embedding(stored: dict[str, Stored], directory) -> None:
    """Refuse a tied model whose files hold another lm_head; compares a few thousand rows at a time."""
    embedding, head = stored["model.embed_tokens.weight"], stored["lm_head.weight"]
    with safe_open(embedding.file, "np", backend="pread") as a, safe_open(head.file, "np", backend="pread") as b:
        left, right = a.get_slice("model.embed_tokens.weight"), b.get_slice("lm_head.weight")
        rows = embedding.shape[0]
        equal = embedding.shape == head.shape and all(
            np.array_equal(left[i : min(i + 8192, rows)], right[i : min(i + 8192, rows)]) for i in range(0, rows, 8192)
        )
    if not equal:
        raise UserError(
            f"{directory}: config.json says tie_word_embeddings=true, but lm_head.weight differs from the embedding: "
            "set it to false in config.json if the head was trained on its own, else remove lm_head.weight"
        )


def save_hf(params, directory: epath.PathLike, *, dtype: str | None = None, most_bytes: int = 1 << 30) -> None:
    """Write model.safetensors, or shards of at most `most_bytes` with their index; dtype None keeps every bit.

    All of every parameter must be on this host's devices.
    """
    directory = epath.Path(directory)

    def size(t):
        return math.prod(t.shape) * np.dtype(dtype or leaf_at(params, t).dtype).itemsize

    files, room = [[]], most_bytes
    for t in tensors(params):
        if size(t) > room and files[-1]:
            files.append([])
            room = most_bytes
        files[-1].append(t)
        room -= size(t)
    names = (
        [SINGLE] if len(files) == 1 else [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    )
    for name, members in zip(names, files):
        write_tensors({t.name: layer_of(params, t, dtype) for t in members}, directory / name)
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(size(t) for members in files for t in members)},
            "weight_map": {t.name: name for name, members in zip(names, files) for t in members},
        }
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def read_tensors(file: epath.PathLike) -> dict[str, np.ndarray]:
    """Return all tensors of one small safetensors file; UserError where it is missing, damaged or holds no floats."""
    if not epath.Path(file).exists():
        raise UserError(f"{file} is missing: name a directory that has it")
    try:
        with safe_open(file, "np") as opened:
            held = {name: opened.get_tensor(name) for name in opened.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is truncated or damaged ({first_line(error)}): download it again") from None
    for name, x in held.items():
        if x.dtype.name not in ("float32", "float16", "bfloat16"):
            raise UserError(f"{file}: {name} is {x.dtype.name}, and not float32, float16 or bfloat16: convert it")
    return held


def write_tensors(held: dict[str, np.ndarray], file: epath.PathLike) -> None:
    """Write one safetensors file, for every user to read."""
    save_file(held, file, metadata={"format": "pt"})
    os.chmod(file, 0o644)  # safetensors writes for the owner alone; vLLM often runs as another user


def leaf_at(params, t: Tensor):
    """Return the parameter that a tensor belongs to."""
    for name in t.leaf:
        params = params[name]
    return params


def layer_of(params, t: Tensor, dtype: str | None) -> np.ndarray:
    """Return one tensor in the file's layout, on the host."""
    leaf = leaf_at(params, t)
    array = np.asarray(leaf if t.layer is None else leaf[t.layer])
    array = array.astype(dtype) if dtype else array
    if t.axes_in:
        array = array.reshape(t.stored_shape[::-1]).T
    return np.ascontiguousarray(array.reshape(t.stored_shape))
