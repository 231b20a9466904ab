"""A model by name: a Hugging Face directory or hub id, a converted directory, or a checkpoint of a run.

What a model is beside its weights (config.json, generation_config.json, tokenizer files: its description) lies next to
the weights; a run keeps one for all its checkpoints in RUN/hf.

    model, params, tokenizer, stop = load_pretrained("Qwen/Qwen3-0.6B", dtype="bfloat16", mesh=mesh)
"""

import json
import re
import tempfile
from typing import Any, NamedTuple

import jax
from etils import epath

from e3jax.checkpoint import store
from e3jax.checkpoint.hf import INDEX, SINGLE, load_hf
from e3jax.checkpoint.hf_config import read_config, to_hub
from e3jax.errors import UserError
from e3jax.models.attention import resolve_kernel
from e3jax.models.presets import ModelConfig, preset, presets
from e3jax.models.qwen3 import Qwen3, abstract_params
from e3jax.tokenizer import HubTokenizer

HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model")


class Pretrained(NamedTuple):
    """A model that can be asked something."""

    model: Qwen3
    params: Any
    tokenizer: HubTokenizer
    stop: tuple[int, ...]  # ids that end a response: generation_config.json's and the tokenizer's own


def load_pretrained(name: str, *, dtype: str, mesh: jax.sharding.Mesh) -> Pretrained:
    """Everything for sampling: matrices in `dtype`, norm scales float32, laid out on `mesh`."""
    weights = local_directory(name)
    description = description_of(weights)
    tokenizer = HubTokenizer(str(description))
    model = Qwen3(read_config(description), dtype=jax.numpy.dtype(dtype), remat="none", kernel=resolve_kernel("auto"))
    params = load_params(weights, abstract_params(model, mesh, dtype=dtype))
    return Pretrained(model, params, tokenizer, stop_ids(description, tokenizer))


def load_params(name: epath.PathLike, like):
    """Parameters of whatever `name` is, laid out as `like` (shapes, dtypes, shardings)."""
    directory = local_directory(name)
    if (directory / "default").exists():
        return store.load_params(directory, like)
    if (directory / SINGLE).exists() or (directory / INDEX).exists() or (directory / "config.json").exists():
        return load_hf(directory, like)
    raise UserError(
        f"{directory} is no model: name a Hugging Face directory, or a checkpoint like RUN/checkpoints/STAGE/STEP"
    )


def model_config(name: str) -> ModelConfig:
    """A preset by name, or the config of a model by directory or hub id."""
    if name in presets():
        return preset(name)
    if "/" not in str(name) and not epath.Path(name).exists():
        raise UserError(f"model {name!r} is neither a directory, nor a hub id, nor one of {', '.join(presets())}")
    return read_config(description_of(local_directory(name, weights=False)))


def local_directory(name: epath.PathLike, *, weights: bool = True) -> epath.Path:
    """The directory itself, or that of a hub id "ORG/NAME" or "ORG/NAME/SUBFOLDER", downloaded once."""
    path = epath.Path(name)
    if path.is_dir():
        return path
    parts = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:/([\w./-]+))?", str(name))
    if path.exists() or parts is None or str(name).startswith(("/", ".")):
        raise UserError(f"{name} is not a directory: name a model directory, or a hub id like Qwen/Qwen3-0.6B")
    try:
        from huggingface_hub import snapshot_download  # comes with transformers
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise UserError(f"{name} is not a directory here; hub ids need pip install 'e3jax[hf]'") from None
    repository, folder = parts.groups()
    patterns = [f"{folder}/{p}" if folder else p for p in HUB_FILES if weights or not p.startswith("*.safetensors")]
    try:
        found = snapshot_download(repository, allow_patterns=patterns)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{name} is not a directory here, and the hub did not give it: {first_line(error)}") from None
    return epath.Path(found) / (folder or "")


def first_line(error: Exception) -> str:
    """What went wrong, without the stack of causes."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def description_of(weights: epath.Path) -> epath.Path:
    """The directory with config.json and tokenizer files that belongs to these weights."""
    run = weights.absolute().parents[2] if len(weights.absolute().parents) > 2 else weights
    for directory in (weights, run / "hf"):
        if (directory / "config.json").exists():
            return directory
    raise UserError(
        f"{weights} has no config.json, nor has {run / 'hf'}: name a Hugging Face directory, or a checkpoint like "
        "RUN/checkpoints/STAGE/STEP"
    )


def generation_config(directory: epath.PathLike) -> dict:
    """generation_config.json, {} when there is none."""
    path = epath.Path(directory) / "generation_config.json"
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): repair or remove it") from None


def stop_ids(directory: epath.PathLike, tokenizer) -> tuple[int, ...]:
    """Ids that end a response, the tokenizer's own first."""
    named = generation_config(directory).get("eos_token_id")
    named = named if isinstance(named, list) else [] if named is None else [named]
    return tuple(dict.fromkeys([tokenizer.eos, *named]))


def write_description(directory: epath.PathLike, config: ModelConfig, tokenizer, *, dtype: str, generation: dict):
    """config.json, generation_config.json and the tokenizer's files into an existing directory."""
    directory = epath.Path(directory)
    generation = {"do_sample": True, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad, **generation}
    write_json(directory / "config.json", to_hub(config, dtype=dtype, eos=tokenizer.eos, pad=tokenizer.pad))
    write_json(directory / "generation_config.json", generation)
    with tempfile.TemporaryDirectory() as local:  # transformers writes to local disks only
        tokenizer.save(local)
        for file in epath.Path(local).iterdir():
            file.copy(directory / file.name, overwrite=True)


def describe_run(workdir: epath.PathLike, name: str, config: ModelConfig, tokenizer) -> None:
    """RUN/hf, once: with it a checkpoint of the run can be exported and asked wherever it is copied to."""
    target, new = epath.Path(workdir) / "hf", epath.Path(workdir) / "hf.new"
    if target.exists():
        return
    source = None if name in presets() else description_of(local_directory(name, weights=False))
    new.mkdir(parents=True, exist_ok=True)
    generation = generation_config(source) if source else {}
    write_description(new, config, tokenizer, dtype="float32", generation=generation)
    new.rename(target)


def write_json(path: epath.Path, value: dict) -> None:
    """Indented, ending with a newline."""
    path.write_text(json.dumps(value, indent=2) + "\n")
