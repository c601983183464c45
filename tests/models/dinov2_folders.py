"""The tiny DINOv2 of the golden file, written as Hugging Face folders."""

import json

import numpy as np
from places import GOLDEN
from safetensors.numpy import save_file

CONFIG = {
    "model_type": "dinov2",
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": [70, 70],
    "patch_size": 14,
    "mlp_ratio": 2,
    "layer_norm_eps": 1e-6,
}


def tiny_golden():
    with np.load(GOLDEN / "dinov2_tiny.npz") as file:
        return {name: file[name] for name in file.files}


def weights_of(golden, root=""):
    return {root + n.removeprefix("weights/"): golden[n] for n in golden if n.startswith("weights/")}


def write_folder(folder, tensors, config=CONFIG):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_shards(folder, tensors):
    write_folder(folder, {})
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(sorted(tensors))}
    for shard in set(places.values()):
        save_file({name: tensors[name] for name, place in places.items() if place == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder
