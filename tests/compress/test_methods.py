"""Every compression method against what it says it computes, in float64 NumPy and SciPy."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from layer_cases import (
    BESIDE,
    BETA,
    HV,
    IN_CONTEXT,
    KEYS,
    PROBLEM,
    QUERIES,
    VALUES,
    G,
    H,
    K,
    M,
    compressed,
    normal,
    of_head,
    sums,
)

from ntkprefix import TokenPrefix, merge
from ntkprefix.compress import METHODS, Clouds, KeepEnds, KeepFirst, Matching, Means, Prune, Refined, UniformSample
from ntkprefix.compress.problem import Problem, answer, attention_masses
from ntkprefix.compress.wildcat import _pivots, _project
from ntkprefix.prompts.precision import Rounded, as_stored, rounding


def made(method, tokens, problem=PROBLEM, seed=0, weighted=True):
    prefix = method(problem, tokens * (H + HV + weighted), jax.random.key(seed))
    return jax.tree.map(lambda leaf: np.asarray(leaf), prefix)


TOKENS = [name for name in METHODS if name not in ("elu", "taylor", "favor", "fitted-elu", "fitted-favor", "measure")]


@pytest.mark.parametrize("name", TOKENS)
def test_with_room_for_all_tokens_nothing_is_lost(name):
    problem = IN_CONTEXT if METHODS[name].needs_queries else PROBLEM
    prefix = made(METHODS[name] if name != "refined" else Refined(steps=3, step_size=1e-6), M, problem)
    assert prefix.keys.shape == (M, K, H)
    for head in range(K):
        queries = of_head(QUERIES, head)
        wanted_num, wanted_den = sums(KEYS[:, head], VALUES[:, head], queries)
        weights = None if prefix.log_weights is None else prefix.log_weights[:, head]
        num, den = sums(prefix.keys[:, head], prefix.values[:, head], queries, weights)
        np.testing.assert_allclose(den, wanted_den, rtol=2e-2)
        np.testing.assert_allclose(num / den[:, None], wanted_num / wanted_den[:, None], atol=2e-2)


@pytest.mark.parametrize("problem", [PROBLEM, IN_CONTEXT], ids=["alone", "in context"])
def test_attention_masses(problem):
    found = np.asarray(attention_masses(problem))
    for head in range(K):
        weights = np.exp(BETA * of_head(QUERIES, head).astype(float) @ KEYS[:, head].astype(float).T)
        total = weights.sum(axis=1)
        if problem.beside is not None:
            total = total + of_head(BESIDE.den * np.exp(BESIDE.log_scale), head)
        np.testing.assert_allclose(found[head], (weights / total[:, None]).mean(axis=0), rtol=1e-4)


def test_the_ends_are_kept():
    prefix = made(KeepEnds(first=3), 10, weighted=False)
    np.testing.assert_array_equal(prefix.keys, KEYS[[0, 1, 2, *range(M - 7, M)]])
    assert made(KeepEnds(first=30), 10, weighted=False).keys.shape[0] == 10


def scores(name):
    for head in range(K):
        keys, values = KEYS[:, head].astype(float), VALUES[:, head].astype(float)
        queries = of_head(QUERIES, head).astype(float)
        attention = np.exp(BETA * queries @ keys.T)
        attention = (attention / attention.sum(axis=1, keepdims=True)).mean(axis=0)
        if name == "attention":
            yield attention
        if name == "pooled":
            padded = np.pad(attention, 3, constant_values=-np.inf)
            yield np.max([padded[i : i + M] for i in range(7)], axis=0)
        if name == "norm":
            yield -np.sqrt((keys**2).sum(axis=1))
        if name == "distinct":
            directions = keys / np.sqrt((keys**2).sum(axis=1, keepdims=True))
            yield -directions @ directions.mean(axis=0)
        if name == "expected":
            asked = BETA * queries
            logits = keys @ asked.mean(axis=0) + np.diag(keys @ np.cov(asked.T, bias=True) @ keys.T) / 2
            yield np.exp(logits) * np.sqrt((values**2).sum(axis=1))


@pytest.mark.parametrize("name", ["attention", "pooled", "norm", "distinct", "expected"])
def test_pruning_keeps_the_highest_scores(name):
    prefix = made(Prune(name, first=2), 12, weighted=False)
    assert prefix.log_weights is None
    for head, score in enumerate(scores(name)):
        best = {0, 1} | set(np.argsort(-np.where(np.arange(M) < 2, np.inf, score), kind="stable")[:12])
        kept = {int(np.flatnonzero((KEYS[:, head] == key).all(axis=1))[0]) for key in prefix.keys[:, head]}
        assert kept == best, head


@pytest.mark.parametrize("name", ["uniform", "importance"])
def test_sums_over_samples_are_unbiased(name):
    draw = partial(METHODS[name], PROBLEM, 20 * (H + HV + 1))
    draws = jax.tree.map(np.asarray, jax.vmap(draw)(jax.random.split(jax.random.key(0), 600)))

    def flat(*arrays):
        num, den = sums(arrays[0], arrays[1], query, *arrays[2:])
        return np.append(num[0], den[0])

    for head in range(K):
        query = of_head(QUERIES[:1], head)[:1]
        wanted = flat(KEYS[:, head], VALUES[:, head])
        leaves = (draws.keys, draws.values, draws.log_weights)
        found = np.stack([flat(*(leaf[i, :, head] for leaf in leaves)) for i in range(600)])
        error = found.std(axis=0) / np.sqrt(len(found))
        assert (np.abs(found.mean(axis=0) - wanted) < 4 * error).all(), head
        assert (error < 0.1 * np.abs(wanted).max()).all()


def test_a_uniform_sample_is_of_different_tokens_and_equal_weights():
    prefix = made(UniformSample(), 20)
    np.testing.assert_allclose(prefix.log_weights, np.log(M / 20), rtol=1e-6)
    for head in range(K):
        assert len(np.unique(prefix.keys[:, head], axis=0)) == 20


def test_importance_is_better_spent():
    errors = {}
    for name in ("uniform", "importance"):
        runs = [compressed(KEYS, VALUES, method=name, budget=16, queries=QUERIES, seed=seed) for seed in range(8)]
        errors[name] = np.mean([run.report.error for run in runs])
    assert errors["importance"] < errors["uniform"], errors


@pytest.mark.parametrize("in_context", [False, True])
def test_matching_solves_its_two_least_squares_problems(in_context):
    ridge = 1e-3
    problem = IN_CONTEXT if in_context else PROBLEM
    prefix = made(Matching(in_context=in_context, ridge=ridge), 14, problem)
    for head in range(K):
        queries, keys = of_head(QUERIES, head).astype(float), prefix.keys[:, head].astype(float)
        num, den = sums(KEYS[:, head], VALUES[:, head], queries)
        other_num = of_head(BESIDE.num * np.exp(BESIDE.log_scale)[..., None], head) if in_context else 0 * num
        other_den = of_head(BESIDE.den * np.exp(BESIDE.log_scale), head) if in_context else 0 * den
        total = den + other_den
        rows = np.exp(BETA * queries @ keys.T) / total[:, None]
        damping = np.sqrt(ridge * np.trace(rows.T @ rows) / 14)
        damped = np.concatenate([rows, damping * np.eye(14)])
        masses, _ = scipy.optimize.nnls(damped, np.concatenate([den / total, np.zeros(14)]))
        np.testing.assert_allclose(np.exp(prefix.log_weights[:, head]), masses, rtol=1e-2, atol=1e-2 * masses.max())
        # The values, given the masses that were found.
        rows = rows * np.exp(prefix.log_weights[:, head].astype(float))
        sum_of_weights = rows.sum(axis=1) + other_den / total
        wanted = (num + other_num) / total[:, None] - other_num / total[:, None] / sum_of_weights[:, None]
        rows = rows / sum_of_weights[:, None]
        chosen = [int(np.flatnonzero((KEYS[:, head] == key).all(axis=1))[0]) for key in prefix.keys[:, head]]
        own = VALUES[chosen, head].astype(float)
        gram = rows.T @ rows
        gram = gram + ridge * np.trace(gram) / 14 * np.eye(14)
        values = own + np.linalg.solve(gram, rows.T @ (wanted - rows @ own))
        np.testing.assert_allclose(prefix.values[:, head], values, atol=2e-3 * np.abs(values).max())


def test_cholesky_pivots_are_drawn_by_what_is_left(x64):
    keys = 0.7 * np.random.default_rng(6).standard_normal((12, 3))
    kernel = np.exp(keys @ keys.T)
    draw = jax.jit(jax.vmap(lambda key: _pivots(key, jnp.asarray(keys), 2)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 400)))
    first = np.bincount(drawn[:, 0], minlength=12) / 400
    np.testing.assert_allclose(first, np.diag(kernel) / np.trace(kernel), atol=4 * 0.5 / 20)
    assert (drawn[:, 0] != drawn[:, 1]).all()
    likeliest = np.bincount(drawn[:, 0]).argmax()
    after = drawn[drawn[:, 0] == likeliest, 1]
    left = np.diag(kernel) - kernel[:, likeliest] ** 2 / kernel[likeliest, likeliest]
    second = np.bincount(after, minlength=12) / len(after)
    np.testing.assert_allclose(second, left / left.sum(), atol=4 * 0.5 / len(after) ** 0.5)


def test_wildcat_projects_onto_the_chosen_keys(x64):
    random = np.random.default_rng(7)
    keys, values, chosen = 0.5 * random.standard_normal((30, 4)), random.standard_normal((30, 3)), np.arange(0, 30, 5)
    log_masses, found = map(np.asarray, _project(jnp.asarray(keys), jnp.asarray(values), jnp.asarray(chosen)))
    W = np.linalg.solve(np.exp(keys[chosen] @ keys[chosen].T), np.exp(keys[chosen] @ keys.T))
    masses = W.sum(axis=1)
    assert (masses > 0).all()
    np.testing.assert_allclose(np.exp(log_masses), masses, rtol=2e-3)
    np.testing.assert_allclose(np.exp(log_masses)[:, None] * found, W @ values, atol=5e-3)


def test_refining_lowers_what_it_minimises_and_what_it_was_not_fitted_to():
    options = {"budget": 8, "queries": QUERIES, "beside": BESIDE}
    start = compressed(KEYS, VALUES, method="matching-in-context", **options)
    better = compressed(KEYS, VALUES, method=Refined(steps=60), **options)
    assert better.report.error.mean() < 0.95 * start.report.error.mean()


def test_refining_stands_outputs_of_nothing():
    values = jnp.asarray(VALUES).at[:, 0].set(0)
    _, report = compressed(KEYS, values, method=Refined(steps=20), budget=8, queries=QUERIES)
    assert (np.asarray(report.error)[:G] == 0).all()
    assert (np.asarray(report.error)[G:] < 1).all()


def test_masses_and_values_are_fitted_to_keys_as_they_will_be_stored():
    four_bits = rounding("int4")
    options = {"budget": "80 tokens", "queries": QUERIES, "beside": BESIDE}
    ways = [Matching(in_context=True, stored=stored) for stored in (None, four_bits)]
    after, before = (compressed(KEYS, VALUES, method=way, **options).prefix for way in ways)
    np.testing.assert_array_equal(before.keys, four_bits(after).keys)
    after = dataclasses.replace(after, keys=before.keys)
    fitted = [
        sum(error_in_context(KEYS, jax.tree.map(np.asarray, prefix), head) for head in range(K))
        for prefix in (after, before)
    ]
    assert fitted[1] < 0.85 * fitted[0]
    # And what is rounded once is not rounded again.
    np.testing.assert_allclose(four_bits(before).keys, before.keys, atol=1e-5)
    assert as_stored("matching", "int4") == Rounded(Matching(stored=four_bits), "int4")


def test_refining_what_will_be_rounded_finds_what_is_good_when_it_is():
    four_bits = rounding("int4")
    options = {"budget": "40 tokens", "queries": QUERIES, "beside": BESIDE}
    ways = [Rounded(Refined(steps=600, stored=stored), "int4") for stored in (None, four_bits)]
    after, through = (jax.tree.map(np.asarray, compressed(KEYS, VALUES, method=way, **options).prefix) for way in ways)
    np.testing.assert_allclose(four_bits(jax.tree.map(jnp.asarray, through)).keys, through.keys, atol=1e-5)
    fitted = [sum(error_in_context(KEYS, prefix, head) for head in range(K)) for prefix in (after, through)]
    assert fitted[1] < 0.8 * fitted[0]
    assert as_stored("refined", "int4") == Rounded(Refined(stored=four_bits), "int4")


def test_refining_starts_each_head_from_the_tokens_that_answer_better():
    """A head that looks at few keys is served by those that it looks at, one that looks at all of them by pursuit."""
    keys = normal(52, M, K, H) * np.float32([2, 1])[None, :, None]
    problem = Problem(jnp.asarray(keys), IN_CONTEXT.values, IN_CONTEXT.queries, IN_CONTEXT.beside, BETA)
    ways = [made(Matching(choose, in_context=True), 24, problem) for choose in ("attention", "pursuit")]
    start = made(Refined(steps=0), 24, problem)
    for head, better in enumerate(ways):
        errors = [error_in_context(keys, way, head) for way in ways]
        assert int(np.argmin(errors)) == head
        np.testing.assert_array_equal(start.keys[:, head], better.keys[:, head])
        np.testing.assert_array_equal(start.values[:, head], better.values[:, head])
        np.testing.assert_array_equal(start.log_weights[:, head], better.log_weights[:, head])


def error_in_context(keys, prefix, head):
    """Of a kv head's outputs with what is beside: squared and relative, summed over its query heads."""
    found = 0
    for at in range(head * G, head * G + G):
        scale = np.exp(BESIDE.log_scale[:, at].astype(float))
        beside_num, beside_den = BESIDE.num[:, at] * scale[:, None], BESIDE.den[:, at] * scale
        whole_num, whole_den = sums(keys[:, head], VALUES[:, head], QUERIES[:, at])
        num, den = sums(prefix.keys[:, head], prefix.values[:, head], QUERIES[:, at], prefix.log_weights[:, head])
        wanted = (whole_num + beside_num) / (whole_den + beside_den)[:, None]
        missing = (num + beside_num) / (den + beside_den)[:, None] - wanted
        found += (missing**2).sum() / (wanted**2).sum()
    return found


def test_the_first_tokens_are_kept_and_the_method_sees_the_others():
    for name, method in (("uniform", UniformSample()), ("measure", Clouds(rank=1))):
        made = METHODS[name](PROBLEM, 30 * (H + HV + 1), jax.random.key(0))
        others = Problem(PROBLEM.keys[4:], PROBLEM.values[4:], PROBLEM.queries, None, BETA)
        alone = method(others, 26 * (H + HV + 1), jax.random.key(0))
        kept = made if name == "uniform" else made.parts[0]
        np.testing.assert_array_equal(kept.keys[:4], KEYS[:4])
        np.testing.assert_array_equal(kept.values[:4], VALUES[:4])
        np.testing.assert_array_equal(kept.log_weights[:4], 0)
        rest = jax.tree.map(lambda leaf: leaf[4:], made) if name == "uniform" else made.parts[1]
        jax.tree.map(np.testing.assert_array_equal, rest, alone)


def test_what_is_fitted_sees_the_first_tokens_beside():
    first = TokenPrefix(*(jnp.asarray(array[:4]) for array in (KEYS, VALUES)))
    beside = merge(answer(first, PROBLEM.queries, BETA), IN_CONTEXT.beside)
    others = Problem(PROBLEM.keys[4:], PROBLEM.values[4:], PROBLEM.queries, beside, BETA)
    alone = Prune("attention", first=0)(others, 6 * (H + HV), jax.random.key(0))
    made = KeepFirst(Prune("attention", first=0))(IN_CONTEXT, 10 * (H + HV + 1), jax.random.key(0))
    np.testing.assert_array_equal(made.keys[4:], alone.keys)
    np.testing.assert_array_equal(made.log_weights, np.zeros((10, K)))


def test_few_tokens_leave_one_to_the_method():
    made = KeepFirst(Means(), first=9)(PROBLEM, 3 * (H + HV + 1), jax.random.key(0))
    assert made.keys.shape[0] == 3
    np.testing.assert_array_equal(made.keys[:2], KEYS[:2])
    np.testing.assert_allclose(made.log_weights[2], np.log(M - 2), rtol=1e-5)
    one = KeepFirst(Means())(PROBLEM, H + HV + 1, jax.random.key(0))
    np.testing.assert_allclose(one.log_weights, np.log(M), rtol=1e-5)


@pytest.mark.parametrize("method", [KeepEnds(), UniformSample()])
def test_the_first_tokens_have_the_type_of_the_others(method):
    arrays = (jnp.asarray(array, jnp.bfloat16) for array in (KEYS, VALUES, QUERIES))
    made = KeepFirst(method)(Problem(*arrays, None, BETA), 10 * (H + HV + 1), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype(jnp.bfloat16)}
