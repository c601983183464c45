"""Pretrained transformers in Flax NNX that take prefixes and adapters beside their inputs.

One block (`block`) and two models made of it (`vit`, `text`) serve every architecture: a new one is a file in
`families`, which reads a configuration and says which tensors the parameters come from.
"""

from ntkprefix._extras import extra

with extra("models", "ntkprefix.models"):
    from ntkprefix.models.adaptation import Adaptation, LowRank
    from ntkprefix.models.block import Block, BlockConfig
    from ntkprefix.models.cache import Cache
    from ntkprefix.models.families.dinov2 import load_dinov2
    from ntkprefix.models.generate import Generated, generate
    from ntkprefix.models.load import load_text_model
    from ntkprefix.models.preprocessing import load_preprocess
    from ntkprefix.models.rotary import Rotary
    from ntkprefix.models.statistics import AttentionStatistics, observe_queries
    from ntkprefix.models.text import TextConfig, TextModel
    from ntkprefix.models.vit import ViT, ViTConfig

__all__ = [
    "Adaptation",
    "AttentionStatistics",
    "Block",
    "BlockConfig",
    "Cache",
    "Generated",
    "LowRank",
    "Rotary",
    "TextConfig",
    "TextModel",
    "ViT",
    "ViTConfig",
    "generate",
    "load_dinov2",
    "load_preprocess",
    "load_text_model",
    "observe_queries",
]
