"""k-means over one head's keys, streamed: the groups that measures and coresets are fitted to."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

# Points compared with all centres at a time: the [chunk, C] distances stay small however many points there are.
_CHUNK = 2048


def kmeans(
    key: PRNGKeyArray, points: Float[Array, "M H"], components: int, iterations: int = 25
) -> tuple[Float[Array, "C H"], Int[Array, " M"]]:
    """Lloyd's algorithm from a k-means++ start.

    Args:
        key: random key of the start.
        points: [M, H], M at least 1.
        components: number of clusters C, at least 1.
        iterations: number of Lloyd steps; a fixed number, so that it compiles.

    Returns:
        Centres [C, H] and each point's cluster [M]. A cluster can be empty when points coincide or C > M.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntkprefix.clusters import kmeans
        >>> centres, labels = kmeans(jax.random.key(0), jnp.array([[0.0], [0.1], [9.0]]), components=2)
        >>> sorted(round(float(c), 2) for c in centres[:, 0])
        [0.05, 9.0]

    Source: k-means++ (Arthur and Vassilvitskii, 2007); Lloyd (1982).
    """
    # Distances come from |c|^2 - 2 x.c, in which keys with a large common part would lose them to rounding.
    mean = jnp.mean(points, axis=0)
    points = points - mean[None, :]

    def lloyd_step(_, centres):
        labels = nearest(points, centres)
        counts = jnp.zeros(components, points.dtype).at[labels].add(1)
        sums = jnp.zeros_like(centres).at[labels].add(points)
        return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], centres)

    centres = jax.lax.fori_loop(0, iterations, lloyd_step, _spread_start(key, points, components))
    return centres + mean[None, :], nearest(points, centres)


def nearest(points: Float[Array, "M H"], centres: Float[Array, "C H"]) -> Int[Array, " M"]:
    """Index of the nearest centre of every point, [M]."""
    # |x - c|^2 less the |x|^2 that all centres share
    squares = jnp.sum(centres * centres, axis=1)
    return jax.lax.map(lambda point: jnp.argmin(squares - 2 * centres @ point), points, batch_size=_CHUNK)


def _spread_start(key: PRNGKeyArray, points: Float[Array, "M H"], components: int) -> Float[Array, "C H"]:
    """k-means++: each further centre is a point drawn with probability proportional to its squared distance."""
    keys = jax.random.split(key, components)
    first = points[jax.random.randint(keys[0], (), 0, points.shape[0])]

    def add_centre(i, state):
        centres, distance = state
        # With all distances zero (fewer distinct points than clusters) any point does.
        chosen = jax.random.categorical(keys[i], jnp.where(jnp.any(distance > 0), jnp.log(distance), 0.0))
        centre = points[chosen]
        return centres.at[i].set(centre), jnp.minimum(distance, _squared_distance(points, centre))

    centres = jnp.zeros((components, points.shape[1]), points.dtype).at[0].set(first)
    return jax.lax.fori_loop(1, components, add_centre, (centres, _squared_distance(points, first)))[0]


def _squared_distance(points: Float[Array, "M H"], centre: Float[Array, " H"]) -> Float[Array, " M"]:
    return jnp.sum(jnp.square(points - centre[None, :]), axis=1)
