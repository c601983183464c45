"""Write the reference outputs of DINOv2 with PyTorch's transformers, which shares no code with the library.

It runs in an environment of its own: `pip install torch transformers onnx numpy`, and the weights as the library finds
them. Usage: `python make_dinov2.py path/to/vit_s_focus.onnx`.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import onnx
import torch
import transformers
from onnx import numpy_helper
from transformers import Dinov2Config, Dinov2Model

HERE = Path(__file__).parent
SMALL = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 518,
    "patch_size": 14,
    "mlp_ratio": 4,
}
TINY = {
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 70,
    "patch_size": 14,
    "mlp_ratio": 2,
}
CASES = {"square": (2, 70, 70), "tall": (1, 98, 56), "large": (1, 224, 224)}
STRIDE = 8  # every 8th token is stored
LAYER = 6


def images(seed, batch, height, width):
    return np.random.default_rng(seed).standard_normal((batch, height, width, 3)).astype(np.float32)


def onnx_state(path):
    """The backbone's state dict, matched by the shapes and order of use that transformers' own module tree expects."""
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {n.removeprefix("backbone."): a for n, a in stored.items() if n.startswith("backbone.")}
    for node in graph.node:
        product = re.fullmatch(r"/backbone/(.*)/MatMul", node.name)
        if product and node.input[1] in stored:
            state[product[1].replace("/", ".") + ".weight"] = stored[node.input[1]].T
    cls, grid = (next(a for a in stored.values() if a.shape == (1, count, 384) and a is not stored[
        "backbone.embeddings.cls_token"]) for count in (1, 1369))  # fmt: skip
    state["embeddings.position_embeddings"] = np.concatenate([cls, grid], axis=1)
    return {name: torch.tensor(np.ascontiguousarray(array)) for name, array in state.items()}


def module_names(state):
    """Names of the files, to names of the newest transformers' modules."""
    for theirs, ours in {
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
    }.items():
        state = {name.replace(theirs, ours): tensor for name, tensor in state.items()}
    return state


def model_of(config, state):
    model = Dinov2Model(Dinov2Config(**config, use_mask_token=False, attn_implementation="eager"))
    model.load_state_dict(module_names(state), strict=True)
    return model.eval().float()


@torch.no_grad()
def observe(model, pixels, layer):
    """Last hidden state, one layer's input, keys and values, and all layers' mean log-sum-exp."""
    seen = {}
    hooks = [
        getattr(block.attention, f"{name}_proj").register_forward_hook(
            lambda _module, _input, output, at=(index, name): seen.__setitem__(at, output)
        )
        for index, block in enumerate(model.encoder.layer)
        for name in "qkv"
    ]
    last = model(torch.tensor(pixels).permute(0, 3, 1, 2)).last_hidden_state
    for hook in hooks:
        hook.remove()
    heads = model.config.num_attention_heads
    means = []
    for index in range(model.config.num_hidden_layers):
        query, key = (seen[index, name].double().unflatten(-1, (heads, -1)).transpose(1, 2) for name in "qk")
        logits = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        means.append(logits.logsumexp(-1).mean((0, 2)))
    return {
        "last": last.numpy(),
        "key": seen[layer, "k"].numpy(),
        "value": seen[layer, "v"].numpy(),
        "log_sum_exp": torch.stack(means).numpy().astype(np.float32),
    }


def small(path):
    model = model_of(SMALL, onnx_state(path))
    content = {"layer": LAYER, "stride": STRIDE}
    for seed, (name, shape) in enumerate(CASES.items()):
        content[f"{name}_seed"], content[f"{name}_shape"] = seed, shape
        for key, array in observe(model, images(seed, *shape), LAYER).items():
            content[f"{name}_{key}"] = array if key == "log_sum_exp" else array[:, ::STRIDE]
    return content


def tiny():
    torch.manual_seed(0)
    shapes = {name: t.shape for name, t in Dinov2Model(Dinov2Config(**TINY, use_mask_token=False)).state_dict().items()}
    random = np.random.default_rng(7)
    # Norms and layer scales away from 1 and biases away from 0, so that a swap of two of them shows.
    state = {
        name: (random.standard_normal(shape) * 0.3 + (1.0 if "norm" in name or "lambda" in name else 0.0)).astype("f4")
        for name, shape in shapes.items()
    }
    model = model_of(TINY, {name: torch.tensor(array) for name, array in state.items()})
    pixels = images(3, 2, 42, 98)
    content = {f"weights/{name}": array for name, array in file_names(state).items()}
    return content | {"shape": pixels.shape[:3], "seed": 3} | observe(model, pixels, 1)


def file_names(state):
    """What `save_pretrained` calls the tensors."""
    back = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
    back["o_proj"] = "output.dense"
    for ours, theirs in back.items():
        state = {name.replace(f"attention.{ours}", f"attention.{theirs}"): a for name, a in state.items()}
    return state


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("onnx", type=Path)
    arguments = parser.parse_args()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    np.savez_compressed(HERE / "dinov2_vits14.npz", **small(arguments.onnx), **versions)
    np.savez_compressed(HERE / "dinov2_tiny.npz", **tiny(), **versions)
