"""The tiny model's sizes and prefixes that fit it."""

import jax

from ntkprefix import TokenPrefix
from ntkprefix.models import ViTConfig

TINY = ViTConfig(patch=4, width=12, layers=3, heads=3, mlp_width=20, grid=4)


def token_prefix(seed=0, tokens=5, layers=None, config=TINY):
    shape = (tokens, config.heads, config.head_width)
    shape = shape if layers is None else (layers, *shape)
    keys, values = jax.random.normal(jax.random.key(seed), (2, *shape))
    return TokenPrefix(keys, values)
