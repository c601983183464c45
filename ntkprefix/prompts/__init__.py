"""A prompt that stands in front of every request -> a small prefix of every layer, once and for all."""

from ntkprefix._extras import extra

with extra("models", "ntkprefix.prompts"):
    from ntkprefix.prompts.algebra import JoinedPrompt, merge_prompts, shift_prompt, subtract_prompt
    from ntkprefix.prompts.append import append_document
    from ntkprefix.prompts.batch import BatchedPrompts, batch_prompts
    from ntkprefix.prompts.calibration import Calibration, ask, calibrate
    from ntkprefix.prompts.compress import CompressedPrompt, compress_prompt
    from ntkprefix.prompts.distil import distil
    from ntkprefix.prompts.files import StoredPrompt, load_prompt, save_prompt
    from ntkprefix.prompts.layers import compress_layers
    from ntkprefix.prompts.packed import PackedTokens, packed
    from ntkprefix.prompts.read import read_prompt
    from ntkprefix.prompts.refit import recompress_prompt
    from ntkprefix.prompts.texts import Texts, continued, repeated

__all__ = [
    "BatchedPrompts",
    "Calibration",
    "CompressedPrompt",
    "JoinedPrompt",
    "PackedTokens",
    "StoredPrompt",
    "Texts",
    "append_document",
    "ask",
    "batch_prompts",
    "calibrate",
    "compress_layers",
    "compress_prompt",
    "continued",
    "distil",
    "load_prompt",
    "merge_prompts",
    "packed",
    "read_prompt",
    "recompress_prompt",
    "repeated",
    "save_prompt",
    "shift_prompt",
    "subtract_prompt",
]
