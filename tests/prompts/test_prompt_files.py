"""Files of compressed prompts: what is saved comes back, and what is damaged or strange is refused by name."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.random_damage import assert_named
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ntkprefix import FeaturePrefix, JoinedPrefix, MeasurePrefix, TokenPrefix, feature_map
from ntkprefix.parts import Parts
from ntkprefix.prompts import PackedTokens, StoredPrompt, batch_prompts, load_prompt, save_prompt
from ntkprefix.prompts.precision import rounded
from ntkprefix.prompts.quantized import dequantize, quantize

L, C, K, H, HV = 2, 5, 3, 4, 6


def normal(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


PREFIXES = {
    "tokens": TokenPrefix(normal(L, C, K, H), normal(L, C, K, HV)),
    "weighted tokens": TokenPrefix(normal(L, C, K, H), normal(L, C, K, HV), normal(L, C, K)),
    "clouds": MeasurePrefix(
        normal(L, C, K), normal(L, C, K, H), normal(L, C, K, H, 2), normal(L, C, K, HV), normal(L, C, K, HV, 2)
    ),
    "state": FeaturePrefix(normal(L, K, H, HV), normal(L, K, H)),
    "state of query heads": FeaturePrefix(
        normal(L, 2 * K, 7, HV),
        normal(L, 2 * K, 7),
        feature_map("favor", features=7, key=jax.random.key(3)),
        normal(L, 2 * K),
        normal(L, 2 * K, H),
        scale=0.25,
    ),
}
RAGGED = np.zeros((L, C, K), np.float32)
RAGGED[0, 2:, 1] = RAGGED[1, 1:, 0] = RAGGED[1, 4:, 2] = -np.inf
FIRST = jnp.repeat(normal(L, 1, K, H), C, axis=1)
# Filled up with copies of the first token, as `compress_prompt` does.
PREFIXES["heads of several lengths"] = TokenPrefix(FIRST, FIRST, jnp.asarray(RAGGED))
PREFIXES["tokens and a state"] = JoinedPrefix((PREFIXES["weighted tokens"], PREFIXES["state of query heads"]))


@pytest.mark.parametrize("name", PREFIXES)
def test_files_give_back_what_was_saved(name, tmp_path):
    notes = {"model": "a model", "tokens": 7}
    stored = load_prompt(save_prompt(tmp_path / "deep" / "p.safetensors", PREFIXES[name], 7, notes))
    assert jax.tree.structure(stored.prefixes) == jax.tree.structure(PREFIXES[name])
    assert (stored.start, stored.notes) == (7, notes)
    jax.tree.map(np.testing.assert_array_equal, stored.prefixes, PREFIXES[name])


@pytest.mark.parametrize("name", PREFIXES)
def test_half_the_bytes_at_eleven_bits(name, tmp_path):
    whole, half = (save_prompt(tmp_path / dtype, PREFIXES[name], 7, dtype=dtype) for dtype in ("float32", "float16"))
    arrays, halves = load_file(whole), load_file(half)
    assert arrays.keys() == halves.keys()
    for key, array in arrays.items():
        np.testing.assert_allclose(halves[key].astype(array.dtype), array, rtol=2**-11, atol=2**-25)
    logarithms = {key for key in arrays if "log" in key or key.endswith("counts")}
    assert {key for key in arrays if halves[key].dtype == arrays[key].dtype} == logarithms
    stored = load_prompt(half)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(stored.prefixes)} == {"float32"}
    assert jax.tree.structure(stored.prefixes) == jax.tree.structure(PREFIXES[name])


@pytest.mark.parametrize("name", ["tokens", "weighted tokens", "heads of several lengths"])
def test_a_quarter_of_the_bytes_at_eight_bits(name, tmp_path):
    """Each number is off by half a step, a 127th of the largest of its row, and a file of a file is the same again."""
    prefix = PREFIXES[name]
    whole, quarter = (save_prompt(tmp_path / dtype, prefix, 7, dtype=dtype) for dtype in ("float32", "int8"))
    arrays, quarters = load_file(whole), load_file(quarter)
    size, small = (sum(array.nbytes for array in found.values()) for found in (arrays, quarters))
    rows = (arrays["0.keys"].size // H) * 2
    narrower = arrays["0.keys"].size + arrays["0.values"].size
    assert small == size - 3 * narrower + 2 * rows
    for key, array in arrays.items():
        if quarters[key].dtype == np.int8:
            scales = quarters[f"{key} scales"].astype(np.float32)
            np.testing.assert_allclose(scales, np.abs(array).max(axis=-1) / 127, rtol=2**-10)
            off = np.abs(quarters[key] * scales[..., None] - array)
            assert (off <= 0.5001 * scales[..., None]).all()
        else:
            np.testing.assert_array_equal(quarters[key], array)
    assert {key for key in arrays if quarters[key].dtype == np.int8} == {"0.keys", "0.values"}
    stored = load_prompt(quarter).prefixes
    assert jax.tree.structure(stored) == jax.tree.structure(prefix)
    again = load_prompt(save_prompt(tmp_path / "again", stored, 7, dtype="int8")).prefixes
    jax.tree.map(np.testing.assert_array_equal, again, stored)
    jax.tree.map(np.testing.assert_array_equal, rounded(rounded(prefix, "int8"), "int8"), rounded(prefix, "int8"))


@pytest.mark.parametrize("name", ["tokens", "weighted tokens", "heads of several lengths"])
def test_an_eighth_of_the_bytes_at_four_bits(name, tmp_path):
    prefix = PREFIXES[name]
    whole, eighth = (save_prompt(tmp_path / dtype, prefix, 7, dtype=dtype) for dtype in ("float32", "int4"))
    arrays, eighths = load_file(whole), load_file(eighth)
    rows = (arrays["0.keys"].size // H) * 2
    numbers = arrays["0.keys"].size + arrays["0.values"].size
    size, small = (sum(array.nbytes for array in found.values()) for found in (arrays, eighths))
    firsts = eighths["0.keys first"], eighths["0.values first"]
    assert small == size - 4 * numbers + numbers // 2 + 4 * rows + sum(2 * array.size for array in firsts)
    beside = {f"0.{name} {more}" for name in ("keys", "values") for more in ("scales", "lows", "first")}
    assert eighths.keys() - arrays.keys() == beside
    for key in arrays.keys() - {"0.keys", "0.values"}:
        np.testing.assert_array_equal(eighths[key], arrays[key])
    stored = load_prompt(eighth).prefixes
    assert jax.tree.structure(stored) == jax.tree.structure(prefix)
    for one, other in ((rounded(prefix, "int4"), stored), (rounded(stored, "int4"), stored)):
        kept = [np.exp(each.log_weights) if each.log_weights is not None else 1 for each in (one, other)]
        np.testing.assert_array_equal(*kept)
        for found, wanted in ((one.keys, other.keys), (one.values, other.values)):
            weighs = np.asarray(kept[0])[..., None] > 0
            there = np.broadcast_to(weighs, found.shape)
            np.testing.assert_allclose(found[there], wanted[there], atol=1e-5)
    for one, other, first in zip((stored.keys, stored.values), (prefix.keys, prefix.values), firsts, strict=True):
        np.testing.assert_array_equal(one[:, 0], np.asarray(other[:, 0], np.float16).astype(np.float32))
        np.testing.assert_array_equal(one[:, 0], first)
        assert 0.01 < np.abs(one - other)[:, 1:][np.broadcast_to(weighs, one.shape)[:, 1:]].max() < 0.3


def test_a_first_token_that_weighs_nothing_is_none(tmp_path):
    """What is exact is the first that counts, in a file as in memory."""
    weights = np.zeros((L, C, K), np.float32)
    weights[0, :2, 0] = weights[1, 0, 1] = -np.inf
    prefix = TokenPrefix(normal(L, C, K, H), normal(L, C, K, HV), jnp.asarray(weights))
    stored = load_prompt(save_prompt(tmp_path / "p", prefix, 7, dtype="int4")).prefixes
    for layer, head in np.ndindex(L, K):
        there = np.flatnonzero(weights[layer, :, head] > -np.inf)
        for name in ("keys", "values"):
            exact, found, memory = (
                np.asarray(getattr(each, name))[layer, :, head] for each in (prefix, stored, rounded(prefix, "int4"))
            )
            np.testing.assert_array_equal(found[0], exact[there[0]].astype(np.float16).astype(np.float32))
            np.testing.assert_allclose(memory[there], found[: len(there)], atol=1e-5)


def test_four_bits_without_first_tokens_are_read_as_they_are(tmp_path):
    """Files of before these were kept."""
    prefix = PREFIXES["weighted tokens"]
    file = save_prompt(tmp_path / "p.safetensors", prefix, 7, dtype="int4")
    with safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
    arrays = {name: array for name, array in load_file(file).items() if not name.endswith("first")}
    save_file(arrays, file, metadata)
    stored = load_prompt(file)
    assert stored.dtype == "int4"
    for name in ("keys", "values"):
        exact = getattr(prefix, name)
        np.testing.assert_allclose(getattr(stored.prefixes, name), dequantize(quantize(exact, "int4")), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
def test_prompts_of_no_tokens(dtype, tmp_path, unchecked):
    none = TokenPrefix(jnp.ones((L, 0, K, H)), jnp.ones((L, 0, K, HV)), jnp.ones((L, 0, K)))
    stored = load_prompt(save_prompt(tmp_path / "p", none, 7, dtype=dtype)).prefixes
    assert stored.values.shape == rounded(none, dtype).values.shape == (L, 0, K, HV)
    with pytest.raises(ValueError, match="expected at least one token, got none"):
        PackedTokens.of(none, dtype)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_rows_of_prompts_are_refused(dtype, tmp_path):
    rows = batch_prompts([StoredPrompt(PREFIXES["weighted tokens"], 7, {})] * 2).prefixes
    for prefixes in (rows, replace(rows, log_weights=rows.log_weights.at[:, 1, 2:].set(-jnp.inf))):
        with pytest.raises(ValueError, match=r"save_prompt: expected arrays of every layer, but .*keys"):
            save_prompt(tmp_path / "p", prefixes, 7, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("name", ["clouds", "state", "tokens and a state"])
def test_small_integers_are_for_tokens(name, dtype, tmp_path):
    told = rf"save_prompt: expected tokens for dtype='{dtype}', got a \w+Prefix. Take float16"
    with pytest.raises(TypeError, match=told):
        save_prompt(tmp_path / "p", PREFIXES[name], 7, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unchecked")
def test_four_bits_are_for_an_even_number_of_channels(tmp_path):
    odd = TokenPrefix(*jnp.ones((2, L, C, K, 5)))
    with pytest.raises(ValueError, match=r"dtype='int4': expected an even number of channels, got 5. Take int8"):
        save_prompt(tmp_path / "p", odd, 7, dtype="int4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unchecked")
def test_what_half_precision_does_not_reach(tmp_path):
    large = TokenPrefix(*jnp.full((2, L, C, K, H), 7e4))
    with pytest.raises(ValueError, match=r"finite numbers as keys.* Or take float32"):
        save_prompt(tmp_path / "p", large, 7, dtype="float16")
    with pytest.raises(ValueError, match=r"unknown dtype 'bfloat16'"):
        save_prompt(tmp_path / "p", large, 7, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"finite numbers as scales of keys.* Or take float32"):
        save_prompt(tmp_path / "p", TokenPrefix(*jnp.full((2, L, C, K, H), 1e7)), 7, dtype="int8")
    assert list(tmp_path.iterdir()) == []
    save_prompt(tmp_path / "p", large, 7)


@pytest.mark.parametrize("weights", [RAGGED, RAGGED[:, ::-1], RAGGED + 0.5, np.full_like(RAGGED, -np.inf)])
def test_tokens_that_weigh_nothing_are_left_out(weights, tmp_path):
    prefix = TokenPrefix(normal(L, C, K, H), normal(L, C, K, HV), jnp.asarray(weights))
    file = save_prompt(tmp_path / "p.safetensors", prefix, 7)
    kept = np.maximum((weights > -np.inf).sum(axis=1), 1)
    held = load_file(file)
    np.testing.assert_array_equal(held.pop("0.counts"), kept)
    assert {array.shape[0] for array in held.values()} == {kept.sum()}
    assert ("0.log_weights" in held) == bool(weights.max() != 0)
    back = load_prompt(file).prefixes
    assert back.keys.shape == (L, kept.max(), K, H)
    for layer, head in np.ndindex(L, K):
        there = np.flatnonzero(weights[layer, :, head] > -np.inf)
        count = len(there)
        np.testing.assert_array_equal(back.log_weights[layer, count:, head], -np.inf)
        for name in ("keys", "values", "log_weights"):
            wanted = np.asarray(getattr(prefix, name))[layer, there, head]
            np.testing.assert_array_equal(np.asarray(getattr(back, name))[layer, :count, head], wanted)


def test_what_cannot_be_stored_is_refused(tmp_path, unchecked):
    with pytest.raises(TypeError, match=r"expected tokens, clouds or states .* got int"):
        save_prompt(tmp_path / "p", 3, 3)

    class Own:
        positive = nonnegative = True

    with pytest.raises(TypeError, match="a feature map among elu, taylor, favor, got Own"):
        save_prompt(tmp_path / "p", FeaturePrefix(normal(L, K, H, HV), normal(L, K, H), Own()), 3)
    assert not list(tmp_path.iterdir())


ARRAYS = {"0.keys": np.ones((L, C, K, H), np.float32), "0.values": np.ones((L, C, K, HV), np.float32)}


def values(array):
    return ARRAYS | {"0.values": array.astype(np.float32)}


def state(**about):
    arrays = {"1.Z": np.ones((L, K, H, HV), np.float32), "1.k": np.ones((L, K, H), np.float32)}
    features = {"kind": "features", "feature_map": {"name": "elu"}, "scale": None} | about
    return ARRAYS | arrays, HEADER | {"parts": [{"kind": "tokens"}, features]}


def ragged(counts, tokens=6):
    arrays = {"0.keys": np.ones((tokens, H), np.float32), "0.values": np.ones((tokens, HV), np.float32)}
    return arrays | {"0.counts": np.asarray(counts, np.int32)}, HEADER | {"parts": [{"kind": "ragged tokens"}]}


def eight_bits(**more):
    arrays = {"0.keys": np.ones((L, C, K, H), np.int8), "0.values": np.ones((L, C, K, HV), np.int8)}
    scales = {f"{name} scales": np.ones((L, C, K), np.float16) for name in arrays}
    return arrays | scales | more, HEADER


def test_a_head_may_keep_all_where_others_keep_one_token(tmp_path):
    """At a hundred times fewer tokens than there would be if all heads kept as many."""
    weights = np.full((1, 200, 200), -np.inf, np.float32)
    weights[:, 0], weights[:, :, 7] = 0, 0
    prefix = TokenPrefix(*(jnp.broadcast_to(normal(1, 200, 1, H), (1, 200, 200, H)),) * 2, jnp.asarray(weights))
    back = load_prompt(save_prompt(tmp_path / "p", prefix, 200)).prefixes
    np.testing.assert_array_equal(np.exp(back.log_weights), np.exp(weights))
    np.testing.assert_array_equal(back.keys[:, :, 7], prefix.keys[:, :, 7])


def four_bits(**more):
    arrays = {"0.keys": np.ones((L, C, K, H // 2), np.uint8), "0.values": np.ones((L, C, K, HV // 2), np.uint8)}
    beside = {f"{name} {of}": np.ones((L, C, K), np.float16) for name in arrays for of in ("scales", "lows")}
    return arrays | beside | more, HEADER


def first(keys=1.0, values=1.0, width=HV):
    arrays = {"0.keys first": np.full((L, K, H), keys), "0.values first": np.full((L, K, width), values)}
    return {name: array.astype(np.float16) for name, array in arrays.items()}


HEADER = {"parts": [{"kind": "tokens"}], "start": 3, "notes": {}}
EMPTY = np.zeros((2**11, 3, 2**12, 0), np.float32)  # small enough for a failure to end
STRANGE = {
    "no format": (ARRAYS, None, "format is None"),
    "a kind of its own": (ARRAYS, HEADER | {"parts": [{"kind": "magic"}]}, "none of tokens, measure, features"),
    "no parts": (ARRAYS, HEADER | {"parts": []}, "no list of parts"),
    "parts of no kind": (ARRAYS, HEADER | {"parts": [3]}, "none of tokens, measure, features"),
    "no start": (ARRAYS, {"parts": [{"kind": "tokens"}]}, "start None"),
    "a start below zero": (ARRAYS, HEADER | {"start": -1}, "start -1"),
    "a header that is no object": (ARRAYS, [1], "no list of parts"),
    "values missing": ({"0.keys": ARRAYS["0.keys"]}, HEADER, "arrays of tokens, keys, values"),
    "one more": (ARRAYS | {"0.more": ARRAYS["0.keys"]}, HEADER, "arrays of tokens"),
    "of no part": (ARRAYS | {"1.keys": ARRAYS["0.keys"]}, HEADER, "array '1.keys' of no part"),
    "of no number": (ARRAYS | {"keys": ARRAYS["0.keys"]}, HEADER, "array 'keys' of no part"),
    "other heads": (values(np.ones((L, C, K + 1, HV))), HEADER, r"expected values \[L, M, K, Hv\]"),
    "integers": (ARRAYS | {"0.values": np.ones((L, C, K, HV), np.int32)}, HEADER, "floating-point numbers as values"),
    "not a number": (values(np.full((L, C, K, HV), np.nan)), HEADER, "finite numbers as values"),
    "parts of two sizes": (
        ARRAYS | {"1.keys": np.ones((L + 1, C, K, H), np.float32), "1.values": np.ones((L + 1, C, K, HV), np.float32)},
        HEADER | {"parts": [{"kind": "tokens"}] * 2},
        f"expected keys .* with L = {L}",
    ),
    "no counts": (ARRAYS, HEADER | {"parts": [{"kind": "ragged tokens"}]}, "no counts of its tokens"),
    "counts on one axis": (*ragged([1, 2, 3]), "no counts of its tokens"),
    "counts of another sum": (*ragged([[1, 2], [1, 1]]), "expected keys"),
    "a head of none": (*ragged([[0, 3], [2, 1]]), "counts of at least 1 that add up to its 6"),
    "counts that would fill the memory": (*ragged([[600] + [1] * 599], 1199), "its longest head has 600 of 1199"),
    "empty and huge": (dict.fromkeys(ARRAYS, EMPTY), HEADER, "rows of empty arrays, got 0.keys"),
    "an unknown feature map": (*state(feature_map={"name": "magic"}), "magic"),
    "a feature map of a list": (*state(feature_map=[]), "expected a compressed prompt"),
    "far too many features": (*state(feature_map={"name": "favor", "features": 10**9, "seed": [0]}), "features"),
    "a scale of nothing": (*state(scale=0.0), "the scale 0.0"),
    "scales of another shape": (*eight_bits(**{"0.keys scales": np.ones((L, C), np.float16)}), "scales for each row"),
    "scales of no number": (
        *eight_bits(**{"0.keys scales": np.full((L, C, K), np.nan, np.float16)}), "finite numbers as scales"
    ),
    "scales of nothing": (*eight_bits(**{"0.more scales": np.ones(3, np.float16)}), "arrays of tokens"),
    "scales without end": (
        *eight_bits(**{"0.keys scales": np.full((L, C, K), np.inf, np.float16)}), "finite numbers as scales"
    ),
    "counts in 8 bits": ({"0.counts": np.ones((L, K), np.int8), "0.keys": np.ones((6, H), np.int8)},
                         HEADER | {"parts": [{"kind": "ragged tokens"}]}, "scales for each row of 'keys'"),
    "weights in 8 bits": (
        *eight_bits(**{"0.log_weights": np.ones((L, C, K), np.int8)}), "floating-point numbers as log_weights"
    ),
    "8 bits without scales": (ARRAYS | {"0.keys": eight_bits()[0]["0.keys"]}, HEADER, "scales for each row of 'keys'"),
    "4 bits without lows": (
        ARRAYS | {"0.keys": np.ones((L, C, K, H // 2), np.uint8), "0.keys scales": np.ones((L, C, K), np.float16)},
        HEADER, "lows for each row of 'keys'",
    ),
    "lows without end": (*four_bits(**{"0.values lows": np.full((L, C, K), np.inf, np.float16)}), "as lows of values"),
    "4 bits of no axis": (*four_bits(**{"0.keys": np.asarray(3, np.uint8)}), "scales for each row of 'keys'"),
    "nothing in 4 bits": (
        ARRAYS
        | {"0.keys": np.asarray(3, np.uint8)}
        | dict.fromkeys(("0.keys scales", "0.keys lows"), np.asarray(1, np.float16)),
        HEADER, "scales for each row of 'keys'",
    ),
    "first tokens in 8 bits": (*eight_bits(**first()), "expected the arrays of tokens"),
    "first tokens of another width": (*four_bits(**first(width=H)), r"expected values \[L, K, Hv\]"),
    "first keys alone": (
        *four_bits(**{"0.keys first": first()["0.keys first"]}), "expected the arrays of first tokens, keys, values"
    ),
    "first tokens without end": (*four_bits(**first(keys=np.inf)), "finite numbers as keys"),
    "first values that are no numbers": (*four_bits(**first(values=np.nan)), "finite numbers as values"),
    "first tokens of none": (
        {name: array[:, :0] for name, array in four_bits()[0].items()} | first(), HEADER, "it has first tokens of none"
    ),
    "lows in 8 bits": (*eight_bits(**{"0.keys lows": np.ones((L, C, K), np.float16)}), "arrays of tokens"),
    "a scale in words": (*state(scale="x"), "the scale 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("case", STRANGE)
def test_strange_files_are_refused_by_name(case, tmp_path):
    arrays, header, message = STRANGE[case]
    metadata = None if header is None else {"format": "ntkprefix prompt 2", "prompt": json.dumps(header)}
    save_file(arrays, tmp_path / "p.safetensors", metadata)
    with pytest.raises(ValueError, match=message) as caught:
        load_prompt(tmp_path / "p.safetensors")
    assert "p.safetensors: expected a compressed prompt, but" in str(caught.value)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_numbers_that_numpy_does_not_have(dtype, tmp_path):
    header = json.dumps({"0.keys": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4]}}).encode()
    for name in ("p.safetensors", "part.safetensors"):
        (tmp_path / name).write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(ValueError, match=r"p.safetensors: expected a compressed prompt, but"):
        load_prompt(tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match=r"part.safetensors: expected a finished part of this computation, but"):
        Parts(tmp_path).find("part", jnp.zeros(4))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("tokens and a state", "float32")] + [("heads of several lengths", name) for name in ("float32", "int8", "int4")],
)
def test_damaged_files_are_refused_by_name(name, dtype, tmp_path):
    file = save_prompt(tmp_path / "p.safetensors", PREFIXES[name], 7, {"model": "x"}, dtype=dtype)
    assert_named(file, lambda: load_prompt(file), count=300, header=300)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a file of a compressed prompt here, found none"):
        load_prompt(tmp_path / "none")
