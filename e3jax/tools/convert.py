"""Convert weights from Hugging Face to e3jax, or back, or from GGUF: what --from holds decides the direction.

    python -m e3jax.tools.convert --from=Qwen/Qwen3-1.7B --to=models/qwen3-1.7b            # safetensors -> orbax
    python -m e3jax.tools.convert --from=runs/x/checkpoints/hard/40 --to=models/mine       # orbax -> safetensors
    python -m e3jax.tools.convert --from=SmolLM2.Q4_1.gguf --to=models/smollm2             # GGUF -> safetensors
    python -m e3jax.tools.convert --from=… --to=… --add_tokens='<PLAN>,</PLAN>'            # any way, with new tokens

Dtypes stay as stored unless --dtype says otherwise; a GGUF file is dequantised to float32. A target that exists is
refused; a new one appears only when it is complete. Everything runs on the CPU, also where there are accelerators. A
run can also start from a Hugging Face directory (config.init.init_from), but then every host of a pod reads all of it.
"""

import os
import tempfile
import time
from typing import Any

import jax
from absl import flags
from etils import epath

from e3jax.checkpoint import store
from e3jax.checkpoint.gguf import Gguf, is_gguf, load_gguf, read_gguf
from e3jax.checkpoint.gguf_tokenizer import describe_gguf
from e3jax.checkpoint.hf import load_hf, save_hf, stored_dtypes
from e3jax.checkpoint.hf_config import read_config
from e3jax.checkpoint.pretrained import copy_description, description_of, load_tokenizer, local_directory
from e3jax.checkpoint.vocabulary import grow
from e3jax.errors import UserError
from e3jax.flags import run_tool
from e3jax.models.presets import num_params
from e3jax.models.qwen3 import Qwen3, abstract_params
from e3jax.printable import printable
from e3jax.sharding import make_mesh


def convert(source: str, target: epath.PathLike, *, dtype: str = "", add_tokens=(), most_bytes: int = 1 << 30) -> str:
    """Read `source`, write `target` in the other format, and return in one line what was done."""
    target = epath.Path(target)
    if not all(token.strip() for token in add_tokens):
        raise UserError(f"--add_tokens={','.join(add_tokens)!r} holds an empty token: leave out the comma")
    if target.exists():
        raise UserError(f"{target} exists: name a new directory, or remove it")
    with tempfile.TemporaryDirectory() as made:
        if is_gguf(source):
            weights, description = read_gguf(source), epath.Path(made)
            describe_gguf(weights, description)
        else:
            weights = local_directory(source)
            description = description_of(weights)
        config = read_config(description)
        tokenizer = load_tokenizer(description, config)
        params, exported = load(weights, Qwen3(config, dtype=jax.numpy.float32, remat="none", kernel="xla"), dtype)
        used, added = tokenizer.vocab_size, tokenizer.add(add_tokens)
        if added:
            params, config = grow(params, config, used=used, added=added)
        written = target.parent / f"{target.name}.partial-{os.getpid()}"
        try:
            written.mkdir(parents=True)
            stored_as = str(params["embed_vd"].dtype)
            copy_description(description, written, config, tokenizer, dtype=stored_as)
            if exported:
                save_hf(params, written, most_bytes=most_bytes)
            else:
                store.save_params(written, params)
            written.rename(target)
        except BaseException:
            if written.exists():
                written.rmtree()
            raise
    direction = "Hugging Face" if exported else "e3jax"
    return f"{target}: {num_params(config):,} parameters, {stored_as}, in {direction} format"


def load(weights: epath.Path | Gguf, model: Qwen3, dtype: str) -> tuple[Any, bool]:
    """Return parameters on the CPU, and whether the other format is Hugging Face's. `dtype` "": as stored."""
    like = abstract_params(model, make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices("cpu")[:1]))

    def typed(tree):
        return jax.tree.map(
            lambda x, y: jax.ShapeDtypeStruct(x.shape, dtype or y.dtype, sharding=x.sharding), like, tree
        )

    if isinstance(weights, Gguf):
        return load_gguf(weights, typed(like)), True
    if (weights / "default").exists():  # an e3jax checkpoint
        return store.load_params(weights, typed(store.stored_params(weights))), True
    return load_hf(weights, typed(stored_dtypes(weights, like))), False


def main() -> None:
    """Convert as the flags say."""
    f, start = flags.FLAGS, time.perf_counter()
    done = convert(
        f["from"].value, f.to, dtype=f.dtype, add_tokens=f.add_tokens, most_bytes=int(f.most_gigabytes * 1e9)
    )
    print(printable(f"{done}, {time.perf_counter() - start:.0f} s", lines=False))


if __name__ == "__main__":
    flags.DEFINE_string(
        "from", None, "Hugging Face directory or hub id, GGUF file, or a checkpoint of e3jax", required=True
    )
    flags.DEFINE_string("to", None, "directory to be made", required=True)
    flags.DEFINE_enum("dtype", "", ["", "float32", "bfloat16"], "of the output; empty: as stored (GGUF: float32)")
    flags.DEFINE_list("add_tokens", [], "tokens to add to vocabulary and tokenizer, with commas between")
    flags.DEFINE_float("most_gigabytes", 1.0, "of one safetensors file", 0.001, 1e6)
    run_tool(main)
