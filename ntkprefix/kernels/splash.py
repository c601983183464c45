"""Splash attention, JAX's fused attention on TPUs: the one place that calls its private gradient.

The public kernel gives output and log-sum-exp, and takes no gradient of a call that asks for both. The function behind
its gradient takes them as arguments: of more keys than these, if a prefix has joined them.
"""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkprefix.kernels.masks import not_fused

try:
    from jax.experimental.pallas.ops.tpu import splash_attention as _splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as _kernel

    _backward = _kernel._splash_attention_bwd
except (ImportError, AttributeError):  # another release of JAX: then there is no such implementation
    _splash = _kernel = _backward = None

_BACKWARD = (
    "save_residuals",
    "mask_value",
    "is_mqa",
    "block_sizes",
    "residual_checkpoint_name",
    "mask_function",
    "attn_logits_soft_cap",
    "interpret",
    "res",
    "do",
)
if _backward is None or tuple(inspect.signature(_backward).parameters) != _BACKWARD:
    _splash = None
# What sides of blocks are multiples of, and the largest: not measured, since there was no TPU.
_LANES, _LARGEST = 128, 512


def exists() -> bool:
    """Whether this release of JAX has what is called here."""
    return _splash is not None


def available() -> bool:
    """Whether this process runs on a TPU for which JAX has splash attention."""
    return exists() and jax.default_backend() == "tpu"


def unsupported(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K Hv"],
    options: dict[str, Any],
) -> str | None:
    """What of a call it has nothing for, in words; None where it has all."""
    if not exists():
        return "this release of JAX, whose splash attention is another"
    if not query.dtype == key.dtype == value.dtype or query.dtype.itemsize > 4:
        return f"query, key and value of {query.dtype}, {key.dtype} and {value.dtype} (one type, of at most 32 bits)"
    if not query.shape[1] or not key.shape[1]:
        return "no queries or no keys"
    return not_fused(options)


def forward(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K Hv"],
    lengths: tuple[Int[Array, " B"], Int[Array, " B"]] | None,
    **call: Any,
) -> tuple[Float[Array, "B T N Hv"], Float[Array, "B T N"]]:
    """Output and log-sum-exp, the latter in float32; neither means anything in a row that sees no key.

    Args:
        query: [B, T, N, H].
        key: [B, S, K, H].
        value: [B, S, K, Hv].
        lengths: queries and keys of each row of the batch.
        call: `scale`, a number, `is_causal`, `window`, how many keys before its own a query sees, and `interpret`,
            whether Pallas plays the kernel on a CPU.
    """
    arrays, segments = _arranged(query, key, value, lengths, call["scale"])
    kernel = _made(arrays, call)
    out, (log_sum,) = jax.vmap(kernel)(*arrays, segments)
    length = query.shape[1]
    return jnp.swapaxes(out, 1, 2)[:, :length], jnp.swapaxes(log_sum, 1, 2)[:, :length]


def backward(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K Hv"],
    lengths: tuple[Int[Array, " B"], Int[Array, " B"]] | None,
    out: Float[Array, "B T N Hv"],
    log_sum: Float[Array, "B T N"],
    d_out: Float[Array, "B T N Hv"],
    **call: Any,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K Hv"]]:
    """Gradients in query, key and value, whose weights are e^{logit - log_sum}, of `out`, the sum over all keys."""
    arrays, segments = _arranged(query, key, value, lengths, call["scale"])
    kernel = _made(arrays, call)
    options = {name: kernel.kwargs[name] for name in _BACKWARD[:-2]}

    def of_row(arrays, segments, out, log_sum, d_out):
        saved = (*arrays, segments, None, out, log_sum, kernel.dq_mask_info, kernel.dkv_mask_info)
        return _backward(**options, res=saved, do=d_out)[3:6]

    rows = (_heads_first(array) for array in (out, log_sum, d_out))
    d_query, d_key, d_value = (jnp.swapaxes(array, 1, 2) for array in jax.vmap(of_row)(arrays, segments, *rows))
    d_query = (d_query.astype(log_sum.dtype) * call["scale"]).astype(query.dtype)
    return d_query[:, : query.shape[1]], d_key[:, : key.shape[1]], d_value[:, : value.shape[1]]


def _arranged(query, key, value, lengths, scale):
    """Heads first and whole blocks long, with the scale in the query; and which tokens are there, if not all are."""
    scaled = (query.astype(jnp.float32) * scale).astype(query.dtype)
    arrays = tuple(map(_heads_first, (scaled, key, value)))
    batch, length, size = query.shape[0], query.shape[1], key.shape[1]
    if lengths is None and arrays[1].shape[2] == size:
        return arrays, None
    queries, keys = lengths or (jnp.full(batch, each, jnp.int32) for each in (length, size))

    def segment(array, there):
        return (jnp.arange(array.shape[2], dtype=jnp.int32)[None] >= there[:, None]).astype(jnp.int32)

    # A query that is not there, 2, sees no key: those that are are 0, and the others 1.
    return arrays, _splash.SegmentIds(2 * segment(arrays[0], queries), segment(arrays[1], keys))


def _heads_first(array):
    """[B, T, N, ...] -> [B, N, T, ...], with zeros up to whole blocks."""
    array = jnp.swapaxes(array, 1, 2)
    missing = -array.shape[2] % _LANES
    return jnp.pad(array, [(0, missing if axis == 2 else 0) for axis in range(array.ndim)])


def _made(arrays, call):
    query, key, _ = arrays
    sides = query.shape[2], key.shape[2]
    if call["window"] is not None:
        mask = _splash.LocalMask(sides, (call["window"], 0), offset=0)  # only causal ones come here
    else:
        mask = _splash.CausalMask(sides) if call["is_causal"] else _splash.FullMask(sides)
    rows, columns = (next(side for side in (_LARGEST, 256, _LANES) if length % side == 0) for length in sides)
    blocks = {"block_q": rows, "block_q_dkv": rows, "block_q_dq": rows}
    blocks |= {f"block_kv{kind}": columns for kind in ("", "_compute", "_dkv", "_dkv_compute", "_dq")}
    return _splash.make_splash_mha(
        _splash.MultiHeadMask([mask] * query.shape[1]),
        block_sizes=_splash.BlockSizes(**blocks),
        save_residuals=True,
        head_shards=1,
        q_seq_shards=1,
        interpret=call["interpret"],
    )
