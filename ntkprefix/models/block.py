"""The one transformer block: attention with a prefix and an MLP, in all the variants that checkpoints have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ntkprefix import checks
from ntkprefix.kernels import IMPLEMENTATIONS
from ntkprefix.models.adaptation import LowRank
from ntkprefix.models.rotary import Rotary, Rotation, rotate
from ntkprefix.shared_attention import shared_attention

# Sees one layer's (query, key, value) and the options of its attention; returns any pytree of arrays.
Observer = Callable[..., Any]
# Takes this layer's new keys and values, and gives all that its queries may see.
Remember = Callable[[Array, Array], tuple[Array, Array]]

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One transformer block; the defaults are those of DINOv2 ViT-S.

    Attributes:
        width: channels of a token.
        heads: query heads N.
        kv_heads: key-value heads K, a divisor of N; 0 becomes N.
        head_width: H; 0 becomes width / N.
        mlp_width: hidden channels of the MLP.
        norm: layer norm, or root-mean-square norm without mean and bias.
        epsilon: of the norms.
        post_norm: norms come after each residual sum (BERT), not before each branch.
        activation: of the MLP; `gelu` is the exact one, `gelu_tanh` its approximation by tanh.
        gated: the MLP is down(activation(gate x) * up x).
        qkv_bias: queries, keys and values have biases.
        out_bias: so has the attention's output.
        mlp_bias: so have the MLP's layers.
        qk_norm: root-mean-square norm on every head's queries and keys, before they turn (Qwen3).
        layer_scale: a trained factor per channel on both branches (DINOv2).
        rotary: rotation of queries and keys; None where positions are added to tokens.
        causal: tokens see none after themselves.
        remat: training keeps each block's input alone and computes the rest again for the gradient: less memory, a
            third more time.
        implementation: of attention, by name; None for the best by shape and device. Long inputs differentiate in
            forward mode, as `neural_tangents.linearize` does, with "xla" alone.
        dtype: of the matrix products. Norms and the residual stream are float32 always.
        param_dtype: of the parameters.

    Raises:
        ValueError: a size is not a positive integer, or heads do not divide.

    Example:
        >>> from ntkprefix.models import BlockConfig
        >>> config = BlockConfig(width=576, heads=9, kv_heads=3, mlp_width=1536)
        >>> config.head_width, config.kv_heads
        (64, 3)
    """

    width: int = 384
    heads: int = 6
    kv_heads: int = 0
    head_width: int = 0
    mlp_width: int = 1536
    norm: Literal["layer", "rms"] = "layer"
    epsilon: float = 1e-6
    post_norm: bool = False
    activation: Literal["gelu", "gelu_tanh", "silu", "relu"] = "gelu"
    gated: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    qk_norm: bool = False
    layer_scale: bool = False
    rotary: Rotary | None = None
    causal: bool = False
    remat: bool = False
    implementation: str | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def __post_init__(self):
        if self.kv_heads == 0:
            object.__setattr__(self, "kv_heads", self.heads)
        for name in ("width", "heads", "kv_heads", "mlp_width"):
            _positive(name, getattr(self, name))
        if self.head_width == 0:
            if self.width % self.heads:
                raise ValueError(
                    f"BlockConfig: expected a width that is a multiple of the heads, got {self.width} and {self.heads}."
                )
            object.__setattr__(self, "head_width", self.width // self.heads)
        _positive("head_width", self.head_width)
        if self.heads % self.kv_heads:
            raise ValueError(
                f"BlockConfig: expected heads to be a multiple of kv_heads, got {self.heads} and {self.kv_heads}."
            )
        checks.implementation(self.implementation, tuple(IMPLEMENTATIONS))
        if self.rotary is not None and self.rotary.width > self.head_width:
            raise ValueError(
                f"BlockConfig: expected at most {self.head_width} channels that turn, got {self.rotary.width}."
            )


def _positive(name: str, size: Any) -> None:
    if type(size) is not int or size < 1:
        raise ValueError(f"BlockConfig: expected {name} to be a positive integer, got {size!r}.")


class Block(nnx.Module):
    """Attention and an MLP on a residual stream.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.models import Block, BlockConfig
        >>> block = Block(BlockConfig(width=12, heads=3, mlp_width=24), rngs=nnx.Rngs(0))
        >>> out, _ = block(jnp.ones((2, 5, 12)), prefix=TokenPrefix(jnp.ones((7, 3, 4)), jnp.ones((7, 3, 4))))
        >>> out.shape
        (2, 5, 12)
    """

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.attention_norm = make_norm(config, rngs=rngs)
        self.attention = SelfAttention(config, rngs=rngs)
        self.mlp_norm = make_norm(config, rngs=rngs)
        self.mlp = Mlp(config, rngs=rngs)
        if config.layer_scale:
            self.attention_scale = LayerScale(config.width)
            self.mlp_scale = LayerScale(config.width)

    def __call__(
        self, x: Float[Array, "B T width"], *, low_rank: Mapping[str, LowRank] | None = None, **options: Any
    ) -> tuple[Float[Array, "B T width"], Any]:
        """The next layer's tokens, and what `observe` saw.

        Args:
            x: tokens, [B, T, width].
            low_rank: low-rank updates of this layer's matrices, by name.
            options: of `SelfAttention`.
        """
        updates = low_rank or {}
        x = x.astype(jnp.float32)
        if self.config.post_norm:
            attended, observed = self.attention(x, low_rank=updates, **options)
            x = self.attention_norm(x + attended)
            return self.mlp_norm(x + self.mlp(x, low_rank=updates)), observed
        attended, observed = self.attention(self.attention_norm(x), low_rank=updates, **options)
        x = x + (self.attention_scale(attended) if self.config.layer_scale else attended)
        out = self.mlp(self.mlp_norm(x), low_rank=updates)
        return x + (self.mlp_scale(out) if self.config.layer_scale else out), observed


class SelfAttention(nnx.Module):
    """Multi-head self-attention over the input and a prefix."""

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs):
        self.config = config
        inner, kv = config.heads * config.head_width, config.kv_heads * config.head_width
        make = _linears(config, rngs)
        self.query = make(config.width, inner, config.qkv_bias)
        self.key = make(config.width, kv, config.qkv_bias)
        self.value = make(config.width, kv, config.qkv_bias)
        self.out = make(inner, config.width, config.out_bias)
        if config.qk_norm:
            self.query_norm = rms_norm(config.head_width, config.epsilon, rngs=rngs)
            self.key_norm = rms_norm(config.head_width, config.epsilon, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T width"],
        *,
        low_rank: Mapping[str, LowRank],
        rotation: Rotation | None = None,
        prefix: Any = None,
        remember: Remember | None = None,
        observe: Observer | None = None,
        **options: Any,
    ) -> tuple[Float[Array, "B T width"], Any]:
        """Attend.

        Args:
            x: tokens, [B, T, width].
            low_rank: updates of `query`, `key`, `value` and `out`.
            rotation: of the tokens' positions, where the model turns them.
            prefix: a prefix with this layer's heads and head width, or None.
            remember: takes the new keys and values, [B, T, K, H], and gives those to attend to, [B, S, K, H].
            observe: called with query, key and value, and the options of `attention`.
            options: of `attention`: masks, lengths, the offset of the queries.

        Returns:
            The output, [B, T, width], and what `observe` returned (None without it).
        """
        config = self.config
        query = _split(apply(self.query, x, low_rank.get("query")), config.heads)
        key = _split(apply(self.key, x, low_rank.get("key")), config.kv_heads)
        value = _split(apply(self.value, x, low_rank.get("value")), config.kv_heads)
        if config.qk_norm:
            query, key = self.query_norm(query).astype(value.dtype), self.key_norm(key).astype(value.dtype)
        if config.rotary is not None and rotation is not None:
            query, key = (rotate(each, rotation, interleaved=config.rotary.interleaved) for each in (query, key))
        if remember is not None:
            key, value = remember(key, value)
        if config.causal:
            options["is_causal"] = True
        attended = shared_attention(query, key, value, prefix=prefix, implementation=config.implementation, **options)
        out = apply(self.out, attended.reshape(*x.shape[:-1], -1), low_rank.get("out"))
        return out, observe(query, key, value, **options) if observe else None


class Mlp(nnx.Module):
    """Two linear layers with an activation between them, or three where one gates another."""

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs):
        self.config = config
        make = _linears(config, rngs)
        if config.gated:
            self.gate = make(config.width, config.mlp_width, config.mlp_bias)
        self.up = make(config.width, config.mlp_width, config.mlp_bias)
        self.down = make(config.mlp_width, config.width, config.mlp_bias)

    def __call__(self, x: Float[Array, "*B width"], *, low_rank: Mapping[str, LowRank]) -> Float[Array, "*B width"]:
        """Apply it to every token; `low_rank` may update `gate`, `up` and `down`."""
        activation = _ACTIVATIONS[self.config.activation]
        hidden = apply(self.up, x, low_rank.get("up"))
        if self.config.gated:
            hidden = activation(apply(self.gate, x, low_rank.get("gate"))) * hidden
        else:
            hidden = activation(hidden)
        return apply(self.down, hidden, low_rank.get("down"))


class LayerScale(nnx.Module):
    """A trained factor per channel on a residual branch (arXiv 2103.17239, eq. 4)."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "B T width"]) -> Float[Array, "B T width"]:
        """Scale the branch; the result is float32, as the residual stream is."""
        return x.astype(jnp.float32) * self.scale[None, None, :]


def apply(linear: nnx.Linear, x: Float[Array, "*B in"], update: LowRank | None) -> Float[Array, "*B out"]:
    """A linear layer with a low-rank update of its matrix."""
    out = linear(x)
    return out if update is None else out + update(x).astype(out.dtype)


def make_norm(config: BlockConfig, *, rngs: nnx.Rngs) -> nnx.Module:
    """The norm that a block's configuration asks for, over its width."""
    make = {"layer": layer_norm, "rms": rms_norm}[config.norm]
    return make(config.width, config.epsilon, rngs=rngs)


def layer_norm(width: int, epsilon: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A layer norm whose statistics and result are float32 whatever the dtype around it.

    The variance is the mean squared deviation: the faster E[x^2] - E[x]^2 cancels for tokens far from the origin, and
    pretrained transformers have some.
    """
    return nnx.LayerNorm(width, epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)


def rms_norm(width: int, epsilon: float, *, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """A root-mean-square norm in float32."""
    return nnx.RMSNorm(width, epsilon=epsilon, dtype=jnp.float32, rngs=rngs)


def _linears(config: BlockConfig, rngs: nnx.Rngs) -> Callable[[int, int, bool], nnx.Linear]:
    def make(inputs: int, outputs: int, bias: bool) -> nnx.Linear:
        options = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        return nnx.Linear(inputs, outputs, use_bias=bias, rngs=rngs, **options)

    return make


def _split(x: Float[Array, "B T width"], heads: int) -> Float[Array, "B T N H"]:
    return x.reshape(*x.shape[:-1], heads, -1)
