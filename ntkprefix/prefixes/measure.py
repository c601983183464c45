"""A prefix of Gaussian clouds of tokens, each with infinitely many."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial as bind
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ntkprefix import checks
from ntkprefix._dtypes import accumulator
from ntkprefix._pytree import Leaf, pytree
from ntkprefix.clusters import kmeans
from ntkprefix.kernels import dense
from ntkprefix.partial import Partial, add
from ntkprefix.prefixes import behind
from ntkprefix.prefixes.base import PrefixShape

# Clouds that are computed at once.
_CHUNK = 256


@pytree
class MeasurePrefix:
    r"""C clusters of tokens, each the infinite-token limit of a Gaussian cloud of keys and values.

    A cloud with log-weight b, key mean mu, key covariance Sigma = L L^T, value mean nu and cross-covariance
    W = Cov(value, key) = A L^T has, in closed form,

    $$ \log mass(q) = b + \beta\, q \cdot \mu + \tfrac{\beta^2}{2} |L^T q|^2, \qquad
       value(q) = \nu + \beta\, A L^T q, $$

    because E e^{beta q.p} and E e^{beta q.p} u are Gaussian integrals. The factored form makes every parameter value a
    real cloud (Sigma positive semidefinite, W within its range) at a cost of O(T C rho (H + Hv)). L = A = 0 gives
    weighted tokens, so that C = M is an exact finite prefix; C = 1 is one truly infinite prefix.

    Attributes:
        log_weight: b, [C, K]; -inf for an empty cluster. A leading B axis on every array: one prefix per row.
        mean: mu, [C, K, H].
        factor: L, [C, K, H, rho]; the rank rho may be 0.
        value: nu, [C, K, Hv].
        cross: A, [C, K, Hv, rho].
        axes: letters of every array's axes, of the class.

    Example:
        >>> import jax
        >>> from ntkprefix import MeasurePrefix, attention
        >>> keys, values = jax.random.normal(jax.random.key(0), (2, 500, 2, 8))
        >>> prefix = MeasurePrefix.from_tokens(keys, values, components=4, rank=2)
        >>> prefix.factor.shape
        (4, 2, 8, 2)
        >>> query = jax.random.normal(jax.random.key(1), (1, 3, 2, 8))
        >>> attention(query, query, query, prefix=prefix).shape
        (1, 3, 2, 8)

    Source: the large-prompt limit of softmax attention (arXiv 2512.11784) as a parametrisation.
    """

    log_weight: Leaf
    mean: Leaf
    factor: Leaf
    value: Leaf
    cross: Leaf
    axes: ClassVar[Mapping[str, str]] = {
        "log_weight": "C K",
        "mean": "C K H",
        "factor": "C K H rank",
        "value": "C K Hv",
        "cross": "C K Hv rank",
    }

    @classmethod
    def from_tokens(
        cls,
        keys: Float[Array, "*B M K H"],
        values: Float[Array, "*B M K Hv"],
        *,
        components: int,
        rank: int = 0,
        seed: int = 0,
        iterations: int = 25,
    ) -> MeasurePrefix:
        """Fit C clouds: k-means on each head's keys, then every cluster's mass and first two moments.

        Differentiable in keys and values, with finite gradients for any input: which cluster a token falls into and
        along which directions its cluster spreads are treated as constants, the moments along them are not. For rank 0
        that is the whole derivative, but at the points where a token changes its cluster.

        Args:
            keys: p, [M, K, H]; with a leading B axis, one prefix per row.
            values: u, [M, K, Hv].
            components: number of clusters C, at least 1.
            rank: rho, the leading directions of each cluster's key covariance that are kept, at most H.
            seed: of the k-means start.
            iterations: number of Lloyd steps.

        Returns:
            The prefix, in float32 or wider. Clusters that end up empty weigh nothing.

        Raises:
            TypeError: arrays that are not floating point, a count or seed that is not an integer.
            ValueError: shapes that do not fit, M = 0, C < 1, rho outside 0..H, iterations below 0, a seed of more than
                64 bits.
        """
        checks.fit_together("from_tokens", {"keys": "M K H", "values": "M K Hv"}, {"keys": keys, "values": values})
        checks.at_least(1, "MeasurePrefix.from_tokens", components=components, tokens=keys.shape[-3])
        checks.at_least(0, "MeasurePrefix.from_tokens", rank=rank, iterations=iterations)
        checks.rank_fits(rank, keys.shape[-1])
        checks.random_seed("MeasurePrefix.from_tokens", seed)
        dtype = accumulator(keys.dtype)
        fit = bind(fit_clouds, jax.random.key(seed), components=components, rank=rank, iterations=iterations)
        return (fit if keys.ndim == 3 else jax.vmap(fit))(keys.astype(dtype), values.astype(dtype))

    def __add__(self, other: MeasurePrefix) -> MeasurePrefix:
        """The clouds of both, behind one another: their shares of attention add.

        Raises:
            TypeError: `other` is not a `MeasurePrefix`, or as for `shape`.
            ValueError: other rows, heads, widths or ranks, or as for `shape`.
        """
        axis = self.mean.ndim - 3
        checks.listed_alike(self, other, axis)
        return behind.together(self, other, axis)

    def __sub__(self, other: MeasurePrefix) -> MeasurePrefix:
        """The clouds without those of `other`, which must be among them, behind one another and to the last bit.

        Raises:
            TypeError: as for `+`.
            ValueError: as for `+`, or they are not among them.
        """
        axis = self.mean.ndim - 3
        checks.listed_alike(self, other, axis)
        return behind.without(self, other, axis)

    def shape(self) -> PrefixShape:
        """The sizes that have to match.

        Raises:
            TypeError: one of them is not an array of floating-point numbers.
            ValueError: the arrays do not fit each other.
        """
        checks.fit_together("MeasurePrefix", self.axes, {name: getattr(self, name) for name in self.axes})
        rows = self.mean.shape[0] if self.mean.ndim == 4 else None
        return PrefixShape(rows, self.mean.shape[-2], self.mean.shape[-1], self.value.shape[-1])

    def partial(self, query: Float[Array, "B T N H"], scale: float | Float[Array, ""]) -> Partial:
        """The share of the C clouds.

        Raises:
            TypeError: as for `shape`.
            ValueError: as for `shape`.
        """
        self.shape()
        query = query.astype(accumulator(query.dtype, self.mean.dtype))
        axis = self.mean.ndim - 3
        clouds = self.mean.shape[axis]
        if clouds <= _CHUNK:
            return self._share(query, scale)
        # A chunk of clouds after another, computed again for the gradient: the sums of one are all that is kept.
        whole = clouds - clouds % _CHUNK

        def chunks(array: Array) -> Array:
            array = jnp.moveaxis(array, axis, 0)[:whole]
            return jnp.moveaxis(array.reshape(-1, _CHUNK, *array.shape[1:]), 1, axis + 1)

        @jax.checkpoint
        def add_chunk(total: Partial, chunk: MeasurePrefix) -> tuple[Partial, None]:
            return add(total, chunk._share(query, scale)), None

        rest = jax.tree.map(lambda array: jax.lax.slice_in_dim(array, whole, clouds, axis=axis), self)
        total, _ = jax.lax.scan(add_chunk, rest._share(query, scale), jax.tree.map(chunks, self))
        return total

    def _share(self, query: Float[Array, "B T N H"], scale: float | Float[Array, ""]) -> Partial:
        """Of all clouds at once."""
        rows = "B" if self.mean.ndim == 4 else ""
        logits = dense.grouped_logits(query, self.mean, scale)
        dtype = logits.dtype
        beta = jnp.asarray(scale, dtype)
        batch, length, _, width = query.shape
        grouped = query.astype(dtype).reshape(batch, length, logits.shape[1], logits.shape[2], width)
        tilt = beta * jnp.einsum(f"BTKGH,{rows}CKHJ->BKGTCJ", grouped, self.factor.astype(dtype))
        log_weight = jnp.moveaxis(self.log_weight.astype(dtype), -2, -1)  # [.., K, C]
        log_weight = log_weight[..., None, None, :] if rows else log_weight[None, :, None, None, :]
        logits = logits + log_weight + 0.5 * jnp.sum(tilt * tilt, axis=-1)
        weights, den, log_scale = dense.exponentials(logits)
        num = dense.weighted_sum(weights, self.value.astype(dtype))
        num = num + jnp.einsum(f"BKGTCJ,{rows}CKHJ->BKGTH", weights[..., None] * tilt, self.cross.astype(dtype))
        return dense.to_partial(num, den, log_scale)


def fit_clouds(
    key: PRNGKeyArray,
    keys: Float[Array, "M K H"],
    values: Float[Array, "M K Hv"],
    *,
    components: int,
    rank: int,
    iterations: int = 25,
) -> MeasurePrefix:
    """`MeasurePrefix.from_tokens` of one row, unchecked, with a random key in place of a seed."""
    fit = bind(_fit_head, key, components=components, rank=rank, iterations=iterations)
    return MeasurePrefix(*jax.vmap(fit, in_axes=1, out_axes=1)(keys, values))


def _fit_head(
    key: PRNGKeyArray,
    keys: Float[Array, "M H"],
    values: Float[Array, "M Hv"],
    *,
    components: int,
    rank: int,
    iterations: int,
) -> tuple[Array, Array, Array, Array, Array]:
    """Moments of one head's clusters, in the order of the fields, each with a leading C."""
    _, labels = kmeans(key, jax.lax.stop_gradient(keys), components, iterations)

    def moments(component):
        members = (labels == component).astype(keys.dtype)
        count = jnp.sum(members)
        share = members / jnp.maximum(count, 1)
        mean, value = share @ keys, share @ values
        centred_keys, centred_values = keys - mean[None], values - value[None]
        weighted = share[:, None] * centred_keys
        factor, cross = _leading_directions(weighted.T @ centred_keys, centred_values.T @ weighted, rank)
        return jnp.log(count), mean, factor, value, cross

    return jax.lax.map(moments, jnp.arange(components))


def _leading_directions(
    covariance: Float[Array, "H H"], cross_covariance: Float[Array, "Hv H"], rank: int
) -> tuple[Float[Array, "H rank"], Float[Array, "Hv rank"]]:
    """L and A with L L^T the best rank-rho approximation of Sigma and A L^T that of W on the same directions."""
    width = covariance.shape[0]
    # Eigenvectors have no derivative where eigenvalues repeat, as they do in every degenerate cluster. With the
    # directions held, d^T Sigma d has the eigenvalue's.
    spectrum, directions = jax.lax.stop_gradient(jnp.linalg.eigh(covariance))  # ascending
    directions = directions[:, width - rank :]
    variances = jnp.sum(directions * (covariance @ directions), axis=0)
    # Below the rounding of eigh a direction has no variance, and one without variance carries no covariance either.
    spread = variances > jnp.finfo(covariance.dtype).eps * width * spectrum[-1]
    deviations = jnp.where(spread, jnp.sqrt(jnp.where(spread, variances, 1)), 0)
    inverse = jnp.where(spread, 1 / jnp.where(spread, deviations, 1), 0)
    return directions * deviations[None, :], cross_covariance @ directions * inverse[None, :]
