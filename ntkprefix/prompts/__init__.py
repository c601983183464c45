"""A prompt that stands in front of every request -> a small prefix of every layer, once and for all."""

from ntkprefix._extras import extra

with extra("models", "ntkprefix.prompts"):
    from ntkprefix.prompts.calibration import Calibration, calibrate, repeated
    from ntkprefix.prompts.compress import CompressedPrompt, compress_prompt
    from ntkprefix.prompts.read import read_prompt

__all__ = [
    "Calibration",
    "CompressedPrompt",
    "calibrate",
    "compress_prompt",
    "read_prompt",
    "repeated",
]
