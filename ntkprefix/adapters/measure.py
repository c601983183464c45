"""A measure prefix in every layer: Gaussian clouds of infinitely many tokens, trained."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from ntkprefix import checks
from ntkprefix.models.adaptation import Adaptation
from ntkprefix.models.statistics import AttentionStatistics
from ntkprefix.prefixes import MeasurePrefix, TokenPrefix


@dataclasses.dataclass(frozen=True)
class MeasureAdapter:
    r"""C trained clouds of keys and values: L C K (1 + (H + Hv) (1 + rho)) parameters.

    Unlike a token, a cloud has a mass and a spread of its own: log mass(q) = b + beta q.mu + beta^2 |L^T q|^2 / 2. With
    rho = 0 the clouds are weighted tokens, with C = 1 they are one truly infinite prefix.

    Attributes:
        components: C, at least 1.
        rank: rho, of each cloud's key covariance, at least 0.
        share: the clouds' mass over the input's at the start, above 0, on average over queries.
        deviation: standard deviation, around each head's centre, of the draw of the clouds' means, and of the factors.

    Raises:
        TypeError: a count that is not an integer, a share or deviation that is no number.
        ValueError: fewer than 1 component, a negative rank or deviation, a share that is not above 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.adapters import MeasureAdapter, count
        >>> from ntkprefix.models import BlockConfig, TextConfig, TextModel
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block, positions=16), rngs=nnx.Rngs(0))
        >>> tokens = jnp.array([[3, 1, 4, 1, 5]])
        >>> statistics = model.attention_statistics(tokens)
        >>> params = MeasureAdapter(components=5, rank=2, share=0.1).init(jax.random.key(0), model, statistics)
        >>> count(params)  # 2 layers, 5 clouds, 3 heads: 2 * 5 * 3 * (1 + (4 + 4) * (1 + 2))
        750
        >>> shares = jnp.exp(jax.nn.logsumexp(params["log_weight"], axis=1) - statistics.log_centred_mass)
        >>> bool(jnp.allclose(shares, 0.1, rtol=1e-4))  # of the input's mass, in every head
        True

    Source: the large-prompt limit of softmax attention (arXiv 2512.11784) as a parametrisation.
    """

    components: int = 8
    rank: int = 2
    share: float = 0.1
    deviation: float = 0.02

    def __post_init__(self):
        checks.at_least(1, "MeasureAdapter", components=self.components)
        checks.at_least(0, "MeasureAdapter", rank=self.rank)
        checks.finite("MeasureAdapter", least=0.0, deviation=self.deviation, share=self.share)
        if self.share == 0:
            raise ValueError("MeasureAdapter: expected a share above 0, got 0: a prefix without mass does not train.")

    def axes(self) -> dict[str, str]:
        """Axis letters of every parameter, by its name."""
        return {name: f"L {letters}" for name, letters in MeasurePrefix.axes.items()}

    def sizes(self) -> dict[str, int]:
        """The letters whose sizes the options tell."""
        return {"C": self.components, "rank": self.rank}

    def init(self, key: PRNGKeyArray, model: Any, statistics: AttentionStatistics) -> PyTree:  # noqa: ARG002
        """Clouds around the centre of each head's keys, see `AttentionStatistics.centre`, with its mean value.

        Query heads that share keys share clouds: theirs is the mean of the heads' centres.
        """
        layers, kv_heads, width = statistics.key_mean.shape
        centre = statistics.centre.reshape(layers, kv_heads, -1, width).mean(axis=2)
        log_mass = statistics.log_centred_mass.reshape(layers, kv_heads, -1).mean(axis=2)
        shape = (layers, self.components, kv_heads, width)
        near, spread = jax.random.split(key)
        values = statistics.value_mean.shape[-1]
        log_weight = log_mass + math.log(self.share / self.components)
        return {
            "log_weight": jnp.broadcast_to(log_weight[:, None], shape[:-1]),
            "mean": centre[:, None] + self.deviation * jax.random.normal(near, shape),
            "factor": self.deviation * jax.random.normal(spread, (*shape, self.rank)),
            "value": jnp.broadcast_to(statistics.value_mean[:, None], (*shape[:-1], values)),
            "cross": jnp.zeros((*shape[:-1], values, self.rank)),
        }

    def init_from(self, tokens: TokenPrefix) -> PyTree:
        """The start that stands for given tokens, keys [L, M, K, H] and values [L, M, K, Hv]: their clusters.

        Raises:
            ValueError: fewer tokens than clouds, or others than all layers' tokens.
        """
        checks.tokens_of_layers("MeasureAdapter", tokens, self.components)
        options = {"components": self.components, "rank": self.rank}
        fitted = MeasurePrefix.from_tokens(tokens.keys, tokens.values, **options)
        return {name: getattr(fitted, name) for name in self.axes()}

    def adapt(self, params: PyTree) -> Adaptation:
        """The clouds of every layer."""
        return Adaptation(prefixes=MeasurePrefix(**params))

    def project(self, params: PyTree) -> PyTree:
        """All are allowed."""
        return params
