"""Text to numbers of tokens and back: `tokenizer.json`, BERT's `vocab.txt`, or the vocabulary inside a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int, Int32

from ntkprefix import checks
from ntkprefix.models.gguf_file import read_metadata
from ntkprefix.models.hub import locate_texts

# GGUF's `token_type` of a control token and of one that a user added.
_CONTROL, _USER = 3, 4
# Times that a tokeniser's replacements may make a text longer: those of real models make it a few times as long.
_GROWTH = 2**16
# Cuts text as GPT-2 does, after every digit.
_DIGITS_ALONE = "smollm"


class Batch(NamedTuple):
    """Texts as arrays.

    Attributes:
        tokens: [B, T], padded on the right.
        mask: True for tokens, False for padding, [B, T].

    Example:
        >>> from ntkprefix.models.tokenizers import pad
        >>> batch = pad([[5, 6, 7], [8]])
        >>> batch.mask.tolist()
        [[True, True, True], [True, False, False]]
        >>> batch.lengths.tolist()
        [3, 1]
    """

    tokens: Int32[np.ndarray, "B T"]
    mask: Bool[np.ndarray, "B T"]

    @property
    def lengths(self) -> Int32[np.ndarray, " B"]:
        """Tokens of each row, [B]."""
        return self.mask.sum(axis=1).astype(np.int32)


class Tokenizer:
    """A tokeniser of the `tokenizers` library, with arrays in and out.

    Attributes:
        inner: the library's own object.
        source: its file, for messages.
        vocabulary: number of tokens.

    Example:
        >>> import tokenizers
        >>> from ntkprefix.models.tokenizers import Tokenizer
        >>> words = {"[PAD]": 0, "[UNK]": 1, "a": 2, "fox": 3, "runs": 4}
        >>> inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
        >>> inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        >>> tokenizer = Tokenizer(inner)
        >>> tokenizer.encode("a fox"), tokenizer.decode([3, 4]), tokenizer.token("runs")
        ([2, 3], 'fox runs', 4)
        >>> tokenizer.batch(["a fox runs", "a cat"]).tokens.tolist()
        [[2, 3, 4], [2, 1, 0]]
    """

    def __init__(self, inner: Any, source: str | Path = "the tokeniser"):
        self.inner, self.source = inner, source
        self.vocabulary = inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Numbers of the tokens.

        Args:
            text: one text.
            special: add the tokens that the model expects around a text.

        Returns:
            As many numbers as there are tokens.

        Raises:
            ValueError: the text has what is no character, or the library fails on it; the message names the tokeniser's
                file.
        """
        return self.encoded(text, special=special).ids

    def encoded(self, *texts: str, special: bool = True) -> Any:
        """A text, or a pair of them, as the library's own object, with segments; else as `encode`."""
        for text in texts:
            checks.characters(str(self.source), text)
        with _failures_named(self.source):
            return self.inner.encode(*texts, add_special_tokens=special)

    def decode(self, tokens: Sequence[int] | Int[np.ndarray, " T"] | Int[Array, " T"], *, special: bool = False) -> str:
        """The text of tokens.

        Args:
            tokens: their numbers, [T].
            special: keep special tokens, which are left out else.

        Returns:
            The text, put together as the tokeniser does.

        Raises:
            ValueError: the library fails on these tokens; the message names the tokeniser's file.
        """
        numbers = [int(token) for token in np.asarray(tokens)]
        with _failures_named(self.source):
            return self.inner.decode(numbers, skip_special_tokens=not special)

    def token(self, text: str) -> int:
        """The number of one token, spelt as in the vocabulary.

        Raises:
            KeyError: there is none.
        """
        number = self.inner.token_to_id(text)
        if number is None:
            raise KeyError(f"{text!r}: the vocabulary of {self.vocabulary:,} tokens has no such token.")
        return number

    def batch(self, texts: Sequence[str], *, length: int | None = None, special: bool = True) -> Batch:
        """Several texts as one array.

        Args:
            texts: at least one.
            length: T; the longest text's if None. What is longer is cut at the end.
            special: see `encode`.

        Returns:
            Tokens and mask.

        Raises:
            ValueError: no texts; else as for `encode`.
        """
        if not texts:
            raise ValueError("batch: expected at least one text, got none.")
        return pad([self.encode(text, special=special) for text in texts], length=length)


@contextmanager
def _failures_named(source: str | Path) -> Iterator[None]:
    """The library raises bare exceptions, and panics of its Rust, which are no `Exception`."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and not _is_panic(error):
            raise
        raise ValueError(
            f"{source}: expected a tokeniser that takes any text, but it failed ({error}). Is the download complete?"
        ) from error


def _is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"


def pad(rows: Sequence[Sequence[int]], *, length: int | None = None) -> Batch:
    """Rows of tokens as one array, padded on the right with 0.

    Args:
        rows: at least one row of numbers of tokens.
        length: T; the longest row's if None. What is longer is cut at the end.

    Returns:
        Tokens and mask, [B, T].

    Example:
        >>> from ntkprefix.models.tokenizers import pad
        >>> pad([[5, 6, 7], [8]]).tokens.tolist()
        [[5, 6, 7], [8, 0, 0]]
    """
    length = max(map(len, rows)) if length is None else length
    tokens, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for index, row in enumerate(rows):
        kept = row[:length]
        tokens[index, : len(kept)], mask[index, : len(kept)] = kept, True
    return Batch(tokens, mask)


def load_tokenizer(path: str | Path, *, revision: str | None = None) -> Tokenizer:
    """The tokeniser of a model.

    Args:
        path: a model folder with `tokenizer.json` or `vocab.txt`, or one of these files; the name of a model on the
            Hugging Face hub, "HuggingFaceTB/SmolLM2-135M", which is asked unless its cache has them; a GGUF file; or
            "minilm" or "smollm2" for those that a package carries.
        revision: of a hub's model: a branch, a tag or a commit.

    Returns:
        The tokeniser, without padding or cutting of its own.

    Raises:
        FileNotFoundError: nothing is there, or a hub's model cannot be fetched or has neither file.
        ImportError: the package tokenizers, gguf for a GGUF file, or huggingface_hub for a hub's name is not installed.
        ValueError: the file is damaged or of a kind that is not supported; the message names it.

    Example:
        >>> from ntkprefix.models.tokenizers import load_tokenizer
        >>> load_tokenizer("minilm").encode("a fox")  # doctest: +SKIP
        [101, 1037, 4419, 102]
    """
    path = locate_texts(path, revision=revision)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{path}: expected tokenizer.json or vocab.txt, found neither.")
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a tokeniser's file, found nothing.")
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(f"{path}: reading tokenisers needs a package: pip install tokenizers") from error
    try:
        if path.suffix == ".json":
            _check_growth(path)
            inner = tokenizers.Tokenizer.from_file(str(path))
        elif path.suffix == ".txt":
            inner = _wordpiece(path)
        else:
            inner = _from_gguf(read_metadata(path), path)
        # Before anything is encoded: the file may ask for padding that fills the memory.
        inner.no_padding()
        inner.no_truncation()
        tokenizer = Tokenizer(inner, path)
        # Some damage shows at the first text alone.
        tokenizer.encoded("a")
        tokenizer.encoded("a", "b")
        return tokenizer
    except (FileNotFoundError, ImportError):
        raise
    except BaseException as error:  # the library raises bare exceptions, and panics
        if str(path) in str(error) or not (isinstance(error, Exception) or _is_panic(error)):
            raise
        raise ValueError(f"{path}: not a tokeniser that can be read ({error}). Is the download complete?") from error


def _check_growth(path: Path) -> None:
    """That no text grows without bounds as it is read or written: replacements of replacements multiply."""
    content = json.loads(path.read_bytes())
    for steps, inner in (("normalizer", "normalizers"), ("decoder", "decoders")):
        growth, left = 1, [content.get(steps)]
        while left:
            each = left.pop()
            if isinstance(each, dict):
                left += each.get(inner) or []
                if each.get("type") == "Replace":
                    growth *= 1 + len(each["content"])  # a pattern may be found between any two letters
            if growth > _GROWTH:
                raise ValueError(f"{path}: expected replacements that make a text up to {_GROWTH:,} times as long.")


def _wordpiece(path: Path) -> Any:
    """BERT's, from its list of words; lower case where the list has no upper."""
    from tokenizers import BertWordPieceTokenizer

    words = path.read_text(encoding="utf-8").splitlines()
    lower = not any(word.isalpha() and word != word.lower() for word in words)
    return BertWordPieceTokenizer({word: number for number, word in enumerate(words)}, lowercase=lower)._tokenizer


def _from_gguf(metadata: Mapping[str, Any], path: Path) -> Any:
    """Byte-level pairs, GPT-2's kind of tokeniser, from a GGUF file's own lists."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ValueError(f"{path}: expected a byte-level tokeniser (gpt2), got {kind!r}. Use the model's own folder.")
    words, types = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type")
    for name in ("tokens", "merges"):
        if not _texts(metadata[f"tokenizer.ggml.{name}"]):
            raise ValueError(f"{path}: expected a list of texts as tokenizer.ggml.{name}, got something else.")
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    inner = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    cut, byte_level = metadata.get("tokenizer.ggml.pre", "default"), pre_tokenizers.ByteLevel(add_prefix_space=False)
    if cut == _DIGITS_ALONE:
        inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    elif cut in ("gpt-2", "default"):
        inner.pre_tokenizer = byte_level
    else:
        raise ValueError(f"{path}: the way {cut!r} to cut text is not supported. Use the model's own folder.")
    inner.decoder = decoders.ByteLevel()
    if types is not None:
        added = [
            AddedToken(w, special=t == _CONTROL) for w, t in zip(words, types, strict=True) if t in (_CONTROL, _USER)
        ]
        inner.add_tokens(added)
        inner.add_special_tokens([token for token in added if token.special])
    return inner


def _texts(content: Any) -> bool:
    return not isinstance(content, str) and all(isinstance(each, str) for each in content)
