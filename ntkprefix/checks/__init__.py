"""Every complaint about input, in one place: what was expected, what came, what to do.

`TypeError` for types and dtypes, `ValueError` for shapes and options.
"""

from ntkprefix.checks.call import (
    arrays,
    flag,
    implementation,
    lengths,
    offset,
    over_logits,
    prefix,
    window,
)
from ntkprefix.checks.options import (
    at_least,
    feature_options,
    is_feature_map,
    non_negative,
    nonnegative_features,
    not_too_many_features,
    one_of,
    one_random_key,
    reachable,
)
from ntkprefix.checks.prefixes import (
    addable,
    feature_count,
    fit_together,
    known_scale,
    mergeable,
    positive_scale,
    rank_fits,
    scale,
    scale_of_state,
)

__all__ = [
    "addable",
    "arrays",
    "at_least",
    "feature_count",
    "feature_options",
    "fit_together",
    "flag",
    "implementation",
    "is_feature_map",
    "known_scale",
    "lengths",
    "mergeable",
    "non_negative",
    "nonnegative_features",
    "not_too_many_features",
    "offset",
    "one_of",
    "one_random_key",
    "over_logits",
    "positive_scale",
    "prefix",
    "rank_fits",
    "reachable",
    "scale",
    "scale_of_state",
    "window",
]
