"""A prompt's keys and values -> a small prefix.

A new method is one file with a frozen dataclass that is called with (problem, numbers, key) and returns a prefix of at
most that many numbers for each kv head, and one line in `METHODS`.
"""

from ntkprefix._extras import extra

with extra("models", "ntkprefix.compress"):
    from ntkprefix.compress.compress import Compressed, compress, judge
    from ntkprefix.compress.first import KeepFirst
    from ntkprefix.compress.fitted import FittedFeatures
    from ntkprefix.compress.keep import KeepEnds
    from ntkprefix.compress.matching import Matching
    from ntkprefix.compress.means import Means
    from ntkprefix.compress.measures import Clouds
    from ntkprefix.compress.problem import Method
    from ntkprefix.compress.pruning import Prune
    from ntkprefix.compress.refined import Refined
    from ntkprefix.compress.registry import METHODS
    from ntkprefix.compress.report import Report
    from ntkprefix.compress.sampling import ImportanceSample, UniformSample
    from ntkprefix.compress.sums import Sums
    from ntkprefix.compress.wildcat import Wildcat

__all__ = [
    "METHODS",
    "Clouds",
    "Compressed",
    "FittedFeatures",
    "ImportanceSample",
    "KeepEnds",
    "KeepFirst",
    "Matching",
    "Means",
    "Method",
    "Prune",
    "Refined",
    "Report",
    "Sums",
    "UniformSample",
    "Wildcat",
    "compress",
    "judge",
]
