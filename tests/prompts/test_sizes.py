"""A budget that is shared out by need: which head gets how much, and that a head is what it would be alone."""

import itertools
from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from ntkprefix import Partial, TokenPrefix
from ntkprefix.compress import Matching, compress
from ntkprefix.prompts import Calibration, compress_layers, sizes
from ntkprefix.prompts import layers as of_layers
from ntkprefix.prompts.ragged import filled
from ntkprefix.prompts.sizes import Needs, _halves, meeting, needs, shared_out

L, K, G, M, Q, H, HV = 2, 2, 2, 64, 48, 6, 4
TOKEN = H + HV
HARD = (1, 0)
METHOD = "matching-in-context"


@cache
def layers():
    """All heads look at nearly all tokens alike, but for one."""
    random = np.random.default_rng(0)
    keys = 0.3 * random.standard_normal((L, M, K, H))
    values = random.standard_normal((L, M, K, HV)) + 2
    keys[HARD[0], :, HARD[1]] *= 7
    queries = 2.0 * random.standard_normal((L, Q, K * G, H))
    whole = TokenPrefix(*(jnp.asarray(array, jnp.float32) for array in (keys, values)))
    beside = Partial(jnp.zeros((L, Q, K * G, HV)), jnp.ones((L, Q, K * G)), jnp.zeros((L, Q, K * G)))
    return whole, Calibration(jnp.asarray(queries, jnp.float32), beside)


def counts(prefixes):
    return np.asarray(jnp.sum(~jnp.isneginf(prefixes.log_weights), axis=1))


@pytest.mark.parametrize("seed", range(8))
def test_shares_are_the_best_there_are(seed):
    """Of all ways there are, whatever shape errors have: steepest at the end too, as of heads that look tokens up."""
    random = np.random.default_rng(seed)
    numbers = np.array([10, 20, 40, 80])
    errors = np.sort(random.random((4, 1, 3)) ** random.integers(1, 5), axis=0)[::-1] * 10.0 ** -random.integers(0, 9)
    found = Needs(numbers, errors)
    ways = {
        way: sum(errors[size, 0, head] for head, size in enumerate(way))
        for way in itertools.product(range(4), repeat=3)
    }
    spent = {way: int(numbers[list(way)].sum()) for way in ways}
    for total in [*range(30, 245, 7), 240]:
        shares = shared_out(found, total)
        assert shares.sum() <= total
        error = sum(errors[list(numbers).index(share), 0, head] for head, share in enumerate(shares[0]))
        # Sizes are rounded up to 64ths of a third of the total.
        assert min(ways[way] for way in ways if spent[way] <= total) <= error * (1 + 1e-9)
        assert error <= min((ways[way] for way in ways if spent[way] <= total * (1 - 3 / 192)), default=np.inf)
    with pytest.raises(ValueError, match="expected room for 10 numbers for each of 3 heads, got 29"):
        shared_out(found, 29)


def test_no_room_for_all_of_a_head_s_tokens_is_room_for_some():
    errors = np.array([[[0.9, 0.9]], [[0.8, 0.8]], [[0.7, 0.7]], [[0.0, 0.0]]])
    np.testing.assert_array_equal(shared_out(Needs(np.array([10, 20, 40, 100]), errors), 109), [[40, 40]])


def test_nothing_is_spent_where_it_does_not_help():
    errors = np.array([[[0.5, 0.2]], [[0.6, 0.2]], [[0.1, 0.3]]])
    np.testing.assert_array_equal(shared_out(Needs(np.array([1, 2, 3]), errors), 100), [[3, 1]])


def test_the_smallest_size_that_meets_an_error():
    errors = np.array([[[0.5, 0.05, 0.9]], [[0.2, 0.02, 0.8]], [[0.1, 0.01, 0.7]]])
    np.testing.assert_array_equal(meeting(Needs(np.array([1, 2, 4]), errors), 0.2), [[2, 1, 4]])


def test_needs_are_measured_on_what_is_fitted_to():
    whole, asked = layers()
    found = needs(whole, asked, 32 * TOKEN)
    # Half of the 64 that there are, and then all of them.
    np.testing.assert_array_equal(found.numbers, [*(np.array([2, 4, 8, 16, 32]) * TOKEN), M * (TOKEN + 1)])
    assert found.errors.shape == (6, L, K)
    np.testing.assert_array_equal(found.errors[-1], 0)
    assert np.argmax(found.errors[4]) == np.ravel_multi_index(HARD, (L, K))
    # Other queries where it is held out: the same needs.
    held = slice(Q - Q // 4, None)
    other = replace(asked, queries=asked.queries.at[:, held].set(0))
    np.testing.assert_array_equal(needs(whole, other, 32 * TOKEN).errors, found.errors)


@pytest.mark.parametrize(("judged", "first", "last", "fits_others"), [
    (None, 18, 36, True),  # half of the 36 that are fitted to
    ((2, 9), 18, 36, True),
    ((1, 24), 0, 24, False),  # of one text and a half, the others are too few
    ((1, 36), 0, 36, False),
])  # fmt: skip
def test_sizes_are_fitted_to_other_queries_than_they_are_judged_on(judged, first, last, fits_others):
    whole, asked = layers()
    tokens, of_layer = jax.tree.map(lambda leaf: leaf[0], (whole, asked))
    of_fitted = jax.tree.map(lambda leaf: leaf[: Q - Q // 4], of_layer)
    fitting, judging = _halves(tokens, of_fitted, judged)
    np.testing.assert_array_equal(judging.queries, of_fitted.queries[first:last])
    np.testing.assert_array_equal(judging.beside.den, of_fitted.beside.den[first:last])
    kept = np.r_[:first, last : Q - Q // 4] if fits_others else np.arange(Q - Q // 4)
    np.testing.assert_array_equal(fitting.queries, of_fitted.queries[kept])


def test_a_head_that_needs_more_gets_more_within_the_same_budget():
    whole, asked = layers()
    evenly, even_report = compress_layers(whole, asked, method=METHOD, budget=16)
    shared, report = compress_layers(whole, asked, method=METHOD, budget=16, share="need")
    found = counts(shared)
    assert found.argmax() == np.ravel_multi_index(HARD, (L, K))
    assert found[HARD] > 2 * found.min()
    held = found.mean() * (TOKEN + 1)
    assert report.numbers == pytest.approx(held)
    assert held <= 16 * TOKEN
    assert report.error.mean() < even_report.error.mean()
    assert evenly.keys.shape[1] < shared.keys.shape[1] == found.max()
    # Alone, with its own numbers, a head becomes the same.
    layer, head = HARD
    of_head = slice(head * G, (head + 1) * G)
    own = jax.tree.map(lambda leaf: leaf[layer, :, of_head], asked)
    keys, values = (array[layer, :, head : head + 1] for array in (whole.keys, whole.values))
    budget = f"{found[HARD] * (TOKEN + 1)} numbers"
    alone = compress(keys, values, method=METHOD, budget=budget, queries=own.queries, beside=own.beside)
    np.testing.assert_allclose(shared.keys[layer, : found[HARD], head], alone.prefix.keys[:, 0], atol=1e-6)
    np.testing.assert_allclose(report.error[layer, of_head], alone.report.error, rtol=1e-4)


def test_many_queries_are_thinned_for_sizes_and_none_that_judges(monkeypatch):
    monkeypatch.setattr(sizes, "_QUERIES", 5)
    whole, asked = layers()
    tokens, of_layer = jax.tree.map(lambda leaf: leaf[0], (whole, asked))
    fitting, judging = _halves.__wrapped__(tokens, of_layer, None)
    np.testing.assert_array_equal(fitting.queries, of_layer.queries[np.array([0, 5, 11, 17, 23])])
    np.testing.assert_array_equal(judging.queries, of_layer.queries[Q // 2 :])


def test_the_blas_has_one_thread_meanwhile():
    def threads():
        return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}

    @dataclass(frozen=True)
    class Watching(Matching):
        def __call__(self, *given):
            seen.append(threads())
            return super().__call__(*given)

    if not threads():
        pytest.skip("no BLAS that says how many threads it has")
    seen, (whole, asked) = [], layers()
    with threadpool_limits(2, "blas"):
        compress_layers(whole, asked, method=Watching(), budget="4x", share="need")
        assert seen
        assert all(found == {1} for found in seen)
        assert threads() == {2}


def test_a_head_whose_errors_are_felt_gets_more():
    """The hard head's errors are the largest, and another's move what the model says next a thousand times more."""
    whole, asked = layers()
    rows, dear = 6, (0, 1)
    fitted = Q - Q // 4
    felt = np.random.default_rng(1).standard_normal((L, 2, rows, fitted // rows, K * G, HV)).astype(np.float32)
    felt[dear[0], ..., dear[1] * G : (dear[1] + 1) * G, :] *= 1e3
    shared, report = compress_layers(whole, asked, method=METHOD, budget=16, share="effect", felt=lambda: felt)
    found = counts(shared)
    assert found.argmax() == np.ravel_multi_index(dear, (L, K))
    assert found[dear] == 2 * 16 * TOKEN // (TOKEN + 1) > found[HARD]  # for four times as many there is no room
    assert report.numbers <= 16 * TOKEN


def test_heads_that_miss_an_error_keep_more():
    """Up to all that they have."""
    whole, asked = layers()
    evenly, even_report = compress_layers(whole, asked, method=METHOD, budget=8)
    of_sizes = needs(whole, asked, 8 * TOKEN).errors
    wanted = 0.5 * float(of_sizes[-2][HARD])
    prefixes, report = compress_layers(whole, asked, method=METHOD, budget=8, error=wanted)
    found = counts(prefixes)
    assert found.min() >= evenly.keys.shape[1]
    assert found[HARD] == M
    layer, head = HARD
    np.testing.assert_array_equal(prefixes.keys[layer, :M, head], whole.keys[layer, :, head])
    np.testing.assert_array_equal(prefixes.values[layer, :M, head], whole.values[layer, :, head])
    np.testing.assert_array_equal(prefixes.log_weights[layer, :M, head], 0)
    assert float(report.error[layer, head * G : (head + 1) * G].max()) < 1e-5 < even_report.error.mean()
    # The smallest that meets it on what it is judged on.
    assert (found[of_sizes[-2] > wanted] == M).all()
    assert (found[of_sizes[-2] <= wanted] < M).all()


def test_heads_that_still_miss_an_error_are_named():
    """All tokens of all heads are not enough where they are rounded."""
    whole, asked = layers()
    wanted = 0.01
    prefixes, report = compress_layers(whole, asked, method=METHOD, budget="8 tokens", error=1e-9, dtype="int4")
    assert (counts(prefixes) == M).all()
    missed = report.above(wanted)
    assert missed
    errors = [float(report.error[head]) for head in missed]
    assert errors == sorted(errors, reverse=True)
    assert min(errors) > wanted
    assert len(errors) == (np.asarray(report.error) > wanted).sum()


@pytest.mark.parametrize("share", ["even", "need", "effect"])
def test_needs_are_found_once(share, monkeypatch):
    whole, asked = layers()
    found = []
    monkeypatch.setattr(of_layers, "needs", lambda *args, **options: found.append(options) or needs(*args, **options))
    felt = np.ones((L, 1, 4, 9, K * G, HV), np.float32)
    compress_layers(whole, asked, method=METHOD, budget=8, error=0.1, share=share, felt=lambda: felt)
    assert [options.get("felt") is not None for options in found] == ([False, True] if share == "effect" else [False])


@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_filled_up_keeps_its_type(weighted):
    keys, values = jnp.ones((2, 3, K, H), jnp.bfloat16)
    found = filled(TokenPrefix(keys, values, keys[..., 0] if weighted else None), 5)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
    assert found.log_weights[:, 0].tolist() == 3 * [float(weighted)] + 2 * [-np.inf]


@pytest.mark.parametrize("method", ["measure", "favor"])
def test_only_tokens_can_have_several_sizes(method):
    whole, asked = layers()
    with pytest.raises(TypeError, match="heads of several sizes need a method that makes tokens, got JoinedPrefix"):
        compress_layers(whole, asked, method=method, budget=32, share="need")


def test_strange_shares_and_errors(unchecked):
    whole, asked = layers()
    with pytest.raises(ValueError, match="unknown share 'fairly'; expected one of even, need, effect"):
        compress_layers(whole, asked, method=METHOD, budget=8, share="fairly")
    with pytest.raises(ValueError, match=r"expected felt= for share='effect', got None"):
        compress_layers(whole, asked, method=METHOD, budget=8, share="effect")
    with pytest.raises(ValueError, match="error"):
        compress_layers(whole, asked, method=METHOD, budget=8, error=-1.0)
