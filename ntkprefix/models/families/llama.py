"""The Llama family: Llama, SmolLM2, Mistral without its window, Qwen2 with its biases, Qwen3 with its q/k norms."""

from __future__ import annotations

from ntkprefix.models.block import BlockConfig
from ntkprefix.models.checkpoints import NameMap, Source, linear, norm
from ntkprefix.models.families.scaling import read_scaling
from ntkprefix.models.families.settings import Settings
from ntkprefix.models.rotary import Rotary
from ntkprefix.models.text import TextConfig

TYPES = ("llama", "mistral", "qwen2", "qwen3")
ROOT, ANCHOR = "model.", "embed_tokens.weight"
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


def read_config(settings: Settings) -> TextConfig:
    """Sizes and variants of `config.json`."""
    kind = settings.content["model_type"]
    settings.fixed(hidden_act="silu", use_sliding_window=False)
    if kind == "mistral":
        settings.fixed(sliding_window=None)
    width, heads = settings.count("hidden_size"), settings.count("num_attention_heads")
    head_width = settings.count("head_dim", default=width // heads)
    settings.fixed(rope_dimension_count=head_width)  # from GGUF files: all channels turn
    bias = settings.flag("attention_bias", default=kind == "qwen2")
    block = BlockConfig(
        width=width,
        heads=heads,
        kv_heads=settings.count("num_key_value_heads", default=heads),
        head_width=head_width,
        mlp_width=settings.count("intermediate_size"),
        norm="rms",
        epsilon=settings.number("rms_norm_eps", default=1e-6),
        activation="silu",
        gated=True,
        qkv_bias=bias,
        # Qwen2 has no bias there, whatever its other layers have.
        out_bias=bias and kind != "qwen2",
        mlp_bias=settings.flag("mlp_bias", default=False),
        qk_norm=kind == "qwen3",
        rotary=Rotary(width=head_width, **read_scaling(settings)),
        causal=True,
    )
    return TextConfig(
        vocabulary=settings.count("vocab_size"),
        layers=settings.count("num_hidden_layers"),
        block=block,
        head="tied" if settings.flag("tie_word_embeddings", default=False) else "untied",
    )


def names(config: TextConfig) -> NameMap:
    """Tensors of `LlamaForCausalLM` and its like."""
    block, layer = config.block, "model.layers.{layer}"
    return {
        "tokens.embedding": Source("model.embed_tokens.weight"),
        **norm("blocks.attention_norm", f"{layer}.input_layernorm", bias=False),
        **linear("blocks.attention.query", f"{layer}.self_attn.q_proj", bias=block.qkv_bias),
        **linear("blocks.attention.key", f"{layer}.self_attn.k_proj", bias=block.qkv_bias),
        **linear("blocks.attention.value", f"{layer}.self_attn.v_proj", bias=block.qkv_bias),
        **linear("blocks.attention.out", f"{layer}.self_attn.o_proj", bias=block.out_bias),
        **norm("blocks.attention.query_norm", f"{layer}.self_attn.q_norm", bias=False),
        **norm("blocks.attention.key_norm", f"{layer}.self_attn.k_norm", bias=False),
        **norm("blocks.mlp_norm", f"{layer}.post_attention_layernorm", bias=False),
        **linear("blocks.mlp.gate", f"{layer}.mlp.gate_proj", bias=block.mlp_bias),
        **linear("blocks.mlp.up", f"{layer}.mlp.up_proj", bias=block.mlp_bias),
        **linear("blocks.mlp.down", f"{layer}.mlp.down_proj", bias=block.mlp_bias),
        **norm("norm", "model.norm", bias=False),
        "head.kernel": Source("lm_head.weight", (1, 0)),
    }
