"""The peers: transformers on torch, and Tunix; the same random Qwen3 in all, the same lengths enforced in each.

How a length is enforced, since random weights end no text: transformers gets a stopping criterion that is true row by
row; Tunix's sampler a last step that is that of the batch's longest row (its own loop, without an end token). The
virtual environment: benchmarks/README.md.
"""

import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import ours
import torch
import transformers
from flax import nnx
from ours import BETAS, CLIP, DECAY, GRAD_CLIP, LR
from transformers_side import END, PAD, random_qwen3
from tunix.generate import sampler as tunix_sampler
from tunix.models.qwen3 import model as tunix_qwen3
from tunix.models.qwen3 import params as tunix_params
from tunix.rl import algo_core, rl_cluster
from tunix.rl import trainer as tunix_rl_trainer
from tunix.rl.grpo import grpo_learner

logging.getLogger("absl").setLevel(logging.ERROR)
AGREE = 1e-4  # of logits; 5e-6 measured
SHAPES = {  # θ is 1e6 in all: Tunix 0.1.7 has a field for it and does not read it
    "17m": dict(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1152,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
    ),
    "tiny": dict(
        vocab_size=210,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
    ),
}
BUDGETS = {"17m": 1024, "tiny": 384}


# ---- the checkpoint


def checkpoint(name: str, directory: Path) -> Path:
    """Random weights of a model, made by transformers once: DIR/NAME with config.json and model.safetensors."""
    path = directory / name
    if not (path / "model.safetensors").exists():
        model = random_qwen3(theta=1e6, **SHAPES[name])
        model.save_pretrained(path)
    return path


def load_torch(path: Path):
    """transformers' model in float32, with its default attention (sdpa)."""
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def load_tunix(path: Path, *, remat: str = "NONE"):
    """Tunix's Qwen3 with the same weights, read by its own loader."""
    c = json.loads((path / "config.json").read_text())
    config = tunix_qwen3.ModelConfig(
        num_layers=c["num_hidden_layers"],
        vocab_size=c["vocab_size"],
        embed_dim=c["hidden_size"],
        hidden_dim=c["intermediate_size"],
        num_heads=c["num_attention_heads"],
        head_dim=c["head_dim"],
        num_kv_heads=c["num_key_value_heads"],
        rope_theta=1_000_000,
        norm_eps=c["rms_norm_eps"],
        use_tied_embedding=True,
        remat_config=tunix_qwen3.RematConfig[remat],
    )
    return tunix_params.create_model_from_safe_tensors(str(path), config, tunix_mesh(), dtype=jnp.float32)


def tunix_mesh():
    """One device under the two axes that Tunix's models name: with two of a CPU its step is slower, `17m`'s hangs."""
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))


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
            [sampler.tokenizer.decode(p) for p in group],
            max_generation_steps=budget,
            max_prompt_length=room,
            eos_tokens=[-1],
            temperature=1.0,
            top_p=1.0,
            top_k=None,
            seed=seed + start,
        )
        rows = [np.asarray(tokens) for tokens in found.tokens]
        longest = np.stack([row[: lengths.max()] for row in rows])
        assert (longest != PAD).mean() > 0.9, "Tunix stopped early"  # a token that looks like padding may be sampled
        assert all((row[lengths.max() :] == PAD).all() for row in rows), "Tunix went on"
        out += [row[:n] for row, n in zip(rows, lengths)]
    return out


# ---- training with transformers on torch


def rows_of(work, index, width: int):
    """Tokens [B, width] and weight, old log-prob of some responses of a `Work` (training.py), as torch's tensors."""
    return [
        torch.from_numpy(array[index, :width]).to(kind)
        for array, kind in ((work.tokens, torch.long), (work.weight, torch.float32), (work.old_logp, torch.float32))
    ]


def torch_update(model, optimizer, work, *, batch: int, variant: str) -> tuple[float, float]:
    """Clipped policy gradient of all responses in micro-batches of `batch` rows, then AdamW. -> loss, gradient norm.

    naive   rows as they come, padded to the longest of all, with a padding mask
    sorted  by length, so that each micro-batch is only as wide as its longest row
    tuned   sorted, no mask (a causal model needs none for padding on the right), logits of response tokens only
    """
    order = np.arange(len(work.length)) if variant == "naive" else np.argsort(-work.length, kind="stable")
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for start in range(0, len(order), batch):
        index = order[start : start + batch]
        width = int(work.length.max() if variant == "naive" else work.length[index].max())
        tokens, weight, old_logp = rows_of(work, index, width)
        targets, weight, old_logp = tokens[:, 1:], weight[:, 1:], old_logp[:, 1:]
        advantage = torch.from_numpy(work.advantage_b[index]).float()[:, None].expand_as(weight)
        if variant == "tuned":
            chosen = weight != 0
            hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
            logits = model.lm_head(hidden[chosen])
            targets, weight, old_logp, advantage = (x[chosen] for x in (targets, weight, old_logp, advantage))
        else:
            mask = torch.arange(width)[None] < torch.from_numpy(work.length[index])[:, None]
            logits = model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits[:, :-1]
        logp = -torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
        ratio = torch.exp(logp.view_as(weight) - old_logp)
        pg = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP))
        loss = (weight * pg).sum()
        loss.backward()
        total += float(loss.detach())
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
    optimizer.step()
    return total, float(norm)


def torch_optimizer(model):
    """AdamW with ours' constants, in its fused form."""
    return torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=DECAY, fused=True)


# ---- training with Tunix


def tunix_config(*, kl: float):
    """Its GRPO with a mean over tokens, as ours is run here."""
    config = grpo_learner.GRPOConfig(
        num_generations=8, beta=kl, epsilon=CLIP, loss_agg_mode="token-mean", kl_loss_mode="low_var_kl"
    )
    config.temperature = 1.0
    return config


def tunix_example(work, index, *, room: int, budget: int):
    """Rows in Tunix's layout: the prompt padded on the left to `room`, the response on the right to `budget`."""
    b = len(index)
    prompt, completion = np.full((b, room), PAD, np.int32), np.full((b, budget), PAD, np.int32)
    old_logp = np.zeros((b, budget), np.float32)
    for row, i in enumerate(index):
        n, end = work.prompt_len[i], work.length[i]
        prompt[row, room - n :] = work.tokens[i, :n]
        completion[row, : end - n] = work.tokens[i, n:end]
        old_logp[row, : end - n] = work.old_logp[i, n:end]
    return grpo_learner.TrainExample(
        prompt_ids=jnp.asarray(prompt),
        prompt_mask=jnp.asarray(prompt != PAD),
        completion_ids=jnp.asarray(completion),
        completion_mask=jnp.asarray(completion != PAD),
        advantages=jnp.asarray(work.advantage_b[index], jnp.float32),
        ref_per_token_logps=None,
        old_per_token_logps=jnp.asarray(old_logp),
    )


def tunix_optimizer():
    """Clipping and AdamW with ours' constants."""
    adamw = optax.adamw(LR, b1=BETAS[0], b2=BETAS[1], weight_decay=DECAY)
    return optax.chain(optax.clip_by_global_norm(GRAD_CLIP), adamw)


def tunix_trainer(model, *, micro: int):
    """Tunix's own RL trainer with its GRPO loss, `micro` micro-batches to an update."""
    config = rl_cluster.RLTrainingConfig(
        actor_optimizer=tunix_optimizer(), eval_every_n_steps=1_000_000, mini_batch_size=micro, train_micro_batch_size=1
    )
    trainer = tunix_rl_trainer.Trainer(model, tunix_optimizer(), config, custom_checkpoint_metadata_fn=dict)
    trainer.is_managed_externally = True  # as in its learner: many calls of `train`
    trainer.with_loss_fn(tunix_loss, has_aux=True)
    trainer.with_gen_model_input_fn(lambda x: {"train_example": x, "algo_config": tunix_config(kl=0.0)})
    return trainer


def tunix_loss(model, train_example, algo_config):
    """Its registered GRPO loss."""
    return algo_core.grpo_loss_fn(model, train_example, tunix_config(kl=0.0), pad_id=PAD, eos_id=END)


def tunix_loss_and_norm(model, example) -> tuple[float, float]:
    """Value and gradient norm of one example."""
    (loss, _), grads = nnx.value_and_grad(tunix_loss, has_aux=True)(model, example, None)
    return float(loss), float(optax.global_norm(grads))


def tunix_update(trainer, work, *, batch: int, room: int, budget: int) -> None:
    """All responses once through the trainer, then its parameters awaited."""
    index = np.arange(len(work.length))
    examples = (
        tunix_example(work, index[start : start + batch], room=room, budget=budget)
        for start in range(0, len(index), batch)
    )
    with tunix_mesh():
        trainer.train(examples)
    jax.block_until_ready(nnx.state(trainer.model))
