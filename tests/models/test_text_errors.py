"""Damaged, foreign or hostile folders of text models end in an error that names the file and says what to do."""

import json
import re

import numpy as np
import pytest
from random_damage import assert_named
from safetensors.numpy import save_file
from tiny_text import weights, write_folder

from ntkprefix.models import load_text_model

NORM, QUERY = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"
HUGE = 10**6


def without(name):
    return {key: array for key, array in weights("llama").items() if key != name}


def changed(**arrays):
    return weights("llama") | {name.replace("__", "."): array for name, array in arrays.items()}


TENSORS = {
    "missing": (without(QUERY), rf"1 missing:\n  {QUERY} \[36, 24\]"),
    "extra": (changed(model__extra=np.zeros(3, "f4")), "1 unknown:\n  model.extra"),
    "transposed": (
        changed(**{QUERY: weights("llama")[QUERY].T.copy()}),
        rf"shape:\n  {QUERY}: expected \[36, 24\], found \[24, 36\]",
    ),
    "scalar": (changed(**{NORM: np.zeros((), "f4")}), rf"{NORM}: expected \[24\], found \[\]"),
    "integers": (changed(**{NORM: np.zeros(24, "i8")}), rf"not floating point:\n  {NORM}: int"),
    "none": ({}, "expected 2 layers, as the configuration says, found 0"),
    "a layer too few": (
        {name: array for name, array in weights("llama").items() if ".1." not in name},
        "expected 2 layers, as the configuration says, found 1",
    ),
    "another layer's number": (
        {name.replace("layers.1.", "layers.7."): array for name, array in weights("llama").items()},
        r"9 missing:\n  model\.layers\.1\.(.|\n)*9 unknown:\n  model\.layers\.7\.",
    ),
    "another architecture's": (weights("gpt2"), "expected 2 layers, as the configuration says, found 0"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors(case, tmp_path):
    content, message = TENSORS[case]
    write_folder(tmp_path, "llama", content)
    with pytest.raises(ValueError, match=message) as error:
        load_text_model(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "model.safetensors"))


def rope(kind, **numbers):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **numbers}}


# What the configuration says, and what the error says of it. The tensors' file is named where they contradict it.
CONFIGS = {
    "unknown": (
        "llama",
        {"model_type": "t5"},
        "expected model_type to be one of bert, chatglm, glm, gpt2, llama, mist",
    ),
    "nameless": ("llama", {"model_type": None}, "expected the key 'model_type', found none"),
    "a list for a name": ("llama", {"model_type": ["llama"]}, r"got \['llama'\]"),
    "layers": ("llama", {"num_hidden_layers": 3}, "expected 3 layers, as the configuration says, found 2"),
    "absurd layers": ("llama", {"num_hidden_layers": HUGE}, "expected 1,000,000 layers, .* found 2"),
    "more than absurd": ("llama", {"num_hidden_layers": 10**12}, "integer from 1 to 1,000,000, got 10000"),
    "absurd sizes": (
        "llama",
        {"vocab_size": HUGE, "hidden_size": HUGE, "intermediate_size": HUGE},
        r"21 of another shape:\n  .*0\.self_attn\.k_proj\.weight: expected \[12, 1000000\], found \[12, 24\]",
    ),
    "a number as text": ("llama", {"hidden_size": "24"}, "hidden_size to be an integer from 1 .* got '24'"),
    "heads": ("llama", {"num_attention_heads": 7}, "heads to be a multiple of kv_heads, got 7 and 2"),
    "odd heads": ("llama", {"head_dim": 7}, "Rotary: expected an even width of at least 2, got 7"),
    "no epsilon": ("llama", {"rms_norm_eps": 0}, "rms_norm_eps to be a finite number above 0, got 0"),
    "biases": ("llama", {"mlp_bias": True}, r"6 missing:\n  model\.layers\.0\.mlp\.down_proj\.bias \[24\]"),
    "a word for a truth": ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings to be true or false"),
    "activation": ("llama", {"hidden_act": "gelu"}, "expected hidden_act = 'silu', got 'gelu'"),
    "window": ("qwen2", {"use_sliding_window": True}, "expected use_sliding_window = False, got True"),
    "Mistral's window": ("mistral", {"sliding_window": 4096}, "expected sliding_window = None, got 4096"),
    "unknown scaling": (
        "llama",
        rope("longrope"),
        "rope_type to be one of default, linear, llama3, yarn, got 'longrope'",
    ),
    "scaling in a list": ("llama", {"rope_parameters": [1]}, r"expected rope_parameters to be an object, got \[1\]"),
    "scaling in words": ("llama", {"rope_parameters": "x"}, "expected rope_parameters to be an object, got 'x'"),
    "no factor": ("llama", rope("linear"), "expected the key 'factor', found none"),
    "a factor of nothing": ("llama", rope("linear", factor=1e-320), "a factor and limits that give finite angles"),
    "factor 0": ("llama", rope("linear", factor=0), "factor to be a finite number above 0, got 0"),
    "base in words": (
        "llama",
        {"rope_parameters": {"rope_theta": [1]}},
        r"rope_theta to be a finite number .* got \[1\]",
    ),
    "base 1": ("llama", {"rope_parameters": {"rope_theta": 1}}, r"rope_theta to be a number above 1, got 1\.0"),
    "no range": (
        "llama",
        rope("llama3", factor=2, low_freq_factor=4, high_freq_factor=4),
        "expected the llama3 scaling's lower bound below its upper one, got 4 and 4",
    ),
    "another YaRN": ("llama", rope("yarn", factor=2, mscale=0.7), r"expected mscale = None, got 0\.7"),
    "stretch in words": (
        "llama",
        rope("yarn", factor=2, attention_factor="x"),
        "attention_factor to be a finite number",
    ),
    "GLM's rotation": (
        "glm",
        {"rope_parameters": {"partial_rotary_factor": 9}},
        "at most 8 channels that turn, got 72",
    ),
    "overflow": ("glm", {"rope_parameters": {"partial_rotary_factor": 1e308}}, "not the configuration of a model"),
    "ChatGLM's norm": ("chatglm", {"rmsnorm": False}, "expected rmsnorm = True, got False"),
    "ChatGLM's groups": ("chatglm", {"multi_query_group_num": 5}, "heads to be a multiple of kv_heads, got 6 and 5"),
    "GPT-2's width": ("gpt2", {"n_embd": 21}, "a width that is a multiple of the heads, got 21 and 5"),
    "GPT-2's MLP": ("gpt2", {"n_inner": 3}, r"mlp\.c_proj\.weight: expected \[3, 20\], found \[80, 20\]"),
    "GPT-2's scale": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = False"),
    "a BERT that decodes": ("bert", {"is_decoder": True}, "expected is_decoder = False, got True"),
    "BERT's activation": (
        "bert",
        {"hidden_act": "mish"},
        "hidden_act to be one of gelu, gelu_new, relu, silu, got 'mish'",
    ),
    "BERT's positions": ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type = 'absolute'"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations(case, tmp_path, unchecked):
    name, change, message = CONFIGS[case]
    write_folder(tmp_path, name, **change)
    with pytest.raises(ValueError, match=message) as error:
        load_text_model(tmp_path)
    tensors_disagree = re.search("expected .* layers|missing|shape", str(error.value)) is not None
    file = "model.safetensors" if tensors_disagree else "config.json"
    assert str(error.value).startswith(str(tmp_path / file))


@pytest.mark.parametrize(
    "content", [b"", b'{"model_type": "lla', b"\x80\x04\x95", b"[]", b"[" * 100_000, b'{"a": "\xff"}']
)
def test_damaged_configuration(content, tmp_path):
    (write_folder(tmp_path, "llama") / "config.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/config\.json: expected a JSON object .*Is the download complete"
    ):
        load_text_model(tmp_path)


def write_shards(folder, change=None):
    """Two files and an index, which `change` may damage."""
    write_folder(folder, "llama", {})
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(weights("llama"))}
    for shard in ("model-0.safetensors", "model-1.safetensors"):
        save_file({name: array for name, array in weights("llama").items() if places[name] == shard}, folder / shard)
    index = {"weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(change(places) if change else index))
    return folder


def elsewhere(place):
    return lambda places: {"weight_map": places | {NORM: place}}


INDEX, SAME = r"model\.safetensors\.index\.json", "expected names of .safetensors files in the same folder, got "
INDICES = {
    "outside": (elsewhere("../x.safetensors"), f"{INDEX}: {SAME}'../x"),
    "within": (elsewhere("a/x.safetensors"), f"{INDEX}: {SAME}'a/x"),
    "absolute": (elsewhere("/etc/x.safetensors"), f"{INDEX}: {SAME}'/etc"),
    "upwards": (elsewhere(".."), f"{INDEX}: {SAME}'..'"),
    "pickle": (elsewhere("pytorch_model.bin"), f"{INDEX}: {SAME}'pytorch"),
    "a number": (elsewhere(3), f"{INDEX}: expected `weight_map`, an object of tensor names and file names"),
    "no map": (lambda _: {}, f"{INDEX}: expected `weight_map`"),
    "a list": (lambda places: {"weight_map": list(places)}, f"{INDEX}: expected `weight_map`"),
    "empty": (lambda _: {"weight_map": {}}, f"{INDEX}: expected 2 layers, .* found 0"),
    "a shard missing": (
        elsewhere("model-2.safetensors"),
        r"model-2\.safetensors: named by .* no such file. Is the downl",
    ),
    "a tensor missing": (
        lambda places: {"weight_map": places | {"no.such": "model-0.safetensors"}},
        r"model-0\.safetensors: expected the tensor 'no\.such', which",
    ),
    "a tensor left out": (
        lambda places: {"weight_map": {name: place for name, place in places.items() if name != NORM}},
        rf"{INDEX}: the tensors are not those (.|\n)*1 missing:\n  {NORM}",
    ),
}


@pytest.mark.parametrize("case", INDICES)
def test_shards(case, tmp_path):
    change, message = INDICES[case]
    with pytest.raises((ValueError, FileNotFoundError), match=rf"^{tmp_path}/{message}"):
        load_text_model(write_shards(tmp_path, change))


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 900, 20_000, -1])
@pytest.mark.parametrize("file", ["model.safetensors", "model-1.safetensors"])
def test_truncated_safetensors(file, keep, tmp_path):
    folder = write_folder(tmp_path, "llama") if file == "model.safetensors" else write_shards(tmp_path)
    (folder / file).write_bytes((folder / file).read_bytes()[:keep])
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/{file}: not a whole safetensors file .*Is the download complete"
    ):
        load_text_model(folder)


def test_nothing_to_read(tmp_path):
    folder = write_folder(tmp_path, "llama")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        FileNotFoundError, match=r"expected model\.safetensors or .*Pickled checkpoints .* are not read"
    ):
        load_text_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json: expected this file beside the weights, found none"):
        load_text_model(folder)


@pytest.mark.parametrize("kind", ["config.json", "model.safetensors.index.json", "model-0.safetensors"])
def test_random_damage(kind, tmp_path):
    """A model, or an error that names the file; nothing else, whatever the bytes."""
    folder = write_shards(tmp_path)
    assert_named(folder / kind, lambda: load_text_model(folder), count=70, header=1500)
