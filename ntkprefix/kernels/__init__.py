"""Attention over explicit keys, one implementation per file.

`attend(query, key, value, prefix=..., **options)` gives output and log-sum-exp. Those of plain XLA, "xla" and
"blockwise", do everything on every device, and have `partial_attention(..., also=...)` for what merges shares itself;
the options are those of `dense.partial_attention`. The fused kernels of GPUs and TPUs say what they have nothing for.
"""

from typing import Any

import jax

from ntkprefix.kernels import blockwise, dense
from ntkprefix.kernels.fused import Fused

EVERYWHERE: dict[str, Any] = {"xla": dense, "blockwise": blockwise}
FUSED = {name: Fused(name) for name in ("pallas", "cudnn", "splash")}
IMPLEMENTATIONS: dict[str, Any] = EVERYWHERE | FUSED

# Logits per head from which blocks are used: from 256 by 256 they are faster on a CPU in every shape of
# `benchmarks/results/block_sizes.json`, below that they compile longer and gain little. Elsewhere nothing was measured,
# and what decides is memory.
_LOGITS = {"cpu": 2**16}
_LOGITS_ELSEWHERE = 2**22


def best(queries: int, keys: int) -> str:
    """Which implementation in `EVERYWHERE` is used where none is asked for.

    Args:
        queries: T.
        keys: S.

    Returns:
        "blockwise" from 2^16 logits T S per head if JAX's default device is a CPU, and from 2^22 elsewhere; "xla"
        below.

    Example:
        >>> from ntkprefix.kernels import best
        >>> best(8, 8), best(4096, 4096)
        ('xla', 'blockwise')
    """
    enough = _LOGITS.get(jax.default_backend(), _LOGITS_ELSEWHERE)
    return "blockwise" if queries * keys >= enough else "xla"


def best_for(query: Any, key: Any, value: Any, *, prefix: Any, **call: Any) -> str:
    """Which implementation is used for a call of `attend` where none is asked for: a fused one if it has all of it.

    Args:
        query: [B, T, N, H]; of arrays, shapes and dtypes alone are looked at.
        key: [B, S, K, H].
        value: [B, S, K, Hv].
        prefix: of the call, or None.
        call: `scale` and the options of `dense.partial_attention`.

    Returns:
        A name in `IMPLEMENTATIONS`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntkprefix.kernels import best_for
        >>> short, long = (jax.ShapeDtypeStruct((1, length, 2, 4), jnp.float32) for length in (8, 4096))
        >>> best_for(short, short, short, prefix=None, scale=0.5)  # of float32 no fused kernel has anything
        'xla'
        >>> best_for(long, long, long, prefix=None, scale=0.5, is_causal=True)
        'blockwise'
    """
    if jax.default_backend() == "gpu":
        # Without a prefix cuDNN's is the faster one in short rows (`benchmarks/results/gpu.json`).
        for name in ("pallas", "cudnn") if prefix is not None else ("cudnn", "pallas"):
            if FUSED[name].unsupported(query, key, value, prefix=prefix, **call) is None:
                return name
    return best(query.shape[1], key.shape[1])
