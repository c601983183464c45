"""Adapters' files: what is saved comes back, and what is damaged, strange or hostile is refused by name."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_classifier import FAVOR, initial, tiny_model

from ntkprefix import feature_map
from ntkprefix.adapters import (
    FeatureAdapter,
    FullAdapter,
    HeadAdapter,
    LoraAdapter,
    MeasureAdapter,
    PromptAdapter,
    ReparametrisedAdapter,
    Stack,
    TokenAdapter,
    load_adapter,
    save_adapter,
)

RNG = np.random.default_rng(1)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


FILES = {
    "tokens": TokenAdapter(length=3, start="mean"),
    "features": FeatureAdapter(FAVOR, rank=2, heads="kv", train_scale=False),
    "reparametrised": ReparametrisedAdapter(length=3, hidden=4, start="mean"),
    "features with a share": FeatureAdapter(share=0.3, positive="softplus"),
    "taylor": FeatureAdapter(feature_map("taylor", degree=0)),
    "measure": MeasureAdapter(components=3, rank=1, share=0.5),
    "stack": Stack([LoraAdapter(rank=2, alpha=3.0, targets=("up", "query")), PromptAdapter(length=2)]),
    "stack with parts without parameters": Stack([HeadAdapter(), Stack([PromptAdapter(length=2), HeadAdapter()])]),
    "full": FullAdapter(),
    "head": HeadAdapter(),
}


@pytest.mark.parametrize("name", FILES)
def test_files_give_back_what_was_saved(name, model, tmp_path):
    params = initial(model, FILES[name])[1]["adapter"]
    params = jax.tree.map(lambda leaf: leaf + jnp.asarray(RNG.standard_normal(leaf.shape), leaf.dtype), params)
    adapter, loaded = load_adapter(save_adapter(tmp_path / "adapter", FILES[name], params))
    if not name.startswith("stack"):
        assert adapter == FILES[name]
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for one, other in zip(*map(jax.tree.leaves, (loaded, params)), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(*map(jax.tree.leaves, (adapter.adapt(loaded), FILES[name].adapt(params))), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter.json", b"{", r"adapter.json: .* Save the adapter again\.$"),
        ("adapter.json", b"[]", "adapter.json"),
        ("adapter.json", b'{"adapter": "other", "options": {}}', "expected one of head, full"),
        ("adapter.json", b'{"adapter": "lora", "options": {"rank": 0}}', "rank of at least 1, got 0"),
        ("adapter.json", b'{"adapter": "lora", "options": {"size": 1}}', "not the description of an adapter"),
        ("adapter.json", b'{"options": {}}', "not the description of an adapter"),
        ("adapter.safetensors", b"", "adapter.safetensors: not a whole safetensors file"),
        ("adapter.safetensors", b"\x80\x04\x95", "adapter.safetensors: not a whole safetensors file"),
    ],
)
def test_damaged_files_are_named(file, content, message, tmp_path):
    folder = save_adapter(tmp_path, PromptAdapter(length=2), {"prompt": jnp.ones((2, 3))})
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_adapter(folder)
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=file):
        load_adapter(folder)


Z, K, SCALE = np.zeros((2, 3, 4, 5), np.float32), np.zeros((2, 3, 4), np.float32), np.zeros((2, 3), np.float32)
PLAIN = {"calibration": "harmonic"}
WHOLE = {"Z": Z, "k": K, "log_scale": SCALE, "value": np.zeros((2, 3, 5), np.float32)}
LORA = {"targets": ["query"], "rank": 2}
EMPTY = np.zeros((2**11, 3, 2**12, 0), np.float32)
DOWN, UP = np.zeros((2, 6, 2), np.float32), np.zeros((2, 2, 6), np.float32)
HOSTILE = {
    "an array missing": ("features", PLAIN, {"Z": Z, "k": K}, "FeatureAdapter, Z, k, log_scale, value, got Z, k"),
    "an array too many": ("features", PLAIN, WHOLE | {"x": K}, "got Z, k, log_scale, value, x"),
    "an array within one": ("features", PLAIN, WHOLE | {"Z.a": K}, "got Z, Z.a, k"),
    "a full one within one": ("full", {}, {"a": K, "a.b": K}, "expected one array called a"),
    "another adapter's": ("tokens", {"length": 2}, WHOLE, "arrays of TokenAdapter, keys, values"),
    "integers": ("features", PLAIN, WHOLE | {"k": K.astype(np.int8)}, "floating-point numbers as k, got int8"),
    "integers of all": ("full", {}, {"a": K.astype(np.int8)}, "floating-point numbers as a, got int8"),
    "NaN": ("features", PLAIN, WHOLE | {"Z": Z + np.nan}, "finite numbers as Z"),
    "other heads": ("features", PLAIN, WHOLE | {"log_scale": np.zeros((2, 4), np.float32)}, r"log_scale \[L, N\]"),
    "too few axes": ("features", PLAIN, WHOLE | {"Z": K}, r"expected Z \[L, N, R, Hv\]"),
    "another length": ("tokens", {"length": 2}, {"keys": Z, "values": Z}, "with L = 2, M = 2"),
    "another rank": ("lora", LORA | {"rank": 1}, {"query.down": DOWN, "query.up": UP}, "r = 1"),
    "a part too many": ("stack", [("lora", LORA)], {"0.query.down": DOWN, "0.query.up": UP, "1.k": K}, "also 1.k"),
    "an array in place of a part": ("stack", [("head", {})], {"0": K}, "also 0"),
    "a part's array missing": ("stack", [("lora", LORA)], {"0.query.down": DOWN}, "arrays of LoraAdapter"),
    "features in words": ("features", {"feature_map": {"name": "favor", "features": "x", "seed": [0]}}, {}, "integer"),
    "a trillion features": (
        "features",
        {"feature_map": {"name": "favor", "features": 10**12, "seed": [0]}},
        {},
        "at most 4,194,304 features",
    ),
    "a seed in words": ("features", {"feature_map": {"name": "favor", "features": 4, "seed": "y"}}, {}, "as seed"),
    "a negative seed": ("features", {"feature_map": {"name": "favor", "features": 4, "seed": [-1]}}, {}, "as seed"),
    "a degree in words": ("features", {"feature_map": {"name": "taylor", "degree": "x"}}, {}, "integer degree"),
    "alpha in words": ("lora", {"alpha": "x"}, {}, "a number as alpha"),
    "alpha NaN": ("lora", {"alpha": float("nan")}, {}, "finite number as alpha"),
    "alpha beyond every float": ("lora", {"alpha": 10**400}, {}, "finite number as alpha, got 1000"),
    "deviation in words": ("tokens", {"deviation": "x"}, {}, "a number as deviation"),
    "deviation below 0": ("prompt", {"deviation": -1.0}, {}, "of at least 0 as deviation"),
    "no for False": ("features", {"train_scale": "no"}, {}, "True or False as train_scale"),
    # Smaller ones than those that would never be read, so that a failure takes seconds.
    "empty and huge": ("tokens", {"length": 3}, dict.fromkeys(("keys", "values"), EMPTY), "rows of empty arrays, got"),
    "empty and huge of all": ("full", {}, {"a": EMPTY}, r"rows of empty arrays, got a \[2048, 3, 4096, 0\]"),
    "a list for a name": ("features", {"calibration": ["harmonic"]}, {}, "unknown calibration"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", HOSTILE)
def test_files_of_another_make_are_refused(name, tmp_path):
    kind, options, arrays, message = HOSTILE[name]
    described = {"adapter": kind, "options": options}
    if kind == "stack":
        described = {"adapter": kind, "parts": [{"adapter": part, "options": given} for part, given in options]}
    (tmp_path / "adapter.json").write_text(json.dumps(described))
    save_file(arrays, tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match=message) as raised:
        load_adapter(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_descriptions_nested_too_deep_are_refused(tmp_path):
    save_adapter(tmp_path, HeadAdapter(), {})
    (tmp_path / "adapter.json").write_text(
        '{"adapter": "stack", "parts": [' * 900 + '{"adapter": "head", "options": {}}' + "]}" * 900
    )
    with pytest.raises(ValueError, match=r"adapter\.json"):
        load_adapter(tmp_path)
