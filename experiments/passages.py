"""A passage of a text: the tokens that prompts, documents and what follows them are cut from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int

from ntkprefix.models.tokenizers import Tokenizer

# More letters than a token has on average in any of the texts.
_LETTERS_PER_TOKEN = 8


def passage(tokenizer: Tokenizer, path: Path, place: float, length: int) -> Int[np.ndarray, " T"]:
    """The tokens of a text from a place on.

    Args:
        tokenizer: of the model that reads them.
        path: of the text.
        place: share of the text's letters in front of the first one.
        length: T, how many tokens.

    Returns:
        The tokens, int32.

    Raises:
        FileNotFoundError: no such text.
        ValueError: it ends before.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a text here, found none.")
    text = path.read_text(encoding="utf-8")
    start = int(place * len(text))
    tokens = np.asarray(tokenizer.encode(text[start : start + _LETTERS_PER_TOKEN * length]), np.int32)[:length]
    if len(tokens) < length:
        raise ValueError(f"{path}: expected {length:,} tokens after the first {place:.0%}, got {len(tokens):,}.")
    return tokens
