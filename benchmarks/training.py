"""What an optimiser update is timed on, and our side of it; imports neither torch nor Tunix.

work = make_work(prompts, length_pg, vocabulary=8192, seed=1)
trainer = OurTrainer(ours.load(directory, remat="matmuls"), chunk=8192, room=100)
values = trainer.update(work, rows=4, budget=1024)
"""

from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import ours

from configs.common import base_config
from e3jax.losses.grpo import GrpoLoss, group_advantages, token_weights
from e3jax.sections import build
from e3jax.train.grpo import GrpoStage, update
from e3jax.train.state import Optimizer, make_optimizer, new_state
from e3jax.types import Rollouts

WEIGHTS = dict(aggregation="token_mean", gradients="all", denominator="shrunken", closing="", closing_match="text")
LOSS = GrpoLoss(
    clip_low=ours.CLIP,
    clip_high=ours.CLIP,
    dual_clip=None,
    kl_coef=0.0,
    kl_estimator="k3",
    entropy_coef=0.0,
    tis_cap=None,
)


class Work(NamedTuple):
    """Responses to train on, prompt first, padded on the right; B rows."""

    tokens: np.ndarray  # [B, T] int32
    prompt_len: np.ndarray  # [B]
    length: np.ndarray  # [B], prompt and response
    weight: np.ndarray  # [B, T] float32: 1 / all response tokens, on response tokens
    advantage_b: np.ndarray
    old_logp: np.ndarray  # [B, T]

    def of(self, index) -> "Work":
        """Some of the rows, with weights of their own mean."""
        part = Work(*(array[index] for array in self))
        mask = (part.weight != 0).astype(np.float32)
        return part._replace(weight=mask / mask.sum())


def make_work(prompts, length_pg: np.ndarray, vocabulary: int, *, seed: int) -> Work:
    """Random responses of these lengths, with random rewards of 0 and 1."""
    rng = np.random.default_rng(seed)
    samples = length_pg.shape[1]
    prompt_len = np.repeat([len(p) for p in prompts], samples).astype(np.int32)
    length = prompt_len + length_pg.reshape(-1)
    tokens = np.full((len(length), length.max()), ours.PAD, np.int32)
    for i, row in enumerate(tokens):
        row[: length[i]] = [*prompts[i // samples], *rng.integers(2, vocabulary, length[i] - prompt_len[i])]
    at = np.arange(tokens.shape[1])[None]
    mask = ((at >= prompt_len[:, None]) & (at < length[:, None])).astype(np.float32)
    advantage = group_advantages(
        rng.integers(0, 2, length_pg.shape).astype(np.float64), normalize_std=True, ddof=1, epsilon=1e-6
    )
    weight = token_weights(
        mask, max_length=None, aggregation="token_mean", gradients="all", denominator="shrunken"
    ).astype(np.float32)
    return Work(tokens, prompt_len, length, weight, advantage.reshape(-1), np.zeros(tokens.shape, np.float32))


def stage_of(*, rows: int, budget: int, old_logp: str, loss: GrpoLoss, minibatches: int) -> GrpoStage:
    """Return a stage as `update` reads it."""
    values = base_config().grpo.to_dict() | dict(rows=rows, old_logp=old_logp, minibatches=minibatches, weights=WEIGHTS)
    where = dict(name="", index=0, first_step=0, first_problem=0, evaluated=False, steps=1, lr=ours.LR, warmup=0)
    return build(GrpoStage, values | where | dict(source=(), budget=budget, loss=loss))


class OurTrainer:
    """What train/grpo.py holds while it trains: optimiser, state, and the run's constants."""

    def __init__(self, side: ours.Ours, *, chunk: int, room: int):
        self.side = side
        optim = Optimizer(ours.DECAY, *ours.BETAS, ours.GRAD_CLIP, moments_dtype="float32")
        self.tx = make_optimizer(optim, lr=ours.LR, warmup=0, decay_steps=0)
        with jax.set_mesh(side.mesh):
            self.state = new_state(self.tx, jax.tree.map(jnp.copy, side.params))
        tokenizer = SimpleNamespace(pad=ours.PAD)
        self.run = SimpleNamespace(model=side.model, tokenizer=tokenizer, prompt_room=room, chunk=chunk)

    def update(
        self, work: Work, *, rows: int, budget: int, old_logp="sampler", ref_params=None, loss=LOSS, minibatches=1
    ) -> dict:
        """The optimiser's steps of one RL step, awaited; metrics."""
        rollouts = Rollouts(
            tokens=work.tokens,
            prompt_len=work.prompt_len,
            length=work.length,
            logp=work.old_logp,
            entropy=np.zeros_like(work.old_logp),
            sampled=work.weight != 0,
            done=np.ones(len(work.length), bool),
        )
        with jax.set_mesh(self.side.mesh):
            self.state, values, _ = update(
                self.run,
                self.tx,
                self.state,
                SimpleNamespace(rollouts=rollouts),
                work.advantage_b,
                self.side.params if ref_params is None else ref_params,
                stage_of(rows=rows, budget=budget, old_logp=old_logp, loss=loss, minibatches=minibatches),
            )
            jax.block_until_ready(self.state)
        return values
