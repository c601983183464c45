"""The tiny Llama of the golden file as GGUF, written by the format's own package."""

import gguf
import numpy as np
from models.tiny_text import config, weights

ENDS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WORDS = ["<unk>", "<s>", "</s>", "a", "b", "ab", *(f"w{number}" for number in range(55))]


def tensors():
    """Llama.cpp's names; it turns neighbouring channels, so the halves of each head's rows are interleaved."""
    heads = {"q_proj": config("llama")["num_attention_heads"], "k_proj": config("llama")["num_key_value_heads"]}
    renamed = {}
    for name, array in weights("llama").items():
        if name in ENDS:
            renamed[ENDS[name]] = array
            continue
        _, _, layer, *part, end = name.split(".")
        for projection, count in heads.items():
            if projection in part:
                array = array.reshape(count, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        renamed[f"blk.{layer}.{LAYER['.'.join(part)]}.{end}"] = array
    return renamed


def keys():
    """What the file says of the model, by key."""
    settings = config("llama")
    return {
        "llama.block_count": settings["num_hidden_layers"],
        "llama.context_length": settings["max_position_embeddings"],
        "llama.embedding_length": settings["hidden_size"],
        "llama.feed_forward_length": settings["intermediate_size"],
        "llama.attention.head_count": settings["num_attention_heads"],
        "llama.attention.head_count_kv": settings["num_key_value_heads"],
        "llama.attention.key_length": settings["head_dim"],
        "llama.attention.layer_norm_rms_epsilon": settings["rms_norm_eps"],
        "llama.rope.freq_base": settings["rope_parameters"]["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": WORDS,
        "tokenizer.ggml.token_type": [3 if word.startswith("<") else 1 for word in WORDS],
        "tokenizer.ggml.merges": ["a b"],
    }


def write_gguf(path, *, architecture="llama", without=(), arrays=None, **changes):
    """`changes` are keys with "__" for "."; a value of None leaves one out."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (keys() | {name.replace("__", "."): value for name, value in changes.items()}).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for name, array in (tensors() if arrays is None else arrays).items():
        if name not in without:
            writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
