"""The tiny text models of the golden file, written as Hugging Face folders."""

import json
from functools import cache

import numpy as np
from places import GOLDEN
from safetensors.numpy import save_file

NAMES = (
    "llama", "llama_tied_biased", "llama3", "llama_yarn", "mistral", "qwen2", "qwen3", "glm", "chatglm", "gpt2", "bert",
)  # fmt: skip
DECODERS = tuple(name for name in NAMES if name != "bert")


@cache
def golden(name):
    """One model's configuration, weights and outputs."""
    with np.load(GOLDEN / "text_tiny.npz") as file:
        return {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}


def weights(name):
    return {key.removeprefix("weights/"): array for key, array in golden(name).items() if key.startswith("weights/")}


def config(name):
    return json.loads(str(golden(name)["config"]))


def write_folder(folder, name, tensors=None, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(name) | changes))
    save_file(weights(name) if tensors is None else tensors, folder / "model.safetensors")
    return folder
