"""`python -m e3jax.tools.convert`: there and back bit for bit, new tokens, and refusals that leave nothing behind."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_hub import POSITIONS, TOKENS, like_of, transformers_logits, write_tiny

from e3jax.checkpoint.hf import load_hf
from e3jax.checkpoint.pretrained import load_params, load_pretrained, load_tokenizer, local_directory, same_model
from e3jax.errors import UserError
from e3jax.phases import TAGS, split_text, tag_ids, write_text
from e3jax.sharding import make_mesh
from e3jax.tokenizer import HubTokenizer, WordTokenizer

pytest.importorskip("transformers", reason="convert reads the tokenizer: pip install -e '.[hf]'")
from e3jax.tools.convert import convert

ROOT = Path(__file__).parent.parent


@pytest.fixture
def source(tmp_path):
    """Write a bfloat16 Qwen3 directory with a tokenizer of 112 words (120 rows) and two ends of a response."""
    directory = write_tiny(tmp_path / "source", "qwen3-untied-one-kv-head", dtype="bfloat16")
    WordTokenizer([f"w{i}" for i in range(110)]).save(directory)
    (directory / "generation_config.json").write_text('{"eos_token_id": [1, 5], "temperature": 0.6}')
    return directory


def test_there_and_back(source, tmp_path):
    """safetensors -> orbax -> safetensors in shards keeps every bit, tokenizer, ends and sampling defaults."""
    convert(str(source), tmp_path / "e3jax")
    convert(str(tmp_path / "e3jax"), tmp_path / "out/8B-Final", most_bytes=20_000)
    want = load_file(source / "model.safetensors")
    files = sorted((tmp_path / "out/8B-Final").glob("model-*-of-*.safetensors"))
    got = {name: x for file in files for name, x in load_file(file).items()}
    assert len(files) > 1 and got.keys() == want.keys()
    for name in want:
        assert got[name].dtype == want[name].dtype == "bfloat16"
        np.testing.assert_array_equal(got[name].view(np.uint16), want[name].view(np.uint16))
    out = tmp_path / "out/8B-Final"
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert load_tokenizer(out, like_of(out)[0].config).stop == (1, 5)
    assert json.loads((out / "generation_config.json").read_text())["temperature"] == 0.6
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["8B-Final"]


@pytest.mark.parametrize("generation", [{"eos_token_id": 5, "temperature": 0.6}, None])
def test_there_and_back_adds_no_field(source, tmp_path, generation):
    """`do_sample`, `use_cache` and more appeared in the two configs, and fields that we do not read were lost."""
    held = json.loads((source / "config.json").read_text()) | {"torch_dtype": "bfloat16", "initializer_range": 0.02}
    held |= {"transformers_version": "4.51.0", "sliding_window": None, "rope_scaling": None}
    (source / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(held).encode())  # a mark is no field either
    file = source / "generation_config.json"
    file.unlink() if generation is None else file.write_text(json.dumps(generation))
    convert(str(source), tmp_path / "e3jax")
    convert(str(tmp_path / "e3jax"), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text()) == held
    written = tmp_path / "out/generation_config.json"
    assert (json.loads(written.read_text()) if written.exists() else None) == generation
    names = {p.name for p in source.iterdir()}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    convert(str(source), tmp_path / "wide", dtype="float32", add_tokens=[f"<t{i}>" for i in range(20)])
    assert json.loads((tmp_path / "wide/config.json").read_text()) == held | {
        "torch_dtype": "float32",
        "vocab_size": 256,
    }


def test_subfolder_loads_in_transformers(source, tmp_path):
    """As E2C's model card shows, from_pretrained(path, subfolder='8B-Final') loads weights, tokenizer and dtype."""
    torch = pytest.importorskip("torch", reason="parity needs pip install -e '.[parity]'")
    import transformers

    convert(str(source), tmp_path / "e3jax", dtype="float32")
    convert(str(tmp_path / "e3jax"), tmp_path / "out/8B-Final", most_bytes=20_000)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", subfolder="8B-Final").eval()
    assert model.dtype == torch.float32
    ours, like = like_of(source)
    hidden, _ = jax.jit(ours.apply)({"params": load_hf(source, like)}, TOKENS, POSITIONS)
    logits = hidden @ load_hf(source, like)["unembed_vd"].T
    np.testing.assert_allclose(logits, transformers_logits(model, TOKENS, POSITIONS), atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", subfolder="8B-Final")
    assert tokenizer.encode("w3 w7", add_special_tokens=False) == [5, 9]
    assert model.generation_config.eos_token_id == [1, 5]


def test_new_tokens_reach_weights_tokenizer_and_config(source, tmp_path):
    """E2C's four tags on a vocabulary with 8 spare rows, then 20 more that need growth to 256."""
    tags = ["<EXPLORATION>", "</EXPLORATION>", "<EXECUTION>", "</EXECUTION>"]
    convert(str(source), tmp_path / "tags", add_tokens=tags)
    more = [f"<t{i}>" for i in range(20)]
    convert(str(tmp_path / "tags"), tmp_path / "more", add_tokens=[*tags, *more])
    first, second = (HubTokenizer(str(tmp_path / d)) for d in ("tags", "more"))
    assert [first.id(t) for t in tags] == [second.id(t) for t in tags] == [112, 113, 114, 115]
    assert [second.id(t) for t in more] == list(range(116, 136))
    text = "<EXPLORATION> w1 </EXPLORATION>"
    assert first.encode(text) == [112, 3, 113] and "<EXPLORATION>" in first.decode(first.encode(text))
    model, like = like_of(tmp_path / "more")
    assert model.config.vocab_size == 256 == load_hf(tmp_path / "more", like)["unembed_vd"].shape[0]
    old = load_file(source / "model.safetensors")["lm_head.weight"]
    new = load_file(tmp_path / "more/model.safetensors")["lm_head.weight"]
    np.testing.assert_array_equal(new[:112].view(np.uint16), old[:112].view(np.uint16))


def between(text: str, begin: str, end: str) -> str:
    """Do what a reader without our parser does (the model card's snippet, in our words)."""
    return text.partition(begin)[2].partition(end)[0].strip()


def test_an_e2c_export_reads_as_on_its_card(source, tmp_path):
    """Four tags added, written as 8B-Final: transformers has them as single tokens with the same logits, and its
    decoded text falls into the same two phases as ours."""
    pytest.importorskip("torch", reason="parity needs pip install -e '.[parity]'")
    import transformers

    convert(str(source), tmp_path / "tagged", dtype="float32", add_tokens=list(TAGS))
    convert(str(tmp_path / "tagged"), tmp_path / "out/8B-Final")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", subfolder="8B-Final")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", subfolder="8B-Final").eval()
    text = write_text(" w1 w2 ", " w3 ")
    ids = tokenizer.encode(text, add_special_tokens=False)
    ours = HubTokenizer(str(tmp_path / "tagged"))
    assert ids == ours.encode(text) == [112, 3, 4, 113, 114, 5, 115] and tag_ids(ours) == (112, 113, 114, 115)
    said = tokenizer.decode(ids, skip_special_tokens=False)
    phases = between(said, TAGS[0], TAGS[1]), between(said, TAGS[2], TAGS[3])
    assert phases == split_text(ours.decode(ids), begun=False)[:2] == ("w1 w2", "w3")
    trained, like = like_of(tmp_path / "out/8B-Final")
    params = load_params(tmp_path / "tagged", like)
    tokens, positions = np.array([ids]), np.arange(len(ids))[None]
    hidden, _ = jax.jit(trained.apply)({"params": params}, tokens, positions)
    logits = hidden @ params["unembed_vd"].T
    np.testing.assert_allclose(logits, transformers_logits(model, tokens, positions), atol=1e-4)
    assert model.config.vocab_size == 120  # rows that were spare


def test_a_run_starts_from_either(source, tmp_path):
    """Float32 parameters from the safetensors and from the converted copy are the same numbers."""
    convert(str(source), tmp_path / "e3jax")
    _, like = like_of(source)
    jax.tree.map(np.testing.assert_array_equal, load_params(source, like), load_params(tmp_path / "e3jax", like))
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    asked = load_pretrained(str(tmp_path / "e3jax"), dtype="bfloat16", mesh=mesh)
    assert asked.tokenizer.stop == (1, 5) and asked.params["layers"]["wq_dnh"].dtype == "bfloat16"
    assert asked.params["final_norm_d"].dtype == "float32"


def test_a_model_that_computes_otherwise_is_refused(source):
    """Qwen2.5-1.5B and Qwen2.5-Math-1.5B have equal shapes and another θ, so no shape shows the mistake."""
    config = like_of(source)[0].config
    same_model(source, dataclasses.replace(config, max_length=64))
    with pytest.raises(UserError, match=r"rope_theta: 1000000.0 there, 10000.0 here"):
        same_model(source, dataclasses.replace(config, rope_theta=1e4))


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(source, tmp_path):
    """Out-of-range tokens would silently be clamped to the last row, which gives garbage."""
    WordTokenizer([f"w{i}" for i in range(130)]).save(source)
    with pytest.raises(UserError, match=r"has 132 tokens, but the model has rows for 120"):
        convert(str(source), tmp_path / "target")


def test_ends_of_a_response(source):
    """generation_config.json's, else config.json's, always the tokenizer's; anything but numbers is refused."""
    config = like_of(source)[0].config
    (source / "generation_config.json").unlink()
    held = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(held | {"eos_token_id": [7, 1]}))
    assert load_tokenizer(source, config).stop == (1, 7)
    (source / "generation_config.json").write_text('{"eos_token_id": "<eos>"}')
    with pytest.raises(UserError, match="numbers of tokens are needed"):
        load_tokenizer(source, config)


def test_hub_ids_download_what_is_needed(source, monkeypatch):
    """ORG/NAME and ORG/NAME/SUBFOLDER, without weights where only the config is needed; offline it is one sentence."""
    import huggingface_hub

    asked = []

    def download(repository, allow_patterns):
        asked.append((repository, "*.safetensors" in "".join(allow_patterns)))
        return str(source.parent)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert local_directory("org/name/source") == source
    assert local_directory("org/name", weights=False) == source.parent
    assert asked == [("org/name", True), ("org/name", False)]
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="the hub did not give it"):
        local_directory("org/name")


def break_tensor(source):
    held = load_file(source / "model.safetensors")
    del held["model.norm.weight"]
    save_file(held, source / "model.safetensors")


def break_shape(source):
    held = load_file(source / "model.safetensors")
    held["model.norm.weight"] = held["model.norm.weight"][:-1].copy()
    save_file(held, source / "model.safetensors")


def break_shard(source):
    content = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(content[:-7])


def break_architecture(source):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))


def break_tokenizer(source):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_tensor, r"missing     model.norm.weight \(48,\)"),
        (break_shape, r"misshapen   model.norm.weight: expected \(48,\), found \(47,\)"),
        (break_shard, r"model.safetensors is truncated or damaged"),
        (break_architecture, r"model_type 'mamba' is not one of qwen3, qwen2, llama"),
        (break_tokenizer, r"tokenizer"),
    ],
)
def test_a_damaged_source_leaves_nothing_behind(source, tmp_path, damage, said):
    damage(source)
    with pytest.raises(UserError, match=said):
        convert(str(source), tmp_path / "target")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_failure_while_writing_leaves_nothing_behind(source, tmp_path, monkeypatch):
    """After a full disk, say, neither the target nor its partial twin stays."""

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("e3jax.checkpoint.store.save_params", full)
    with pytest.raises(OSError, match="No space"):
        convert(str(source), tmp_path / "target")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_an_existing_target_is_refused(source, tmp_path):
    (tmp_path / "target").mkdir()
    with pytest.raises(UserError, match="exists: name a new directory"):
        convert(str(source), tmp_path / "target")


def test_command_line(source, tmp_path):
    """There is one line of result, or one sentence and exit status 2 for what the user can correct."""

    def run(*flags):
        return subprocess.run(
            [sys.executable, "-m", "e3jax.tools.convert", *flags], cwd=ROOT, capture_output=True, text=True
        )

    done = run(f"--from={source}", f"--to={tmp_path / 'target'}")
    assert done.returncode == 0 and "parameters, bfloat16, in e3jax format" in done.stdout, done.stderr
    wrong = run(f"--from={tmp_path / 'nowhere'}", f"--to={tmp_path / 'other'}")
    assert wrong.returncode == 2 and "is not a directory" in wrong.stderr and "Traceback" not in wrong.stderr
    assert not (tmp_path / "other").exists()
