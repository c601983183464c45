"""The vision transformer, as DINOv2 has it, with a prefix at every attention layer."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ntkprefix.models import depth
from ntkprefix.models.layers import LayerScale, Mlp, Observer, SelfAttention, layer_norm
from ntkprefix.models.positions import resize_grid
from ntkprefix.models.statistics import AttentionStatistics, observe_statistics


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes of a vision transformer; the defaults are DINOv2 ViT-S/14.

    Attributes:
        patch: side of a patch in pixels.
        width: channels of a token.
        layers: number of blocks.
        heads: attention heads; they share `width` evenly.
        mlp_width: hidden channels of the MLPs.
        grid: side of the square grid that position embeddings are stored for.
        epsilon: of the layer norms.
        dtype: of the matrix products. Parameters, layer norms and the residual stream are float32 always.

    Raises:
        ValueError: a size is not a positive integer, or `heads` does not divide `width`.

    Example:
        >>> from ntkprefix.models import ViTConfig
        >>> ViTConfig().head_width
        64
    """

    patch: int = 14
    width: int = 384
    layers: int = 12
    heads: int = 6
    mlp_width: int = 1536
    grid: int = 37
    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    def __post_init__(self):
        for field in fields(self):
            size = getattr(self, field.name)
            if field.type == "int" and (type(size) is not int or size < 1):
                raise ValueError(f"ViTConfig.{field.name}: expected a positive integer, got {size!r}.")
        if self.width % self.heads:
            raise ValueError(f"ViTConfig: width must be a multiple of heads, got {self.width} and {self.heads}.")

    @property
    def head_width(self) -> int:
        """H, the width of one head's queries, keys and values."""
        return self.width // self.heads


class Block(nnx.Module):
    """A pre-norm transformer block whose two branches have a layer scale."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        width, dtype = config.width, config.dtype
        self.attention_norm = layer_norm(width, config.epsilon, rngs=rngs)
        self.attention = SelfAttention(width, config.heads, dtype=dtype, rngs=rngs)
        self.attention_scale = LayerScale(width)
        self.mlp_norm = layer_norm(width, config.epsilon, rngs=rngs)
        self.mlp = Mlp(width, config.mlp_width, dtype=dtype, rngs=rngs)
        self.mlp_scale = LayerScale(width)

    def __call__(
        self, x: Float[Array, "B T width"], *, prefix: Any = None, observe: Observer | None = None
    ) -> tuple[Float[Array, "B T width"], Any]:
        """The next layer's tokens, and what `observe` saw (see `SelfAttention`)."""
        attended, observed = self.attention(self.attention_norm(x), prefix=prefix, observe=observe)
        x = x + self.attention_scale(attended)
        return x + self.mlp_scale(self.mlp(self.mlp_norm(x))), observed


class ViT(nnx.Module):
    """A vision transformer that takes a prefix for every layer beside its images.

    `blocks` holds the parameters of all layers with a leading `layers` axis. `nnx.split` and `nnx.merge` give the pure
    function of (weights, prefixes, images) that training closes over.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.models import ViT, ViTConfig
        >>> model = ViT(ViTConfig(width=12, layers=2, heads=3, mlp_width=24, grid=4), rngs=nnx.Rngs(0))
        >>> images = jnp.zeros((1, 28, 42, 3))
        >>> model(images).shape  # the class token and 2 x 3 patches
        (1, 7, 12)
        >>> keys = values = jnp.zeros((2, 10, 3, 4))  # 10 prefix tokens for each of 2 layers
        >>> model(images, prefixes=TokenPrefix(keys, values)).shape
        (1, 7, 12)

    Source: arXiv 2010.11929 (ViT), arXiv 2304.07193 (DINOv2).
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        normal = nnx.initializers.normal(0.02)
        patch = (config.patch, config.patch)
        self.patches = nnx.Conv(3, config.width, patch, strides=patch, padding="VALID", dtype=config.dtype, rngs=rngs)
        self.cls_token = nnx.Param(normal(rngs.params(), (1, 1, config.width)))
        # Position 0 is the class token's; the grid follows, row by row.
        self.positions = nnx.Param(normal(rngs.params(), (1, 1 + config.grid**2, config.width)))
        self.blocks = depth.stack(lambda rngs: Block(config, rngs=rngs), config.layers, rngs=rngs)
        self.norm = layer_norm(config.width, config.epsilon, rngs=rngs)

    def __call__(self, images: Float[Array, "B h w 3"], *, prefixes: Any = None) -> Float[Array, "B T width"]:
        """Features of the images.

        Args:
            images: normalised (see `ntkprefix.images.normalise`), [B, h, w, 3]; h and w multiples of the patch.
            prefixes: None; a list or tuple with one prefix or None per layer; or one prefix whose arrays have a
                leading `layers` axis. A layer's prefix has `config.heads` heads of `config.head_width`.

        Returns:
            Float32 tokens after the last layer norm, [B, T, width]: the class token, then h w / patch^2 patches row
            by row.

        Raises:
            TypeError: the images are not floating point.
            ValueError: images of another shape, sides that patches do not tile, another number of prefixes than
                layers.
        """
        return self._run(images, prefixes, None)[0]

    def observe(self, images: Float[Array, "B h w 3"], observe: Observer, *, prefixes: Any = None) -> Any:
        """Look at every layer's attention from inside the one forward pass.

        Args:
            images: as for the call.
            observe: given query, key and value of a layer, each [B, T, N, H]; returns a pytree of arrays.
            prefixes: as for the call.

        Returns:
            What `observe` returned, every array with a leading `layers` axis.

        Raises:
            TypeError: as for the call.
            ValueError: as for the call.
        """
        return self._run(images, prefixes, observe)[1]

    def attention_statistics(self, images: Float[Array, "B h w 3"]) -> AttentionStatistics:
        """Each layer's and head's mean log-sum-exp, key and value on a batch of images.

        Args:
            images: as for the call.

        Returns:
            `log_sum_exp` [layers, N], `key_mean` and `value_mean` [layers, N, H]: what prefixes start from.

        Raises:
            TypeError: as for the call.
            ValueError: as for the call.
        """
        return self.observe(images, observe_statistics)

    def _run(self, images: Array, prefixes: Any, observe: Observer | None) -> tuple[Array, Any]:
        tokens, observed = depth.scan(
            self.blocks,
            lambda block, x, prefix: block(x, prefix=prefix, observe=observe),
            self._embed(images),
            layers=self.config.layers,
            prefixes=prefixes,
        )
        return self.norm(tokens), observed

    def _embed(self, images: Array) -> Float[Array, "B T width"]:
        _check_images(images, self.config.patch)
        patches = self.patches(images).astype(jnp.float32)
        batch, rows, columns, width = patches.shape
        side = self.config.grid
        grid = resize_grid(self.positions[0, 1:].reshape(side, side, width), rows, columns)
        cls = jnp.broadcast_to(self.cls_token[...] + self.positions[:, :1], (batch, 1, width))
        return jnp.concatenate([cls, (patches + grid[None]).reshape(batch, rows * columns, width)], axis=1)


def _check_images(images: Array, patch: int) -> None:
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"images: expected [B, h, w, 3], got shape {list(images.shape)}. Add a batch axis to one image."
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"images: expected normalised floating-point images, got {images.dtype}. "
            "Apply ntkprefix.images.normalise to uint8 images."
        )
    height, width = images.shape[1:3]
    if height % patch or width % patch or not height or not width:
        near = [max(patch, round(side / patch) * patch) for side in (height, width)]
        raise ValueError(
            f"images: both sides must be multiples of the {patch}-pixel patch, got {height} x {width}. "
            f"Resize or crop to {near[0]} x {near[1]}, for example."
        )
