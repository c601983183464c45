"""Weighted tokens compressed once more, such as those of several prompts together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Int

from ntkprefix.compress import Method
from ntkprefix.models import TextModel
from ntkprefix.prefixes import TokenPrefix
from ntkprefix.prompts.algebra import checked
from ntkprefix.prompts.calibration import calibrate
from ntkprefix.prompts.compress import CompressedPrompt
from ntkprefix.prompts.layers import compress_layers


def recompress_prompt(
    model: TextModel,
    prompt: Any,
    texts: Int[Array, "B T"],
    *,
    budget: int | str,
    method: str | Method = "matching-in-context",
    seed: int = 0,
    on_step: Callable[[str, int, int], None] | None = None,
) -> CompressedPrompt:
    """A smaller prefix that answers texts nearly as a prompt's own tokens do, weighted as they are.

    After a merge a prompt is as large as its parts together; this makes it as small as one of them, at an error that is
    added to theirs. Afterwards none of the parts can be subtracted.

    Args:
        model: causal.
        prompt: tokens: a `JoinedPrompt`, or anything with `prefixes` and `start`.
        texts: that ask of it what others will, [B, T], without padding, the last quarter of which is held out for the
            report. Mix texts on all of its documents: what none of them asks for is lost.
        budget: as for `compress_prompt`; `"2x"` is half of what it takes now.
        method: `matching`, `matching-in-context`, `refined`, or another that minds weights.
        seed: of what is random.
        on_step: as for `compress_prompt`.

    Returns:
        The prompt, and the report, which compares it with what was there before, not with what that stood for.

    Raises:
        TypeError: as for `shift_prompt` and `compress_prompt`, no tokens.
        ValueError: as for `shift_prompt` and `compress_prompt`, a method that does not mind weights.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, Rotary, TextConfig, TextModel
        >>> from ntkprefix.prompts import JoinedPrompt, merge_prompts, read_prompt, recompress_prompt
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True, rotary=Rotary(width=4))
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block), rngs=nnx.Rngs(0))
        >>> one, two = (JoinedPrompt(read_prompt(model, jnp.arange(15)[None] + n), 15) for n in (0, 9))  # or compressed
        >>> both = merge_prompts(model, one, two)
        >>> smaller = recompress_prompt(model, both, jnp.arange(48).reshape(6, 8), budget=10)
        >>> both.prefixes.keys.shape, smaller.prefixes.keys.shape, smaller.start
        ((2, 30, 3, 4), (2, 8, 3, 4), 30)
    """
    checked("recompress_prompt", prompt)
    if not isinstance(prompt.prefixes, TokenPrefix):
        raise TypeError(
            f"recompress_prompt: expected tokens, got a {type(prompt.prefixes).__name__}. Compress the documents again."
        )
    asked = calibrate(model, texts, prompt.prefixes, start=prompt.start)
    prefixes, report = compress_layers(prompt.prefixes, asked, method=method, budget=budget, seed=seed, on_step=on_step)
    return CompressedPrompt(prefixes, prompt.start, report)
