"""Write images prepared by PyTorch's transformers for DINOv2, which shares no code with ours but Pillow's resizing.

It runs in an environment of its own: `pip install torch transformers pillow`, without torchvision. Usage: `python
make_preprocess.py`. transformers has another processor that resizes by torchvision, whose rounding differs from
Pillow's by one step of 255 in places.
"""

import json
from pathlib import Path

import numpy as np
import PIL
import torch
import transformers
from PIL import Image
from transformers import BitImageProcessorPil

HERE = Path(__file__).parent
# As facebook/dinov2-small says.
DINOV2 = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
}
SMALL = DINOV2 | {"size": {"shortest_edge": 30}, "crop_size": {"height": 28, "width": 28}}
CONFIGS = {
    "dinov2": DINOV2,
    "small": SMALL,
    # Odd sizes; the crop is wider than most images are then, and not as high.
    "padded": SMALL | {"size": {"shortest_edge": 23}, "crop_size": {"height": 17, "width": 42}},
    "unsized": SMALL | {"do_resize": False},
    "bilinear": SMALL | {"resample": 2},
    "lanczos": SMALL | {"resample": 1},
    "nearest": SMALL | {"resample": 0},
    "box": SMALL | {"resample": 4},
    "other numbers": SMALL | {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 2.0, 0.1], "rescale_factor": 0.01},
    "plain": SMALL | {"do_normalize": False},
    "bytes": SMALL | {"do_normalize": False, "do_rescale": False},
    "old": SMALL | {"size": 30, "crop_size": 28},
}
# One output of full size would be larger than all others together.
STRIDE = {"dinov2": 7}
# Every image goes through the first three, two of them through the others.
FEW = ("L", "RGB/portrait")


def picture(height, width, colours, seed):
    """Waves with noise: smooth parts, edges and detail."""
    random = np.random.default_rng(seed)
    down, across = np.mgrid[:height, :width]
    waves = [np.sin(down / (3 + c) + across / (5 - c) + c) for c in range(colours)]
    values = 127 + 90 * np.stack(waves, axis=-1) + 40 * random.standard_normal((height, width, colours))
    return np.clip(values, 0, 255).astype(np.uint8)


def images():
    return {
        "L": picture(31, 47, 1, 0)[..., 0],
        "RGB/square": picture(37, 37, 3, 1),
        "RGB/portrait": picture(89, 37, 3, 2),
        "RGB/tiny": picture(3, 5, 3, 3),
        "RGB/line": picture(1, 9, 3, 4),
        "RGB/large": picture(151, 203, 3, 5),
        "RGBA": picture(40, 33, 4, 6),
        "LA": picture(29, 64, 2, 7),
    }


def main():
    content = {"torch": torch.__version__, "transformers": transformers.__version__, "pillow": PIL.__version__}
    for name, array in images().items():
        content[f"image/{name}"] = array
    for config, settings in CONFIGS.items():
        content[f"config/{config}"] = json.dumps(settings)
        processor = BitImageProcessorPil(**{k: v for k, v in settings.items() if k != "image_processor_type"})
        stride = STRIDE.get(config, 1)
        for name, array in images().items():
            if config not in ("dinov2", "small", "padded") and name not in FEW:
                continue
            image = Image.fromarray(array)
            assert image.mode == name.split("/")[0]
            out = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
            content[f"out/{config}/{name}"] = out[::stride, ::stride].astype(np.float32)
    np.savez_compressed(HERE / "preprocess.npz", **content)


if __name__ == "__main__":
    main()
