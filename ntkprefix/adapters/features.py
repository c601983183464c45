"""NTK-Attention: an infinitely long prefix in every layer, as a trained Z and k."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ntkprefix import checks
from ntkprefix.feature_maps import Elu, FeatureMap
from ntkprefix.models.adaptation import Adaptation
from ntkprefix.models.statistics import AttentionStatistics
from ntkprefix.prefixes import FeaturePrefix, TokenPrefix
from ntkprefix.prefixes.least_squares import fit_state

# Of the step size, for scale, centre and value where the state takes the larger steps. Found by trying, on few data.
_SLOW = 0.1
# Below it the softplus of a start from tokens would have no gradient to speak of.
_LEAST_K = 1e-3


@dataclasses.dataclass(frozen=True)
class FeatureAdapter:
    r"""A trained feature state per head: L N (R (Hv + 1) + H + Hv + 1) parameters, however long a prefix it stands for.

    It starts as a no-op, Z = k = 0, with live gradients for both, or, with a `share`, as a prefix of the model's mean
    values; and on the input's own scale, query by query. The log-mass of the input varies by tens of nats, between
    layers and between the queries of one head: a state without a scale weighs e^{-28} in some layers of a real model,
    and with one for all queries of a head e^{-85} for the typical query of another. So the prefix lies around a point c
    in key space, and its log-mass s + beta q.c + log phi(q).k follows the input's.

    What is trained of Z is the prefix's value v, the same for all queries, and what differs between them,

    $$ Z = k v^T + D. $$

    The states are the same, but AdamW steps every number by as much: the R rows of a Z trained as it is would move the
    value by all their steps together, long before they tell queries apart.

    Attributes:
        feature_map: phi; its features may not be negative, so that k >= 0 keeps the denominator positive.
        calibration: what a state starts from. `centred`: c is the regression of the input's log-mass on the query, and
            s the log of the harmonic mean of what it leaves, less log R, so that a prefix of k = 1 weighs as much as
            the input on average over queries. `harmonic`: c = 0, and s is of the input's whole mass. Where the mass
            varies much, few queries make that average, and the prefix is faint for all others: it is here to be
            compared with.
        train_scale: whether each head's s and c are trained too.
        heads: a state for every query head, or one for each key-value head that its query heads share.
        rank: of D, a product [R, rank] [rank, Hv]; 0 for D itself.
        normalised: k is trained. Without it D is an additive memory (arXiv 2506.13674): nothing is added to the
            denominator, and the output is the input's plus phi(q)^T D over the input's mass.
        share: the prefix's mass over the input's at the start, about, on average over queries; all of it at each head's
            mean value. 0 is a no-op. Above it k is off the edge k >= 0, and attention starts a little smoothed.
        steps: what takes whole steps, see `step_factors`. `value`: v, the log scale and the centre, which move every
            query of a head alike; k and D follow slowly. It learns in few steps, and in deep language models. `state`:
            k and D, which tell queries apart; in classifiers with a head and hundreds of steps it gets further.
        positive: how k >= 0 is kept. `projection`: k itself is trained, and every step ends at the nearest k >= 0.
            `softplus`: k = log(1 + e^x) of a trained x, which is never 0, and so takes a share.

    Raises:
        TypeError: no feature map, a rank that is not an integer, a share that is no number.
        ValueError: an unknown calibration, unknown heads or steps, a negative rank, a feature map with negative
            features, a share that is negative or infinite, or one of additive memory, which has no mass; an unknown way
            to keep k positive, or softplus without a share.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.adapters import FeatureAdapter, count
        >>> from ntkprefix.models import BlockConfig, TextConfig, TextModel
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block, positions=16), rngs=nnx.Rngs(0))
        >>> tokens = jnp.array([[3, 1, 4, 1, 5]])
        >>> adapter = FeatureAdapter()
        >>> params = adapter.init(jax.random.key(0), model, model.attention_statistics(tokens))
        >>> {name: array.shape for name, array in params.items() if name in ("Z", "k")}
        {'Z': (2, 3, 4, 4), 'k': (2, 3, 4)}
        >>> count(params)  # 2 * 3 * (4 * (4 + 1) + 4 + 4 + 1)
        174
        >>> changed = model(tokens, adapter=adapter.adapt(params))
        >>> bool(jnp.allclose(changed, model(tokens), atol=1e-6))  # Z = k = 0 changes nothing
        True

    Source: NTK-Attention (arXiv 2406.14036). The paper's code passes k through an absolute value, whose derivative at
    its start is zero, and has neither scale nor centre; docs/prefixes.md has what they do.
    """

    feature_map: FeatureMap = dataclasses.field(default_factory=Elu)
    calibration: Literal["centred", "harmonic"] = "centred"
    train_scale: bool = True
    heads: Literal["query", "kv"] = "query"
    rank: int = 0
    normalised: bool = True
    share: float = 0.0
    positive: Literal["projection", "softplus"] = "projection"
    steps: Literal["value", "state"] = "value"

    def __post_init__(self):
        checks.one_of("FeatureAdapter", "calibration", self.calibration, ("centred", "harmonic"))
        checks.one_of("FeatureAdapter", "heads", self.heads, ("query", "kv"))
        checks.at_least(0, "FeatureAdapter", rank=self.rank)
        checks.yes_or_no("FeatureAdapter", train_scale=self.train_scale, normalised=self.normalised)
        checks.is_feature_map("FeatureAdapter", self.feature_map)
        checks.nonnegative_features("FeatureAdapter", self.feature_map)
        checks.finite("FeatureAdapter", least=0.0, share=self.share)
        if self.share and not self.normalised:
            raise ValueError(f"FeatureAdapter: expected no share of additive memory, got {self.share}: it has no mass.")
        checks.one_of("FeatureAdapter", "positive", self.positive, ("projection", "softplus"))
        checks.one_of("FeatureAdapter", "steps", self.steps, ("value", "state"))
        if self.positive == "softplus" and not self.share:
            raise ValueError("FeatureAdapter: expected a share above 0 with softplus, which cannot start at k = 0.")

    def axes(self) -> dict[str, str]:
        """Axis letters of every parameter, by its name; N is K for shared heads."""
        Z = {"down": "L N R rank", "up": "L N rank Hv"} if self.rank else {"Z": "L N R Hv"}
        k = {"value": "L N Hv", "k": "L N R"} if self.normalised else {}
        centre = {"centre": "L N H"} if self.calibration == "centred" else {}
        return {"log_scale": "L N", **centre, **Z, **k}

    def sizes(self) -> dict[str, int]:
        """The letters whose sizes the options tell."""
        return {"rank": self.rank} if self.rank else {}

    def init(self, key: PRNGKeyArray, model: Any, statistics: AttentionStatistics) -> PyTree:  # noqa: ARG002
        """`Z` [L, N, R, Hv], which is D, `value` [L, N, Hv], `k` [L, N, R], `log_scale` [L, N] and `centre` [L, N, H];
        with a rank `down` [L, N, R, rank] and `up` [L, N, rank, Hv] for D.

        Nothing is random but `down`; `up` and D are zero.
        """
        centred = self.calibration == "centred"
        own_scale = statistics.log_centred_mass if centred else statistics.log_harmonic_mass
        centre = statistics.centre
        if self.heads == "kv":
            # One scale and one centre for the query heads of a group: the mean of theirs.
            layers, kv_heads, width = statistics.key_mean.shape
            own_scale = own_scale.reshape(layers, kv_heads, -1).mean(axis=-1)
            centre = centre.reshape(layers, kv_heads, -1, width).mean(axis=-2)
        layers, heads = own_scale.shape
        features = self.feature_map.size(statistics.key_mean.shape[-1])
        values = statistics.value_mean.shape[-1]
        kv_heads = statistics.value_mean.shape[1]
        value = jnp.repeat(statistics.value_mean, heads // kv_heads, axis=1)
        params = {"log_scale": own_scale - math.log(features)} | ({"centre": centre} if centred else {})
        if self.rank:
            down = jax.random.normal(key, (layers, heads, features, self.rank)) / math.sqrt(self.rank)
            params |= {"down": down, "up": jnp.zeros((layers, heads, self.rank, values))}
        else:
            params |= {"Z": jnp.zeros((layers, heads, features, values))}
        if not self.normalised:
            return params
        k = jnp.full((layers, heads, features), self.share, own_scale.dtype)
        return params | {"value": value, "k": self._trained(k)}

    def init_from(
        self,
        tokens: TokenPrefix,
        model: Any,
        statistics: AttentionStatistics | None = None,
        queries: tuple[Float[Array, "L B T N H"], Float[Array, "L B T N"]] | None = None,
    ) -> PyTree:
        """The start that stands for given prefix tokens.

        Without queries it is the closed form, sums over the tokens, which for elu features approximates little. With
        queries it is the nearest state on them, by least squares with k >= 0, around the centre and at the scale that
        a state of zeros starts from.

        Args:
            tokens: keys [L, M, K, H] and values [L, M, K, Hv], of `own_tokens` or of a trained `TokenAdapter`.
            model: the frozen model.
            statistics: of the model's own attention; for the fit alone.
            queries: of a calibration batch, and the log-sum-exp of the input that each sees; for the fit alone. See
                `ntkprefix.models.observe_queries`.

        Returns:
            Parameters as from `init`.

        Raises:
            ValueError: no k to start from (`normalised=False`), heads that share states with a fit, queries without
                statistics, or tokens of another shape.
        """
        checks.tokens_of_layers("FeatureAdapter", tokens, 1)
        if not self.normalised:
            raise ValueError("FeatureAdapter: expected a normalised state to start from tokens, got additive memory.")
        centred = self.calibration == "centred"
        if queries is None:
            keys, values = tokens.keys, tokens.values
            if self.heads == "query":
                group = model.config.block.heads // keys.shape[-2]
                keys, values = (jnp.repeat(array, group, axis=-2) for array in (keys, values))
            state = FeaturePrefix.from_tokens(keys, values, feature_map=self.feature_map, recentre=centred)
        else:
            state = self._fitted(tokens, model, statistics, queries)
        k = state.k if self.positive == "projection" else jnp.maximum(state.k, _LEAST_K)
        # A head that the fit leaves without mass has no value of its own: all of its Z is D.
        mass = jnp.sum(k, axis=-1, keepdims=True)
        value = jnp.where(mass > _LEAST_K, jnp.sum(state.Z, axis=-2) / jnp.maximum(mass, _LEAST_K), 0)
        Z = state.Z - k[..., None] * value[..., None, :]
        params = {"log_scale": state.log_scale, "value": value, "k": self._trained(k)} | (
            {"centre": state.centre} if centred else {}
        )
        if not self.rank:
            return params | {"Z": Z}
        left, sizes, right = jnp.linalg.svd(Z, full_matrices=False)
        root = jnp.sqrt(sizes[..., : self.rank])
        down, up = left[..., : self.rank] * root[..., None, :], root[..., None] * right[..., : self.rank, :]
        return params | {"down": down, "up": up}

    def _fitted(self, tokens, model, statistics, queries):
        if statistics is None or self.heads != "query":
            raise ValueError(
                "FeatureAdapter: expected statistics beside queries, and a state for every query head, got "
                f"{'none' if statistics is None else f'heads={self.heads!r}'}."
            )
        start = self.init(jax.random.key(0), model, statistics)
        centre = start.get("centre", jnp.zeros_like(statistics.centre))

        def one(layer):
            keys, values, query, log_mass, centre, log_scale = layer
            options = {"feature_map": self.feature_map, "centre": centre, "log_scale": log_scale}
            state = fit_state(TokenPrefix(keys, values), query, log_mass, **options)
            return state.Z, state.k

        layers = (tokens.keys, tokens.values, *queries, centre, start["log_scale"])
        Z, k = jax.lax.map(one, layers)
        return FeaturePrefix(Z, k, self.feature_map, start["log_scale"], centre)

    def adapt(self, params: PyTree) -> Adaptation:
        """The states of every layer, with k >= 0."""
        log_scale, centre = params["log_scale"], params.get("centre")
        if not self.train_scale:
            log_scale, centre = jax.lax.stop_gradient((log_scale, centre))
        Z = jnp.matmul(params["down"], params["up"], precision="highest") if self.rank else params["Z"]
        if not self.normalised:
            k = jnp.zeros(Z.shape[:-1])
        else:
            k = (jax.nn.softplus if self.positive == "softplus" else nonnegative)(params["k"])
            Z = Z + k[..., None] * params["value"][..., None, :]
        return Adaptation(prefixes=FeaturePrefix(Z, k, self.feature_map, log_scale, centre))

    def step_factors(self, params: PyTree) -> dict[str, float]:
        """What the step size is multiplied by.

        With `steps="value"` k and D take the share, or 1 without one, over sqrt(R): R features that step at once move
        mass and value by as much as one step of the log scale and of v does, if their directions are as good as random.
        A product's rows start in random directions, and do without the root. With `"state"` they take whole steps, and
        all others a tenth.
        """
        if self.steps == "state":
            return {name: 1.0 if name in ("Z", "down", "up", "k") else _SLOW for name in params}
        unit = self.share or 1.0
        rows = params["down" if self.rank else "Z"].shape[-2]
        small = {"Z": unit / math.sqrt(rows), "k": unit / math.sqrt(rows), "down": unit, "up": unit}
        return {name: small.get(name, 1.0) for name in params}

    def project(self, params: PyTree) -> PyTree:
        """With k >= 0: under the clip alone an optimiser could carry k so far below zero that it never came back."""
        projected = self.normalised and self.positive == "projection"
        return {**params, "k": jnp.maximum(params["k"], 0)} if projected else params

    def _trained(self, k: Array) -> Array:
        """The parameter that stands for k: k itself, or the x of which it is the softplus."""
        if self.positive == "projection":
            return k
        k = jnp.maximum(k, _LEAST_K)
        return k + jnp.log(-jnp.expm1(-k))


@jax.custom_jvp
def nonnegative(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """max(x, 0) with the derivative of the identity: a clip, whose gradient is alive at and below zero."""
    return jnp.maximum(x, 0)


@nonnegative.defjvp
def _(primals, tangents):
    return nonnegative(primals[0]), tangents[0]
