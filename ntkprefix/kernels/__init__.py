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
    """Which implementation in `EVERYWHERE` is used where none is asked for."""
    enough = _LOGITS.get(jax.default_backend(), _LOGITS_ELSEWHERE)
    return "blockwise" if queries * keys >= enough else "xla"


def best_for(query: Any, key: Any, value: Any, *, prefix: Any, **call: Any) -> str:
    """Which implementation is used for a call of `attend` where none is asked for: a fused one if it has all of it."""
    if jax.default_backend() == "gpu":
        # Without a prefix cuDNN's is the faster one in short rows (`benchmarks/results/gpu.json`).
        for name in ("pallas", "cudnn") if prefix is not None else ("cudnn", "pallas"):
            if FUSED[name].unsupported(query, key, value, prefix=prefix, **call) is None:
                return name
    return best(query.shape[1], key.shape[1])
