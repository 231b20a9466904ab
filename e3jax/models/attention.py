"""Grouped-query attention, softmax(q·k/√H + mask)·v: in plain XLA, the reference, and by two faster kernels.

    kernel              runs on        scores in memory       dtype
    "xla"               everything     [B, N, 128, T] float32 any
    "splash"            TPU (Pallas)   none                   bfloat16, float32
    "splash_interpret"  CPU, slowly    none                   the same kernel, for tests
    "cudnn"             NVIDIA GPU     none                   bfloat16, float16

A prefill reads a cache through `attend` on every device; decoding has models/pages.py.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from e3jax.errors import UserError
from e3jax.sharding import spec

MASKED = -1e30  # finite: a row with nothing to attend to gives a mean, not NaN
SAVED = "attention"  # the name under which its output (and splash's row sums) may be kept for the backward pass
BLOCK = 128  # queries that "xla" takes at once …
MOST_BLOCKS = 16  # … and more of them in long rows: every block is code of its own
KERNELS = ("xla", "splash", "splash_interpret", "cudnn")
# Splash works on square tiles of the T x T scores: large ones feed the matrix unit, small ones pad a short T less.
# At 512 the backward pass compiles for v5e up to H = 256 in float32; 128, the lane count, is the least that the kernel
# takes. Not timed: no TPU was at hand.
SPLASH_BLOCKS = (512, 256, 128)


def causal_mask(segment_bt: jax.Array | None, length: int, first: int = 0) -> jax.Array:
    """[1 or B, T - first, T] bool, query x key: key not later than query, and of the same packed segment."""
    t = jnp.arange(length)
    mask = (t[first:, None] >= t[None, :])[None]
    if segment_bt is None:
        return mask
    return mask & (segment_bt[:, first:length, None] == segment_bt[:, None, :length])


def cache_mask(position_bt: jax.Array, size: int) -> jax.Array:
    """[B, T, S] bool: cache position s is visible from query position p when s <= p."""
    return jnp.arange(size)[None, None, :] <= position_bt[:, :, None]


def attend(q_btnh, k_bksh, v_bksh, mask_bts, k_scale=None, v_scale=None) -> jax.Array:
    """[B, T, N, H] attention output; scores and softmax in float32, R = N // K query heads share a key head.

    Keys and values lie as in a cache, [B, K, S, H]; where they are int8, with scales [B, K, S].
    """
    b, t, n, h = q_btnh.shape
    k = k_bksh.shape[1]
    # R and T folded into one axis: both products are plain batched matmuls
    q = jnp.moveaxis(q_btnh.reshape(b, t, k, n // k, h), 1, 3).reshape(b, k, -1, h) * h**-0.5
    scores = jnp.einsum("bkxh,bksh->bkxs", q, k_bksh.astype(q.dtype), preferred_element_type=jnp.float32)
    scores = scores if k_scale is None else scores * k_scale[:, :, None]
    scores = jnp.where(mask_bts[:, None, None], scores.reshape(b, k, n // k, t, -1), MASKED)
    weights = jax.nn.softmax(scores, axis=-1).reshape(b, k, n // k * t, -1)
    weights = weights if v_scale is None else weights * v_scale[:, :, None]
    out = jnp.einsum(
        "bkxs,bksh->bkxh", weights.astype(q.dtype), v_bksh.astype(q.dtype), preferred_element_type=jnp.float32
    )
    return jnp.moveaxis(out.astype(q.dtype).reshape(b, k, n // k, t, h), 3, 1).reshape(b, t, n, h)


def resolve_kernel(name: str) -> str:
    """A kernel's name; "auto" is the fast one of the default backend: splash on TPU, cudnn on GPU, xla elsewhere.

    >>> resolve_kernel("splash")
    'splash'
    """
    if name == "auto":
        return {"tpu": "splash", "gpu": "cudnn"}.get(jax.default_backend(), "xla")
    if name not in KERNELS:
        raise UserError(f"attention kernel {name!r} is unknown; known: auto, {', '.join(KERNELS)}")
    return name


def self_attention(q_btnh, k_btkh, v_btkh, segment_bt=None, *, kernel: str) -> jax.Array:
    """[B, T, N, H]: token t attends to tokens <= t, of the same packed segment where `segment_bt` [B, T] is given.

    On a mesh, splash and cudnn need B to divide over data x fsdp and K over tensor; "xla" takes any shape.
    """
    kernel = resolve_kernel(kernel)
    if kernel == "xla":
        return plain(q_btnh, k_btkh, v_btkh, segment_bt)
    if kernel == "cudnn":
        return per_shard(cudnn, q_btnh, k_btkh, v_btkh, segment_bt)
    interpret = kernel == "splash_interpret"
    return per_shard(functools.partial(splash, interpret=interpret), q_btnh, k_btkh, v_btkh, segment_bt)


def plain(q_btnh, k_btkh, v_btkh, segment_bt) -> jax.Array:
    """Attention in plain XLA, BLOCK queries at a time against the keys that they may see, half of all pairs."""
    k, v, length = k_btkh.swapaxes(1, 2), v_btkh.swapaxes(1, 2), q_btnh.shape[1]
    block = max(BLOCK, length // MOST_BLOCKS // BLOCK * BLOCK)
    out = []
    for start in range(0, length, block):
        end = min(start + block, length)
        segment = None if segment_bt is None else segment_bt[:, :end]
        out.append(block_of_queries(q_btnh[:, start:end], k[:, :, :end], v[:, :, :end], segment, start))
    return out[0] if len(out) == 1 else jnp.concatenate(out, axis=1)


def _grouped(x_btnh, heads: int) -> jax.Array:
    """[B, T, N, H] -> [B, K, R·T, H]: queries that share a key head, so that products are plain batched matmuls."""
    b, t, n, h = x_btnh.shape
    return jnp.moveaxis(x_btnh.reshape(b, t, heads, n // heads, h), 1, 3).reshape(b, heads, -1, h)


def _ungrouped(x_bkxh, length: int) -> jax.Array:
    """The way back."""
    b, heads, _, h = x_bkxh.shape
    return jnp.moveaxis(x_bkxh.reshape(b, heads, -1, length, h), 3, 1).reshape(b, length, -1, h)


def _scores(q_bkxh, k_bksh, segment_bs, first: int) -> jax.Array:
    """Masked q·k / √H [B, K, X, S] in float32."""
    b, heads, _, h = q_bkxh.shape
    size = k_bksh.shape[2]
    z = jnp.einsum("bkxh,bksh->bkxs", q_bkxh, k_bksh, preferred_element_type=jnp.float32) * h**-0.5
    mask = causal_mask(segment_bs, size, first)[:, None, None]
    return jnp.where(mask, z.reshape(b, heads, -1, size - first, size), MASKED).reshape(z.shape)


def _block_forward(q_btnh, k_bksh, v_bksh, segment_bs, first: int):
    """Causal attention [B, T, N, H] of the queries at positions first, …, S - 1, the last keys being their own; and
    what its gradient needs.
    """
    q_bkxh = _grouped(q_btnh, k_bksh.shape[1])
    z = _scores(q_bkxh, k_bksh, segment_bs, first)
    most = jnp.max(z, axis=-1, keepdims=True)
    p = jnp.exp(z - most)
    total = jnp.sum(p, axis=-1, keepdims=True)
    out = jnp.einsum("bkxs,bksh->bkxh", p.astype(q_btnh.dtype), v_bksh, preferred_element_type=jnp.float32) / total
    out = checkpoint_name(_ungrouped(out.astype(q_btnh.dtype), q_btnh.shape[1]), SAVED)
    lse_bkx = checkpoint_name((most + jnp.log(total))[..., 0], SAVED)
    return out, (q_btnh, k_bksh, v_bksh, segment_bs, out, lse_bkx)


def _block_backward(first, kept, d_out):
    """Flash attention's rule (Dao et al. 2022, App. B), block by block: P = exp(z - lse), dz = P (dP - Σ dO·O).

    Probabilities are made again from their log-sum: no pass over the scores is spent on a maximum or a sum, and nothing
    of their size is kept.
    """
    q_btnh, k_bksh, v_bksh, segment_bs, out, lse = kept
    heads, dtype = k_bksh.shape[1], q_btnh.dtype
    q, d_out, out = (_grouped(x, heads) for x in (q_btnh, d_out, out))
    p = jnp.exp(_scores(q, k_bksh, segment_bs, first) - lse[..., None])

    def product(axes, x, y):
        return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)

    dv = product("bkxs,bkxh->bksh", p.astype(dtype), d_out)
    dp = product("bkxh,bksh->bkxs", d_out, v_bksh)
    inner = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    dz = (p * (dp - inner) * q.shape[-1] ** -0.5).astype(dtype)
    dq = _ungrouped(product("bkxs,bksh->bkxh", dz, k_bksh), q_btnh.shape[1])
    dk = product("bkxs,bkxh->bksh", dz, q)
    return dq.astype(dtype), dk.astype(dtype), dv.astype(dtype), None


def with_gradient(forward, backward, static: tuple[int, ...]):
    """The function whose value is the first result of `forward` and whose gradient is `backward`'s."""
    function = jax.custom_vjp(lambda *args: forward(*args)[0], nondiff_argnums=static)
    function.defvjp(forward, backward)
    return function


block_of_queries = with_gradient(_block_forward, _block_backward, (4,))


def per_shard(function, q_btnh, k_btkh, v_btkh, segment_bt) -> jax.Array:
    """`function` on every device's own rows and heads: JAX refuses to split a Pallas kernel by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(q_btnh, k_btkh, v_btkh, segment_bt)
    q, kv, segment = spec("BTNH", mesh), spec("BTKH", mesh), spec("BT", mesh)
    # check_vma: a Pallas call does not state along which mesh axes its results vary
    mapped = jax.shard_map(function, in_specs=(q, kv, kv, segment), out_specs=q, check_vma=False)
    return mapped(q_btnh, k_btkh, v_btkh, segment_bt)


def splash(q_btnh, k_btkh, v_btkh, segment_bt, *, interpret: bool) -> jax.Array:
    """Attention by JAX's Pallas TPU kernel: tiles, those above the diagonal skipped, no scores in main memory.

    T is padded to whole tiles. The padding comes last, so no real token sees it, and its rows are cut off.
    The kernel shares key heads between its query heads and takes H below 128 as it is (32, 64 and 80 compiled).
    The backward pass is two kernels: the fused one keeps T / 512 copies of dq, memory that grows with T².
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas  # 0.15 s

    length, heads, head_width = q_btnh.shape[1:]
    block = next((b for b in SPLASH_BLOCKS if -length % b <= length // 8), SPLASH_BLOCKS[-1])
    padding = (0, -length % block)
    q = jnp.pad(q_btnh.swapaxes(1, 2) * head_width**-0.5, ((0, 0), (0, 0), padding, (0, 0)))  # [B, N, T, H]
    k, v = (jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), padding, (0, 0))) for x in (k_btkh, v_btkh))
    if segment_bt is not None:
        segment_bt = jnp.pad(segment_bt, ((0, 0), padding))
        segment_bt = pallas.SegmentIds(q=segment_bt, kv=segment_bt)
    blocks = pallas.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    causal = pallas.CausalMask((q.shape[2], q.shape[2]))
    kernel = pallas.make_splash_mha_single_device(
        pallas.MultiHeadMask([causal] * heads), block_sizes=blocks, interpret=interpret, residual_checkpoint_name=SAVED
    )
    return jax.vmap(kernel)(q, k, v, segment_bt)[:, :, :length].swapaxes(1, 2)


def cudnn(q_btnh, k_btkh, v_btkh, segment_bt, *, implementation: str = "cudnn") -> jax.Array:
    """Attention by cuDNN's flash kernel (`jax.nn.dot_product_attention`), which has not run on a GPU here yet.

    Segments cost memory that grows with T²: a mask [B, 1, T, T] of 1 byte per entry, which JAX turns into a bias of 2
    and, in the backward pass, a gradient of 2 that nobody uses. cuDNN wants H a multiple of 8 and at most 128 (256
    from Hopper on), and for gradients with segments an even T. `implementation="xla"` is for tests on CPU.
    """
    if implementation == "cudnn" and q_btnh.dtype not in (jnp.bfloat16, jnp.float16):
        raise UserError(
            f"attention kernel 'cudnn' computes in bfloat16 or float16, not {q_btnh.dtype}: "
            "set config.model.dtype='bfloat16', or choose kernel 'xla'"
        )
    mask = None if segment_bt is None else segment_bt[:, None, :, None] == segment_bt[:, None, None, :]
    return jax.nn.dot_product_attention(
        q_btnh, k_btkh, v_btkh, mask=mask, is_causal=True, implementation=implementation
    )
