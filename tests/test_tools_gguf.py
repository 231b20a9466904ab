"""`python -m e3jax.tools.convert --from=FILE.gguf`: exact weights, transformers' logits, the hub's tokens, refusals.

The tiny files are written here as llama.cpp's converter writes them. SmolLM2 itself: tests/test_smollm2.py.
"""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_hub import POSITIONS, TOKENS, like_of, transformers_logits, write_tiny
from tiny_text import write_qwen3_like

from e3jax.checkpoint.gguf import Gguf, read_gguf
from e3jax.checkpoint.gguf_tokenizer import describe_gguf
from e3jax.checkpoint.hf import load_hf
from e3jax.checkpoint.hf_config import read_config
from e3jax.checkpoint.pretrained import load_pretrained, load_tokenizer
from e3jax.errors import UserError
from e3jax.models.presets import preset
from e3jax.models.qwen3 import unembedding
from e3jax.models.rope import frequencies
from e3jax.sharding import make_mesh
from e3jax.tokenizer import HubTokenizer
from e3jax.tools.convert import convert

gguf = pytest.importorskip("gguf", reason="GGUF files need pip install -e '.[gguf]'")
pytest.importorskip("transformers", reason="convert reads the tokenizer: pip install -e '.[hf]'")

ROOT = Path(__file__).parent.parent
ROWS = 384  # of the embedding: more than the tokenizer has tokens
TEXTS = (
    "What is the answer? The answer is 7.", "72 * 40 + 11:  12  = 2991.\n\n  Not 43", "café, I'll   do\tit 日本語 ½",
    "<|im_start|>user\n7 * 8?<|im_end|>\n<think>\nx\n</think>\n\n",
)  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Return the directory of a small byte-level tokenizer with Qwen3's special tokens and chat format."""
    return write_qwen3_like(tmp_path_factory.mktemp("words"))


def tokenizer_fields(directory: Path, rule: str, rows: int) -> dict:
    """Return the metadata that llama.cpp's converter makes of a Hugging Face tokenizer, filled up to `rows` tokens."""
    held = json.loads((directory / "tokenizer.json").read_text())
    names = json.loads((directory / "tokenizer_config.json").read_text())
    vocab = held["model"]["vocab"] | {t["content"]: t["id"] for t in held["added_tokens"]}
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [5] * rows
    for token, i in vocab.items():
        tokens[i], types[i] = token, 1
    for t in held["added_tokens"]:
        types[t["id"]] = 3 if t["special"] else 4
    merges = [m if isinstance(m, str) else " ".join(m) for m in held["model"]["merges"]]
    template = directory / "chat_template.jinja"
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rule,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": vocab[names["eos_token"]],
        "tokenizer.ggml.padding_token_id": vocab[names["pad_token"]],
        "tokenizer.chat_template": template.read_text() if template.exists() else names["chat_template"],
    }


def model_fields(config: dict) -> dict:
    """Return the metadata that llama.cpp's converter makes of a config.json."""
    of = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(config["rope_theta"]),
        "rope.dimension_count": config["head_dim"],
    }
    scaling = config["rope_scaling"] or {}
    if scaling.get("rope_type") in ("linear", "yarn"):
        of |= {"rope.scaling.type": scaling["rope_type"], "rope.scaling.factor": scaling["factor"]}
    if "original_max_position_embeddings" in scaling and scaling["rope_type"] == "yarn":
        of["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
    return {"general.architecture": config["model_type"]} | {f"{config['model_type']}.{k}": v for k, v in of.items()}


def write_gguf(path: Path, model: Path, fields: dict, *, kind: str = "F32") -> Path:
    """Write a Hugging Face directory's weights as llama.cpp does: matrices in `kind`, norms and biases in float32."""
    config, types = json.loads((model / "config.json").read_text()), gguf.GGMLQuantizationType
    architecture = config["model_type"]
    writer = gguf.GGUFWriter(path, fields.get("general.architecture", architecture))
    for key, value in fields.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if key != "general.architecture":  # which the writer adds itself
            add.get(type(value), writer.add_array)(key, value)
    (number,) = (n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config["num_hidden_layers"])
    for name, tensor in load_file(model / "model.safetensors").items():
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            half = tensor.reshape(heads, 2, -1, tensor.shape[1])  # convert_hf_to_gguf.py, LlamaModel.permute
            tensor = half.swapaxes(1, 2).reshape(tensor.shape)
        of = types[kind] if tensor.ndim == 2 else types.F32
        data = gguf.quantize(tensor.astype(np.float32), of)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), data, raw_dtype=of)
    if (config["rope_scaling"] or {}).get("rope_type") == "llama3":
        c = read_config(model)
        unscaled, scaled = (frequencies(c.head_width, c.rope_theta, s) for s in (None, c.rope_scaling))
        writer.add_tensor("rope_freqs.weight", unscaled / scaled)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_gguf(
    directory: Path, words: Path, case: str, *, rule: str, kind: str = "F32", leave_out=(), add=None, **config
):
    """Write a tiny model of tiny_hub's CASES as a Hugging Face directory and as GGUF, and return both paths."""
    model = write_tiny(
        directory / "model", case, dtype="float16" if kind == "F16" else "float32", vocab_size=ROWS, **config
    )
    fields = model_fields(json.loads((model / "config.json").read_text())) | tokenizer_fields(words, rule, ROWS)
    fields = {key: value for key, value in (fields | (add or {})).items() if key not in leave_out}
    return model, write_gguf(directory / "tiny.gguf", model, fields, kind=kind)


CASES = [
    ("llama-3.2", "llama-bpe", "F32", {}),
    ("llama-3.2", "smollm", "F16", {"num_key_value_heads": 2, "rope_scaling": None}),
    ("qwen3-tied", "qwen2", "F16", {}),
    ("qwen3-untied-one-kv-head", "qwen2", "F32", {}),
    ("qwen3-yarn", "qwen2", "F32", {}),
    ("qwen3-linear", "qwen2", "F32", {}),
    ("qwen2.5", "qwen2", "F32", {}),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[2]}")
def converted(request, words, tmp_path_factory):
    """Return a tiny model's directory and the one that its GGUF file was converted to."""
    (case, rule, kind, changes), directory = request.param, tmp_path_factory.mktemp("converted")
    model, file = tiny_gguf(directory, words, case, rule=rule, kind=kind, **changes)
    done = convert(str(file), directory / "out")
    assert done.endswith("parameters, float32, in Hugging Face format")
    return model, directory / "out"


def test_weights_are_exact(converted):
    """Every tensor of a float32 or float16 file is bit for bit the one that was written, and so is the config."""
    model, out = converted
    assert read_config(out) == read_config(model)
    want, got = (load_file(directory / "model.safetensors") for directory in converted)
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == np.float32
        np.testing.assert_array_equal(got[name], tensor.astype(np.float32), err_msg=name)


def test_logits_are_those_of_transformers(converted):
    """Rows of q or k in the wrong place, or a lost RoPE scaling, change logits and raise no error."""
    pytest.importorskip("torch", reason="parity needs pip install -e '.[parity]'")
    import transformers

    _, out = converted
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager").eval()
    ours, like = like_of(out)
    params = load_hf(out, like)
    hidden, _ = jax.jit(ours.apply)({"params": params}, TOKENS, POSITIONS)
    logits = hidden @ unembedding(params).T
    np.testing.assert_allclose(logits, transformers_logits(theirs, TOKENS, POSITIONS), atol=1e-4)


@pytest.mark.parametrize(("kind", "error"), [("Q8_0", 0.01), ("Q4_1", 0.15), ("BF16", 0.005)])
def test_quantised_weights(kind, error, words, tmp_path):
    """They are what gguf makes of its own blocks, in either dtype, and near the weights before."""
    _, file = tiny_gguf(
        tmp_path,
        words,
        "llama-3.2",
        rule="smollm",
        kind=kind,
        hidden_size=64,
        intermediate_size=96,
        num_key_value_heads=2,
    )
    convert(str(file), tmp_path / "out")
    convert(str(file), tmp_path / "half", dtype="bfloat16")
    of = gguf.GGMLQuantizationType[kind]
    want, got, half = (load_file(tmp_path / d / "model.safetensors") for d in ("model", "out", "half"))
    for name, tensor in want.items():
        exact = gguf.dequantize(gguf.quantize(tensor, of), of) if tensor.ndim == 2 else tensor  # row by row
        np.testing.assert_array_equal(got[name], exact, err_msg=name)
        np.testing.assert_array_equal(half[name], exact.astype(jnp.bfloat16), err_msg=name)
        assert np.abs(exact - tensor).max() < error * np.abs(tensor).max(), name
    assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == "bfloat16"


def test_e3jax_loads_it_and_tokens_can_be_added(words, tmp_path):
    """Ends of a response, padding, chat format, new tokens: all are there for sampling and training."""
    end, turn = (HubTokenizer(str(words)).id(name) for name in ("<|im_end|>", "<|endoftext|>"))
    add = {
        "tokenizer.ggml.eot_token_id": turn,
        "tokenizer.ggml.bos_token_id": turn,
        "tokenizer.ggml.add_bos_token": True,
    }
    _, file = tiny_gguf(tmp_path, words, "qwen3-tied", rule="qwen2", add=add)
    convert(str(file), tmp_path / "out", add_tokens=["<PLAN>"])
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    tokenizer = load_pretrained(str(tmp_path / "out"), dtype="float32", mesh=mesh).tokenizer
    before = HubTokenizer(str(words))
    assert tokenizer.stop == (end, turn) and tokenizer.pad == before.pad and tokenizer.bos == turn
    assert tokenizer.id("<PLAN>") == before.vocab_size and tokenizer.vocab_size == before.vocab_size + 1
    assert tokenizer.encode("yes", begin=True) == [turn, *before.encode("yes")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out", "tiny.gguf"]


def test_tokens_are_those_of_the_hubs_tokenizer(qwen3_files, tmp_path):
    """The rule for splitting text is not in the file; a wrong one gives other tokens, which the model never saw."""
    before = HubTokenizer(str(qwen3_files))
    small = before.vocab_size < 1000
    rows, rule = (ROWS, "smollm") if small else (151_936, "qwen2")
    config = preset("qwen3-0.6b" if not small else "smollm2-135m")
    file = Gguf(Path("x.gguf"), tokenizer_fields(qwen3_files, rule, rows), {}, config)
    describe_gguf(file, tmp_path)
    after = load_tokenizer(tmp_path, config)
    assert (after.vocab_size, after.eos, after.pad) == (before.vocab_size, before.eos, before.pad)
    for text in TEXTS:
        assert after.encode(text) == before.encode(text), text
        assert after.decode(after.encode(text)) == before.decode(before.encode(text))
    for thinking in (True, False):
        messages = [{"role": "user", "content": TEXTS[1]}]
        assert after.chat(messages, thinking=thinking) == before.chat(messages, thinking=thinking)


def test_llama3_keeps_three_digits_together_and_begins_texts(words, tmp_path):
    """Llama 3's words hold up to three digits, and its raw texts begin with a token even where the file is silent."""
    fields = tokenizer_fields(words, "llama-bpe", ROWS)
    fields["tokenizer.ggml.bos_token_id"] = begin = fields["tokenizer.ggml.padding_token_id"]
    unused = fields["tokenizer.ggml.token_type"].index(5)
    for i, (token, merge) in enumerate([("12", "1 2"), ("123", "12 3"), ("1234", "123 4")]):
        fields["tokenizer.ggml.tokens"][unused + i], fields["tokenizer.ggml.token_type"][unused + i] = token, 1
        fields["tokenizer.ggml.merges"].append(merge)
    describe_gguf(Gguf(Path("x.gguf"), fields, {}, preset("smollm2-135m")), tmp_path)
    tokenizer = load_tokenizer(tmp_path, preset("smollm2-135m"))
    assert [tokenizer.decode([t]) for t in tokenizer.encode("12345")] == ["123", "4", "5"]
    assert tokenizer.encode("12", begin=True) == [begin, *tokenizer.encode("12")]


# ---------------------------------------------------------------- bad input: one sentence each


LLAMA = "llama.attention."
REFUSED = {
    "another architecture": ({"general.architecture": "gemma2"}, (), "holds a model of architecture 'gemma2'; only"),
    "no EOS": ({}, ["tokenizer.ggml.eos_token_id"], "its tokenizer has no EOS"),
    "EOS is no token": ({"tokenizer.ggml.eos_token_id": 999}, (), "eos_token_id=999 is not the number"),
    "SentencePiece": ({"tokenizer.ggml.model": "llama"}, (), "only byte-level BPE"),
    "another rule": ({"tokenizer.ggml.pre": "tekken"}, (), "tokenizer.ggml.pre='tekken' is not supported"),
    "damaged merges": ({"tokenizer.ggml.merges": ["Ġ nowhere"]}, (), "joins what are no tokens"),
    "one of parts": ({"split.count": 3}, (), "is one of 3 parts"),
    "experts": ({"llama.expert_count": 8}, (), "llama.expert_count=8 is not supported"),
    "half rotated": ({"llama.rope.dimension_count": 8}, (), "rope.dimension_count=8 is not supported"),
    "unknown scaling": ({"llama.rope.scaling.type": "longrope"}, (), "rope.scaling.type='longrope'"),
    "no width": ({}, ["llama.embedding_length"], "it lacks llama.embedding_length"),
    "no such heads": ({LLAMA + "head_count": 3}, (), "heads=3 is not a multiple of kv_heads=2"),
    "other shapes": ({"llama.feed_forward_length": 81}, (), "does not fit its metadata, 6 tensors"),
    "a layer more": ({"llama.block_count": 3}, (), "missing     model.layers.2.input_layernorm.weight"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_one_sentence(name, words, tmp_path):
    """It says what is wrong with which file, and leaves nothing behind."""
    add, leave_out, said = REFUSED[name]
    changes = {"num_key_value_heads": 2, "rope_scaling": None}
    _, file = tiny_gguf(tmp_path, words, "llama-3.2", rule="smollm", add=add, leave_out=leave_out, **changes)
    with pytest.raises(UserError, match=r"tiny\.gguf") as error:
        convert(str(file), tmp_path / "out")
    assert said in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "tiny.gguf"]


def test_damaged_files_are_one_sentence(words, tmp_path):
    """Cut anywhere, or with a length of 2^60, which kept gguf's own reader busy for ever."""
    _, file = tiny_gguf(tmp_path, words, "qwen3-tied", rule="qwen2")
    whole, cut = file.read_bytes(), tmp_path / "cut.gguf"
    begin = gguf.GGUFReader(file).data_offset
    lengths = [
        4,
        9,
        25,
        *range(60, begin, begin // 7),
        begin - 9,
        begin + 5,
        (begin + len(whole)) // 2,
        len(whole) - 40,
    ]
    for length in lengths:
        cut.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut.gguf is truncated or damaged \(.*\): download it again"):
            convert(str(cut), tmp_path / "out")
    at = whole.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 8
    cut.write_bytes(whole[:at] + (1 << 60).to_bytes(8, "little") + whole[at + 8 :])
    with pytest.raises(UserError, match="truncated or damaged"):
        convert(str(cut), tmp_path / "out")
    for content in (b"", b"GG", b"PK\x03\x04 a wheel"):
        cut.write_bytes(content)
        with pytest.raises(UserError, match=r"cut.gguf is not a GGUF file: it begins with"):
            convert(str(cut), tmp_path / "out")
    with pytest.raises(UserError, match=r"nowhere.gguf is not a file"):
        convert("nowhere.gguf", tmp_path / "out")


def test_another_scaling_than_llama_3s_is_refused(words, tmp_path):
    """The factors do not say by which rule they were made; Llama 3's rule must give them."""
    _, file = tiny_gguf(tmp_path, words, "llama-3.2", rule="smollm")
    held = read_gguf(file).tensors["rope_freqs.weight"]
    assert held.data.max() == 32
    content = bytearray(file.read_bytes())
    content[held.data_offset : held.data_offset + 4] = np.float32(1.5).tobytes()
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"rope_freqs.weight is not supported: its factors are not those of Llama 3.1"):
        convert(str(file), tmp_path / "out")


def test_without_gguf_the_extra_is_named(words, tmp_path, monkeypatch):
    """Only who converts such a file needs the package."""
    _, file = tiny_gguf(tmp_path, words, "qwen3-tied", rule="qwen2")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"GGUF files need the gguf package \(.*\): pip install -e '.\[gguf\]'"):
        convert(str(file), tmp_path / "out")


def test_command_line(words, tmp_path):
    """A truncated file ends with exit status 2 and without a traceback."""
    _, file = tiny_gguf(tmp_path, words, "qwen3-tied", rule="qwen2")
    file.write_bytes(file.read_bytes()[:-1000])
    command = [sys.executable, "-m", "e3jax.tools.convert", f"--from={file}", f"--to={tmp_path / 'out'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "is truncated or damaged" in done.stderr and "Traceback" not in done.stderr


# ---------------------------------------------------------------- the real model
