"""A tokeniser of nine words, for tests."""

from tokenizers import Tokenizer as Inner
from tokenizers import models, pre_tokenizers, processors

from ntkprefix.models.tokenizers import Tokenizer

WORDS = ["pad", "cls", "sep", "one", "two", "three", "four", "five", "six"]


def word_tokenizer(*, special=False):
    inner = Inner(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="pad"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        inner.post_processor = processors.TemplateProcessing(
            single="cls $A sep", pair="cls $A sep $B:1 sep:1", special_tokens=[("cls", 1), ("sep", 2)]
        )
    return Tokenizer(inner)
