"""Convert weights from Hugging Face to e3jax, or back, or from GGUF: what --from holds decides the direction.

    python -m e3jax.tools.convert --from=Qwen/Qwen3-1.7B --to=models/qwen3-1.7b            # safetensors -> orbax
    python -m e3jax.tools.convert --from=runs/x/checkpoints/hard/40 --to=models/mine       # orbax -> safetensors
    python -m e3jax.tools.convert --from=SmolLM2.Q4_1.gguf --to=models/smollm2             # GGUF -> safetensors
    python -m e3jax.tools.convert --from=runs/y/checkpoints/sft/40 --to=models/low --adapter  # LoRA -> PEFT's directory
    python -m e3jax.tools.convert --from=… --to=… --add_tokens='<PLAN>,</PLAN>'            # any way, with new tokens

Of a checkpoint with adapters, and of PEFT's directory, the merged model is converted, unless --adapter says otherwise.
Dtypes stay as stored unless --dtype says otherwise; a GGUF file is dequantised to float32. A target that exists is
refused; a new one appears only when it is complete. Everything runs on the CPU, also where there are accelerators. A
run can also start from a Hugging Face directory (config.init.init_from), but then every host of a pod reads all of it.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from absl import flags
from etils import epath

from e3jax.checkpoint import adapters, store
from e3jax.checkpoint.gguf import Gguf, is_gguf, load_gguf, read_gguf
from e3jax.checkpoint.gguf_tokenizer import describe_gguf
from e3jax.checkpoint.hf import load_hf, save_hf, stored_dtypes
from e3jax.checkpoint.hf_config import read_config
from e3jax.checkpoint.pretrained import (
    copy_description,
    description_of,
    load_merged,
    load_tokenizer,
    local_directory,
    write_tokenizer,
)
from e3jax.checkpoint.vocabulary import grow
from e3jax.errors import UserError
from e3jax.flags import run_tool
from e3jax.models.lora import num_adapter_params
from e3jax.models.presets import ModelConfig, num_params
from e3jax.models.qwen3 import Qwen3, abstract_params, in_dtype
from e3jax.printable import printable
from e3jax.sharding import make_mesh


def convert(source: str, target: epath.PathLike, *, dtype: str = "", add_tokens=(), most_bytes: int = 1 << 30) -> str:
    """Read `source`, write `target` in the other format, and return in one line what was done."""
    target = epath.Path(target)
    if not all(token.strip() for token in add_tokens):
        raise UserError(f"--add_tokens={','.join(add_tokens)!r} holds an empty token: leave out the comma")
    need_new(target)
    with tempfile.TemporaryDirectory() as made:
        if is_gguf(source):
            weights, description = read_gguf(source), epath.Path(made)
            describe_gguf(weights, description)
        else:
            weights = local_directory(source)
            description = description_of(weights)
        config = read_config(description)
        tokenizer = load_tokenizer(description, config)
        params, exported = load(weights, config, dtype)
        used, added = tokenizer.vocab_size, tokenizer.add(add_tokens)
        if added:
            params, config = grow(params, config, used=used, added=added)
        stored_as = str(params["embed_vd"].dtype)
        with made_whole(target) as written:
            copy_description(description, written, config, tokenizer, dtype=stored_as)
            if exported:
                save_hf(params, written, most_bytes=most_bytes)
            else:
                store.save_params(written, params)
    direction = "Hugging Face" if exported else "e3jax"
    return f"{target}: {num_params(config):,} parameters, {stored_as}, in {direction} format"


def need_new(target: epath.Path) -> None:
    """Raise UserError where the target is there already."""
    if target.exists():
        raise UserError(f"{target} exists: name a new directory, or remove it")


@contextmanager
def made_whole(target: epath.Path) -> Iterator[epath.Path]:
    """Yield a new directory, which gets the name `target` at the end of the block; an error removes it."""
    written = target.parent / f"{target.name}.partial-{os.getpid()}"
    try:
        written.mkdir(parents=True)
        yield written
        written.rename(target)
    except BaseException:
        if written.exists():
            written.rmtree()
        raise


def on_cpu(config: ModelConfig) -> Any:
    """Return the shapes of a model's float32 parameters, on the first CPU."""
    model = Qwen3(config, dtype=jax.numpy.float32, remat="none", kernel="xla")
    return abstract_params(model, make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices("cpu")[:1]))


def load(weights: epath.Path | Gguf, config: ModelConfig, dtype: str) -> tuple[Any, bool]:
    """Return parameters on the CPU, and whether the other format is Hugging Face's. `dtype` "": as stored."""
    like = on_cpu(config)

    def typed(tree):
        return jax.tree.map(
            lambda x, y: jax.ShapeDtypeStruct(x.shape, dtype or y.dtype, sharding=x.sharding), like, tree
        )

    if isinstance(weights, Gguf):
        return load_gguf(weights, typed(like)), True
    if (kept := adapters.adapter_at(weights)) is not None:
        ours = (weights / "default").exists()
        return load_merged(weights, kept, typed(in_dtype(like, kept.dtype) if ours else like)), True
    if (weights / "default").exists():  # an e3jax checkpoint
        return store.load_params(weights, typed(store.stored_params(weights))), True
    return load_hf(weights, typed(stored_dtypes(weights, like))), False


def export_adapter(source: str, target: epath.PathLike) -> str:
    """Write the adapters of a run's checkpoint as PEFT's directory, with the tokenizer; return what was done."""
    target = epath.Path(target)
    need_new(target)
    weights = local_directory(source)
    if (kept := adapters.adapter_at(weights)) is None:
        raise UserError(f"--from={source} has no adapters: leave --adapter out, or name a checkpoint of a LoRA run")
    config = read_config(description_of(weights))
    like = on_cpu(config)
    with made_whole(target) as written:
        adapters.save_peft(adapters.read_adapters(weights, kept, like), kept, written)
        write_tokenizer(written, load_tokenizer(weights, config))
    count = num_adapter_params(config, kept.lora)
    return f"{target}: adapters of {kept.base}, {count:,} parameters, float32, in PEFT's format"


def main() -> None:
    """Convert as the flags say."""
    f, start = flags.FLAGS, time.perf_counter()
    if f.adapter:
        done = export_adapter(f["from"].value, f.to)
    else:
        how = dict(dtype=f.dtype, add_tokens=f.add_tokens, most_bytes=int(f.most_gigabytes * 1e9))
        done = convert(f["from"].value, f.to, **how)
    print(printable(f"{done}, {time.perf_counter() - start:.0f} s", lines=False))


if __name__ == "__main__":
    flags.DEFINE_string(
        "from", None, "Hugging Face directory or hub id, GGUF file, or a checkpoint of e3jax", required=True
    )
    flags.DEFINE_string("to", None, "directory to be made", required=True)
    flags.DEFINE_enum("dtype", "", ["", "float32", "bfloat16"], "of the output; empty: as stored (GGUF: float32)")
    flags.DEFINE_bool("adapter", False, "write the adapters of a run with LoRA alone, in PEFT's format")
    flags.DEFINE_list("add_tokens", [], "tokens to add to vocabulary and tokenizer, with commas between")
    flags.DEFINE_float("most_gigabytes", 1.0, "of one safetensors file", 0.001, 1e6)
    run_tool(main)
