"""The tiny model's sizes and prefixes that fit it."""

import jax

from ntkprefix import TokenPrefix
from ntkprefix.models import BlockConfig, ViTConfig

TINY = ViTConfig(patch=4, layers=3, grid=4, block=BlockConfig(width=12, heads=3, mlp_width=20, layer_scale=True))


def token_prefix(seed=0, tokens=5, layers=None, config=TINY):
    shape = (tokens, config.block.heads, config.block.head_width)
    shape = shape if layers is None else (layers, *shape)
    keys, values = jax.random.normal(jax.random.key(seed), (2, *shape))
    return TokenPrefix(keys, values)
