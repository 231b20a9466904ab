"""Optimiser and train state: Adam on float32 masters, one fresh optimiser per stage.

optim = Optimizer(weight_decay=0.0, beta1=0.9, beta2=0.95, grad_clip=1.0, moments_dtype="float32")
tx = make_optimizer(optim, lr=2e-4, warmup=0, decay_steps=0)
state = new_state(tx, params)
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax

from e3jax.errors import need, need_choice
from e3jax.sharding import constrain_params
from e3jax.types import TrainState


@dataclass(frozen=True)
class Optimizer:
    """AdamW's constants: config.optim. Learning rates are the stages'."""

    weight_decay: float
    beta1: float
    beta2: float
    grad_clip: float  # most that a gradient's global norm may be
    moments_dtype: str

    def __post_init__(self):
        need_choice(self, "moments_dtype", ("float32", "bfloat16"))
        need(self.grad_clip > 0, "grad_clip", self.grad_clip, "must be above 0")
        for name in ("beta1", "beta2"):
            need(0 <= getattr(self, name) < 1, name, getattr(self, name), "use 0 or more, below 1")


def make_optimizer(optim: Optimizer, *, lr: float, warmup: int, decay_steps: int) -> optax.GradientTransformation:
    """Return AdamW after clipping by global norm; warm-up, then constant, or cosine to 0 at `decay_steps` (0: off).

    The last update's learning rate is in the state: `learning_rate(state)`. Both moments are kept in `moments_dtype`;
    an update computes in float32 whatever it is. bfloat16 (8 bits) saves 4 bytes a parameter and stops the second
    moment's average from following a gradient that changes it by less than 1/256: with beta2 = .95 it does not.
    """
    schedule = optax.cosine_decay_schedule(lr, decay_steps) if decay_steps else optax.constant_schedule(lr)

    def rate(count):
        return schedule(count) * (jnp.minimum(1.0, (count + 1) / warmup) if warmup else 1.0)

    constants = dict(b1=optim.beta1, b2=optim.beta2, weight_decay=optim.weight_decay)
    adamw = optax.inject_hyperparams(optax.adamw)(learning_rate=rate, **constants)
    return optax.chain(optax.clip_by_global_norm(optim.grad_clip), stored_as(adamw, optim.moments_dtype))


def stored_as(tx: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """`tx` with float arrays of its state kept in `dtype` between updates, scalars as they are."""

    def cast(tree, to):
        floating = lambda x: x.ndim > 0 and jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
        return jax.tree.map(lambda x: x.astype(to) if floating(x) else x, tree)

    def update(grads, state, params):
        updates, state = tx.update(grads, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(tx.init(params), dtype), update)


def learning_rate(state: TrainState) -> float:
    """Of the last update made with `make_optimizer`."""
    return float(state.opt_state[1].hyperparams["learning_rate"])


def new_state(tx: optax.GradientTransformation, params) -> TrainState:
    """Step 0 with fresh moments."""
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def apply_gradients(tx, state: TrainState, grads) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimiser update; a gradient that is not finite changes nothing but the step count (`skipped` = 1)."""
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    new = (optax.apply_updates(state.params, updates), opt_state)
    params, opt_state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, (state.params, state.opt_state))
    metrics = {"grad_norm": norm, "skipped": 1.0 - finite}
    return TrainState(step=state.step + 1, params=constrain_params(params), opt_state=opt_state), metrics
