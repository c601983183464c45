"""Write adapters of PyTorch's PEFT on the tiny text models, and their outputs; or check adapters that we wrote.

It runs in an environment of its own: `pip install torch transformers peft`. `python make_peft.py` writes
`peft_tiny.npz`: the bytes of the two files that PEFT saves, tokens, and what PEFT gives for them. The models are those
of `text_tiny.npz`. `python make_peft.py FOLDER` gives PEFT every adapter below FOLDER that has an `ours.npz` beside it,
and compares what comes out; `pytest tests/test_peft.py --basetemp=FOLDER` leaves such adapters.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from make_text import HERE, MODELS
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "lora_llama": ("llama", LoraConfig(r=3, lora_alpha=5, target_modules=ALL)),
    "lora_rslora": ("llama", LoraConfig(r=5, lora_alpha=4, target_modules=".*[kv]_proj", use_rslora=True)),
    "lora_qwen2": ("qwen2", LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"])),
    "lora_gpt2": ("gpt2", LoraConfig(r=3, lora_alpha=2, target_modules=["c_attn", "c_proj", "c_fc"])),
    "lora_gpt2_attention": ("gpt2", LoraConfig(r=2, lora_alpha=2, target_modules=["c_attn"])),
    # `dense` reaches the pooler too, which our encoders do without.
    "lora_bert": ("bert", LoraConfig(r=2, lora_alpha=3, target_modules=["query", "key", "value", "dense"])),
    "lora_glm": ("glm", LoraConfig(r=2, lora_alpha=3, target_modules=["k_proj", "gate_up_proj", "down_proj"])),
    "prefix_llama": ("llama", PrefixTuningConfig(num_virtual_tokens=5)),
    "prefix_gpt2": ("gpt2", PrefixTuningConfig(num_virtual_tokens=4)),
    "prefix_projected": (
        "llama",
        PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=7),
    ),
}


def base(name):
    """The model that the tests load."""
    kind = AutoModel if name == "bert" else AutoModelForCausalLM
    model = kind.from_config(MODELS[name], attn_implementation="eager").eval().float()
    start = f"{name}/weights/"
    with np.load(HERE / "text_tiny.npz") as file:
        weights = {key.removeprefix(start): torch.tensor(file[key]) for key in file.files if key.startswith(start)}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing  # tied to the embedding
    return model


@torch.no_grad()
def run(model, tokens):
    out = model(input_ids=torch.tensor(tokens), attention_mask=torch.ones(tokens.shape, dtype=torch.int64))
    return (out.last_hidden_state if "last_hidden_state" in out else out.logits).numpy()


def make(name, config):
    config.task_type = "FEATURE_EXTRACTION" if name == "bert" else "CAUSAL_LM"
    torch.manual_seed(0)
    model = get_peft_model(base(name), config).eval()
    random = np.random.default_rng(7)
    tokens = random.integers(3, 61, (2, 9))
    plain = run(base(name), tokens)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # the adapter's alone, whose halves start at zero
                parameter.copy_(torch.tensor(0.4 * random.standard_normal(tuple(parameter.shape))))
    before = run(model, tokens)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        files = {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.name.startswith("adapter_")}
        out = run(PeftModel.from_pretrained(base(name), folder).eval(), tokens)
    # Of some models the file holds less than the trained adapter does: what counts is what the file says.
    print(f"  loaded again {np.abs(out - before).max():.1e}, changed by {np.abs(out - plain).max():.2g}")
    return {"model": name, "tokens": tokens, "out": out} | {k: np.frombuffer(v, np.uint8) for k, v in files.items()}


def check(root):
    """What PEFT makes of adapters that we wrote."""
    found = sorted(path.parent for path in Path(root).rglob("ours.npz") if not path.is_symlink())
    for folder in found:
        with np.load(folder / "ours.npz") as ours, warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of keys that are missing or left over
            model = PeftModel.from_pretrained(base(str(ours["model"])), folder).eval()
            difference = np.abs(run(model, ours["tokens"]) - ours["out"]).max()
        print(f"{folder.name}: {difference:.1e}")
        assert difference < 1e-4, folder
    assert found, f"no adapters below {root}"


def main():
    if len(sys.argv) > 1:
        check(sys.argv[1])
        return
    versions = {"torch": torch, "transformers": transformers, "peft": peft}
    content = {name: module.__version__ for name, module in versions.items()}
    for case, (name, config) in CASES.items():
        print(case)
        content |= {f"{case}/{key}": value for key, value in make(name, config).items()}
        print(" ", json.loads(content[f"{case}/adapter_config.json"].tobytes())["base_model_name_or_path"])
    np.savez_compressed(HERE / "peft_tiny.npz", **content)


if __name__ == "__main__":
    main()
