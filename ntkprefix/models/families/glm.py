"""GLM-4 in transformers' layout: half of each head's channels turn, gate and up in one matrix."""

from __future__ import annotations

from ntkprefix.models.block import BlockConfig
from ntkprefix.models.checkpoints import NameMap, Source, linear, norm, parts
from ntkprefix.models.families.scaling import read_scaling
from ntkprefix.models.families.settings import Settings
from ntkprefix.models.rotary import Rotary
from ntkprefix.models.text import TextConfig

TYPES = ("glm",)
ROOT, ANCHOR = "model.", "embed_tokens.weight"
IGNORED = ()


def read_config(settings: Settings) -> TextConfig:
    """Sizes and variants of `config.json`."""
    settings.fixed(hidden_act="silu")
    width, heads = settings.count("hidden_size"), settings.count("num_attention_heads")
    head_width = settings.count("head_dim", default=width // heads)
    share = settings.number("partial_rotary_factor", default=0.5)
    turning = int(head_width * settings.section("rope_parameters").number("partial_rotary_factor", default=share))
    block = BlockConfig(
        width=width,
        heads=heads,
        kv_heads=settings.count("num_key_value_heads", default=heads),
        head_width=head_width,
        mlp_width=settings.count("intermediate_size"),
        norm="rms",
        epsilon=settings.number("rms_norm_eps", default=1.5625e-7),
        activation="silu",
        gated=True,
        qkv_bias=settings.flag("attention_bias", default=False),
        out_bias=False,
        mlp_bias=False,
        rotary=Rotary(width=turning, interleaved=True, **read_scaling(settings)),
        causal=True,
    )
    return TextConfig(
        vocabulary=settings.count("vocab_size"),
        layers=settings.count("num_hidden_layers"),
        block=block,
        head="tied" if settings.flag("tie_word_embeddings", default=False) else "untied",
    )


def names(config: TextConfig) -> NameMap:
    """Tensors of `GlmForCausalLM`."""
    block, layer = config.block, "model.layers.{layer}"
    gate, up = parts(block.mlp_width, block.mlp_width)
    return {
        "tokens.embedding": Source("model.embed_tokens.weight"),
        **norm("blocks.attention_norm", f"{layer}.input_layernorm", bias=False),
        **linear("blocks.attention.query", f"{layer}.self_attn.q_proj", bias=block.qkv_bias),
        **linear("blocks.attention.key", f"{layer}.self_attn.k_proj", bias=block.qkv_bias),
        **linear("blocks.attention.value", f"{layer}.self_attn.v_proj", bias=block.qkv_bias),
        **linear("blocks.attention.out", f"{layer}.self_attn.o_proj", bias=False),
        **norm("blocks.mlp_norm", f"{layer}.post_attention_layernorm", bias=False),
        **linear("blocks.mlp.gate", f"{layer}.mlp.gate_up_proj", bias=False, part=gate),
        **linear("blocks.mlp.up", f"{layer}.mlp.gate_up_proj", bias=False, part=up),
        **linear("blocks.mlp.down", f"{layer}.mlp.down_proj", bias=False),
        **norm("norm", "model.norm", bias=False),
        "head.kernel": Source("lm_head.weight", (1, 0)),
    }
