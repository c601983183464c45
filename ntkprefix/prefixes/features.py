"""A prefix of any length as two sums over features: NTK-Attention's Z and k."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial as bind
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkprefix import checks
from ntkprefix._dtypes import accumulator
from ntkprefix._pytree import Leaf, pytree, static_field
from ntkprefix.feature_maps import Elu, FeatureMap
from ntkprefix.partial import Partial
from ntkprefix.prefixes.base import PrefixShape

# Tokens folded into the sums at a time: enough to fill a matmul, little enough to keep their features in cache.
_CHUNK = 512


@pytree
class FeaturePrefix:
    r"""An arbitrarily long prefix in R(Hv+1) numbers per head, at cost O(T R Hv) whatever its length.

    $$ num(q) = \phi(q)^T Z, \qquad den(q) = \phi(q) \cdot k, \qquad
       \log scale(q) = s + \beta\, q \cdot c + \log scale_\phi(q) $$

    with $\phi(q)\cdot\phi(p) \approx e^{\beta q \cdot p}$. A state built from tokens holds
    $Z = \sum_r \phi(p_r - c)\, u_r^T$ and $k = \sum_r \phi(p_r - c)$; a trained one holds free parameters. Being sums,
    states can be added (documents appended) and subtracted again, exactly up to rounding.

    Attributes:
        Z: weighted values, [K, R, Hv], or [N, R, Hv] for a state per query head; a leading B axis on every array gives
            each row of a batch its own prefix.
        k: weights, [K or N, R]. Taken as given: keep `phi(q).k >= 0`, or the denominator can vanish.
        feature_map: phi.
        log_scale: s, [K or N] or None for 0. A trained state needs it near the input's log-sum-exp (28 in some layers
            of a real model), or it weighs nothing. Far above it, by 88 in float32, the gradient at Z = k = 0 is too
            large for any float.
        centre: c, [K or N, H] or None for 0: the point the keys were recentred on.
        scale: the logit scale beta that the state was built with, which is then the only one it answers for; None where
            there is none (a trained state) or it was not known when building (a traced one). Not a leaf.
        axes: letters of every array's axes, of the class; A is K or N.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntkprefix import FeaturePrefix, TokenPrefix, attention, feature_map
        >>> keys, values, query = 0.3 * jax.random.normal(jax.random.key(0), (3, 1000, 2, 8))
        >>> state = FeaturePrefix.from_tokens(keys, values, feature_map=feature_map("taylor", degree=4))
        >>> state.Z.shape
        (2, 495, 8)
        >>> query = query[None, :5]
        >>> exact = attention(query, query, query, prefix=TokenPrefix(keys, values))
        >>> bool(jnp.allclose(attention(query, query, query, prefix=state), exact, atol=1e-5))
        True

    Source: NTK-Attention (arXiv 2406.14036), Algorithm 2 there; the log scale and the recentring are ours.
    """

    Z: Leaf
    k: Leaf
    feature_map: FeatureMap = Elu()
    log_scale: Leaf | None = None
    centre: Leaf | None = None
    scale: float | None = static_field(default=None)
    axes: ClassVar[Mapping[str, str]] = {"Z": "A R Hv", "k": "A R", "log_scale": "A", "centre": "A H"}

    @classmethod
    def from_tokens(
        cls,
        keys: Float[Array, "*B M K H"],
        values: Float[Array, "*B M K Hv"],
        *,
        feature_map: FeatureMap = Elu(),  # noqa: B008 - a constant
        recentre: bool = True,
        centre: Float[Array, "*B K H"] | None = None,
        scale: float | Float[Array, ""] | None = None,
    ) -> FeaturePrefix:
        r"""The state of M given tokens, in closed form, streamed over M in chunks.

        Args:
            keys: p, [M, K, H]; with a leading B axis, one prefix per row.
            values: u, [M, K, Hv].
            feature_map: phi.
            recentre: move the keys' mean into the log scale. Exact for the exponential, so it only shrinks the radius
                rho that an approximation's error grows with. Elu features approximate nothing and change with it:
                `recentre=False` gives the paper's Z and k.
            centre: a centre to use instead of the mean: give another state's to make the two addable.
            scale: beta; 1/sqrt(H) if None. `attention` must be called with the same: the state remembers it and refuses
                another. A traced scale works too, but cannot be remembered.

        Returns:
            The state, in float32 or wider.

        Raises:
            TypeError: arrays that are not floating point, no feature map, a scale that is no number, a `recentre` that
                is neither True nor False.
            ValueError: shapes that do not fit, a head without width, a scale that is not finite and above 0, a feature
                map of too many features.

        Source: NTK-Attention (arXiv 2406.14036), Algorithm 2 there; the recentring is ours.
        """
        checks.fit_together(
            "from_tokens",
            {"keys": "M K H", "values": "M K Hv", "centre": "K H"},
            {"keys": keys, "values": values, "centre": centre},
            optional=("centre",),
        )
        checks.is_feature_map("from_tokens", feature_map)
        checks.yes_or_no("from_tokens", recentre=recentre)
        beta = checks.positive_scale(scale, keys.shape[-1])
        dtype = accumulator(keys.dtype)
        if centre is None and recentre:
            centre = jnp.sum(keys, axis=-3, dtype=dtype) / max(keys.shape[-3], 1)
        offset = jnp.zeros(keys.shape[:-3] + keys.shape[-2:], dtype) if centre is None else centre.astype(dtype)
        sums = bind(_sums, feature_map, jnp.sqrt(jnp.asarray(beta, dtype)))
        Z, k, log_scale = (sums if keys.ndim == 3 else jax.vmap(sums))(keys, values, offset)
        return cls(Z, k, feature_map, log_scale, None if centre is None else offset, checks.known_scale(beta))

    def __add__(self, other: FeaturePrefix) -> FeaturePrefix:
        """The state of both prefixes' tokens together.

        Raises:
            TypeError: `other` is not a `FeaturePrefix`, or one of the two is not made of arrays of floating-point
                numbers.
            ValueError: other feature maps, other shapes, or scales or centres that are known to differ: build one state
                with `scale=` and `centre=` of the other.
        """
        return self._combine(other, sign=1)

    def __sub__(self, other: FeaturePrefix) -> FeaturePrefix:
        """The state without the tokens of `other`, which must be among them.

        Raises:
            TypeError: as for `+`.
            ValueError: as for `+`.
        """
        return self._combine(other, sign=-1)

    def append(
        self,
        keys: Float[Array, "*B M K H"],
        values: Float[Array, "*B M K Hv"],
        *,
        scale: float | Float[Array, ""] | None = None,
    ) -> FeaturePrefix:
        """The state with M more tokens, recentred and scaled as the others were.

        Args:
            keys: [M, K, H]; with a leading B axis if the state has one.
            values: [M, K, Hv].
            scale: beta; the state's own if None, and 1/sqrt(H) if it remembers none. A state built with a traced scale
                needs that scale again here.

        Returns:
            The longer prefix's state, of the same size.

        Raises:
            TypeError: as for `from_tokens` and `+`.
            ValueError: as for `from_tokens`, a scale that is not the state's, or sizes that are not.
        """
        more = FeaturePrefix.from_tokens(
            keys,
            values,
            feature_map=self.feature_map,
            recentre=False,
            centre=self.centre,
            scale=self.scale if scale is None else scale,
        )
        return self + more

    def shape(self) -> PrefixShape:
        """The sizes that have to match.

        Raises:
            TypeError: one of them is not an array of floating-point numbers.
            ValueError: the arrays do not fit each other.
        """
        arrays = {name: getattr(self, name) for name in self.axes}
        checks.fit_together("FeaturePrefix", self.axes, arrays, optional=("log_scale", "centre"))
        rows = self.Z.shape[0] if self.Z.ndim == 4 else None
        width = None if self.centre is None else self.centre.shape[-1]
        return PrefixShape(rows, self.Z.shape[-3], width, self.Z.shape[-1], per_query_head=True)

    def partial(self, query: Float[Array, "B T N H"], scale: float | Float[Array, ""]) -> Partial:
        """The share of the whole prefix, however long it is.

        Raises:
            TypeError: as for `shape`, something that is no feature map, a scale that is no number.
            ValueError: as for `shape`, a scale that is not above 0 or is not the one the state was built with, or
                features that are not as many as the state's.
        """
        self.shape()
        batch, length, heads, width = query.shape
        checks.is_feature_map("FeaturePrefix", self.feature_map)
        checks.positive_scale(scale, width)
        checks.scale_of_state(self.scale, scale)
        checks.feature_count(self.feature_map, width, self.k.shape[-1])
        dtype = accumulator(query.dtype, self.Z.dtype)
        state_heads = self.Z.shape[-3]
        beta = jnp.asarray(scale, dtype)

        # One matrix of queries for each state, so that every product is one of matrices as they lie: all rows' queries
        # where they share the states, a row's own where they do not.
        own = self.Z.ndim == 4
        states = state_heads * (batch if own else 1)

        def of_states(array: Array) -> Array:
            return array.astype(dtype).reshape(states, *array.shape[2 if own else 1 :])

        queries = jnp.moveaxis(query.astype(dtype), 2, 1 if own else 0)
        queries = queries.reshape(states, batch * length * heads // states if states else 0, width)
        phi, log_scale = self.feature_map(queries * jnp.sqrt(beta))
        num = jnp.einsum("ATR,ARH->ATH", phi, of_states(self.Z))
        den = jnp.einsum("ATR,AR->AT", phi, of_states(self.k))
        if self.centre is not None:
            log_scale = log_scale + jnp.einsum("ATH,AH->AT", queries, of_states(self.centre) * beta)
        if self.log_scale is not None:
            log_scale = log_scale + of_states(self.log_scale)[..., None]

        def of_queries(array: Array) -> Array:
            lead = (batch, heads) if own else (heads, batch)
            return jnp.moveaxis(array.reshape(*lead, length, *array.shape[2:]), 1 if own else 0, 2)

        return Partial(*(of_queries(array) for array in (num, den, log_scale)))

    def by_kv_head(self, kv_heads: int) -> FeaturePrefix:
        """Arrays with [B or 1, 1, K] in front, whose entries are the prefix at one row and kv head.

        Args:
            kv_heads: K.
        """

        def of_heads(array: Array, own: bool) -> Array:
            rows, (heads, *rest) = (array.shape[0], array.shape[1:]) if own else (1, array.shape)
            return array.reshape(rows, 1, kv_heads, heads // kv_heads, *rest)

        own = self.Z.ndim == 4
        given = {name: getattr(self, name) for name in self.axes}
        return dataclasses.replace(
            self,
            feature_map=jax.tree.map(lambda array: array[None, None, None], self.feature_map),
            **{name: None if array is None else of_heads(array, own) for name, array in given.items()},
        )

    def _combine(self, other: FeaturePrefix, *, sign: int) -> FeaturePrefix:
        checks.addable(self, other)
        dtype = accumulator(self.Z.dtype, other.Z.dtype)
        scale_a, scale_b = (
            jnp.zeros(state.k.shape[:-1], dtype) if state.log_scale is None else state.log_scale.astype(dtype)
            for state in (self, other)
        )
        # A state that holds nothing must not set the scale: the other would underflow against it.
        holds_a, holds_b = (jnp.any(state.k != 0, -1) | jnp.any(state.Z != 0, (-2, -1)) for state in (self, other))
        larger = jnp.maximum(jnp.where(holds_a, scale_a, -jnp.inf), jnp.where(holds_b, scale_b, -jnp.inf))
        scale = jnp.where(jnp.isfinite(larger), larger, 0.0)
        weight_a = jnp.where(holds_a, jnp.exp(scale_a - scale), 0.0)
        weight_b = jnp.where(holds_b, jnp.exp(scale_b - scale), 0.0)
        return dataclasses.replace(
            self,
            Z=self.Z.astype(dtype) * weight_a[..., None, None]
            + sign * other.Z.astype(dtype) * weight_b[..., None, None],
            k=self.k.astype(dtype) * weight_a[..., None] + sign * other.k.astype(dtype) * weight_b[..., None],
            log_scale=scale,
            scale=other.scale if self.scale is None else self.scale,
        )


def _sums(
    feature_map: FeatureMap,
    root_scale: Float[Array, ""],
    keys: Float[Array, "M K H"],
    values: Float[Array, "M K Hv"],
    centre: Float[Array, "K H"],
) -> tuple[Float[Array, "K R Hv"], Float[Array, "K R"], Float[Array, " K"]]:
    """Z, k and their log scale, a chunk of tokens at a time; the scale is the largest met so far, as in a softmax."""
    length, heads, width = keys.shape
    features, dtype = feature_map.size(width), centre.dtype
    empty = (
        jnp.zeros((heads, features, values.shape[-1]), dtype),
        jnp.zeros((heads, features), dtype),
        jnp.full((heads,), -jnp.inf, dtype),
    )
    if length == 0:
        return empty[0], empty[1], jnp.zeros((heads,), dtype)
    chunk = min(_CHUNK, length)

    def add_chunk(carry, start):
        Z, k, scale = carry
        # The last chunk starts early enough to be whole; what it shares with the one before is masked out.
        first = jnp.minimum(start, length - chunk)
        key, value = (jax.lax.dynamic_slice_in_dim(array, first, chunk).astype(dtype) for array in (keys, values))
        phi, log_scale = feature_map((key - centre[None]) * root_scale)
        is_new = first + jnp.arange(chunk) >= start
        log_scale = jnp.where(is_new[:, None], log_scale, -jnp.inf)
        larger = jax.lax.stop_gradient(jnp.maximum(scale, jnp.max(log_scale, axis=0)))
        kept = jnp.exp(scale - larger)
        phi = phi * jnp.exp(log_scale - larger[None])[..., None]
        Z = Z * kept[:, None, None] + jnp.einsum("MKR,MKH->KRH", phi, value)
        return (Z, k * kept[:, None] + jnp.sum(phi, axis=0), larger), None

    (Z, k, scale), _ = jax.lax.scan(add_chunk, empty, jnp.arange(0, length, chunk))
    return Z, k, scale
