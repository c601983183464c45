"""The methods by their names, and what they have in common."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from jaxtyping import PRNGKeyArray

from ntkprefix.compress.fitted import FittedFeatures
from ntkprefix.compress.keep import KeepEnds
from ntkprefix.compress.matching import Matching
from ntkprefix.compress.means import Means
from ntkprefix.compress.measures import Clouds
from ntkprefix.compress.problem import Problem
from ntkprefix.compress.pruning import Prune
from ntkprefix.compress.refined import Refined
from ntkprefix.compress.sampling import ImportanceSample, UniformSample
from ntkprefix.compress.sums import Sums
from ntkprefix.compress.wildcat import Wildcat


@runtime_checkable
class Method(Protocol):
    """How a layer's prompt becomes a small prefix: a hashable value, under whose options one program is compiled."""

    @property
    def needs_queries(self) -> bool:
        """Whether it fits the prefix to queries."""
        ...

    def __call__(self, problem: Problem, numbers: int, key: PRNGKeyArray) -> Any:
        """A prefix of at most `numbers` numbers for each kv head.

        Raises:
            ValueError: so few hold none.
        """
        ...


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "ends": KeepEnds(),
        "uniform": UniformSample(),
        "importance": ImportanceSample(),
        "attention": Prune("attention"),
        "snapkv": Prune("pooled"),
        "expected": Prune("expected"),
        "knorm": Prune("norm"),
        "keydiff": Prune("distinct"),
        "kmeans": Means(),
        "wildcat": Wildcat(),
        "matching": Matching(),
        "matching-in-context": Matching(in_context=True),
        "elu": Sums("elu"),
        "taylor": Sums("taylor"),
        "favor": Sums("favor"),
        "fitted-elu": FittedFeatures("elu"),
        "fitted-favor": FittedFeatures("favor"),
        "measure": Clouds(rank=1),
        "refined": Refined(),
    }
)
