"""Configuration and tensors of a GGUF file (llama.cpp), under the names that Hugging Face folders have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ntkprefix.models.gguf_header import check_header

# GGUF's name of an architecture -> `model_type`, and whether query and key rows are permuted, to turn neighbours.
_ARCHITECTURES = {"llama": ("llama", True), "qwen2": ("qwen2", False), "qwen3": ("qwen3", False)}
_ENDS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Factors of Llama 3's frequencies, which the configuration would have to say in its own words.
_UNSUPPORTED = "rope_freqs.weight"


class Gguf(NamedTuple):
    """A GGUF file's model.

    Attributes:
        config: as in a `config.json`.
        tensors: float32, by the names of a Hugging Face checkpoint.
    """

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]


def read_gguf(path: Path) -> Gguf:
    """Read a GGUF file; quantised tensors are turned into float32.

    Args:
        path: of the file.

    Returns:
        Configuration, tensors and metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the package gguf is not installed.
        ValueError: the file is damaged, or of an architecture that is not supported; the message names it.

    Example:
        >>> from pathlib import Path
        >>> from ntkprefix.models.gguf_file import read_gguf
        >>> read_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf")).config["model_type"]  # doctest: +SKIP
        'llama'

    Source: the format of github.com/ggml-org/ggml, docs/gguf.md, read by its authors' package.
    """
    reader, dequantize = _open(path)
    value = _values(reader, path)
    architecture = value("general.architecture")
    if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
        raise ValueError(f"{path}: expected an architecture among {', '.join(_ARCHITECTURES)}, got {architecture!r}.")
    kind, permuted = _ARCHITECTURES[architecture]
    try:
        # Tensors may share their bytes, which would multiply them without end.
        if sum(tensor.n_bytes for tensor in reader.tensors) > path.stat().st_size:
            raise ValueError("together they are larger than the file")
        tensors = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    except PermissionError:
        raise
    except Exception as error:  # the package raises what NumPy does on blocks that do not fit
        raise ValueError(f"{path}: the tensors cannot be read ({error}). Is the download complete?") from error
    if _UNSUPPORTED in tensors:
        raise ValueError(f"{path}: expected no {_UNSUPPORTED}: its frequencies are not supported. Use the HF folder.")
    config = _config(kind, architecture, value, tensors)
    renamed = {_name(name): np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        raise ValueError(f"{path}: expected one name for each tensor, got llama.cpp's and Hugging Face's for the same.")
    if permuted:
        for name, tensor in renamed.items():
            for projection, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
                if f".{projection}." in name:
                    renamed[name] = _unpermuted(tensor, config[heads], name, path)
    return Gguf(config, renamed)


def read_metadata(path: Path) -> dict[str, Any]:
    """A GGUF file's keys, its tokeniser's among them.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the package gguf is not installed.
        ValueError: the file is damaged; the message names it.
    """
    reader, _ = _open(path)
    value = _values(reader, path)
    return {name: value(name) for name in reader.fields}


def _open(path: Path) -> tuple[Any, Callable[..., np.ndarray]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a GGUF file, found nothing.")
    try:
        import gguf
    except ImportError as error:
        raise ImportError(f"{path}: reading GGUF files needs a package: pip install gguf") from error
    try:
        check_header(path)
        return gguf.GGUFReader(path), gguf.quants.dequantize
    except Exception as error:  # the package raises nearly anything on damaged files
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: not a whole GGUF file ({reason}). Is the download complete?") from error


def _values(reader: Any, path: Path) -> Callable[..., Any]:
    def value(name: str, default: Any = None) -> Any:
        if name not in reader.fields:
            if default is None:
                raise ValueError(f"{path}: expected the key {name!r}, found none.")
            return default
        try:
            return reader.fields[name].contents()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected text in UTF-8 under the key {name!r} ({error}).") from error

    return value


def _config(kind: str, prefix: str, value: Callable[..., Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    width, heads = value(f"{prefix}.embedding_length"), value(f"{prefix}.attention.head_count")
    config = {
        "model_type": kind,
        "vocab_size": max(0, *tensors["token_embd.weight"].shape[:1]) if "token_embd.weight" in tensors else 0,
        "hidden_size": width,
        "num_hidden_layers": value(f"{prefix}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value(f"{prefix}.attention.head_count_kv", heads),
        "intermediate_size": value(f"{prefix}.feed_forward_length"),
        "max_position_embeddings": value(f"{prefix}.context_length"),
        "rms_norm_eps": value(f"{prefix}.attention.layer_norm_rms_epsilon"),
        "rope_theta": value(f"{prefix}.rope.freq_base", 10_000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
    }
    key_length = value(f"{prefix}.attention.key_length", 0)
    if key_length:
        config["head_dim"] = key_length
    turning = value(f"{prefix}.rope.dimension_count", 0)
    if turning:
        config["rope_dimension_count"] = turning
    scaling = value(f"{prefix}.rope.scaling.type", "none")
    if scaling != "none":
        config["rope_scaling"] = {
            "rope_type": scaling,
            "factor": value(f"{prefix}.rope.scaling.factor"),
            "original_max_position_embeddings": value(f"{prefix}.rope.scaling.original_context_length", 0)
            or config["max_position_embeddings"],
        }
    return config


def _name(name: str) -> str:
    if name in _ENDS:
        return _ENDS[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER:
        return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.{parts[3]}"
    return name


def _unpermuted(tensor: np.ndarray, heads: Any, name: str, path: Path) -> np.ndarray:
    """Rows (j, half) of each head back to (half, j): llama.cpp turns neighbours, the checkpoint turned halves."""
    if not isinstance(heads, int) or heads < 1 or tensor.ndim < 1 or tensor.shape[0] % (2 * heads):
        raise ValueError(f"{path}: expected {name} with rows for {heads} heads, got shape {list(tensor.shape)}.")
    rest = tensor.shape[1:]
    return tensor.reshape(heads, -1, 2, *rest).swapaxes(1, 2).reshape(-1, *rest)
