"""The peers: transformers on torch, and Tunix; the same random Qwen3 in all, the same lengths enforced in each.

How a length is enforced, since random weights end no text: transformers gets a stopping criterion that is true row by
row; Tunix's sampler a last step that is that of the batch's longest row (its own loop, without an end token). The
virtual environment: benchmarks/README.md.
"""

import json
import logging
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import jax.numpy as jnp
import numpy as np
import ours
import torch
import transformers
from tunix.generate import sampler as tunix_sampler
from tunix.models.qwen3 import model as tunix_qwen3
from tunix.models.qwen3 import params as tunix_params

logging.getLogger("absl").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()
PAD, END = 0, 1
AGREE = 1e-4  # of logits; 5e-6 measured
SHAPES = {  # θ is 1e6 in all: Tunix 0.1.7 has a field for it and does not read it
    "17m": dict(
        vocab_size=8192, hidden_size=384, intermediate_size=1152, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=2, head_dim=64,
    ),
    "tiny": dict(
        vocab_size=210, hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32,
    ),
}  # fmt: skip
BUDGETS = {"17m": 1024, "tiny": 384}


# ---- the checkpoint


def checkpoint(name: str, directory: Path) -> Path:
    """Random weights of a model, made by transformers once: DIR/NAME with config.json and model.safetensors."""
    path = directory / name
    if not (path / "model.safetensors").exists():
        torch.manual_seed(0)
        config = transformers.Qwen3Config(
            **SHAPES[name], max_position_embeddings=40_960, rms_norm_eps=1e-6, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6}, pad_token_id=PAD, eos_token_id=END,
            bos_token_id=None,
        )  # fmt: skip
        model = transformers.Qwen3ForCausalLM(config)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "norm" in parameter_name:  # ones would hide one that was read into the wrong place
                    parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(path)
    return path


def load_torch(path: Path):
    """transformers' model in float32, with its default attention (sdpa)."""
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def load_tunix(path: Path, *, remat: str = "NONE"):
    """Tunix's Qwen3 with the same weights, read by its own loader."""
    c = json.loads((path / "config.json").read_text())
    config = tunix_qwen3.ModelConfig(
        num_layers=c["num_hidden_layers"], vocab_size=c["vocab_size"], embed_dim=c["hidden_size"],
        hidden_dim=c["intermediate_size"], num_heads=c["num_attention_heads"], head_dim=c["head_dim"],
        num_kv_heads=c["num_key_value_heads"], rope_theta=1_000_000, norm_eps=c["rms_norm_eps"],
        use_tied_embedding=True, remat_config=tunix_qwen3.RematConfig[remat],
    )  # fmt: skip
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(-1, 1), ("fsdp", "tp"))
    return tunix_params.create_model_from_safe_tensors(str(path), config, mesh, dtype=jnp.float32), mesh


def check_logits(side: ours.Ours, torch_model, tunix_model) -> float:
    """Largest difference of logits between any two of the three; more than AGREE ends the run."""
    token_bt = np.random.default_rng(3).integers(2, side.model.config.vocab_size, (3, 48)).astype(np.int32)
    with torch.inference_mode():
        theirs = torch_model(input_ids=torch.from_numpy(token_bt).long()).logits.numpy()
    found = [ours.logits(side, token_bt), theirs]
    if tunix_model is not None:
        b, t = token_bt.shape
        causal = jnp.broadcast_to(jnp.tril(jnp.ones((t, t), bool)), (b, t, t))
        position_bt = jnp.broadcast_to(jnp.arange(t), (b, t))
        found.append(np.asarray(tunix_model(jnp.asarray(token_bt), position_bt, None, causal)[0]))
    gap = max(float(np.abs(found[0] - other).max()) for other in found[1:])
    if gap > AGREE:
        raise SystemExit(f"logits differ by {gap:.2g}, allowed are {AGREE}: not the same model, nothing to compare")
    return gap


# ---- sampling with transformers


class StopAtLength(transformers.StoppingCriteria):
    """Row b is done after length_b[b] response tokens."""

    def __init__(self, room: int, length_b: np.ndarray):
        self.last_b = torch.from_numpy(room + length_b.astype(np.int64))

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.shape[1] >= self.last_b


def left_padded(prompts, width: int) -> np.ndarray:
    """[B, width] int64."""
    rows = np.full((len(prompts), width), PAD, np.int64)
    for row, prompt in zip(rows, prompts):
        row[width - len(prompt) :] = prompt
    return rows


def torch_roll(model, prompts, length_b: np.ndarray, *, batch: int) -> list[np.ndarray]:
    """One response per prompt (give it repeated prompts), in batches as they come; generate's dynamic cache."""
    out = []
    for start in range(0, len(prompts), batch):
        group, lengths = prompts[start : start + batch], length_b[start : start + batch]
        room = max(map(len, group))
        rows = torch.from_numpy(left_padded(group, room))
        with torch.inference_mode():
            tokens = model.generate(
                input_ids=rows, attention_mask=(rows != PAD).long(), do_sample=True, temperature=1.0, top_k=0,
                top_p=1.0, max_new_tokens=int(lengths.max()), eos_token_id=None, pad_token_id=PAD,
                stopping_criteria=[StopAtLength(room, lengths)],
            )  # fmt: skip
        assert tokens.shape[1] == room + lengths.max(), "transformers stopped elsewhere"
        out += [row[room : room + n].numpy() for row, n in zip(tokens, lengths)]
    return out


# ---- sampling with Tunix


class Numbers:
    """A tokenizer whose text is token numbers with blanks between: "17 4 2088"."""

    def encode(self, text: str) -> list[int]:
        return list(map(int, text.split()))

    def decode(self, ids) -> str:
        return " ".join(map(str, ids))

    def bos_id(self):
        return None

    def eos_id(self) -> int:
        return END

    def pad_id(self) -> int:
        return PAD


class TunixSampler(tunix_sampler.Sampler):
    """Tunix's sampler whose loop ends with the longest row of the batch, `self.longest` response tokens."""

    longest = 0

    def init_sample_state(self, all_input_ids, *args, **kwargs):
        state = super().init_sample_state(all_input_ids, *args, **kwargs)
        # the prefill samples the first token, and the loop's last step the token at `total_sampling_steps`
        return state.replace(total_sampling_steps=all_input_ids.shape[1] + self.longest - 1)


def tunix_side(model, *, room: int, budget: int) -> TunixSampler:
    """A sampler whose cache holds prompt room and budget, no more."""
    c = model.config
    cache = tunix_sampler.CacheConfig(room + budget, c.num_layers, c.num_kv_heads, c.head_dim)
    return TunixSampler(model, Numbers(), cache)


def tunix_roll(sampler: TunixSampler, prompts, length_b: np.ndarray, *, batch: int, room: int, budget: int, seed: int):
    """As `torch_roll`."""
    out = []
    for start in range(0, len(prompts), batch):
        group, lengths = prompts[start : start + batch], length_b[start : start + batch]
        sampler.longest = int(lengths.max())
        found = sampler(
            [sampler.tokenizer.decode(p) for p in group], max_generation_steps=budget, max_prompt_length=room,
            eos_tokens=[-1], temperature=1.0, top_p=1.0, top_k=None, seed=seed + start,
        )  # fmt: skip
        rows = [np.asarray(tokens) for tokens in found.tokens]
        longest = np.stack([row[: lengths.max()] for row in rows])
        assert (longest != PAD).mean() > 0.9, "Tunix stopped early"  # a token that looks like padding may be sampled
        assert all((row[lengths.max() :] == PAD).all() for row in rows), "Tunix went on"
        out += [row[:n] for row, n in zip(rows, lengths)]
    return out
