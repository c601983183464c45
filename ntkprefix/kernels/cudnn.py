"""NVIDIA's fused attention through JAX: the one place that calls JAX's private functions for it.

`jax.nn.dot_product_attention` rounds the log-sum-exp to the query's type, in which bfloat16 leaves a weight of e^l off
by several per cent, and takes no gradient of it. Its primitives give it in float32, and their gradient takes output and
log-sum-exp as arguments: of more keys than these, if a prefix has joined them.
"""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkprefix.kernels.masks import not_fused

try:
    from jax._src.cudnn import fused_attention_stablehlo as _cudnn
except ImportError:  # another release of JAX may keep it elsewhere: then there is no such implementation
    _cudnn = None

_NEEDED = (
    "_dot_product_attention_fwd_p_wrapper",
    "_dot_product_attention_bwd_p_wrapper",
    "MaskType",
    "AttentionLayout",
)
if not all(hasattr(_cudnn, name) for name in _NEEDED):
    _cudnn = None
# JAX 0.12 has a modification of the logits, and asks for it here.
_MORE: dict[str, None] = {}
if _cudnn is not None and "score_mod" in inspect.signature(_cudnn._dot_product_attention_fwd).parameters:
    _MORE["score_mod"] = None
_WIDEST = 128


def available() -> bool:
    """Whether this process runs on a GPU for which JAX has cuDNN's attention."""
    if _cudnn is None or jax.default_backend() != "gpu":
        return False
    try:
        _cudnn.check_cudnn_version()
    except RuntimeError:
        return False
    return _cudnn.check_compute_capability("8.0")


def is_hopper() -> bool:
    """Whether the GPU, if there is one, is of compute capability 9.0."""
    return available() and _cudnn.is_cuda_compute_capability_equal("9.0")


def unsupported(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K Hv"],
    options: dict[str, Any],
) -> str | None:
    """What of a call cuDNN or its interface has nothing for, in words; None where it has all."""
    width = query.shape[-1]
    if query.dtype not in (jnp.bfloat16, jnp.float16) or not query.dtype == key.dtype == value.dtype:
        return f"query, key and value of {query.dtype}, {key.dtype} and {value.dtype} (bfloat16 or float16 alone)"
    if width % 8 or not 0 < width <= _WIDEST or value.shape[-1] != width:
        return f"heads of width {width} with values of {value.shape[-1]} (multiples of 8 up to {_WIDEST}, both alike)"
    if not query.shape[1] or not key.shape[1]:
        return "no queries or no keys"
    return not_fused(options)


def forward(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    lengths: tuple[Int[Array, " B"], Int[Array, " B"]] | None,
    **call: Any,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Output and log-sum-exp, the latter in float32; neither means anything in a row that sees no key.

    Args:
        query: [B, T, N, H].
        key: [B, S, K, H].
        value: [B, S, K, H].
        lengths: queries and keys of each row of the batch.
        call: `scale`, a number, `is_causal` and `window`, how many keys before its own a query sees.
    """
    out, log_sum = _cudnn._dot_product_attention_fwd_p_wrapper.bind(
        *_arguments(query, key, value, lengths), **_parameters(lengths, **call), is_training=True
    )
    return out, jnp.swapaxes(log_sum, 1, 2)


def backward(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    lengths: tuple[Int[Array, " B"], Int[Array, " B"]] | None,
    out: Float[Array, "B T N H"],
    log_sum: Float[Array, "B T N"],
    d_out: Float[Array, "B T N H"],
    **call: Any,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Gradients in query, key and value, whose weights are e^{logit - log_sum}, of `out`, the sum over all keys."""
    arguments = *_arguments(query, key, value, lengths), jnp.swapaxes(log_sum, 1, 2), out, d_out
    gradients = _cudnn._dot_product_attention_bwd_p_wrapper.bind(*arguments, **_parameters(lengths, **call))
    return tuple(gradients[:3])


def _arguments(query, key, value, lengths):
    unused = jnp.zeros(0, query.dtype)
    return query, key, value, unused, *(lengths or (unused, unused)), *(unused,) * 4


def _parameters(lengths, *, scale, is_causal, window):
    kinds = _cudnn.MaskType
    if lengths is None:
        kind = kinds.CAUSAL if is_causal else kinds.NO_MASK
    else:
        kind = kinds.PADDING_CAUSAL if is_causal else kinds.PADDING
    return {
        "scale": scale,
        "seed": 42,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),
        "mask_type": kind,
        "layout": _cudnn.AttentionLayout.BTNH.value,
        "sliding_window_length": None if window is None else window + 1,
        **_MORE,
    }
