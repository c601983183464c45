"""The prefix kinds: pytrees that answer `partial(query, scale)`, the prefix's share of attention."""

from ntkprefix.prefixes.base import Prefix, PrefixShape
from ntkprefix.prefixes.features import FeaturePrefix
from ntkprefix.prefixes.joined import JoinedPrefix
from ntkprefix.prefixes.measure import MeasurePrefix
from ntkprefix.prefixes.tokens import TokenPrefix

__all__ = ["FeaturePrefix", "JoinedPrefix", "MeasurePrefix", "Prefix", "PrefixShape", "TokenPrefix"]
