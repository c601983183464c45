"""Prompts beside one another: every row of a batch goes on as it does behind its own prompt alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models.tiny_text import golden

from ntkprefix import FeaturePrefix, JoinedPrefix, MeasurePrefix, TokenPrefix, feature_map
from ntkprefix.cli import main
from ntkprefix.commands import generate as command
from ntkprefix.fingerprints import of_model
from ntkprefix.models import generate
from ntkprefix.models.tokenizers import pad
from ntkprefix.prompts import JoinedPrompt, batch_prompts, packed, read_prompt, save_prompt
from ntkprefix.prompts.precision import rounded

LAYERS, KV_HEADS, HEADS, WIDTH = 2, 2, 4, 4
RNG = np.random.default_rng(0)


def tokens(length, weighted=False, kv_heads=KV_HEADS):
    keys, values = jnp.asarray(RNG.standard_normal((2, LAYERS, length, kv_heads, WIDTH)), jnp.float32)
    return TokenPrefix(keys, values, jnp.full(keys.shape[:-1], -0.5) if weighted else None)


def clouds(count):
    made = jax.vmap(lambda layer: MeasurePrefix.from_tokens(layer.keys, layer.values, components=count, rank=1))
    return made(tokens(8))


def state():
    keys, values = jnp.asarray(RNG.standard_normal((2, LAYERS, 9, HEADS, WIDTH)), jnp.float32)
    return jax.vmap(lambda *layer: FeaturePrefix.from_tokens(*layer, feature_map=feature_map("elu")))(keys, values)


ROWS = {
    "tokens of one length": (tokens(5), tokens(5)),
    "tokens of two lengths": (tokens(5), tokens(3)),
    "weighted and not": (tokens(5, weighted=True), tokens(5)),
    "clouds of two numbers": (clouds(2), clouds(3)),
    "states": (state(), state()),
    "joined": (JoinedPrefix((tokens(2), state())), JoinedPrefix((tokens(4), state()))),
}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_sees_its_own_prefix(name):
    query = jnp.asarray(RNG.standard_normal((2, 6, HEADS, WIDTH)), jnp.float32)
    batched = batch_prompts([JoinedPrompt(prefix, start) for prefix, start in zip(ROWS[name], (7, 11), strict=True)])
    np.testing.assert_array_equal(batched.start, [7, 11])
    for layer in range(LAYERS):
        of_layer = jax.tree.map(lambda array, layer=layer: array[layer], batched.prefixes)
        together = of_layer.partial(query, 0.5)
        for row, prefix in enumerate(ROWS[name]):
            alone = jax.tree.map(lambda array, layer=layer: array[layer], prefix).partial(query[row : row + 1], 0.5)
            np.testing.assert_allclose(together.normalise()[row], alone.normalise()[0], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(together.log_mass()[row], alone.log_mass()[0], rtol=1e-5, atol=1e-6)


def test_texts_go_on_as_each_alone(loaded):
    model, text = loaded("llama"), jnp.asarray(golden("llama")["tokens"], jnp.int32)[:1]
    prompts = [JoinedPrompt(read_prompt(model, text[:, :end]), end) for end in (5, 8)]
    after = [text[0, 5:8].tolist(), text[0, 8:9].tolist()]
    batch, both = pad(after), batch_prompts(prompts)
    options = {"prefixes": both.prefixes, "start": both.start, "lengths": jnp.asarray(batch.lengths)}
    made = generate(model, jnp.asarray(batch.tokens), 4, **options).tokens
    for row, (prompt, rest) in enumerate(zip(prompts, after, strict=True)):
        alone = generate(model, jnp.asarray([rest]), 4, prefixes=prompt.prefixes, start=prompt.start).tokens
        np.testing.assert_array_equal(made[row], alone[0])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (tokens(3, kv_heads=1), r"row 1 that is a TokenPrefix with keys \[2, 3, 1, 4\].*where row 0 is"),
        (state(), "row 1 that is a FeaturePrefix with Z"),
        (JoinedPrefix((tokens(3), state())), "row 1 that is a TokenPrefix with .* and a FeaturePrefix with"),
    ],
    ids=["other heads", "another kind", "joined"],
)
def test_prompts_that_do_not_stand_beside_each_other(second, message):
    with pytest.raises(ValueError, match=message):
        batch_prompts([JoinedPrompt(tokens(5), 5), JoinedPrompt(second, 5)])


def test_no_prompts():
    with pytest.raises(ValueError, match="at least one prompt, got none"):
        batch_prompts([])


class Letters:
    """A tokeniser whose tokens are letters."""

    def batch(self, texts, *, special):
        assert not special
        return pad([[ord(letter) - ord("a") for letter in text] for text in texts])

    def decode(self, row):
        return "".join(chr(ord("a") + int(token) % 26) for token in np.asarray(row))


@pytest.fixture
def llama(loaded, monkeypatch):
    monkeypatch.setattr(command, "load_text_model", lambda _: loaded("llama"))
    monkeypatch.setattr(command, "load_tokenizer", lambda _: Letters())
    return loaded("llama")


def test_the_command_answers_texts_behind_files_of_their_own(llama, tmp_path, capsys):
    text = jnp.asarray(golden("llama")["tokens"], jnp.int32)[:1]
    files = [
        str(save_prompt(tmp_path / f"{end}.safetensors", read_prompt(llama, text[:, :end]), end)) for end in (4, 7)
    ]

    def said(*options):
        assert main(["generate", "--new", "5", *options]) == 0
        return capsys.readouterr().out.rstrip("\n")

    alone = [said("--prefix", file, "--text", words) for file, words in zip(files, ("abc", "de"), strict=True)]
    assert said("--prefix", *files, "--text", "abc", "de").split("\n\n") == alone
    shared = said("--prefix", files[0], "--text", "abc", "de").split("\n\n")
    assert shared == [alone[0], said("--prefix", files[0], "--text", "de")]


def test_the_command_keeps_a_file_s_bits(llama, tmp_path, capsys, monkeypatch):
    text = jnp.asarray(golden("llama")["tokens"], jnp.int32)[:1]
    whole = read_prompt(llama, text[:, :7])
    kept = []
    monkeypatch.setattr(command, "packed", lambda *given: kept.append(packed(*given)) or kept[-1])
    said = []
    for dtype, prefixes in (("int4", whole), ("float32", rounded(whole, "int4")), ("float32", whole)):
        file = save_prompt(tmp_path / "p.safetensors", prefixes, 7, dtype=dtype)
        assert main(["generate", "--prefix", str(file), "--text", "abc", "--new", "12"]) == 0
        said.append(capsys.readouterr().out)
    assert kept[0].keys.numbers.dtype == jnp.uint8
    assert said[0] == said[1]


def test_the_command_keeps_the_bits_of_several_files_that_have_the_same(llama, tmp_path, capsys, monkeypatch):
    text = jnp.asarray(golden("llama")["tokens"], jnp.int32)[:1]
    kept = []
    monkeypatch.setattr(command, "packed", lambda *given: kept.append(packed(*given)) or kept[-1])

    def said(*dtypes):
        files = []
        for number, (end, dtype) in enumerate(zip((4, 7), dtypes, strict=True)):
            whole = rounded(read_prompt(llama, text[:, :end]), "int4")
            files.append(str(save_prompt(tmp_path / f"{number}.safetensors", whole, end, dtype=dtype)))
        assert main(["generate", "--prefix", *files, "--text", "abc", "de", "--new", "12"]) == 0
        return capsys.readouterr().out

    assert said("int4", "int4") == said("int4", "float32")
    assert kept[0].keys.numbers.dtype == jnp.uint8
    assert kept[1].keys.dtype == jnp.float32
    heads = llama.config.layers * llama.config.block.kv_heads
    assert [each.keys.shape[0] for each in kept] == [(4 + 7) * heads] * 2


def test_a_model_is_known_by_its_weights_and_not_by_its_path(llama, tmp_path, capsys):
    own = of_model(llama.config, nnx.state(llama))
    texts = ["--text", "abc", "--new", "1"]
    for fingerprint, status in ((own, 0), (own[::-1], 2)):
        notes = {"model": "elsewhere/llama", "fingerprint of the model": fingerprint}
        file = str(save_prompt(tmp_path / "p.safetensors", read_prompt(llama, jnp.array([[1, 2, 3, 4]])), 4, notes))
        assert main(["generate", "--prefix", file, *texts]) == status
    told = (
        f"{file}: expected a prompt compressed for this model, got one for another, which was 'elsewhere/llama' there"
    )
    assert told in capsys.readouterr().err


def test_the_command_refuses_another_number_of_files(tmp_path, capsys):
    file = str(save_prompt(tmp_path / "p.safetensors", tokens(3), 3))
    assert main(["generate", "--prefix", file, file, "--text", "a", "b", "c"]) == 2
    assert "one --prefix for all texts or one for each of 3, got 2" in capsys.readouterr().err
