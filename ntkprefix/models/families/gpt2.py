"""GPT-2: trained positions, layer norms, queries, keys and values in one matrix."""

from __future__ import annotations

from ntkprefix.models.block import BlockConfig
from ntkprefix.models.checkpoints import NameMap, Source, linear, norm, parts
from ntkprefix.models.families.settings import Settings
from ntkprefix.models.text import TextConfig

TYPES = ("gpt2",)
ROOT, ANCHOR = "transformer.", "wte.weight"
# Buffers of older releases: the causal mask and its value.
IGNORED = (r"transformer\.h\.\d+\.attn\.(masked_)?bias",)
_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}


def read_config(settings: Settings) -> TextConfig:
    """Sizes and variants of `config.json`."""
    settings.fixed(
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
        tie_word_embeddings=True,
    )
    width = settings.count("n_embd")
    block = BlockConfig(
        width=width,
        heads=settings.count("n_head"),
        mlp_width=settings.count("n_inner", default=4 * width),
        epsilon=settings.number("layer_norm_epsilon", default=1e-5),
        activation=settings.choice("activation_function", known=_ACTIVATIONS, default="gelu_new"),
        causal=True,
    )
    return TextConfig(
        vocabulary=settings.count("vocab_size"),
        layers=settings.count("n_layer"),
        positions=settings.count("n_positions", "n_ctx", default=1024),
        block=block,
    )


def names(config: TextConfig) -> NameMap:
    """Tensors of `GPT2LMHeadModel`; its matrices are stored [in, out]."""
    layer, width = "transformer.h.{layer}", config.block.width
    projections: dict[str, Source] = {}
    for ours, part in zip(("query", "key", "value"), parts(width, width, width), strict=True):
        projections |= linear(f"blocks.attention.{ours}", f"{layer}.attn.c_attn", part=part, transposed=False)
    return {
        "tokens.embedding": Source("transformer.wte.weight"),
        "positions.embedding": Source("transformer.wpe.weight"),
        **norm("blocks.attention_norm", f"{layer}.ln_1"),
        **projections,
        **linear("blocks.attention.out", f"{layer}.attn.c_proj", transposed=False),
        **norm("blocks.mlp_norm", f"{layer}.ln_2"),
        **linear("blocks.mlp.up", f"{layer}.mlp.c_fc", transposed=False),
        **linear("blocks.mlp.down", f"{layer}.mlp.c_proj", transposed=False),
        **norm("norm", "transformer.ln_f"),
    }
