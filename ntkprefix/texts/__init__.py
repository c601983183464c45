"""Text tasks: questions with answers, from JSON Lines files, as arrays for encoders and decoders."""

from ntkprefix.texts.arrays import Answers, Texts, for_decoder, for_encoder
from ntkprefix.texts.data import Example, TextData, load_texts
from ntkprefix.texts.templates import TEMPLATES, Template

__all__ = [
    "TEMPLATES",
    "Answers",
    "Example",
    "Template",
    "TextData",
    "Texts",
    "for_decoder",
    "for_encoder",
    "load_texts",
]
