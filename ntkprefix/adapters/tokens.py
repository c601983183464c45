"""P-Tuning v2: M trained keys and values in every layer."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from ntkprefix import checks
from ntkprefix.models.adaptation import Adaptation
from ntkprefix.models.statistics import AttentionStatistics
from ntkprefix.prefixes import TokenPrefix


@dataclasses.dataclass(frozen=True)
class TokenAdapter:
    """Prefix tokens, trained: L M K (H + Hv) parameters.

    Attributes:
        length: M, at least 1.
        start: what the tokens are drawn around: zero, or the layer's own mean key and value on the calibration batch,
            where a token has about as much weight as one of the input's.
        deviation: standard deviation of the draw.

    Raises:
        TypeError: a length that is not an integer, a deviation that is not a number.
        ValueError: a length below 1, an unknown start, a negative or infinite deviation.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.adapters import TokenAdapter, count, own_tokens
        >>> from ntkprefix.models import BlockConfig, TextConfig, TextModel
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block, positions=16), rngs=nnx.Rngs(0))
        >>> tokens = jnp.array([[3, 1, 4, 1, 5]])
        >>> adapter = TokenAdapter(length=3)
        >>> params = adapter.init_from(own_tokens(model, tokens[:, :3]))  # the start at a text, which is then trained
        >>> count(params)  # 2 layers, 3 tokens, 3 heads of 4 + 4
        144
        >>> behind = model(tokens[:, 3:], adapter=adapter.adapt(params), positions=jnp.array([[3, 4]]))
        >>> bool(jnp.allclose(behind, model(tokens)[:, 3:], atol=1e-5))  # as if the model had read it
        True

    Source: P-Tuning v2 (arXiv 2110.07602), without reparametrisation.
    """

    length: int = 10
    start: Literal["zero", "mean"] = "zero"
    deviation: float = 0.02

    def __post_init__(self):
        checks.at_least(1, "TokenAdapter", length=self.length)
        checks.one_of("TokenAdapter", "start", self.start, ("zero", "mean"))
        checks.finite("TokenAdapter", least=0.0, deviation=self.deviation)

    def axes(self) -> dict[str, str]:
        """Axis letters of every parameter, by its name."""
        return {"keys": "L M K H", "values": "L M K Hv"}

    def sizes(self) -> dict[str, int]:
        """The letters whose sizes the options tell."""
        return {"M": self.length}

    def init(self, key: PRNGKeyArray, model: Any, statistics: AttentionStatistics) -> PyTree:  # noqa: ARG002
        """Gaussian `keys` [L, M, K, H] and `values` [L, M, K, Hv]."""
        layers, heads, width = statistics.key_mean.shape
        shape = (2, layers, self.length, heads, width)
        keys, values = self.deviation * jax.random.normal(key, shape, jnp.float32)
        if self.start == "mean":
            keys, values = keys + statistics.key_mean[:, None], values + statistics.value_mean[:, None]
        return {"keys": keys, "values": values}

    def init_from(self, tokens: TokenPrefix) -> PyTree:
        """The start at given tokens: the first M of them.

        Args:
            tokens: of all layers, keys [L, M', K, H] and values [L, M', K, Hv], without log-weights; M' is at least M.

        Returns:
            Parameters as from `init`.

        Raises:
            ValueError: fewer than M, or others than all layers' tokens.

        Source: initialisation from text (arXiv 2101.00190, section 7.4): the tokens are those of `own_tokens`.
        """
        checks.tokens_of_layers("TokenAdapter", tokens, self.length)
        return {"keys": tokens.keys[:, : self.length], "values": tokens.values[:, : self.length]}

    def adapt(self, params: PyTree) -> Adaptation:
        """The tokens of every layer."""
        return Adaptation(prefixes=TokenPrefix(params["keys"], params["values"]))

    def project(self, params: PyTree) -> PyTree:
        """All are allowed."""
        return params
