"""The text transformer: token embeddings, a stack of blocks, and logits where the model has them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ntkprefix.models import checks, depth
from ntkprefix.models.adaptation import Adaptation
from ntkprefix.models.block import Block, BlockConfig, Observer, layer_norm, make_norm
from ntkprefix.models.cache import Cache
from ntkprefix.models.statistics import AttentionStatistics, observe_statistics


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A text transformer.

    Attributes:
        vocabulary: number of tokens.
        layers: number of blocks.
        block: of every layer.
        positions: number of trained position embeddings; 0 where blocks turn queries and keys.
        token_types: number of segment embeddings (BERT); 0 for none.
        embedding_norm: layer norm on the embedded tokens (BERT).
        final_norm: norm after the last block, of the blocks' kind.
        head: how hidden states become logits: by the embedding's transpose (`tied`), a matrix of its own (`untied`),
            or not (`none`, encoders).

    Raises:
        ValueError: a size is not an integer, or out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.models import BlockConfig, TextConfig
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> config = TextConfig(vocabulary=50, layers=2, block=block, positions=16)
        >>> half = config.replace(layers=4, dtype=jnp.bfloat16)
        >>> half.layers, half.block.dtype is jnp.bfloat16, config.layers
        (4, True, 2)
    """

    vocabulary: int
    layers: int
    block: BlockConfig
    positions: int = 0
    token_types: int = 0
    embedding_norm: bool = False
    final_norm: bool = True
    head: Literal["tied", "untied", "none"] = "tied"

    def __post_init__(self):
        for name, least in (("vocabulary", 1), ("layers", 1), ("positions", 0), ("token_types", 0)):
            size = getattr(self, name)
            if type(size) is not int or size < least:
                raise ValueError(f"TextConfig: expected {name} to be an integer of at least {least}, got {size!r}.")

    def replace(self, **changes: Any) -> TextConfig:
        """A copy with some fields changed; `dtype`, `param_dtype`, `remat` and `implementation` are the block's."""
        names = ("dtype", "param_dtype", "remat", "implementation")
        block = {name: changes.pop(name) for name in names if name in changes}
        return dataclasses.replace(self, block=dataclasses.replace(self.block, **block), **changes)


class TextModel(nnx.Module):
    """A transformer over tokens that takes a prefix for every layer beside its input.

    `blocks` holds the parameters of all layers with a leading `layers` axis. `nnx.split` and `nnx.merge` give the pure
    function of (weights, adapter, tokens) that training closes over.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.models import BlockConfig, TextConfig, TextModel
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block, positions=16), rngs=nnx.Rngs(0))
        >>> tokens = jnp.array([[3, 1, 4, 1, 5]])
        >>> keys = values = jnp.zeros((2, 10, 3, 4))  # 10 prefix tokens for each of 2 layers
        >>> model.logits(model(tokens, prefixes=TokenPrefix(keys, values))).shape
        (1, 5, 50)
    """

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        self.config = config
        block = config.block

        def table(rows: int) -> nnx.Embed:
            return nnx.Embed(rows, block.width, dtype=jnp.float32, param_dtype=block.param_dtype, rngs=rngs)

        self.tokens = table(config.vocabulary)
        if config.positions:
            self.positions = table(config.positions)
        if config.token_types:
            self.token_types = table(config.token_types)
        if config.embedding_norm:
            self.embedding_norm = layer_norm(block.width, block.epsilon, rngs=rngs)
        self.blocks = depth.stack(lambda rngs: Block(block, rngs=rngs), config.layers, rngs=rngs)
        if config.final_norm:
            self.norm = make_norm(block, rngs=rngs)
        if config.head == "untied":
            options = {"use_bias": False, "dtype": block.dtype, "param_dtype": block.param_dtype}
            self.head = nnx.Linear(block.width, config.vocabulary, rngs=rngs, **options)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        prefixes: Any = None,
        adapter: Adaptation | None = None,
        mask: Bool[Array, "B T"] | None = None,
        token_types: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T width"]:
        """Hidden states of the tokens.

        Args:
            tokens: numbers of tokens, [B, T].
            prefixes: None; a list or tuple with one prefix or None per layer; or one prefix whose arrays have a
                leading `layers` axis; or `Layered` (`ntkprefix.models.depth`). A layer's prefix has
                `block.kv_heads` heads of `block.head_width`.
            adapter: what else changes: see `Adaptation`.
            mask: True for tokens, False for padding, on whichever side it is; None where nothing is padded.
            token_types: segment of every token, where the model has segments; 0 if None.
            positions: of the tokens; by default their number among the tokens that are none of padding, from 0.

        Returns:
            Float32 states after the last norm, [B, T, width]; those of padding mean nothing.

        Raises:
            TypeError: tokens that are not integers, a mask that is not boolean.
            ValueError: shapes that do not match, more tokens than the model has positions, another number of prefixes
                than layers, or prefixes given twice.
        """
        checks.tokens(tokens, mask, self.config)
        return depth.compiled(self, "_run", tokens, prefixes, adapter, mask, token_types, positions)[0]

    def observe(
        self,
        tokens: Int[Array, "B T"],
        observe: Observer,
        *,
        prefixes: Any = None,
        adapter: Adaptation | None = None,
        mask: Bool[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
    ) -> Any:
        """What `observe` returns for every layer's attention, with a leading `layers` axis; arguments as for the call.

        Args:
            tokens: [B, T].
            observe: given query, key and value of a layer and its attention's options; returns a pytree of arrays.
            prefixes: as for the call.
            adapter: as for the call.
            mask: as for the call.
            positions: as for the call.
        """
        return self._run(tokens, prefixes, adapter, mask, None, positions, observe)[1]

    def attention_statistics(
        self, tokens: Int[Array, "B T"], *, mask: Bool[Array, "B T"] | None = None
    ) -> AttentionStatistics:
        """Each layer's and head's own attention on a batch: what prefixes start from."""

        def look(query: Array, key: Array, value: Array, **options: Any) -> AttentionStatistics:
            return observe_statistics(query, key, value, counted=mask, **options)

        return self.observe(tokens, look, mask=mask)

    def logits(self, hidden: Float[Array, "*B width"]) -> Float[Array, "*B vocabulary"]:
        """Scores of the next token, float32.

        Raises:
            ValueError: the model has no head.
        """
        dtype = self.config.block.dtype
        if self.config.head == "none":
            raise ValueError(
                "logits: expected a model with a head, got an encoder. Put a head of your own on its states."
            )
        if self.config.head == "untied":
            return self.head(hidden).astype(jnp.float32)
        table = self.tokens.embedding[...].astype(dtype)
        return jnp.einsum("...d,vd->...v", hidden.astype(dtype), table, preferred_element_type=jnp.float32)

    def extend(
        self,
        tokens: Int[Array, "B T"],
        cache: Cache,
        *,
        lengths: Int[Array, " B"] | None = None,
        prefixes: Any = None,
        adapter: Adaptation | None = None,
    ) -> tuple[Float[Array, "B T width"], Cache]:
        """Hidden states of tokens that follow those in a cache, and the cache with them in it.

        A text of any length, or one token at a time: causal models alone. The prefix is not in the cache; an adapter's
        prompt is, like any tokens.

        Args:
            tokens: [B, T], padded on the right where rows differ.
            cache: of what came before; see `Cache.empty`.
            lengths: how many of each row's tokens are none of padding, [B]; T for all if None.
            prefixes: as for the call, the same in every call for one text.
            adapter: as for the call. Its prompt goes in front of these tokens: give it with a text's first ones alone.

        Returns:
            States, [B, T, width], and the cache, longer by the tokens and the prompt.

        Raises:
            ValueError: as for the call; a model that is not causal, or a cache that has no room for so many tokens.
        """
        checks.tokens(tokens, None, self.config)
        prefixes, low_rank, prompt = checks.adaptation(prefixes, adapter)
        before = 0 if prompt is None else prompt.shape[0]
        checks.can_extend(before + tokens.shape[1], cache, self.config)
        added = before + (tokens.shape[1] if lengths is None else lengths)
        tokens = jnp.pad(tokens, ((0, 0), (before, 0)))
        positions = (cache.start + cache.lengths)[:, None] + jnp.arange(tokens.shape[1])[None]
        x = self._embed(tokens, None, positions, prompt)
        rotation = self._rotation(positions)

        def step(block: Block, carry: tuple[Array, Cache], prefix: Any, also: Any) -> tuple[tuple[Array, Cache], None]:
            x, cache = carry
            number, updates = also

            def remember(key: Array, value: Array) -> tuple[Array, Array]:
                nonlocal cache
                cache = cache.write(number, key, value)
                return cache.read(number)

            options = {"rotation": rotation, "remember": remember, "query_offset": cache.lengths}
            x, _ = block(x, low_rank=updates, prefix=prefix, **options)
            return (x, cache), None

        also = (jnp.arange(self.config.layers), low_rank)
        (x, cache), _ = depth.scan(
            self.blocks, step, (x, cache), layers=self.config.layers, prefixes=prefixes, also=also
        )
        return self._finish(x)[:, before:], dataclasses.replace(cache, lengths=cache.lengths + added)

    def _run(self, tokens, prefixes, adapter, mask, token_types, positions, observe=None):
        checks.tokens(tokens, mask, self.config)
        prefixes, low_rank, prompt = checks.adaptation(prefixes, adapter)
        if prompt is not None:
            tokens, mask, token_types, positions = _behind(prompt, tokens, mask, token_types, positions)
        checks.enough_positions(tokens.shape[1], self.config)
        if positions is None:
            positions = _positions(tokens.shape, mask)
        x = self._embed(tokens, token_types, positions, prompt)
        options: dict[str, Any] = {"rotation": self._rotation(positions)}
        if mask is not None:
            options["mask"] = mask[:, None, None, :]
        x, observed = depth.scan(
            self.blocks,
            lambda block, x, prefix, updates: block(x, low_rank=updates, prefix=prefix, observe=observe, **options),
            x,
            layers=self.config.layers,
            prefixes=prefixes,
            also=low_rank,
            remat=self.config.block.remat,
        )
        x = self._finish(x)
        return (x if prompt is None else x[:, prompt.shape[0] :]), observed

    def _embed(self, tokens, token_types, positions, prompt=None):
        x = self.tokens(tokens).astype(jnp.float32)
        if prompt is not None:
            x = jax.lax.dynamic_update_slice_in_dim(x, jnp.broadcast_to(prompt, (x.shape[0], *prompt.shape)), 0, 1)
        if self.config.positions:
            x = x + self.positions(positions)
        if self.config.token_types:
            x = x + self.token_types(jnp.zeros_like(tokens) if token_types is None else token_types)
        return self.embedding_norm(x) if self.config.embedding_norm else x

    def _rotation(self, positions):
        rotary = self.config.block.rotary
        return None if rotary is None else rotary.at(positions)

    def _finish(self, x):
        return self.norm(x) if self.config.final_norm else x


def _positions(shape: tuple[int, ...], mask: Array | None) -> Int[Array, "B T"]:
    if mask is None:
        return jnp.broadcast_to(jnp.arange(shape[1])[None], shape)
    # Padding before the first token has the position of the first.
    return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1, 0)


def _behind(prompt, tokens, mask, token_types, positions):
    """The input moved back by the prompt, whose tokens number 0 until the prompt takes their place."""
    added = ((0, 0), (prompt.shape[0], 0))
    if mask is not None:
        mask = jnp.pad(mask, added, constant_values=True)
    if token_types is not None:
        token_types = jnp.pad(token_types, added)
    if positions is not None:
        before = jnp.broadcast_to(jnp.arange(prompt.shape[0])[None], (tokens.shape[0], prompt.shape[0]))
        positions = jnp.concatenate([before, positions + prompt.shape[0]], axis=1)
    return jnp.pad(tokens, added), mask, token_types, positions
