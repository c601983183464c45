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

    Example:
        >>> import numpy as np
        >>> from ntkprefix.texts import Answers
        >>> starts, lengths = np.array([[3, 2], [5, 3]], np.int32)
        >>> answers = Answers(np.array([[4, 7, 5, 9, 8, 0], [4, 6, 9, 0, 0, 0]], np.int32), starts, lengths)
        >>> [row[start:end].tolist() for row, start, end in zip(*answers)]
        [[9, 8], [9]]
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

    Example:
        >>> import numpy as np
        >>> from ntkprefix.texts import Texts
        >>> tokens = np.array([[2, 6, 3, 7, 5, 3, 0, 0]], np.int32)
        >>> texts = Texts(tokens, tokens > 0, np.array([[0, 0, 0, 1, 1, 1, 0, 0]], np.int32))
        >>> texts.tokens[texts.mask & (texts.segments == 0)].tolist()  # the first text, without padding
        [2, 6, 3]
    """

    tokens: Int32[np.ndarray, "N T"]
    mask: Bool[np.ndarray, "N T"]
    segments: Int32[np.ndarray, "N T"]


def for_encoder(examples: Sequence[Example], tokenizer: Tokenizer, length: int) -> Texts:
    r"""Texts with the special tokens that the model expects around them.

    Args:
        examples: with `texts`.
        tokenizer: of the model.
        length: T; of what is longer, the longer text's last tokens are cut off.

    Returns:
        Tokens, mask and segments.

    Raises:
        TypeError: a length that is not an integer.
        ValueError: a length below 8, or examples without texts.

    Example:
        >>> import pathlib, tempfile
        >>> from ntkprefix.models.tokenizers import load_tokenizer
        >>> from ntkprefix.texts import Example, for_encoder
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fox", "runs"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "vocab.txt").write_text("\n".join(words))
        ...     tokenizer = load_tokenizer(folder)
        >>> pair = Example(prompt="", answer="", texts=("a fox", "runs"), label=1)
        >>> texts = for_encoder([pair], tokenizer, length=8)
        >>> texts.tokens.tolist(), texts.segments.tolist()  # [CLS] a fox [SEP] runs [SEP], and padding
        ([[2, 5, 6, 3, 7, 3, 0, 0]], [[0, 0, 0, 0, 1, 1, 0, 0]])
    """
    checks.at_least(8, "for_encoder", length=length)
    if not all(example.texts for example in examples):
        raise ValueError("for_encoder: expected examples with texts and classes, got free answers. Use a decoder.")
    tokenizer.inner.enable_truncation(length, strategy="longest_first")
    try:
        encoded = [tokenizer.encoded(*example.texts) for example in examples]
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
        TypeError: a length that is not an integer.
        ValueError: a length below 2; an answer without tokens, one that leaves no room for its question, or one without
            a question. The message shows it.

    Example:
        >>> import tokenizers
        >>> from ntkprefix.models.tokenizers import Tokenizer
        >>> from ntkprefix.texts import Example, for_decoder
        >>> words = {"[PAD]": 0, "[UNK]": 1, "who": 2, "runs": 3, "?": 4, "a": 5, "fox": 6, ".": 7}
        >>> inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
        >>> inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        >>> question = Example(prompt="who runs ?", answer=" a fox")
        >>> answers = for_decoder([question], Tokenizer(inner), length=8, end=".")
        >>> answers.tokens.tolist(), answers.starts.tolist(), answers.lengths.tolist()
        ([[2, 3, 4, 5, 6, 7, 0, 0]], [3], [6])
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
