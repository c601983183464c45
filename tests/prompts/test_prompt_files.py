"""Files of compressed prompts: what is saved comes back, and what is damaged or strange is refused by name."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.random_damage import assert_named
from safetensors.numpy import save_file

from ntkprefix import FeaturePrefix, MeasurePrefix, TokenPrefix
from ntkprefix.cli import main
from ntkprefix.commands import compress
from ntkprefix.prompts import load_prompt, save_prompt

L, C, K, H, HV = 2, 5, 3, 4, 6


def normal(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


PREFIXES = {
    "tokens": TokenPrefix(normal(L, C, K, H), normal(L, C, K, HV)),
    "weighted tokens": TokenPrefix(normal(L, C, K, H), normal(L, C, K, HV), normal(L, C, K).at[0, 0, 0].set(-jnp.inf)),
    "clouds": MeasurePrefix(
        normal(L, C, K), normal(L, C, K, H), normal(L, C, K, H, 2), normal(L, C, K, HV), normal(L, C, K, HV, 2)
    ),
}


@pytest.mark.parametrize("name", PREFIXES)
def test_files_give_back_what_was_saved(name, tmp_path):
    notes = {"model": "a model", "tokens": 7}
    stored = load_prompt(save_prompt(tmp_path / "deep" / "p.safetensors", PREFIXES[name], 7, notes))
    assert type(stored.prefixes) is type(PREFIXES[name])
    assert (stored.start, stored.notes) == (7, notes)
    jax.tree.map(np.testing.assert_array_equal, stored.prefixes, PREFIXES[name])


def test_states_of_features_are_not_stored(tmp_path):
    with pytest.raises(TypeError, match="expected a TokenPrefix or a MeasurePrefix"):
        save_prompt(tmp_path / "p", FeaturePrefix(normal(L, K, H, HV), normal(L, K, H)), 3)


ARRAYS = {"keys": np.ones((L, C, K, H), np.float32), "values": np.ones((L, C, K, HV), np.float32)}


def values(array):
    return ARRAYS | {"values": array.astype(np.float32)}


HEADER = {"kind": "tokens", "start": 3, "notes": {}}
STRANGE = {
    "no format": (ARRAYS, None, "format is None"),
    "a kind of its own": (ARRAYS, HEADER | {"kind": "magic"}, "names no kind among tokens, measure"),
    "no start": (ARRAYS, {"kind": "tokens"}, "start None"),
    "a start below zero": (ARRAYS, HEADER | {"start": -1}, "start -1"),
    "a header that is no object": (ARRAYS, [1], "names no kind"),
    "values missing": ({"keys": ARRAYS["keys"]}, HEADER, "arrays of tokens, keys, values"),
    "one more": (ARRAYS | {"more": ARRAYS["keys"]}, HEADER, "arrays of tokens"),
    "other heads": (values(np.ones((L, C, K + 1, HV))), HEADER, r"expected values \[L, C, K, Hv\]"),
    "integers": (ARRAYS | {"values": np.ones((L, C, K, HV), np.int32)}, HEADER, "floating-point numbers as values"),
    "not a number": (values(np.full((L, C, K, HV), np.nan)), HEADER, "finite numbers as values"),
}  # fmt: skip


@pytest.mark.parametrize("case", STRANGE)
def test_strange_files_are_refused_by_name(case, tmp_path):
    arrays, header, message = STRANGE[case]
    metadata = None if header is None else {"format": "ntkprefix prompt 1", "prompt": json.dumps(header)}
    save_file(arrays, tmp_path / "p.safetensors", metadata)
    with pytest.raises(ValueError, match=message) as caught:
        load_prompt(tmp_path / "p.safetensors")
    assert "p.safetensors: expected a compressed prompt, but" in str(caught.value)


def test_damaged_files_are_refused_by_name(tmp_path):
    file = save_prompt(tmp_path / "p.safetensors", PREFIXES["weighted tokens"], 7, {"model": "x"})
    assert_named(file, lambda: load_prompt(file), count=300, header=300)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no file"):
        load_prompt(tmp_path / "none")


def test_a_prompt_of_another_model_is_not_taken(tmp_path, capsys):
    file = save_prompt(tmp_path / "p.safetensors", PREFIXES["tokens"], 7, {"model": "another"})
    assert main(["generate", "--prefix", str(file), "--text", "x"]) == 2
    assert "compressed for smollm2, got one for another. Give --model another." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"), [(None, "expected a text file here"), (b"\xff\xfe\x00", "expected text as UTF-8")]
)
def test_prompts_that_are_no_text(content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / "prompt.txt").write_bytes(content)
    out = tmp_path / "out.safetensors"
    assert main(["compress", "--prompt", str(tmp_path / "prompt.txt"), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_methods_that_cannot_be_stored_are_refused_before_anything_is_read(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["compress", "--prompt", "none", "--out", "none", "--method", "favor"])
    message = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "unknown method 'favor'; expected one of ends, uniform" in message


def test_the_help_names_every_method_that_can_be_stored():
    told = compress.Config.__doc__.split("method:")[1].split("queries:")[0]
    assert [name.strip() for name in told.replace("one of", "").rstrip(" .\n").split(",")] == list(compress._STORED)
