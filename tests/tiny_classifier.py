"""A classifier of two classes of small random images, for the tests of adapters."""

from functools import cache

import jax
import numpy as np
from flax import nnx

from ntkprefix import feature_map
from ntkprefix.classify import Classifier
from ntkprefix.models import BlockConfig, ViT, ViTConfig

LAYERS, HEADS, WIDTH = 3, 3, 4
FAVOR = feature_map("favor", features=15, key=jax.random.key(0))
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
LABELS = (IMAGES.mean(axis=(1, 2, 3)) > np.median(IMAGES.mean(axis=(1, 2, 3)))).astype(np.int32)


@cache
def tiny_model():
    block = BlockConfig(width=HEADS * WIDTH, heads=HEADS, mlp_width=16, layer_scale=True)
    config = ViTConfig(patch=4, layers=LAYERS, grid=3, block=block)
    return nnx.jit(lambda: ViT(config, rngs=nnx.Rngs(0)))()


def initial(model, adapter):
    classifier = Classifier(model, adapter)
    return classifier, classifier.init(jax.random.key(0), (IMAGES,), classes=2)
