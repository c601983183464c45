"""Partial attention over explicit keys, one implementation per file, all with one signature."""

import jax

from ntkprefix.kernels import blockwise, dense

# Name -> function(query, key, value, **options) -> Partial; the options are those of `dense.partial_attention`.
IMPLEMENTATIONS = {"xla": dense.partial_attention, "blockwise": blockwise.partial_attention}

# Logits per head from which blocks are used: from 256 by 256 they are faster on a CPU in every shape of
# `benchmarks/results/block_sizes.json`, below that they compile longer and gain little. Elsewhere nothing was measured,
# and what decides is memory.
_LOGITS = {"cpu": 2**16}
_LOGITS_ELSEWHERE = 2**22


def best(queries: int, keys: int) -> str:
    """The name of the implementation that is used where none is asked for."""
    enough = _LOGITS.get(jax.default_backend(), _LOGITS_ELSEWHERE)
    return "blockwise" if queries * keys >= enough else "xla"
