"""What every trainer shares of the compiled program: tokens -> log-probs, with and without gradients."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from e3jax.compiling import GpuJit
from e3jax.losses.tokens import next_token_logp_and_entropy
from e3jax.models.lora import trained, with_trained
from e3jax.models.qwen3 import Qwen3, unembedding
from e3jax.sharding import constrain_params

# jit of an update's programs. On a GPU products read a layer's weights where they lie in the stack, not a copy: that is
# 3 % of an update of Qwen3-1.7B (benchmarks/README.md, gpu.py)
update_jit = partial(GpuJit, options={"xla_gpu_enable_dynamic_slice_fusion": True})


def forward(model: Qwen3, params, token_bt, *, temperature, chunk, position_bt=None, segment_bt=None):
    """Log-prob and entropy [B, T] of every token under softmax(logits / temperature), in float32."""
    if position_bt is None:
        position_bt = jnp.broadcast_to(jnp.arange(token_bt.shape[1]), token_bt.shape)
    hidden, _ = model.apply({"params": params}, token_bt, position_bt, segment_bt=segment_bt)
    return next_token_logp_and_entropy(hidden, unembedding(params), token_bt, temperature=temperature, chunk=chunk)


def gradient_of(loss_of: Callable, params):
    """Return gradients and metrics of `loss_of(params)` -> (loss, metrics), by what is trained of the parameters."""
    by_trained = jax.grad(lambda part: loss_of(with_trained(params, part)), has_aux=True)
    grads, metrics = by_trained(trained(params))
    return constrain_params(grads), metrics


@partial(update_jit, static_argnames=("model", "temperature", "chunk"))
def score(model: Qwen3, params, token_bt, position_bt=None, segment_bt=None, *, temperature, chunk) -> jax.Array:
    """Log-prob [B, T] of every token, no gradients: the old policy, the KL reference, parity with the sampler.

    In packed rows a sequence's first token has no meaningful one: it is predicted from its neighbour.
    """
    return forward(
        model, params, token_bt, temperature=temperature, chunk=chunk, position_bt=position_bt, segment_bt=segment_bt
    )[0]
