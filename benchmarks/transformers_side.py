"""transformers on torch as the benchmarks run it, CPU or GPU; imports neither JAX nor Tunix.

model = random_qwen3(theta=1e6, vocab_size=8192, hidden_size=384, …)
tokens = torch_roll(model, prompts, length_b, batch=64)
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
import transformers

transformers.utils.logging.disable_progress_bar()
PAD, END = 0, 1


def random_qwen3(*, theta: float, device: str = "cpu", **shape):
    """A model of this shape (config.json's fields) with random float32 weights, the same at every call."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
        max_position_embeddings=40_960,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        **shape,
    )
    with torch.device(device):
        model = transformers.Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # ones would hide one that was read into the wrong place
                parameter += 0.1 * torch.randn_like(parameter)
    return model


class StopAtLength(transformers.StoppingCriteria):
    """Row b is done after length_b[b] response tokens."""

    def __init__(self, room: int, length_b: np.ndarray, device):
        self.last_b = torch.from_numpy(room + length_b.astype(np.int64)).to(device)

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
        rows = torch.from_numpy(left_padded(group, room)).to(model.device)
        with torch.inference_mode():
            tokens = model.generate(
                input_ids=rows,
                attention_mask=(rows != PAD).long(),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=int(lengths.max()),
                eos_token_id=None,
                pad_token_id=PAD,
                stopping_criteria=[StopAtLength(room, lengths, model.device)],
            )
        assert tokens.shape[1] == room + lengths.max(), "transformers stopped elsewhere"
        out += [row[room : room + n].cpu().numpy() for row, n in zip(tokens, lengths)]
    return out
