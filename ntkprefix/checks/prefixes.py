"""What prefixes and their parts are made of, and what is merged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkprefix.checks.describe import described, is_real, shapes

# Rows of the empty arrays of one file: 100 ns each to JAX, and ten times what any adapter of rank 0 has.
_MOST_EMPTY_ROWS = 2**24


def floating(kind: str, **named: Any) -> None:
    """Parts of a pytree, which can hold anything until they are used.

    Raises:
        TypeError: something that is not an array of floating-point numbers.
    """
    for name, array in named.items():
        if not (hasattr(array, "dtype") and hasattr(array, "ndim")) or not jnp.issubdtype(array.dtype, jnp.floating):
            found = None if array is None else getattr(array, "dtype", type(array).__name__)
            raise TypeError(f"{kind}: expected {name} to be an array of floating-point numbers, got {found}.")


def fit_together(kind: str, axes: Mapping[str, str], named: Mapping[str, Any], optional: Sequence[str] = ()) -> None:
    """Arrays of one object: every axis letter has one size, and all have a leading B axis or none.

    Args:
        kind: name for the message.
        axes: axis letters per array, as in `"M K H"`.
        named: the arrays.
        optional: names of those that may be None.

    Raises:
        TypeError: something that is not an array of floating-point numbers.
        ValueError: a wrong rank, or sizes that differ.
    """
    sizes: dict[str, int] = {}
    present = {name: array for name, array in named.items() if array is not None or name not in optional}
    floating(kind, **present)
    wanted = ", ".join(f"{name} [{axes[name].replace(' ', ', ')}]" for name in present)
    for name, array in present.items():
        letters = axes[name].split()
        if array.ndim == len(letters) + 1:
            letters = ["B", *letters]
        elif array.ndim != len(letters):
            raise ValueError(f"{kind}: expected {wanted} (each with a leading B or none), got {shapes(present)}.")
        for letter, size in zip(letters, array.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(f"{kind}: expected one size of axis {letter} in {wanted}, got {shapes(present)}.")
    ranks = {array.ndim - len(axes[name].split()) for name, array in present.items()}
    if len(ranks) > 1:
        raise ValueError(f"{kind}: expected a leading B axis on every array or on none, got {shapes(present)}.")


def tokens_of_layers(kind: str, tokens: Any, least: int) -> None:
    """Prefix tokens of every layer, [L, M, K, H] and [L, M, K, Hv], that an adapter starts from.

    Raises:
        ValueError: no axis of layers, weights, or fewer than `least` tokens.
    """
    if tokens.keys.ndim != 4 or tokens.log_weights is not None:
        found = "log-weights" if tokens.log_weights is not None else f"shape {tokens.keys.shape}"
        raise ValueError(f"{kind}: expected tokens of every layer, keys [L, M, K, H] without weights, got {found}.")
    if tokens.keys.shape[1] < least:
        raise ValueError(f"{kind}: expected at least {least} tokens to start from, got {tokens.keys.shape[1]}.")


def stored_arrays(
    kind: str, axes: Mapping[str, str], sizes: Mapping[str, int], arrays: Mapping[str, np.ndarray]
) -> None:
    """Arrays from a file: the names that belong there and no others, whose axes of one letter have one size.

    Args:
        kind: what they make up.
        axes: axis letters of every array, as in `"L N R Hv"`.
        sizes: of letters that are known.
        arrays: what the file has.

    Raises:
        ValueError: other names, axes or sizes; integers; a number that is not finite.
    """
    if set(arrays) != set(axes):
        raise ValueError(f"expected the arrays of {kind}, {_names(axes)}, got {_names(arrays)}")
    known = dict(sizes)
    for name, array in arrays.items():
        letters = axes[name].split()
        if len(letters) != array.ndim or any(
            known.setdefault(letter, size) != size for letter, size in zip(letters, array.shape, strict=True)
        ):
            where = ", ".join(f"{letter} = {known[letter]}" for letter in letters if letter in known)
            fixed = f" with {where}" if where else ""
            raise ValueError(f"expected {name} [{', '.join(letters)}]{fixed}, got {shapes({name: array})}")
        finite_array(name, array)


def stored_shapes(shapes: Mapping[str, Sequence[int]]) -> None:
    """Shapes in a file, before its arrays are made JAX's, which goes through every row of what is empty.

    A header of 200 bytes may have an array without numbers, of 10^15 rows.

    Args:
        shapes: of all arrays of a file, by name.

    Raises:
        ValueError: more rows of nothing than there can be.
    """
    rows = 0
    for name, shape in shapes.items():
        if 0 in shape:
            rows += math.prod(size for size in shape if size)
        if rows > _MOST_EMPTY_ROWS:
            raise ValueError(f"expected at most {_MOST_EMPTY_ROWS:,} rows of empty arrays, got {name} {list(shape)}")


def finite_array(name: str, array: np.ndarray) -> None:
    """An array of a file.

    Raises:
        ValueError: no floating-point numbers, or not finite.
    """
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"expected floating-point numbers as {name}, got {array.dtype}")
    if not np.isfinite(array.astype(np.float32)).all():
        raise ValueError(f"expected finite numbers as {name}, got {np.size(array)} of which some are not")


def _names(named: Mapping[str, Any]) -> str:
    return ", ".join(sorted(named)) or "none"


def scale(function: str, scale: Any, width: int) -> Any:
    """The logit scale beta, 1/sqrt(H) if None.

    Raises:
        TypeError: not a real number.
        ValueError: an array that is not a scalar, NaN or infinity; a head without width.
    """
    if width == 0:
        raise ValueError(f"{function}: expected a head width H of at least 1, got 0.")
    if scale is None:
        return width**-0.5
    if not is_real(scale):
        raise TypeError(f"{function}: expected a number as scale, got {described(scale)}.")
    if jnp.shape(scale) != ():
        raise ValueError(f"{function}: expected a scalar scale, got shape {jnp.shape(scale)}.")
    if not isinstance(scale, jax.core.Tracer) and not math.isfinite(float(scale)):
        raise ValueError(f"{function}: expected a finite scale, got {scale}.")
    return scale


def positive_scale(beta: Any, width: int) -> Any:
    """The logit scale beta of a feature state, 1/sqrt(H) if None.

    Raises:
        TypeError: not a real number.
        ValueError: not a scalar, not finite, or not above 0: features need its square root.
    """
    beta = scale("FeaturePrefix", beta, width)
    if not isinstance(beta, jax.core.Tracer) and not float(beta) > 0:
        raise ValueError(f"FeaturePrefix: expected a scale above 0, got {beta}.")
    return beta


def known_scale(scale: Any) -> float | None:
    """The scale as a number for a state to remember; None where it is traced."""
    return None if isinstance(scale, jax.core.Tracer) else float(scale)


def scale_of_state(built: float | None, scale: Any) -> None:
    """The scale that a state meets against the one that it was built with, as far as both are known.

    Raises:
        ValueError: they differ by more than float32's rounding.
    """
    met = known_scale(scale)
    if built is not None and met is not None and not math.isclose(built, met, rel_tol=1e-6):
        raise ValueError(
            f"FeaturePrefix: expected scale {built:.7g}, which the state was built with, got {met:.7g}. Build the "
            f"state with `from_tokens(..., scale={met:.7g})`."
        )


def feature_count(feature_map: Any, width: int, found: int) -> None:
    """A state's feature count against its map's.

    Raises:
        ValueError: they differ.
    """
    expected = feature_map.size(width)
    if expected != found:
        raise ValueError(
            f"FeaturePrefix: expected R = {expected} features ({feature_map} at head width {width}), got {found}."
        )


def same_kind(a: Any, b: Any) -> None:
    """Two prefixes that are added or subtracted.

    Raises:
        TypeError: of two kinds.
    """
    if type(b) is not type(a):
        raise TypeError(
            f"{type(a).__name__}: can add or subtract only its own kind, got {type(b).__name__}. A JoinedPrefix has "
            "several kinds side by side."
        )


def of_like_parts(a: Any, b: Any) -> None:
    """Two joined prefixes that are added or subtracted part by part.

    Raises:
        TypeError: another kind, or parts of other kinds.
    """
    same_kind(a, b)
    found = [", ".join(type(part).__name__ for part in each.parts) or "none" for each in (a, b)]
    if found[0] != found[1]:
        raise TypeError(f"JoinedPrefix: can add or subtract parts of the same kinds only, got {found[0]}; {found[1]}.")


def listed_alike(a: Any, b: Any, axis: int) -> None:
    """Two prefixes of tokens, or of clouds, that are put behind one another.

    Args:
        a: the first.
        b: the second.
        axis: of tokens or clouds, whose number alone may differ.

    Raises:
        TypeError: of two kinds, or as for their `shape`.
        ValueError: of other sizes, or as for their `shape`.
    """
    same_kind(a, b)
    for each in (a, b):
        each.shape()
    found = [
        {
            name: (*array.shape[:axis], *array.shape[axis + 1 :])
            for name, array in vars(each).items()
            if array is not None
        }
        for each in (a, b)
    ]
    if any(found[0][name] != found[1][name] for name in found[0].keys() & found[1].keys()):
        told = " and ".join(
            shapes({name: array for name, array in vars(each).items() if array is not None}) for each in (a, b)
        )
        raise ValueError(f"{type(a).__name__}: expected prefixes that differ in nothing but their length, got {told}.")


def addable(a: Any, b: Any) -> None:
    """Two feature states whose sums are over the same features.

    Raises:
        TypeError: the second is no feature state, or Z, k or log_scale of one is no array of floating-point numbers.
        ValueError: other feature maps, shapes, scales or centres.
    """
    same_kind(a, b)
    for state in (a, b):
        floating("FeaturePrefix", Z=state.Z, k=state.k)
        if state.log_scale is not None:
            floating("FeaturePrefix", log_scale=state.log_scale)
    if a.feature_map != b.feature_map:
        raise ValueError(f"FeaturePrefix: expected one feature map, got {a.feature_map} and {b.feature_map}.")
    if a.Z.shape != b.Z.shape:
        raise ValueError(f"FeaturePrefix: expected states of one shape, got Z {a.Z.shape} and {b.Z.shape}.")
    if a.k.shape != b.k.shape:
        raise ValueError(f"FeaturePrefix: expected states of one shape, got k {a.k.shape} and {b.k.shape}.")
    if b.scale is not None:
        scale_of_state(a.scale, b.scale)
    if (a.centre is None) != (b.centre is None) or _known_to_differ(a.centre, b.centre):
        raise ValueError(
            "FeaturePrefix: states recentred on different points cannot be added. Build the second with "
            "`from_tokens(..., centre=first.centre)`, or use `first.append(keys, values)`."
        )


def mergeable(kind: type, partials: tuple[Any, ...]) -> None:
    """Shares of attention over disjoint groups of keys, for the same queries.

    Raises:
        TypeError: not a `Partial`, or not one of arrays of floating-point numbers.
        ValueError: none, or shapes that differ.
    """
    if not partials:
        raise ValueError("merge: expected at least one Partial, got none.")
    for partial in partials:
        if not isinstance(partial, kind):
            raise TypeError(f"merge: expected Partials, got {described(partial)}. A prefix has its `partial` method.")
    for partial in partials:
        floating("merge", num=partial.num, den=partial.den, log_scale=partial.log_scale)
    found = [tuple(jnp.shape(leaf) for leaf in (p.num, p.den, p.log_scale)) for p in partials]
    rows = found[0][1]
    if len(set(found)) > 1 or found[0][2] != rows or found[0][0][:-1] != rows:
        raise ValueError(
            f"merge: expected num [B, T, N, Hv], den and log_scale [B, T, N] of one size each, got "
            f"{'; '.join(', '.join(map(str, sizes)) for sizes in found)}."
        )


def rank_fits(rank: int, width: int) -> None:
    """The rank of a covariance.

    Raises:
        ValueError: above the width.
    """
    if rank > width:
        raise ValueError(f"MeasurePrefix: expected a rank of at most the head width H = {width}, got {rank}.")


def _known_to_differ(a: Any, b: Any) -> bool:
    if a is None or a is b or isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):
        return False
    return not np.array_equal(np.asarray(a), np.asarray(b))
