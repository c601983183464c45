"""Write reference outputs of tiny random text models with PyTorch's transformers, which shares no code with ours.

It runs in an environment of its own: `pip install torch transformers`. Usage: `python make_text.py`. ChatGLM's authors
publish code that runs on old transformers alone; its file holds the weights of transformers' GLM under the authors'
names, fused as theirs are.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    GlmConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

HERE = Path(__file__).parent
# Odd sizes, and as few numbers as an architecture allows.
SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 37,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
GPT2 = {"vocab_size": 61, "n_embd": 20, "n_layer": 2, "n_head": 5, "n_positions": 512, "bos_token_id": 1}
GPT2["eos_token_id"] = 2
MODELS = {
    "llama": LlamaConfig(**SIZES, head_dim=6, rope_parameters=PLAIN, tie_word_embeddings=False),
    "llama_tied_biased": LlamaConfig(
        **SIZES, rope_parameters=LINEAR, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "llama3": LlamaConfig(**SIZES, head_dim=8, rope_parameters=LLAMA3, tie_word_embeddings=True),
    "llama_yarn": LlamaConfig(**SIZES, head_dim=8, rope_parameters=YARN, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, sliding_window=None, rope_parameters=PLAIN),
    "qwen2": Qwen2Config(**SIZES, rope_parameters=PLAIN, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=10, rope_parameters=PLAIN, tie_word_embeddings=False),
    "glm": GlmConfig(**SIZES, head_dim=8, attention_bias=True, rope_parameters=PLAIN | {"partial_rotary_factor": 0.5}),
    "gpt2": GPT2Config(**GPT2),
    "bert": BertConfig(**{**SIZES, "num_key_value_heads": None, "type_vocab_size": 3}),
}
LONG = 300


def make(name, config):
    torch.manual_seed(0)
    kind = AutoModel if name == "bert" else AutoModelForCausalLM
    model = kind.from_config(config, attn_implementation="eager").eval().float()
    random = np.random.default_rng(3)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            # Norms away from 1 and biases away from 0, so that a swap of two of them shows.
            centre = 1.0 if "norm" in parameter_name.lower() or ".ln_" in parameter_name else 0.0
            values = centre * parameter_name.endswith("weight") + 0.3 * random.standard_normal(tuple(parameter.shape))
            parameter.copy_(torch.tensor(values))
    return model


@torch.no_grad()
def run(model, tokens, mask=None, **more):
    mask = None if mask is None else torch.tensor(mask)
    out = model(torch.tensor(tokens), attention_mask=mask, **more)
    return (out.last_hidden_state if "last_hidden_state" in out else out.logits).numpy()


def observe(name, model):
    random = np.random.default_rng(5)
    tokens = random.integers(3, 61, (3, 11))
    lengths = np.array([11, 4, 7])
    mask = (np.arange(11)[None] < lengths[:, None]).astype(np.int64)
    long = random.integers(3, 61, (1, LONG))
    content = {"tokens": tokens, "lengths": lengths, "long_tokens": long}
    content["out"] = run(model, tokens)
    content["padded"] = run(model, tokens, mask)
    content["long_out"] = run(model, long)[:, -5:]
    if name == "bert":
        types = random.integers(0, 3, tokens.shape)
        content |= {"types": types, "typed": run(model, tokens, token_type_ids=torch.tensor(types))}
    else:
        new = model.generate(torch.tensor(tokens[:1]), max_new_tokens=12, do_sample=False, eos_token_id=None)
        content["greedy"] = new.numpy()
    return content


def chatglm(config, weights):
    """The same model in its authors' files."""
    names = {
        "model.embed_tokens.weight": "transformer.embedding.word_embeddings.weight",
        "model.norm.weight": "transformer.encoder.final_layernorm.weight",
        "lm_head.weight": "transformer.output_layer.weight",
    }
    layers = {
        "self_attn.o_proj": "self_attention.dense",
        "mlp.gate_up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
        "input_layernorm": "input_layernorm",
        "post_attention_layernorm": "post_attention_layernorm",
    }
    files = {theirs: weights[ours] for ours, theirs in names.items()}
    for layer in range(config["num_hidden_layers"]):
        ours, theirs = f"model.layers.{layer}", f"transformer.encoder.layers.{layer}"
        for one, other in layers.items():
            files[f"{theirs}.{other}.weight"] = weights[f"{ours}.{one}.weight"]
        for part in ("weight", "bias"):
            fused = [weights[f"{ours}.self_attn.{letter}_proj.{part}"] for letter in "qkv"]
            files[f"{theirs}.self_attention.query_key_value.{part}"] = np.concatenate(fused)
    settings = {
        "model_type": "chatglm",
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_residual_connection_post_layernorm": False,
        "ffn_hidden_size": config["intermediate_size"],
        "hidden_size": config["hidden_size"],
        "kv_channels": config["head_dim"],
        "layernorm_epsilon": config["rms_norm_eps"],
        "multi_query_attention": True,
        "multi_query_group_num": config["num_key_value_heads"],
        "num_attention_heads": config["num_attention_heads"],
        "num_layers": config["num_hidden_layers"],
        "padded_vocab_size": config["vocab_size"],
        "rmsnorm": True,
    }
    return settings, files


def main():
    content = {"torch": torch.__version__, "transformers": transformers.__version__}
    for name, config in MODELS.items():
        model = make(name, config)
        settings = json.loads(config.to_json_string(use_diff=False)) | {"model_type": config.model_type}
        weights = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
        if getattr(config, "tie_word_embeddings", False) or name == "gpt2":
            weights.pop("lm_head.weight", None)
        seen = observe(name, model)
        files = {name: (settings, weights)}
        if name == "glm":
            files["chatglm"] = chatglm(settings, weights)
        for file, (settings, weights) in files.items():
            kept = {k: v for k, v in settings.items() if isinstance(v, (int, float, str, bool, dict)) or v is None}
            content[f"{file}/config"] = json.dumps(kept)
            content |= {f"{file}/weights/{key}": array for key, array in weights.items()}
            content |= {f"{file}/{key}": array for key, array in seen.items()}
    np.savez_compressed(HERE / "text_tiny.npz", **content)


if __name__ == "__main__":
    main()
