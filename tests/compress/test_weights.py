"""Tokens that stand for several: a weight of log n is n tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import BESIDE, BETA, HV, KEYS, QUERIES, VALUES, G, H, K, M, compressed

from ntkprefix import TokenPrefix
from ntkprefix.compress import METHODS, Matching
from ntkprefix.compress.matching import match
from ntkprefix.compress.problem import Problem, attention_masses
from ntkprefix.compress.pursuit import pursue
from ntkprefix.partial import merge

RANDOM = np.random.default_rng(6)
COUNTS = RANDOM.integers(1, 5, M)
WEIGHTS = np.broadcast_to(np.log(COUNTS)[:, None], (M, K)).astype(np.float32)
MANY_KEYS, MANY_VALUES = (np.repeat(each, COUNTS, axis=0) for each in (KEYS, VALUES))
OPTIONS = {"queries": QUERIES, "beside": BESIDE}


def problem(keys, values, log_weights=None):
    weights = None if log_weights is None else jnp.asarray(log_weights)
    return Problem(*map(jnp.asarray, (keys, values, QUERIES)), None, BETA, weights)


def test_weights_count_tokens():
    weighted, many = problem(KEYS, VALUES, WEIGHTS), problem(MANY_KEYS, MANY_VALUES)
    np.testing.assert_allclose(weighted.exact().log_mass(), many.exact().log_mass(), atol=1e-5)
    np.testing.assert_allclose(weighted.exact().normalise(), many.exact().normalise(), atol=1e-5)
    of_copies = np.asarray(attention_masses(many))
    summed = np.add.reduceat(of_copies, np.cumsum(COUNTS) - COUNTS, axis=1)
    np.testing.assert_allclose(attention_masses(weighted), summed, rtol=1e-4)


def test_a_fit_to_weighted_tokens_is_one_to_their_copies():
    """Tokens are chosen whose copies together have the most attention, and are fitted to the same sums."""
    small, report = compressed(
        KEYS, VALUES, log_weights=WEIGHTS, method=Matching(in_context=True), budget=12, **OPTIONS
    )
    assert small.keys.shape[0] == 12
    assert report.prompt_numbers == M * (H + HV + 1)
    asked, beside = jax.tree.map(lambda leaf: jnp.asarray(leaf[:-15]), (QUERIES, BESIDE))  # a quarter is held out
    places = np.stack([[_place(head, key) for key in np.asarray(small.keys)[:, head]] for head in range(K)], axis=1)
    for head in range(K):
        own = slice(head * G, (head + 1) * G)
        weights = np.exp(BETA * np.einsum("qnh,mh->qnm", asked[:, own], KEYS[:, head]).astype(float)) * COUNTS
        seen = weights.sum(axis=-1) + (BESIDE.den * np.exp(BESIDE.log_scale))[:-15, own]
        share = (weights / seen[..., None]).mean(axis=(0, 1))
        assert set(places[:, head]) == set(np.argsort(-share)[:12])
    many = Problem(jnp.asarray(MANY_KEYS), jnp.asarray(MANY_VALUES), asked, beside, BETA)
    chosen = TokenPrefix(small.keys, jnp.asarray(np.take_along_axis(VALUES, places[..., None], axis=0)))
    wanted = match(many, chosen, in_context=True, ridge=Matching().ridge)
    np.testing.assert_allclose(jnp.exp(small.log_weights), jnp.exp(wanted.log_weights), atol=1e-2)
    np.testing.assert_allclose(small.values, wanted.values, atol=1e-2)


def _place(head, key):
    return int(np.flatnonzero((KEYS[:, head] == key).all(axis=1))[0])


def test_pursuit_finds_the_same_tokens_as_among_their_copies():
    found = pursue(problem(KEYS, VALUES, WEIGHTS), 6)
    among_copies = pursue(problem(MANY_KEYS, MANY_VALUES), 6)
    np.testing.assert_array_equal(found, np.repeat(np.arange(M), COUNTS)[np.asarray(among_copies)])


def test_a_token_that_weighs_nothing_is_never_seen():
    weights = np.where(np.arange(M)[:, None] < 40, -np.inf, WEIGHTS).astype(np.float32)
    few = problem(KEYS, VALUES, weights)
    beside = merge(few.exact(), problem(KEYS[40:], VALUES[40:], WEIGHTS[40:]).exact())
    np.testing.assert_allclose(beside.normalise(), few.exact().normalise(), atol=1e-5)
    assert (np.asarray(attention_masses(few))[:, :40] == 0).all()


@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in ("matching", "matching-in-context", "matching-pursuit", "refined")]
)
def test_other_methods_say_that_they_do_not_mind_weights(name):
    with pytest.raises(ValueError, match="is for tokens that all weigh the same, and these have log-weights"):
        compressed(KEYS, VALUES, log_weights=WEIGHTS, method=name, budget=12, **OPTIONS)


def test_weights_have_to_fit(unchecked):
    with pytest.raises(ValueError, match="one size of axis K"):
        compressed(KEYS, VALUES, log_weights=WEIGHTS[:, :1], method="matching", budget=12, **OPTIONS)
