"""Write reference outputs of packaged text models with PyTorch's transformers, which shares no code with ours.

It runs in an environment of its own: `pip install torch transformers gguf`. Usage: `python make_text_real.py
path/to/minilm/folder path/to/smollm2.gguf`.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Naïve café — 12,345.67 € for “two” 北京烤鸭s?! 🙂 👩‍💻 über",
    "  def f(x):\n\treturn x**2  # Ünïcödé\n\nTrue != False",
    "Don't stop; can't won't I'd've. http://example.org/?q=1&r=2 a_b-c",
    "Привет, мир! مرحبا بالعالم こんにちは世界 e\u0301 ﬁ Ａ１",
)
STRIDE = 16


@torch.no_grad()
def main(minilm, smollm2):
    content = {"torch": torch.__version__, "transformers": transformers.__version__, "texts": np.array(TEXTS)}
    content["stride"] = STRIDE
    places = {"minilm": (minilm, {}), "smollm2": (smollm2.parent, {"gguf_file": smollm2.name})}
    for name, (place, options) in places.items():
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        kind = AutoModel if name == "minilm" else AutoModelForCausalLM
        model = kind.from_pretrained(place, attn_implementation="eager", dtype=torch.float32, **options).eval()
        for index, text in enumerate(TEXTS):
            ids = np.array(tokenizer(text)["input_ids"])
            content[f"{name}/{index}/tokens"] = ids
            out = model(torch.tensor(ids[None]))
            if name == "minilm":
                content[f"{name}/{index}/out"] = out.last_hidden_state[0, :, ::STRIDE].numpy()
            else:
                content[f"{name}/{index}/out"] = out.logits[0, -3:, ::STRIDE].numpy()
        if name == "smollm2":
            start = torch.tensor(tokenizer(TEXTS[0])["input_ids"])[None]
            made = model.generate(start, max_new_tokens=24, do_sample=False, eos_token_id=None)
            content["smollm2/greedy"] = made[0].numpy()
    np.savez_compressed(HERE / "text_real.npz", **content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minilm", type=Path)
    parser.add_argument("smollm2", type=Path)
    arguments = parser.parse_args()
    main(arguments.minilm, arguments.smollm2)
