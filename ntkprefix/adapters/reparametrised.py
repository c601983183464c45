"""Prefix tuning's reparametrisation: tokens that a small network makes of trained vectors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from ntkprefix import checks
from ntkprefix.adapters.tokens import TokenAdapter
from ntkprefix.models.adaptation import Adaptation
from ntkprefix.models.statistics import AttentionStatistics
from ntkprefix.prefixes import TokenPrefix


@dataclasses.dataclass(frozen=True)
class ReparametrisedAdapter:
    r"""Prefix tokens of all layers as functions of M trained vectors e_r, which share a network.

    $$ h_r = \tanh(W_1 e_r + b_1), \qquad p_{lr} = A_l h_r + a_l, \qquad u_{lr} = C_l h_r + c_l $$

    Prefix tuning was found to be unstable without it, P-Tuning v2 found that it helps some tasks and hurts others. It
    trains many more numbers than it leaves: `collapse` turns what was trained into a `TokenAdapter`'s tokens.

    Attributes:
        length: M, at least 1.
        hidden: width of e and h, at least 1.
        start: what tokens are drawn around, as of a `TokenAdapter`.
        deviation: standard deviation of the tokens' draw.

    Raises:
        TypeError: a length or width that is not an integer, a deviation that is not a number.
        ValueError: a length or width below 1, an unknown start, a negative or infinite deviation.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.adapters import ReparametrisedAdapter
        >>> ReparametrisedAdapter(length=3, hidden=8).axes()["keys"]
        'E L K H'

    Source: prefix tuning (arXiv 2101.00190, section 4.3); P-Tuning v2 (arXiv 2110.07602, section 3.2).
    """

    length: int = 10
    hidden: int = 128
    start: Literal["zero", "mean"] = "zero"
    deviation: float = 0.02

    def __post_init__(self):
        checks.at_least(1, "ReparametrisedAdapter", length=self.length, hidden=self.hidden)
        checks.one_of("ReparametrisedAdapter", "start", self.start, ("zero", "mean"))
        checks.finite("ReparametrisedAdapter", least=0.0, deviation=self.deviation)

    def axes(self) -> dict[str, str]:
        """Axis letters of every parameter, by its name; E is the width of e and h."""
        return {
            "vectors": "M E",
            "inner": "E E",
            "inner_bias": "E",
            "keys": "E L K H",
            "keys_bias": "L K H",
            "values": "E L K Hv",
            "values_bias": "L K Hv",
        }

    def sizes(self) -> dict[str, int]:
        """The letters whose sizes the options tell."""
        return {"M": self.length, "E": self.hidden}

    def init(self, key: PRNGKeyArray, model: Any, statistics: AttentionStatistics) -> PyTree:  # noqa: ARG002
        """Gaussian vectors and matrices, so that tokens vary by about `deviation` around their start."""
        layers, heads, width = statistics.key_mean.shape
        E, values = self.hidden, statistics.value_mean.shape[-1]
        vectors, inner, out_keys, out_values = jax.random.split(key, 4)
        # tanh of a standard normal has the variance 0.39.
        scale = self.deviation / math.sqrt(0.39 * E)
        around_keys, around_values = statistics.key_mean, statistics.value_mean
        if self.start == "zero":
            around_keys, around_values = jnp.zeros_like(around_keys), jnp.zeros_like(around_values)
        return {
            "vectors": jax.random.normal(vectors, (self.length, E)),
            "inner": jax.random.normal(inner, (E, E)) / math.sqrt(E),
            "inner_bias": jnp.zeros(E),
            "keys": scale * jax.random.normal(out_keys, (E, layers, heads, width)),
            "keys_bias": around_keys,
            "values": scale * jax.random.normal(out_values, (E, layers, heads, values)),
            "values_bias": around_values,
        }

    def adapt(self, params: PyTree) -> Adaptation:
        """The tokens of every layer."""
        return Adaptation(prefixes=TokenPrefix(*_tokens(params)))

    def collapse(self, params: PyTree) -> tuple[TokenAdapter, PyTree]:
        """What was trained, as the tokens that it stands for: all that is needed after training.

        Args:
            params: trained parameters.

        Returns:
            A `TokenAdapter` and its parameters, whose outputs are the same.
        """
        keys, values = _tokens(params)
        tokens = TokenAdapter(length=self.length, start=self.start, deviation=self.deviation)
        return tokens, {"keys": keys, "values": values}

    def project(self, params: PyTree) -> PyTree:
        """All are allowed."""
        return params


def _tokens(params):
    """Keys [L, M, K, H] and values [L, M, K, Hv]."""
    hidden = jnp.tanh(params["vectors"] @ params["inner"] + params["inner_bias"][None])
    return tuple(
        jnp.einsum("me,elkh->lmkh", hidden, params[name], precision="highest") + params[f"{name}_bias"][:, None]
        for name in ("keys", "values")
    )
