"""Tiny models in place of those that are loaded, and rows to train them on."""

from types import SimpleNamespace

import pytest
from flax import nnx
from small_runs import texts
from texts.words import WORDS, word_tokenizer

from ntkprefix.commands import jobs
from ntkprefix.models import BlockConfig, TextConfig, TextModel, ViT, ViTConfig


def tiny(*, causal):
    block = BlockConfig(width=12, heads=3, mlp_width=16, causal=causal)
    options = {"positions": 16, "token_types": 0 if causal else 2, "head": "tied" if causal else "none"}
    config = TextConfig(vocabulary=len(WORDS), layers=2, block=block, **options)
    return nnx.jit(lambda: TextModel(config, rngs=nnx.Rngs(0)))()


@pytest.fixture(scope="module")
def models():
    block = BlockConfig(width=12, heads=3, mlp_width=16)
    vit = nnx.jit(lambda: ViT(ViTConfig(patch=4, layers=2, grid=2, block=block), rngs=nnx.Rngs(0)))()
    return SimpleNamespace(vit=vit, encoder=tiny(causal=False), decoder=tiny(causal=True))


@pytest.fixture
def without_weights(models, monkeypatch):
    monkeypatch.setattr(jobs, "load_dinov2", lambda _, **__: models.vit)
    monkeypatch.setattr(jobs, "load_text_model", lambda name, **_: getattr(models, name))
    monkeypatch.setattr(jobs, "load_tokenizer", lambda name: word_tokenizer(special=name == "encoder"))


@pytest.fixture
def labelled(tmp_path):
    labels = [("one two", 0), ("five six", 1)]
    rows = [{"text": text, "sentence": text, "label": label} for text, label in labels for _ in range(30)]
    folder = texts(tmp_path / "data", rows)
    (folder / "labels.json").write_text('["three", "four"]')
    return folder
