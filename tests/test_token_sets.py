"""Token sets of encoders, compressed: what is written, and that its errors are those of attention."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import nnx

from experiments import token_sets, token_sets_table
from experiments.token_sets import TokenSetsConfig, main
from ntkprefix.compress import METHODS
from ntkprefix.models import BlockConfig, TextConfig, TextModel, ViT, ViTConfig
from ntkprefix.prompts import compress_layers
from ntkprefix.runs import read_json

RANDOM = np.random.default_rng(0)
BLOCK = BlockConfig(width=12, heads=3, mlp_width=16)
INPUTS = {
    "dinov2": RANDOM.integers(256, size=(40, 8, 8, 3)).astype(np.uint8),
    "minilm": RANDOM.integers(1, 30, size=(40, 6)).astype(np.int32),
}


@pytest.fixture(scope="module")
def models():
    return {
        "dinov2": ViT(ViTConfig(patch=4, layers=2, grid=2, block=BLOCK), rngs=nnx.Rngs(0)),
        "minilm": TextModel(
            TextConfig(vocabulary=30, layers=2, block=BLOCK, positions=8, token_types=2, head="none"), rngs=nnx.Rngs(1)
        ),
    }


@pytest.fixture
def measure(monkeypatch, tmp_path, models):
    """`main` with a tiny model and few inputs."""
    monkeypatch.setattr(token_sets, "_loaded", lambda model, _: (models[model], INPUTS[model]))
    monkeypatch.setattr(token_sets, "PATH", tmp_path / "token_sets.json")
    monkeypatch.setattr(token_sets_table, "PATH", tmp_path / "token_sets.json")
    options = {
        "models": ("minilm",),
        "inputs": 8,
        "asking": 8,
        "others": 4,
        "seeds": 2,
        "methods": ("ends", "knorm"),
        "budgets": ("1x", "2x"),
    }
    return lambda **changes: main(TokenSetsConfig(data_dir=tmp_path, out=tmp_path / "pieces", **options | changes))


def test_rows(measure, tmp_path):
    results = measure()
    assert results == read_json(tmp_path / "token_sets.json")
    assert [(row["seed"], row["budget"], row["method"]) for row in results["rows"]] == [
        (seed, budget, method) for seed in (0, 1) for budget in ("1x", "2x") for method in ("ends", "knorm")
    ]
    for row in results["rows"]:
        assert row["tokens"] == 8 * 6
        assert np.mean(row["error_of_layers"]) == pytest.approx(row["error"], abs=1e-4)
        assert (row["error"] < 1e-5) == (row["budget"] == "1x")
    assert results["rows"] == measure()["rows"]  # from their pieces
    # The table has every method and size.
    first, _, *lines = token_sets_table.token_sets().splitlines()
    assert first == "| method | MiniLM, 1x | MiniLM, 2x | of matching's | coverage |"
    assert [line.split(" | ")[0] for line in lines[:2]] == ["| ends", "| knorm"]
    assert "(48 of 8 texts of agnews)" in lines[-1]
    options = "--models minilm --inputs 8 --asking 8 --others 4 --budgets 1x 2x --methods ends knorm --seeds 2"
    assert lines[-1].endswith(f"`python -m experiments.token_sets --data-dir FOLDER {options}`.")


def test_draws_have_no_input_twice(models, monkeypatch):
    seen = []
    monkeypatch.setattr(token_sets, "_tokens", lambda _, rows: seen.append(rows))
    model = type("Seen", (), {"observe": lambda _, rows, *__, **___: seen.append(rows)})()
    config = TokenSetsConfig(data_dir=".", inputs=12, asking=10, others=8)
    token_sets._set(lambda: (model, INPUTS["minilm"]), 3, config)
    assert [len(rows) for rows in seen] == [12, 10, 8]
    assert len(np.unique(np.concatenate(seen), axis=0)) == 30
    with pytest.raises(ValueError, match="expected at least 50 inputs, got 40"):
        token_sets._set(
            lambda: (model, INPUTS["minilm"]), 3, TokenSetsConfig(data_dir=".", inputs=32, others=8, asking=10)
        )


@pytest.mark.parametrize("model", INPUTS)
def test_errors_are_those_of_attention_beside_the_input_itself(model, models, measure):
    """In the first layer, by the oracle, from the model's own queries, keys and values."""
    config = TokenSetsConfig(data_dir=".", inputs=8, asking=8, others=4)
    ready = token_sets._set(lambda: (models[model], INPUTS[model]), 0, config)
    whole, _, asked = ready
    prefixes, _ = compress_layers(whole, ready.asked, method="ends", budget="4x", seed=0)
    drawn = np.random.default_rng(0).permutation(40)[16:20]

    def keep(query, key, value, **_):
        return query, key, value

    rows = token_sets._taken(jnp.asarray(INPUTS[model][drawn]))
    inputs = [np.asarray(array[0], np.float64) for array in models[model].observe(rows, keep, prefixes=whole)]
    first = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), (whole, prefixes))
    outputs = [
        oracle.attention(*inputs, prefix=oracle.tokens(part.keys, part.values, part.log_weights)) for part in first
    ]
    wanted = np.linalg.norm(outputs[1] - outputs[0], axis=-1) / np.linalg.norm(outputs[0], axis=-1)
    found = token_sets.errors_of_layers(whole, asked, prefixes)[0]
    np.testing.assert_allclose(found, wanted.reshape(found.shape), rtol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inputs": 0}, "expected inputs of at least 1, got 0"),
        ({"methods": ("ours",)}, "unknown method 'ours'; expected one of ends, "),
    ],
)
def test_errors(wrong, message):
    with pytest.raises(ValueError, match=f"token_sets: {message}"):
        TokenSetsConfig(data_dir=".", **wrong)


def test_all_methods_but_these_are_measured():
    assert set(METHODS) - set(TokenSetsConfig(data_dir=".").methods) == {
        "attention",
        "taylor",
        "fitted-elu",
        "fitted-favor",
    }
