"""Partial attention over explicit keys, one implementation per file, all with one signature."""

from ntkprefix.kernels import blockwise, dense

# Name -> function(query, key, value, **options) -> Partial; the options are those of `dense.partial_attention`.
IMPLEMENTATIONS = {"xla": dense.partial_attention, "blockwise": blockwise.partial_attention}
DEFAULT = "xla"
