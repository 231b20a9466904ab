"""Optimiser and train state: Adam on float32 masters, one fresh optimiser per stage.

tx = make_optimizer(lr=2e-4, warmup=0, decay_steps=0, weight_decay=0.0, beta1=0.9, beta2=0.95, grad_clip=1.0)
state = new_state(tx, params)
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from e3jax.types import TrainState


def make_optimizer(
    *,
    lr: float,
    warmup: int,
    decay_steps: int,
    weight_decay: float,
    beta1: float,
    beta2: float,
    grad_clip: float,
) -> optax.GradientTransformation:
    """AdamW after clipping by global norm; linear warm-up, then constant, or cosine to 0 at `decay_steps` (0: off)."""
    if decay_steps:
        schedule = optax.warmup_cosine_decay_schedule(0.0, lr, warmup, decay_steps)
    else:
        schedule = optax.linear_schedule(lr if warmup == 0 else 0.0, lr, max(warmup, 1))
    return optax.chain(
        optax.clip_by_global_norm(grad_clip),
        optax.adamw(schedule, b1=beta1, b2=beta2, weight_decay=weight_decay),
    )


def new_state(tx: optax.GradientTransformation, params) -> TrainState:
    """Step 0 with fresh moments."""
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def apply_gradients(tx, state: TrainState, grads) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimiser update; a gradient that is not finite changes nothing but the step count (`skipped` = 1)."""
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(norm)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    new = (optax.apply_updates(state.params, updates), opt_state)
    params, opt_state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, (state.params, state.opt_state))
    metrics = {"grad_norm": norm, "skipped": 1.0 - finite}
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics
