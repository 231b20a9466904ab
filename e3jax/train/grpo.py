"""GRPO stages: roll out, grade, advantages, update.

Path to the equation: configs/*.py -> train/curriculum.py -> here -> losses/grpo.py.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.eval.rollouts import Graded, feature_means, rollout
from e3jax.losses.grpo import group_advantages, grpo_loss, negative_mass, token_weights
from e3jax.metrics.training import rollout_metrics
from e3jax.models.qwen3 import Qwen3
from e3jax.sharding import constrain_params
from e3jax.tasks.stream import problems_at
from e3jax.train.packing import micro_batches, take
from e3jax.train.setup import Run
from e3jax.train.state import apply_gradients, learning_rate, make_optimizer, new_state
from e3jax.train.steps import forward, score
from e3jax.types import Batch, TrainState


@partial(
    jax.jit,
    static_argnames=(
        "model", "temperature", "chunk", "clip_low", "clip_high", "dual_clip", "kl_coef", "kl_estimator",
        "entropy_coef", "tis_cap",
    ),
)  # fmt: skip
def grpo_gradient(model: Qwen3, params, batch: Batch, *, temperature: float, chunk: int, **loss):
    """Gradients and metrics of `grpo_loss` on one micro-batch; sums over micro-batches are the mini-batch's.

    Exact, because `batch.weight` already holds the mini-batch's denominator (tests/test_train_grpo.py).
    """

    def loss_of(params):
        logp, entropy = forward(
            model, params, batch.tokens, temperature=temperature, chunk=chunk,
            position_bt=batch.position, segment_bt=batch.segment,
        )  # fmt: skip
        value, metrics = grpo_loss(logp, entropy, batch, **loss)
        return value, {"total": value, **metrics}

    grads, metrics = jax.grad(loss_of, has_aux=True)(params)
    return constrain_params(grads), metrics


add = jax.jit(lambda total, more: jax.tree.map(jnp.add, total, more), donate_argnums=0)


def score_rows(
    run: Run, params, tokens: np.ndarray, length_b: np.ndarray, *, rows: int, max_length: int, temperature: float
) -> np.ndarray:  # fmt: skip
    """Log-probs [B, T] of whole rollouts under `params`, in length buckets; 0 past a row's bucket."""
    logp = np.zeros(tokens.shape, np.float32)
    for index, width in micro_batches(length_b, rows=rows, max_length=max_length):
        micro = take(tokens, index, width, run.tokenizer.pad)
        scored = np.asarray(score(run.model, params, micro, temperature=temperature, chunk=run.chunk))
        width = min(width, tokens.shape[1])
        logp[index[index >= 0], :width] = scored[index >= 0, :width]
    return logp


def update(
    run: Run, tx, state: TrainState, graded: Graded, advantage_b: np.ndarray, ref_params, *, minibatches: int,
    rows: int, temperature: float, budget: int, weights: dict, loss: dict,
) -> tuple[TrainState, dict[str, float]]:  # fmt: skip
    """All optimiser updates of one RL step: `minibatches` of prompts, each in exact micro-batches of `rows`."""
    r = graded.rollouts
    tokens, mask = (
        r.tokens,
        r.sampled.astype(np.float32),
    )  # EOS is sampled: stopping is an action and is trained
    shapes = dict(rows=rows, max_length=run.prompt_room + budget)  # the same in every step of the stage
    old = score_rows(run, state.params, tokens, r.length, temperature=temperature, **shapes)
    gap = np.abs(old - r.logp)[r.sampled]
    ref = old
    if loss["kl_coef"]:
        ref = score_rows(run, ref_params, tokens, r.length, temperature=temperature, **shapes)
    advantage = np.broadcast_to(advantage_b[:, None], tokens.shape).astype(np.float32)

    values = []
    for part in np.split(np.arange(len(tokens)), minibatches):  # rows are prompt-major: groups stay whole
        weight = token_weights(mask[part], advantage_b=advantage_b[part], max_length=budget, **weights)
        weight = weight.astype(np.float32)
        total = None
        for index, width in micro_batches(r.length[part], **shapes):
            batch = Batch(
                tokens=take(tokens[part], index, width, run.tokenizer.pad),
                position=np.broadcast_to(np.arange(width, dtype=np.int32), (rows, width)),
                segment=np.ones((rows, width), np.int32),
                weight=take(weight, index, width),
                advantage=take(advantage[part], index, width),
                old_logp=take(old[part], index, width),
                ref_logp=take(ref[part], index, width),
                rollout_logp=take(r.logp[part], index, width),
            )
            more = grpo_gradient(run.model, state.params, batch, temperature=temperature, chunk=run.chunk, **loss)
            total = more if total is None else add(total, more)
        grads, metrics = total
        state, optim = apply_gradients(tx, state, grads)
        values.append(
            {f"loss/{k}": v for k, v in metrics.items()}
            | {f"optim/{k}": v for k, v in optim.items()}
            | {"grad/negative_mass": negative_mass(weight, advantage[part])}
        )
    mean = {name: float(np.mean([float(v[name]) for v in values])) for name in values[0]}
    if not loss["kl_coef"]:
        del mean["loss/kl"]  # there was no reference to measure it against
    return state, mean | {
        "parity/logp_max": float(gap.max()),
        "parity/logp_mean": float(gap.mean()),
    }


def train(
    run: Run, params, *, stage: str, stage_index: int, first_step: int, numbers, steps: int, lr: float, warmup: int,
    budget: int, prompts: int, group_size: int, temperature: float, minibatches: int, rows: int, advantage: dict,
    weights: dict, loss: dict, optim: dict, sampler: dict, samples_logged: int,
):  # fmt: skip
    """Train `params` for `steps` RL steps; the KL reference is the stage's start. Returns the final parameters.

    Resumes from the stage's newest checkpoint to the same numbers: problems and noise are functions of (seed, step).
    """
    tx = make_optimizer(lr=lr, warmup=warmup, decay_steps=0, **optim)
    ref_params = params
    state, store = new_state(tx, jax.tree.map(jnp.copy, params)), run.store(stage)
    done = store.latest_step() or 0
    if done:
        state = store.restore(done, state)
    run.log.rewind(stage, done)
    rolled, summary = 0, ""

    def heard(finished: int) -> None:
        nonlocal rolled
        rolled += finished
        phase.advance(0, f"rollouts {rolled}/{prompts * group_size}  {summary}")

    with run.log.phase(f"{stage}: GRPO, budget {budget}", total=steps) as phase:
        phase.advance(done)
        for step in range(done, steps):
            start = time.monotonic()
            first = (first_step + step) * prompts  # no RL stage sees another's problems
            problems = problems_at(
                form=run.form, numbers=numbers, seed=run.seed, split="train", start=first, count=prompts
            )  # fmt: skip
            rolled = 0
            graded = rollout(
                run.model, state.params, run.tokenizer, problems, key=run.key(stage_index, step), first_id=0,
                samples=group_size, budget=budget, temperature=temperature, sampler=sampler, on_finished=heard,
            )  # fmt: skip
            sampled_at = time.monotonic()
            advantage_b = group_advantages(graded.score_b.reshape(prompts, group_size), **advantage).reshape(-1)
            state, values = update(
                run, tx, state, graded, advantage_b, ref_params, minibatches=minibatches, rows=rows,
                temperature=temperature, budget=budget, weights=weights, loss=loss,
            )  # fmt: skip
            end = time.monotonic()
            r = graded.rollouts
            values |= rollout_metrics(
                score_b=graded.score_b, response_len_b=graded.response_len_b, done_b=r.done, entropy_bt=r.entropy,
                sampled_bt=r.sampled, reasons=graded.reasons, advantage_b=advantage_b, group_size=group_size,
            )  # fmt: skip
            values |= feature_means(graded.features)
            values |= {
                "budget": budget, "optim/lr": learning_rate(state),
                "time/step_s": end - start, "time/rollout_s": sampled_at - start,
                "time/update_s": end - sampled_at, "time/rollout_tokens_per_s": r.sampled.sum() / (sampled_at - start),
            }  # fmt: skip
            run.log.metrics(stage, "grpo", step=step + 1, global_step=first_step + step + 1, values=values)
            log_samples(run, stage, step + 1, graded, advantage_b, samples_logged)
            summary = (
                f"reward {values['reward/mean']:.2f}  length {values['length/mean']:.0f}  "
                f"attempts {values['explore/attempts']:.1f}  {values['time/rollout_tokens_per_s']:.0f} tok/s"
            )
            phase.advance(1, summary)
            if (step + 1) % run.save_every == 0 or step + 1 == steps:
                store.save(step + 1, state)
    store.close()
    return state.params


def log_samples(run: Run, stage: str, step: int, graded: Graded, advantage_b: np.ndarray, count: int) -> None:
    """The step's first `count` responses as lines of samples.jsonl."""
    for i in range(min(count, len(graded.texts))):
        run.log.append(
            "samples.jsonl",
            {
                "stage": stage, "step": step, "problem": graded.problems[i].id, "prompt": graded.problems[i].question,
                "response": graded.texts[i], "answer": graded.problems[i].answer, "reward": float(graded.score_b[i]),
                "reason": graded.reasons[i], "length": int(graded.response_len_b[i]),
                "truncated": not bool(graded.rollouts.done[i]), "advantage": float(advantage_b[i]),
            },
        )  # fmt: skip
