"""Pretrained transformers in Flax NNX that take prefixes beside their inputs.

A new architecture is one file for the model, built from `layers` and `depth`, and one for its checkpoints: how a
configuration is read, and a name map for `checkpoints.fill`.
"""

from ntkprefix.models.dinov2 import load_dinov2
from ntkprefix.models.statistics import AttentionStatistics
from ntkprefix.models.vit import ViT, ViTConfig

__all__ = ["AttentionStatistics", "ViT", "ViTConfig", "load_dinov2"]
