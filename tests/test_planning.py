"""Plans of training steps: their formulas against compiled steps, real arrays and published sizes."""

import json
import re

import jax
import pytest
from flax import nnx
from simulated_devices import on_devices

from ntkprefix.adapters import FeatureAdapter, TokenAdapter, count
from ntkprefix.cli import main
from ntkprefix.commands.plan import MODELS, Config, cells, model_of, plans
from ntkprefix.models import BlockConfig, TextConfig, TextModel
from ntkprefix.planning import adapter_of, plan, weights_of

ALONE = {"data": 1, "tensor": 1, "prefix": 1}
STEP = {"batch_size": 8, "length": 16, "answer": 4}


def config(**changes):
    block = BlockConfig(width=16, heads=4, kv_heads=2, mlp_width=24, causal=True)
    return TextConfig(vocabulary=48, layers=2, block=block, **changes)


def test_formulas_are_what_compiled_steps_have():
    on_devices("planning_on_eight_devices.py", 8)


def test_bytes_are_those_of_arrays():
    model = nnx.jit(lambda: TextModel(config(), rngs=nnx.Rngs(0)))()
    step = plan(config(), TokenAdapter(length=6), ALONE, **STEP)
    assert step.bytes["weights"] == sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    assert step.bytes["adapter"] == 2 * (2 * 6 * 2 * 4) * 4
    assert step.bytes["optimiser"] == 4 * step.bytes["adapter"]
    assert step.exchanges == ()


def test_sizes_of_the_built_in_model():
    """8.03 billion parameters: the published weights have 8,030,261,248."""
    assert count(weights_of(model_of("llama-8b"))) == 8_030_261_248
    # R = H = Hv = 128, 32 heads in 32 layers: D, k, a scale, a centre and a value
    assert count(adapter_of(model_of("llama-8b"), FeatureAdapter())) == 32 * 32 * (128 * 128 + 128 + 1 + 128 + 128)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensor": 4}, "kv_heads to be a multiple of tensor=4, got 2"),
        ({"prefix": 4}, "length of the prefix to be a multiple of prefix=4, got 6"),
        ({"data": 16}, "batch_size that is a multiple of 16 devices along data x 1 rows at a time, got 8"),
    ],
)
def test_what_does_not_divide(changes, message):
    with pytest.raises(ValueError, match=message):
        plan(config(), TokenAdapter(length=6), ALONE | changes, **STEP)


@pytest.mark.parametrize("columns", ["20", "80", "200"])
def test_no_number_is_cut(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["plan"]) == 0
    shown = capsys.readouterr().out
    for name, row in plans(Config()):
        mesh, *numbers = cells(name, row)[2:]
        assert all(part in shown for part in (name, *mesh.split(","), *numbers))


def test_an_unknown_model_is_told_what_is_known(capsys):
    assert main(["plan", "--model", "llama-9b"]) == 2
    assert "llama-9b: expected llama-8b, or the config.json of a causal" in capsys.readouterr().err


def test_the_command(tmp_path, capsys):
    assert main(["plan", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["devices"] for row in rows] == [8, 64, 512] * 2
    tokens, states = rows[2], rows[5]
    # 2^20 tokens of 2 x 128 numbers, 8 heads and 32 layers, over 64 devices that share heads and tokens
    assert tokens["bytes"]["adapter"] == 4 * 2**20 * 256 * 8 * 32 // 64
    assert states["bytes"]["adapter"] < tokens["bytes"]["adapter"] / 500
    assert {exchange["axis"] for exchange in states["exchanges"]} == {"data", "tensor"}
    sizes = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"intermediate_size": 24, "vocab_size": 48}))
    options = ["--model", str(tmp_path), "--meshes", "data=2", "tensor=2", "--tokens", "64"]
    assert main(["plan", *options]) == 0
    assert "states" in capsys.readouterr().out
    for other in ("{}", '{"model_type": []}'):
        (tmp_path / "config.json").write_text(other)
        assert main(["plan", *options]) == 2
        assert f"{tmp_path / 'config.json'}: expected " in capsys.readouterr().err


def test_usual_meshes_that_do_not_suit_a_model_are_told(tmp_path):
    config = {**MODELS["llama-8b"], "num_attention_heads": 5, "num_key_value_heads": 5, "hidden_size": 20}
    (tmp_path / "config.json").write_text(json.dumps(config))
    told = "expected the kv_heads to be a multiple of tensor=8, got 5."
    with pytest.raises(ValueError, match=re.escape(f"{told} Give --meshes that suit the model")):
        plans(Config(model=str(tmp_path)))
    with pytest.raises(ValueError, match=f"{re.escape(told)}$"):
        plans(Config(model=str(tmp_path), meshes=("tensor=8",)))
