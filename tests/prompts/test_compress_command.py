"""`ntkprefix compress`: what it settles by itself, what it refuses, and what it says."""

import shlex
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
import tyro
from flax import nnx
from models.tiny_gguf import write_gguf
from rich.console import Console

from ntkprefix.cli import main
from ntkprefix.commands import compress, generate
from ntkprefix.compress import METHODS, Report
from ntkprefix.models import BlockConfig, TextConfig, TextModel
from ntkprefix.prompts import load_prompt

# What makes more than tokens.
OTHERS = {"elu", "taylor", "favor", "fitted-elu", "fitted-favor", "measure"}


@pytest.mark.parametrize("method", ["matching-in-context", "elu"])
def test_what_is_left_open_is_as_least_is_lost(method, tmp_path):
    """Of a text of few tokens too."""
    model, out = write_gguf(tmp_path / "m.gguf"), tmp_path / "out.safetensors"
    (tmp_path / "prompt.txt").write_text("ab a b " * 6)
    options = ["--model", str(model), "--prompt", str(tmp_path / "prompt.txt"), "--out", str(out), "--budget", "1.2x"]
    assert main(["compress", *options, "--method", method]) == 0
    stored = load_prompt(out)
    best = ("effect", "int4") if method not in OTHERS else ("even", "float16")
    assert (stored.notes["share"], stored.notes["dtype"]) == best
    assert stored.notes["queries"] == "both"
    assert stored.dtype == best[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("option", [(), ("--dtype", "int8"), ("--dtype", "int4"), ("--share", "need")])
def test_it_says_first_which_methods_make_no_tokens(method, option, capsys):
    assert main(["compress", "--prompt", "none", "--out", "none", "--method", method, *option]) == 2
    refused = option and method in OTHERS
    told = f"a method that makes tokens, got {method!r}." if refused else "none: expected a text file here"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"), [(None, "expected a text file here"), (b"\xff\xfe\x00", "Save it as UTF-8")]
)
def test_prompts_that_are_no_text(content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / "prompt.txt").write_bytes(content)
    out = tmp_path / "out.safetensors"
    assert main(["compress", "--prompt", str(tmp_path / "prompt.txt"), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(("content", "count"), [("", 0), ("a", 1)])
def test_tokens_around_a_text_are_none_of_it(content, count, tmp_path, monkeypatch, capsys):
    def encode(text, *, special=True):
        return [1, *map(ord, text), 2] if special else list(map(ord, text))

    monkeypatch.setattr(compress, "load_tokenizer", lambda _: SimpleNamespace(encode=encode))
    (tmp_path / "prompt.txt").write_text(content)
    options = ["--model", str(write_gguf(tmp_path / "m.gguf")), "--prompt", str(tmp_path / "prompt.txt")]
    assert main(["compress", *options, "--out", str(tmp_path / "out.safetensors")]) == 2
    assert f"prompt.txt: expected a text of at least two tokens, got {count}." in capsys.readouterr().err


def test_an_encoder_is_refused_by_its_name(tmp_path, monkeypatch, capsys):
    block = BlockConfig(width=12, heads=3, mlp_width=8)
    config = TextConfig(vocabulary=50, layers=1, block=block, head="none")
    encoder = nnx.eval_shape(lambda: TextModel(config, rngs=nnx.Rngs(0)))
    monkeypatch.setattr(compress, "load_text_model", lambda _, **__: encoder)
    (tmp_path / "prompt.txt").write_text("a b")
    options = ["--model", "bert", "--prompt", str(tmp_path / "prompt.txt"), "--out", str(tmp_path / "out.safetensors")]
    assert main(["compress", *options]) == 2
    told = "ntkprefix compress: bert: expected a causal language model, got an encoder. Give another --model.\n"
    assert capsys.readouterr().err == told


def test_a_stopped_command_says_that_it_goes_on(tmp_path, monkeypatch, capsys):
    def stopped(config, chosen, model, tokens, mesh, kept):
        (kept / ("0" * 16)).mkdir(exist_ok=True)
        (kept / ("0" * 16) / "layer-0.safetensors").write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr(compress, "_compressed", stopped)
    (tmp_path / "prompt.txt").write_text("ab a b " * 4)
    model, kept = write_gguf(tmp_path / "m.gguf"), tmp_path / "p.safetensors.parts"
    options = ["--model", str(model), "--prompt", str(tmp_path / "prompt.txt"), "--out", str(kept.with_suffix(""))]
    for going_on in (False, True):
        assert main(["compress", *options]) == 130
        shown = capsys.readouterr()
        assert (f"Going on from what is kept in {kept}" in shown.out) is going_on
        assert shown.err.startswith(f"ntkprefix compress: stopped. What is done is kept in {kept}: the same command")


def test_unknown_methods_are_refused_before_anything_is_read(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["compress", "--prompt", "none", "--out", "none", "--method", "magic"])
    message = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "invalid choice 'magic' for argument '--method'. Expected one of ('ends', 'uniform'" in message


def test_the_next_command_can_be_copied(tmp_path, capsys, monkeypatch):
    """Whatever the names are, and however narrow the window."""
    monkeypatch.setenv("COLUMNS", "30")
    out = tmp_path / "it's small.safetensors"
    out.touch()
    config = compress.Config(prompt=tmp_path / "prompt.txt", out=out)
    report = Report(*6 * [jnp.ones((1, 1))], held_out=1, numbers=1.0, itemsize=4, prompt_numbers=2, prompt_itemsize=4)
    compress._tell(Console(), config, report, 100, 1.0)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: "))
    program, name, *options = shlex.split(line.removeprefix("Next: "))
    assert (program, name) == ("ntkprefix", "generate")
    assert tyro.cli(generate.Config, args=options).prefix == (out,)


def test_a_prompt_that_is_a_folder(tmp_path, capsys):
    assert main(["compress", "--prompt", str(tmp_path), "--out", str(tmp_path / "out.safetensors")]) == 2
    assert f"{tmp_path}: expected a text file, got a folder." in capsys.readouterr().err
