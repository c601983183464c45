"""Tokens and clouds behind one another, and taken out again."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from prefix_outputs import QUERY, normal, out

from ntkprefix import JoinedPrefix, MeasurePrefix, TokenPrefix

K, H, HV = 2, 6, 5


def tokens(count, *, weights=False, rows=()):
    made = [normal(*rows, count, K, width) for width in (H, HV)]
    return TokenPrefix(*made, normal(*rows, count, K) if weights else None)


def clouds(count, rank=2):
    sizes = (), (H,), (H, rank), (HV,), (HV, rank)
    return MeasurePrefix(*(normal(count, K, *size, scale=0.3) for size in sizes))


CASES = {
    "tokens": (tokens(4), tokens(3)),
    "weighted tokens": (tokens(4, weights=True), tokens(3, weights=True)),
    "some of them weighted": (tokens(4), tokens(3, weights=True)),
    "the others weighted": (tokens(4, weights=True), tokens(3)),
    "a prefix for each row": (tokens(4, rows=(2,)), tokens(3, rows=(2,))),
    "clouds": (clouds(4), clouds(3)),
}


@pytest.mark.parametrize("case", CASES)
def test_shares_of_attention_add(case):
    first, second = CASES[case]
    groups = QUERY.shape[2] // K

    def share(prefix):
        parts = [None if leaf is None else np.asarray(leaf, np.float64) for leaf in vars(prefix).values()]
        if isinstance(prefix, MeasurePrefix):
            log_weight, mean, factor, value, cross = parts
            covariance = np.einsum("ckhr,ckir->ckhi", factor, factor)
            one = oracle.measure(log_weight, mean, covariance, value, np.einsum("ckvr,ckhr->ckvh", cross, factor))
        else:
            one = oracle.tokens(*parts)
        return one if first.shape().rows else oracle.per_kv_head(one, groups)

    def both(b, n, q, beta):
        shares = [share(prefix)(b, n // groups if first.shape().rows else n, q, beta) for prefix in (first, second)]
        top = max(scale for *_, scale in shares)
        num, den = (sum(each[i] * np.exp(each[2] - top) for each in shares) for i in (0, 1))
        return num, den, top

    for joined in (first + second, second + first):
        found = joined.partial(jnp.asarray(QUERY), H**-0.5)
        for b, t, n in np.ndindex(*QUERY.shape[:3]):
            num, den, top = both(b, n, np.asarray(QUERY[b, t, n], np.float64), H**-0.5)
            np.testing.assert_allclose(found.num[b, t, n] / found.den[b, t, n], num / den, atol=1e-4)
            assert np.log(found.den[b, t, n]) + found.log_scale[b, t, n] == pytest.approx(np.log(den) + top, abs=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_what_was_added_can_be_taken_out_exactly(case):
    first, second = CASES[case]
    for joined, one, left in (
        (first + second, second, first),
        (first + second, first, second),
        (first + second + first, second, first + first),
    ):
        for found, wanted in zip(vars(joined - one).values(), vars(left).values(), strict=True):
            # Where one of the two is weighted, the others' weights are known to be 0.
            np.testing.assert_array_equal(0 if found is None else found, 0 if wanted is None else wanted)


def test_all_can_be_taken_out():
    nothing = CASES["tokens"][0] - CASES["tokens"][0]
    assert nothing.keys.shape == (0, K, H)
    assert (out(nothing) == out(TokenPrefix(jnp.zeros((0, K, H)), jnp.zeros((0, K, HV))))).all()


def test_narrow_types_stay_and_widen():
    first, second = CASES["tokens"]
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), first)
    assert (narrow + narrow).keys.dtype == jnp.bfloat16
    assert (narrow + second).keys.dtype == jnp.float32
    np.testing.assert_array_equal((narrow + second - narrow).keys, second.keys)


def test_order_and_bits_matter():
    first, second = CASES["tokens"]
    turned = TokenPrefix(first.keys[::-1], first.values[::-1])
    nearly = TokenPrefix(first.keys * (1 + 1e-6), first.values)
    short = TokenPrefix(first.keys[:2], first.values[:2])
    for other in (turned, nearly, first + second + first):
        with pytest.raises(ValueError, match="to be among the others, behind one another and the same to the last bit"):
            (first + second) - other
    np.testing.assert_array_equal((first + second - short).keys[:2], first.keys[2:])


def test_joined_prefixes_add_part_by_part():
    one, two = (JoinedPrefix((tokens(count), clouds(count))) for count in (3, 4))
    both = one + two
    masses = [each.partial(jnp.asarray(QUERY), H**-0.5).log_mass() for each in (one, two, both)]
    np.testing.assert_allclose(np.logaddexp(*masses[:2]), masses[2], atol=1e-5)
    assert [part.shape().value_width for part in both.parts] == [HV, HV]
    for found, wanted in zip(jax.tree.leaves(both - one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(found, wanted)
    nothing = JoinedPrefix((tokens(0), clouds(0)))
    for same in (one + nothing, one - nothing):
        for found, wanted in zip(jax.tree.leaves(same), jax.tree.leaves(one), strict=True):
            np.testing.assert_array_equal(found, wanted)


ERRORS = {
    "another kind": (tokens(3), clouds(3), TypeError, "TokenPrefix: can add or subtract only its own kind, got Mea"),
    "a number": (clouds(3), 1, TypeError, "MeasurePrefix: can add or subtract only its own kind, got int"),
    "other heads": (tokens(3), TokenPrefix(normal(3, 1, H), normal(3, 1, HV)), ValueError, "nothing but their length"),
    "other widths": (tokens(3), TokenPrefix(normal(3, K, H), normal(3, K, H)), ValueError, r"values \(3, 2, 6\)"),
    "other ranks": (clouds(3), clouds(3, rank=1), ValueError, r"6, 2\), .* and .* factor \(3, 2, 6, 1\)"),
    "rows": (tokens(3), tokens(3, rows=(2,)), ValueError, "nothing but their length"),
    "other rows": (tokens(3, rows=(3,)), tokens(3, rows=(2,)), ValueError, "nothing but their length"),
    "other parts": (
        JoinedPrefix((tokens(3), clouds(3))),
        JoinedPrefix((tokens(3),)),
        TypeError,
        "parts of the same kinds only, got TokenPrefix, MeasurePrefix; TokenPrefix",
    ),
    "a part and a whole": (JoinedPrefix((tokens(3),)), tokens(3), TypeError, "own kind, got TokenPrefix. A JoinedPr"),
    "odd parts": (tokens(3), TokenPrefix(normal(3, K, H), normal(4, K, HV)), ValueError, "one size of axis M"),
}  # fmt: skip


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_added(case, sign, unchecked):
    first, second, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        first + second if sign == 1 else first - second
