"""Adapters that start from a text's own tokens: exactly, in closed form, or by least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.optimize import nnls

from ntkprefix import FeaturePrefix, TokenPrefix, feature_map
from ntkprefix.adapters import FeatureAdapter, MeasureAdapter, TokenAdapter, own_tokens
from ntkprefix.models import BlockConfig, TextConfig, TextModel, observe_queries
from ntkprefix.models.rotary import Rotary
from ntkprefix.nonnegative import _norm_bound, nonnegative_least_squares
from ntkprefix.prefixes.least_squares import fit_state

LAYERS, HEADS, KV, WIDTH, LENGTH = 2, 4, 2, 4, 12
TEXT = jnp.asarray(np.random.default_rng(0).integers(0, 40, (1, LENGTH)))
BATCH = jnp.asarray(np.random.default_rng(1).integers(0, 40, (6, 16)))


@pytest.fixture(scope="module")
def model():
    rotary = Rotary(width=WIDTH)
    block = BlockConfig(
        width=HEADS * WIDTH, heads=HEADS, kv_heads=KV, mlp_width=24, causal=True, rotary=rotary, norm="rms"
    )
    return nnx.jit(lambda: TextModel(TextConfig(vocabulary=40, layers=LAYERS, block=block), rngs=nnx.Rngs(0)))()


@pytest.fixture(scope="module")
def tokens(model):
    return own_tokens(model, TEXT)


@pytest.fixture(scope="module")
def calibration(model):
    return model.attention_statistics(BATCH), model.observe(BATCH, observe_queries)


def outputs(model, adapter, params, batch=BATCH):
    return model(batch, adapter=adapter.adapt(params))


def test_a_texts_own_tokens_are_the_text_itself(model, tokens):
    """Behind its own keys and values, the rest of a text has the states that it has behind the text."""
    whole = jnp.concatenate([TEXT, BATCH[:1]], axis=1)
    behind = model(BATCH[:1], prefixes=tokens, positions=LENGTH + jnp.arange(BATCH.shape[1])[None])
    np.testing.assert_allclose(behind, model(whole)[:, LENGTH:], rtol=1e-4, atol=1e-5)
    adapter = TokenAdapter(length=LENGTH)
    same = model(BATCH[:1], prefixes=tokens)
    np.testing.assert_array_equal(outputs(model, adapter, adapter.init_from(tokens), BATCH[:1]), same)
    assert TokenAdapter(length=5).init_from(tokens)["keys"].shape == (LAYERS, 5, KV, WIDTH)


@pytest.mark.parametrize("heads", ["query", "kv"])
def test_the_closed_form_of_a_fine_feature_map_is_the_tokens(model, tokens, heads):
    adapter = FeatureAdapter(feature_map("favor", features=4096, key=jax.random.key(1)), heads=heads)
    near = outputs(model, adapter, adapter.init_from(tokens, model))
    exact, plain = model(BATCH, prefixes=tokens), model(BATCH)
    assert jnp.mean((near - exact) ** 2) < 0.03 * jnp.mean((plain - exact) ** 2)


def test_a_softplus_starts_from_the_same_state(model, tokens, calibration):
    projected, softplus = FeatureAdapter(share=0.1), FeatureAdapter(share=0.1, positive="softplus")
    wanted = projected.init_from(tokens, model, *calibration)["k"]
    found = softplus.adapt(softplus.init_from(tokens, model, *calibration)).prefixes.k
    np.testing.assert_allclose(found, np.maximum(wanted, 1e-3), rtol=1e-4)
    assert (wanted < 1e-3).any()
    assert (wanted > 0.1).any()


def test_clouds_of_one_token_each_are_the_tokens(model, tokens):
    adapter = MeasureAdapter(components=LENGTH, rank=0)
    np.testing.assert_allclose(
        outputs(model, adapter, adapter.init_from(tokens)), model(BATCH, prefixes=tokens), rtol=1e-4, atol=1e-4
    )


def test_least_squares_is_nearer_than_the_closed_form(model, tokens, calibration):
    statistics, queries = calibration
    adapter = FeatureAdapter()
    fitted = adapter.init_from(tokens, model, statistics, queries)
    assert jnp.min(fitted["k"]) >= 0
    fresh = jnp.asarray(np.random.default_rng(2).integers(0, 40, (6, 16)))
    exact, plain = model(fresh, prefixes=tokens), model(fresh)

    def error(params):
        return float(jnp.mean((outputs(model, adapter, params, fresh) - exact) ** 2))

    assert error(fitted) < 0.5 * error(adapter.init_from(tokens, model))
    assert error(fitted) < 0.5 * float(jnp.mean((plain - exact) ** 2))


def test_low_rank_is_the_best_of_that_rank(model, tokens):
    whole = FeatureAdapter().init_from(tokens, model)
    low = FeatureAdapter(rank=2).init_from(tokens, model)
    product = np.asarray(low["down"] @ low["up"])
    sizes = np.linalg.svd(np.asarray(whole["Z"], np.float64), compute_uv=False)
    missing = np.linalg.norm(product - whole["Z"], axis=(-2, -1))
    np.testing.assert_allclose(missing, np.sqrt((sizes[..., 2:] ** 2).sum(axis=-1)), rtol=1e-3)


@pytest.mark.parametrize("sign", ["positive", "mixed", "one row of nothing"])
def test_the_bound_of_a_norm_holds_and_is_near(sign):
    """Against the largest eigenvalue in float64: below it the fit would diverge, and far above it, crawl."""
    rows = np.random.default_rng(0).standard_normal((80, 30))
    if sign != "mixed":
        rows = np.exp(2 * rows)
    if sign == "one row of nothing":
        rows[:, 3] = 0
    gram = rows.T @ rows + 1e-6 * np.eye(30)
    largest = np.linalg.eigvalsh(gram)[-1]
    bound = float(_norm_bound(jnp.asarray(gram, jnp.float32)))
    assert largest * (1 - 1e-5) <= bound <= largest * (4 if sign == "mixed" else 1.05)


def test_the_denominator_is_scipys_nonnegative_fit():
    random = np.random.default_rng(3)
    rows, target = random.uniform(size=(60, 12)), random.normal(size=60)
    found = nonnegative_least_squares(
        jnp.asarray(rows.T @ rows, jnp.float32), jnp.asarray(rows.T @ target, jnp.float32)
    )
    expected, _ = nnls(rows, target)
    assert (expected == 0).any()
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_numerator_and_denominator_are_weighted_by_the_mass_in_sight():
    """Against the same normal equations in float64 NumPy, one head."""
    random = np.random.default_rng(4)
    keys, values, query = (
        random.normal(size=(7, 1, 4)),
        random.normal(size=(7, 1, 4)),
        random.normal(size=(1, 50, 1, 4)),
    )
    log_mass, centre, log_scale = random.normal(size=(1, 50, 1)), random.normal(size=(1, 4)), np.array([0.3])
    arrays = [jnp.asarray(array, jnp.float32) for array in (keys, values, query, log_mass, centre, log_scale)]
    state = fit_state(
        TokenPrefix(*arrays[:2]),
        *arrays[2:4],
        feature_map=feature_map("elu"),
        centre=arrays[4],
        log_scale=arrays[5],
        ridge=1e-3,
    )
    q, p, u = query[0, :, 0], keys[:, 0], values[:, 0]
    weights = np.exp(q @ p.T / 2)
    total = np.exp(log_mass[0, :, 0]) + weights.sum(axis=1)
    x = q / np.sqrt(2)
    rows = np.where(x > 0, x + 1, np.exp(x)) * np.exp(0.3 + q @ centre[0] / 2)[:, None] / total[:, None]
    gram = rows.T @ rows
    gram += 1e-3 * np.trace(gram) / 4 * np.eye(4)
    np.testing.assert_allclose(
        state.Z[0], np.linalg.solve(gram, rows.T @ (weights @ u / total[:, None])), rtol=2e-3, atol=1e-3
    )
    root = np.linalg.cholesky(gram)
    expected, _ = nnls(root.T, np.linalg.solve(root, rows.T @ (weights.sum(axis=1) / total)))
    np.testing.assert_allclose(state.k[0], expected, rtol=2e-3, atol=1e-3)


@pytest.mark.usefixtures("unchecked")
def test_errors(model, tokens, calibration):
    statistics, queries = calibration
    one = jax.tree.map(lambda leaf: leaf[0], tokens)
    cases = [
        (lambda: TokenAdapter(length=13).init_from(tokens), "at least 13 tokens to start from, got 12"),
        (lambda: MeasureAdapter(components=13).init_from(tokens), "at least 13 tokens"),
        (lambda: TokenAdapter(length=1).init_from(one), r"keys \[L, M, K, H\] without weights, got shape \(12, 2, 4\)"),
        (lambda: FeatureAdapter(normalised=False).init_from(tokens, model), "got additive memory"),
        (lambda: FeatureAdapter().init_from(tokens, model, None, queries), "statistics beside queries, .* got none"),
        (lambda: FeatureAdapter(heads="kv").init_from(tokens, model, statistics, queries), "got heads='kv'"),
        (lambda: own_tokens(model, BATCH), "expected one row, got 6"),
    ]
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            wrong()


@pytest.mark.parametrize("positive", ["projection", "softplus"])
def test_a_head_without_mass_keeps_its_state(positive, monkeypatch):
    """A fit may leave k = 0: there is no value to tell apart then, and nothing is divided by it."""
    k = jnp.asarray([[[0.0, 0.0], [0.2, 0.4]]])
    Z = jnp.asarray([[[[1.0], [2.0]], [[3.0], [4.0]]]])
    state = FeaturePrefix(Z, k, feature_map("taylor", degree=0), jnp.zeros((1, 2)), jnp.zeros((1, 2, 1)))
    monkeypatch.setattr(FeatureAdapter, "_fitted", lambda *_: state)
    adapter = FeatureAdapter(share=0.1, positive=positive)
    tokens = TokenPrefix(jnp.ones((1, 3, 2, 1)), jnp.ones((1, 3, 2, 1)))
    queries = jnp.zeros((1, 1, 1, 2, 1)), jnp.zeros((1, 1, 1, 2))
    params = adapter.init_from(tokens, None, None, queries)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))
    assert float(params["value"][0, 1, 0]) == pytest.approx(7 / 0.6)
    np.testing.assert_allclose(adapter.adapt(params).prefixes.Z, Z, rtol=1e-5)
