"""ChatGLM3 and GLM-4 in their authors' layout: half of each head's channels turn, projections lie in one matrix."""

from __future__ import annotations

from ntkprefix.models.block import BlockConfig
from ntkprefix.models.checkpoints import NameMap, Source, linear, norm, parts
from ntkprefix.models.families.settings import Settings
from ntkprefix.models.rotary import Rotary
from ntkprefix.models.text import TextConfig

TYPES = ("chatglm",)
ROOT, ANCHOR = "transformer.", "embedding.word_embeddings.weight"
IGNORED = (r"transformer\.rotary_pos_emb\.inv_freq",)


def read_config(settings: Settings) -> TextConfig:
    """Sizes and variants of `config.json`."""
    settings.fixed(
        rmsnorm=True, post_layer_norm=True, apply_residual_connection_post_layernorm=False, interleaved_qkv=False
    )
    heads, head_width = settings.count("num_attention_heads"), settings.count("kv_channels", default=128)
    grouped = settings.flag("multi_query_attention", default=False)
    all_biases = settings.flag("add_bias_linear", default=False)
    block = BlockConfig(
        width=settings.count("hidden_size"),
        heads=heads,
        kv_heads=settings.count("multi_query_group_num") if grouped else heads,
        head_width=head_width,
        mlp_width=settings.count("ffn_hidden_size"),
        norm="rms",
        epsilon=settings.number("layernorm_epsilon", default=1e-5),
        activation="silu",
        gated=True,
        qkv_bias=all_biases or settings.flag("add_qkv_bias", default=False),
        out_bias=all_biases,
        mlp_bias=all_biases,
        rotary=Rotary(
            width=head_width // 2, base=10_000.0 * settings.number("rope_ratio", default=1.0), interleaved=True
        ),
        causal=True,
    )
    return TextConfig(
        vocabulary=settings.count("padded_vocab_size", "vocab_size"),
        layers=settings.count("num_layers"),
        block=block,
        head="tied" if settings.flag("tie_word_embeddings", default=False) else "untied",
    )


def names(config: TextConfig) -> NameMap:
    """Tensors of the authors' `ChatGLMForConditionalGeneration`."""
    block, layer = config.block, "transformer.encoder.layers.{layer}"
    inner, kv = block.heads * block.head_width, block.kv_heads * block.head_width
    projections: dict[str, Source] = {}
    for ours, part in zip(("query", "key", "value"), parts(inner, kv, kv), strict=True):
        fused = f"{layer}.self_attention.query_key_value"
        projections |= linear(f"blocks.attention.{ours}", fused, bias=block.qkv_bias, part=part)
    gate, up = parts(block.mlp_width, block.mlp_width)
    return {
        "tokens.embedding": Source("transformer.embedding.word_embeddings.weight"),
        **norm("blocks.attention_norm", f"{layer}.input_layernorm", bias=False),
        **projections,
        **linear("blocks.attention.out", f"{layer}.self_attention.dense", bias=block.out_bias),
        **norm("blocks.mlp_norm", f"{layer}.post_attention_layernorm", bias=False),
        **linear("blocks.mlp.gate", f"{layer}.mlp.dense_h_to_4h", bias=block.mlp_bias, part=gate),
        **linear("blocks.mlp.up", f"{layer}.mlp.dense_h_to_4h", bias=block.mlp_bias, part=up),
        **linear("blocks.mlp.down", f"{layer}.mlp.dense_4h_to_h", bias=block.mlp_bias),
        **norm("norm", "transformer.encoder.final_layernorm", bias=False),
        "head.kernel": Source("transformer.output_layer.weight", (1, 0)),
    }
