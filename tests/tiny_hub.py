"""Tiny models of every family with weights from numpy: the same here, in transformers, and behind the golden logits.

python tests/tiny_hub.py      writes tests/golden/logits.npz again, with transformers (needs torch)
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.checkpoint.hf import save_hf, tensors
from e3jax.checkpoint.hf_config import read_config
from e3jax.models.qwen3 import Qwen3, abstract_params
from e3jax.sharding import make_mesh

GOLDEN = Path(__file__).parent / "golden/logits.npz"
QWEN3 = dict(
    model_type="qwen3",
    vocab_size=120,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=40_960,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    rope_scaling=None,
    tie_word_embeddings=True,
    hidden_act="silu",
)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
CASES = {
    "qwen3-tied": QWEN3,
    "qwen3-untied-one-kv-head": QWEN3 | {"tie_word_embeddings": False, "num_key_value_heads": 1},
    "qwen3-yarn": QWEN3 | {"rope_scaling": YARN, "max_position_embeddings": 32_768},
    "qwen3-linear": QWEN3 | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "qwen2.5": QWEN3 | {"model_type": "qwen2", "head_dim": 12, "tie_word_embeddings": False, "rope_theta": 1e4},
    "llama-3.2": QWEN3
    | {
        "model_type": "llama",
        "num_key_value_heads": 4,
        "rope_scaling": LLAMA3,
        "rope_theta": 5e5,
        "rms_norm_eps": 1e-5,
    },
}
# Two rows; the second reaches far: a wrong θ or scaling shows between distant positions only.
TOKENS = np.random.default_rng(1).integers(0, 120, (2, 16))
POSITIONS = np.stack(
    [np.arange(16), [0, 1, 2, 3, 9, 40, 41, 700, 3000, 8191, 8192, 8200, 16_000, 31_000, 32_766, 32_767]]
)


def write_tiny(directory: Path, name: str, *, dtype: str = "float32", most_bytes: int = 5 << 30, **changes) -> Path:
    """Write config.json and safetensors of one case, made without transformers; `changes` go into its config."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CASES[name] | {"architectures": ["any"]} | changes))
    save_hf(tiny_params(directory, dtype), directory, most_bytes=most_bytes)
    return directory


def like_of(directory: Path, *, mesh=None, dtype="float32"):
    """Return (model, abstract parameters) of a directory's config.json."""
    model = Qwen3(read_config(directory), dtype=jnp.float32, remat="none", kernel="xla")
    mesh = mesh or make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    return model, abstract_params(model, mesh, dtype=dtype)


def tiny_params(directory: Path, dtype: str = "float32"):
    """Draw weights tensor by tensor in the *file's* layout, in the order of names: none of our layouts enters."""
    rng = np.random.default_rng(0)
    _, like = like_of(directory)
    drawn = {}
    for t in sorted(tensors(like), key=lambda t: t.name):
        shape = t.stored_shape
        if "norm" in t.name:  # never ones: a scale that is swapped or ignored must show
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.uniform(-1, 1, shape) * (0.5 if len(shape) == 1 else (3 / shape[1]) ** 0.5)
        if t.axes_in:
            value = value.T
        drawn[t.name] = value.reshape(t.shape).astype(dtype)
    stacked = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.stack([drawn[t.name] for t in tensors(like) if t.leaf == tuple(p.key for p in path)]),
        like,
    )
    whole = {n: x[0] for n, x in stacked.items() if n != "layers"}
    return jax.tree.map(jnp.asarray, whole | {"layers": stacked["layers"]})


def write_chat_model(directory: Path, *, template: str) -> Path:
    """Write a tiny random Qwen3 with a tokenizer of its kind and a chat template."""
    from tiny_text import write_qwen3_like

    from e3jax.models.qwen3 import init_params
    from e3jax.tokenizer import HubTokenizer

    write_qwen3_like(directory, template=template)
    size = -(-HubTokenizer(str(directory)).vocab_size // 64) * 64
    (directory / "config.json").write_text(json.dumps(QWEN3 | {"vocab_size": size}))
    save_hf(jax.jit(init_params, static_argnums=0)(like_of(directory)[0], jax.random.key(0)), directory)
    return directory


def transformers_model(directory: Path):
    """Return transformers' model with the same weights, from config.json and the files' tensors."""
    import torch
    import transformers
    from safetensors.numpy import load_file

    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(directory), attn_implementation="eager"
    ).eval()
    state = {k: torch.tensor(v) for k, v in load_file(directory / "model.safetensors").items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    return model


def transformers_logits(model, tokens, positions, mask=None) -> np.ndarray:
    """Return transformers' logits [B, T, V], float32."""
    import torch

    mask = np.ones_like(tokens) if mask is None else mask
    with torch.no_grad():
        return model(
            torch.tensor(tokens), attention_mask=torch.tensor(mask), position_ids=torch.tensor(positions)
        ).logits.numpy()


def main() -> None:
    import tempfile

    golden = {}
    for name in CASES:
        directory = write_tiny(Path(tempfile.mkdtemp()), name)
        golden[name] = transformers_logits(transformers_model(directory), TOKENS, POSITIONS)
    np.savez_compressed(GOLDEN, **golden)
    print(GOLDEN, GOLDEN.stat().st_size)


if __name__ == "__main__":
    main()
