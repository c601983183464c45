"""Adapters on a tiny vision transformer: sizes, no-op starts, live gradients, and learning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_classifier import FAVOR, HEADS, IMAGES, LABELS, LAYERS, WIDTH, initial, tiny_model

from ntkprefix import feature_map
from ntkprefix.adapters import (
    ADAPTERS,
    FeatureAdapter,
    FullAdapter,
    HeadAdapter,
    LoraAdapter,
    MeasureAdapter,
    PromptAdapter,
    ReparametrisedAdapter,
    Stack,
    TokenAdapter,
    count,
    step_factors,
)
from ntkprefix.adapters.features import nonnegative
from ntkprefix.classify import Classifier
from ntkprefix.images import normalise
from ntkprefix.train import TrainConfig, train

RNG = np.random.default_rng(1)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize(
    ("adapter", "parameters"),
    [
        (HeadAdapter(), 0),
        (TokenAdapter(length=7), LAYERS * 7 * HEADS * 2 * WIDTH),
        (
            ReparametrisedAdapter(length=7, hidden=5),
            7 * 5 + 5 * 5 + 5 + (5 + 1) * LAYERS * HEADS * 2 * WIDTH,
        ),
        (FeatureAdapter(), LAYERS * HEADS * (WIDTH * (WIDTH + 1) + WIDTH + WIDTH + 1)),
        (FeatureAdapter(calibration="harmonic"), LAYERS * HEADS * (WIDTH * (WIDTH + 1) + WIDTH + 1)),
        (FeatureAdapter(FAVOR), LAYERS * HEADS * (15 * (WIDTH + 1) + WIDTH + WIDTH + 1)),
        (FeatureAdapter(rank=2), LAYERS * HEADS * (WIDTH * 2 + 2 * WIDTH + WIDTH + WIDTH + WIDTH + 1)),
        (FeatureAdapter(normalised=False), LAYERS * HEADS * (WIDTH * WIDTH + WIDTH + 1)),
        (PromptAdapter(length=5), 5 * HEADS * WIDTH),
        (MeasureAdapter(components=5, rank=2), LAYERS * 5 * HEADS * (1 + 2 * WIDTH * 3)),
        (MeasureAdapter(components=1, rank=0), LAYERS * HEADS * (1 + 2 * WIDTH)),
        (LoraAdapter(rank=2), LAYERS * 2 * 2 * (2 * HEADS * WIDTH)),
        (LoraAdapter(rank=3, targets=("up",)), LAYERS * 3 * (HEADS * WIDTH + 16)),
        (
            Stack([LoraAdapter(rank=2), FeatureAdapter(normalised=False)]),
            LAYERS * (96 + HEADS * (WIDTH * WIDTH + WIDTH + 1)),
        ),
    ],
)
def test_parameter_counts(model, adapter, parameters):
    assert count(initial(model, adapter)[1]["adapter"]) == parameters


def test_features_start_as_the_pretrained_model_with_live_gradients(model):
    (plain, plain_params), (classifier, params) = initial(model, HeadAdapter()), initial(model, FeatureAdapter())
    base = plain.features(plain_params, plain.frozen, jnp.asarray(IMAGES))
    np.testing.assert_array_equal(classifier.features(params, classifier.frozen, jnp.asarray(IMAGES)), base)
    probe = jnp.asarray(RNG.standard_normal(base.shape), jnp.float32)
    gradient = jax.grad(
        lambda p: jnp.sum(probe * classifier.features({"adapter": p}, classifier.frozen, jnp.asarray(IMAGES)))
    )(params["adapter"])
    assert (gradient["Z"] != 0).all()
    assert (gradient["k"] != 0).all()


@pytest.mark.parametrize("calibration", ["centred", "harmonic"])
def test_features_start_on_the_inputs_own_scale(calibration, model):
    # A state of k = 1 then weighs about as much as the input, averaged over queries, in every layer and head.
    adapter = FeatureAdapter(calibration=calibration)
    _, params = initial(model, adapter)
    prefixes = adapter.adapt({**params["adapter"], "k": jnp.ones((LAYERS, HEADS, WIDTH))}).prefixes

    def share(query, key, value):
        logits = jnp.einsum("btnh,bsnh->btns", query, key) / jnp.sqrt(float(WIDTH))
        return query, jax.nn.logsumexp(logits, axis=-1)

    queries, masses = model.observe(normalise(jnp.asarray(IMAGES)), share)
    for layer in range(LAYERS):
        prefix = jax.tree.map(lambda leaf, layer=layer: leaf[layer], prefixes)
        relative = jnp.exp(prefix.partial(queries[layer], WIDTH**-0.5).log_mass() - masses[layer])
        assert ((jnp.mean(relative, axis=(0, 1)) > 0.3) & (jnp.mean(relative, axis=(0, 1)) < 3)).all()


def test_k_stays_nonnegative_with_a_live_gradient():
    x = jnp.array([-2.0, 0.0, 3.0])
    np.testing.assert_array_equal(nonnegative(x), [0, 0, 3])
    np.testing.assert_array_equal(jax.grad(lambda x: nonnegative(x).sum())(x), [1, 1, 1])


def test_a_frozen_scale_has_no_gradient(model):
    for train_scale in (True, False):
        adapter = FeatureAdapter(train_scale=train_scale)
        classifier, params = initial(model, adapter)
        params["adapter"]["Z"] = params["adapter"]["Z"] + 0.1

        def total(p, classifier=classifier):
            return jnp.sum(classifier.features({"adapter": p}, classifier.frozen, jnp.asarray(IMAGES)) ** 2)

        gradient = jax.grad(total)(params["adapter"])
        for name in ("log_scale", "centre"):
            assert bool((gradient[name] != 0).any()) == train_scale, name


NO_OPS = {
    "features": FeatureAdapter(),
    "low-rank features": FeatureAdapter(rank=2),
    "additive memory": FeatureAdapter(normalised=False),
    "shared heads": FeatureAdapter(heads="kv"),
    "lora": LoraAdapter(rank=2, targets=("query", "key", "value", "out", "up", "down")),
    "full": FullAdapter(),
    "lora and features": Stack([LoraAdapter(rank=2), FeatureAdapter()]),
}


@pytest.mark.parametrize("name", NO_OPS)
def test_starts_that_change_nothing_have_gradients(name, model):
    (plain, plain_params), (classifier, params) = initial(model, HeadAdapter()), initial(model, NO_OPS[name])
    images = jnp.asarray(IMAGES)
    base = plain.features(plain_params, plain.frozen, images)
    np.testing.assert_array_equal(classifier.features(params, classifier.frozen, images), base)
    probe = jnp.asarray(RNG.standard_normal(base.shape), jnp.float32)
    gradient = jax.grad(lambda p: jnp.sum(probe * classifier.features({"adapter": p}, classifier.frozen, images)))(
        params["adapter"]
    )
    # Of a product that starts at zero only the zero factor moves at first; scale and value move what has mass.
    waiting = ("down", "log_scale", "centre", "value")
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        if path[-1].key not in waiting or name == "full":
            assert (leaf != 0).any(), path


@pytest.mark.parametrize("name", sorted(set(ADAPTERS) - {"head"}))
def test_training_beats_the_start_and_repeats(model, name):
    classifier, params = initial(model, ADAPTERS[name]())
    # A program for parameters of weak type is not the one for what a step makes of them.
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(params))
    config = TrainConfig(epochs=15, batch_size=8, learning_rate=3e-3 if name == "full" else 1e-2)
    first, second = (train(classifier.loss, params, classifier.frozen, (IMAGES, LABELS), config) for _ in range(2))
    assert first.losses[-3:].mean() < 0.8 * first.losses[0]
    np.testing.assert_array_equal(first.losses, second.losses)
    assert classifier.predict(first.params, (IMAGES,)).shape == LABELS.shape


def test_prediction_does_not_depend_on_the_batch(model):
    classifier, params = initial(model, TokenAdapter(length=2))
    many = np.concatenate([IMAGES] * 3)
    whole, part = (classifier.all_features(params, (images,)) for images in (many, IMAGES))
    np.testing.assert_array_equal(whole[-24:], part)


def test_training_ends_every_step_at_allowed_parameters(model):
    classifier, params = initial(model, FeatureAdapter())
    config = TrainConfig(epochs=3, batch_size=8, learning_rate=0.1)
    data = (IMAGES, LABELS)
    free = train(classifier.loss, params, classifier.frozen, data, config).params["adapter"]
    kept = train(classifier.loss, params, classifier.frozen, data, config, project=classifier.project).params["adapter"]
    assert (free["k"] < -0.01).any()
    assert (kept["k"] >= 0).all()
    assert (kept["k"] > 0).any()


def test_starts_are_at_the_models_own_keys_and_scale(model):
    statistics = model.attention_statistics(normalise(jnp.asarray(IMAGES)))
    tokens = TokenAdapter(length=5, start="mean", deviation=0.0).init(jax.random.key(0), model, statistics)
    assert tokens["keys"].shape == (LAYERS, 5, HEADS, WIDTH)
    for token in range(5):
        np.testing.assert_array_equal(tokens["keys"][:, token], statistics.key_mean)
        np.testing.assert_array_equal(tokens["values"][:, token], statistics.value_mean)
    state = FeatureAdapter(calibration="harmonic").init(jax.random.key(0), model, statistics)
    assert "centre" not in state
    np.testing.assert_allclose(state["log_scale"], statistics.log_harmonic_mass - np.log(WIDTH), rtol=1e-6)
    state = FeatureAdapter().init(jax.random.key(0), model, statistics)
    np.testing.assert_array_equal(state["centre"], statistics.centre)
    np.testing.assert_allclose(state["log_scale"], statistics.log_centred_mass - np.log(WIDTH), rtol=1e-6)


def test_reparametrised_tokens_start_as_drawn_and_collapse_to_what_they_stand_for(model):
    statistics = model.attention_statistics(normalise(jnp.asarray(IMAGES)))
    adapter = ReparametrisedAdapter(length=200, hidden=100, start="mean", deviation=0.5)
    tokens, collapsed = adapter.collapse(adapter.init(jax.random.key(0), model, statistics))
    assert tokens == TokenAdapter(length=200, start="mean", deviation=0.5)
    for name in ("key", "value"):
        around = collapsed[f"{name}s"] - getattr(statistics, f"{name}_mean")[:, None]
        assert float(jnp.std(around)) == pytest.approx(0.5, rel=0.15)
    classifier, params = initial(model, ReparametrisedAdapter(length=3, hidden=4))
    params = {**params, "adapter": jax.tree.map(lambda leaf: leaf + 0.3, params["adapter"])}
    tokens, collapsed = ReparametrisedAdapter(length=3, hidden=4).collapse(params["adapter"])
    plain = Classifier(model, tokens)
    images = jnp.asarray(IMAGES)
    np.testing.assert_allclose(
        classifier.features(params, classifier.frozen, images),
        plain.features({"adapter": collapsed}, plain.frozen, images),
        rtol=1e-6,
    )
    # as a sum over hidden units, in float64
    trained = {name: np.asarray(leaf, np.float64) for name, leaf in params["adapter"].items()}
    hidden = np.tanh(trained["vectors"] @ trained["inner"] + trained["inner_bias"])
    for name in ("keys", "values"):
        made = sum(np.multiply.outer(hidden[:, e], trained[name][e]) for e in range(4)) + trained[f"{name}_bias"]
        np.testing.assert_allclose(collapsed[name], made.transpose(1, 0, 2, 3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"rank": 3}, {"heads": "kv"}, {"calibration": "harmonic"}, {"positive": "softplus"}], ids=str
)
def test_a_state_may_start_as_a_prefix_of_mean_values_with_a_share_of_the_mass(model, options):
    adapter = FeatureAdapter(share=0.3, **options)
    params = initial(model, adapter)[1]["adapter"]
    prefixes = adapter.adapt(params).prefixes
    statistics = model.attention_statistics(normalise(jnp.asarray(IMAGES)))
    query = jnp.asarray(RNG.standard_normal((2, 3, HEADS, WIDTH)), jnp.float32)
    for layer in range(LAYERS):
        found = jax.tree.map(lambda leaf, layer=layer: leaf[layer], prefixes).partial(query, WIDTH**-0.5)
        expected = jnp.broadcast_to(statistics.value_mean[layer], found.num.shape)
        np.testing.assert_allclose(found.normalise(), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(prefixes.k, 0.3, rtol=1e-6)
    gradient = jax.grad(
        lambda p: jnp.sum(adapter.adapt(p).prefixes.Z ** 2 + jnp.sum(adapter.adapt(p).prefixes.k ** 2))
    )(params)
    assert all((gradient[name] != 0).any() for name in ("k", "up" if "rank" in options else "Z"))


def test_a_softplus_is_not_projected():
    params = {"Z": jnp.zeros((1, 1, 2, 2)), "k": jnp.full((1, 1, 2), -3.0), "log_scale": jnp.zeros((1, 1))}
    params |= {"centre": jnp.zeros((1, 1, 2)), "value": jnp.zeros((1, 1, 2))}
    adapter = FeatureAdapter(share=0.1, positive="softplus")
    assert (adapter.project(params)["k"] == -3).all()
    np.testing.assert_allclose(adapter.adapt(params).prefixes.k, np.log1p(np.exp(-3.0)), rtol=1e-6)
    assert (FeatureAdapter().project(params)["k"] == 0).all()


@pytest.mark.parametrize(("steps", "state", "others"), [("value", 0.3 / WIDTH**0.5, 1.0), ("state", 1.0, 0.1)])
def test_parts_of_a_state_take_steps_of_their_own(model, steps, state, others):
    """Adam's first step is its step size, whatever the gradient."""
    both = Stack([LoraAdapter(rank=2), FeatureAdapter(share=0.3, steps=steps)])
    classifier, params = initial(model, both)
    params["head"]["kernel"] = jnp.asarray(RNG.standard_normal(params["head"]["kernel"].shape), jnp.float32)
    factors = {"adapter": step_factors(both, params["adapter"]), "head": 1.0}
    config = TrainConfig(epochs=1, batch_size=24, learning_rate=1e-3, warmup=0.0, schedule="constant", weight_decay=0.0)
    assert len(IMAGES) == 24
    trained = train(classifier.loss, params, classifier.frozen, (IMAGES, LABELS), config, factors=factors).params
    moved = jax.tree.map(lambda after, before: float(jnp.abs(after - before).max()), trained, params)["adapter"]
    assert moved["0"]["query"]["up"] == pytest.approx(1e-3, rel=0.05)
    for name in ("log_scale", "centre", "value"):
        assert moved["1"][name] == pytest.approx(1e-3 * others, rel=0.05)
    for name in ("Z", "k"):
        assert moved["1"][name] == pytest.approx(1e-3 * state, rel=0.05)


def test_clouds_start_with_their_share_of_the_input_s_mass(model):
    adapter = MeasureAdapter(components=4, rank=1, share=0.25, deviation=1e-4)
    prefixes = adapter.adapt(initial(model, adapter)[1]["adapter"]).prefixes

    def mass(query, key, value):
        logits = jnp.einsum("btnh,bsnh->btns", query, key) / jnp.sqrt(float(WIDTH))
        return query, jax.nn.logsumexp(logits, axis=-1)

    queries, masses = model.observe(normalise(jnp.asarray(IMAGES)), mass)
    for layer in range(LAYERS):
        prefix = jax.tree.map(lambda leaf, layer=layer: leaf[layer], prefixes)
        relative = jnp.exp(prefix.partial(queries[layer], WIDTH**-0.5).log_mass() - masses[layer])
        np.testing.assert_allclose(jnp.mean(relative, axis=(0, 1)), 0.25, rtol=1e-3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: MeasureAdapter(share=0.0), "share above 0, got 0"),
        (lambda: MeasureAdapter(rank=-1), "rank of at least 0, got -1"),
        (lambda: FeatureAdapter(share=-0.1), "a finite number of at least 0 as share, got -0.1"),
        (lambda: FeatureAdapter(share=0.1, normalised=False), "expected no share of additive memory, got 0.1"),
        (lambda: FeatureAdapter(positive="softplus"), "a share above 0 with softplus, which cannot start at k = 0"),
        (lambda: FeatureAdapter(steps="all"), "unknown steps 'all'; expected one of value, state"),
        (lambda: FeatureAdapter(positive="exp"), "unknown positive 'exp'; expected one of projection, softplus"),
        (lambda: TokenAdapter(start="text"), "unknown start 'text'; expected one of zero, mean"),
        (lambda: FeatureAdapter(calibration="max"), "unknown calibration 'max'; expected one of centred, harmonic"),
        (lambda: FeatureAdapter(feature_map("taylor", degree=2)), "features are never negative, got Taylor"),
    ],
)
def test_starts_that_cannot_be_are_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


@pytest.mark.usefixtures("unchecked")
def test_no_tokens_is_an_error():
    with pytest.raises(ValueError, match="length of at least 1, got 0"):
        TokenAdapter(length=0)


def test_lora_merges_into_the_weights_and_back(model):
    adapter = LoraAdapter(rank=2, targets=("query", "value", "down"))
    params = initial(model, adapter)[1]
    params["adapter"] = jax.tree.map(lambda leaf: leaf + 0.1, params["adapter"])
    images = normalise(jnp.asarray(IMAGES))
    apart = model(images, adapter=adapter.adapt(params["adapter"]))
    merged = adapter.merge(model, params["adapter"])
    np.testing.assert_allclose(merged(images), apart, atol=1e-5)
    assert np.abs(apart - model(images)).max() > 1e-3
    back = adapter.merge(merged, params["adapter"], sign=-1.0)
    np.testing.assert_allclose(back(images), model(images), atol=1e-5)


def test_a_stack_of_two_prefixes_is_an_error(model):
    both = Stack([FeatureAdapter(), TokenAdapter()])
    params = initial(model, both)[1]["adapter"]
    with pytest.raises(ValueError, match="one adapter that gives prefixes, got two"):
        both.adapt(params)
