"""What can be trained on a frozen model. An adapter is a small pytree of parameters and a pure function from it.

A new adapter is one file with a frozen dataclass that has `init`, `prefixes` and `project` (see `base.Adapter`), and
one line in `ADAPTERS`.
"""

from ntkprefix.adapters.base import Adapter, count
from ntkprefix.adapters.features import FeatureAdapter
from ntkprefix.adapters.head import HeadAdapter
from ntkprefix.adapters.tokens import TokenAdapter

ADAPTERS = {"head": HeadAdapter, "tokens": TokenAdapter, "features": FeatureAdapter}

__all__ = ["ADAPTERS", "Adapter", "FeatureAdapter", "HeadAdapter", "TokenAdapter", "count"]
