"""BERT encoders, MiniLM among them: norms after each sum, trained positions, segments."""

from __future__ import annotations

from ntkprefix.models.block import BlockConfig
from ntkprefix.models.checkpoints import NameMap, Source, linear, norm
from ntkprefix.models.families.settings import Settings
from ntkprefix.models.text import TextConfig

TYPES = ("bert",)
ROOT, ANCHOR = "bert.", "embeddings.word_embeddings.weight"
# Heads of pretraining, and a buffer of older releases.
IGNORED = (r"bert\.pooler\..*", r"cls\..*", r"bert\.embeddings\.position_ids")
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu"}


def read_config(settings: Settings) -> TextConfig:
    """Sizes and variants of `config.json`."""
    settings.fixed(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    block = BlockConfig(
        width=settings.count("hidden_size"),
        heads=settings.count("num_attention_heads"),
        mlp_width=settings.count("intermediate_size"),
        epsilon=settings.number("layer_norm_eps", default=1e-12),
        post_norm=True,
        activation=settings.choice("hidden_act", known=_ACTIVATIONS, default="gelu"),
    )
    return TextConfig(
        vocabulary=settings.count("vocab_size"),
        layers=settings.count("num_hidden_layers"),
        positions=settings.count("max_position_embeddings"),
        token_types=settings.count("type_vocab_size", default=2),
        embedding_norm=True,
        final_norm=False,
        head="none",
        block=block,
    )


def names(config: TextConfig) -> NameMap:  # noqa: ARG001 - one signature for all families
    """Tensors of `BertModel`."""
    embeddings, layer = "bert.embeddings", "bert.encoder.layer.{layer}"
    return {
        "tokens.embedding": Source(f"{embeddings}.word_embeddings.weight"),
        "positions.embedding": Source(f"{embeddings}.position_embeddings.weight"),
        "token_types.embedding": Source(f"{embeddings}.token_type_embeddings.weight"),
        **norm("embedding_norm", f"{embeddings}.LayerNorm"),
        **linear("blocks.attention.query", f"{layer}.attention.self.query"),
        **linear("blocks.attention.key", f"{layer}.attention.self.key"),
        **linear("blocks.attention.value", f"{layer}.attention.self.value"),
        **linear("blocks.attention.out", f"{layer}.attention.output.dense"),
        **norm("blocks.attention_norm", f"{layer}.attention.output.LayerNorm"),
        **linear("blocks.mlp.up", f"{layer}.intermediate.dense"),
        **linear("blocks.mlp.down", f"{layer}.output.dense"),
        **norm("blocks.mlp_norm", f"{layer}.output.LayerNorm"),
    }
