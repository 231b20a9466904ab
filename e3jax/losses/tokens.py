"""Per-token pieces that every loss shares: log-probability, entropy, and what a mean divides by.

The vocabulary is the one axis that is too long to keep: logits of one 16k-token sequence over 151,936 entries are
10 GB. So log-prob and entropy come straight from hidden states and the unembedding, a piece of the time axis at a time,
and the backward pass computes each piece again. With z = hidden · embedᵀ / temperature:

    logp = z[target] − logsumexp(z)        entropy = logsumexp(z) − Σ_v softmax(z)_v z_v

Both are of the tempered distribution, as in verl's `dp_actor.py`. Without the division the first ratio is not 1; TRL
issue 4159 tells what that costs.

Usage: `logp, entropy = next_token_logp_and_entropy(hidden, embed, tokens, temperature=0.6, chunk=4096)`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

AGGREGATIONS = ("token_mean", "sequence_mean", "dr_grpo")  # `token_denominator`


def token_logp_and_entropy(hidden_btd, embed_vd, targets_bt, *, temperature, chunk):
    """Return the log-prob of `targets_bt` [B, T] and the entropy (nats) of softmax(hidden · embedᵀ / temperature).

    Both are [B, T], at least float32 (the matmul accumulates in it), and differentiable in `hidden_btd` [B, T, D] and
    `embed_vd` [V, D]. The logits of no more than max(chunk, B) tokens exist at once: time is cut, not the batch, so
    that a batch sharded over devices stays where it is. The gradient of the embedding is summed over pieces in float32
    whatever its dtype. On a mesh every device scores its own rows: the embedding is gathered once, not at every piece,
    and its gradient is summed over devices once; both travel in the dtype of `hidden_btd`.

    Raises ValueError for a temperature that is not positive, a chunk below 1, or unequal shapes.

    >>> hidden, embed = jnp.zeros((1, 2, 3)), jnp.zeros((4, 3))
    >>> logp, entropy = token_logp_and_entropy(
    ...     hidden, embed, jnp.zeros((1, 2), int), temperature=1.0, chunk=8
    ... )  # uniform over 4: logp = −ln 4, entropy = ln 4
    """
    batch, length, width = hidden_btd.shape
    if targets_bt.shape != (batch, length) or embed_vd.shape[1] != width:
        raise ValueError(
            f"hidden {hidden_btd.shape} needs targets [B, T] and embed [V, D]; "
            f"got {targets_bt.shape} and {embed_vd.shape}"
        )
    if temperature <= 0 or chunk < 1:
        raise ValueError(
            f"temperature must be > 0 and chunk >= 1; got {temperature} and {chunk} "
            "(score greedy samples at temperature 1)"
        )
    score = partial(_scores, temperature=temperature)
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
    if shards == 1 or batch % shards:
        return score(hidden_btd, embed_vd, targets_bt, chunk=chunk)
    rows = PartitionSpec(("data", "fsdp"))
    return jax.shard_map(  # `tensor` is left to XLA; check_vma: loops do not state along which axes they vary
        partial(score, chunk=max(1, chunk // shards)),
        in_specs=(rows, PartitionSpec(), rows),
        out_specs=rows,
        axis_names={"data", "fsdp"},
        check_vma=False,
    )(hidden_btd, embed_vd.astype(hidden_btd.dtype), targets_bt)


def _scores(hidden_btd, embed_vd, targets_bt, *, temperature, chunk):
    """Do the work of `token_logp_and_entropy` on one device's rows."""
    batch, length, _ = hidden_btd.shape
    embed = embed_vd.astype(jnp.promote_types(embed_vd.dtype, jnp.float32))
    score = partial(_logp_and_entropy, temperature=temperature)
    if batch * length <= chunk:
        return score(hidden_btd, embed, targets_bt)
    count = -(-length // max(1, chunk // batch))
    steps = -(-length // count)  # pieces of equal size, with next to no padding
    pad = -length % steps

    def pieces(x):  # [B, T, ...] -> [pieces, B, steps, ...]
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, -1, steps, *x.shape[2:]), 1, 0)

    def whole(x):  # [pieces, B, steps] -> [B, T]
        return jnp.moveaxis(x, 0, 1).reshape(batch, -1)[:, :length]

    score = jax.checkpoint(score, prevent_cse=False)  # not needed: a scan keeps XLA from merging the two
    logp, entropy = jax.lax.map(
        lambda piece: score(piece[0], embed, piece[1]), (pieces(hidden_btd), pieces(targets_bt))
    )
    return whole(logp), whole(entropy)


def unembed(hidden_btd, embed_vd):
    """Return logits hidden · embedᵀ [B, T, V], at least float32, multiplied in the dtype of `hidden_btd`.

    The backward pass multiplies in that dtype too: it rounds the gradient of the logits first, as every framework does
    whose logits have that dtype. In float32 both products would be several times as slow on a GPU. The embedding's
    gradient is summed, and comes out, in the dtype of `embed_vd`.
    """
    dtype, wide = hidden_btd.dtype, jnp.promote_types(hidden_btd.dtype, jnp.float32)

    def product(axes, x, y):
        return jnp.einsum(axes, x.astype(dtype), y.astype(dtype), preferred_element_type=wide)

    @jax.custom_vjp
    def logits(hidden_btd, embed_vd):
        return product("btd,vd->btv", hidden_btd, embed_vd)

    def backward(kept, d_btv):
        hidden_btd, embed_vd = kept
        d_hidden, d_embed = product("btv,vd->btd", d_btv, embed_vd), product("btv,btd->vd", d_btv, hidden_btd)
        return d_hidden.astype(dtype), d_embed.astype(embed_vd.dtype)

    logits.defvjp(lambda hidden_btd, embed_vd: (logits(hidden_btd, embed_vd), (hidden_btd, embed_vd)), backward)
    return logits(hidden_btd, embed_vd)


def _logp_and_entropy(hidden, embed, targets, *, temperature):
    """Return log-prob and entropy of one piece, whose logits exist here only."""
    logits = unembed(hidden, embed) / temperature
    logits -= jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))  # the largest is now 0
    exp = jnp.exp(logits)
    total = exp.sum(axis=-1)
    # A compare-and-sum instead of a gather: no scatter backward, no gather across a sharded V.
    is_target = targets[:, :, None] == jnp.arange(logits.shape[-1])[None, None, :]
    target_logit = jnp.where(is_target, logits, 0).sum(axis=-1)
    log_total = jnp.log(total)
    return target_logit - log_total, log_total - (exp * logits).sum(axis=-1) / total


def next_token_logp_and_entropy(hidden_btd, embed_vd, tokens_bt, *, temperature, chunk):
    """Return log-prob and entropy [B, T] aligned with the token: entry t scores tokens[:, t] from hidden[:, t − 1].

    `entropy[b, t]` is that of the distribution from which tokens[b, t] was drawn. Column 0, which nothing predicts,
    is 0. See `token_logp_and_entropy` for the rest.
    """
    scores = token_logp_and_entropy(
        hidden_btd[:, :-1], embed_vd, tokens_bt[:, 1:], temperature=temperature, chunk=chunk
    )
    logp, entropy = (jnp.pad(score, ((0, 0), (1, 0))) for score in scores)
    return logp, entropy


def token_denominator(mask_bt, *, aggregation, max_length):
    """Return what a token is divided by so that Σ mask/denominator·term is the mean `aggregation` names.

        "token_mean"     Σ_bt mask                             DAPO; e3
        "sequence_mean"  #sequences · Σ_t mask_b   [B, 1]      GRPO's mean of per-sequence means
        "dr_grpo"        #sequences · max_length               Dr. GRPO as TRL divides; verl's
                         seq-mean-token-sum-norm leaves #sequences out (verl issue 3741)

    Rows with an empty mask do not count as sequences. The result is never 0 (an empty mask gives 1), so a caller may
    divide by it. `mask_bt` must be the whole mini-batch over all hosts and micro-batches: a mean of the micro-batches'
    means is another number. Takes numpy and jax arrays.

    >>> float(token_denominator(jnp.ones((2, 3)), aggregation="token_mean", max_length=None))
    6.0
    """
    length_b1 = mask_bt.sum(axis=1, keepdims=True)
    sequences = (length_b1 > 0).sum()
    if aggregation == "token_mean":
        denominator = length_b1.sum()
    elif aggregation == "sequence_mean":
        denominator = sequences * length_b1
    elif aggregation == "dr_grpo":
        if max_length is None:
            raise ValueError("aggregation 'dr_grpo' needs max_length, the response budget in tokens")
        denominator = sequences * max_length
    else:
        raise ValueError(f"aggregation {aggregation!r} is not 'token_mean', 'sequence_mean' or 'dr_grpo'")
    return denominator + (denominator == 0)
