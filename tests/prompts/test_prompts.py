"""A compressed prompt stands where the prompt stood: read, asked, compressed, distilled, generated from."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny_gguf import write_gguf
from models.tiny_text import golden
from safetensors.numpy import load_file
from simulated_devices import on_devices

from experiments.documents import COMPRESSION
from ntkprefix import TokenPrefix, attention
from ntkprefix.adapters import own_tokens
from ntkprefix.compress import KeepEnds, Matching
from ntkprefix.models import generate
from ntkprefix.prompts import (
    calibrate,
    compress_prompt,
    distil,
    load_prompt,
    read_prompt,
    save_prompt,
)
from ntkprefix.prompts.layers import judge_layers
from ntkprefix.prompts.precision import rounded
from ntkprefix.train import TrainConfig

MODELS = ("llama", "qwen3", "glm", "gpt2")


def text_of(name):
    """A row of the golden file's tokens, long enough for a prompt of 7 and what follows."""
    return jnp.asarray(golden(name)["tokens"], jnp.int32)[:1]


@pytest.mark.parametrize("name", MODELS)
def test_chunks_read_what_the_whole_forward_computes(name, loaded):
    model, tokens = loaded(name), text_of(name)[:, :7]
    whole = own_tokens(model, tokens)
    for chunk in (3, 7, 512):
        seen = []
        read = read_prompt(model, tokens, chunk=chunk, on_chunk=seen.append)
        np.testing.assert_allclose(read.keys, whole.keys, atol=2e-5, err_msg=f"{chunk} at a time")
        np.testing.assert_allclose(read.values, whole.values, atol=2e-5, err_msg=f"{chunk} at a time")
        assert seen[-1] == 7
        assert len(seen) == -(-7 // chunk)


@pytest.mark.parametrize("name", MODELS)
def test_behind_a_prompt_s_own_tokens_a_model_goes_on_as_behind_the_prompt(name, loaded):
    model, tokens = loaded(name), text_of(name)
    prefix = read_prompt(model, tokens[:, :7])
    expected = generate(model, tokens, 4).tokens
    np.testing.assert_array_equal(generate(model, tokens[:, 7:], 4, prefixes=prefix, start=7).tokens, expected)
    # Whether the position matters can be told: at 0 the states are others.
    positions = jnp.arange(tokens.shape[1] - 7)[None]
    states = [model(tokens[:, 7:], prefixes=prefix, positions=positions + start) for start in (0, 7)]
    assert jnp.abs(states[0] - states[1]).max() > 1e-2
    np.testing.assert_allclose(states[1], model(tokens)[:, 7:], atol=5e-5, rtol=1e-3)


def test_every_row_starts_where_its_own_prompt_ends(loaded):
    model, tokens = loaded("llama"), text_of("llama")
    ends = (5, 8)
    prefixes = [read_prompt(model, tokens[:, :end]) for end in ends]
    # Of the shorter one, tokens that weigh nothing fill its row up.
    filled = [
        jax.tree.map(lambda leaf, end=end: jnp.pad(leaf, ((0, 0), (0, 8 - end), (0, 0), (0, 0))), each)
        for each, end in zip(prefixes, ends, strict=True)
    ]
    keys, values = (jnp.stack([getattr(each, part) for each in filled], axis=1) for part in ("keys", "values"))
    weights = jnp.stack([jnp.where(jnp.arange(8) < end, 0.0, -jnp.inf) for end in ends])[None, :, :, None]
    together = TokenPrefix(keys, values, jnp.broadcast_to(weights, keys.shape[:-1]))
    texts = jnp.concatenate([tokens[:, 5:7], tokens[:, 8:10]])
    made = generate(model, texts, 4, prefixes=together, start=jnp.array(ends)).tokens
    for row, end in enumerate(ends):
        np.testing.assert_array_equal(made[row], generate(model, tokens[:, : end + 2], 4).tokens[0])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_texts_ask_and_what_they_see_beside_the_prompt(name, loaded):
    model, tokens = loaded(name), text_of(name)
    whole = read_prompt(model, tokens[:, :7])
    asked = calibrate(model, tokens[:, 7:], whole, start=7)
    layers, length = whole.keys.shape[0], tokens.shape[1] - 7

    def look(query, key, value, **options):
        return query, attention(query, key, value, **options)

    queries, outputs = model.observe(tokens, look)
    assert asked.queries.shape[:2] == (layers, length)
    np.testing.assert_allclose(asked.queries, queries[:, 0, 7:], atol=2e-5)
    answers = jax.vmap(lambda prefix, query: prefix.partial(query[None], query.shape[-1] ** -0.5))
    shares = answers(whole, asked.queries)
    for layer in range(layers):
        share, beside = jax.tree.map(lambda leaf, at=layer: leaf[at], (shares, asked.beside))
        # By hand: both shares against one largest exponent.
        scales = np.stack([share.log_scale[0], beside.log_scale]).astype(float)
        factors = np.exp(scales - scales.max(axis=0))
        num = factors[0][..., None] * share.num[0] + factors[1][..., None] * beside.num
        den = factors[0] * share.den[0] + factors[1] * beside.den
        np.testing.assert_allclose(num / den[..., None], outputs[layer, 0, 7:], atol=2e-5)


def test_a_budget_of_everything_loses_nothing(loaded):
    model, tokens = loaded("llama"), text_of("llama")
    told = []
    options = {"texts": "repeat", "on_step": lambda *step: told.append(step)}
    small = compress_prompt(model, tokens, method="ends", budget="1x", **options)
    whole = read_prompt(model, tokens)
    np.testing.assert_array_equal(small.prefixes.keys, whole.keys)
    np.testing.assert_array_equal(small.prefixes.values, whole.values)
    assert small.start == tokens.shape[1]
    assert float(small.report.error.max()) < 1e-4
    assert {what for what, *_ in told} == {"reading", "asking", "compressing"}
    assert told[-1] == ("compressing", whole.keys.shape[0], whole.keys.shape[0])


@pytest.mark.parametrize("method", ["elu", "taylor", "favor", "fitted-elu", "measure"])
def test_a_budget_without_room_for_a_method_is_told_before_anything_is_read(method, loaded):
    model, tokens = loaded("llama"), text_of("llama")
    told = []
    with pytest.raises(ValueError, match="larger budget"):
        compress_prompt(model, tokens, method=method, budget="1 tokens", on_step=lambda *step: told.append(step))
    assert told == []


def test_less_is_less_exact_and_counts_bytes_of_all_layers(loaded):
    model, tokens = loaded("llama"), text_of("llama")
    layers, length, heads, width = read_prompt(model, tokens).keys.shape
    texts = jnp.asarray(np.random.default_rng(0).integers(golden("llama")["tokens"].max(), size=(8, 12)), jnp.int32)
    options = {"method": Matching(in_context=True), "texts": texts}
    errors = [float(compress_prompt(model, tokens, budget=b, **options).report.error.mean()) for b in ("1.5x", "4x")]
    assert errors[0] < errors[1]
    half = compress_prompt(model, tokens, method=KeepEnds(), budget=f"{layers * heads * length * width * 4} B")
    assert half.prefixes.keys.shape == (layers, length // 2, heads, width)


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("distilled", [False, True])
def test_small_integers_are_counted_rounded_and_reported(distilled, bits, loaded, tmp_path):
    """As many bytes hold more tokens, and the report is about the tokens that a file gives back."""
    model, tokens = loaded("llama"), text_of("llama")
    texts = jnp.asarray(np.random.default_rng(0).integers(golden("llama")["tokens"].max(), size=(8, 12)), jnp.int32)
    config = TrainConfig(epochs=2, batch_size=3, learning_rate=0.05, weight_decay=0.0) if distilled else None
    how = {"method": "matching", "share": "need", "texts": texts, "distil": config}
    half, narrow = (compress_prompt(model, tokens, budget="1100 B", dtype=dtype, **how) for dtype in ("float16", bits))
    whole = read_prompt(model, tokens)
    for small, dtype in ((half, "float16"), (narrow, bits)):
        stored = load_file(save_prompt(tmp_path / dtype, small.prefixes, small.start, dtype=dtype))
        held = sum(array.nbytes for name, array in stored.items() if not name.endswith("counts"))
        assert held <= 1100
        assert 2 * (whole.keys.size + whole.values.size) / small.report.ratio == pytest.approx(held, rel=0.01)
    counts = [np.sum(~np.isneginf(small.prefixes.log_weights)) for small in (half, narrow)]
    assert counts[1] > counts[0]
    back = load_prompt(tmp_path / bits).prefixes
    again = judge_layers(back, whole, calibrate(model, texts[6:], whole, start=tokens.shape[1]))
    np.testing.assert_allclose(again.error, narrow.report.error, rtol=1e-3)


def test_small_integers_are_for_methods_that_make_tokens(loaded, unchecked):
    model, tokens = loaded("llama"), text_of("llama")
    told = []
    for dtype, error in (("int8", None), ("int4", 0.5)):
        with pytest.raises(ValueError, match=r"needs? a method that makes tokens, got 'elu'"):
            compress_prompt(model, tokens, method="elu", budget="1x", dtype=dtype, error=error, on_step=told.append)
    with pytest.raises(ValueError, match="unknown dtype 'int2'"):
        compress_prompt(
            model, tokens, method="ends", budget="1x", dtype="int2", on_step=lambda *step: told.append(step)
        )
    assert told == []


def test_one_text_is_enough_to_share_by_effect(loaded):
    model, tokens = loaded("llama"), text_of("llama")
    how = {"method": "matching", "budget": 4, "texts": tokens[:, :9]}
    shared = compress_prompt(model, tokens, share="effect", **how)
    assert shared.report.held_out == 2
    assert bool(jnp.isfinite(shared.report.error).all())


def test_distilling_starts_at_the_divergence_and_lowers_it(loaded):
    model, tokens = loaded("llama"), text_of("llama")
    whole = read_prompt(model, tokens)
    texts = np.random.default_rng(0).integers(golden("llama")["tokens"].max(), size=(8, 6)).astype(np.int32)
    small = compress_prompt(model, tokens, method="kmeans", budget=4, texts=jnp.asarray(texts))
    config = TrainConfig(epochs=40, batch_size=6, learning_rate=0.05, weight_decay=0.0)
    taught = texts[:6]  # the last quarter is held out
    trained, losses = distil(model, small.prefixes, whole, jnp.asarray(taught), start=small.start, config=config)

    def said(prefixes):
        positions = jnp.broadcast_to(small.start + jnp.arange(6)[None], taught.shape)
        logits = np.asarray(
            model.logits(model(jnp.asarray(taught), prefixes=prefixes, positions=positions)), np.float64
        )
        logits = logits - logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    wanted = said(whole)

    def divergence(prefixes):
        return (np.exp(wanted) * (wanted - said(prefixes))).sum(axis=-1).mean()

    assert losses[0] == pytest.approx(divergence(small.prefixes), rel=1e-3)
    assert divergence(trained) < 0.5 * losses[0]
    again = compress_prompt(model, tokens, method="kmeans", budget=4, texts=jnp.asarray(texts), distil=config)
    np.testing.assert_allclose(again.prefixes.keys, trained.keys, atol=1e-5)
    assert again.report.held_out == small.report.held_out == 12
    assert (again.report.error != small.report.error).all()


def test_distilling_what_will_be_rounded(loaded):
    """Trained as it will be stored, it is nearer to the prompt than if it is rounded when all is done."""
    model, tokens = loaded("llama"), text_of("llama")
    whole = read_prompt(model, tokens)
    texts = jnp.asarray(np.random.default_rng(0).integers(golden("llama")["tokens"].max(), size=(6, 6)), jnp.int32)
    start, config = tokens.shape[1], TrainConfig(epochs=100, batch_size=6, learning_rate=0.02, weight_decay=0.0)
    # All of the prompt, so that rounding is all that is wrong, and a token that is not there.
    more = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:, :1]], axis=1), whole)
    gone = np.broadcast_to(np.arange(start + 1)[:, None] >= start, more.keys.shape[:3])
    small = TokenPrefix(more.keys, more.values, jnp.where(gone, -jnp.inf, 0.0))
    how = {"start": start, "config": config}
    after = rounded(distil(model, small, whole, texts, **how)[0], "int4")
    through, losses = distil(model, small, whole, texts, dtype="int4", **how)
    np.testing.assert_array_equal(np.isneginf(through.log_weights), gone)
    np.testing.assert_allclose(rounded(through, "int4").keys, through.keys, atol=1e-5)
    still = TrainConfig(epochs=1, batch_size=6, learning_rate=1e-9, weight_decay=0.0)
    ends = [distil(model, each, whole, texts, start=start, config=still)[1][0] for each in (after, through)]
    assert losses[0] == pytest.approx(
        distil(model, rounded(small, "int4"), whole, texts, start=start, config=still)[1][0], rel=1e-4
    )
    assert ends[1] < 0.8 * ends[0]


@pytest.mark.parametrize("shape", [(2, 5), (1, 0)])
def test_prompts_that_cannot_be_read(shape, loaded, unchecked):
    with pytest.raises(ValueError, match="expected one prompt of at least one token"):
        read_prompt(loaded("llama"), jnp.zeros(shape, jnp.int32))


def test_an_encoder_has_no_prompts(loaded):
    with pytest.raises(ValueError, match="expected a causal model"):
        compress_prompt(loaded("bert"), jnp.ones((1, 5), jnp.int32), method="ends", budget="2x")


def test_reading_compiles_one_program_for_all_chunks(loaded, compiled):
    model = loaded("llama")
    for length in (6, 8):  # both are two chunks of four
        read_prompt(model, text_of("llama")[:, :length], chunk=4)
    assert compiled.count("_read") == 1


def test_the_page_s_snippet_runs(loaded, tmp_path, monkeypatch):
    """What `docs/compression.md` shows can be typed."""
    monkeypatch.chdir(tmp_path)
    tokens = text_of("llama")
    names = {"model": loaded("llama"), "tokens": jnp.tile(tokens, 6), "request": tokens[:, :3]}
    exec(re.findall(r"```python\n(.*?)```", COMPRESSION.read_text(encoding="utf-8"), re.DOTALL)[0], names)
    assert names["out"].tokens.shape == (1, 64)
    np.testing.assert_array_equal(names["stored"].prefixes.keys, names["small"].prefixes.keys)


@pytest.mark.slow
def test_the_command_on_a_mesh(tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("ab a b " * 40)
    on_devices("compress_on_two_devices.py", 2, str(write_gguf(tmp_path / "m.gguf")), str(prompt), str(tmp_path))
