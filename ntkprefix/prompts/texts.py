"""Texts that ask of a prompt what others will: what the model says behind it, and pieces of the prompt itself."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntkprefix import checks
from ntkprefix._pytree import Leaf, pytree, static_field
from ntkprefix.compress.compress import fitted_to
from ntkprefix.models import TextModel, generate
from ntkprefix.partial import Partial
from ntkprefix.prefixes import TokenPrefix
from ntkprefix.prefixes.base import PrefixShape

# Where texts come from.
Kind = Literal["apart", "both", "continue", "repeat"]
# How many of a kind, and their tokens: 4,096 queries a head of both, of which a quarter is held out for the report.
ROWS, LENGTH = 16, 128


class Texts(NamedTuple):
    """Texts behind a prompt.

    Attributes:
        tokens: [B, T], without padding.
        apart: the first of the T tokens of the prompt that a text does not see, M for one that sees all of it, [B];
            None where all texts do.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.prompts import Texts
        >>> keys, values = jax.random.normal(jax.random.key(0), (2, 3, 10, 1, 4))  # of a prompt, in 3 layers
        >>> texts = Texts(jnp.array([[9, 2], [6, 5]]), apart=jnp.array([4, 10]))
        >>> texts.seen(TokenPrefix(keys, values)).first[0].tolist()
        [4, 10]
    """

    tokens: Int[Array, "B T"]
    apart: Int[Array, " B"] | None = None

    def seen(self, whole: TokenPrefix) -> Any:
        """What they see of a prompt, for a model's `prefixes=`.

        Args:
            whole: the prompt's keys and values, [L, M, K, H].

        Returns:
            The same if they see all of it.
        """
        if self.apart is None:
            return whole
        first = jnp.broadcast_to(self.apart, (len(whole.keys), len(self.apart)))
        return Apart(whole, first, self.tokens.shape[1])

    def some(self, rows: Any) -> Texts:
        """Some of them: an index, a slice, or flags, [B]."""
        return Texts(self.tokens[rows], None if self.apart is None else self.apart[rows])

    def fitted(self) -> Texts:
        """Those of which no query is held out for the report; of a single one, what is not."""
        count, length = self.tokens.shape
        fitted = fitted_to(count * length)
        if fitted < length:
            return Texts(self.tokens[:, :fitted], self.apart)
        return self.some(slice(fitted // length))

    def taught(self, length: int) -> Texts:
        """Those that see all of a prompt of M tokens, for training on them; all, and all of it, where none does."""
        if self.apart is None:
            return self
        whole = np.asarray(self.apart) >= length
        return Texts(self.tokens[whole] if whole.any() else self.tokens)


@pytree
class Apart:
    """A prompt of which each row of a batch does not see a piece.

    Attributes:
        tokens: all of it, [M, K, H].
        first: token of each row's piece, [B]; M or more for none.
        length: of a piece.
    """

    tokens: Leaf
    first: Leaf
    length: int = static_field()

    def shape(self) -> PrefixShape:
        """As for `TokenPrefix`, with a row for each piece."""
        return self.tokens.shape()._replace(rows=self.first.shape[0])

    def partial(self, query: Float[Array, "B T N H"], scale: float | Float[Array, ""]) -> Partial:
        """The share of what each row sees."""
        places = jnp.arange(self.tokens.keys.shape[0])
        weights = self.tokens.log_weights
        if weights is None:
            weights = jnp.zeros(self.tokens.keys.shape[:2], self.tokens.keys.dtype)

        def of_row(query: Float[Array, "T N H"], first: Int[Array, ""]) -> Partial:
            hidden = (places >= first) & (places < first + self.length)
            seen = dataclasses.replace(self.tokens, log_weights=jnp.where(hidden[:, None], -jnp.inf, weights))
            return jax.tree.map(lambda array: array[0], seen.partial(query[None], scale))

        return jax.vmap(of_row)(query, self.first)


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
    return _pieces(tokens, _firsts(len(tokens), rows=rows, length=length, seed=seed), length)


def _firsts(count: int, *, rows: int, length: int, seed: int) -> Int[np.ndarray, " B"]:
    """Where pieces begin that are spread evenly over so many tokens, in an order drawn at random."""
    rows = min(rows, count - length + 1)
    firsts = np.round(np.linspace(0, count - length, rows)).astype(int)
    return firsts[np.random.default_rng(seed).permutation(rows)]


def _pieces(tokens: Int[np.ndarray, " M"], firsts: Int[np.ndarray, " B"], length: int) -> Int[np.ndarray, "B T"]:
    return tokens[firsts[:, None] + np.arange(length)]


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
) -> Texts:
    """Texts behind a document.

    Args:
        model: causal, with a head.
        kind: `"continue"` for what the model says next; `"repeat"` for pieces of the document, read once more behind
            it; `"apart"` for pieces of which each is read behind all of it but that piece, so that it asks for what the
            others have to say and not for itself; `"both"` for `rows` of what the model says and `rows` of such pieces,
            in an order drawn at random.
        tokens: the document, [1, M].
        before: all that the texts see, without the document's last token (`without_last`).
        start: position of that token.
        rows: texts of each kind; fewer pieces where the document is shorter than that many.
        length: T, tokens of each; M where a document that is repeated is shorter, and half of it where pieces are read
            apart from one that is shorter than two.
        seed: of what is random.

    Returns:
        Texts.

    Raises:
        TypeError: as for `generate`.
        ValueError: as for `generate`, or nothing in front of the last token.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, Rotary, TextConfig, TextModel
        >>> from ntkprefix.prompts import read_prompt
        >>> from ntkprefix.prompts.texts import texts_behind, without_last
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True, rotary=Rotary(width=4))
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block), rngs=nnx.Rngs(0))
        >>> tokens = jnp.arange(20)[None]
        >>> before = without_last(read_prompt(model, tokens))
        >>> found = texts_behind(model, "apart", tokens, before, start=19, rows=3, length=4, seed=0)
        >>> sorted(zip(found.apart.tolist(), found.tokens[:, 0].tolist()))
        [(0, 0), (8, 8), (16, 16)]
    """
    document = np.asarray(tokens)[0]
    if kind == "apart":
        checks.at_least(2, "texts_behind", tokens=len(document))
    if kind != "continue":
        length = min(length, len(document) if kind == "repeat" else max(len(document) // 2, 1))
    found, apart = [], []
    if kind in ("continue", "both"):
        found.append(_drawn(model, before, int(document[-1]), start=start, rows=rows, length=length, seed=seed))
        apart.append(np.full(rows, len(document)))
    if kind != "continue":
        firsts = _firsts(len(document), rows=rows, length=length, seed=seed)
        found.append(jnp.asarray(_pieces(document, firsts, length)))
        apart.append(firsts)
    texts = jnp.concatenate(found)
    if kind in ("continue", "repeat"):
        return Texts(texts)
    # Both kinds are among those that are fitted to and among those that are held out.
    order = np.random.default_rng(seed).permutation(len(texts))
    return Texts(texts, jnp.asarray(np.concatenate(apart), jnp.int32)).some(order)
