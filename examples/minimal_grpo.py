"""GRPO on one page: sample, grade, compare within a group, update. Read it from top to bottom.

    python examples/minimal_grpo.py runs/quickstart/checkpoints/base/700 --steps=10

The model is any checkpoint that e3jax loads and that solves a problem now and then: of the quickstart (its base model,
above), of another run, or a Hugging Face directory with --form=paper. Needs `pip install -e '.[hf]'` for its tokenizer.

This is the algorithm of e3jax/train/grpo.py without what a long run needs beside it: packing several responses into a
row, micro-batches, checkpoints and resuming, graders in processes of their own, records, several hosts. On the same
batch both give the same loss and the same parameters (tests/test_examples.py).

Axes: B = P · G responses of P prompts, G each; T tokens of prompt, response and padding.
"""

import argparse
from functools import partial

import jax
import numpy as np
import optax

from e3jax.checkpoint.pretrained import load_pretrained
from e3jax.losses.grpo import GrpoLoss, group_advantages, grpo_loss, token_weights
from e3jax.losses.tokens import next_token_logp_and_entropy
from e3jax.models.qwen3 import unembedding
from e3jax.sampler.plan import Sampling
from e3jax.sampler.slots import Requests, sample
from e3jax.sharding import make_mesh
from e3jax.tasks.grade import grade_one
from e3jax.tasks.table import TASKS
from e3jax.types import Batch, Rollouts

LOSS = GrpoLoss(
    clip_low=0.2, clip_high=0.5, dual_clip=3.0, kl_coef=0.001, kl_estimator="k3", entropy_coef=0.0, tis_cap=None
)


def roll_out(model, params, tokenizer, problems, *, key, group_size: int, budget: int) -> Rollouts:
    """Sample G responses to each problem; row p · G + g is the g-th response to problem p."""
    prompts = [tokenizer.encode(problem.question) for problem in problems]
    requests = Requests(prompts, ids=range(len(prompts)), samples=group_size, budget=budget)
    sampling = Sampling(temperature=1.0, slots=len(prompts) * group_size, prefill_rows=len(prompts))
    return sample(model, params, requests, sampling, key=key, stop=tokenizer.stop, pad=tokenizer.pad)


def rewards(tokenizer, problems, r: Rollouts, group_size: int) -> np.ndarray:
    """Return 1 for a right response and 0 for another, float64 [P, G]; a response that the budget cut is wrong."""
    scores = []
    for i in range(len(r.tokens)):
        text = tokenizer.decode(r.tokens[i, r.prompt_len[i] : r.length[i]].tolist())
        scores.append(grade_one(problems[i // group_size], text, bool(r.done[i])).score)
    return np.array(scores).reshape(-1, group_size)


def forward(model, params, tokens_bt, position_bt, segment_bt):
    """Return log p(token) and entropy of every token, [B, T] each, aligned with the token itself."""
    hidden_btd, _ = model.apply({"params": params}, tokens_bt, position_bt, segment_bt=segment_bt)
    return next_token_logp_and_entropy(hidden_btd, unembedding(params), tokens_bt, temperature=1.0, chunk=8192)


@partial(jax.jit, static_argnames="model")
def log_probs(model, params, tokens_bt, position_bt, segment_bt):
    """Return log p(token) [B, T] without gradients: of the old policy, of the reference."""
    return forward(model, params, tokens_bt, position_bt, segment_bt)[0]


def make_batch(model, params, reference, r: Rollouts, advantage_pg: np.ndarray) -> Batch:
    """Everything that the loss reads. Sampled tokens are trained, EOS among them; the prompt and padding are not."""
    rows, width = r.tokens.shape
    position_bt = np.broadcast_to(np.arange(width), (rows, width)).astype(np.int32)
    segment_bt = (position_bt < r.length[:, None]).astype(np.int32)  # attention stays within a segment; 0 is padding
    mask_bt, advantage_b = r.sampled.astype(np.float32), advantage_pg.reshape(-1)
    return Batch(
        tokens=r.tokens,
        position=position_bt,
        segment=segment_bt,
        weight=token_weights(  # mask / denominator: the loss is a sum over it
            mask_bt, aggregation="sequence_mean", max_length=None, gradients="all", denominator="shrunken"
        ).astype(np.float32),
        advantage=(advantage_b[:, None] * mask_bt).astype(np.float32),
        old_logp=log_probs(model, params, r.tokens, position_bt, segment_bt),
        ref_logp=log_probs(model, reference, r.tokens, position_bt, segment_bt),
        rollout_logp=r.logp,
    )


@partial(jax.jit, static_argnames=("model", "tx"))
def update(model, tx, params, opt_state, batch: Batch):
    """Return the parameters and optimiser state after one step, and the loss with its parts."""

    def loss_of(params):
        logp_bt, entropy_bt = forward(model, params, batch.tokens, batch.position, batch.segment)
        return grpo_loss(logp_bt, entropy_bt, batch, LOSS)

    (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, {"total": loss, **metrics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint of a run, a Hugging Face directory, or a hub id")
    parser.add_argument("--form", default="calculator", help="of Countdown: calculator (tiny models) or paper")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=16, help="problems a step")
    parser.add_argument("--group_size", type=int, default=8, help="responses a problem")
    parser.add_argument("--budget", type=int, default=96, help="tokens of a response")
    parser.add_argument("--lr", type=float, default=2e-4)
    args = parser.parse_args()

    model, params, tokenizer = load_pretrained(args.model, dtype="float32", mesh=make_mesh(data=1, fsdp=-1, tensor=1))
    reference = params  # the KL term holds the policy near the model that it started from
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(args.lr, b1=0.9, b2=0.95, weight_decay=0.01))
    opt_state = tx.init(params)
    draw = TASKS[args.form].open((3,), seed=0, split="train")
    for step in range(args.steps):
        problems = draw(step * args.prompts, args.prompts)
        key = jax.random.fold_in(jax.random.key(0), step)
        r = roll_out(model, params, tokenizer, problems, key=key, group_size=args.group_size, budget=args.budget)
        reward_pg = rewards(tokenizer, problems, r, args.group_size)
        advantage_pg = group_advantages(reward_pg, normalize_std=True, ddof=1, epsilon=1e-6)
        batch = make_batch(model, params, reference, r, advantage_pg)
        params, opt_state, metrics = update(model, tx, params, opt_state, batch)
        length = (r.length - r.prompt_len).mean()
        print(f"step {step + 1}: reward {reward_pg.mean():.2f}  length {length:.0f}  loss {metrics['total']:+.4f}")


if __name__ == "__main__":
    main()
