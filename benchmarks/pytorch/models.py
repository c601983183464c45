"""PEFT's prefix tuning and LoRA on PyTorch's transformers, for `benchmarks.models`.

It runs in an environment of its own, with torch, transformers and peft and without this package. The models have the
sizes of the real ones and random weights: what they cost does not depend on those.
"""

import functools
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import transformers
from worker import serve

_SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rope_theta": 1e5,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
_DINOV2 = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": 14, "image_size": 518}


def plain(model, classes):
    """Without an adapter."""
    torch.manual_seed(0)
    if model == "smollm2":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SMOLLM2))
    return transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**_DINOV2, num_labels=classes))


@functools.cache
def adapted(model, adapter, size, classes):
    """With an adapter of PEFT's: LoRA of a rank, or prefix tuning with so many tokens; none for "none"."""
    base = plain(model, classes)
    if adapter == "none":
        return base
    text = {"task_type": "CAUSAL_LM"} if model == "smollm2" else {"modules_to_save": ["classifier"]}
    if adapter == "lora":
        targets = ["q_proj", "v_proj"] if model == "smollm2" else ["query", "value"]
        config = peft.LoraConfig(r=size, lora_alpha=16, target_modules=targets, **text)
    else:
        config = peft.PrefixTuningConfig(num_virtual_tokens=size, **text)
    return peft.get_peft_model(base, config)


@functools.cache
def training(model, adapter, size, batch, length, classes):
    """One step of AdamW behind a clip of the gradient's norm, on one batch."""
    network = adapted(model, adapter, size, classes).train()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-3)
    if model == "smollm2":
        tokens = torch.randint(1000, (batch, length))
        inputs = {"input_ids": tokens, "labels": tokens}
    else:
        pixels = torch.randn(batch, 3, length, length)
        inputs = {"pixel_values": pixels, "labels": torch.randint(classes, (batch,))}

    def run():
        optimiser.zero_grad()
        network(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()

    return run


@functools.cache
def generation(model, adapter, size, batch, length, new):
    """New tokens, the likeliest, with a cache."""
    network = adapted(model, adapter, size, 0).eval()
    tokens = torch.randint(1000, (batch, length))

    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}

    @torch.no_grad()
    def run():
        network.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **options)

    if adapter == "tokens":
        require_prefix(network, tokens)
    return run


@torch.no_grad()
def require_prefix(network, tokens):
    """Generation must do what the whole model does: there are versions whose prefix it leaves out."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.copy_(3 * torch.randn_like(parameter))
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    made = network.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **options)
    expected = tokens
    for _ in range(3):
        logits = network(input_ids=expected, attention_mask=torch.ones_like(expected)).logits[:, -1]
        expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], 1)
    if not torch.equal(made, expected):
        raise RuntimeError("PEFT's prefix does not enter generation with these versions of PEFT and transformers.")


def prepare(what, **sizes):
    """What runs one case."""
    return {"training": training, "generation": generation}[what](**sizes)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    transformers.logging.set_verbosity_error()
    versions = {"PyTorch": torch, "transformers": transformers, "PEFT": peft}
    serve(", ".join(f"{name} {module.__version__}" for name, module in versions.items()), prepare)
