"""What the README shows can be typed."""

import re

import jax
import jax.numpy as jnp
import pytest

from experiments.documents import README
from ntkprefix import TokenPrefix
from ntkprefix.cli import COMMANDS
from ntkprefix.models import load_dinov2
from ntkprefix.models.packages import packaged

TEXT = README.read_text(encoding="utf-8")


def snippets():
    return re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_attention_snippet(relaxed):
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 16, 4, 8))
    keys, values = jax.random.normal(jax.random.key(1), (2, 30, 4, 8))
    names = {"query": query, "key": key, "value": value, "keys": keys, "values": values}
    exec(snippets()[0], names)
    assert names["out"].shape == query.shape
    assert names["state"].k.shape == (4, 45)


def test_model_snippet(relaxed):
    try:
        load_dinov2()
    except FileNotFoundError:
        pytest.skip("the packaged weights are not installed")
    keys = values = jnp.zeros((12, 3, 6, 64))
    names = {"images": jnp.zeros((1, 28, 28, 3)), "prefixes": TokenPrefix(keys, values)}
    exec(snippets()[1], names)
    assert names["tokens"].shape == (1, 5, 384)


def test_text_snippet(relaxed):
    try:
        packaged("smollm2")
    except FileNotFoundError:
        pytest.skip("the packaged weights are not installed")
    names = {"jnp": jnp}
    exec(snippets()[2], names)
    assert "Paris" in names["text"]


def test_every_snippet_is_tested():
    assert len(snippets()) == 3


def test_commands_exist():
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", TEXT)) <= targets
    assert set(re.findall(r"^ntkprefix ([a-z]+)", TEXT, re.MULTILINE)) <= set(COMMANDS)
    for name in re.findall(r"python -m ([a-z_.]+)", TEXT):
        path = README.parent / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name
