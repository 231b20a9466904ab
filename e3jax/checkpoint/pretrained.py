"""A model by name: a Hugging Face directory or hub id, a converted directory, or a checkpoint of a run.

A model's description is what it has beside its weights: config.json, generation_config.json and tokenizer files. It
lies next to the weights; a run keeps one description for all its checkpoints in RUN/hf.

    model, params, tokenizer = load_pretrained("Qwen/Qwen3-0.6B", dtype="bfloat16", mesh=mesh)
"""

import atexit
import codecs
import dataclasses
import json
import re
import reprlib
import shutil
import tempfile
from typing import Any, NamedTuple

import jax
from etils import epath

from e3jax.checkpoint import adapters, store
from e3jax.checkpoint.hf import INDEX, SINGLE, load_hf
from e3jax.checkpoint.hf_config import read_config, to_hub
from e3jax.errors import UserError, first_line
from e3jax.models.lora import beside, merged
from e3jax.models.presets import ModelConfig, preset, presets
from e3jax.models.qwen3 import Qwen3, abstract_params, in_dtype
from e3jax.readers import fault, read_bytes, read_json
from e3jax.storage import is_bucket, place
from e3jax.tokenizer import FILES, HubTokenizer

MOST_CLOSED = 1 << 18  # bytes of a tokenizer.json of a closed vocabulary, of which ours have 10 kB
HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model")


class Pretrained(NamedTuple):
    """All that sampling from a model needs."""

    model: Qwen3
    params: Any
    tokenizer: HubTokenizer


def load_pretrained(name: str, *, dtype: str, mesh: jax.sharding.Mesh) -> Pretrained:
    """Load a model for sampling: matrices in `dtype`, norm scales float32, laid out on `mesh`."""
    weights = local_directory(name)
    config = read_config(description_of(weights))
    tokenizer = load_tokenizer(weights, config)
    model = Qwen3(config, dtype=jax.numpy.dtype(dtype), remat="none", kernel="auto")
    return Pretrained(model, load_params(weights, abstract_params(model, mesh, dtype=dtype)), tokenizer)


def load_tokenizer(name: epath.PathLike, config: ModelConfig) -> HubTokenizer:
    """Load the tokenizer of a model by name; UserError when the model lacks rows for some of its tokens."""
    description = description_of(local_directory(name, weights=False))
    tokenizer = HubTokenizer(str(on_disk(description)))
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer of {description} has {tokenizer.vocab_size} tokens, but the model has rows for "
            f"{config.vocab_size}: use the tokenizer that belongs to the model"
        )
    tokenizer.stop = stop_ids(description, tokenizer)
    return tokenizer


def on_disk(description: epath.Path) -> epath.Path:
    """Return a directory that transformers can read: a copy where this one is in a bucket or has byte order marks."""
    files = [name for name in (*FILES, "config.json") if (description / name).is_file()]
    if not is_bucket(description) and not any(has_mark(description / name) for name in files):
        return description
    copy = epath.Path(tempfile.mkdtemp(prefix="e3jax-tokenizer-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    for name in files:
        (copy / name).write_bytes(read_bytes(description / name).removeprefix(codecs.BOM_UTF8))
    return copy


def has_mark(path: epath.Path) -> bool:
    """Return whether a file begins with UTF-8's byte order mark."""
    with path.open("rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def load_params(name: epath.PathLike, like):
    """Load the parameters of a model by name, laid out as `like` (shapes, dtypes, shardings); adapters are merged."""
    directory = local_directory(name)
    if (kept := adapters.adapter_at(directory)) is not None:
        return load_merged(directory, kept, like)
    if (directory / "default").exists():
        return store.load_params(directory, like)
    if (directory / SINGLE).exists() or (directory / INDEX).exists() or (directory / "config.json").exists():
        return load_hf(directory, like)
    raise UserError(
        f"{directory} is no model: name a Hugging Face directory, or a checkpoint like RUN/checkpoints/STAGE/STEP"
    )


def load_merged(directory: epath.PathLike, kept: adapters.Kept, like):
    """Load what adapters belong to, in the dtype that it had in training, and merge them in float32.

    UserError where that is not the model that they were trained beside.
    """
    try:
        base = load_params(kept.base, in_dtype(like, kept.dtype) if kept.dtype else like)
    except UserError as error:
        raise UserError(f"{directory} holds adapters of {kept.base}, which cannot be read: {error}") from error
    adapters.need_base(kept, digest_at(kept.base, base), where=directory)
    params = beside(base, adapters.read_adapters(directory, kept, like))
    matrix = like["layers"]["wq_dnh"].dtype

    def whole(params):
        return jax.tree.map(lambda x, y: x.astype(y.dtype), merged(params, kept.lora, dtype=matrix), like)

    return jax.jit(whole, out_shardings=jax.tree.map(lambda x: x.sharding, like))(params)


def digest_at(name: epath.PathLike, params) -> str:
    """Return a checksum of a model by name, whose `params` were read.

    Of a model with adapters it is that of these and of what they belong to, because merging may round its last bits
    otherwise on another machine.
    """
    directory = local_directory(name)
    kept = adapters.adapter_at(directory)
    if kept is None:
        return adapters.digest_of(params)
    return adapters.digest_of(adapters.read_adapters(directory, kept, params)) + kept.digest


def model_config(name: str) -> ModelConfig:
    """Return a preset by name, or the config of a model by directory or hub id."""
    if name in presets():
        return preset(name)
    if "/" not in str(name) and not epath.Path(name).exists():
        raise UserError(f"model {name!r} is neither a directory, nor a hub id, nor one of {', '.join(presets())}")
    return read_config(description_of(local_directory(name, weights=False)))


def has_closed_words(name: str) -> bool:
    """Return whether a model by name has the closed vocabulary of tiny models: tokens that are words of a list."""
    path = description_of(local_directory(name, weights=False)) / "tokenizer.json"
    if not path.exists() or path.stat().length > MOST_CLOSED:
        return False
    return read_json(path, {"model": {"type": str}}, advice="restore it")["model"]["type"] == "WordLevel"


def local_directory(name: epath.PathLike, *, weights: bool = True) -> epath.Path:
    """Return the directory itself, or that of a hub id "ORG/NAME" or "ORG/NAME/SUBFOLDER", downloaded once."""
    path = epath.Path(name)
    if path.is_dir():
        return path
    if path.suffix == ".gguf":
        raise UserError(f"{name} is a GGUF file: python -m e3jax.tools.convert --from={name} --to=DIRECTORY first")
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
        snapshot = snapshot_download(repository, allow_patterns=patterns)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{name} is not a directory here, and the hub did not give it: {first_line(error)}") from None
    return epath.Path(snapshot) / (folder or "")


def absolute(name: str) -> str:
    """Return a model's name as it may be written down: that of a directory made absolute, a hub id as it is."""
    return str(place(name)) if epath.Path(name).is_dir() else name


def same_model(name: epath.PathLike, config: ModelConfig) -> None:
    """Raise UserError when weights come from a model that computes otherwise; RoPE's θ, say, shows in no shape."""
    try:
        theirs = read_config(description_of(local_directory(name)))
    except UserError:
        return  # weights without a description: their shapes are compared when they are read
    ours, theirs = (dataclasses.asdict(dataclasses.replace(c, max_length=0)) for c in (config, theirs))
    differ = [f"{f}: {theirs[f]} there, {ours[f]} here" for f in ours if theirs[f] != ours[f]]
    if differ:
        raise UserError(f"{name} is of another model ({'; '.join(differ)}): set config.model.preset to it")


def description_of(weights: epath.Path) -> epath.Path:
    """Return the directory with the config.json and tokenizer files that belong to these weights."""
    if (weights / "checkpoints").is_dir():
        raise UserError(f"{weights} is a run: name one of its checkpoints, {weights}/checkpoints/STAGE/STEP")
    above = place(weights).parents
    run = above[2] if len(above) > 2 else weights
    for directory in (weights, run / "hf"):
        if (directory / "config.json").exists():
            return directory
    if (weights / adapters.CONFIG).exists():  # PEFT's
        return description_of(local_directory(adapters.peft_base(weights), weights=False))
    raise UserError(
        f"{weights} has no config.json, nor has {run / 'hf'}: name a Hugging Face directory, or a checkpoint like "
        "RUN/checkpoints/STAGE/STEP"
    )


def generation_config(directory: epath.PathLike) -> dict:
    """Read generation_config.json; {} when there is none."""
    path = epath.Path(directory) / "generation_config.json"
    return read_json(path, dict, advice="repair or remove it") if path.exists() else {}


def stop_ids(directory: epath.PathLike, tokenizer) -> tuple[int, ...]:
    """Return the ids that end a response: the tokenizer's, and those of generation_config.json or else config.json."""
    named = generation_config(directory).get("eos_token_id")
    if named is None:
        named = read_json(epath.Path(directory) / "config.json", dict, advice="download it again").get("eos_token_id")
    named = named if isinstance(named, list) else [] if named is None else [named]
    if fault(named, [int]) or not all(0 <= n < 2**31 for n in named):
        raise UserError(f"{directory}: eos_token_id={reprlib.repr(named)}, numbers of tokens are needed")
    return tuple(dict.fromkeys([tokenizer.eos, *named]))


def write_description(directory: epath.PathLike, config: ModelConfig, tokenizer, *, dtype: str, generation: dict):
    """Write config.json, generation_config.json (as given, but ending at all of tokenizer.stop) and tokenizer files."""
    directory = epath.Path(directory)
    stop = tokenizer.stop[0] if len(tokenizer.stop) == 1 else list(tokenizer.stop)
    generation = {"do_sample": True, "pad_token_id": tokenizer.pad, **generation, "eos_token_id": stop}
    ids = dict(bos=tokenizer.bos, eos=tokenizer.eos, pad=tokenizer.pad)
    write_json(directory / "config.json", to_hub(config, dtype=dtype, **ids))
    write_json(directory / "generation_config.json", generation)
    write_tokenizer(directory, tokenizer)


def copy_description(source: epath.PathLike, directory: epath.PathLike, config: ModelConfig, tokenizer, *, dtype: str):
    """Copy config.json and generation_config.json of `source`, and write the tokenizer's files; nothing is added.

    Only what a conversion changes differs: the vocabulary's size, and the dtype where the source names one.
    """
    directory, held = epath.Path(directory), read_json(epath.Path(source) / "config.json", dict)
    held |= {name: dtype for name in ("dtype", "torch_dtype") if name in held}
    write_json(directory / "config.json", held | {"vocab_size": config.vocab_size})
    if (epath.Path(source) / "generation_config.json").exists():
        write_json(directory / "generation_config.json", generation_config(source))
    write_tokenizer(directory, tokenizer)


def write_tokenizer(directory: epath.Path, tokenizer) -> None:
    """Write a tokenizer's files into a directory, which may be in a bucket."""
    with tempfile.TemporaryDirectory() as local:  # transformers writes to local disks only
        tokenizer.save(local)
        for file in epath.Path(local).iterdir():
            file.copy(directory / file.name, overwrite=True)


def describe_run(workdir: epath.PathLike, name: str, config: ModelConfig, tokenizer) -> None:
    """Write RUN/hf, once: with it a checkpoint of the run can be exported and sampled wherever it is copied to.

    Keeps the sampling of the source's generation_config.json, but not its greedy decoding and lengths.
    """
    target = place(workdir) / "hf"
    if (target / "config.json").exists():  # the file that is written last
        return
    source = None if name in presets() else description_of(local_directory(name, weights=False))
    generation = generation_config(source) if source else {}
    kept = {k: v for k, v in generation.items() if k in ("temperature", "top_k", "top_p", "repetition_penalty")}
    with tempfile.TemporaryDirectory() as local:
        write_description(local, config, tokenizer, dtype="float32", generation=kept)
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(epath.Path(local).iterdir(), key=lambda file: file.name == "config.json"):
            new = target / f"{file.name}.new"
            file.copy(new, overwrite=True)
            new.replace(target / file.name)


def write_json(path: epath.Path, value: dict) -> None:
    """Write indented JSON that ends with a newline."""
    path.write_text(json.dumps(value, indent=2) + "\n")
