"""Grouped-query attention, softmax(q·k/√H + mask)·v: in plain XLA, which is the reference, and by two faster kernels.

    kernel              runs on        scores in memory       dtype   ("auto": `resolve_kernel`)
    "xla"               everything     [B, N, 192, 192]      any
    "splash"            TPU (Pallas)   none                   bfloat16, float32
    "splash_interpret"  CPU, slowly    none                   the same kernel, for tests
    "cudnn"             NVIDIA GPU     none                   bfloat16, float16

A prefill reads a cache through `attend` on every device. Decoding uses models/pages.py.

Axes of this file beside those of types.py: x is R·T, the queries that share a key head; i counts tiles of queries, j
tiles of keys (not decode slots); m counts the runs of a row's segments.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from e3jax.errors import UserError
from e3jax.sharding import spec

MASKED = -1e30  # finite: a row with nothing to attend to gives a mean, and a page with no visible key weighs 0, not NaN
SAVED = "attention"  # checkpoint name of attention's output (and splash's row sums), which the backward pass may keep
TILE = 192  # queries and keys that "xla" takes at once: their scores stay in a CPU's cache (128 and 384 are slower)
KERNELS = ("xla", "splash", "splash_interpret", "cudnn")
CUDNN_DTYPES = (jnp.bfloat16, jnp.float16)
# Splash works on square tiles of the T x T scores: large ones feed the matrix unit, small ones pad a short T less.
# At 512 the backward pass compiles for v5e up to H = 256 in float32; the kernel takes no less than 128, the lane count.
# Not timed: no TPU was at hand.
SPLASH_BLOCKS = (512, 256, 128)
SHARE = 256  # least mean tokens of a segment for cuDNN's packed form, whose time grows with the most segments allowed


def cache_mask(position_bt: jax.Array, size: int) -> jax.Array:
    """Return a mask [B, T, S]: cache position s is visible from query position p when s <= p."""
    return jnp.arange(size)[None, None, :] <= position_bt[:, :, None]


def attend(q_btnh, k_bksh, v_bksh, mask_bts, k_scale=None, v_scale=None) -> jax.Array:
    """Return attention [B, T, N, H]; scores and softmax in float32, R = N // K query heads share a key head.

    Keys and values lie as in a cache, [B, K, S, H]; int8 ones come with scales [B, K, S].
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


def resolve_kernel(name: str, *, dtype, head_width: int, length: int = 0) -> str:
    """Return a kernel's name: `name` itself, or for "auto" the fastest kernel here that takes these arrays.

    That is splash on TPU, cudnn on an NVIDIA GPU, and xla elsewhere and for what cuDNN refuses: float32, some widths,
    packed rows of an odd `length`, and a GPU older than Ampere.

    >>> resolve_kernel("splash", dtype="float32", head_width=64)
    'splash'
    """
    if name not in ("auto", *KERNELS):
        raise UserError(f"attention kernel {name!r} is unknown; known: auto, {', '.join(KERNELS)}")
    if name != "auto":
        return name
    if jax.default_backend() == "tpu":
        return "splash"
    widest = 256 if nvidia_capability() >= 9 else 128
    fits = jnp.dtype(dtype) in CUDNN_DTYPES and head_width % 8 == 0 and head_width <= widest and length % 2 == 0
    return "cudnn" if nvidia_capability() >= 8 and fits else "xla"


def nvidia_capability() -> float:
    """Return the default device's compute capability, 8.0 for Ampere and 9.0 for Hopper; 0 if it is no NVIDIA GPU."""
    device = jax.local_devices()[0]
    capability = str(getattr(device, "compute_capability", ""))  # "9.0"; an AMD GPU says "gfx942"
    right = device.platform == "gpu" and capability.partition(".")[0].isdigit()
    return float(capability) if right else 0.0


def self_attention(q_btnh, k_btkh, v_btkh, segment_bt=None, *, kernel: str) -> jax.Array:
    """Return causal self-attention [B, T, N, H], inside packed segments where `segment_bt` [B, T] is given.

    On a mesh, splash and cudnn need B to divide over data x fsdp and K over tensor; "xla" takes any shape.
    """
    length = 0 if segment_bt is None else q_btnh.shape[1]
    kernel = resolve_kernel(kernel, dtype=q_btnh.dtype, head_width=q_btnh.shape[3], length=length)
    if kernel == "xla":
        return plain(q_btnh, k_btkh, v_btkh, segment_bt)
    if kernel == "cudnn":
        return per_shard(cudnn, q_btnh, k_btkh, v_btkh, segment_bt)
    interpret = kernel == "splash_interpret"
    return per_shard(functools.partial(splash, interpret=interpret), q_btnh, k_btkh, v_btkh, segment_bt)


def plain(q_btnh, k_btkh, v_btkh, segment_bt) -> jax.Array:
    """Compute flash attention in plain XLA: each tile of queries meets one tile of keys after the other.

    No scores are kept. Tiles of keys that no row of the batch may see, which are later ones and those of earlier
    segments, are skipped.
    """
    length = q_btnh.shape[1]
    tiles = -(-length // TILE)
    tile = -(-length // tiles // 8) * 8 if tiles > 1 else length
    if segment_bt is None:
        segment_bt = jnp.ones(q_btnh.shape[:2], jnp.int32)

    def padded(x):
        return jnp.pad(x, ((0, 0), (0, tiles * tile - length)) + ((0, 0),) * (x.ndim - 2))

    return in_tiles(*map(padded, (q_btnh, k_btkh, v_btkh, segment_bt)), tile)[:, :length]


def _tiles_of_queries(x_btnh, heads: int, tile: int) -> jax.Array:
    """Regroup [B, T, N, H] as [tiles, B, K, R·tile, H]: with queries by key head, products are batched matmuls."""
    b, t, n, h = x_btnh.shape
    x = x_btnh.reshape(b, t // tile, tile, heads, n // heads, h)
    return jnp.transpose(x, (1, 0, 3, 4, 2, 5)).reshape(-1, b, heads, n // heads * tile, h)


def _whole(x_ibkxh, tile: int) -> jax.Array:
    """Undo `_tiles_of_queries`: [tiles, B, K, R·tile, H] -> [B, T, N, H]."""
    i, b, heads, x, h = x_ibkxh.shape
    x = jnp.transpose(x_ibkxh.reshape(i, b, heads, x // tile, tile, h), (1, 0, 4, 2, 3, 5))
    return x.reshape(b, i * tile, -1, h)


def _first_tiles(segment_bt, tile: int) -> jax.Array:
    """Return for every tile of queries the first tile of keys that any of them sees, in any row of the batch."""
    t = segment_bt.shape[1]
    begins_bt = jnp.pad(segment_bt[:, 1:] != segment_bt[:, :-1], ((0, 0), (1, 0)))
    begin_bt = jax.lax.cummax(jnp.where(begins_bt, jnp.arange(t)[None], 0), axis=1)
    return jnp.min(begin_bt[:, ::tile], axis=0) // tile


def _scores(q_bkxh, k_bksh, segment_bt, i, j) -> jax.Array:
    """Return masked q·k / √H [B, K, X, S], float32, of query tile i and key tile j."""
    b, heads, _, h = q_bkxh.shape
    tile = k_bksh.shape[2]
    z = jnp.einsum("bkxh,bksh->bkxs", q_bkxh, k_bksh, preferred_element_type=jnp.float32) * h**-0.5
    queries, keys = (jax.lax.dynamic_slice_in_dim(segment_bt, at * tile, tile, axis=1) for at in (i, j))
    t = jnp.arange(tile)
    mask = ((i * tile + t)[:, None] >= (j * tile + t)[None])[None] & (queries[:, :, None] == keys[:, None])
    return jnp.where(mask[:, None, None], z.reshape(b, heads, -1, tile, tile), MASKED).reshape(z.shape)


def _tile(x_bksh, j, tile: int) -> jax.Array:
    """Return tile j of the positions."""
    return jax.lax.dynamic_slice_in_dim(x_bksh, j * tile, tile, axis=2)


def _forward(q_btnh, k_btkh, v_btkh, segment_bt, tile: int):
    """Return attention [B, T, N, H] by an online softmax, and what its gradient needs; T is a multiple of the tile."""
    q, k, v = _tiles_of_queries(q_btnh, k_btkh.shape[2], tile), k_btkh.swapaxes(1, 2), v_btkh.swapaxes(1, 2)

    def of_queries(at):
        i, first, q_bkxh = at

        def more_keys(carry):
            j, most, total, out = carry
            z = _scores(q_bkxh, _tile(k, j, tile), segment_bt, i, j)
            higher = jnp.maximum(most, jnp.max(z, axis=-1, keepdims=True))
            p, shrink = jnp.exp(z - higher), jnp.exp(most - higher)
            new = jnp.einsum(
                "bkxs,bksh->bkxh", p.astype(v.dtype), _tile(v, j, tile), preferred_element_type=jnp.float32
            )
            return j + 1, higher, total * shrink + jnp.sum(p, axis=-1, keepdims=True), out * shrink + new

        zeros = jnp.zeros(q_bkxh.shape, jnp.float32)
        start = first, zeros[..., :1] + MASKED, zeros[..., :1], zeros  # later tiles shrink to 0 what a masked one adds
        _, most, total, out = jax.lax.while_loop(lambda carry: carry[0] <= i, more_keys, start)
        return (out / total).astype(q_bkxh.dtype), (most + jnp.log(total))[..., 0]

    out, lse = jax.lax.map(of_queries, (jnp.arange(len(q)), _first_tiles(segment_bt, tile), q))
    out, lse = checkpoint_name(_whole(out, tile), SAVED), checkpoint_name(lse, SAVED)
    return out, (q_btnh, k_btkh, v_btkh, segment_bt, out, lse)


def _backward(tile: int, kept, d_out):
    """Return gradients by flash attention's rule (Dao et al. 2022, App. B): P = exp(z - lse), dz = P (dP - Σ dO·O)

    Works on the same tiles. Probabilities are computed again from the log-sum that was kept, so this needs no maximum
    and no sum over the scores, and allocates nothing of their size.
    """
    q_btnh, k_btkh, v_btkh, segment_bt, out, lse = kept
    heads, dtype = k_btkh.shape[2], q_btnh.dtype
    q, d_out, out = (_tiles_of_queries(x, heads, tile) for x in (q_btnh, d_out, out))
    k, v = k_btkh.swapaxes(1, 2), v_btkh.swapaxes(1, 2)
    inner = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)

    def product(axes, x, y):
        return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)

    def added(total, j, part):
        return jax.lax.dynamic_update_slice_in_dim(total, _tile(total, j, tile) + part, j * tile, axis=2)

    def of_queries(carry, at):
        i, first, q_bkxh, d_out, lse, inner = at

        def more_keys(carry):
            j, dq, dk, dv = carry
            k_bksh = _tile(k, j, tile)
            p = jnp.exp(_scores(q_bkxh, k_bksh, segment_bt, i, j) - lse[..., None])
            dp = product("bkxh,bksh->bkxs", d_out, _tile(v, j, tile))
            dz = (p * (dp - inner) * q.shape[-1] ** -0.5).astype(dtype)
            dk = added(dk, j, product("bkxs,bkxh->bksh", dz, q_bkxh))
            dv = added(dv, j, product("bkxs,bkxh->bksh", p.astype(dtype), d_out))
            return j + 1, dq + product("bkxs,bksh->bkxh", dz, k_bksh), dk, dv

        start = first, jnp.zeros(q_bkxh.shape, jnp.float32), *carry
        _, dq, *carry = jax.lax.while_loop(lambda carry: carry[0] <= i, more_keys, start)
        return tuple(carry), dq.astype(dtype)

    zeros = jnp.zeros(k.shape, jnp.float32)
    each = jnp.arange(len(q)), _first_tiles(segment_bt, tile), q, d_out, lse, inner
    (dk, dv), dq = jax.lax.scan(of_queries, (zeros, zeros), each)
    return _whole(dq, tile), dk.swapaxes(1, 2).astype(dtype), dv.swapaxes(1, 2).astype(dtype), None


def with_gradient(forward, backward, static: tuple[int, ...]):
    """Return the function whose value is the first result of `forward` and whose gradient is that of `backward`."""
    function = jax.custom_vjp(lambda *args: forward(*args)[0], nondiff_argnums=static)
    function.defvjp(forward, backward)
    return function


in_tiles = with_gradient(_forward, _backward, (4,))


def per_shard(function, q_btnh, k_btkh, v_btkh, segment_bt) -> jax.Array:
    """Apply `function` to every device's part of rows and heads: JAX refuses to split a Pallas kernel by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(q_btnh, k_btkh, v_btkh, segment_bt)
    q, kv, segment = spec("BTNH", mesh), spec("BTKH", mesh), spec("BT", mesh)
    # check_vma: a Pallas call does not state along which mesh axes its results vary
    mapped = jax.shard_map(function, in_specs=(q, kv, kv, segment), out_specs=q, check_vma=False)
    return mapped(q_btnh, k_btkh, v_btkh, segment_bt)


def splash(q_btnh, k_btkh, v_btkh, segment_bt, *, interpret: bool) -> jax.Array:
    """Compute attention by JAX's Pallas TPU kernel, which skips tiles above the diagonal and stores no scores.

    T is padded to whole tiles. The padding comes last, so no real token sees it, and its rows are cut off.
    The kernel shares key heads between its query heads and takes H below 128 as it is (32, 64 and 80 compiled).
    The backward pass is two kernels: the fused one keeps T / 512 copies of dq, memory that grows with T².
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas  # takes 0.15 s

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
    """Compute attention by cuDNN's flash kernel (`jax.nn.dot_product_attention`).

    A batch whose rows have at most T / `SHARE` segments goes to its packed form, which skips whatever lies between two
    segments, where this JAX and GPU have that form (`packed_form`). Another batch takes time that grows with T², for a
    mask [B, 1, T, T] that JAX turns into a bias of 2 bytes per entry, and its gradient. Memory for these is set aside
    in any case, because which of the two runs is known only at run time. cuDNN wants H to be a multiple of 8 and at
    most 128 (256 from Hopper on), and an even T for gradients with segments. `implementation="xla"` is for CPU tests.
    """
    if implementation == "cudnn" and q_btnh.dtype not in CUDNN_DTYPES:
        raise UserError(
            f"attention kernel 'cudnn' computes in bfloat16 or float16, not {q_btnh.dtype}: "
            "set config.model.dtype='bfloat16', or choose kernel 'auto' or 'xla'"
        )

    def masked(q_btnh, k_btkh, v_btkh):
        mask = None if segment_bt is None else segment_bt[:, None, :, None] == segment_bt[:, None, None, :]
        return jax.nn.dot_product_attention(
            q_btnh, k_btkh, v_btkh, mask=mask, is_causal=True, implementation=implementation
        )

    most = q_btnh.shape[1] // SHARE
    if segment_bt is None or most < 2 or implementation != "cudnn" or not (form := packed_form()):
        return masked(q_btnh, k_btkh, v_btkh)
    first_bm, length_bm, fit = segment_runs(segment_bt, most)

    def packed(q_btnh, k_btkh, v_btkh):
        return form(
            q_btnh,
            k_btkh,
            v_btkh,
            q_seqlen=length_bm,
            kv_seqlen=length_bm,
            q_offsets=first_bm,
            kv_offsets=first_bm,
            scale=q_btnh.shape[-1] ** -0.5,
        )

    return jax.lax.cond(fit, packed, masked, q_btnh, k_btkh, v_btkh)


def packed_form():
    """Return cuDNN's causal attention inside segments that lie one behind the other, or None where it is missing.

    JAX has no public name for it, and it needs Hopper or later.
    """
    try:
        from jax._src.cudnn import fused_attention_stablehlo as call

        if call.check_compute_capability("9.0"):
            return functools.partial(call.dot_product_attention, mask_type=call.MaskType.PADDING_CAUSAL)
    except (ImportError, AttributeError):
        pass
    return None


def segment_runs(segment_bt, most: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return where runs of equal segments begin [B, M + 1], their lengths [B, M], and whether M = `most` suffices.

    Entries behind a row's last run are -1. Padding, wherever it lies, is a run like any other.

    >>> first, length, fit = segment_runs(jnp.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]]), 3)
    >>> first.tolist(), length.tolist(), bool(fit)
    ([[0, 3, 5, -1], [0, -1, -1, -1]], [[3, 2, 1], [6, -1, -1]], True)
    """
    begins_bt = jnp.pad(segment_bt[:, 1:] != segment_bt[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    first_bm = jax.vmap(lambda begins: jnp.nonzero(begins, size=most + 1, fill_value=-1)[0])(begins_bt)
    first_bm = first_bm.astype(jnp.int32)
    end_bm = jnp.where(first_bm[:, 1:] >= 0, first_bm[:, 1:], segment_bt.shape[1])
    length_bm = jnp.where(first_bm[:, :-1] >= 0, end_bm - first_bm[:, :-1], -1)
    return first_bm, length_bm, jnp.max(jnp.sum(begins_bt, axis=1)) <= most
