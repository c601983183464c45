"""Attention over explicit keys, one implementation per file, all with the same two functions.

`attend(query, key, value, prefix=..., **options)` gives output and log-sum-exp; `partial_attention(..., also=...)` the
share of the keys, for what merges shares itself. The options are those of `dense.partial_attention`.
"""

import jax

from ntkprefix.kernels import blockwise, dense

IMPLEMENTATIONS = {"xla": dense, "blockwise": blockwise}

# Logits per head from which blocks are used: from 256 by 256 they are faster on a CPU in every shape of
# `benchmarks/results/block_sizes.json`, below that they compile longer and gain little. Elsewhere nothing was measured,
# and what decides is memory.
_LOGITS = {"cpu": 2**16}
_LOGITS_ELSEWHERE = 2**22


def best(queries: int, keys: int) -> str:
    """The name of the implementation that is used where none is asked for."""
    enough = _LOGITS.get(jax.default_backend(), _LOGITS_ELSEWHERE)
    return "blockwise" if queries * keys >= enough else "xla"
