"""The vision transformer, as DINOv2 has it, with a prefix at every attention layer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ntkprefix.models import checks, depth
from ntkprefix.models.adaptation import Adaptation
from ntkprefix.models.block import Block, BlockConfig, Observer, make_norm
from ntkprefix.models.positions import resize_grid
from ntkprefix.models.statistics import AttentionStatistics, observe_statistics


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes of a vision transformer; the defaults are DINOv2 ViT-S/14.

    Attributes:
        patch: side of a patch in pixels.
        layers: number of blocks.
        grid: side of the square grid that position embeddings are stored for.
        block: of every layer.

    Raises:
        ValueError: a size is not a positive integer.

    Example:
        >>> from ntkprefix.models import ViTConfig
        >>> ViTConfig().block.head_width
        64
    """

    patch: int = 14
    layers: int = 12
    grid: int = 37
    block: BlockConfig = dataclasses.field(default_factory=lambda: BlockConfig(layer_scale=True))

    def __post_init__(self):
        for name in ("patch", "layers", "grid"):
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise ValueError(f"ViTConfig.{name}: expected a positive integer, got {size!r}.")

    def replace(self, **changes: Any) -> ViTConfig:
        """A copy with some fields of the block changed."""
        return dataclasses.replace(self, block=dataclasses.replace(self.block, **changes))


class ViT(nnx.Module):
    """A vision transformer that takes a prefix for every layer beside its images.

    `blocks` holds the parameters of all layers with a leading `layers` axis. `nnx.split` and `nnx.merge` give the pure
    function of (weights, prefixes, images) that training closes over.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.models import BlockConfig, ViT, ViTConfig
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24)
        >>> model = ViT(ViTConfig(layers=2, grid=4, block=block), rngs=nnx.Rngs(0))
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
        block, normal = config.block, nnx.initializers.normal(0.02)
        patch = (config.patch, config.patch)
        options = {"strides": patch, "padding": "VALID", "dtype": block.dtype, "param_dtype": block.param_dtype}
        self.patches = nnx.Conv(3, block.width, patch, rngs=rngs, **options)
        self.cls_token = nnx.Param(normal(rngs.params(), (1, 1, block.width)))
        # Position 0 is the class token's; the grid follows, row by row.
        self.positions = nnx.Param(normal(rngs.params(), (1, 1 + config.grid**2, block.width)))
        self.blocks = depth.stack(lambda rngs: Block(block, rngs=rngs), config.layers, rngs=rngs)
        self.norm = make_norm(block, rngs=rngs)

    def __call__(
        self, images: Float[Array, "B h w 3"], *, prefixes: Any = None, adapter: Adaptation | None = None
    ) -> Float[Array, "B T width"]:
        """Features of the images.

        Args:
            images: normalised (see `ntkprefix.images.normalise`), [B, h, w, 3]; h and w multiples of the patch.
            prefixes: None; a list or tuple with one prefix or None per layer; or one prefix whose arrays have a
                leading `layers` axis; or `Layered` (`ntkprefix.models.depth`). A layer's prefix has
                `block.heads` heads of `block.head_width`.
            adapter: what else changes: see `Adaptation`. A prompt's tokens come after the class token's.

        Returns:
            Float32 tokens after the last layer norm, [B, T, width]: the class token, then h w / patch^2 patches row
            by row.

        Raises:
            TypeError: the images are not floating point.
            ValueError: images of another shape, sides that patches do not tile, another number of prefixes than
                layers.
        """
        return depth.compiled(self, "_run", images, prefixes, adapter)[0]

    def observe(
        self,
        images: Float[Array, "B h w 3"],
        observe: Observer,
        *,
        prefixes: Any = None,
        adapter: Adaptation | None = None,
    ) -> Any:
        """Look at every layer's attention from inside the one forward pass.

        Args:
            images: as for the call.
            observe: given query, key and value of a layer, each [B, T, N, H], and the options of its attention; returns
                a pytree of arrays.
            prefixes: as for the call.
            adapter: as for the call.

        Returns:
            What `observe` returned, every array with a leading `layers` axis.

        Raises:
            TypeError: as for the call.
            ValueError: as for the call.
        """
        return self._run(images, prefixes, adapter, observe)[1]

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

    def _run(self, images, prefixes, adapter, observe=None):
        prefixes, low_rank, prompt = checks.adaptation(prefixes, adapter)
        x = self._embed(images)
        if prompt is not None:
            prompt = jnp.broadcast_to(prompt[None], (x.shape[0], *prompt.shape))
            x = jnp.concatenate([x[:, :1], prompt, x[:, 1:]], axis=1)
        x, observed = depth.scan(
            self.blocks,
            lambda block, x, prefix, updates: block(x, low_rank=updates, prefix=prefix, observe=observe),
            x,
            layers=self.config.layers,
            prefixes=prefixes,
            also=low_rank,
            remat=self.config.block.remat,
        )
        x = self.norm(x)
        return (x if prompt is None else jnp.concatenate([x[:, :1], x[:, 1 + prompt.shape[1] :]], axis=1)), observed

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
