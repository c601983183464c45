"""A document read behind a compressed prompt, and compressed there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ntkprefix import checks
from ntkprefix.compress import Clouds, Method
from ntkprefix.compress.problem import answer
from ntkprefix.models import TextModel
from ntkprefix.partial import Partial, merge
from ntkprefix.prefixes import FeaturePrefix, JoinedPrefix, MeasurePrefix, TokenPrefix
from ntkprefix.prompts.algebra import checked
from ntkprefix.prompts.calibration import Calibration, calibrate
from ntkprefix.prompts.compress import CompressedPrompt
from ntkprefix.prompts.layers import compress_layers, judge_layers
from ntkprefix.prompts.read import read_prompt
from ntkprefix.prompts.texts import texts_behind, without_last

# Where texts may come from that see all of a document.
Behind = Literal["continue", "repeat"]


def append_document(
    model: TextModel,
    prompt: Any,
    tokens: Int[Array, "1 M"],
    *,
    budget: int | str | None = None,
    method: str | Method | None = None,
    texts: Behind | Int[Array, "B T"] = "continue",
    seed: int = 0,
    chunk: int = 512,
    on_step: Callable[[str, int, int], None] | None = None,
) -> CompressedPrompt:
    """A prompt with a document behind it: what was there stays as it is, and the document's own small prefix is added.

    The document is read at the positions from `prompt.start` on, and its tokens see the prompt's small prefix as they
    would have seen the prompt. Again and again this compresses a prompt of any length window by window: no more than
    one window's keys and values, and the small prefix, are in memory at a time.

    Tokens and clouds get longer by the budget. A state of features takes the document into its own sums and keeps its
    size: the state of both documents' tokens together, exactly. Of a joined prefix, a few exact tokens and a state say,
    the last part takes it in.

    Args:
        model: causal.
        prompt: a `CompressedPrompt`, or anything with `prefixes` and `start`.
        tokens: the document, [1, M].
        budget: of the document, as for `compress_prompt`; none for a state of features.
        method: likewise; if None, `matching-in-context` behind tokens, and clouds of their rank behind clouds.
        texts: behind prompt and document, as for `compress_prompt`, but for pieces that are read apart.
        seed: of what is random.
        chunk: tokens that are read at a time.
        on_step: as for `compress_prompt`.

    Returns:
        Both together, and the report of the document's share: against its own keys and values, all else that a query
        sees, the prompt's small prefix included, being equal.

    Raises:
        TypeError: as for `shift_prompt` and `compress_prompt`, a method that makes another kind than the prompt has.
        ValueError: as for `shift_prompt` and `compress_prompt`; a budget or method for a state of features, or no
            budget for another kind; a state that was fitted, one for each query head, to which sums do not add.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, Rotary, TextConfig, TextModel
        >>> from ntkprefix.prompts import JoinedPrompt, append_document, read_prompt
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True, rotary=Rotary(width=4))
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block), rngs=nnx.Rngs(0))
        >>> first, second = jnp.split(jnp.arange(40)[None], 2, axis=1)
        >>> one = JoinedPrompt(read_prompt(model, first), 20)  # or compressed
        >>> both = append_document(model, one, second, method="ends", budget="4x", texts="repeat")
        >>> both.prefixes.keys.shape, both.start
        ((2, 25, 3, 4), 40)
    """
    tell = on_step or (lambda *_: None)
    checked("append_document", prompt)
    if isinstance(texts, str):
        checks.one_of("append_document", "kind of texts", texts, get_args(Behind))
    before = prompt.prefixes
    last = before.parts[-1] if isinstance(before, JoinedPrefix) else before
    state = isinstance(last, FeaturePrefix)
    if state != (budget is None) or (state and method is not None):
        raise ValueError(
            "append_document: expected a budget, and perhaps a method, for tokens and clouds, and neither for a state "
            f"of features, which keeps its size; got budget {budget!r} and method {method!r} for a "
            f"{type(last).__name__}."
        )
    length = tokens.shape[-1]
    options: dict[str, Any] = {"chunk": chunk, "on_chunk": lambda done: tell("reading", done, length)}
    whole = read_prompt(model, tokens, prefixes=before, start=prompt.start, **options)
    tell("asking", 0, 1)
    exact = _exactly(whole, last)
    seen, start = before + _placed(exact, before), prompt.start + length
    if isinstance(texts, str):
        others = before + _placed(_exactly(without_last(whole), last), before)
        texts = texts_behind(model, texts, tokens, others, start=start - 1, seed=seed).tokens
    asked = calibrate(model, texts, seen, start=start)
    asked = Calibration(asked.queries, _beside(before, asked))
    if budget is None:
        return CompressedPrompt(seen, start, judge_layers(exact, whole, asked))
    if method is None:
        method = Clouds(rank=last.factor.shape[-1]) if isinstance(last, MeasurePrefix) else "matching-in-context"
    part, report = compress_layers(whole, asked, method=method, budget=budget, seed=seed, on_step=tell)
    return CompressedPrompt(before + _placed(part, before), start, report)


def _exactly(tokens: TokenPrefix, like: Any) -> Any:
    """Tokens as prefixes of another one's kind: exact but for a state, which is as near as its feature map is."""
    if isinstance(like, TokenPrefix):
        return tokens
    if isinstance(like, MeasurePrefix):
        # Clouds without spread.
        rank = like.factor.shape[-1]
        factor, cross = (jnp.zeros((*array.shape, rank), array.dtype) for array in (tokens.keys, tokens.values))
        log_weight = jnp.zeros(tokens.keys.shape[:-1], tokens.keys.dtype)
        return MeasurePrefix(log_weight, tokens.keys, factor, tokens.values, cross)
    options = {"feature_map": like.feature_map, "centre": like.centre, "scale": like.scale}
    return FeaturePrefix.from_tokens(tokens.keys, tokens.values, recentre=False, **options)


def _placed(part: Any, before: Any) -> Any:
    """As the last part of a joined prefix if that is what there is, with nothing that adds to the others."""
    if not isinstance(before, JoinedPrefix) or isinstance(part, JoinedPrefix):
        return part
    return JoinedPrefix((*map(_nothing, before.parts[:-1]), part))


def _nothing(part: Any) -> Any:
    if isinstance(part, FeaturePrefix):
        return dataclasses.replace(part, Z=jnp.zeros_like(part.Z), k=jnp.zeros_like(part.k))
    return jax.tree.map(lambda leaf: leaf[:, :0], part)


@jax.jit
def _beside(prefixes: Any, asked: Calibration) -> Partial:
    """What queries see beside a document: the text's own tokens, and the prompt in front of the document."""

    def of_layer(layer: tuple[Any, Calibration]) -> Partial:
        prefix, asked = layer
        return merge(asked.beside, answer(prefix, asked.queries, asked.queries.shape[-1] ** -0.5))

    return jax.lax.map(of_layer, (prefixes, asked))
