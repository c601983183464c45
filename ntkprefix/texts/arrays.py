"""Questions and answers as numbers of tokens: what encoders and decoders train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from ntkprefix import checks
from ntkprefix.models.tokenizers import Tokenizer, pad
from ntkprefix.texts.data import Example


class Answers(NamedTuple):
    """Questions with their answers behind them, for a decoder.

    Attributes:
        tokens: [N, T], padded on the right.
        starts: where each answer starts, at least 1, [N].
        lengths: tokens of question and answer, [N].
    """

    tokens: Int32[np.ndarray, "N T"]
    starts: Int32[np.ndarray, " N"]
    lengths: Int32[np.ndarray, " N"]


class Texts(NamedTuple):
    """Texts, or pairs of them, for an encoder.

    Attributes:
        tokens: [N, T], padded on the right.
        mask: True for tokens, [N, T].
        segments: 1 for the tokens of a pair's second text, [N, T].
    """

    tokens: Int32[np.ndarray, "N T"]
    mask: Bool[np.ndarray, "N T"]
    segments: Int32[np.ndarray, "N T"]


def for_encoder(examples: Sequence[Example], tokenizer: Tokenizer, length: int) -> Texts:
    """Texts with the special tokens that the model expects around them.

    Args:
        examples: with `texts`.
        tokenizer: of the model.
        length: T; of what is longer, the longer text's last tokens are cut off.

    Returns:
        Tokens, mask and segments.

    Raises:
        ValueError: a length below 8, or examples without texts.
    """
    checks.at_least(8, "for_encoder", length=length)
    if not all(example.texts for example in examples):
        raise ValueError("for_encoder: expected examples with texts and classes, got free answers. Use a decoder.")
    tokenizer.inner.enable_truncation(length, strategy="longest_first")
    try:
        encoded = [tokenizer.inner.encode(*example.texts) for example in examples]
    finally:
        tokenizer.inner.no_truncation()
    tokens, mask = pad([each.ids for each in encoded], length=length)
    return Texts(tokens, mask, pad([each.type_ids for each in encoded], length=length).tokens)


def for_decoder(examples: Sequence[Example], tokenizer: Tokenizer, length: int, *, end: str = "") -> Answers:
    """Each question's tokens and its answer's behind them, cut apart at the answer whatever the text around it.

    Args:
        examples: with `prompt` and `answer`.
        tokenizer: of the model.
        length: T; of what is longer, the question's first tokens are cut off.
        end: follows every answer and is part of it, so that a model learns where answers end: a line's end for free
            answers; nothing for choices, which are told by their first token.

    Returns:
        Tokens, and where answers start and end.

    Raises:
        ValueError: an answer without tokens, or one that leaves no room for its question; the message shows it.
    """
    checks.at_least(2, "for_decoder", length=length)
    rows, starts = [], []
    for example in examples:
        answer = tokenizer.encode(example.answer + end, special=False) if example.answer else []
        if not 0 < len(answer) < length:
            raise ValueError(
                f"for_decoder: expected an answer of 1 to {length - 1} tokens, got {len(answer)}: "
                f"{example.answer[:60]!r}. Raise the length."
            )
        prompt = tokenizer.encode(example.prompt)[-(length - len(answer)) :]
        if not prompt:
            raise ValueError(f"for_decoder: expected a question before the answer {example.answer[:60]!r}, got none.")
        rows.append(prompt + answer)
        starts.append(len(prompt))
    tokens, mask = pad(rows, length=length)
    return Answers(tokens, np.asarray(starts, np.int32), mask.sum(axis=1).astype(np.int32))
