"""Damaged, foreign or hostile GGUF files and tokenisers end in an error that names the file, and take no memory."""

import json
import struct
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from random_damage import assert_named
from tiny_gguf import tensors, write_gguf
from tiny_text import golden, write_folder

from ntkprefix.models import load_text_model
from ntkprefix.models.tokenizers import Tokenizer, load_tokenizer
from ntkprefix.texts import Example, for_encoder


def test_a_gguf_file_is_the_same_model(tmp_path):
    model, other = (
        load_text_model(write_gguf(tmp_path / "m.gguf")),
        load_text_model(write_folder(tmp_path / "m", "llama")),
    )
    for name in ("query", "key"):
        one, two = (getattr(each.blocks.attention, name).kernel[...] for each in (model, other))
        np.testing.assert_array_equal(one, two)
    out = model.logits(model(jnp.asarray(golden("llama")["tokens"], jnp.int32)))
    np.testing.assert_allclose(out, golden("llama")["out"], atol=1e-4, rtol=1e-4)


def array_of(count, kind=5, data=b""):
    """The file up to an array's length, with another kind and length."""

    def damage(whole):
        at = whole.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 4
        return whole[:at] + struct.pack("<IQ", kind, count) + data

    return damage


def count_of(at, count):
    return lambda whole: whole[:at] + struct.pack("<Q", count) + whole[at + 8 :]


def axes_of(count):
    def damage(whole):
        at = whole.index(b"output_norm.weight") + len("output_norm.weight")
        return whole[:at] + struct.pack("<I", count) + whole[at + 4 :]

    return damage


DAMAGE = {
    "empty": (lambda _: b"", "not a whole GGUF file"),
    "magic": (lambda whole: b"GGML" + whole[4:], "it starts with b'GGML', not with 'GGUF'"),
    "pickle": (lambda _: b"\x80\x04\x95" + bytes(99), "it starts with "),
    "version": (lambda whole: whole[:4] + bytes([9]) + whole[5:], "expected version 2 or 3, little-endian, got 9"),
    "big-endian": (lambda whole: whole[:4] + whole[7:3:-1] + whole[8:], "expected version 2 or 3, little-endian"),
    "2^62 tensors": (count_of(8, 2**62), "it ends within its header"),
    "2^62 keys": (count_of(16, 2**62), "it ends within its header"),
    "2^62 letters": (count_of(24, 2**62), "it ends within its header"),
    "2^62 elements": (array_of(2**62), "arrays of at most 2,000,000 elements in all, got 4,611"),
    "many bytes": (array_of(3 * 10**6, 0, bytes(3 * 10**6)), "at most 2,000,000 elements in all, got 3,000,061"),
    "a million texts": (array_of(10**6, 8), "it ends within its header"),
    "deep arrays": (
        lambda whole: array_of(1, 9, struct.pack("<IQ", 9, 1) * 10**5)(whole),
        "expected no arrays of arrays",
    ),
    "kind of value": (array_of(1, 77), "expected a type of value from 0 to 12, got 77"),
    "axes": (axes_of(2**31), "tensors of at most 4 axes, got 2,147,483,648"),
    "text": (
        lambda whole: whole.replace(b"llama", b"ll\xffma", 1),
        "expected text in UTF-8 under the key 'general.archi",
    ),
    "names": (lambda whole: whole.replace(b"output_norm", b"output\xffnorm", 1), "not a whole GGUF file .*utf-8"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_gguf(case, tmp_path):
    damage, message = DAMAGE[case]
    path = write_gguf(tmp_path / "m.gguf")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"^{path}: .*{message}"):
        load_text_model(path)


def test_gguf_cut_off_anywhere(tmp_path):
    """In every part of the header, between any two parts, in the padding and in the data."""
    path = write_gguf(tmp_path / "m.gguf")
    whole = path.read_bytes()
    places = [*range(0, 800, 3), *range(800, 2800, 11), *range(2800, len(whole), 5000), len(whole) - 1]
    for place in places:
        path.write_bytes(whole[:place])
        with pytest.raises(ValueError, match=rf"^{path}: "):
            load_text_model(path)


GGUF = {
    "architecture": ({"architecture": "mamba"}, "expected an architecture among llama, qwen2, qwen3, got 'mamba'"),
    "no layers": ({"llama__block_count": None}, "expected the key 'llama.block_count', found none"),
    "layers": ({"llama__block_count": 5}, "expected 5 layers, as the configuration says, found 2"),
    "absurd layers": ({"llama__block_count": 2**32 - 1}, "num_hidden_layers to be an integer from 1"),
    "heads in a list": ({"llama__attention__head_count": [6, 6]}, r"rows for \[6, 6\] heads, got shape \[36, 24\]"),
    "heads": ({"llama__attention__head_count": 7}, "with rows for 7 heads"),
    "groups": (
        {"llama__attention__head_count_kv": 3, "llama__attention__head_count": 1},
        "multiple of kv_heads, got 1 and",
    ),
    "partly turning": ({"llama__rope__dimension_count": 4}, "expected rope_dimension_count = 6, got 4"),
    "scaling": ({"llama__rope__scaling__type": "longrope"}, "expected the key 'llama.rope.scaling.factor'"),
    "frequencies": ({"arrays": tensors() | {"rope_freqs.weight": np.ones(3, "f4")}}, "expected no rope_freqs.weight"),
    "extra": ({"arrays": tensors() | {"blk.0.more.weight": np.ones(3, "f4")}}, "1 unknown:\n  blk.0.more.weight"),
    "missing": ({"without": ("output_norm.weight",)}, "1 missing:\n  model.norm.weight"),
    "no embeddings": ({"without": ("token_embd.weight",)}, "vocab_size to be an integer from 1 to 1,000,000, got 0"),
    "two names": (
        {"arrays": tensors() | {"model.norm.weight": np.ones(24, "f4")}},
        "expected one name for each tensor",
    ),
}


@pytest.mark.parametrize("case", GGUF)
def test_gguf_of_another_model(case, tmp_path):
    options, message = GGUF[case]
    path = write_gguf(tmp_path / "m.gguf", **options)
    with pytest.raises(ValueError, match=rf"^{path}: (.|\n)*{message}"):
        load_text_model(path)


def test_gguf_tensors_that_share_their_bytes(tmp_path):
    """Small files must not become large arrays."""
    arrays = {f"blk.{number}.more.weight": np.ones((32, 64), np.float32) for number in range(100, 200)}
    path = write_gguf(tmp_path / "m.gguf", arrays=arrays)
    whole = bytearray(path.read_bytes())
    for name in arrays:  # name, number of axes, two sizes, type: then where its bytes start
        at = whole.index(name.encode()) + len(name) + 4 + 2 * 8 + 4
        whole[at : at + 8] = bytes(8)
    path.write_bytes(whole[: len(whole) - 99 * 32 * 64 * 4])
    with pytest.raises(
        ValueError, match=rf"^{path}: the tensors cannot be read \(together they are larger than the file"
    ):
        load_text_model(path)


TEMPLATE = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}], "pair": []}
BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
TOKENISERS = {
    "empty": ("tokenizer.json", b""),
    "cut off": ("tokenizer.json", b'{"version": "1.0", "model": {"type": "BPE", "voc'),
    "bytes": ("tokenizer.json", b"\x80\x04\x95\xff"),
    "a list": ("tokenizer.json", b"[]"),
    "deep": ("tokenizer.json", b"[" * 100_000),
    "no model": ("tokenizer.json", b'{"version": "1.0"}'),
    "a merge of nothing": ("tokenizer.json", json.dumps({"model": BPE | {"merges": ["a z"]}}).encode()),
    "a template of nothing": (
        "tokenizer.json",
        json.dumps({"model": BPE, "post_processor": TEMPLATE | {"special_tokens": {}}}).encode(),
    ),
    "no words": ("vocab.txt", b""),
    "no special words": ("vocab.txt", b"a\nb"),
    "no text": ("vocab.txt", b"\xff\xfe\n"),
    "no GGUF": ("m.gguf", b"GGUF"),
}


@pytest.mark.parametrize("case", TOKENISERS)
def test_damaged_tokenisers(case, tmp_path):
    name, content = TOKENISERS[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/{name}: .*Is the download complete"):
        load_tokenizer(tmp_path / name)


WORDS = {"type": "WordLevel", "vocab": {"pad": 0, "a": 1}, "unk_token": "pad"}
# More than any memory, which the library notices, and what no single text can be cut by.
PADDING = {"strategy": {"Fixed": 2**62}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
PADDING |= {"pad_type_id": 0, "pad_token": "pad"}
CUTTING = {"direction": "Right", "max_length": 1, "strategy": "OnlySecond", "stride": 0}
SLOW = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize("asked", [{"padding": PADDING}, {"truncation": CUTTING}])
def test_a_tokenisers_own_padding_and_cutting_are_never_done(asked, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": WORDS, **asked}))
    assert load_tokenizer(tmp_path).encode("a") == [1]


@pytest.mark.parametrize(("steps", "inner"), [("normalizer", "normalizers"), ("decoder", "decoders")])
def test_replacements_of_replacements_that_would_fill_the_memory(steps, inner, tmp_path):
    def tokenizer(times):
        one = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
        content = {"model": WORDS, steps: {"type": "Sequence", inner: [{"type": "Sequence", inner: [one] * times}]}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        return load_tokenizer(tmp_path)

    assert tokenizer(3).encode("b") == tokenizer(1).encode("b")
    with pytest.raises(ValueError, match=r"tokenizer.json: expected replacements that make a text up to 65,536 times"):
        tokenizer(12)


def test_halves_of_letters_are_no_text(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": WORDS}))
    with pytest.raises(
        ValueError, match=rf"{tmp_path}/tokenizer.json: expected text, got .* as its letter 2, which is"
    ):
        load_tokenizer(tmp_path).batch(["a\udcff"])


def test_tokenisers_that_fail_at_a_text(tmp_path):
    """As a panic, which is no `Exception`."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": WORDS, "pre_tokenizer": SLOW}))
    tokenizer = load_tokenizer(path)
    message = rf"^{path}: expected a tokeniser that takes any text, but it failed \(.*retry-limit"
    with pytest.raises(ValueError, match=message):
        tokenizer.encode("a" * 34)
    with pytest.raises(ValueError, match=message):
        for_encoder([Example("", "", ("a" * 34,), 0)], tokenizer, 8)


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_only_the_librarys_own_failures_are_told_as_the_files(way):
    kind = type("PanicException", (BaseException,), {})

    def fails(with_what):
        inner = SimpleNamespace(get_vocab_size=lambda **_: 1)
        inner.encode = inner.decode = lambda *_, **__: (_ for _ in ()).throw(with_what)
        return getattr(Tokenizer(inner, "t.json"), way)([1] if way == "decode" else "a")

    for error in (kind("what"), Exception("what")):
        with pytest.raises(ValueError, match=r"^t.json: .* it failed \(what\)"):
            fails(error)
    for error in (KeyboardInterrupt(), TypeError("no text")):
        with pytest.raises(type(error)):
            fails(error)


GGUF_TOKENISERS = {
    "kind": ({"tokenizer__ggml__model": "llama"}, r"expected a byte-level tokeniser \(gpt2\), got 'llama'"),
    "cut": ({"tokenizer__ggml__pre": "deepseek"}, "the way 'deepseek' to cut text is not supported"),
    "no merges": ({"tokenizer__ggml__merges": None}, "tokenizer.ggml.merges"),
    "a merge of nothing": ({"tokenizer__ggml__merges": ["a zz"]}, "not a tokeniser that can be read"),
    "a merge of one": ({"tokenizer__ggml__merges": ["a"]}, "not a tokeniser that can be read"),
    "types": ({"tokenizer__ggml__token_type": [1, 3]}, "not a tokeniser that can be read"),
    "a text for words": ({"tokenizer__ggml__tokens": "ab"}, "expected a list of texts as tokenizer.ggml.tokens"),
    "numbers for words": ({"tokenizer__ggml__tokens": [1, 2]}, "expected a list of texts as tokenizer.ggml.tokens"),
    "numbers for merges": ({"tokenizer__ggml__merges": [1]}, "expected a list of texts as tokenizer.ggml.merges"),
    "a number for words": ({"tokenizer__ggml__tokens": 3}, "not a tokeniser that can be read"),
}


@pytest.mark.parametrize("case", GGUF_TOKENISERS)
def test_gguf_tokenisers(case, tmp_path):
    options, message = GGUF_TOKENISERS[case]
    path = write_gguf(tmp_path / "m.gguf", **options)
    with pytest.raises(ValueError, match=rf"^{path}: .*{message}"):
        load_tokenizer(path)


@pytest.mark.parametrize("load", [load_text_model, load_tokenizer])
def test_random_damage(load, tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    assert_named(path, lambda: load(path), count=100, header=2800)
