"""Compressed prompts moved, merged, subtracted, appended to and fitted again."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compress.layer_cases import BETA, KEYS, QUERIES, VALUES
from models.tiny_text import golden

from experiments.documents import ALGEBRA
from ntkprefix import FeaturePrefix, JoinedPrefix, MeasurePrefix, Partial, TokenPrefix, feature_map
from ntkprefix.compress import Clouds, FittedFeatures, Sums
from ntkprefix.compress import compress as compress_layer
from ntkprefix.compress.problem import answer
from ntkprefix.prompts import (
    Calibration,
    JoinedPrompt,
    append,
    append_document,
    calibrate,
    compress,
    compress_prompt,
    load_prompt,
    merge_prompts,
    read_prompt,
    recompress_prompt,
    save_prompt,
    shift_prompt,
    subtract_prompt,
)

# Turned in both pairings, in part, with slowed and with stretched frequencies; and not turned at all.
TURNING = ("llama", "llama3", "llama_yarn", "glm")

NOTHING = Partial(None, None, None)


def text_of(name, start=0, stop=None):
    """A part of a row of the golden file's tokens."""
    return jnp.asarray(golden(name)["tokens"], jnp.int32)[:1, start:stop]


def prompt_of(model, tokens, start=0):
    """A document as it is, read from a position on."""
    return JoinedPrompt(read_prompt(model, tokens, start=start), start + tokens.shape[1])


def same(found, wanted, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, wanted)


@pytest.mark.parametrize("name", TURNING)
def test_a_moved_prompt_is_one_read_there(name, loaded):
    model, tokens = loaded(name), text_of(name, 0, 6)
    here, there = prompt_of(model, tokens), prompt_of(model, tokens, start=9)
    assert jnp.abs(here.prefixes.keys - there.prefixes.keys).max() > 0.1
    moved = shift_prompt(model, here, 9)
    same(moved.prefixes, there.prefixes, atol=3e-5)
    assert moved.start == there.start == 15
    same(shift_prompt(model, moved, -9).prefixes, here.prefixes, atol=3e-5)
    assert shift_prompt(model, here, 0).prefixes is here.prefixes


@pytest.mark.parametrize("name", ["llama", "glm"])
def test_clouds_turn_as_their_tokens_do(name, loaded):
    """A cloud of rank 1 has the moments of two tokens: those of the moved tokens are the moved cloud's."""
    model = loaded(name)
    tokens = prompt_of(model, text_of(name, 0, 6)).prefixes
    pairs = [leaf.reshape(leaf.shape[0], 3, 2, *leaf.shape[2:]) for leaf in (tokens.keys, tokens.values)]
    middles, halves = (
        [part(pair) for pair in pairs] for part in (lambda x: x.mean(2), lambda x: (x[:, :, 0] - x[:, :, 1]) / 2)
    )
    weights = jnp.full(middles[0].shape[:-1], jnp.log(2.0))
    clouds = MeasurePrefix(weights, middles[0], halves[0][..., None], middles[1], halves[1][..., None])
    moved = shift_prompt(model, JoinedPrompt(clouds, 6), 9).prefixes
    there = prompt_of(model, text_of(name, 0, 6), start=9).prefixes.keys
    there = np.asarray(there).reshape(pairs[0].shape)
    np.testing.assert_allclose(moved.mean, there.mean(2), atol=3e-5)
    np.testing.assert_allclose(moved.factor[..., 0], (there[:, :, 0] - there[:, :, 1]) / 2, atol=3e-5)
    same((moved.value, moved.cross, moved.log_weight), (clouds.value, clouds.cross, clouds.log_weight))
    still = MeasurePrefix(weights, middles[0], clouds.factor[..., :0], middles[1], clouds.cross[..., :0])
    same(shift_prompt(model, JoinedPrompt(still, 6), 9).prefixes.mean, moved.mean)


def test_merged_prompts_lie_behind_one_another(loaded):
    model = loaded("llama")
    one, two = prompt_of(model, text_of("llama", 0, 5)), prompt_of(model, text_of("llama", 5))
    both = merge_prompts(model, one, two)
    moved = prompt_of(model, text_of("llama", 5), start=5)
    same(both.prefixes, one.prefixes + moved.prefixes, atol=3e-5)
    assert both.start == 11
    overlapping = merge_prompts(model, one, two, shift=False)
    same(overlapping.prefixes, one.prefixes + two.prefixes)
    assert overlapping.start == merge_prompts(model, two, one, shift=False).start == 6


def test_a_common_beginning_is_there_once(loaded):
    model = loaded("llama")
    common = prompt_of(model, text_of("llama", 0, 2))
    documents = text_of("llama", 2, 6), text_of("llama", 6)

    def behind(document, start):
        return read_prompt(model, document, prefixes=common.prefixes, start=start)

    one, two = (JoinedPrompt(common.prefixes + behind(document, 2), 2 + document.shape[1]) for document in documents)
    both = merge_prompts(model, one, two, common=common)
    # The second begins where the first one ends, but has seen the common beginning where that stands, four positions
    # nearer: of what it reads there, distances alone are other.
    assert both.prefixes.keys.shape[1] == both.start == 11
    own = shift_prompt(model, JoinedPrompt(behind(documents[1], 2), 7), 4)
    same(both.prefixes, one.prefixes + own.prefixes)
    same(merge_prompts(model, common, one, common=common).prefixes, one.prefixes)
    assert merge_prompts(model, one, two, common=common, shift=False).start == 7


def weighted(count, start):
    """What a compressed document may be."""
    random = np.random.default_rng(count)
    keys, values, weights = (random.standard_normal((2, count, 2, *size)) for size in ((6,), (6,), ()))
    return JoinedPrompt(TokenPrefix(*(jnp.asarray(each, jnp.float32) for each in (keys, values, weights))), start)


@pytest.mark.parametrize("shift", [True, False])
def test_what_was_merged_is_subtracted_exactly(shift, loaded, tmp_path):
    model, one, two = loaded("llama"), weighted(3, 6), weighted(4, 9)
    both = merge_prompts(model, one, two, shift=shift)
    both = load_prompt(save_prompt(tmp_path / "both", both.prefixes, both.start))
    as_it_stands = shift_prompt(model, two, one.start if shift else 0)
    left = subtract_prompt(both, as_it_stands, start=one.start)
    same(left.prefixes, one.prefixes, rtol=0)
    assert left.start == 6
    same(subtract_prompt(both, one).prefixes, as_it_stands.prefixes, rtol=0)
    assert subtract_prompt(both, one).start == both.start == (15 if shift else 9)


def test_appending_all_of_a_document_is_reading_on(loaded):
    model, tokens = loaded("llama"), text_of("llama")
    small = prompt_of(model, tokens[:, :3])
    told = []
    options = {"method": "ends", "budget": "1x", "texts": "repeat", "chunk": 4}
    for window in (tokens[:, 3:7], tokens[:, 7:]):
        small = append_document(model, small, window, on_step=lambda *step: told.append(step), **options)
    whole = read_prompt(model, tokens)
    same(small.prefixes, whole, atol=5e-5)
    assert small.start == tokens.shape[1]
    assert float(small.report.error.max()) < 1e-4
    assert {what for what, *_ in told} == {"reading", "asking", "compressing"}


def test_a_document_is_compressed_beside_what_is_in_front_of_it(loaded, monkeypatch):
    """What its own keys and values are fitted to: queries behind both, and all they see but the document."""
    model, tokens = loaded("llama"), text_of("llama")
    texts = jnp.asarray(np.random.default_rng(0).integers(golden("llama")["tokens"].max(), size=(8, 6)), jnp.int32)
    before = prompt_of(model, tokens[:, :6])
    given = []

    def spy(whole, asked, **options):
        given.append((whole, asked, options))
        return whole, "a report"

    monkeypatch.setattr(append, "compress_layers", spy)
    found = append_document(model, before, tokens[:, 6:], budget=3, texts=texts)
    whole, asked, options = given[0]
    together = read_prompt(model, tokens)
    same(whole, TokenPrefix(together.keys[:, 6:], together.values[:, 6:]), atol=3e-5)
    assert (options["method"], options["budget"]) == ("matching-in-context", 3)
    behind = calibrate(model, texts, together, start=tokens.shape[1])
    np.testing.assert_allclose(asked.queries, behind.queries, atol=3e-5)
    # The texts' own share, and that of the six tokens in front, by hand.
    block = model.config.block
    keys, values = (np.repeat(part, block.heads // block.kv_heads, axis=2) for part in _arrays(before.prefixes))
    weights = np.exp(np.einsum("lqnh,lmnh->lqnm", asked.queries, keys) * block.head_width**-0.5)
    factor = np.exp(behind.beside.log_scale)
    den = weights.sum(-1) + behind.beside.den * factor
    num = np.einsum("lqnm,lmnh->lqnh", weights, values) + behind.beside.num * factor[..., None]
    np.testing.assert_allclose(asked.beside.log_mass(), np.log(den), atol=1e-4)
    np.testing.assert_allclose(asked.beside.normalise(), num / den[..., None], atol=1e-4)
    same(found.prefixes, before.prefixes + whole)
    assert (found.start, found.report) == (tokens.shape[1], "a report")


def test_texts_go_on_from_the_document_s_last_token(loaded, monkeypatch):
    """Behind exact tokens the continuations that are drawn are those of the whole prompt."""
    model, tokens = loaded("llama"), text_of("llama")
    seen = []

    def stop(model, texts, prefixes, **options):
        seen.append(texts)
        raise InterruptedError

    for module in (append, compress):
        monkeypatch.setattr(module, "calibrate", stop)
    with pytest.raises(InterruptedError):
        append_document(model, prompt_of(model, tokens[:, :6]), tokens[:, 6:], budget=3, seed=5)
    with pytest.raises(InterruptedError):
        compress_prompt(model, tokens, budget=3, seed=5)
    np.testing.assert_array_equal(*seen)


def with_first(first, last):
    """Two tokens as they are, and something for the others."""
    weights = jnp.zeros(first.keys[:, :2, :, 0].shape)
    return JoinedPrefix((TokenPrefix(first.keys[:, :2], first.values[:, :2], weights), last))


def test_states_take_documents_in_and_let_them_go(loaded):
    favor = feature_map("favor", features=12, key=jax.random.key(0))
    model, tokens = loaded("llama"), text_of("llama")
    first = read_prompt(model, tokens[:, :6])
    state = FeaturePrefix.from_tokens(first.keys[:, 2:], first.values[:, 2:], feature_map=favor)
    before = JoinedPrompt(with_first(first, state), 6)
    both = append_document(model, before, tokens[:, 6:], texts="repeat")
    kept, summed = both.prefixes.parts
    same(kept, before.prefixes.parts[0])
    # Read behind them, and summed with the others around their mean, in float64.
    second = read_prompt(model, tokens[:, 6:], prefixes=before.prefixes, start=6)
    pairs = zip(_arrays(first), _arrays(second), strict=True)
    keys, values = (np.concatenate([a[:, 2:], b], axis=1).astype(float) for a, b in pairs)
    x = (keys - keys[:, :4].mean(axis=1, keepdims=True)) * keys.shape[-1] ** -0.25
    phi, log_scale = favor(jnp.asarray(x, jnp.float32))
    phi = np.asarray(phi, float) * np.exp(np.asarray(log_scale, float))[..., None]
    factor = np.exp(np.asarray(summed.log_scale, float))
    np.testing.assert_allclose(summed.k * factor[..., None], phi.sum(axis=1), rtol=1e-4)
    Z = np.einsum("lmkr,lmkh->lkrh", phi, values)
    np.testing.assert_allclose(summed.Z * factor[..., None, None], Z, rtol=1e-4, atol=1e-5 * np.abs(Z).max())
    assert (both.start, summed.Z.shape) == (tokens.shape[1], state.Z.shape)
    assert both.report.error.shape == (keys.shape[0], model.config.block.heads)
    # And out again, to rounding.
    more = FeaturePrefix.from_tokens(
        second.keys, second.values, feature_map=favor, centre=state.centre, scale=state.scale
    )
    left = subtract_prompt(JoinedPrompt(summed, 12), JoinedPrompt(more, 12), start=6).prefixes
    factor = np.exp(left.log_scale - state.log_scale)
    for part, count in (("k", 1), ("Z", 2)):
        found = getattr(left, part) * factor[(..., *[None] * count)]
        np.testing.assert_allclose(found, getattr(state, part), atol=1e-5 * np.abs(getattr(summed, part)).max())


def _arrays(prefix):
    return np.asarray(prefix.keys), np.asarray(prefix.values)


def test_states_around_one_point_merge(loaded):
    queries = jnp.asarray(QUERIES)

    def state(method, part):
        keys, values = (jnp.asarray(each[part]) for each in (KEYS, VALUES))
        made = compress_layer(keys, values, method=method, budget=40, queries=queries).prefix
        return JoinedPrompt(jax.tree.map(lambda leaf: leaf[None], made), 48)

    one, two = (state(Sums("elu", recentre=False), part) for part in (slice(None, 48), slice(48, None)))
    both = merge_prompts(loaded("llama"), one, two, shift=False)
    masses = [
        answer(jax.tree.map(lambda leaf: leaf[0], each.prefixes), queries, BETA).log_mass() for each in (one, two, both)
    ]
    np.testing.assert_allclose(np.logaddexp(*masses[:2]), masses[2], atol=1e-4)
    assert both.start == 48
    assert (state(FittedFeatures("elu", recentre=False), slice(None, 48)).prefixes.centre == 0).all()


def test_states_around_their_own_means_do_not_merge(loaded):
    one, two = (FeaturePrefix.from_tokens(*2 * (jnp.asarray(keys)[None],)) for keys in (KEYS[:40], KEYS[40:]))
    with pytest.raises(ValueError, match="recentred on different points cannot be added"):
        merge_prompts(loaded("llama"), JoinedPrompt(one, 40), JoinedPrompt(two, 56), shift=False)


def test_clouds_take_documents_in(loaded, monkeypatch):
    model, tokens = loaded("llama"), text_of("llama")
    given = []

    def asked(model, texts, prefixes, *, start):
        given.append(prefixes)
        return Calibration(None, NOTHING)

    def compressed(whole, asked, **options):
        given.append(options["method"])
        return jax.tree.map(lambda leaf: 2 * leaf[:, :3], clouds), "a report"

    for name, fake in (("calibrate", asked), ("_beside", lambda *_: NOTHING), ("compress_layers", compressed)):
        monkeypatch.setattr(append, name, fake)
    first = read_prompt(model, tokens[:, :6])
    # Clouds without spread: what comes behind them reads what it reads behind the tokens.
    keys, values = (leaf[:, 2:] for leaf in (first.keys, first.values))
    still = [jnp.zeros((*leaf.shape, 1)) for leaf in (keys, values)]
    clouds = MeasurePrefix(jnp.zeros(keys.shape[:-1]), keys, still[0], values, still[1])
    before = JoinedPrompt(with_first(first, clouds), 6)
    both = append_document(model, before, tokens[:, 6:], budget=3, texts="repeat")
    (kept, seen), method = given[0].parts, given[1]
    same(kept, before.prefixes.parts[0])
    whole = read_prompt(model, tokens)
    np.testing.assert_allclose(seen.mean[:, 4:], whole.keys[:, 6:], atol=1e-4)
    np.testing.assert_allclose(seen.value[:, 4:], whole.values[:, 6:], atol=1e-4)
    assert not any(leaf[:, 4:].any() for leaf in (seen.log_weight, seen.factor, seen.cross))
    assert method == Clouds(rank=1)
    assert both.prefixes.parts[1].factor.shape[1] == 7
    left = subtract_prompt(both, before).prefixes
    same((left.parts[0].keys.shape[1], left.parts[1].mean), (0, both.prefixes.parts[1].mean[:, 4:]))
    # All parts turn.
    parts = [shift_prompt(model, JoinedPrompt(part, 6), 3).prefixes for part in both.prefixes.parts]
    same(shift_prompt(model, both, 3).prefixes.parts, tuple(parts))


def test_fitting_again_keeps_what_weights_say(loaded):
    model = loaded("llama")
    texts = jnp.asarray(np.random.default_rng(0).integers(golden("llama")["tokens"].max(), size=(8, 12)), jnp.int32)
    one = prompt_of(model, text_of("llama", 0, 6))
    both = merge_prompts(model, one, weighted(3, 5))
    again = recompress_prompt(model, both, texts, budget="1x")
    assert again.prefixes.keys.shape[1] == 9
    assert float(again.report.error.mean()) < 0.05
    assert (again.report.ratio, again.start) == (1, 11)
    with pytest.raises(ValueError, match="After a refit nothing of it is left as it was"):
        subtract_prompt(again, one)


PLAIN = JoinedPrompt(TokenPrefix(*jnp.ones((2, 2, 3, 2, 6))), 3)
OTHER = JoinedPrompt(TokenPrefix(*jnp.zeros((2, 2, 1, 2, 6))), 1)
STATE = JoinedPrompt(FeaturePrefix(jnp.ones((2, 2, 6, 6)), jnp.ones((2, 2, 6))), 3)
ONE_LAYER = JoinedPrompt(TokenPrefix(*jnp.ones((2, 3, 2, 6))), 3)
DOCUMENT = jnp.ones((1, 3), int)
ERRORS = {
    "no prompt": (lambda m: merge_prompts(m, PLAIN, PLAIN.prefixes), TypeError, "merge_prompts: expected a compressed"),
    "a list": (lambda m: shift_prompt(m, PLAIN._replace(prefixes=[]), 1), TypeError, "states of features .*, got list"),
    "one layer": (lambda _: subtract_prompt(ONE_LAYER, PLAIN), ValueError, "leading axis of layers, got those of one"),
    "a negative start": (lambda m: merge_prompts(m, PLAIN, PLAIN._replace(start=-1)), ValueError, "of at least 0"),
    "a start of rows": (lambda m: merge_prompts(m, PLAIN._replace(start=jnp.ones(2)), PLAIN), TypeError, "integer st"),
    "too far back": (lambda m: shift_prompt(m, PLAIN, -4), ValueError, "by of at least -3, got -4"),
    "half a position": (lambda m: shift_prompt(m, PLAIN, 0.5), TypeError, "an integer by, got float"),
    "shift in words": (lambda m: merge_prompts(m, PLAIN, PLAIN, shift="no"), TypeError, "True or False as shift"),
    "two kinds": (lambda m: merge_prompts(m, PLAIN, STATE, shift=False), TypeError, "only its own kind, got Feature"),
    "states that move": (lambda m: merge_prompts(m, STATE, STATE), ValueError, "has no keys that could be turned"),
    "other layers": (
        lambda m: merge_prompts(m, PLAIN, JoinedPrompt(TokenPrefix(*jnp.ones((2, 3, 3, 2, 6))), 3)),
        ValueError,
        "differ in nothing but their length",
    ),
    "nothing in common": (
        lambda m: merge_prompts(m, PLAIN, PLAIN, common=OTHER),
        ValueError,
        "found it nowhere",
    ),
    "an end below 0": (lambda _: subtract_prompt(PLAIN, PLAIN, start=-2), ValueError, "start of at least 0, got -2"),
    "no budget": (lambda m: append_document(m, PLAIN, DOCUMENT), ValueError, "expected a budget"),
    "a state's budget": (
        lambda m: append_document(m, STATE, DOCUMENT, budget=3),
        ValueError,
        "neither for a state of features, which keeps its size; got budget 3 and method None for a FeaturePrefix",
    ),
    "texts of no kind": (
        lambda m: append_document(m, PLAIN, DOCUMENT, budget=3, texts="x"),
        ValueError,
        "append_document: unknown kind of texts 'x'",
    ),
    "refitting a state": (
        lambda m: recompress_prompt(m, STATE, DOCUMENT, budget=3),
        TypeError,
        "expected tokens, got a FeaturePrefix. Compress the documents again",
    ),
    "a method without weights": (
        lambda m: recompress_prompt(m, weighted(3, 5), DOCUMENT, method="kmeans", budget=3),
        ValueError,
        "'kmeans' is for tokens that all weigh the same",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_done_is_said_in_words(case, loaded, unchecked):
    call, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        call(loaded("llama"))


def test_the_page_s_snippet_runs(loaded, tmp_path, monkeypatch):
    """What `docs/algebra.md` shows can be typed."""
    monkeypatch.chdir(tmp_path)
    model, tokens = loaded("llama"), text_of("llama")
    for name, count in (("first", 4), ("second", 5)):
        save_prompt(f"{name}.safetensors", weighted(count, 6).prefixes, 6)
    names = {"model": model, "tokens": tokens, "texts": jnp.tile(tokens, (4, 1))}
    first, *_ = re.findall(r"```python\n(.*?)```", ALGEBRA.read_text(encoding="utf-8"), re.DOTALL)
    exec(first, names)
    same(names["again"].prefixes, names["first"].prefixes, rtol=0)
    assert (names["longer"].start, names["smaller"].prefixes.keys.shape[1]) == (17, 4)


def test_trained_positions_cannot_be_moved(loaded):
    model = loaded("gpt2")
    one, two = prompt_of(model, text_of("gpt2", 0, 5)), prompt_of(model, text_of("gpt2", 5, 9))
    with pytest.raises(ValueError, match=r"adds trained positions to its tokens.*shift=False"):
        merge_prompts(model, one, two)
    both = merge_prompts(model, one, two, shift=False)
    assert (both.start, both.prefixes.keys.shape[1]) == (5, 9)
