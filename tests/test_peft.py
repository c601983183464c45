"""PEFT's adapter files: read as PEFT reads them, written as PEFT writes them, refused where they say something else."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from places import GOLDEN
from safetensors.numpy import load_file, save_file

from ntkprefix.adapters import FullAdapter, LoraAdapter, TokenAdapter
from ntkprefix.adapters.peft import load_peft, save_peft
from ntkprefix.models import BlockConfig, TextConfig, TextModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CASES = (
    "lora_llama", "lora_rslora", "lora_qwen2", "lora_gpt2", "lora_gpt2_attention", "lora_bert", "lora_glm",
    "prefix_llama", "prefix_gpt2", "prefix_projected",
)  # fmt: skip
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "peft_tiny.npz") as file:
        return {key: file[key] for key in file.files}


def write_theirs(folder, golden, case):
    """The two files, byte for byte as PEFT wrote them."""
    folder.mkdir(exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        (folder / name).write_bytes(golden[f"{case}/{name}"].tobytes())
    return folder


@nnx.jit
def states(model, tokens, changes, positions):
    hidden = model(tokens, adapter=changes, positions=positions)
    return hidden if model.config.head == "none" else model.logits(hidden)


def run(model, tokens, adapter, params, *, behind=True):
    """Behind a prefix of M tokens the input's positions start at M, in PEFT."""
    start = adapter.length if isinstance(adapter, TokenAdapter) and behind else 0
    positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1])[None], tokens.shape)
    return states(model, jnp.asarray(tokens, jnp.int32), adapter.adapt(params), positions)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def leave_for_peft(folder, model_name, model, tokens, adapter, params):
    """What `golden/make_peft.py` needs to compare PEFT with us on files that we wrote."""
    np.savez(folder / "ours.npz", model=model_name, tokens=tokens, out=run(model, tokens, adapter, params))


@pytest.mark.parametrize("case", CASES)
def test_equals_peft_and_writes_its_tensors(case, golden, loaded, tmp_path):
    name, tokens, out = (golden[f"{case}/{key}"] for key in ("model", "tokens", "out"))
    model, theirs = loaded(str(name)), write_theirs(tmp_path / "theirs", golden, case)
    adapter, params = load_peft(theirs, model)
    close(run(model, tokens, adapter, params), out)
    # The adapter is not a detail, nor is where its input stands.
    assert np.abs(run(model, tokens, adapter, jax.tree.map(jnp.zeros_like, params)) - out).max() > 0.5
    if case.startswith("prefix"):
        assert np.abs(run(model, tokens, adapter, params, behind=False) - out).max() > 0.01

    model_type = "glm" if name == "glm" else None
    ours = save_peft(tmp_path / case, adapter, params, model, base_model="some/model", model_type=model_type)
    written, wanted = load_file(ours / WEIGHTS), load_file(theirs / WEIGHTS)
    # Our encoders do without the pooler.
    wanted = {key: tensor for key, tensor in wanted.items() if "pooler" not in key}
    assert written.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert written[key].dtype == tensor.dtype
        np.testing.assert_array_equal(written[key], tensor, err_msg=key)
    options, their_options = (json.loads((folder / CONFIG).read_text()) for folder in (ours, theirs))
    assert options["base_model_name_or_path"] == "some/model"
    for key in ("peft_type", "task_type", "r", "num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim"):
        assert options.get(key) == their_options.get(key), key
    leave_for_peft(ours, name, model, tokens, adapter, params)


def random_lora(model, **options):
    adapter = LoraAdapter(**options)
    params = {}
    for target in adapter.targets:
        part = model.blocks.attention if hasattr(model.blocks.attention, target) else model.blocks.mlp
        layers, inputs, outputs = getattr(part, target).kernel.shape
        down, up = ((layers, inputs, adapter.rank), (layers, adapter.rank, outputs))
        params[target] = {
            "down": jnp.asarray(0.4 * RNG.standard_normal(down), jnp.float32),
            "up": jnp.asarray(0.4 * RNG.standard_normal(up), jnp.float32),
        }
    return adapter, params


OURS = {
    # Matrices that PyTorch keeps as one, each with a `down` of its own: side by side, with as many times the rank.
    "gpt2": (("query", "value", "out"), 4, {"c_attn", "attn.c_proj"}),
    "glm": (("query", "gate", "up"), 4, {"q_proj", "gate_up_proj"}),
    "chatglm": (("key", "value", "gate", "down"), 4, {"query_key_value", "dense_h_to_4h", "dense_4h_to_h"}),
    # What each of these modules is called is how another one ends.
    "bert": (("query", "down"), 2, r".*\.\d+\.(attention\.self\.query|output\.dense)"),
    "llama": (("up", "out"), 2, {"o_proj", "up_proj"}),
}


@pytest.mark.parametrize("name", OURS)
def test_adapters_trained_here_keep_their_outputs(name, golden, loaded, tmp_path):
    targets, rank, modules = OURS[name]
    model, tokens = loaded(name), golden["lora_llama/tokens"]
    adapter, params = random_lora(model, rank=2, alpha=3.0, targets=targets)
    model_type = name if "glm" in name else None
    folder = save_peft(tmp_path / name, adapter, params, model, model_type=model_type)
    options = json.loads((folder / CONFIG).read_text())
    assert (options["r"], options["lora_alpha"]) == (rank, 3 * rank / 2)
    asked = options["target_modules"]
    assert (set(asked) if isinstance(asked, list) else asked) == modules
    again, loaded_params = load_peft(folder, model)
    assert set(again.targets) >= set(targets)
    before = run(model, tokens, adapter, params)
    np.testing.assert_allclose(run(model, tokens, again, loaded_params), before, atol=2e-5, rtol=0)
    assert np.abs(before - run(model, tokens, adapter, jax.tree.map(jnp.zeros_like, params))).max() > 0.1
    if name != "chatglm":  # its authors' code runs on old transformers alone
        leave_for_peft(folder, name, model, tokens, adapter, params)


def test_modules_of_a_model_with_a_head_of_another_kind(golden, loaded, tmp_path):
    """BERT below a classifier lies one module deeper than BERT alone."""
    folder = write_theirs(tmp_path, golden, "lora_bert")
    alone = load_peft(folder, loaded("bert"))
    tensors = load_file(folder / WEIGHTS)
    start = "base_model.model."
    deeper = {key.replace(start, f"{start}bert."): tensor for key, tensor in tensors.items()}
    assert deeper.keys() != tensors.keys()
    save_file(deeper, folder / WEIGHTS)
    below = load_peft(folder, loaded("bert"))
    assert below[0] == alone[0]
    jax.tree.map(np.testing.assert_array_equal, below[1], alone[1])


def test_half_precision_is_read(golden, loaded, tmp_path):
    folder = write_theirs(tmp_path, golden, "prefix_llama")
    tensors = load_file(folder / WEIGHTS)
    save_file({key: tensor.astype(jnp.bfloat16) for key, tensor in tensors.items()}, folder / WEIGHTS)
    params = load_peft(folder, loaded("llama"))[1]
    assert params["keys"].dtype == jnp.float32
    np.testing.assert_allclose(params["keys"][0, 0, 0], tensors["prompt_embeddings"][0, :6], rtol=0.01)


# What a configuration says in place of PEFT's, and what is said of it.
OPTIONS = {
    "unknown type": ("lora_llama", {"peft_type": "IA3"}, "peft_type to be one of LORA, PREFIX_TUNING, got 'IA3'"),
    "no type": ("lora_llama", {"peft_type": None}, "expected the key 'peft_type', found none"),
    "dora": ("lora_llama", {"use_dora": True}, "expected use_dora to be off, got True"),
    "bias": ("lora_llama", {"bias": "all"}, "expected bias = 'none', got 'all'"),
    "lora_bias": ("lora_llama", {"lora_bias": True}, "expected lora_bias to be off"),
    "ranks": ("lora_llama", {"rank_pattern": {"q_proj": 2}}, r"expected rank_pattern to be off, got {'q_proj': 2}"),
    "alphas": ("lora_llama", {"alpha_pattern": {"q_proj": 2}}, "expected alpha_pattern to be off"),
    "modules": ("lora_bert", {"modules_to_save": ["classifier"]}, "expected modules_to_save to be off"),
    "prefix modules": ("prefix_gpt2", {"modules_to_save": ["score"]}, "expected modules_to_save to be off"),
    "layers": ("lora_llama", {"layers_to_transform": [1]}, "expected layers_to_transform to be off"),
    "copies": ("lora_llama", {"layer_replication": [[0, 2], [1, 2]]}, "expected layer_replication to be off"),
    "tokens": ("lora_llama", {"trainable_token_indices": [1]}, "expected trainable_token_indices to be off"),
    "parameters": ("lora_llama", {"target_parameters": ["experts"]}, "expected target_parameters to be off"),
    "pissa": ("lora_llama", {"init_lora_weights": "pissa"}, "init_lora_weights to be one of True, .*, got 'pissa'"),
    "a later option": ("lora_llama", {"use_wings": {"on": 1}}, "expected use_wings to be off, got {'on': 1}"),
    "a long option": ("lora_llama", {"use_wings": list(range(9999))}, r"got \[0, 1, 2, 3, 4, 5, \.\.\.\]: it"),
    "no rank": ("lora_llama", {"r": 0}, "expected r to be an integer from 1 to 1,000,000, got 0"),
    "rank in words": ("lora_llama", {"r": "3"}, "expected r to be an integer from 1 to 1,000,000, got '3'"),
    "no alpha": ("lora_llama", {"lora_alpha": None}, "expected the key 'lora_alpha', found none"),
    "alpha NaN": ("lora_llama", {"lora_alpha": float("nan")}, "lora_alpha to be a finite number above 0, got nan"),
    "rslora in words": ("lora_llama", {"use_rslora": "no"}, "expected use_rslora to be true or false, got 'no'"),
    "targets": ("lora_llama", {"target_modules": {"q_proj": 1}}, r"expected target_modules to be names .*got {'q_proj"),
    "targets of numbers": ("lora_llama", {"target_modules": [1]}, r"expected target_modules to be names .*got \[1\]"),
    "heads": ("prefix_llama", {"num_attention_heads": 6}, "num_attention_heads = 2, as the model has, got 6"),
    "width": ("prefix_llama", {"token_dim": 24}, "token_dim = 12, as the model has, got 24"),
    "depth": ("prefix_llama", {"num_layers": 3}, "num_layers = 2, as the model has, got 3"),
    "decoder": ("prefix_llama", {"num_transformer_submodules": 2}, "num_transformer_submodules = 1, .* got 2"),
    "length": ("prefix_llama", {"num_virtual_tokens": -1}, "num_virtual_tokens to be an integer from 1"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_are_not_ours_are_named(case, golden, loaded, tmp_path):
    of, changes, message = OPTIONS[case]
    folder = write_theirs(tmp_path, golden, of)
    content = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as raised:
        load_peft(folder, loaded(str(golden[f"{of}/model"])))
    assert str(raised.value).startswith(str(folder / CONFIG))


Q_A, Q_B = (f"base_model.model.model.layers.1.self_attn.q_proj.lora_{half}.weight" for half in "AB")
PROMPT = "prompt_embeddings"


def without(tensors, *parts):
    return {name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)}


TENSORS = {
    "one missing": ("lora_llama", lambda t: without(t, Q_A), rf"1 missing:\n  {Q_A} \[3, 24\]"),
    "a layer missing": (
        "lora_llama",
        lambda t: without(t, "layers.0"),
        r"14 missing:\n  .*layers\.0\.mlp\.down_proj\.lora_A",
    ),
    "a target missing": ("lora_llama", lambda t: without(t, "q_proj"), rf"4 missing:\n.*\n  {Q_A} \[3, 24\]"),
    "a layer too many": (
        "lora_llama",
        lambda t: t | {Q_A.replace("1", "2", 1): t[Q_A]},
        r"1 unknown:\n  base_model\.model\.model\.layers\.2",
    ),
    "the head": (
        "lora_llama",
        lambda t: t | {"base_model.model.lm_head.lora_A.weight": t[Q_A]},
        r"1 unknown:\n  base_model\.model\.lm_head\.lora_A",
    ),
    "another rank": (
        "lora_llama",
        lambda t: t | {Q_A: t[Q_A][:2], Q_B: t[Q_B][:, :2]},
        rf"2 of another shape:\n  {Q_A}: expected \[3, 24\], found \[2, 24\]\n  {Q_B}: expected \[36, 3\], found",
    ),
    "the wrong way round": (
        "lora_llama",
        lambda t: t | {Q_A: np.ascontiguousarray(t[Q_A].T)},
        rf"{Q_A}: expected \[3, 24\], found \[24, 3\]",
    ),
    "a scalar": ("lora_llama", lambda t: t | {Q_A: np.ones((), "f4")}, rf"{Q_A}: expected \[3, 24\], found \[\]"),
    "NaN": ("lora_llama", lambda t: t | {Q_A: t[Q_A] + np.nan}, f"expected finite numbers as {Q_A}"),
    "infinity": ("prefix_llama", lambda t: {PROMPT: t[PROMPT] / 0.0}, "expected finite numbers as prompt_embeddings"),
    "integers": ("lora_llama", lambda t: t | {Q_A: t[Q_A].astype("i4")}, f"floating-point numbers as {Q_A}, got int32"),
    "nothing": ("lora_llama", lambda _: {}, r"such as .*layers\.0\.self_attn\.q_proj, found the tensors none"),
    "a prefix for LoRA": (
        "lora_llama",
        lambda t: {PROMPT: t[Q_A]},
        "expected updates of matrices that the model has, such as .*, found the tensors prompt_embeddings",
    ),
    "LoRA for a prefix": ("prefix_llama", lambda _: {Q_A: np.ones((3, 24), "f4")}, r"1 missing:\n  prompt_embeddings"),
    "a length": (
        "prefix_llama",
        lambda t: {PROMPT: t[PROMPT][:2]},
        r"prompt_embeddings: expected \[5, 48\], found \[2, 48\]",
    ),
    "a third axis": ("prefix_llama", lambda t: {PROMPT: t[PROMPT][None]}, r"expected \[5, 48\], found \[1, 5, 48\]"),
    "part of a fused": (
        "lora_gpt2",
        lambda t: {name: tensor[:20] if "c_attn.lora_B" in name else tensor for name, tensor in t.items()},
        r"c_attn\.lora_B\.weight: expected \[60, 3\], found \[20, 3\]",
    ),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("case", TENSORS)
def test_tensors_of_another_adapter_are_named(case, golden, loaded, tmp_path):
    of, change, message = TENSORS[case]
    folder = write_theirs(tmp_path, golden, of)
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    with pytest.raises(ValueError, match=message) as raised:
        load_peft(folder, loaded(str(golden[f"{of}/model"])))
    assert str(raised.value).startswith(str(folder / WEIGHTS))


def test_another_architecture_s_adapter_is_refused(golden, loaded, tmp_path):
    folder = write_theirs(tmp_path, golden, "lora_bert")
    with pytest.raises(ValueError, match=r"transformer\.h\.0\.attn\.c_attn, found the tensors base_model\.model\.enc"):
        load_peft(folder, loaded("gpt2"))


FILES = {
    "no JSON": (CONFIG, lambda content: content[:-3], "expected a JSON object"),
    "a list": (CONFIG, lambda _: b"[1]", "expected a JSON object"),
    "an empty one": (CONFIG, lambda _: b"{}", "expected the key 'peft_type', found none"),
    "nested deep": (CONFIG, lambda _: b'{"a":' * 9999 + b"1" + b"}" * 9999, "expected a JSON object"),
    "nested": (
        CONFIG,
        lambda content: content[:-1] + b', "a":' + b"[" * 800 + b"]" * 800 + b"}",
        "expected a to be off",
    ),
    "empty": (WEIGHTS, lambda _: b"", "not a whole safetensors file"),
    "cut short": (WEIGHTS, lambda content: content[:-9], "not a whole safetensors file"),
    "pickled": (WEIGHTS, lambda content: b"\x80\x04\x95" + content, "not a whole safetensors file"),
}


@pytest.mark.parametrize("case", FILES)
def test_damaged_files_are_named(case, golden, loaded, tmp_path):
    name, change, message = FILES[case]
    folder = write_theirs(tmp_path, golden, "prefix_llama")
    content = (folder / name).read_bytes().rstrip() if name == CONFIG else (folder / name).read_bytes()
    (folder / name).write_bytes(change(content))
    with pytest.raises(ValueError, match=message) as raised:
        load_peft(folder, loaded("llama"))
    assert str(raised.value).startswith(str(folder / name))
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}: expected an adapter's file, found nothing"):
        load_peft(folder, loaded("llama"))


OUT = {"down": jnp.ones((2, 20, 2)), "up": jnp.ones((2, 2, 20))}
LORA, PARAMS = LoraAdapter(rank=2, targets=("out",)), {"out": OUT}
TOKENS = {"keys": jnp.ones((2, 3, 5, 4)), "values": jnp.ones((2, 2, 5, 4))}
WRITING = {
    "another adapter": (FullAdapter(), PARAMS, "expected a LoraAdapter or TokenAdapter, got FullAdapter"),
    "no gate": (LoraAdapter(targets=("gate",)), PARAMS, "got 'gate': its MLPs have no gate"),
    "one half": (LORA, {"out": {"up": OUT["up"]}}, r"arrays of LoraAdapter, out\.down, out\.up, got out\.up\."),
    "a rank": (LoraAdapter(rank=3, targets=("out",)), PARAMS, r"out\.down .* with L = 2, out_in = 20, r = 3, got out"),
    "a width": (LORA, {"out": OUT | {"down": jnp.ones((2, 9, 2))}}, r"with .*out_in = 20.*got out\.down \(2, 9, 2\)"),
    "integers": (
        LORA,
        {"out": OUT | {"up": jnp.ones((2, 2, 20), int)}},
        r"floating-point numbers as out\.up, got int32",
    ),
    "NaN": (LORA, {"out": OUT | {"up": OUT["up"] * jnp.nan}}, r"finite numbers as out\.up"),
    "tokens": (TokenAdapter(length=2), TOKENS, r"keys \[L, M, K, H\] with L = 2, M = 2, K = 5, .*keys \(2, 3, 5, 4\)"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", WRITING)
def test_what_cannot_be_written_is_an_error(case, loaded, tmp_path):
    adapter, params, message = WRITING[case]
    kind = TypeError if case == "another adapter" else ValueError
    with pytest.raises(kind, match=message):
        save_peft(tmp_path / "none", adapter, params, loaded("gpt2"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("name", "model_type", "message"),
    [
        ("glm", None, "expected model_type, one of chatglm, glm, got None"),
        ("glm", "llama", "as model_type one of chatglm, glm, got 'llama'"),
        ("gpt2", "opt", "as model_type one of gpt2, got 'opt'"),
    ],
)
def test_architectures_that_do_not_fit_are_errors(name, model_type, message, loaded, tmp_path):
    adapter, params = random_lora(loaded(name), rank=2, targets=("out",))
    with pytest.raises(ValueError, match=message):
        save_peft(tmp_path, adapter, params, loaded(name), model_type=model_type)


@pytest.mark.usefixtures("unchecked")
def test_only_text_models_have_these_files(tmp_path):
    with pytest.raises(TypeError, match="load_peft: expected a TextModel, got str"):
        load_peft(tmp_path, "llama")
    with pytest.raises(TypeError, match="save_peft: expected a TextModel, got NoneType"):
        save_peft(tmp_path, LORA, PARAMS, None)


def test_models_of_no_known_architecture_are_errors(tmp_path):
    block = BlockConfig(width=6, heads=2, mlp_width=8, qk_norm=True)
    model = nnx.eval_shape(lambda: TextModel(TextConfig(vocabulary=5, layers=1, block=block), rngs=nnx.Rngs(0)))
    adapter, params = random_lora(model, rank=1, targets=("up",))
    with pytest.raises(ValueError, match="one that has this model's parameters, which none has, got None"):
        save_peft(tmp_path, adapter, params, model)
