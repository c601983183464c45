"""One table of every way to call the core wrongly, and what it says."""

import jax
import jax.numpy as jnp
import pytest

from ntkprefix import (
    FeaturePrefix,
    JoinedPrefix,
    MeasurePrefix,
    Partial,
    TokenPrefix,
    attention,
    feature_map,
    merge,
    taylor_error_bound,
)
from ntkprefix.bounds import taylor_degree, taylor_weight_error
from ntkprefix.prefixes.least_squares import fit_state

Z = jnp.zeros
QUERY, KEY, VALUE = Z((2, 3, 4, 8)), Z((2, 5, 2, 8)), Z((2, 5, 2, 6))
INPUT = (QUERY, KEY, VALUE)
TOKENS = Z((3, 2, 8)), Z((3, 2, 6))
STATE = FeaturePrefix(Z((2, 8, 6)), Z((2, 8)))


def call(*arrays, **options):
    return lambda: attention(*arrays, **options)


def with_prefix(prefix):
    return lambda: attention(*INPUT, prefix=prefix)


def clouds(**options):
    return lambda: MeasurePrefix.from_tokens(*TOKENS, components=1, **options)


def fitted(tokens=TokenPrefix(*TOKENS), log_mass=Z((2, 3, 4))):  # noqa: B008 - constants
    options = {"feature_map": feature_map("elu"), "centre": Z((4, 8)), "log_scale": Z((4,))}
    return fit_state(tokens, QUERY, log_mass, **options)


ERRORS = {
    "rank": (call(Z((3, 8)), KEY, VALUE), ValueError, r"query \[B, T, N, H\] or \[T, N, H\], got shape \(3, 8\)"),
    "mixed ranks": (call(QUERY[0], KEY, VALUE), ValueError, "one batch size B"),
    "batch sizes": (call(QUERY[:1], KEY, VALUE), ValueError, "one batch size B"),
    "heads that do not divide": (call(QUERY[:, :, :3], KEY, VALUE), ValueError, "3 query heads N to be a multiple of"),
    "no key-value heads": (call(QUERY, KEY[:, :, :0], VALUE[:, :, :0]), ValueError, "0 key-value heads K"),
    "widths": (call(QUERY[..., :7], KEY, VALUE), ValueError, "one head width H of query and key"),
    "width zero": (call(QUERY[..., :0], KEY[..., :0], VALUE), ValueError, "head width H of at least 1"),
    "lengths of key and value": (call(QUERY, KEY, VALUE[:, :4]), ValueError, r"key \[.., S, K, H\] and value"),
    "dtype mix": (call(QUERY.astype(jnp.bfloat16), KEY, VALUE), TypeError, "one dtype for query, key and value"),
    "words": (call("a", "b", "c"), TypeError, "query to be an array of floating-point numbers, got str"),
    "a list": (call([[1.0]], KEY, VALUE), TypeError, "query to be an array of floating-point numbers, got list"),
    "merging numbers": (lambda: merge(1, 2), TypeError, "merge: expected Partials, got 1. A prefix has its `partial`"),
    "merging a prefix": (lambda: merge(STATE), TypeError, "merge: expected Partials"),
    "merging nothing": (lambda: merge(), ValueError, "merge: expected at least one Partial, got none"),
    "merging other queries": (
        lambda: merge(*(Partial(Z((1, t, 2, 3)), Z((1, t, 2)), Z((1, t, 2))) for t in (1, 4))),
        ValueError,
        r"of one size each, got \(1, 1, 2, 3\), .*; \(1, 4, 2, 3\)",
    ),
    "a partial of odd parts": (
        lambda: merge(Partial(Z((1, 2, 2, 3)), Z((1, 2, 2)), Z(()))),
        ValueError,
        r"den and log_scale \[B, T, N\] of one size each",
    ),
    "bound of words": (lambda: taylor_error_bound("a", 2), TypeError, "a number as radius, got 'a'"),
    "degree in words": (lambda: taylor_error_bound(1.0, "b"), TypeError, "a number as degree, got 'b'"),
    "degree between two": (lambda: taylor_error_bound(1.0, 2.5), TypeError, "an integer degree, got float"),
    "a bound for many radii": (lambda: taylor_error_bound(jnp.ones(3), 2), TypeError, "a number as radius, got an arr"),
    "tolerance in words": (lambda: taylor_degree(1.0, "c"), TypeError, "a number as tolerance, got 'c'"),
    "integers": (
        call(QUERY.astype(int), KEY, VALUE),
        TypeError,
        "query to be an array of floating-point numbers, got int32",
    ),
    "float mask": (call(*INPUT, mask=Z((3, 5))), TypeError, "boolean mask .* Use `bias` to add"),
    "mask shape": (call(*INPUT, mask=Z((4, 5), bool)), ValueError, r"broadcasts to \[B, N, T, S\] = \[2, 4, 3, 5\]"),
    "mask over key-value heads": (call(*INPUT, mask=Z((2, 2, 3, 5), bool)), ValueError, r"\[2, 4, 3, 5\], got"),
    "bias of rank 5": (call(*INPUT, bias=Z((1, 1, 1, 3, 5))), ValueError, "a bias that broadcasts"),
    "boolean bias": (call(*INPUT, bias=Z((3, 5), bool)), TypeError, "floating-point bias, got bool. Use `mask`"),
    "float lengths": (call(*INPUT, key_value_seq_lengths=Z((2,))), TypeError, "integer key_value_seq_lengths"),
    "lengths shape": (call(*INPUT, query_seq_lengths=Z((3,), int)), ValueError, r"shape \[B\] = \[2\], got \(3,\)"),
    "float offset": (call(*INPUT, query_offset=1.5), TypeError, "integer query_offset, got 1.5"),
    "offset of a whole float": (call(*INPUT, query_offset=jnp.float32(2)), TypeError, "got an array of float32"),
    "boolean offset": (call(*INPUT, query_offset=True), TypeError, "integer query_offset, got True"),
    "offset beyond 32 bits": (call(*INPUT, query_offset=2**40), ValueError, "query_offset within 32 bits, got 109951"),
    "implementations": (call(*INPUT, implementation=["xla"]), ValueError, "unknown implementation"),
    "feature map by name": (
        lambda: FeaturePrefix.from_tokens(*TOKENS, feature_map="taylor"),
        TypeError,
        r"feature map, such as feature_map\('elu'\), got 'taylor'",
    ),
    "state with a name": (
        lambda: attention(*INPUT, prefix=FeaturePrefix(Z((2, 8, 6)), Z((2, 8)), "elu")),
        TypeError,
        "got 'elu'",
    ),
    "favor by a number": (lambda: feature_map("favor", features=3, key=3), TypeError, "one random key.*, got 3"),
    "favor by two keys": (
        lambda: feature_map("favor", features=3, key=jax.random.split(jax.random.key(0))),
        TypeError,
        "one random key",
    ),
    "offset in words": (call(*INPUT, query_offset="end"), TypeError, "integer query_offset, got 'end'"),
    "offset shape": (call(*INPUT, query_offset=Z((3,), int)), ValueError, "scalar or"),
    "window of three": (call(*INPUT, local_window_size=(1, 2, 3)), TypeError, r"int or \(left, right\)"),
    "mask in words": (call(*INPUT, mask="x"), TypeError, "mask to be an array, got 'x'"),
    "bias in words": (call(*INPUT, bias="a"), TypeError, "bias to be an array, got 'a'"),
    "lengths in words": (call(*INPUT, query_seq_lengths="ab"), TypeError, "query_seq_lengths to be an array, got 'ab'"),
    "tokens without width": (
        lambda: FeaturePrefix.from_tokens(Z((3, 2, 0)), Z((3, 2, 6))),
        ValueError,
        "a head width H of at least 1, got 0",
    ),
    "recentre in words": (
        lambda: FeaturePrefix.from_tokens(*TOKENS, recentre="no"),
        TypeError,
        "True or False as recentre, got 'no'",
    ),
    "a list of feature maps": (lambda: feature_map(["elu"]), ValueError, r"unknown name \['elu'\]"),
    "a traced key of features": (
        lambda: jax.jit(lambda key: feature_map("favor", features=4, key=key)(jnp.ones(3))[0])(jax.random.key(0)),
        TypeError,
        "known when compiling, got a traced one",
    ),
    "a trillion features": (
        lambda: feature_map("favor", features=10**12, key=jax.random.key(0)),
        ValueError,
        "at most 4,194,304 features, got 1,000,000,000,000",
    ),
    "float window": (call(*INPUT, local_window_size=(1.0, 2)), TypeError, r"int or \(left, right\)"),
    "whole float window": (call(*INPUT, local_window_size=2.0), TypeError, r"int or \(left, right\), got 2.0"),
    "boolean window": (call(*INPUT, local_window_size=True), TypeError, r"int or \(left, right\), got True"),
    "window of an array": (call(*INPUT, local_window_size=Z((2,), int)), TypeError, r"int or \(left, right\)"),
    "negative window": (call(*INPUT, local_window_size=(-1, 2)), ValueError, "window sides of at least 0"),
    "causal as a number": (call(*INPUT, is_causal=1), TypeError, "is_causal to be True or False, got 1"),
    "causal as an array": (call(*INPUT, is_causal=Z((), bool)), TypeError, "is_causal .*, got an array of bool"),
    "causal in words": (call(*INPUT, is_causal="no"), TypeError, "is_causal to be True or False, got 'no'"),
    "residual as a number": (call(*INPUT, return_residual=1), TypeError, "return_residual to be True or False, got 1"),
    "scale in words": (call(*INPUT, scale="a"), TypeError, "attention: expected a number as scale, got 'a'"),
    "boolean scale": (call(*INPUT, scale=True), TypeError, "a number as scale, got True"),
    "complex scale": (call(*INPUT, scale=1j), TypeError, "a number as scale, got 1j"),
    "scale per head": (call(*INPUT, scale=Z((4,))), ValueError, r"a scalar scale, got shape \(4,\)"),
    "scale of NaN": (call(*INPUT, scale=float("nan")), ValueError, "a finite scale, got nan"),
    "infinite scale": (call(*INPUT, scale=jnp.float32(jnp.inf)), ValueError, "a finite scale, got inf"),
    "traced scale per head": (
        lambda: jax.jit(lambda scale: attention(*INPUT, scale=scale))(Z((4,))),
        ValueError,
        "a scalar scale",
    ),
    "implementation": (call(*INPUT, implementation="flash"), ValueError, "unknown implementation 'flash'; .* 'xla'"),
    "no prefix at all": (with_prefix(Z((3, 2, 8))), TypeError, "expected a prefix .*, got ArrayImpl"),
    "prefix heads": (with_prefix(TokenPrefix(Z((3, 4, 8)), Z((3, 4, 6)))), ValueError, "TokenPrefix with 2 heads"),
    "state heads": (with_prefix(FeaturePrefix(Z((3, 8, 6)), Z((3, 8)))), ValueError, "2 or 4 heads .* got 3"),
    "prefix width": (with_prefix(TokenPrefix(Z((3, 2, 7)), Z((3, 2, 6)))), ValueError, "head width H = 8, got 7"),
    "value width": (with_prefix(TokenPrefix(Z((3, 2, 8)), Z((3, 2, 8)))), ValueError, "value width Hv = 6, got 8"),
    "rows": (with_prefix(TokenPrefix(Z((3, 4, 2, 8)), Z((3, 4, 2, 6)))), ValueError, "per row .* B = 2, got 3"),
    "feature count": (with_prefix(FeaturePrefix(Z((2, 9, 6)), Z((2, 9)))), ValueError, "R = 8 features"),
    "prefix parts": (with_prefix(TokenPrefix(Z((3, 2, 8)), Z((4, 2, 6)))), ValueError, "one size of axis M"),
    "prefix rank": (with_prefix(TokenPrefix(Z((2, 8)), Z((3, 2, 6)))), ValueError, r"keys \[M, K, H\]"),
    "batch on one part": (
        with_prefix(TokenPrefix(Z((2, 3, 2, 8)), Z((3, 2, 6)))),
        ValueError,
        "every array or on none",
    ),
    "a list of numbers": (with_prefix(TokenPrefix([1.0], Z((3, 2, 6)))), TypeError, "keys to be an array .* got list"),
    "measure parts": (
        with_prefix(MeasurePrefix(Z((3, 2)), Z((3, 2, 8)), Z((3, 2, 8, 1)), Z((3, 2, 6)), Z((3, 2, 6, 2)))),
        ValueError,
        "one size of axis rank",
    ),
    "joined of nothing": (
        with_prefix(JoinedPrefix(())),
        ValueError,
        "JoinedPrefix: expected at least one part, got none",
    ),
    "joined of numbers": (with_prefix(JoinedPrefix((1.0,))), TypeError, "expected prefixes as parts, got float"),
    "joined of two widths": (
        with_prefix(JoinedPrefix((TokenPrefix(*TOKENS), TokenPrefix(Z((3, 2, 9)), TOKENS[1])))),
        ValueError,
        "parts of one B, H and Hv, got None 8 6, None 9 6",
    ),
    "joined of other heads": (
        with_prefix(JoinedPrefix((TokenPrefix(*TOKENS), FeaturePrefix(Z((3, 8, 6)), Z((3, 8)))))),
        ValueError,
        "expected a FeaturePrefix with 2 or 4 heads .* got 3",
    ),
    "scale of features": (call(*INPUT, prefix=STATE, scale=-1.0), ValueError, "a scale above 0, got -1.0"),
    "integer scale of features": (call(*INPUT, prefix=STATE, scale=-1), ValueError, "a scale above 0, got -1"),
    "scale of NaN for features": (
        lambda: FeaturePrefix.from_tokens(*TOKENS, scale=float("nan")),
        ValueError,
        "FeaturePrefix: expected a finite scale, got nan",
    ),
    "scale in words for features": (
        lambda: FeaturePrefix.from_tokens(*TOKENS, scale="a"),
        TypeError,
        "FeaturePrefix: expected a number as scale, got 'a'",
    ),
    "another scale than the state's": (
        with_prefix(FeaturePrefix.from_tokens(*TOKENS, scale=0.5)),
        ValueError,
        r"expected scale 0.5, which the state was built with, got 0.3535534. Build .*\(..., scale=0.3535534\)",
    ),
    "another scale than the default": (
        call(*INPUT, prefix=FeaturePrefix.from_tokens(*TOKENS), scale=jnp.float32(0.5)),
        ValueError,
        "expected scale 0.3535534, which the state was built with, got 0.5",
    ),
    "appending at another scale": (
        lambda: FeaturePrefix.from_tokens(*TOKENS).append(*TOKENS, scale=0.5),
        ValueError,
        "expected scale 0.3535534, which the state was built with, got 0.5",
    ),
    "adding another scale": (
        lambda: FeaturePrefix.from_tokens(*TOKENS) + FeaturePrefix.from_tokens(*TOKENS, scale=0.5),
        ValueError,
        "expected scale 0.3535534, which the state was built with, got 0.5",
    ),
    "subtracting another scale": (
        lambda: FeaturePrefix.from_tokens(*TOKENS) - FeaturePrefix.from_tokens(*TOKENS, scale=0.5),
        ValueError,
        "expected scale 0.3535534, which the state was built with, got 0.5",
    ),
    "another centre's heads": (
        lambda: FeaturePrefix.from_tokens(*TOKENS, centre=Z((3, 8))),
        ValueError,
        "one size of axis K in keys .* centre",
    ),
    "one centre for all rows": (
        lambda: FeaturePrefix.from_tokens(Z((2, 3, 2, 8)), Z((2, 3, 2, 6)), centre=Z((2, 8))),
        ValueError,
        "a leading B axis on every array or on none",
    ),
    "a prefix's class": (with_prefix(TokenPrefix), TypeError, "expected a prefix .*, got type"),
    "unknown map": (lambda: feature_map("relu"), ValueError, "unknown name 'relu'; expected one of elu, taylor, favor"),
    "missing option": (lambda: feature_map("taylor"), ValueError, "expected degree; got no options"),
    "unknown option": (lambda: feature_map("elu", degree=2), ValueError, "expected no options; got degree"),
    "negative degree": (lambda: feature_map("taylor", degree=-1), ValueError, "degree of at least 0, got -1"),
    "fractional degree": (lambda: feature_map("taylor", degree=1.5), TypeError, "an integer degree, got float"),
    "empty budget": (
        lambda: feature_map("favor", features=0, key=jax.random.key(0)),
        ValueError,
        "features of at least 1, got 0",
    ),
    "too many features": (
        lambda: feature_map("taylor", degree=9)(Z((1, 64))),
        ValueError,
        "expected at most 4,194,304. Use a lower degree",
    ),
    "no components": (
        lambda: MeasurePrefix.from_tokens(Z((3, 2, 8)), Z((3, 2, 6)), components=0),
        ValueError,
        "components of at least 1",
    ),
    "no tokens to fit": (
        lambda: MeasurePrefix.from_tokens(Z((0, 2, 8)), Z((0, 2, 6)), components=1),
        ValueError,
        "tokens of at least 1",
    ),
    "rank above width": (
        lambda: MeasurePrefix.from_tokens(Z((3, 2, 8)), Z((3, 2, 6)), components=1, rank=9),
        ValueError,
        "rank of at most the head width H = 8, got 9",
    ),
    "negative scale": (
        lambda: FeaturePrefix.from_tokens(Z((3, 2, 8)), Z((3, 2, 6)), scale=-1.0),
        ValueError,
        "a scale above 0",
    ),
    "tokens that do not fit": (
        lambda: FeaturePrefix.from_tokens(Z((3, 2, 8)), Z((4, 2, 6))),
        ValueError,
        "one size of axis M",
    ),
    "adding another kind": (lambda: STATE + 1, TypeError, "only its own kind, got int"),
    "adding other features": (
        lambda: STATE + FeaturePrefix(Z((2, 9, 6)), Z((2, 9)), feature_map("taylor", degree=1)),
        ValueError,
        "one feature map",
    ),
    "adding other shapes": (lambda: STATE + FeaturePrefix(Z((1, 8, 6)), Z((1, 8))), ValueError, "states of one shape"),
    "adding other centres": (
        lambda: (
            FeaturePrefix.from_tokens(Z((3, 2, 8)), Z((3, 2, 6)))
            + FeaturePrefix.from_tokens(Z((3, 2, 8)) + 1, Z((3, 2, 6)))
        ),
        ValueError,
        "recentred on different points",
    ),
    "negative radius": (lambda: taylor_error_bound(-1.0, 2), ValueError, "radius >= 0, got -1.0"),
    "NaN radius": (lambda: taylor_error_bound(float("nan"), 2), ValueError, "radius >= 0, got nan"),
    "negative bound degree": (lambda: taylor_error_bound(1.0, -2), ValueError, "degree >= 0, got -2"),
    "negative value bound": (lambda: taylor_error_bound(1.0, 2, -1.0), ValueError, "value_bound >= 0, got -1.0"),
    "negative radius of a weight": (lambda: taylor_weight_error(-1.0, 2), ValueError, "taylor_weight_error: .* radius"),
    "infinite radius": (lambda: taylor_degree(float("inf"), 0.1), ValueError, "a finite radius, got inf"),
    "no tolerance": (lambda: taylor_degree(1.0, 0.0), ValueError, "tolerance above 0"),
    "radius in words": (lambda: taylor_degree("a", 0.1), TypeError, "taylor_degree: expected a number as radius"),
    "a radius beyond floats": (lambda: taylor_degree(10**400, 0.1), ValueError, "a finite radius, got 1000"),
    "weight in words": (lambda: taylor_weight_error("a", 2), TypeError, "taylor_weight_error: .* as radius, got 'a'"),
    "tokens of None": (with_prefix(TokenPrefix(None, None)), TypeError, "TokenPrefix: expected keys to be .* got None"),
    "values of None": (with_prefix(TokenPrefix(TOKENS[0], None)), TypeError, "expected values to be .* got None"),
    "weights in words": (with_prefix(TokenPrefix(*TOKENS, "a")), TypeError, "expected log_weights to be .* got str"),
    "no state": (with_prefix(FeaturePrefix(None, None)), TypeError, "FeaturePrefix: expected Z to be .* got None"),
    "state without k": (with_prefix(FeaturePrefix(STATE.Z, None)), TypeError, "expected k to be an array .* got None"),
    "centre in words": (
        with_prefix(FeaturePrefix(STATE.Z, STATE.k, centre="mean")),
        TypeError,
        "expected centre to be an array of floating-point numbers, got str",
    ),
    "state of no map": (
        lambda: attention(*INPUT, prefix=FeaturePrefix(STATE.Z, STATE.k, None)),
        TypeError,
        "a feature map, .* got None",
    ),
    "no cloud": (with_prefix(MeasurePrefix(*(None,) * 5)), TypeError, "MeasurePrefix: expected log_weight .* got None"),
    "share of tokens of None": (
        lambda: TokenPrefix(None, None).partial(QUERY, 1.0),
        TypeError,
        "expected keys .* None",
    ),
    "share of no state": (lambda: FeaturePrefix(None, None).partial(QUERY, 1.0), TypeError, "expected Z .* got None"),
    "share of no cloud": (lambda: MeasurePrefix(*"abcde").partial(QUERY, 1.0), TypeError, "log_weight .* got str"),
    "adding to no state": (lambda: FeaturePrefix(None, None) + STATE, TypeError, "expected Z to be .* got None"),
    "adding no state": (lambda: STATE + FeaturePrefix(STATE.Z, None), TypeError, "expected k to be .* got None"),
    "subtracting a state of other k": (
        lambda: STATE - FeaturePrefix(STATE.Z, Z((2, 9))),
        ValueError,
        r"states of one shape, got k \(2, 8\) and \(2, 9\)",
    ),
    "appending to no state": (lambda: FeaturePrefix(None, None).append(*TOKENS), TypeError, "expected Z .* got None"),
    "appending nothing": (lambda: STATE.append(None, None), TypeError, "from_tokens: expected keys to be .* got None"),
    "merging nothings": (lambda: merge(Partial(None, None, None)), TypeError, "merge: expected num to be .* got None"),
    "features of no tokens": (
        lambda: FeaturePrefix.from_tokens(None, None),
        TypeError,
        "from_tokens: expected keys to be an array of floating-point numbers, got None",
    ),
    "features of no values": (
        lambda: FeaturePrefix.from_tokens(TOKENS[0], None),
        TypeError,
        "values to be .* got None",
    ),
    "clouds of no tokens": (
        lambda: MeasurePrefix.from_tokens(None, TOKENS[1], components=1),
        TypeError,
        "from_tokens: expected keys to be .* got None",
    ),
    "far too many features": (
        lambda: FeaturePrefix.from_tokens(*TOKENS, feature_map=feature_map("taylor", degree=200)),
        ValueError,
        r"degree=200\) has 75,824,205,888,366 features at head width 8; expected at most 4,194,304",
    ),
    "features past writing out": (
        lambda: feature_map("taylor", degree=10**40).size(64),
        ValueError,
        r"has 10\^2471 features at head width 64; expected at most 4,194,304",
    ),
    "features of too many factors": (
        lambda: FeaturePrefix.from_tokens(Z((3, 2, 2)), TOKENS[1], feature_map=feature_map("taylor", degree=1000)),
        ValueError,
        "has 501,501 features of 1000 factors each at head width 2; expected at most 67,108,864 factors",
    ),
    "seed in words": (clouds(seed="a"), TypeError, "MeasurePrefix.from_tokens: expected an integer as seed, got 'a'"),
    "fractional seed": (clouds(seed=1.5), TypeError, "an integer as seed, got 1.5"),
    "boolean seed": (clouds(seed=True), TypeError, "an integer as seed, got True"),
    "seeds": (clouds(seed=jnp.arange(2)), TypeError, "an integer as seed, got an array of int32"),
    "huge seed": (clouds(seed=2**70), ValueError, "a seed within 64 bits, got 1180591620717411303424"),
    "fitting words": (lambda: fitted(log_mass="a"), TypeError, "fit_state: expected log_mass to be .* got str"),
    "fitting no tokens": (lambda: fitted(TokenPrefix(None, None)), TypeError, "TokenPrefix: expected keys .* got None"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ERRORS)
def test_error(name):
    wrong, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        wrong()


def test_nan_in_a_prefix_when_checking_is_on():
    prefix = FeaturePrefix(Z((2, 8, 6)), Z((2, 8)).at[1, 3].set(jnp.nan))
    assert jnp.isnan(attention(*INPUT, prefix=prefix)).any()
    with jax.debug_nans(True), pytest.raises(ValueError, match=r"NaN in FeaturePrefix\.k"):
        attention(*INPUT, prefix=prefix)


def test_nan_in_a_prefix_is_caught_under_jit_by_jax_itself():
    prefix = FeaturePrefix(Z((2, 8, 6)), Z((2, 8)).at[1, 3].set(jnp.nan))
    with jax.debug_nans(True), pytest.raises((FloatingPointError, ValueError)):
        jax.jit(attention)(*INPUT, prefix=prefix)


def test_prefixes_are_made_of_anything_until_they_are_used():
    """JAX's transformations rebuild them around placeholders."""
    for prefix in (TokenPrefix(*TOKENS), STATE, MeasurePrefix.from_tokens(*TOKENS, components=1)):
        for placeholder in (None, object(), "axis"):
            jax.tree.map(lambda _, one=placeholder: one, prefix)
        assert jax.eval_shape(lambda one: attention(*INPUT, prefix=one), prefix).shape == (2, 3, 4, 6)


@pytest.mark.usefixtures("unchecked")
def test_seeds_that_will_do():
    first = MeasurePrefix.from_tokens(*TOKENS, components=1, seed=3)
    for seed in (jnp.asarray(3), -1, 2**63 - 1):
        assert MeasurePrefix.from_tokens(*TOKENS, components=1, seed=seed).mean.shape == first.mean.shape
    assert jax.jit(lambda seed: MeasurePrefix.from_tokens(*TOKENS, components=1, seed=seed).mean)(3).shape == (1, 2, 8)
