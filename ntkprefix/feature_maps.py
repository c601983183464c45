r"""Feature maps phi with phi(q).phi(p) close to e^{q.p}, behind one protocol.

Inputs come scaled: attention hands over `sqrt(scale) * query`, and a state is built from `sqrt(scale) * key`, so that
the product carries the logit. Features come as `(phi, log_scale)`, meaning `phi * exp(log_scale)`: an exponential of
a logit of 1e4 does not fit any float, its logarithm does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import lru_cache
from itertools import combinations_with_replacement
from types import MappingProxyType
from typing import Any, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkprefix import checks

# About 16 MB of float32 features for one token and head; beyond it a degree is a mistake, not a choice.
MAX_FEATURES = 2**22


@runtime_checkable
class FeatureMap(Protocol):
    """What a `FeaturePrefix` needs of a feature map. Implementations are hashable, or pytrees when they train.

    A `FeaturePrefix` is a pytree with its map in it: a map without numbers that train is registered as static.

    Example:
        >>> import dataclasses
        >>> import jax, jax.numpy as jnp
        >>> from ntkprefix import FeaturePrefix, attention
        >>> from ntkprefix.feature_maps import FeatureMap
        >>> @jax.tree_util.register_static
        ... @dataclasses.dataclass(frozen=True)
        ... class Exponential:  # phi(x) = e^x, entrywise
        ...     positive = nonnegative = True
        ...
        ...     def size(self, width):
        ...         return width
        ...
        ...     def __call__(self, x):
        ...         largest = jnp.max(x, axis=-1)  # to the log scale, so that no float overflows
        ...         return jnp.exp(x - largest[..., None]), largest
        >>> isinstance(Exponential(), FeatureMap)
        True
        >>> prefix = FeaturePrefix(Z=jnp.zeros((2, 4, 4)), k=jnp.ones((2, 4)), feature_map=Exponential())
        >>> query, value = jnp.zeros((1, 6, 2, 4)), jnp.ones((1, 6, 2, 4))
        >>> round(float(attention(query, query, value, prefix=prefix)[0, 0, 0, 0]), 3)  # 6 keys beside phi(0).k = 4
        0.6
    """

    @property
    def positive(self) -> bool:
        """Whether phi(q).phi(p) > 0 for all q and p, in exact arithmetic: what a state built from tokens needs."""
        ...

    @property
    def nonnegative(self) -> bool:
        """Whether no feature is ever negative: what a trained state with k >= 0 needs."""
        ...

    def size(self, width: int) -> int:
        """Feature count R for head width H."""
        ...

    def __call__(self, x: Float[Array, "... H"]) -> tuple[Float[Array, "... R"], Float[Array, "..."]]:
        """Features `phi` and their `log_scale`, which together stand for `phi * exp(log_scale)`.

        Args:
            x: queries or keys times the root of the logit scale, [.., H].

        Returns:
            Features [.., R], and the natural logarithm of the factor that was taken out of them, [..].
        """
        ...


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Elu:
    """phi(x) = elu(x) + 1, entrywise: R = H. The paper's practical choice; no approximation of e^{q.p}.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.feature_maps import Elu
        >>> phi, log_scale = Elu()(jnp.array([-1.0, 0.0, 2.0]))  # e^x below 0, x + 1 above
        >>> [round(float(each), 3) for each in phi], float(log_scale)
        ([0.368, 1.0, 3.0], 0.0)

    Source: linear attention (arXiv 2006.16236); NTK-Attention (arXiv 2406.14036).
    """

    @property
    def positive(self) -> bool:
        """True: every feature is."""
        return True

    @property
    def nonnegative(self) -> bool:
        """True: every feature is positive."""
        return True

    def size(self, width: int) -> int:
        """R = H."""
        return width

    def __call__(self, x: Float[Array, "... H"]) -> tuple[Float[Array, "... H"], Float[Array, "..."]]:
        """Features and a log scale of zero."""
        return _elu_plus_one(x), jnp.zeros(x.shape[:-1], x.dtype)


@jax.custom_jvp
def _elu_plus_one(x):
    # elu(x) + 1 would cancel for x << 0, where the feature is e^x.
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0)))


@_elu_plus_one.defjvp
def _(primals, tangents):
    # The derivative of both branches by the value itself, without a second exponential or a look at the signs.
    phi = _elu_plus_one(*primals)
    return phi, tangents[0] * jnp.minimum(phi, 1)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Taylor:
    r"""All monomials up to degree p, so that phi(q).phi(k) = sum_{j<=p} (q.k)^j / j!: R = binom(H+p, p).

    The polynomial method of the paper's theory (and of arXiv 2302.13214); `taylor_error_bound` bounds its error.

    The features of one x span the range 1 : r^p, r = max|x|. They are scaled to lie around 1, from r^{-p/2} to r^{p/2},
    as far as sums of products of features have room, so that terms which matter neither overflow nor vanish: in float32
    the constant term survives up to r^p = 8e28 in query and keys, or 1e51 in one of them. (The gradient of a state is
    of the size of the query's features, and overflows at r^p = 1e38.)

    Attributes:
        degree: p, at least 0.

    Raises:
        TypeError: a degree that is not an integer.
        ValueError: a degree below 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.feature_maps import Taylor
        >>> q, k = jnp.array([1.0, 0.5]), jnp.array([0.25, 0.5])  # q.k = 0.5
        >>> phi = Taylor(degree=2)
        >>> (a, log_a), (b, log_b) = phi(q), phi(k)
        >>> a.shape  # binom(2 + 2, 2)
        (6,)
        >>> round(float(a @ b * jnp.exp(log_a + log_b)), 4)  # 1 + 0.5 + 0.5^2 / 2; e^0.5 is 1.6487
        1.625
    """

    degree: int

    def __post_init__(self):
        checks.at_least(0, "feature_map('taylor')", degree=self.degree)
        object.__setattr__(self, "degree", int(self.degree))

    @property
    def positive(self) -> bool:
        """True for even degrees: the exponential's Taylor polynomial of even degree has no real root."""
        return self.degree % 2 == 0

    @property
    def nonnegative(self) -> bool:
        """False but for degree 0: monomials have the sign of their x."""
        return self.degree == 0

    def size(self, width: int) -> int:
        """R = binom(H + degree, degree).

        Raises:
            ValueError: more than `MAX_FEATURES`, or features of very many factors: whoever asks is about to allocate.
        """
        size = math.comb(width + self.degree, self.degree)
        checks.not_too_many_features(self.degree, width, size, MAX_FEATURES)
        return size

    def __call__(self, x: Float[Array, "... H"]) -> tuple[Float[Array, "... R"], Float[Array, "..."]]:
        """Monomials of (1, x) / c of exact degree p, with c = sqrt(r) for large x; the factor c^p is the log scale.

        Raises:
            ValueError: as for `size`.
        """
        size = self.size(x.shape[-1])
        indices, weights = _monomials(x.shape[-1], self.degree)
        radius = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, initial=0.0))
        # Features up to (radius / c)^p: 3/8 of the exponents for the query's, as much for the keys', the rest for sums.
        most = 2.0 ** (float(jnp.finfo(x.dtype).maxexp) * 0.375 / max(self.degree, 1))
        large, small = jnp.maximum(radius, 1.0), jnp.where(radius > 0, radius, 1.0)
        divisor = jnp.maximum(jnp.sqrt(large), large / most) * jnp.clip(small * most, 1 / most, 1.0)
        extended = jnp.concatenate([jnp.ones_like(x[..., :1]), x], axis=-1) / divisor[..., None]
        phi = jnp.broadcast_to(jnp.asarray(weights, x.dtype), (*x.shape[:-1], size))
        for column in indices.T:
            phi = phi * extended[..., column]
        return phi, self.degree * jnp.log(divisor)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Favor:
    r"""Positive orthogonal random features, phi_r(x) = e^{w_r.x - |x|^2/2} / sqrt(R): unbiased for e^{q.p}.

    The directions w_r are drawn once per (seed, R, H), in orthogonal blocks of H with the lengths of Gaussian vectors,
    and become constants of the compiled program.

    Attributes:
        features: R, from 1 to `MAX_FEATURES`.
        seed: integers of at least 0, which tell the directions; `feature_map` takes them from a random key.

    Raises:
        TypeError: a number of features that is not an integer, a seed that is no tuple of integers.
        ValueError: too few or too many features, an empty seed, a negative number in it.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.feature_maps import Favor
        >>> q, k = jnp.array([0.5, 0.2]), jnp.array([0.4, 0.5])
        >>> phi = Favor(features=4096, seed=(0,))
        >>> (a, log_a), (b, log_b) = phi(q), phi(k)
        >>> bool(abs(a @ b * jnp.exp(log_a + log_b) - jnp.exp(q @ k)) < 0.1)  # e^{q.k} = 1.35, up to the draw
        True

    Source: Performer (arXiv 2009.14794, FAVOR+).
    """

    features: int
    seed: tuple[int, ...]

    def __post_init__(self):
        checks.at_least(1, "feature_map('favor')", features=self.features)
        checks.not_too_many_directions(self.features, MAX_FEATURES)
        checks.seed("feature_map('favor')", self.seed)
        object.__setattr__(self, "features", int(self.features))

    @property
    def positive(self) -> bool:
        """True: every feature is an exponential."""
        return True

    @property
    def nonnegative(self) -> bool:
        """True: every feature is an exponential."""
        return True

    def size(self, width: int) -> int:  # noqa: ARG002
        """R, whatever H is."""
        return self.features

    def __call__(self, x: Float[Array, "... H"]) -> tuple[Float[Array, "... R"], Float[Array, "..."]]:
        """Features with their largest exponent taken out into the log scale."""
        directions = jnp.asarray(_orthogonal_directions(self.seed, self.features, x.shape[-1]), x.dtype)
        projected = jnp.einsum("...H,RH->...R", x, directions, precision=jax.lax.Precision.HIGHEST)
        largest = jax.lax.stop_gradient(jnp.max(projected, axis=-1))
        phi = jnp.exp(projected - largest[..., None]) / math.sqrt(self.features)
        return phi, largest - 0.5 * jnp.sum(x * x, axis=-1)


_KINDS: Mapping[str, Any] = MappingProxyType(
    {
        "elu": Elu,
        "taylor": Taylor,
        "favor": Favor,
    }
)


def feature_map(name: str, **options: Any) -> FeatureMap:
    """A feature map by name.

    Args:
        name: `"elu"` (no options), `"taylor"` (`degree`, at least 0) or `"favor"` (`features`, at least 1, and `key`,
            a JAX random key: the same key gives the same features).
        **options: the options of that map; all are required.

    Returns:
        A hashable feature map.

    Raises:
        ValueError: unknown name, a missing or unknown option, a degree below 0, fewer than 1 random feature or more
            than `MAX_FEATURES`. How many features a Taylor map has depends on H: too many are refused on use.
        TypeError: `degree` or `features` is not an integer, `key` is no random key, or a traced one.

    Example:
        >>> from ntkprefix import feature_map
        >>> feature_map("taylor", degree=2).size(64)
        2145
    """
    fields = {known: [field.name for field in dataclasses.fields(kind)] for known, kind in _KINDS.items()}
    # A random map's seed is told as a key, as everywhere in JAX.
    takes = {known: tuple("key" if field == "seed" else field for field in names) for known, names in fields.items()}
    checks.feature_options(name, options, takes)
    if "key" in options:
        checks.one_random_key(options["key"])
        options["seed"] = tuple(np.asarray(jax.random.key_data(options.pop("key"))).ravel().tolist())
    return _KINDS[name](**options)


def as_json(made: FeatureMap) -> dict[str, Any]:
    """What a feature map of this library is, ready for JSON: its name and its options.

    Raises:
        TypeError: another one.
    """
    name = next((name for name, kind in _KINDS.items() if type(made) is kind), None)
    if name is None:
        raise TypeError(f"expected a feature map among {', '.join(_KINDS)}, got {type(made).__name__}.")
    return {"name": name, **dataclasses.asdict(cast(Any, made))}


def from_json(content: dict[str, Any]) -> FeatureMap:
    """The feature map that `as_json` told of.

    Raises:
        KeyError: no such name.
        TypeError: options that are not its own, or of another type.
        ValueError: options out of range.
    """
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    del options["name"]
    return _KINDS[content["name"]](**options)


@lru_cache(maxsize=16)
def _monomials(width: int, degree: int) -> tuple[np.ndarray, np.ndarray]:
    # A monomial of degree at most p in x is one of degree exactly p in (1, x): index 0 stands for the 1. The weight is
    # 1/sqrt(alpha!) over the exponents alpha of x alone, since (q.k)^j / j! = sum_{|alpha|=j} q^alpha k^alpha / alpha!.
    rows = list(combinations_with_replacement(range(width + 1), degree))
    indices = np.asarray(rows, dtype=np.int32).reshape(len(rows), degree)
    factorials = np.ones(len(rows))
    run = np.ones(len(rows))  # how often the current index has occurred so far: indices come sorted
    for position in range(degree):
        same = indices[:, position] == indices[:, position - 1] if position else np.zeros(len(rows), bool)
        run = np.where(same, run + 1, 1)
        factorials = factorials * np.where(indices[:, position] == 0, 1, run)
    return indices, 1 / np.sqrt(factorials)


@lru_cache(maxsize=16)
def _orthogonal_directions(seed: tuple[int, ...], features: int, width: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    blocks = []
    for _ in range(math.ceil(features / width)):
        q, r = np.linalg.qr(generator.standard_normal((width, width)))
        rotation = (q * np.sign(np.diag(r))).T  # the signs make it uniform over rotations
        lengths = np.linalg.norm(generator.standard_normal((width, width)), axis=1)
        blocks.append(rotation * lengths[:, None])
    return np.concatenate(blocks)[:features]
