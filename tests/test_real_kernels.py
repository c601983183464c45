"""Kernels of a whole model in its prefix: what is written, and that its numbers mean what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models.tiny_vit import TINY

from experiments import plots, real_kernels
from experiments.real_kernels import KernelsConfig, command, main
from ntkprefix.images import load_images
from ntkprefix.models import ViT
from ntkprefix.runs import read_json

SMALL = {"seeds": 3, "rows": 3, "classes": 2, "steps": 3, "pool": 6, "head_rows": 12}


@pytest.fixture(scope="module")
def tiny():
    """A model of three layers in place of the packaged one, whose attention is not all alike."""
    model = nnx.jit(lambda: ViT(TINY, rngs=nnx.Rngs(0)))()
    graph, weights = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda leaf: 2.0 * leaf if leaf.ndim > 2 else leaf, weights))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """What one test measures, another need not measure again."""
    return tmp_path_factory.mktemp("pieces")


@pytest.fixture
def measure(monkeypatch, tmp_path, tiny, pieces):
    """`main` of the tiny model with small settings."""
    monkeypatch.setattr(real_kernels, "load_dinov2", lambda: tiny)
    monkeypatch.setattr(real_kernels, "load_images", lambda _, **__: load_images("digits", size=16))
    monkeypatch.setattr(real_kernels, "RESULTS", tmp_path)
    return lambda **changes: main(KernelsConfig(**SMALL | changes, out=pieces))


LADDER = (2, 32, 512)


def test_longer_prefixes_are_nearer_to_their_limit(measure, tmp_path, compiled):
    results = measure(lengths=LADDER)
    # All draws of one length share one program: three lengths, and the state.
    assert compiled.count("_loss_and_step") == compiled.count("_at") == 4
    assert read_json(tmp_path / "real_kernels_dinov2.json")["rows"] == results["rows"]
    distances = {M: [row["distance"] for row in results["rows"] if row["M"] == M] for M in results["config"]["lengths"]}
    means = [np.mean(distances[M]) for M in LADDER]
    assert means[0] > 1.5 * means[1], means
    assert means[1] > 2 * means[2], means
    assert [row["M"] for row in results["rows"]].count(None) == 1
    drawn = plots.real_kernels({"tiny": results})
    assert len(drawn.axes) == 3


def test_a_kernel_is_not_measured_twice_but_that_of_other_data_is(measure, monkeypatch, tmp_path):
    first = measure(lengths=LADDER)
    monkeypatch.setattr(real_kernels, "model_ntk", None)
    assert measure(lengths=LADDER)["rows"] == first["rows"]
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        measure(lengths=LADDER, data_dir=tmp_path / "other")


def test_one_step_is_what_the_linearised_model_does(measure):
    """To first order; of a wrong kernel, the error would be of order 1."""
    for row in measure(lengths=(2,), seeds=2, steps=1, step_size=1e-2)["rows"]:
        before, after = row["losses"]
        assert before == pytest.approx(row["linear_losses"][0], rel=1e-3)
        assert after < before
        assert max(row["error"].values()) < 0.1


def test_tokens_weigh_as_much_as_one_input_whatever_their_number(tiny):
    tokens = real_kernels.TokenPrefix(*jax.random.normal(jax.random.key(0), (2, 3, 40, 3, 4)))
    setting = real_kernels.Setting(tiny, *[None] * 4, tokens, 17.0, None, "")
    for M in (1, 10):
        outputs, start = real_kernels.with_prefix(setting, M, seed=0)
        log_weights = outputs.args[-1]["log_weights"]
        np.testing.assert_allclose(jnp.exp(log_weights).sum(axis=1), 17.0, rtol=1e-5)
        assert start["keys"].shape == (3, M, 3, 4)
        assert log_weights.shape == (3, M, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["minilm"], "expected --data-dir"),
        (["dinov2", "--rows", "5000"], "expected at least 10320 inputs of 4 classes, got"),
        (["dinov2", "--data-dir", "absent"], "absent"),
    ],
)
def test_errors(arguments, message, capsys, monkeypatch, tiny):
    monkeypatch.setattr(real_kernels, "load_dinov2", lambda: tiny)
    assert command(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": (4, 0)}, "expected lengths of at least 1 token, got 0"),
        ({"lengths": ()}, "expected lengths of at least 1 token, got none"),
        ({"seeds": 1}, "expected seeds of at least 2, got 1"),
        ({"steps": 0}, "expected steps of at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        KernelsConfig(**options)
