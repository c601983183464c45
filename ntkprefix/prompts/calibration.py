"""Queries such as texts behind a prompt ask, and what each sees beside the prompt."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ntkprefix import checks
from ntkprefix._pytree import Leaf, pytree
from ntkprefix.kernels import EVERYWHERE, best
from ntkprefix.models import TextModel, generate
from ntkprefix.partial import Partial
from ntkprefix.prefixes import TokenPrefix

# Texts that are asked behind a prompt.
Kind = Literal["both", "continue", "repeat"]
# How many of a kind, and their tokens: 4,096 queries a head of both, of which a quarter is held out for the report.
ROWS, LENGTH = 16, 128


@pytree
class Calibration:
    """Of every layer.

    Attributes:
        queries: [L, Q, N, H], float32, turned to their positions behind the prompt.
        beside: the share of the text's own tokens, [L, Q, N, ...].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntkprefix import Partial
        >>> from ntkprefix.compress import compress
        >>> from ntkprefix.prompts import Calibration
        >>> keys, values, queries = jax.random.normal(jax.random.key(0), (3, 2, 8, 1, 4))  # of 2 layers
        >>> alone = Partial(jnp.zeros((2, 8, 1, 4)), jnp.zeros((2, 8, 1)), jnp.full((2, 8, 1), -jnp.inf))
        >>> asked = jax.tree.map(lambda leaf: leaf[1], Calibration(queries, beside=alone))  # of the second
        >>> small = compress(keys[1], values[1], method="ends", budget=4, queries=asked.queries, beside=asked.beside)
        >>> small.report.error.shape, small.report.held_out
        ((1,), 2)
    """

    queries: Leaf
    beside: Partial


def calibrate(model: TextModel, texts: Int[Array, "B T"], prefixes: Any, *, start: int) -> Calibration:
    """What texts that follow a prompt ask of every layer.

    Args:
        model: causal.
        texts: each of which follows the prompt by itself, [B, T], without padding.
        prefixes: the prompt, as for the model; every row sees all of it.
        start: the texts' first position, M for a prompt of M tokens.

    Returns:
        Q = B T queries of every layer, row by row, and the texts' own share of their attention.

    Raises:
        TypeError: as for the model.
        ValueError: as for the model.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, Rotary, TextConfig, TextModel
        >>> from ntkprefix.prompts import calibrate, read_prompt
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True, rotary=Rotary(width=4))
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block), rngs=nnx.Rngs(0))
        >>> whole = read_prompt(model, jnp.array([[3, 1, 4, 1, 5]]))
        >>> asked = calibrate(model, jnp.array([[9, 2, 6], [5, 3, 5]]), whole, start=5)
        >>> asked.queries.shape, asked.beside.den.shape
        ((2, 6, 3, 4), (2, 6, 3))
    """
    graph, weights = nnx.split(model)
    return _observe(graph, weights, jnp.asarray(texts), prefixes, jnp.asarray(start, jnp.int32))


@partial(jax.jit, static_argnames="graph")
def _observe(graph, weights, texts, prefixes, start):
    model = nnx.merge(graph, weights)
    positions = jnp.broadcast_to(start + jnp.arange(texts.shape[1])[None], texts.shape)
    return model.observe(texts, ask, prefixes=prefixes, positions=positions)


def ask(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K Hv"],
    **options: Any,
) -> Calibration:
    """What one layer asks of a prefix, and what it sees besides: for `model.observe`, which gives all layers'.

    Args:
        query: [B, T, N, H].
        key: of the input itself, [B, S, K, H].
        value: [B, S, K, Hv].
        options: of `attention`: what hides keys from queries.

    Returns:
        Q = B T queries, row by row, and the input's own share of their attention, without a layer axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, ViT, ViTConfig
        >>> from ntkprefix.prompts import ask
        >>> vit = ViT(ViTConfig(block=BlockConfig(width=12, heads=3, mlp_width=24), layers=2), rngs=nnx.Rngs(0))
        >>> vit.observe(jnp.zeros((4, 28, 28, 3)), ask).queries.shape  # 4 images of 4 patches and the class token
        (2, 20, 3, 4)
    """
    kernel = EVERYWHERE[best(query.shape[1], key.shape[1])]
    share = kernel.partial_attention(query, key, value, scale=query.shape[-1] ** -0.5, **options)
    flat = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]).astype(jnp.float32), (query, share))
    return Calibration(*flat)


def continued(
    model: TextModel, whole: TokenPrefix, last: int, *, rows: int, length: int, seed: int = 0
) -> Int[Array, "B T"]:
    """What the model itself goes on to say behind a prompt, drawn at temperature 1: queries such as continuations ask.

    Args:
        model: causal, with a head.
        whole: the prompt's keys and values, [L, M, K, H], M at least 2.
        last: the prompt's last token.
        rows: B, how many texts.
        length: T, tokens of each.
        seed: of the draws.

    Returns:
        Texts, [B, T].

    Raises:
        TypeError: as for `generate`.
        ValueError: as for `generate`, or a prompt of one token.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, Rotary, TextConfig, TextModel
        >>> from ntkprefix.prompts import continued, read_prompt
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True, rotary=Rotary(width=4))
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block), rngs=nnx.Rngs(0))
        >>> whole = read_prompt(model, jnp.array([[3, 1, 4, 1, 5]]))
        >>> texts = continued(model, whole, last=5, rows=3, length=4)
        >>> texts.shape, bool((texts == continued(model, whole, last=5, rows=3, length=4, seed=1)).all())
        ((3, 4), False)

    Source: queries from the model's own continuations (Attention Matching, arXiv 2602.16284, "self-study"; Cartridges,
    arXiv 2506.06266).
    """
    start = whole.keys.shape[1] - 1
    return _drawn(model, without_last(whole), last, start=start, rows=rows, length=length, seed=seed)


def _drawn(
    model: TextModel, before: Any, last: int, *, start: int, rows: int, length: int, seed: int
) -> Int[Array, "B T"]:
    """What is said behind a last token, which is at `start`, and behind everything before it."""
    checks.at_least(2, "continued", tokens=start + 1)
    first = jnp.full((rows, 1), last, jnp.int32)
    options = {"prefixes": before, "start": start, "temperature": 1.0, "key": jax.random.key(seed)}
    return generate(model, first, length, **options).tokens


def without_last(whole: TokenPrefix) -> TokenPrefix:
    """All but the last token, which is read once more behind these, since the first new one is drawn from it."""
    return TokenPrefix(whole.keys[:, :-1], whole.values[:, :-1])


def repeated(tokens: Int[np.ndarray, " M"], *, rows: int, length: int, seed: int = 0) -> Int[np.ndarray, "B T"]:
    """Pieces of a prompt, to be read once more behind it: queries from the prompt itself.

    Args:
        tokens: the prompt, [M].
        rows: B, how many pieces; fewer where the prompt is shorter than that many.
        length: T, of each; M where the prompt is shorter.
        seed: of their order.

    Returns:
        Pieces spread evenly over the prompt, in an order drawn at random, [B, T].

    Example:
        >>> import numpy as np
        >>> from ntkprefix.prompts import repeated
        >>> sorted(row[0] for row in repeated(np.arange(100), rows=3, length=20).tolist())
        [0, 40, 80]

    Source: reading the context once more (Attention Matching, arXiv 2602.16284, "repeat-prefill").
    """
    tokens = np.asarray(tokens)
    length = min(length, len(tokens))
    rows = min(rows, len(tokens) - length + 1)
    firsts = np.round(np.linspace(0, len(tokens) - length, rows)).astype(int)
    order = np.random.default_rng(seed).permutation(rows)
    return np.stack([tokens[first : first + length] for first in firsts[order]])


def texts_behind(
    model: TextModel,
    kind: str,
    tokens: Int[Array, "1 M"],
    before: Any,
    *,
    start: int,
    rows: int = ROWS,
    length: int = LENGTH,
    seed: int,
) -> Int[Array, "B T"]:
    """Texts behind a document.

    Args:
        model: causal, with a head.
        kind: `"continue"` for what the model says next; `"repeat"` for pieces of the document; `"both"` for `rows` of
            each, in an order drawn at random.
        tokens: the document, [1, M].
        before: all that the texts see, without the document's last token (`without_last`).
        start: position of that token.
        rows: texts of each kind; fewer pieces where the document is shorter than that many.
        length: T, tokens of each; M where a document of which there are pieces is shorter.
        seed: of what is random.

    Returns:
        Texts, [B, T].

    Raises:
        TypeError: as for `generate`.
        ValueError: as for `generate`, or nothing in front of the last token.
    """
    document = np.asarray(tokens)[0]
    if kind != "continue":
        length = min(length, len(document))
    found = []
    if kind != "repeat":
        found.append(_drawn(model, before, int(document[-1]), start=start, rows=rows, length=length, seed=seed))
    if kind != "continue":
        found.append(jnp.asarray(repeated(document, rows=rows, length=length, seed=seed)))
    texts = jnp.concatenate(found)
    # Both kinds are among those that are fitted to and among those that are held out.
    return texts if kind != "both" else texts[np.random.default_rng(seed).permutation(len(texts))]
