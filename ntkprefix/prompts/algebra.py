"""Compressed prompts as terms of a sum: one moved to other positions, two merged, one subtracted again.

Attention is a ratio of two sums over keys, so whatever stands for keys adds: tokens and clouds go behind one another,
states of features are added. What does not add is what tokens read in one another: a document that was read by itself
has other keys and values than behind another document.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from ntkprefix import checks
from ntkprefix.models import TextModel
from ntkprefix.models.rotary import Rotary, rotate
from ntkprefix.prefixes import FeaturePrefix, JoinedPrefix, MeasurePrefix, TokenPrefix

_KINDS = (TokenPrefix, MeasurePrefix, FeaturePrefix, JoinedPrefix)


class JoinedPrompt(NamedTuple):
    """What stands for a prompt, or for several. A `CompressedPrompt` and a `StoredPrompt` will do wherever it does.

    Attributes:
        prefixes: tokens, clouds, states of features or several of them joined, of every layer: arrays have a leading
            `layers` axis.
        start: position of what comes after it.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, Rotary, TextConfig, TextModel
        >>> from ntkprefix.prompts import JoinedPrompt, read_prompt
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True, rotary=Rotary(width=4))
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block), rngs=nnx.Rngs(0))
        >>> tokens = jnp.array([[3, 1, 4, 1, 5, 9, 2]])
        >>> prompt = JoinedPrompt(read_prompt(model, tokens[:, :5]), start=5)
        >>> behind = model(tokens[:, 5:], prefixes=prompt.prefixes, positions=prompt.start + jnp.arange(2)[None])
        >>> bool(jnp.allclose(behind, model(tokens)[:, 5:], atol=1e-5))
        True
    """

    prefixes: Any
    start: int


def shift_prompt(model: TextModel, prompt: Any, by: int) -> JoinedPrompt:
    """A prompt as it would be if it had been read `by` positions further on, without anything in front of it.

    Keys that a model turns by their positions are turned on, which is exact up to rounding: angles add, and what a
    document's tokens see of each other depends on distances alone. Clouds turn with their means and covariances. Where
    a model has no positions at all nothing is to be done.

    Args:
        model: whose prompt it is.
        prompt: a `JoinedPrompt`, or anything with `prefixes` and `start`.
        by: how many positions; below 0 for back.

    Returns:
        The prompt, whose `start` is larger by `by`.

    Raises:
        TypeError: no prompt, prefixes of another kind, a start or shift that is not an integer.
        ValueError: a start that is or comes below 0; a state of features, which has no keys; a model that adds trained
            positions to its tokens, whose keys cannot be moved; arrays that do not fit each other or lack the axis of
            layers.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, Rotary, TextConfig, TextModel
        >>> from ntkprefix.prompts import JoinedPrompt, read_prompt, shift_prompt
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True, rotary=Rotary(width=4))
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block), rngs=nnx.Rngs(0))
        >>> tokens = jnp.array([[3, 1, 4, 1, 5]])
        >>> moved = shift_prompt(model, JoinedPrompt(read_prompt(model, tokens), 5), by=7)
        >>> there = read_prompt(model, tokens, start=7)
        >>> bool(jnp.allclose(moved.prefixes.keys, there.keys, atol=1e-5)), moved.start
        (True, 12)

    Source: rotations compose (RoFormer, arXiv 2104.09864, section 3.2.2).
    """
    checked("shift_prompt", prompt)
    checks.at_least(-prompt.start, "shift_prompt", by=by)
    prefixes, rotary = prompt.prefixes, model.config.block.rotary
    if by == 0:
        return JoinedPrompt(prefixes, prompt.start)
    if model.config.positions:
        raise ValueError(
            "shift_prompt: expected a model that turns keys by their positions, got one that adds trained positions to "
            "its tokens: keys read at one position cannot be moved to another. Merge with shift=False, or append the "
            "document's tokens."
        )
    moved = prefixes if rotary is None else _turned(prefixes, rotary, by)
    return JoinedPrompt(moved, prompt.start + by)


def _turned(prefixes: Any, rotary: Rotary, by: int) -> Any:
    if isinstance(prefixes, JoinedPrefix):
        return JoinedPrefix(tuple(_turned(part, rotary, by) for part in prefixes.parts))
    if isinstance(prefixes, FeaturePrefix):
        raise ValueError(
            "shift_prompt: expected tokens or clouds, got a state of features, which has no keys that could be turned "
            "to other positions. Merge with shift=False, or append the document's tokens."
        )

    def turned(keys: Float[Array, "L C K H"]) -> Float[Array, "L C K H"]:
        return rotate(keys, rotary.further(by), interleaved=rotary.interleaved)

    if isinstance(prefixes, TokenPrefix):
        return TokenPrefix(turned(prefixes.keys), prefixes.values, prefixes.log_weights)
    factor = prefixes.factor
    if factor.size:  # directions of the covariances turn as keys do
        factor = jax.vmap(turned, in_axes=-1, out_axes=-1)(factor)
    return MeasurePrefix(prefixes.log_weight, turned(prefixes.mean), factor, prefixes.value, prefixes.cross)


def merge_prompts(model: TextModel, first: Any, second: Any, *, shift: bool = True, common: Any = None) -> JoinedPrompt:
    r"""One prompt for two that were compressed independently: their shares of attention add.

    $$ num(q) = num_1(q) + num_2(q), \qquad den(q) = den_1(q) + den_2(q) $$

    Nothing is fitted, and the result is as large as both. It differs from reading one document behind the other in
    that the second has not read the first, and in that each has a first token of its own, on which heads rest that look
    for nothing: two of them weigh twice as much. With `common` both have the same first tokens, once.

    Args:
        model: whose prompts they are.
        first: a `JoinedPrompt`, or anything with `prefixes` and `start`.
        second: likewise, of the same kind.
        shift: move the second to behind the first. Otherwise both keep their positions, which overlap, and what comes
            after starts at the larger `start`: both documents are equally near, and no position is spent.
        common: what both prompts begin with: a prompt, such as a few exact tokens, that both documents were appended
            to (`append_document`). It is in the result once.

    Returns:
        The prompt that stands for both, `first` in front.

    Raises:
        TypeError: as for `shift_prompt`, prompts of two kinds, a `shift` that is neither True nor False.
        ValueError: as for `shift_prompt`, other sizes, states whose feature maps, scales or centres differ, a common
            beginning that is not in the second.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, Rotary, TextConfig, TextModel
        >>> from ntkprefix.prompts import JoinedPrompt, merge_prompts, read_prompt, shift_prompt, subtract_prompt
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True, rotary=Rotary(width=4))
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block), rngs=nnx.Rngs(0))
        >>> documents = jnp.array([[3, 1, 4, 1, 5]]), jnp.array([[9, 2, 6, 5, 3]])
        >>> one, two = (JoinedPrompt(read_prompt(model, tokens), 5) for tokens in documents)  # or compressed
        >>> both = merge_prompts(model, one, two)
        >>> both.prefixes.keys.shape, both.start
        ((2, 10, 3, 4), 10)
        >>> first = subtract_prompt(both, shift_prompt(model, two, one.start), start=one.start)
        >>> bool((first.prefixes.keys == one.prefixes.keys).all())
        True

    Source: shares of disjoint groups of keys add (`ntkprefix.partial`).
    """
    checks.yes_or_no("merge_prompts", shift=shift)
    own = second if common is None else subtract_prompt(second, common)
    for prompt in (first, own):
        checked("merge_prompts", prompt)
    if not shift:
        return JoinedPrompt(first.prefixes + own.prefixes, max(first.start, own.start))
    moved = shift_prompt(model, own, first.start - (0 if common is None else common.start))
    return JoinedPrompt(first.prefixes + moved.prefixes, moved.start)


def subtract_prompt(both: Any, one: Any, *, start: int | None = None) -> JoinedPrompt:
    """A prompt without one of those that it was put together from.

    States of features are subtracted, exactly up to the rounding of what is subtracted: where that outweighs what is
    left by many orders, little is left. Of tokens and clouds the pieces are taken out, exactly, as long as they are
    there to the last bit. (Heads of several sizes, `compress_prompt(share="need")`, are filled up with tokens of no
    weight, which a file leaves out, and small integers round anew what was moved, and in 4 bits what was the first
    token of a document that is not the first one any more: of those that were merged, subtract before they are saved.)

    What cannot be had: a document out of a prefix that was fitted to several (`recompress_prompt`), of which nothing is
    left as it was; and the traces that a document left in those that were read behind it (`append_document`).

    Args:
        both: a `JoinedPrompt`, or anything with `prefixes` and `start`.
        one: likewise, as it stands in the other: `shift_prompt(model, second, first.start)` where it was the second of
            two that were merged.
        start: position of what comes after what is left; that of `both` if None. What is left keeps its positions.

    Returns:
        What is left.

    Raises:
        TypeError: as for `shift_prompt`, prompts of two kinds.
        ValueError: as for `shift_prompt`, other sizes, states whose feature maps, scales or centres differ, tokens or
            clouds that are not there.

    Example:
        >>> import jax
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.prompts import JoinedPrompt, subtract_prompt
        >>> one, two = (TokenPrefix(*each) for each in jax.random.normal(jax.random.key(0), (2, 2, 3, 5, 1, 4)))
        >>> left = subtract_prompt(JoinedPrompt(one + two, 10), JoinedPrompt(two, 10), start=5)
        >>> bool((left.prefixes.keys == one.keys).all()), left.start
        (True, 5)
    """
    for prompt in (both, one):
        checked("subtract_prompt", prompt)
    start = both.start if start is None else start
    checks.at_least(0, "subtract_prompt", start=start)
    return JoinedPrompt(both.prefixes - one.prefixes, start)


def checked(function: str, prompt: Any) -> None:
    """Something with prefixes of every layer and a start.

    Raises:
        TypeError: something else, prefixes of another kind, a start that is no integer.
        ValueError: a start below 0, arrays that do not fit each other or lack the axis of layers.
    """
    if not (hasattr(prompt, "prefixes") and hasattr(prompt, "start")):
        raise TypeError(
            f"{function}: expected a compressed prompt, with `prefixes` and `start`, got {type(prompt).__name__}. "
            "JoinedPrompt(prefixes, start) makes one."
        )
    if not isinstance(prompt.prefixes, _KINDS):
        raise TypeError(
            f"{function}: expected tokens, clouds or states of features of every layer, or some of them joined, got "
            f"{type(prompt.prefixes).__name__}."
        )
    checks.at_least(0, function, start=prompt.start)
    if prompt.prefixes.shape().rows is None:
        raise ValueError(f"{function}: expected arrays with a leading axis of layers, got those of one layer.")
