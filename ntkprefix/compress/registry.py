"""The methods by their names."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ntkprefix.compress.first import KeepFirst
from ntkprefix.compress.fitted import FittedFeatures
from ntkprefix.compress.keep import KeepEnds
from ntkprefix.compress.matching import Matching
from ntkprefix.compress.means import Means
from ntkprefix.compress.measures import Clouds
from ntkprefix.compress.problem import Method
from ntkprefix.compress.pruning import Prune
from ntkprefix.compress.refined import Refined
from ntkprefix.compress.sampling import ImportanceSample, UniformSample
from ntkprefix.compress.sums import Sums
from ntkprefix.compress.wildcat import Wildcat

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "ends": KeepEnds(),
        "uniform": KeepFirst(UniformSample()),
        "importance": ImportanceSample(),
        "attention": Prune("attention"),
        "snapkv": Prune("pooled"),
        "expected": Prune("expected"),
        "knorm": Prune("norm"),
        "keydiff": Prune("distinct"),
        "kmeans": KeepFirst(Means()),
        "wildcat": KeepFirst(Wildcat()),
        "matching": Matching(),
        "matching-in-context": Matching(in_context=True),
        "matching-pursuit": Matching("pursuit", in_context=True),
        "elu": KeepFirst(Sums("elu")),
        "taylor": Sums("taylor"),
        "favor": KeepFirst(Sums("favor")),
        "fitted-elu": KeepFirst(FittedFeatures("elu")),
        "fitted-favor": KeepFirst(FittedFeatures("favor")),
        "measure": KeepFirst(Clouds(rank=1)),
        "refined": Refined(),
    }
)
