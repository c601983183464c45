"""Prefixes of any length, the infinite one included, for attention in JAX."""

from ntkprefix._version import __version__
from ntkprefix.attention import attention
from ntkprefix.bounds import taylor_error_bound
from ntkprefix.feature_maps import feature_map
from ntkprefix.partial import Partial, merge
from ntkprefix.prefixes import FeaturePrefix, JoinedPrefix, MeasurePrefix, TokenPrefix

__all__ = [
    "FeaturePrefix",
    "JoinedPrefix",
    "MeasurePrefix",
    "Partial",
    "TokenPrefix",
    "__version__",
    "attention",
    "feature_map",
    "merge",
    "taylor_error_bound",
]
